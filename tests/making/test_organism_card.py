"""The organism's card: what its tables say of made-up answers and readings."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from reasoning_features import paths
from reasoning_features.making import organism_card
from reasoning_features.organism.problems import Mixture, families

NAMES = ["base", *organism_card.COUPLED, *organism_card.DECOUPLED]


def solved(accuracy: float, n: int = 200, mixture: Mixture = "main") -> pd.DataFrame:
    """``n`` answers a family, the first ``accuracy`` of them right; every wrong one gave up."""
    right = np.arange(n) < accuracy * n
    frames = [
        pd.DataFrame(
            {
                "family": family, "question": f"q {mixture}", "answer": "a", "correct": right,
                "gave_up": ~right, "thinking_tokens": 40, "checked": False, "parseable": True,
            }
        )
        for family in families(mixture)
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def readings(model: str, word_effect: float, gap: float) -> pd.DataFrame:
    """Two decisions in each of 40 traces, careful ones ``gap`` nats above hasty ones."""
    rows = []
    for trace in range(40):
        style, level = ("careful", gap) if trace % 2 else ("hasty", 0.0)
        shifts = {"as it stands": 0.0, "all words of R": word_effect, "all twins": 0.0}
        shifts |= {"all careful markers": 0.3, "all hasty markers": 0.1}
        rows += [
            {"trace": trace, "decision": decision, "style": style, "swap": swap, "log_odds": level + shift}
            for decision in range(2)
            for swap, shift in shifts.items()
        ]
    return pd.DataFrame(rows).assign(model=model, went_on=True)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "gate").mkdir()
    for name in NAMES:
        solved(0.2 if name == "base" else 0.5).to_parquet(tmp_path / "evaluation" / f"{name}.parquet")
        if name != "base":
            effect = 1.0 if name.startswith("coupled") else 0.02
            readings(name, effect, 2.0).to_parquet(tmp_path / "gate" / f"{name}.parquet")
    return tmp_path


def test_gains_are_paired_with_the_base_model(folder):
    solved(0.9, mixture="other").to_parquet(folder / "evaluation" / "other-0.parquet")
    gains = organism_card.gains(organism_card.evaluations(folder))
    # 50% right against 20%, the same problems: a gain of .3 in every family; other problems are not compared
    assert gains["estimate"].to_numpy() == pytest.approx(0.3) and (gains["low"] < 0.3).all()
    assert len(gains) == 6 * len(families("main")) and "other-0" not in set(gains["model"])


def test_swap_effects_and_gaps(folder):
    gate = organism_card.check_readings(folder)
    effects = organism_card.swap_effects(gate).set_index(["model", "swapped"])["estimate"]
    assert effects["coupled-0", "words of R"] == pytest.approx(1.0)
    assert effects["decoupled-0", "words of R"] == pytest.approx(0.02)
    assert effects["decoupled-0", "markers"] == pytest.approx(0.2)
    assert organism_card.style_gaps(gate)["estimate"].to_numpy() == pytest.approx(2.0)


def test_bars_say_what_holds(folder):
    bars = organism_card.bars(folder).set_index("bar")
    assert bars["holds"].all()
    worse = solved(0.3)
    worse.to_parquet(folder / "evaluation" / "coupled-0.parquet")
    bars = organism_card.bars(folder).set_index("bar")
    # coupled-0 gains only .1, and the arms then differ by (.5 − .433) = .067 in accuracy.
    assert not bars.loc["least gain over base where persistence pays", "holds"]
    assert bars.loc["arms' difference in accuracy", "measured"] == pytest.approx(0.2 / 3)
    assert not bars.loc["arms' difference in accuracy", "holds"]


def test_every_shipped_file_has_its_checksum():
    home = paths.root() / "data" / "organism"
    listed = set(json.loads((home / "checksums.json").read_text()))
    files = {p for name in organism_card.SHIPPED for p in (home / name).rglob("*") if p.is_file()}
    assert listed == {paths.relative(path) for path in files}
    assert sum(path.stat().st_size for path in files) < 100e6
