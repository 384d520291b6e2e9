"""Editing: an exact dictionary edits as the stream itself does, a collapsed one as the mean does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from tiny import HOOK, WIDTH, make_corpus, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.foundations.causal_editing import (
    KEPT,
    LEFT_OUT,
    SCORES,
    Editing,
    chosen_n,
    edit_attributes,
)
from reasoning_features.foundations.names import CEILING, FLOOR
from reasoning_features.foundations.standings import Standings, draw_pairs, halves, read_standings
from reasoning_features.models.subject import Subject
from reasoning_features.statistics import Interval
from reasoning_features.truth.decisions import Decisions

CORPUS = make_corpus(60)
MEAN = np.linspace(-1, 1, WIDTH)
PAIRS = 30


def decisions(name: str, places: tuple[int, ...], positive: list[int], negative: list[int]) -> Decisions:
    """Decisions at some places of every document."""
    documents = np.repeat(np.arange(CORPUS.n_documents), len(places))
    return Decisions(
        name=name,
        corpus=CORPUS,
        positions=CORPUS.starts[documents] + np.tile(places, CORPUS.n_documents),
        documents=documents,
        styles=[""] * len(documents),
        towards=np.zeros(len(documents), dtype=bool),
        positive=np.array(positive),
        negative=np.array(negative),
    )


BOTH = {
    "persistence": decisions("persistence", (1, 3), [10, 11], [20]),
    "verification": decisions("verification", (2, 4), [30], [40, 41]),
}


@pytest.fixture(scope="module")
def standings(tiny_subject: Subject) -> Standings:
    return read_standings(tiny_subject, BOTH, batch_tokens=200)


def linear(rows: torch.Tensor) -> StandardSAE:
    """An autoencoder whose latent i is coordinate i along orthonormal ``rows`` ``[d, d]``, plus 100."""
    config = StandardSAEConfig(
        d_in=WIDTH,
        d_sae=WIDTH,
        apply_b_dec_to_input=False,
        metadata=SAEMetadata(hook_name=HOOK, model_name="m"),
    )
    sae = StandardSAE(config)
    sae.W_enc.data, sae.W_dec.data = rows.T.clone(), rows.clone()
    sae.b_enc.data, sae.b_dec.data = torch.full((WIDTH,), 100.0), -100 * rows.sum(0)
    return sae.requires_grad_(False)


def collapsed() -> StandardSAE:
    sae = signed_identity(WIDTH, centre=torch.from_numpy(MEAN).float())
    sae.W_enc.data.zero_()
    return sae


@pytest.fixture(scope="module")
def editing(tiny_subject: Subject, standings: Standings) -> Editing:
    direction = standings.difference(standings.stream, 1)
    rows = torch.linalg.qr(torch.cat([direction[:, None], torch.eye(WIDTH)[:, 1:]], dim=1)).Q.T
    saes = {"identity": signed_identity(WIDTH), "direction": linear(rows), "collapsed": collapsed()}
    return edit_attributes(
        tiny_subject, saes, standings, draw_pairs(standings, PAIRS), MEAN, ns=(0, 1, 2 * WIDTH)
    )


@pytest.fixture(scope="module")
def table(editing: Editing) -> pd.DataFrame:
    return editing.table()


def scores(table: pd.DataFrame, dictionary: str, n: int, error: str = LEFT_OUT) -> np.ndarray:
    """``[3, 3]``: attributes (result, style, both) by scores."""
    held = table[(table["dictionary"] == dictionary) & (table["n"] == n) & (table["error"] == error)]
    assert held["attribute"].tolist() == ["result", "style", "both"]
    return held[list(SCORES)].to_numpy()


def test_all_latents_of_an_exact_dictionary_are_the_whole_stream(table: pd.DataFrame) -> None:
    whole = scores(table, CEILING, WIDTH, "")
    for error in (LEFT_OUT, KEPT):
        np.testing.assert_allclose(scores(table, "identity", 2 * WIDTH, error), whole)
    assert 0 < whole[0, 0] < 1 or 0 < whole[1, 0] < 1


def test_no_latents_of_an_exact_dictionary_change_nothing(table: pd.DataFrame) -> None:
    for dictionary, error in (("identity", LEFT_OUT), ("identity", KEPT), ("collapsed", KEPT)):
        found = scores(table, dictionary, 0, error)
        assert found[:2].tolist() == [[0.0, 1.0, 0.5]] * 2


def test_a_latent_that_is_the_direction_is_the_ceiling(table: pd.DataFrame) -> None:
    ceiling = scores(table, CEILING, 1, "")
    np.testing.assert_allclose(scores(table, "direction", 1)[1], ceiling[1])
    assert ceiling[1, 0] > 0


def test_a_collapsed_dictionary_is_the_floor_which_is_one_half(table: pd.DataFrame) -> None:
    floor = scores(table, FLOOR, 0)
    for n in (0, 1, 2 * WIDTH):
        np.testing.assert_allclose(scores(table, "collapsed", n), floor)
    # what does not depend on the attribute isolates one as often as it fails to cause the other
    for same in (floor, scores(table, CEILING, WIDTH, "")):
        assert same[0, 0] == pytest.approx(1 - same[1, 1]) and same[1, 0] == pytest.approx(1 - same[0, 1])
        assert same[2, 2] == pytest.approx(0.5)


def test_the_table_counts_and_has_intervals(table: pd.DataFrame) -> None:
    assert set(table["pairs"]) == {PAIRS} and table["documents"].between(10, PAIRS).all()
    for score in SCORES:
        assert (table[f"{score} low"] <= table[score] + 1e-12).all()
        assert (table[score] <= table[f"{score} high"] + 1e-12).all()
    both = table[table["attribute"] == "both"]["disentanglement"].to_numpy()
    parts = [table[table["attribute"] == name]["disentanglement"].to_numpy() for name in ("result", "style")]
    np.testing.assert_allclose(both, np.mean(parts, axis=0))
    varying = table[(table["cause"] > 0.1) & (table["cause"] < 0.9)]
    assert (varying["cause low"] < varying["cause high"]).all()


def test_differences_of_known_dictionaries(editing: Editing, table: pd.DataFrame) -> None:
    n_documents = len(set(editing.documents))
    nothing = Interval(0.0, 0.0, 0.0, n_documents)
    for name, n in (("direction", 1), (CEILING, 1), (FLOOR, 0)):
        for attribute in ("result", "style", "both"):
            assert editing.difference(name, name, n, attribute=attribute) == nothing
    assert editing.difference("collapsed", FLOOR, 1, other_n=0) == nothing
    for error in (LEFT_OUT, KEPT):
        assert editing.difference("identity", CEILING, 2 * WIDTH, error, other_n=WIDTH) == nothing
    assert editing.difference("direction", CEILING, 1, attribute="style", score="cause") == nothing
    apart = scores(table, "identity", 1, KEPT) - scores(table, FLOOR, 0)
    for attribute, means in zip(("result", "style", "both"), apart, strict=True):
        for score, wanted in zip(SCORES, means, strict=True):
            found = editing.difference("identity", FLOOR, 1, KEPT, attribute, score, other_n=0)
            assert found.estimate == pytest.approx(wanted, abs=1e-12)
            assert found.low <= found.estimate <= found.high


def made(shares: dict[tuple[str, int, str], np.ndarray], documents: list[int]) -> Editing:
    """Edits with all scores and attributes alike: ``[pairs]`` for each dictionary, n and error."""
    marks = np.stack([np.broadcast_to(share[:, None], (2, len(share), 3)) for share in shares.values()])
    return Editing(
        pd.DataFrame(list(shares), columns=["dictionary", "n", "error"]), marks, np.array(documents)
    )


def test_differences_are_of_the_same_pairs() -> None:
    hard = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.8])
    editing = made(
        {
            ("good", 1, LEFT_OUT): hard + 0.2,
            ("good", 5, LEFT_OUT): np.ones(6),
            ("bad", 1, LEFT_OUT): hard,
            (FLOOR, 0, LEFT_OUT): np.full(6, 0.5),
        },
        [3, 3, 3, 4, 7, 7],
    )
    each = editing.table().set_index(["dictionary", "n", "attribute"])
    assert each["disentanglement high"].to_dict()["bad", 1, "both"] > 0.7
    found = editing.difference("good", "bad", 1)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2)) and found.n == 3
    assert editing.difference("good", FLOOR, 5, other_n=0) == Interval(0.5, 0.5, 0.5, 3)
    # documents, not pairs, are drawn: means of the three are 0.2, 0.6 and 0.8
    against = editing.difference("bad", FLOOR, 1, other_n=0)
    assert against.estimate == pytest.approx(2.8 / 6 - 0.5)
    assert (against.low, against.high) == pytest.approx((0.2 - 0.5, 0.8 - 0.5))


def test_edits_that_are_missing_are_said(editing: Editing) -> None:
    for said, asked in (
        ("No dictionary 'nobody' is among the edits: choose among identity,", ("nobody", FLOOR, 0)),
        ("No dictionary 'nobody'", ("identity", "nobody", 0)),
        ("No edit of identity has n = 7, error left out: choose n among 0, 1, 64", ("identity", FLOOR, 7)),
        (f"No edit of {FLOOR} has n = 1, .* among 0", ("identity", FLOOR, 1)),
        ("No error 'lost'", ("identity", FLOOR, 0, "lost")),
        ("No attribute 'mood'", ("identity", FLOOR, 0, KEPT, "mood")),
        ("No score 'luck'", ("identity", FLOOR, 0, KEPT, "style", "luck")),
    ):
        with pytest.raises(UserError, match=said):
            editing.difference(*asked)


def test_the_number_of_latents_is_the_best_and_of_equals_the_smallest() -> None:
    ones = np.ones(3)
    editing = made(
        {
            ("a", 0, LEFT_OUT): ones,  # of no latent: not to be chosen
            ("a", 20, LEFT_OUT): np.array([0.1, 0.2, 0.6]),
            ("a", 5, LEFT_OUT): np.array([0.6, 0.2, 0.1]),  # as good, with fewer
            ("a", 1, LEFT_OUT): 0.2 * ones,
            ("a", 1, KEPT): ones,
            ("b", 1, LEFT_OUT): 0.3 * ones,
            ("b", 20, LEFT_OUT): 0.7 * ones,
            ("b", 20, KEPT): 0.1 * ones,
            (CEILING, 1, ""): ones,
            (FLOOR, 0, LEFT_OUT): 0.5 * ones,
        },
        [0, 1, 2],
    )
    table = editing.table()
    assert chosen_n(table) == {"a": 5, "b": 20}
    assert chosen_n(table, KEPT) == {"a": 1, "b": 20}
    result = table["attribute"] == "result"
    table.loc[result, "disentanglement"] = np.arange(result.sum())  # not what is asked
    assert chosen_n(table) == {"a": 5, "b": 20}
    with pytest.raises(UserError, match="edit by one latent or more"):
        chosen_n(table[table["n"] == 0])


def test_sides_are_those_of_the_models_own_log_odds(tiny_subject: Subject, standings: Standings) -> None:
    wrong, right = BOTH["persistence"], BOTH["verification"]
    assert (
        20 < len(standings.sides) < len(wrong) + len(right)
    )  # those that the model reads otherwise are left out
    for i in (0, 7, len(standings.sides) - 1):
        document, place = standings.documents[i], int(standings.places[i])
        ids = torch.from_numpy(CORPUS.document(document)[: place + 1].astype(np.int64))
        logits = tiny_subject.logits(ids[None])[0, -1]
        odds = [
            float(logits[[30, 40, 41]].logsumexp(0) - logits[[10, 11, 20]].logsumexp(0)),
            float(logits[[10, 11]].logsumexp(0) - logits[20]),
            float(logits[30] - logits[[40, 41]].logsumexp(0)),
        ]
        above = [value > median for value, median in zip(odds, standings.medians.tolist(), strict=True)]
        assert standings.sides[i].tolist() == [above[0], above[2] if above[0] else above[1]]
        assert standings.sides[i, 0] == (place in (2, 4))
        assert standings.read(logits).tolist() == standings.sides[i].tolist()
        stream = tiny_subject.residual(ids[None])[0, -1]
        torch.testing.assert_close(standings.stream[i], stream, atol=1e-4, rtol=1e-4)


def test_differences_hold_the_other_attribute(standings: Standings) -> None:
    sides = torch.from_numpy(standings.sides).float()
    values = 3 * sides[:, 0] + 5 * sides[:, 1]
    assert float(standings.difference(values, 0)) == pytest.approx(3)
    assert float(standings.difference(values, 1)) == pytest.approx(5)
    with pytest.raises(UserError, match="take more documents"):
        replace(standings, training=standings.training & standings.sides[:, 0]).difference(values, 0)


def test_pairs_differ_in_both_and_are_of_test_documents(standings: Standings) -> None:
    base, source = draw_pairs(standings, PAIRS)
    assert (standings.sides[base] == ~standings.sides[source]).all()
    assert not standings.training[base].any() and not standings.training[source].any()
    trained = set(standings.documents[standings.training])
    assert not trained & set(standings.documents[~standings.training])
    assert len(set(base)) == PAIRS and standings.sides[base, 0].sum() == PAIRS // 2
    assert [x.tolist() for x in draw_pairs(standings, PAIRS)] == [base.tolist(), source.tolist()]
    most, _ = draw_pairs(standings, 10_000)  # as many as there are, as often of either result
    right = standings.sides[most, 0]
    assert PAIRS < len(most) == 2 * right.sum() and len(set(most)) == len(most)


def test_halves_share_no_document(standings: Standings) -> None:
    choosing, reporting = halves(standings)
    test = set(standings.documents[~standings.training].tolist())
    assert not set(choosing) & set(reporting) and {*choosing, *reporting} == test
    assert abs(len(choosing) - len(reporting)) <= 1
    for documents in (choosing, reporting):
        base, source = draw_pairs(standings, 10, documents=documents)
        assert len(set(base)) == 10 and (standings.sides[base] == ~standings.sides[source]).all()
        assert np.isin(standings.documents[[*base, *source]], documents).all()
    everywhere = draw_pairs(standings, 10, documents=np.arange(CORPUS.n_documents))
    assert [x.tolist() for x in everywhere] == [x.tolist() for x in draw_pairs(standings, 10)]
    assert all(map(np.array_equal, halves(standings), (choosing, reporting)))
    assert not np.array_equal(halves(standings, seed=1)[0], choosing)
    with pytest.raises(UserError, match="Some pair of result and style"):
        draw_pairs(standings, 10, documents=choosing[:1])


def test_a_kind_that_is_missing_is_said(tiny_subject: Subject) -> None:
    none = BOTH["persistence"].select(np.empty(0, dtype=np.int64))
    with pytest.raises(UserError, match="A kind of decision is in no training document"):
        read_standings(tiny_subject, BOTH | {"persistence": none}, 200)
