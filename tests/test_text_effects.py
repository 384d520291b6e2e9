"""What steering does to text, against texts and changes worked out by hand."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figure_checks import legible
from tiny import signed_identity

from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.steering.text_effects import (
    LENGTH,
    MEASURES,
    REASONING,
    REPEATED,
    draw_text_effects,
    text_conditions,
    text_effects,
    text_measures,
)

WORDS = ["wait", "let me", "1"]  # the last has no letters: it is never found, and found nowhere


def answered(*texts: str, prompt: str = "Wait?<think>") -> pd.DataFrame:
    """Unsteered answers to as many problems."""
    told = {"condition": UNSTEERED, "feature": -1, "gamma": 0.0, "problem": range(len(texts))}
    tokens = [tuple(text.split()) for text in texts]
    return pd.DataFrame(told | {"text": [prompt + t for t in texts], "tokens": tokens, "thinking_tokens": 7})


@pytest.mark.parametrize(
    ("text", "reasoning", "repeated"),
    [
        ("wait, let me see: wait, let it be.", 100 * 3 / 8, 100 * 1 / 7),  # "wait, let" comes again
        ("Let's wait. Let me wait", 100 * 3 / 5, 0),  # let's is one word
        ("no no no no no", 0, 100 * 3 / 4),
        ("wait", 100, 0),
        ("1 + 1 = 2.", 0, 0),  # without words
        ("", 0, 0),
        ("Hmm, wait.</think> Wait, wait, wait", 100 * 1 / 2, 0),  # its thinking alone
        ("so wait<|im_end|>", 100 * 1 / 2, 0),  # a mark is no word
    ],
)
def test_measures_by_hand(text, reasoning, repeated):
    row = text_measures(answered(text), ["Wait?<think>"], WORDS).loc[0]
    assert row[[LENGTH, REASONING, REPEATED]].tolist() == pytest.approx([7, reasoning, repeated])


def test_each_answer_has_its_own_prompt_and_keeps_what_is_known_of_it():
    table = answered("b wait", "c", prompt="")
    table["text"] = ["wait wait b", "wait b"]
    found = text_measures(table.iloc[::-1], ["wait wait", "wait"], WORDS)
    assert list(found.columns) == ["condition", "feature", "gamma", "problem", *MEASURES]
    assert found["problem"].tolist() == [1, 0] and found[REASONING].tolist() == [0, 0]


def measured(condition: str, feature: int, gamma: float, lengths: dict[int, float]) -> pd.DataFrame:
    told = {"condition": condition, "feature": feature, "gamma": gamma, "problem": list(lengths)}
    return pd.DataFrame(told | {LENGTH: list(lengths.values()), REASONING: 5.0, REPEATED: 10.0})


def test_effects_are_paired_over_problems():
    plain = measured(UNSTEERED, -1, 0.0, {0: 10, 1: 20, 2: 60})
    # in another order: 13 − 10, 23 − 20, 63 − 60 are the same change, so there is nothing to resample
    more = measured("4 at 2", 4, 2.0, {2: 63, 0: 13, 1: 23})
    less = measured("4 at -1", 4, -1.0, {0: 10, 1: 14, 2: 48}).assign(**{REPEATED: [10.0, 40.0, 40.0]})
    table = text_effects(pd.concat([plain, more, less]))
    assert table["condition"].tolist() == ["4 at 2"] * 3 + ["4 at -1"] * 3
    told = table.set_index(["gamma", "measure"])
    assert told.loc[(2, LENGTH), ["unsteered", "change", "low", "high"]].tolist() == [30, 3, 3, 3]
    assert told.loc[(-1, LENGTH), "change"] == pytest.approx((0 - 6 - 12) / 3)
    assert told.loc[(-1, LENGTH), "low"] < -6 < told.loc[(-1, LENGTH), "high"]
    assert told.loc[(-1, REPEATED), ["unsteered", "change"]].tolist() == pytest.approx([10, 20])
    assert (told["problems"] == 3).all() and (told.xs(REASONING, level="measure")["change"] == 0).all()


def test_the_best_features_and_as_many_random_ones_are_steered():
    evidence = pd.DataFrame({"score:reason score": [9.0, 1, 5, 8, 2, 3, 4, 0], "maximum": np.arange(8.0)})
    evidence["density"] = np.linspace(0, 0.4, 8)  # the best by score is never active
    evidence["decoder norm"] = 1.0
    conditions, kinds = text_conditions(signed_identity(4), evidence, 2, 3, [-1.0, 2.0], seed=0)
    # the third that ReasonScore chooses, 6, is not random either
    assert kinds["ReasonScore"] == [3, 2] and len(set(kinds["random"]) & {1, 4, 5, 7}) == 2
    assert [(c.feature, c.gamma) for c in conditions[:4]] == [(3, -1), (3, 2), (2, -1), (2, 2)]
    assert conditions[1].vector is not None and conditions[1].vector.norm() == 2 * 3
    _, few = text_conditions(signed_identity(4), evidence, 20, 20, [1.0], seed=0)
    assert [len(features) for features in few.values()] == [3, 3]  # seven are ever active


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("features", "gammas"), [(40, [-4, -2, 1, 2, 4]), (2, [2])])
def test_any_number_of_features_and_strengths_is_drawn(features, gammas):
    numbers = list(range(1000, 1000 + features))
    rows = [(f, g, m, f - 1000 + g) for f in reversed(numbers) for g in gammas for m in MEASURES]
    effects = pd.DataFrame(rows, columns=["feature", "gamma", "measure", "change"])
    effects = effects.assign(low=effects["change"] - 1, high=effects["change"] + 1)
    half = features // 2
    fig = draw_text_effects(effects, {"ReasonScore": numbers[:half], "random": numbers[half:]})
    names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert names[0] == "ReasonScore 1000" and names[-1] == f"random {numbers[-1]}" and len(names) == features
    (legend,) = fig.legends
    assert [label.get_text() for label in legend.get_texts()] == [f"γ = {gamma}" for gamma in gammas]
    # every feature has a mark a strength in every panel, at its change
    drawn = [points.get_offsets() for points in fig.axes[0].collections if len(points.get_offsets()) > 1]
    in_pairs = np.arange(features).reshape(2, half).T.ravel()  # each random feature under its match
    np.testing.assert_allclose([o[:, 0] for o in drawn], [in_pairs + gamma for gamma in gammas])
    legible(fig)
    plt.close(fig)
