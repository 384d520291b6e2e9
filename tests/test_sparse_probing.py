"""Sparse probes: a latent that is a class is found and tells all; noise, and a constant, tell nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from tiny import make_corpus, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.foundations.names import CEILING, FLOOR
from reasoning_features.foundations.sparse_probing import (
    Labelling,
    SparseProbes,
    labellings,
    lengths,
    scaled_latents,
    sparse_probes,
)
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.statistics import Interval
from reasoning_features.text.corpus import Corpus

WIDTH = 6
CORPUS = make_corpus(60)
MOVES = labellings(CORPUS)[0]


def activations(corpus: Corpus = CORPUS, seed: int = 0) -> ActivationBatch:
    """Noise, but coordinates 0 to 2 say which of the three moves a token has; ordinary tokens, shuffled."""
    rng = np.random.default_rng(seed)
    residual = rng.normal(size=(corpus.n_tokens, WIDTH))
    residual[:, :3] = 3 * np.eye(3)[labellings(corpus)[0].targets] + 0.1 * residual[:, :3]
    positions = rng.permutation(np.flatnonzero(~corpus.special))
    return ActivationBatch(torch.from_numpy(residual[positions]).float(), torch.from_numpy(positions))


@pytest.fixture(scope="module")
def found() -> SparseProbes:
    blind = signed_identity(WIDTH)
    blind.W_enc.data[:3] = 0  # reads nothing but noise
    saes = {"knows": signed_identity(WIDTH), "blind": blind}
    return sparse_probes(saes, activations(), CORPUS, labellings(CORPUS))


def share(table: pd.DataFrame, dictionary: str, k: int, labelling: str = "move") -> pd.Series:
    held = table[(table["dictionary"] == dictionary) & (table["k"] == k) & (table["labelling"] == labelling)]
    assert len(held) == 1
    return held.iloc[0]


def test_a_latent_that_is_a_class_tells_it(found: SparseProbes) -> None:
    table = found.averaged()
    for row in (share(table, "knows", 1), share(table, CEILING, 1), share(table, CEILING, WIDTH)):
        assert row["balanced accuracy"] == row["low"] == row["high"] == 1.0
        assert row["documents"] == 24
    classes = found.per_class()
    chosen = classes[
        (classes["dictionary"] == "knows") & (classes["labelling"] == "move") & (classes["k"] == 1)
    ]
    assert chosen.set_index("class")["latents"].to_dict() == {"explore": (0,), "verify": (1,), "answer": (2,)}


def test_noise_and_a_constant_tell_nothing(found: SparseProbes) -> None:
    table = found.averaged()
    for k in (1, 5):
        blind = share(table, "blind", k)
        assert blind["low"] < 0.52 and abs(blind["balanced accuracy"] - 0.5) < 0.05
        floor = share(table, FLOOR, k)
        assert floor["balanced accuracy"] == floor["low"] == floor["high"] == 0.5
        # no coordinate knows the family, which is even or odd
        assert abs(share(table, "knows", k, "family")["balanced accuracy"] - 0.5) < 0.06


def test_what_documents_alone_tell_is_not_learnt() -> None:
    """A point a document, and labels by document: other documents' labels cannot be known."""
    rng = np.random.default_rng(0)
    corpus = replace(CORPUS, domains=[str(side) for side in rng.permutation([0, 1] * 30)])
    residual = torch.from_numpy(rng.normal(size=(60, WIDTH))[corpus.document_of]).float()
    batch = ActivationBatch(residual, torch.arange(corpus.n_tokens))
    family = labellings(corpus)[1]
    table = sparse_probes({}, batch, corpus, [family]).averaged()
    assert share(table, CEILING, WIDTH, "family")["balanced accuracy"] < 0.7


def test_labellings_by_hand() -> None:
    thinking = CORPUS.thinking.copy()
    thinking[CORPUS.span(0)] = False
    move, family = labellings(replace(CORPUS, thinking=thinking))
    assert (move.targets[CORPUS.special] == -1).all() and (family.targets[CORPUS.special] == -1).all()
    assert move.classes == CORPUS.move_names and family.classes == ("even", "odd")
    assert (family.targets[CORPUS.span(0)] == -1).all()
    assert (family.targets[CORPUS.starts[3] + 1 : CORPUS.starts[4]] == 1).all()


