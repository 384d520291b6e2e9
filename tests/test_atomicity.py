"""Dictionaries side by side: shares of what another lacks, of what is chosen alike, and what a step costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import signed_identity

from reasoning_features.foundations import atomicity


def test_geometry_tells_a_spread_dictionary_from_a_crowded_one() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    crowded = spread[:4].repeat(8, 1) + 0.05 * torch.randn(32, 32, generator=generator)
    table = atomicity.geometry({"spread": spread, "crowded": crowded}).set_index(["metric", "dictionary"])
    near = table.loc[atomicity.NEIGHBOURS, "estimate"]
    assert near["spread"] < 0.01 and near["crowded"] > 0.8
    composed = table.loc[atomicity.COMPOSITION, "estimate"]
    assert composed["crowded"] > composed["spread"]


def test_absorption_is_compared_and_drawn_parent_by_parent() -> None:
    rows = [
        ("BatchTopK", "an opener", "absorbed", 0.5, 0.4, 0.6, 30),
        ("OrtSAE", "an opener", "absorbed", 0.2, 0.1, 0.3, 30),
        ("OrtSAE", "an opener", "full", 0.1, 0.0, 0.2, 30),
    ]
    columns = ["dictionary", "parent", "measure", "estimate", "low", "high", "n"]
    table = pd.DataFrame(rows, columns=columns)
    found = atomicity.absorption_difference(table, "an opener")
    assert found.estimate == pytest.approx(0.3) and 0 < found.low < found.high
    panels = atomicity.absorption_panels(table)
    assert list(panels["metric"].unique()) == ["absorption, an opener"] and len(panels) == 2


def test_unique_latents_are_those_that_the_other_lacks() -> None:
    axes = torch.eye(64)
    table = atomicity.unique_shares({"all": axes, "half": axes[:32]})
    paper = table[table["threshold"] == "paper"].set_index(["dictionary", "other"])["estimate"]
    assert paper["all", "half"] == 0.5 and paper["half", "all"] == 0


def test_the_sweep_shows_gamma_at_one_chunk_and_chunks_at_the_papers_gamma() -> None:
    kinds = [(0.0, 1, 1), (0.25, 1, 1), (0.25, 4, 1), (0.25, 1, 5), (1.0, 1, 1)]
    swept = pd.DataFrame(
        [(g, k, e, seed, seed + g) for g, k, e in kinds for seed in range(2)],
        columns=["gamma", "chunks", "every", "seed", "MeanCosSim"],
    ).assign(composition=0.5, **{"fraction of variance explained": 0.9})
    panels = atomicity.sweep_panels(swept)
    values = panels.groupby("setting")["value"].unique()
    assert values["γ"].tolist() == [0, 0.25, 1] and values["K"].tolist() == [1, 4]
    at = panels[(panels["metric"] == "MeanCosSim") & (panels["value"] == 0)].iloc[0]
    assert (at["estimate"], at["low"], at["high"]) == (0.5, 0, 1)


def test_features_are_chosen_alike_where_they_fire_alike() -> None:
    saes = {"one": signed_identity(3), "other": signed_identity(3)}
    residual = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    chosen = {"one": np.array([0, 1]), "other": np.array([1, 2])}
    (row,) = atomicity.chosen_overlap(saes, chosen, residual).to_dict("records")
    assert row["share"] == 0.5 and row["n"] == 2 and row["in the other at all"] == 1


def test_costs_are_ratios_of_runs_in_turn() -> None:
    costs = pd.DataFrame(
        [(name, 512, run, seconds) for name, of in {"BatchTopK": (1, 2, 4), "OrtSAE": (1.1, 2.4, 4.2)}.items()
         for run, seconds in enumerate(of)],
        columns=["name", "features", "run", "seconds"],
    )  # fmt: skip
    (row,) = atomicity.cost_ratios(costs).to_dict("records")
    assert row["ratio"] == pytest.approx(1.1) and row["lowest"] == pytest.approx(1.05) and row["runs"] == 3
