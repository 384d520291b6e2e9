"""`make sanity` end to end, with recipes too short to learn anything: whole, and nothing done twice."""

import shutil
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
from tiny import few_settings, file_times

from reasoning_features import paths
from reasoning_features.diffing import stages as stage_wise
from reasoning_features.making import sae_checks
from reasoning_features.runs.shards import each
from reasoning_features.sae_checks import random_baseline as stored

ORGANISM = paths.root() / "data" / "organism"


@pytest.mark.slow
def test_every_piece_from_nothing(repository, monkeypatch):
    models = repository / "data" / "organism" / "models"
    for name in ("base", sae_checks.MODEL, sae_checks.OTHER):
        shutil.copytree(ORGANISM / "models" / name, models / name, dirs_exist_ok=True)
    short = {"tokens": 2_048, "batch": 512, "d_sae": 160}
    plain = replace(sae_checks.RECIPE, **short)
    frozen = replace(sae_checks.FROZEN, **short)
    trained = (sae_checks.MODEL, plain), (sae_checks.MODEL, frozen), (sae_checks.OTHER, plain)
    made = [sae_checks.Dictionary(*pair) for pair in trained]
    for name, value in {
        "TRACES": 60, "RECIPE": plain, "FREE": plain, "FROZEN": frozen, "DICTIONARIES": tuple(made),
        "BENCHMARKED": tuple(made[:2]), "STUDIED": tuple(made[:1]), "SWEEP_TOKENS": 1024,
        "GAMMAS": (0.0, 0.25), "CHUNKS": (1, 4), "COST_SIZES": (32,), "load_settings": few_settings,
    }.items():  # fmt: skip
        monkeypatch.setattr(sae_checks, name, value)

    folder = repository / "data" / "organism" / "sae_checks"
    given = folder, repository / "unfinished", partial(each, workers=1)
    sae_checks.make(*given)

    place = "data/organism/sae_checks"
    hook = "blocks.2.hook_resid_post"
    named = stored.load_dictionaries(place, sae_checks.MODEL, 128, hook)
    assert list(named) == ["BatchTopK", "frozen decoder"]
    assert list(stored.benchmarks_by_name(place, sae_checks.MODEL)) == list(named)
    assert list(stored.studies_by_name(place, sae_checks.MODEL)) == ["BatchTopK"]
    for label in ("batchtopk", "frozen_decoder-iso"):
        stages = stage_wise.load_stages(f"{place}/diffing/{label}", sae_checks.MODEL, 128, hook)
        assert list(stages) == ["S", *stage_wise.PATHS]
    swept = pd.read_parquet(folder / "sweep.parquet")
    assert len(swept) == 2 * (2 + 1 + 1) and swept["MeanCosSim"].notna().all()
    costs = pd.read_parquet(folder / "costs.parquet")
    assert set(costs["name"]) >= {"BatchTopK", "OrtSAE, K = 1"} and (costs["seconds"] > 0).all()

    before = file_times(folder)
    sae_checks.make(*given)
    assert file_times(folder) == before
