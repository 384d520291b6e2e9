"""`make organism` end to end, with recipes too short to learn anything: whole, and nothing done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import few_settings, file_times

from reasoning_features.making import organism as make_organism
from reasoning_features.settings import load_settings
from reasoning_features.steering.steering_study import load_studies
from reasoning_features.truth.benchmark import load_benchmarks


@pytest.mark.slow
def test_every_stage_from_nothing(repository, monkeypatch):
    short = {"tokens": 3_000, "batch_tokens": 1024, "chunk_documents": 32}
    tiny = {"tokens": 2_048, "batch": 512, "d_sae": 160}
    for name, changes in {
        "BASE_RECIPE": short, "VARIANT_RECIPE": short, "TOPK_RECIPE": tiny, "RELU_RECIPE": tiny
    }.items():  # fmt: skip
        monkeypatch.setattr(make_organism, name, replace(getattr(make_organism, name), **changes))
    for name, value in {
        "READ": ("coupled-0",), "COMPARED": ("coupled-0",), "BENCHMARKED": make_organism.BENCHMARKED[:1],
        "AUTOENCODER_TRACES": 60, "EVALUATION_PROBLEMS": 40, "CHECK_TRACES": 60,
        "load_settings": few_settings, "STUDIES": ("coupled-0-topk-0",),
    }.items():  # fmt: skip
        monkeypatch.setattr(make_organism, name, value)

    folder = repository / "data" / "organism"
    make_organism.stages(folder, workers=1)

    assert {path.name for path in (folder / "models").iterdir()} == {
        "base", *(variant.name for variant in make_organism.VARIANTS)
    }  # fmt: skip
    assert {path.name for path in (folder / "autoencoders").iterdir()} == {
        "coupled-0-relu-0", "coupled-0-relu-1", "coupled-0-topk-0"
    }  # fmt: skip
    (benchmark,) = load_benchmarks(folder / "truth")
    assert (benchmark.model, benchmark.kappa, benchmark.autoencoder_seed) == ("coupled-0", 1.0, 0)
    assert len(benchmark.truths["persistence"].features)
    assert benchmark.whole and set(benchmark.over_trace) == set(benchmark.truths)
    study = load_studies(folder / "steering")["coupled-0-topk-0"]
    assert {"unsteered", "ReasonScore", "mean difference"} <= set(study.evaluation["group"])
    diffing = {path.name: {p.name for p in path.iterdir()} for path in (folder / "diffing").iterdir()}
    assert diffing.pop("placebo-model") >= {"model.safetensors", "training.json"}
    assert diffing == {
        "base": {"S-0", "S-1", "S-S", "S-S-S"},
        "coupled-0": {"S-D", "S-M", "S-D-F", "S-M-F"},
        "placebo": {"S-M", "S-M-F"},
        "layers": {"0", "1", "3", "4"},
        "references": {"coupled-0.parquet"},
    }
    card = (folder / "README.md").read_text()
    assert "planted" in card and "coupled-2" in card
    sums = json.loads((folder / "checksums.json").read_text())
    assert "data/organism/models/base/model.safetensors" in sums
    assert not list((folder / "checkpoints").glob("*.checkpoint"))

    before = {name: at for name, at in file_times(folder).items() if name in sums}
    make_organism.stages(folder, workers=1)
    assert {name: at for name, at in file_times(folder).items() if name in sums} == before


def test_both_variants_are_ablated_over_the_whole_trace():
    names = [make_organism.benchmark_name(*pair) for pair in make_organism.BENCHMARKED]
    assert set(make_organism.WHOLE_TRACE) < set(names)
    # the autoencoders that the notebooks read by default
    settings = load_settings("organism")
    read = {Path(path).name for path in (settings.autoencoder, settings.contrast_autoencoder) if path}
    assert read == set(make_organism.WHOLE_TRACE)
