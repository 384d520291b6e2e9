"""What a profile takes is told before it is spent, and refused in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import local_hub
import miniatures
import pytest
import torch
from local_hub import LocalHub

from reasoning_features import hub_failures, paths
from reasoning_features.errors import UserError
from reasoning_features.hub import local_copy
from reasoning_features.running import costs
from reasoning_features.running.cost_parts import Part
from reasoning_features.running.costs import check, needs
from reasoning_features.settings import Settings, load_settings


def miniature(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "subject": miniatures.LLAMA,
        "base": miniatures.LLAMA_BASE,
        "layer": miniatures.LAYER,
        "device": "cpu",
        "autoencoder": f"{miniatures.LLAMA_SAE}:{miniatures.HOOK}",
        "d_sae": miniatures.FEATURES,
        "reasoning_text": {"dataset": miniatures.THOUGHTS},
        "general_text": {"dataset": miniatures.LMSYS, "column": "conversation"},
        "solutions_text": {"dataset": miniatures.THOUGHTS, "column": "ground_truth_solution"},
        "problems": {"MATH-500": {"dataset": miniatures.MATH}},
        "batch_tokens": 512,
        "max_new_tokens": 64,
    }
    return load_settings("deepseek-r1-distill-llama-8b", **(given | changes))


def test_parts_are_counted_once_and_fetched_ones_are_here(hub: LocalHub) -> None:
    found = needs(miniature())
    sizes = {part.setting: part.size for part in found.parts}
    served = sum(
        path.stat().st_size for path in (hub.root / "models" / miniatures.LLAMA).glob("*.safetensors")
    )
    assert sizes["subject"] == served and "solutions_text" not in sizes  # the same file as reasoning_text
    assert found.download == sum(sizes.values()) and "training_text" not in sizes
    assert not list(hub.home.rglob("*.safetensors"))  # nothing was fetched
    local_copy(miniatures.LLAMA)
    assert needs(miniature()).download == found.download - served
    text = str(found)
    assert "Disk of the cache" in text and miniatures.LLAMA in text and "On cpu: about" in text
    assert "training_text" in {part.setting for part in needs(miniature(train_saes=True)).parts}


def test_memory_is_of_the_dtype_and_grows_with_what_is_asked(hub: LocalHub) -> None:
    half, whole = needs(miniature(dtype="bfloat16")), needs(miniature(dtype="float32"))
    assert (
        whole.weights
        == 2 * half.weights
        == pytest.approx(
            2 * sum(part.size for part in half.parts if part.setting in {"subject", "base"}), abs=8
        )
    )
    assert half.autoencoders == next(part.size for part in half.parts if part.setting == "autoencoder")
    assert needs(miniature(batch_tokens=10**6)).working > half.working
    assert needs(miniature(max_new_tokens=10**7)).working > half.working
    assert half.device_free is not None and half.memory < half.device_free
    check(miniature())


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        (
            miniatures.LLAMA_BASE,
            r"Llama-Base is gated: accept its terms at .* Or leave `base` out of the profile",
        ),
        (miniatures.LMSYS, r"lmsys-chat-1m is gated: accept its terms at http.*/datasets/mini/lmsys"),
    ],
)
def test_what_is_gated_is_refused_before_anything_is_fetched(hub: LocalHub, repo: str, message: str) -> None:
    hub.gated[repo] = None
    with pytest.raises(UserError, match=message):
        check(miniature())
    assert "is gated" in str(needs(miniature()))
    assert not list(hub.home.rglob("*.safetensors"))


def test_what_does_not_fit_is_refused(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"takes about .* on cpu, of which .* are free: give a larger device"):
        check(miniature(batch_tokens=10**12))
    with pytest.raises(UserError, match="There is no model mini/nothing on the hub"):
        check(miniature(subject="mini/nothing"))
    with pytest.raises(
        UserError, match=r"keeps .* of checkpoints while it trains, but .* lower `checkpoints`"
    ):
        check(miniature(train_saes=True, checkpoints=10**9, training_text=[], base_text=[]))
    monkeypatch.setattr(costs, "free_disk", lambda: 10_000)
    with pytest.raises(UserError, match=r"fetches .* MB, but 0\.0 MB are free on the disk of the cache"):
        check(miniature())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_plan_is_made_without_the_gpu_but_a_run_is_refused(hub: LocalHub) -> None:
    assert needs(miniature(device="cuda")).device_free is None
    with pytest.raises(UserError, match="no CUDA"):
        check(miniature(device="cuda"))


def test_without_network_the_cache_tells(hub: LocalHub) -> None:
    settings = miniature(general_text=None, problems={}, base=None)
    # None means the profile's own value, so drop those
    settings = settings.model_copy(update={"general_text": None, "base": None, "problems": {}})
    for reference in (settings.subject, settings.autoencoder):
        local_copy(reference)
    local_copy(miniatures.THOUGHTS, "dataset")
    with local_hub.using(hub, offline=True):
        assert needs(settings).download == 0
        check(settings)


def test_the_organism_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("reasoning_features.hub.HfApi", refused)
    monkeypatch.setattr("reasoning_features.hub.snapshot_download", refused)
    settings = load_settings("organism")
    check(settings)
    found = needs(settings)
    assert found.download == 0 and all(part.here for part in found.parts)


@pytest.mark.slow
def test_the_command(hub: LocalHub, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "extends: deepseek-r1-distill-llama-8b\nbase: null\nlayer: 2\ndevice: cpu\n"
        f"subject: {miniatures.LLAMA}\n"
        f"autoencoder: {miniatures.LLAMA_SAE}:{miniatures.HOOK}\ngeneral_text: null\nsolutions_text: null\n"
        f"reasoning_text: {{dataset: {miniatures.THOUGHTS}}}\nproblems: {{}}\nbatch_tokens: 512\n"
    )
    command = [sys.executable, "-m", "reasoning_features.running.costs", str(profile)]
    options: dict[str, Any] = {"cwd": paths.root(), "capture_output": True, "text": True}
    ran = subprocess.run(command, env=hub.environment(), **options)
    assert ran.returncode == 0 and "to fetch" in ran.stdout and miniatures.THOUGHTS in ran.stdout, ran.stderr
    hub.gated[miniatures.LLAMA] = None
    ran = subprocess.run(command, env=hub.environment(), **options)
    assert ran.returncode == 1 and ran.stderr.strip().splitlines()[-1].startswith(
        f"{miniatures.LLAMA} is gated"
    )
    assert "Traceback" not in ran.stderr


def test_parts_in_words() -> None:
    part = Part("subject", "a/b", 3_000_000_000, 1_000_000_000)
    assert part.missing == 2e9 and hub_failures.gigabytes(part.missing) == "2.0 GB"
    found = costs.Needs([part, replace(part, problem="a/b is gated.")], 10**9, "cpu", None, 1, 2, 3, width=64)
    assert "2.0 GB" in str(found) and "a/b is gated." in str(found) and found.memory == 6


def test_sizes_that_do_not_fit_are_told_before_any_work(repository: Path) -> None:
    """A layer that the model lacks, and an autoencoder of another width, by the small files beside them."""
    for folder, name, held in (
        ("model", "config.json", {"num_hidden_layers": 3, "hidden_size": 12}),
        ("fits", "cfg.json", {"d_in": 12}),
        ("wide", "cfg.json", {"d_in": 20}),
    ):
        (repository / folder).mkdir()
        (repository / folder / name).write_text(json.dumps(held))
    settings = load_settings("organism", subject="model", autoencoder="fits", layer=2)
    plain = settings.model_copy(
        update={"autoencoder_relu": None, "autoencoder_topk": None, "autoencoder_second": None}
    )
    costs.check(plain)
    with pytest.raises(UserError, match=r"Layer 3 is out of range: model has 3 layers; choose 0 to 2\."):
        costs.check(plain.model_copy(update={"layer": 3}))
    with pytest.raises(
        UserError, match=r"wide \(`autoencoder_topk`\) is for activations of width 20, but model"
    ):
        costs.check(plain.model_copy(update={"autoencoder_topk": "wide"}))