def test_averages_and_intervals_by_hand() -> None:
    probes = pd.DataFrame(
        {"dictionary": "a", "labelling": "move", "k": 1, "class": ["x", "y"], "latents": [(0,), (1,)]}
    )
    # x: 1 of 2 and 4 of 4; y: 0 of 2 and 3 of 4; the second document has no token of y
    hits = np.array([[[1, 2], [0, 2]], [[0, 1], [0, 2]]], dtype=float)
    totals = np.array([[[1, 2], [1, 2]], [[2, 1], [0, 3]]], dtype=float)
    probes_found = SparseProbes(probes, hits, totals)
    assert probes_found.per_class()["balanced accuracy"].tolist() == [0.75, 0.375]
    averaged = probes_found.averaged().iloc[0]
    assert averaged["balanced accuracy"] == pytest.approx(0.5625)
    # resamples: x is .5, .75 or 1; y, where there, .5 (first document alone) or .375
    assert averaged["low"] == pytest.approx(0.5) and averaged["high"] == pytest.approx(0.75)


def test_differences_of_known_dictionaries(found: SparseProbes) -> None:
    for name, k in (("knows", 1), ("blind", 5), (CEILING, WIDTH)):
        assert found.difference(name, name, "move", k) == Interval(0.0, 0.0, 0.0, 24)
    assert found.difference("knows", FLOOR, "move", 1) == Interval(0.5, 0.5, 0.5, 24)
    assert found.difference("knows", CEILING, "move", 1, other_k=WIDTH) == Interval(0.0, 0.0, 0.0, 24)
    table = found.averaged()
    apart = found.difference("blind", "knows", "family", 5, other_k=1)
    shares = [
        share(table, name, k, "family")["balanced accuracy"] for name, k in (("blind", 5), ("knows", 1))
    ]
    assert apart.estimate == pytest.approx(shares[0] - shares[1])
    back = found.difference("knows", "blind", "family", 1, other_k=5)
    assert (back.low, back.high) == pytest.approx((-apart.high, -apart.low)) and apart.low < apart.high


def test_differences_are_of_the_same_documents() -> None:
    """Two that fail at the same hard document differ by the same amount whichever documents are drawn."""
    probes = pd.DataFrame(
        {
            "dictionary": ["a", "a", "b", "b"],
            "labelling": "move",
            "k": [1, 1, 2, 2],
            "class": ["x", "y"] * 2,
            "latents": [(0,)] * 4,
        }
    )
    totals = np.full((4, 3, 2), 10.0)
    totals[1::2, 0, 0] = 0  # the first document has no token of y
    share_right = np.array([0.9, 0.5, 0.3])[:, None] + np.array([0.1, 0.1, 0.0, 0.0])[:, None, None]
    made = SparseProbes(probes, share_right * totals, totals)
    table = made.averaged()
    assert (table["high"] - table["low"] > 0.3).all()
    found = made.difference("a", "b", "move", 1, other_k=2)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1)) and found.n == 3


def test_probes_that_are_missing_are_said(found: SparseProbes) -> None:
    for one, labelling, k, said in (
        ("nobody", "move", 1, r"no probe \('nobody', 'move', 1\): its dictionary may be knows, blind, res"),
        ("knows", "mood", 1, "its labelling may be move, family"),
        ("knows", "move", WIDTH, "its k may be 1, 5"),
    ):
        with pytest.raises(UserError, match=said):
            found.difference(one, CEILING, labelling, k)
    with pytest.raises(UserError, match="its dictionary may be"):
        found.difference("knows", "nobody", "move", 1)
    with pytest.raises(UserError, match=f"its k may be 1, 5, {WIDTH}"):
        found.difference("knows", CEILING, "move", 1, other_k=4)


def test_how_the_decoder_is_scaled_changes_nothing() -> None:
    plain, loud = signed_identity(WIDTH), signed_identity(WIDTH)
    loud.W_enc.data[:, 0], loud.W_dec.data[0] = 50 * loud.W_enc.data[:, 0], loud.W_dec.data[0] / 50
    residual = activations().residual
    assert lengths(loud).tolist() == pytest.approx([0.02] + [1.0] * (2 * WIDTH - 1))
    np.testing.assert_allclose(scaled_latents(loud, residual), scaled_latents(plain, residual), atol=1e-5)
    config = TopKSAEConfig(d_in=WIDTH, d_sae=8, k=2, rescale_acts_by_decoder_norm=True)
    rescaled = TopKSAE(config)
    rescaled.W_dec.data *= torch.arange(1, 9)[:, None]
    assert lengths(rescaled).tolist() == pytest.approx([1.0] * 8)  # which divides by the length itself


def test_a_class_that_is_missing_is_said() -> None:
    rare = MOVES.targets.copy()
    rare[rare == 2] = 0
    rare[int(np.flatnonzero(~CORPUS.special)[0])] = 2
    with pytest.raises(UserError, match="Probes for move need two classes or more"):
        sparse_probes({}, activations(), CORPUS, [Labelling("move", rare, MOVES.classes)])
    with pytest.raises(UserError, match="Probes for one need two classes"):
        sparse_probes({}, activations(), CORPUS, [Labelling("one", 0 * rare, ("a",))])
