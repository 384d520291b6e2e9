"""What a profile takes is told before it is spent, and refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import miniatures
import pytest
from local_hub import LocalHub
from mini_profile import BENCHMARKS, settings_of_miniatures

from reasoning_features import hub as hub_room
from reasoning_features.errors import UserError
from reasoning_features.hub import local_copy
from reasoning_features.runs.preflight import check, free_memory, memory, parts, tell
from reasoning_features.settings import Settings, load_settings


def miniature(**changes: Any) -> Settings:
    small = {"batch_tokens": 512, "max_new_tokens": 64, "problems": {"MATH-500": BENCHMARKS["MATH-500"]}}
    given = settings_of_miniatures() | small | changes
    return load_settings(given.pop("extends"), **given)


def test_parts_are_counted_once(hub: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    found = {part.setting: part for part in parts(miniature())}
    weights = sum(p.stat().st_size for p in (hub.root / "models" / miniatures.LLAMA).glob("*.safetensors"))
    assert found["subject"].size == found["subject"].missing >= weights
    assert "solutions_text" not in found and "training_text" not in found  # the same file; untrained
    assert not list(hub.home.rglob("*.safetensors"))
    local_copy(miniatures.LLAMA)
    tell(miniature())
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("subject"))
    assert line.endswith("here") and "To fetch:" in said and "Memory on cpu: about" in said


def test_memory_is_of_the_dtype_and_grows_with_what_is_asked(hub: LocalHub) -> None:
    def takes(**changes: Any) -> int:
        return memory(miniature(**changes), parts(miniature(**changes)))

    half = takes(dtype="bfloat16")
    assert half < min(takes(dtype="float32"), takes(batch_tokens=10**6), takes(max_new_tokens=10**7))
    assert half < takes(train_saes=True, train_batch=10**6)


@pytest.mark.parametrize(
    ("repo", "message"),
    [
        (miniatures.LLAMA_BASE, r"is gated: accept its terms at .* Or leave `base` out of the profile"),
        (miniatures.LMSYS, r"lmsys-chat-1m is gated: accept its terms at http.*/datasets/mini/lmsys"),
    ],
)
def test_what_is_gated_is_refused_before_anything_is_fetched(hub: LocalHub, repo: str, message: str) -> None:
    hub.gated.add(repo)
    with pytest.raises(UserError, match=message):
        check(miniature(train_saes=True))
    assert not list(hub.home.rglob("*.safetensors"))


def test_what_does_not_fit_is_refused(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    check(miniature())
    with pytest.raises(UserError, match=r"takes about .* on cpu, of which .* are free: give a larger device"):
        check(miniature(batch_tokens=10**12))
    with pytest.raises(UserError, match="There is no model mini/nothing on the hub"):
        check(miniature(subject="mini/nothing"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert free_memory("cuda") is None  # of a plan for a GPU that is not here
    monkeypatch.setattr(hub_room, "free_disk", lambda: 10_000)
    with pytest.raises(UserError, match=r"fetches .* MB, but 0\.0 MB are free on the disk of the cache"):
        check(miniature())


def test_a_layer_that_the_model_lacks_is_told_before_any_work(repository: Path) -> None:
    (repository / "model").mkdir()
    (repository / "model" / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    settings = load_settings("organism", subject="model", layer=3)
    with pytest.raises(UserError, match=r"Layer 3 is out of range: model has 3 layers; choose 0 to 2\."):
        check(settings)
    check(settings.model_copy(update={"layer": 2}))
    file = repository / "model" / "config.json"
    for damage, told in (
        (lambda: file.write_text("{"), "config.json in model is no JSON object"),
        (file.unlink, "no config.json in model: name a"),
    ):
        damage()
        with pytest.raises(UserError, match=told):
            check(settings)
