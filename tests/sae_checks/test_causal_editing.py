"""Editing: an exact dictionary edits as the stream itself does, a collapsed one as the mean does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import WIDTH, make_corpus, make_decisions, relu_sae, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.sae_checks import causal_editing
from reasoning_features.sae_checks.causal_editing import SCORES, Editing
from reasoning_features.sae_checks.interpretability import CEILING, FLOOR
from reasoning_features.truth.decisions import Decisions

CORPUS = make_corpus(60)
MEAN = np.linspace(-1, 1, WIDTH)
PAIRS = 30
EVERYWHERE = np.arange(CORPUS.n_documents)


def decisions(name: str, places: tuple[int, int], positive: list[int], negative: list[int]) -> Decisions:
    """Decisions at two places of every document."""
    everywhere = np.repeat(EVERYWHERE, 2), np.tile(places, CORPUS.n_documents)
    return make_decisions(CORPUS, *everywhere, positive, negative, name=name)


BOTH = {
    "persistence": decisions("persistence", (1, 3), [10, 11], [20]),
    "verification": decisions("verification", (2, 4), [30], [40, 41]),
}


@pytest.fixture(scope="module")
def contexts(tiny_subject):
    return causal_editing.read_contexts(tiny_subject, BOTH, batch_tokens=200)


def scores(editing: Editing, dictionary: str, n: int) -> np.ndarray:
    """``[2, 3]``: attributes (result, style) by scores; the table has their mean."""
    marks = editing.marks[editing.edits.index((dictionary, n))].mean(1)
    (row,) = editing.table().query("dictionary == @dictionary and n == @n")[list(SCORES)].to_numpy()
    np.testing.assert_allclose(row, marks.mean(0))
    return marks


def test_exact_dictionaries_are_the_ceiling_and_collapsed_ones_the_floor(tiny_subject, contexts, monkeypatch):
    direction = contexts.difference(contexts.stream, 1)
    rows = torch.linalg.qr(torch.cat([direction[:, None], torch.eye(WIDTH)[:, 1:]], dim=1)).Q.T
    # latent i is coordinate i along orthonormal rows, plus 100
    linear = relu_sae(rows.T.clone(), rows.clone(), torch.full((WIDTH,), 100.0), -100 * rows.sum(0))
    collapsed = signed_identity(WIDTH, centre=torch.from_numpy(MEAN).float())
    collapsed.W_enc.data.zero_()
    saes = {"identity": signed_identity(WIDTH), "direction": linear, "collapsed": collapsed}
    pairs = causal_editing.draw_pairs(contexts, PAIRS, EVERYWHERE)
    monkeypatch.setattr(causal_editing, "NS", (0, 1, 2 * WIDTH))
    editing = causal_editing.edit_attributes(tiny_subject, saes, contexts, pairs, MEAN)
    # all latents of an exact dictionary are the whole stream, and none changes nothing
    whole = scores(editing, CEILING, WIDTH)
    np.testing.assert_allclose(scores(editing, "identity", 2 * WIDTH), whole)
    assert 0 < whole[0, 0] < 1 or 0 < whole[1, 0] < 1
    assert scores(editing, "identity", 0).tolist() == [[0.0, 1.0, 0.5]] * 2
    # a latent that is the direction moves the stream along it
    ceiling = scores(editing, CEILING, 1)
    np.testing.assert_allclose(scores(editing, "direction", 1)[1], ceiling[1])
    assert ceiling[1, 0] > 0
    floor = scores(editing, FLOOR, 0)
    for n in (0, 1, 2 * WIDTH):
        np.testing.assert_allclose(scores(editing, "collapsed", n), floor)
    # what does not depend on the attribute isolates one as often as it fails to cause the other
    for same in (floor, whole):
        assert same[0, 0] == pytest.approx(1 - same[1, 1]) and same[1, 0] == pytest.approx(1 - same[0, 1])
        assert same[:, 2].mean() == pytest.approx(0.5)


def test_resamples_are_of_documents():
    hard = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.8])
    # all scores and attributes alike
    marks = np.stack([np.broadcast_to(share[:, None], (2, 6, 3)) for share in (hard + 0.2, hard)])
    editing = Editing((("good", 1), ("bad", 1)), marks, np.array([3, 3, 3, 4, 7, 7]))
    ends = editing.table()[["disentanglement low", "disentanglement", "disentanglement high"]].to_numpy()
    np.testing.assert_allclose(ends[0] - ends[1], 0.2)
    # documents, not pairs, are drawn: means of the three are 0.2, 0.6 and 0.8
    assert ends[1] == pytest.approx([0.2, 2.8 / 6, 0.8])


def test_sides_are_those_of_the_models_own_log_odds(tiny_subject, contexts):
    wrong, right = BOTH["persistence"], BOTH["verification"]
    # those that the model reads otherwise are left out
    assert 20 < len(contexts.sides) < len(wrong) + len(right)
    for i in (0, 7, len(contexts.sides) - 1):
        document, place = contexts.documents[i], int(contexts.places[i])
        ids = torch.from_numpy(CORPUS.document(document)[: place + 1].astype(np.int64))
        logits = tiny_subject.logits(ids[None])[0, -1]
        odds = [
            float(logits[[30, 40, 41]].logsumexp(0) - logits[[10, 11, 20]].logsumexp(0)),
            float(logits[[10, 11]].logsumexp(0) - logits[20]),
            float(logits[30] - logits[[40, 41]].logsumexp(0)),
        ]
        above = [value > median for value, median in zip(odds, contexts.medians.tolist(), strict=True)]
        assert contexts.sides[i].tolist() == [above[0], above[2] if above[0] else above[1]]
        assert contexts.sides[i, 0] == (place in (2, 4))
        assert contexts.read(logits).tolist() == contexts.sides[i].tolist()
        stream = tiny_subject.residual(ids[None])[0, -1]
        torch.testing.assert_close(contexts.stream[i], stream, atol=1e-4, rtol=1e-4)


def test_differences_hold_the_other_attribute(contexts):
    sides = torch.from_numpy(contexts.sides).float()
    values = 3 * sides[:, 0] + 5 * sides[:, 1]
    assert float(contexts.difference(values, 0)) == pytest.approx(3)
    assert float(contexts.difference(values, 1)) == pytest.approx(5)
    with pytest.raises(UserError, match="take more documents"):
        replace(contexts, training=contexts.training & contexts.sides[:, 0]).difference(values, 0)


def test_pairs_differ_in_both_and_are_of_test_documents_in_two_halves(contexts):
    base, source = causal_editing.draw_pairs(contexts, PAIRS, EVERYWHERE)
    assert (contexts.sides[base] == ~contexts.sides[source]).all()
    assert not contexts.training[[*base, *source]].any()
    test = set(contexts.documents[~contexts.training])
    assert not test & set(contexts.documents[contexts.training])
    assert len(set(base)) == PAIRS and contexts.sides[base, 0].sum() == PAIRS // 2
    # as many as there are, as often of either result
    most, _ = causal_editing.draw_pairs(contexts, 10_000, EVERYWHERE)
    assert PAIRS < len(most) == 2 * contexts.sides[most, 0].sum() and len(set(most)) == len(most)

    choosing, reporting = causal_editing.halves(contexts)
    assert not set(choosing) & set(reporting) and {*choosing, *reporting} == test
    assert abs(len(choosing) - len(reporting)) <= 1
    for documents in (choosing, reporting):
        base, source = causal_editing.draw_pairs(contexts, 10, documents)
        assert np.isin(contexts.documents[[*base, *source]], documents).all()
    with pytest.raises(UserError, match="Some pair of result and style"):
        causal_editing.draw_pairs(contexts, 10, choosing[:1])
