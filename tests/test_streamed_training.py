"""Streamed training: what is read, that interruptions leave no trace, and that it is the training it says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE, SAETrainer

from reasoning_features.bookkeeping.keys import CELL_LIMIT
from reasoning_features.dictionaries import streamed_training
from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.dictionaries.autoencoder_recipe import Recipe
from reasoning_features.dictionaries.autoencoder_trainer import finished, new_trainer
from reasoning_features.dictionaries.streamed_training import settings_recipe, train_on_rows
from reasoning_features.dictionaries.training_buffers import Buffers
from reasoning_features.errors import CorruptArtefact, UserError
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.residual_stream.activations import Moments
from reasoning_features.settings import load_settings

RECIPE = Recipe("relu", d_sae=48, tokens=30 * 64, learning_rate=1e-2, batch=64, l1=0.1)


@dataclass(frozen=True)
class RandomRows:
    """Rows of random tokens of the tiny model; 0 and 1 are BOS and EOS."""

    n: int = 60
    context: int = 16
    seed: int = 0

    @property
    def identity(self) -> str:
        return f"random {self.seed}"

    def __len__(self) -> int:
        return self.n

    def rows(self, i: int, j: int) -> torch.Tensor:
        drawn = np.random.default_rng(self.seed).integers(0, 40, size=(self.n, self.context))
        return torch.from_numpy(drawn[i:j])


def train(
    subject: Subject, folder: Path, recipe: Recipe = RECIPE, rows: RandomRows | None = None, **options
) -> Path:
    return train_on_rows(subject, rows or RandomRows(), recipe, folder, 64, 2, "cpu", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module", params=["relu", "topk"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return replace(RECIPE, architecture=request.param, k=4)


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_subject: Subject, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    return contents(train(tiny_subject, tmp_path_factory.mktemp("whole") / "sae", recipe))


def interrupted_at(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """The user interrupts at the ``calls``-th step from now."""
    left = [calls]
    step = SAETrainer.step

    def interrupting(self: SAETrainer, batch: torch.Tensor) -> object:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(SAETrainer, "step", interrupting)


@pytest.mark.parametrize(
    ("every", "interruptions"), [(1e9, [1, 13, 15]), (0.0, [2, 9, 1, 6]), (1e9, [30]), (0.0, [30])]
)
def test_interruptions_leave_no_trace(
    tiny_subject: Subject,
    recipe: Recipe,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every: float,
    interruptions: list[int],
):
    monkeypatch.setattr(streamed_training, "NEWEST_EVERY", every)
    for calls in interruptions:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            interrupted_at(patched, calls)
            train(tiny_subject, tmp_path / "sae", recipe)
        assert not (tmp_path / "sae").exists()
    torch.manual_seed(1)  # the global stream has no say
    assert contents(train(tiny_subject, tmp_path / "sae", recipe)) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_interrupted_while_a_checkpoint_is_written(
    tiny_subject: Subject,
    recipe: Recipe,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    save, left = SAETrainer.save_trainer_state, [2]

    def failing(self: SAETrainer, folder: Path) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        save(self, folder)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SAETrainer, "save_trainer_state", failing)
        train(tiny_subject, tmp_path / "sae", recipe)
    names = {path.name for path in (tmp_path / "sae.training").iterdir()}
    assert names == {"made_from.json", "step-10", "step-20.new"}
    assert contents(train(tiny_subject, tmp_path / "sae", recipe)) == uninterrupted


def test_it_is_the_plain_training_on_the_same_batches(
    tiny_subject: Subject, recipe: Recipe, uninterrupted: dict[str, bytes], tmp_path: Path
):
    name, hook = tiny_subject.short_name, tiny_subject.hook_name
    buffers = Buffers(tiny_subject, RandomRows(), 64, 64, recipe.start(name))
    data = (batch for batch, _ in buffers.batches())
    trainer = new_trainer(recipe, name, hook, buffers.moments(), data, "cpu")
    trainer.fit()
    finished(trainer).save_model(tmp_path)
    assert (tmp_path / "sae_weights.safetensors").read_bytes() == uninterrupted["sae_weights.safetensors"]


def test_what_is_written(tiny_subject: Subject, tmp_path: Path):
    recipe = replace(RECIPE, tokens=200 * 64, l1=0.01)
    folder = train(tiny_subject, tmp_path / "sae", recipe)
    sae = SAE.load_from_disk(folder).requires_grad_(False)
    assert sae.cfg.normalize_activations == "none"
    assert sae.cfg.metadata.hook_name == tiny_subject.hook_name
    table = pd.read_csv(folder / "training.csv")
    assert table["step"].tolist() == [0, 67, 133, 200]
    assert table["tokens"].tolist() == [64 * step for step in (0, 67, 133, 200)]
    # on raw activations that no step has seen it explains what the history says
    x = Buffers(tiny_subject, RandomRows(), 64, 64, 0).held_out()
    explained = 1 - (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert float(explained) == pytest.approx(table["fraction of variance explained"].iloc[-1], abs=1e-3)
    assert float(explained) > 0.8
    # one that is there is kept; going on from it starts where it stood
    before = (folder / "sae_weights.safetensors").stat().st_mtime_ns
    assert train(tiny_subject, folder, recipe) == folder
    assert (folder / "sae_weights.safetensors").stat().st_mtime_ns == before
    further = train(tiny_subject, tmp_path / "further", RECIPE, initial=sae)
    start = pd.read_csv(further / "training.csv").iloc[0]
    assert start["fraction of variance explained"] == pytest.approx(float(explained), abs=1e-3)


def test_a_model_in_half_the_bits_and_an_autoencoder_in_all(tiny_llama: Path, tmp_path: Path):
    subject = load_subject(str(tiny_llama), 1, dtype="bfloat16")
    buffers = Buffers(subject, RandomRows(), 64, 64, 0)
    assert next(buffers.batches())[0].dtype == buffers.held_out().dtype == torch.float32
    sae = SAE.load_from_disk(train(subject, tmp_path / "sae"))
    assert sae.W_dec.dtype == torch.float32 and sae.cfg.metadata.recipe["tokens"] == RECIPE.tokens
    with pytest.raises(UserError, match="of a training with another dtype: delete it"):
        train(load_subject(str(tiny_llama), 1), tmp_path / "sae")


def test_batches_of_the_data(tiny_subject: Subject):
    rows = RandomRows()
    buffers = Buffers(tiny_subject, rows, 64, 64, 3)
    held = buffers.held_out()
    # six rows of sixty are held out, without their special tokens
    assert len(held) == int((rows.rows(0, 6) > 1).sum())
    stream = buffers.batches()
    taken = [next(stream) for _ in range(40)]
    ordinary = int((rows.rows(6, 60) > 1).sum())
    whole = ordinary // 64
    # all other rows are one buffer, which comes again in another order
    assert [after for _, after in taken[: whole + 1]] == [
        *((0, i) for i in range(1, whole)),
        (1, 0),
        (1, 1),
    ]
    first = torch.cat([batch for batch, _ in taken[:whole]])
    again = torch.cat([batch for batch, _ in taken[whole : 2 * whole]])
    assert not torch.equal(first, again)
    every = torch.cat(
        [tiny_subject.residual(rows.rows(i, i + 4))[rows.rows(i, i + 4) > 1] for i in range(6, 60, 4)]
    )
    nearest = torch.cdist(first.double(), every.double()).min(1)
    assert float(nearest.values.max()) < 1e-3 and len(nearest.indices.unique()) > 0.9 * len(first)
    # from any place on the same batches come
    for place in ((0, 5), (1, 0), (2, 3)):
        at = next(i for i, (_, after) in enumerate(taken) if after == place)
        assert torch.equal(next(buffers.batches(place))[0], taken[at + 1][0])


def test_a_buffer_that_reaches_the_last_row_goes_on_at_the_first(
    tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("reasoning_features.dictionaries.training_buffers.BATCHES", 10)
    asked: list[tuple[int, int]] = []

    class Told(RandomRows):
        def rows(self, i: int, j: int) -> torch.Tensor:
            asked.append((i, j))
            return super().rows(i, j)

    stream = Buffers(tiny_subject, Told(n=100), 64, 64, 0).batches()
    for _ in range(28):
        next(stream)
    # ten batches of 64 are 40 rows of 16; rows 10 to 99 are not held out
    assert asked == [(10, 50), (50, 90), (90, 100), (10, 40), (40, 80)][: len(asked)] and len(asked) >= 4


def test_another_training_is_not_taken_for_this_one(
    tiny_subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted_at(patched, 15)
        train(tiny_subject, tmp_path / "sae")
    with pytest.raises(UserError, match=r"sae.training is of a training with another texts: delete it"):
        train(tiny_subject, tmp_path / "sae", rows=RandomRows(seed=1))
    folder = train(tiny_subject, tmp_path / "sae")
    with pytest.raises(UserError, match="sae is of a training with another recipe"):
        train(tiny_subject, folder, replace(RECIPE, l1=0.2))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="other is there already, and no training made it"):
        train(tiny_subject, tmp_path / "other")


@pytest.mark.parametrize("damage", ["torn", "changed", "untold"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tiny_subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, damage: str
):
    whole = contents(train(tiny_subject, tmp_path / "whole"))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted_at(patched, 25)
        train(tiny_subject, tmp_path / "sae")
    newest = tmp_path / "sae.training" / "step-20"
    weights = newest / "weights.safetensors"
    held = weights.read_bytes()
    if damage == "untold":
        (newest / "progress.json").write_text("{")
    else:
        weights.write_bytes(held[:100] if damage == "torn" else held[:-1] + bytes([held[-1] ^ 1]))
    assert contents(train(tiny_subject, tmp_path / "sae")) == whole
    assert "The checkpoint step-20 is damaged: the training goes on from the one before." in (
        capsys.readouterr().out
    )


def test_a_damaged_autoencoder_is_named_set_aside_and_trained_again(
    tiny_subject: Subject, tmp_path: Path, capsys
):
    folder = train(tiny_subject, tmp_path / "sae")
    whole = contents(folder)
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(whole[weights.name][:-1] + bytes([whole[weights.name][-1] ^ 1]))
    with pytest.raises(CorruptArtefact, match=r"sae_weights\.safetensors is damaged .*train_saes=true"):
        load_autoencoder(str(folder), tiny_subject.d_model)
    assert contents(train(tiny_subject, folder)) == whole
    assert "sae_weights.safetensors is damaged: sae is trained again" in capsys.readouterr().out
    assert (tmp_path / "sae.damaged" / "sae_weights.safetensors").is_file()
    load_autoencoder(str(folder), tiny_subject.d_model)
    (folder / "made_from.json").write_text("{")
    with pytest.raises(CorruptArtefact, match=r"made_from\.json is damaged: delete sae"):
        train(tiny_subject, folder)


def test_a_training_that_a_cell_has_no_time_for(tiny_subject: Subject, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(streamed_training, "MEASURED_AFTER", 0.0)
    monkeypatch.setenv(CELL_LIMIT, "0.000001")
    with pytest.raises(UserError, match=r"Training sae: about .* tokens/s, .* give make CELL_LIMIT=") as said:
        train(tiny_subject, tmp_path / "sae")
    assert not (tmp_path / "sae").exists() and "\n" not in str(said.value)
    monkeypatch.delenv(CELL_LIMIT)
    assert train(tiny_subject, tmp_path / "sae").is_dir()
    assert "measured just now" in capsys.readouterr().out


def test_too_little_to_train_on(tiny_subject: Subject, tmp_path: Path):
    with pytest.raises(UserError, match="2 rows of 16 tokens to train on, fewer than one batch of 64"):
        train(tiny_subject, tmp_path / "sae", rows=RandomRows(n=2))
    with pytest.raises(UserError, match="Fewer than ten rows"):
        train(tiny_subject, tmp_path / "sae", rows=RandomRows(n=8))
    with pytest.raises(UserError, match="raise train_tokens"):
        train(tiny_subject, tmp_path / "sae", replace(RECIPE, tokens=60))


def test_the_papers_schedule():
    recipe = replace(settings_recipe(load_settings("deepseek-r1-distill-llama-8b")), d_sae=8)
    assert (recipe.architecture, recipe.steps, recipe.batch) == ("relu", 200_000, 4096)
    moments = Moments.of(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)))
    trainer = new_trainer(recipe, "m", "h", moments, iter(()), "cpu")
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], tuple(group["betas"])) == (5e-5, (0.9, 0.999))
    rates, coefficients = [], []
    for _ in range(recipe.steps):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        coefficients.append(trainer.get_coefficients()["l1"])
        trainer.lr_scheduler.step()
        trainer.coefficient_schedulers["l1"].step()
    # the rate falls over the last fifth, λ rises over the first twentieth
    assert rates[:160_000:1000] == [5e-5] * 160
    assert rates[180_000] == pytest.approx(2.5e-5, rel=1e-3) and rates[-1] < 1e-8
    assert coefficients[5_000] == pytest.approx(2.5, rel=1e-3) and coefficients[10_000] == 5.0
