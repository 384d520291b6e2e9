"""Stages: their paths, their text, and how they are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reasoning_features import paths
from reasoning_features.dictionaries.training import Recipe, train_autoencoder
from reasoning_features.diffing.stage_wise import (
    PATHS,
    check_stored,
    load_layers,
    load_stage,
    load_stages,
    reads_fine_tuned,
    stage_before,
    stage_corpus,
    stage_qualities,
    stages_of,
    store,
)
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.models.subject import load_subject
from reasoning_features.settings import load_settings

HOOK = "blocks.1.hook_resid_post"


def test_paths_are_stages_in_order():
    assert stages_of("S-D-F") == ["S", "D", "F"]
    assert [stage_before(path) for path in PATHS] == ["S-0", "S-0", "S-D", "S-M"]
    assert [reads_fine_tuned(stages_of(path)[-1]) for path in PATHS] == [False, True, True, True]
    for wrong in ("D-F", "S-X", "S--D", ""):
        with pytest.raises(UserError, match="is no path of stages"):
            stages_of(wrong)


def test_a_stage_is_kept_in_half_the_space_and_loads_as_it_was(repository: Path):
    residual = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe("relu", d_sae=16, tokens=40 * 64, learning_rate=1e-2, batch=64, l1=0.1)
    for name in ("base/S-0", "base/S-S", "arm/S-M"):
        training = train_autoencoder(residual, recipe, "m", HOOK)
        before = training.sae.W_dec.clone()
        store(training, repository / "data" / "diffing" / name)
        loaded = load_stage("data/diffing", "arm", name.split("/")[1], 8, HOOK)
        assert loaded.W_dec.dtype == torch.float32
        assert torch.allclose(loaded.W_dec, before, rtol=1e-3, atol=1e-4)
    weights = repository / "data/diffing/base/S-0/sae_weights.safetensors"
    assert weights.stat().st_size < 2 * (2 * 16 * 8 + 16 + 8) + 600
    assert (weights.parent / "training.csv").is_file()
    check_stored("data/diffing")
    with pytest.raises(UserError, match="is for activations of width 8, but the model's are 9"):
        load_stage("data/diffing", "arm", "S-M", 9, HOOK)


def test_stages_that_are_not_there(repository: Path):
    with pytest.raises(MissingArtefact, match=r"no stages in data/diffing: `make organism` trains"):
        check_stored("data/diffing")
    with pytest.raises(MissingArtefact, match="make organism"):
        load_stage("data/diffing", "arm", "S-D-F", 8, HOOK)


def test_text_of_the_stages():
    settings = load_settings("smoke")
    tokenizer = load_subject(settings.subject, 0).tokenizer
    texts = {s: stage_corpus(s, settings, tokenizer, settings.subject, 20) for s in ("S", "D", "M", "F")}
    assert texts["S"].digest == texts["M"].digest != texts["D"].digest == texts["F"].digest
    assert not texts["S"].thinking.any() and texts["D"].thinking.any()
    assert settings.contrast is not None and (paths.root() / settings.contrast).is_dir()
    other = stage_corpus("D", settings, tokenizer, settings.contrast, 20)
    assert other.digest != texts["D"].digest  # the same traces in the other arm's words


def test_all_stages_of_a_model_with_what_each_reads(repository: Path):
    residual = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe("relu", d_sae=16, tokens=10 * 64, learning_rate=1e-2, batch=64, l1=0.1)
    homes = {
        "base": ("S-0", "S-1", "S-S", "S-S-S"),
        "arm": PATHS,
        "placebo": ("S-M", "S-M-F"),
        "layers": "03",
    }
    for home, names in homes.items():
        for name in names:
            target = repository / "data" / "diffing" / home / name
            store(train_autoencoder(residual, recipe, "arm", HOOK), target)
    found = load_stages("data/diffing", "arm", 8, HOOK)
    assert {name: reader for name, (reader, _) in found.items()} == {
        "S": "base", "S-S": "base", "S-S-S": "base", "S-D": "base", "S-M": "arm", "S-D-F": "arm",
        "S-M-F": "arm", "placebo S-M": "placebo", "placebo S-M-F": "placebo",
    }  # fmt: skip
    table = stage_qualities("data/diffing", "arm")
    assert table["path"].tolist() == ["S-0", "S-1", "S-S", "S-S-S", *sorted(PATHS), "S-M", "S-M-F"]
    assert (table["tokens"] == 640).all() and table["fraction of variance explained"].notna().all()
    assert sorted(load_layers("data/diffing", "arm", 8)) == [0, 3]
    assert load_layers("data/diffing", "another", 8) == {}
