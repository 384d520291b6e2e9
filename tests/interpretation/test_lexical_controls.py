"""Token-driven and context-driven features, built to be so."""

from types import SimpleNamespace

import numpy as np
import torch
from scipy.stats import ttest_ind
from tiny import PIECES, Pieces, corpus_of

from reasoning_features.interpretation import lexical_controls
from reasoning_features.interpretation.lexical_controls import Controls
from reasoning_features.text.corpus import Corpus

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


TRACES = corpus_of(*[["let", " wait", " a", ".", " b", " a", "."]] * 20, thinking=range(140))


def measured(monkeypatch, sae: Three, general: Corpus, control: str, window: tuple[int, int]) -> Controls:
    """What "wait", and a control word, do to features where these are the texts."""
    monkeypatch.setattr(lexical_controls, "reasoning_corpus", lambda *_: TRACES)
    monkeypatch.setattr(lexical_controls, "general_corpus", lambda *_: general)
    settings = SimpleNamespace(
        words=["wait"], corpus="text", subject="", window=window, batch_tokens=256, seed=0
    )
    return lexical_controls.measure_controls(
        settings, OneHot(), sae, {"one": np.arange(2), "two": np.array([1, 2])}, [control]
    )


GENERAL = corpus_of(*[["a", " b", " a", " a", ".", " b", " a"]] * 20)


def test_one_feature_of_the_word_and_one_of_the_context(monkeypatch):
    controls = measured(monkeypatch, Three(), GENERAL, "a", (1, 1))
    table = controls.table
    assert table["class"].tolist() == ["token-driven", "context-driven", "context-driven"]
    assert table["R put in"].tolist() == [1, 0, 0]
    assert table["control put in"].tolist() == table["untouched"].tolist() == [0, 0, 0]
    # two sentences a trace, the first with "wait"; on other tokens the word's own feature is silent
    assert table["sentences with R"].tolist() == [0, 1, 0]
    assert table["sentences without R"].tolist() == [0, 1, 0]
    # a document is driven by its words too, and the controls do nothing
    assert table["document class"].tolist() == table["class"].tolist()
    assert np.isinf(table.loc[0, "d"]) and table.loc[0, "control d"] == 0
    groups = {"selected": np.array([1, 0]), "others": np.array([2])}
    shares = lexical_controls.class_shares(controls, groups, causal=np.array([0]))
    selected = shares[shares["group"] == "selected"].set_index("class")
    assert selected["share"].to_dict() == {"token-driven": 0.5, "partly": 0.0, "context-driven": 0.5}
    assert selected.loc["token-driven", "causal"] == 0.5 and selected.loc["context-driven", "causal"] == 0
    # two features drawn from two: 0, 1 or 2 of them token-driven
    assert (selected.loc["token-driven", "low"], selected.loc["token-driven", "high"]) == (0, 1)
    assert (shares["documents"] == 20).all()


def test_other_words_hide_the_word_in_a_whole_document_and_not_at_its_place(monkeypatch):
    general = corpus_of(*[[" a", " b", " a", " a", " b", " b", " b", " b"]] * 40)

    # a feature that fires on " wait", and as much on the " a" that every document begins with
    class Both(Three):
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return (x[:, [WAIT]] + x[:, [PIECES.index(" a")]]).expand(-1, 3)

    table = measured(monkeypatch, Both(), general, "b", (1, 0)).table
    assert set(table["class"]) == {"token-driven"} and set(table["document class"]) == {"context-driven"}


def test_effect_size_is_cohens_and_students():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, (30, 2)), rng.normal([0.4, 2], 1.5, (30, 2))
    d, p = lexical_controls.effect_size(first, second, np.ones((1, 30)))
    pooled = np.sqrt((first.var(0, ddof=1) + second.var(0, ddof=1)) / 2)
    np.testing.assert_allclose(d[0], (second.mean(0) - first.mean(0)) / pooled)
    np.testing.assert_allclose(p[0], ttest_ind(second, first).pvalue)


def test_the_rule():
    d = np.array([0.9, 0.9, 0.9, 0.6, 0.3, 0.3, 0.1, -2.0])
    p = np.array([0.001, 0.03, 0.2, 0.001, 0.04, 0.06, 0.0, 0.0])
    expected = ["token-driven", "partly", "context-driven", "partly", "partly"] + ["context-driven"] * 3
    assert lexical_controls.classify(d, p).tolist() == expected
