"""Features that their own tokens drive and features of the context, built to be so."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from tiny import PIECES, Pieces, corpus_of

from reasoning_features.interpretation import lexical_controls
from reasoning_features.interpretation.lexical_controls import CLASSES, DRIVEN, NOT_TRIGGERED

WAIT = PIECES.index(" wait")


class OneHot:
    """A subject whose stream says which token stands there, and whether the document began with "let"."""

    tokenizer = Pieces()

    def residual(self, tokens: torch.Tensor) -> torch.Tensor:
        hot = torch.nn.functional.one_hot(tokens, len(PIECES) + 1).float()
        thinks = (tokens[:, :1] == PIECES.index("let")).float().expand(tokens.shape)
        return torch.cat([hot, thinks[..., None]], dim=2)


class Three:
    """Feature 0 fires on " wait" always, feature 1 only in documents that think, feature 2 never."""

    cfg = SimpleNamespace(d_in=len(PIECES) + 2, d_sae=3)
    device = torch.device("cpu")

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, WAIT], x[:, -1], torch.zeros(len(x))], dim=1)


def test_one_feature_of_the_word_one_of_the_context_and_one_that_is_never_active(monkeypatch):
    traces = corpus_of(*[["let", " wait", " a", ".", " b", " a", "."]] * 20, thinking=range(140))
    plain = corpus_of(*[["a", " let", " wait", " me", ".", *[" let", " me"] * 4]] * 20)
    monkeypatch.setattr(lexical_controls, "reasoning_corpus", lambda *_: traces)
    monkeypatch.setattr(lexical_controls, "general_corpus", lambda *_: plain)
    monkeypatch.setattr(lexical_controls, "INJECTED", (1, 3))
    settings = SimpleNamespace(corpus="text", subject="", batch_tokens=256, seed=0)
    groups = {"one": (Three(), np.arange(3)), "two": (Three(), np.array([0]))}
    table = lexical_controls.measure_controls(settings, OneHot(), groups)
    assert table["group"].tolist() == ["one"] * 4 + ["two"] * 2  # the third feature has no tokens
    word, context = (table[table["feature"] == feature] for feature in (0, 1))
    assert set(word["tokens"]) == {"' wait'"} and set(word["class"]) == {DRIVEN}
    assert set(context["class"]) == {NOT_TRIGGERED} and (context["d"] == 0).all()
    assert np.isinf(word["d"]).all() and (table["documents"] == 20).all()
    shares = lexical_controls.class_shares(table).set_index(["group", "injected", "class"])
    assert len(shares) == 2 * 2 * 4 and shares.loc[("one", 3, DRIVEN), "share"] == 0.5
    assert shares.loc[("two", 3, DRIVEN), "low"] == pytest.approx(1 / (1 + 1.959964**2))  # 1 of 1


def test_top_tokens_are_frequent_enough_and_ordered_by_mean_activation():
    class Graded(Three):
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            values = x[:, WAIT] + 2 * x[:, PIECES.index(" a")] + 3 * x[:, PIECES.index("let")]
            return values[:, None].expand(-1, 3)

    few = corpus_of(*[["let", " wait", " a"]] * 4, *[[" wait", " a"]] * 2)  # "let" four times alone
    groups = {"graded": (Graded(), np.array([1])), "three": (Three(), np.array([], dtype=int))}
    found = lexical_controls.top_tokens(OneHot(), few, groups, 64)
    assert found == {"graded": {1: [PIECES.index(" a"), WAIT]}, "three": {}}


def test_effect_size_is_cohens_and_students():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 30), rng.normal(2, 1.5, 30)
    t, expected = ttest_ind(second, first)
    assert lexical_controls.effect_size(first, second) == pytest.approx((t * np.sqrt(2 / 30), expected))
    # the rule
    d = [0.9, 0.9, 0.9, 0.6, 0.6, 0.3, 0.3, 0.1, -2.0]
    p = [0.001, 0.03, 0.2, 0.001, 0.04, 0.04, 0.06, 0.0, 0.0]
    found = [CLASSES.index(lexical_controls.classify(*pair)) for pair in zip(d, p, strict=True)]
    assert found == [0, 2, 3, 1, 2, 2, 3, 3, 3]
