"""Stages trained by streaming: in the layout that is read, one from the other, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from sae_lens import SAETrainer
from tiny import make_tiny_llama

from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.diffing import stage_wise
from reasoning_features.diffing.streamed_stages import stage_costs, train_stages
from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.settings import Settings, load_settings

STAGES = ["S", "S-S", "S-S-S", "S-D", "S-M", "S-D-F", "S-M-F"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A base and a fine-tuned tiny model, and two local files of texts."""
    home = tmp_path_factory.mktemp("stages")
    base, model = (str(make_tiny_llama(home / name, seed)) for seed, name in enumerate(("base", "tuned")))
    for name, text in (
        ("prose", "The {} is right, but {} is wrong."),
        ("traces", "Wait, let me try {} + {}."),
    ):
        lines = [
            json.dumps({"text": " ".join(text.format(i, 7 * i + j) for j in range(20))}) for i in range(40)
        ]
        (home / f"{name}.jsonl").write_text("\n".join(lines))
    return load_settings(
        "organism",
        corpus="text",
        subject=model,
        base=base,
        layer=1,
        context=16,
        batch_tokens=128,
        base_text=[{"dataset": str(home / "prose.jsonl")}],
        reasoning_text={"dataset": str(home / "traces.jsonl")},
        training_text=[{"dataset": str(home / "traces.jsonl")}],
        layers=[0],
        d_sae=48,
        l1=0.1,
        train_tokens=60 * 64,
        train_batch=64,
        learning_rate=1e-2,
        checkpoints=1,
    )


@pytest.fixture(scope="module")
def subject(settings: Settings) -> Subject:
    return load_subject(settings.subject, settings.layer)


@pytest.fixture(scope="module")
def folder(settings: Settings, subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("diffing") / "diffing"
    assert train_stages(settings, subject, home) == str(home)
    return home


def weights(folder: Path) -> dict[str, bytes]:
    return {
        path.parent.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("*/*/sae_weights.safetensors"))
    }


def test_all_stages_are_read_again(settings: Settings, subject: Subject, folder: Path):
    stage_wise.check_stored(str(folder))
    found = stage_wise.load_stages(str(folder), subject.short_name, subject.d_model, subject.hook_name)
    assert list(found) == ["S", "S-S", "S-S-S", "S-D", "S-M", "S-D-F", "S-M-F"]
    assert {name: reader for name, (reader, _) in found.items() if reader != "base"} == {
        "S-M": "tuned", "S-D-F": "tuned", "S-M-F": "tuned",
    }  # fmt: skip
    named = {name: sae.cfg.metadata.model_name for name, (_, sae) in found.items()}
    assert named == {name: "base" if reader == "base" else "tuned" for name, (reader, _) in found.items()}
    table = stage_wise.stage_qualities(str(folder), "tuned").set_index("path")
    assert table.loc["S-0", "tokens"] == 60 * 64 and table.loc["S-D", "tokens"] == 18 * 64
    layers = stage_wise.load_layers(str(folder), "tuned", subject.d_model)
    assert list(layers) == [0] and layers[0].cfg.metadata.hook_name == "blocks.0.hook_resid_post"


def test_each_goes_on_from_the_one_before(subject: Subject, folder: Path):
    found = stage_wise.load_stages(str(folder), "tuned", subject.d_model, subject.hook_name)
    for after, before in (("S-S", "S"), ("S-D", "S"), ("S-D-F", "S-D"), ("S-M-F", "S-M")):
        cosines = best_cosines(found[before][1].W_dec, found[after][1].W_dec)
        assert cosines.mean() > 0.8, (after, before)
        assert not torch.equal(found[before][1].W_dec, found[after][1].W_dec)


def test_interrupted_between_and_within_stages(
    settings: Settings, subject: Subject, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    step, left = SAETrainer.step, [0]

    def interrupting(self: SAETrainer, batch: torch.Tensor) -> object:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(self, batch)

    for calls in (40, 45, 60):
        left[0] = calls
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(SAETrainer, "step", interrupting)
            train_stages(settings, subject, tmp_path / "diffing")
    assert train_stages(settings, subject, tmp_path / "diffing")
    assert weights(tmp_path / "diffing") == weights(folder) and len(weights(folder)) == 8
    assert not list((tmp_path / "diffing").glob("*/*.training"))


def test_what_is_there_is_kept_and_nothing_is_loaded(
    settings: Settings, subject: Subject, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*given: object, **named: object) -> None:
        raise AssertionError

    monkeypatch.setattr("reasoning_features.diffing.streamed_stages.load_subject", never)
    monkeypatch.setattr("reasoning_features.diffing.streamed_stages.training_rows", never)
    train_stages(settings, subject, folder)
    with pytest.raises(UserError, match="S-0 is of a training with another recipe: delete it"):
        train_stages(settings.model_copy(update={"l1": 0.2}), subject, folder)


def test_costs(settings: Settings, folder: Path, tmp_path: Path):
    table = stage_costs(settings, tmp_path)
    assert table["training"].tolist() == [*STAGES, "layer 0"]
    assert table["model"].tolist() == ["base"] * 4 + ["tuned"] * 4
    assert table["data"].tolist() == [
        "base", "base", "base", "reasoning", "base", "reasoning", "reasoning", "training",
    ]  # fmt: skip
    assert table["tokens"].tolist() == [3840, *[1152] * 6, 3840]
    assert not table["stored"].any() and stage_costs(settings, folder)["stored"].all()
    # the paper's: 2.3 billion tokens
    real = stage_costs(load_settings("deepseek-r1-distill-llama-8b"))
    assert isinstance(real, pd.DataFrame) and real["tokens"].sum() == pytest.approx(2.8 * 819.2e6)


def test_what_is_missing_is_named(settings: Settings, subject: Subject, tmp_path: Path):
    for update, told in (
        ({"base": None}, "set `base`"),
        ({"base_text": []}, "no texts to train S on: set `base_text`"),
        ({"reasoning_text": None}, "no texts to train S-D on: set `stages_text`"),
        ({"training_text": []}, "no texts to train layer 0 on: set `training_text`"),
    ):
        with pytest.raises(UserError, match=told):
            train_stages(settings.model_copy(update=update), subject, tmp_path / "none")
    assert not (tmp_path / "none").exists()
