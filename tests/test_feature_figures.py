"""Figures of features give back what they draw, and no text lies on other text."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import legible
from reasoning_features.interpretation.feature_figures import (
    CHARACTERS,
    draw_interface,
    draw_snippets,
    visible,
    wrapped,
)
from reasoning_features.interpretation.feature_interface import FeatureInterface

from reasoning_features.interpretation.activating_examples import Example


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def example(feature: int = 7, n: int = 41, seed: int = 0) -> Example:
    rng = np.random.default_rng(seed)
    words = (" wait", ",", " $x_", "\n", "34", " <b>")
    pieces = tuple(words[i] for i in rng.integers(0, len(words), n))
    values = np.maximum(rng.normal(-0.5, 1, n), 0).astype(np.float32)
    return Example(feature, 0, pieces, values, int(values.argmax()))


def interface(**changes) -> FeatureInterface:
    tokens = [(f" token{i} that is long", 3.0 - i) for i in range(10)]
    made = dict(
        feature=7, score=0.0123, rank=3, density=0.02, maximum=3.0,
        histogram=np.array([5, 9, 2]), edges=np.array([0.5, 1.0, 2.0, 4.0]), by_move={},
        positive=tokens, negative=[("$", -1.0), ("\n", -0.5)], examples=[example(seed=i) for i in range(8)],
        mode="exploration",
    )  # fmt: skip
    return FeatureInterface(**(made | changes))


def test_the_interface_draws_what_it_returns():
    fig, data = draw_interface(interface(), examples=6)
    assert data["part"].value_counts().to_dict() == {
        "example": 6 * 41,
        "positive": 10,
        "negative": 2,
        "histogram": 3,
    }
    assert data.loc[data["part"] == "histogram", "value"].tolist() == [5, 9, 2]
    assert data.loc[data["part"] == "negative", "text"].tolist() == ["$", "⏎"]
    shaded = sum(patch.get_height() == 1 for patch in fig.axes[-1].patches)
    assert shaded >= sum(int((e.activations > 0).sum()) for e in interface().examples[:6])
    legible(fig)


def test_a_feature_that_is_never_active_is_drawn_too():
    none = {
        "histogram": np.zeros(0, int),
        "edges": np.ones(1),
        "examples": [],
        "maximum": 0.0,
        "density": 0.0,
    }
    fig, data = draw_interface(interface(positive=[], negative=[], mode=None, **none))
    fig.canvas.draw()
    assert data.empty


def test_snippets_are_grouped_and_shaded_by_share_of_their_feature():
    groups = {
        "exploration": [example(1), example(2, seed=1)],
        "reflection": [example(3, seed=2)],
        "mixed": [],
    }
    fig, data = draw_snippets(groups, {1: 10.0, 2: 3.0, 3: 3.0})
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["exploration", "reflection"]
    assert data.groupby("group")["snippet"].max().to_dict() == {"exploration": 2, "reflection": 1}
    assert len(data) == 3 * 41
    largest = max(patch.get_alpha() for patch in fig.axes[1].patches)
    assert largest == pytest.approx(min(example(3, seed=2).activations.max() / 3, 1))
    legible(fig)


def test_forty_features_of_real_text_are_legible():
    pieces = (" $x_1^2$", "\\frac{a}{b}", "\n\n", "\t", "https://example.org/" + "a" * 150, " 数", " _so_ ^")
    groups = {
        f"mode {mode}": [
            Example(i, 0, pieces, np.linspace(0, 1, len(pieces), dtype=np.float32), 6)
            for i in range(12_340 + 10 * mode, 12_350 + 10 * mode)
        ]
        for mode in range(4)
    }
    fig, data = draw_snippets(groups, dict.fromkeys(range(12_340, 12_380), 1.0))
    drawn = {text.get_text() for text in fig.axes[0].texts}
    assert {"$x_1^2$", "\\frac{a}{b}", "⏎⏎", "⇥"} <= drawn and data["feature"].nunique() == 40
    assert max(t.get_position()[0] + len(t.get_text()) for t in fig.axes[0].texts) <= CHARACTERS
    legible(fig)


def test_no_snippets_at_all():
    _, data = draw_snippets({"mixed": []}, {})
    assert data.empty


def test_lines_break_between_tokens_and_lose_nothing():
    long = Example(0, 0, ("a" * 60, "b" * 60, "c" * 250, "d"), np.arange(4, dtype=np.float32), 3)
    lines = wrapped(long)
    assert [sum(len(text) for text, _ in line) for line in lines] == [60, 60, 96, 96, 59]
    assert "".join(text for line in lines for text, _ in line) == long.text
    assert lines[-1] == [("c" * 58, 2.0), ("d", 3.0)]
    assert all(sum(len(t) for t, _ in line) <= CHARACTERS for line in wrapped(example()))


def test_what_cannot_be_drawn_becomes_a_sign():
    assert visible("a\n\t\x00\ud800 b") == "a⏎⇥□□ b"
