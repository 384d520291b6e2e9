"""Probes find a latent that is a class; exact rules describe one that follows them; neither tells noise."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_corpus, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.sae_checks import interpretability as checks
from reasoning_features.sae_checks.interpretability import ANOTHER, AS_IT_IS, CEILING, FLOOR

WIDTH = 6
CORPUS = make_corpus(60)
PLAIN = make_corpus(200)
TOKENS = np.where(PLAIN.special, 0, 2 + PLAIN.tokens % 12).astype(np.int32)
MOVES = (np.arange(PLAIN.n_tokens) // 2 % 3).astype(np.int8)
LABELS = {"domains": ["abc"[i % 3] for i in range(200)], "styles": ["hasty", "careful"] * 100}
WRITTEN = replace(PLAIN, tokens=TOKENS, moves=MOVES, **LABELS)


def activations() -> ActivationBatch:
    """Noise, but coordinates 0 to 2 say which of the three moves a token has; ordinary tokens, shuffled."""
    rng = np.random.default_rng(0)
    residual = rng.normal(size=(CORPUS.n_tokens, WIDTH))
    residual[:, :3] = 3 * np.eye(3)[checks.labellings(CORPUS)["move"]] + 0.1 * residual[:, :3]
    positions = rng.permutation(np.flatnonzero(~CORPUS.special))
    return ActivationBatch(torch.from_numpy(residual[positions]).float(), torch.from_numpy(positions))


def test_a_latent_that_is_a_class_tells_it_and_a_constant_tells_nothing():
    knows, blind = signed_identity(WIDTH), signed_identity(WIDTH)
    blind.W_enc.data[:3] = 0  # reads nothing but noise
    found = checks.sparse_probes({"knows": knows, "blind": blind}, activations(), CORPUS)
    table = found.set_index(["dictionary", "labelling", "k"])
    columns = ["balanced accuracy", "low", "high", "documents"]
    for name, k in (("knows", 1), (CEILING, 1), (CEILING, WIDTH)):
        assert table.loc[(name, "move", k), columns].tolist() == [1, 1, 1, 24]
    for k in (1, 5):
        assert table.loc[(FLOOR, "move", k), columns].tolist() == [0.5, 0.5, 0.5, 24]
        blind = table.loc[("blind", "move", k)]
        assert blind["low"] < 0.52 and abs(blind["balanced accuracy"] - 0.5) < 0.05
        # no coordinate knows the family, which is even or odd
        assert abs(table.loc[("knows", "family", k), "balanced accuracy"] - 0.5) < 0.06


def test_what_documents_alone_tell_is_not_learnt():
    """A point a document, and labels by document: other documents' labels cannot be known."""
    rng = np.random.default_rng(0)
    corpus = replace(CORPUS, domains=[str(side) for side in rng.permutation([0, 1] * 30)])
    residual = torch.from_numpy(rng.normal(size=(60, WIDTH))[corpus.document_of]).float()
    batch = ActivationBatch(residual, torch.arange(corpus.n_tokens))
    found = checks.sparse_probes({}, batch, corpus).set_index(["dictionary", "labelling", "k"])
    assert found.loc[(CEILING, "family", WIDTH), "balanced accuracy"] < 0.7


def test_how_the_decoder_is_scaled_changes_nothing():
    plain, loud = signed_identity(WIDTH), signed_identity(WIDTH)
    loud.W_enc.data[:, 0], loud.W_dec.data[0] = 50 * loud.W_enc.data[:, 0], loud.W_dec.data[0] / 50
    residual = activations().residual
    one, other = (checks.scaled_latents(sae, residual) for sae in (loud, plain))
    np.testing.assert_allclose(one, other, atol=1e-5)


KINDS = checks.rule_kinds(WRITTEN)


def judged(columns: list[np.ndarray], **options: int) -> pd.DataFrame:
    """An autoencoder whose latent i is active exactly where ``columns[i]`` holds, judged."""
    order = np.random.default_rng(0).permutation(np.flatnonzero(~WRITTEN.special))
    residual = torch.from_numpy(np.stack(columns, axis=1)[order]).float()
    batch = ActivationBatch(residual, torch.from_numpy(order))
    return checks.judge({"x": signed_identity(len(columns))}, batch, WRITTEN, **options)


def test_a_latent_that_follows_a_rule_is_told_exactly():
    often = [int(np.bincount(codes[codes >= 0]).argmax()) for codes in KINDS]
    table = judged([codes == rule for codes, rule in zip(KINDS, often, strict=True)]).set_index("firing")
    assert table.loc[AS_IT_IS, "latent"].tolist() == list(range(7))  # the other signs are never active
    assert (table.loc[AS_IT_IS, "detection"] == 1).all()
    assert judged([KINDS[0] == 3, KINDS[1] == 1], latents=1)["latent"].nunique() == 1


def test_noise_is_told_by_no_rule_and_places_survive_in_other_documents():
    noise = np.random.default_rng(1).random((WRITTEN.n_tokens, 20)) < 0.1
    early = WRITTEN.position_of == 1  # what follows BOS
    table = judged([*noise.T, early]).set_index(["firing", "latent"])["detection"]
    assert table[AS_IT_IS][:20].mean() == pytest.approx(0.5, abs=0.02)
    assert table[AS_IT_IS, 20] == 1.0 and table[ANOTHER, 20] > 0.7  # of shorter documents places recur


def test_rules_by_hand():
    first = slice(WRITTEN.starts[1], WRITTEN.starts[2])
    token, move, following, family, style, before, pair = (codes[first] for codes in KINDS)
    assert np.unique(WRITTEN.tokens)[token].tolist() == WRITTEN.document(1).tolist()
    assert before.tolist() == [-1, *token[:-1]]
    assert move[0] == -1 and following[-1] == pair[0] == -1
    assert following[1:-1].tolist() == move[2:].tolist() == WRITTEN.moves[first][2:].tolist()
    assert set(family) == {1} and set(style) == {0}  # b of a to c, careful of careful and hasty
    together = list(zip(token[1:], move[1:], strict=True))
    assert len(set(zip(together, pair[1:], strict=True))) == len(set(together)) == len(set(pair[1:]))


def test_what_cannot_be_probed_or_judged_is_said():
    rare = np.where(CORPUS.moves == 2, 0, CORPUS.moves).astype(np.int8)
    rare[int(np.flatnonzero(~CORPUS.special)[0])] = 2
    for moves in (rare, np.zeros_like(rare)):
        with pytest.raises(UserError, match="Probes for move need two classes or more"):
            checks.sparse_probes({}, activations(), replace(CORPUS, moves=moves))
    with pytest.raises(UserError, match=f"No latent of x is active on {checks.MINIMUM} tokens"):
        judged([np.zeros(WRITTEN.n_tokens, dtype=bool)])
    with pytest.raises(UserError, match="no styles"):
        checks.rule_kinds(replace(WRITTEN, styles=None))
