"""Streamed training: what is read, that interruptions leave no trace, and that it is the training it says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE, SAETrainer

from reasoning_features.bookkeeping.keys import CELL_LIMIT
from reasoning_features.bookkeeping.projections import project
from reasoning_features.dictionaries import streamed_training
from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.dictionaries.autoencoder_recipe import Recipe
from reasoning_features.dictionaries.autoencoder_trainer import finished, new_trainer
from reasoning_features.dictionaries.streamed_training import settings_recipe, train_on_rows
from reasoning_features.dictionaries.training_buffers import Buffers, ordinary
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
    buffers = Buffers(tiny_subject, RandomRows(), 64, recipe.steps, 64, recipe.start(name))
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
    x = Buffers(tiny_subject, RandomRows(), 64, 200, 64, 0).held_out()
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
    buffers = Buffers(subject, RandomRows(), 64, 30, 64, 0)
    assert next(buffers.batches())[0].dtype == buffers.held_out().dtype == torch.float32
    sae = SAE.load_from_disk(train(subject, tmp_path / "sae"))
    assert sae.W_dec.dtype == torch.float32 and sae.cfg.metadata.recipe["tokens"] == RECIPE.tokens
    with pytest.raises(UserError, match="of a training with another dtype: delete it"):
        train(load_subject(str(tiny_llama), 1), tmp_path / "sae")


def kept(tokens: torch.Tensor) -> torch.Tensor:
    """Which of the rows' tokens are trained on: neither BOS nor EOS nor the first of a row."""
    return ordinary(tokens, torch.tensor([0, 1]))


def test_batches_of_the_data(tiny_subject: Subject):
    rows, steps = RandomRows(), 40
    buffers = Buffers(tiny_subject, rows, 64, steps, 64, 3)
    held = buffers.held_out()
    # six rows of sixty are held out, without their special tokens
    assert len(held) == int(kept(rows.rows(0, 6)).sum()) <= 6 * 15
    taken = list(buffers.batches())
    assert len(taken) == steps
    ours = rows.rows(6, 60)
    whole = int(kept(ours).sum()) // 64
    # all other rows are one buffer, which comes again in another order
    assert [after for _, after in taken[: whole + 1]] == [
        *((0, i) for i in range(1, whole)),
        (1, 0),
        (1, 1),
    ]
    first = torch.cat([batch for batch, _ in taken[:whole]])
    again = torch.cat([batch for batch, _ in taken[whole : 2 * whole]])
    assert not torch.equal(first, again)
    every = torch.cat([tiny_subject.residual(part)[kept(part)] for part in ours.split(4)])
    nearest = torch.cdist(first.double(), every.double()).min(1)
    assert float(nearest.values.max()) < 1e-3 and len(nearest.indices.unique()) > 0.9 * len(first)
    # from any place on the same batches come, also in the last buffer, which is smaller
    assert {after[0] for _, after in taken[:-1]} == {0, 1, 2, 3} and steps < 4 * whole
    for done, (_, place) in enumerate(taken[:-1], start=1):
        rest = Buffers(tiny_subject, rows, 64, steps, 64, 3).batches(place, done)
        assert torch.equal(next(rest)[0], taken[done][0])
    assert not list(buffers.batches(taken[-1][1], steps))


def test_attention_sinks_are_no_batch(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch):
    residual, n = Subject.residual, []

    def with_sinks(self: Subject, tokens: torch.Tensor) -> torch.Tensor:
        n.append(int(kept(tokens)[:, 5].sum()))
        given = residual(self, tokens)
        given[:, [0, 5]] *= 100.0
        return given

    rows = RandomRows()
    usual = Buffers(tiny_subject, rows, 64, 6, 64, 0)
    longest = usual.moments().norms / usual.moments().count
    monkeypatch.setattr(Subject, "residual", with_sinks)
    buffers = Buffers(tiny_subject, rows, 64, 6, 64, 0)
    assert buffers.moments().norms / buffers.moments().count == pytest.approx(longest, rel=0.1)
    assert sum(n) > 20
    assert all(float(batch.norm(dim=1).max()) < 5 * longest for batch, _ in buffers.batches())


class Told(RandomRows):
    """Rows that keep which of them were asked for."""

    asked: ClassVar[list[tuple[int, int]]] = []

    def rows(self, i: int, j: int) -> torch.Tensor:
        self.asked.append((i, j))
        return super().rows(i, j)


def test_a_buffer_that_reaches_the_last_row_goes_on_at_the_first(
    tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("reasoning_features.dictionaries.training_buffers.BATCHES", 10)
    monkeypatch.setattr(Told, "asked", [])
    assert len(list(Buffers(tiny_subject, Told(n=100), 64, 28, 64, 0).batches())) == 28
    # ten batches of 64 are 40 rows of 16; rows 10 to 99 are not held out
    assert Told.asked == [(10, 50), (50, 90), (90, 100), (10, 40), (40, 80)][: len(Told.asked)]
    assert len(Told.asked) >= 4


@dataclass
class Counted:
    """The tiny model; each token takes it as long as is said, by a clock of its own."""

    subject: Subject
    seconds: float = 0.0
    clock: float = 0.0
    read: list[torch.Tensor] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.subject, name)

    def residual(self, tokens: torch.Tensor) -> torch.Tensor:
        self.read.append(tokens)
        self.clock += self.seconds * tokens.numel()
        return self.subject.residual(tokens)

    @property
    def rows(self) -> list[tuple[int, ...]]:
        return [tuple(row) for row in torch.cat(self.read).tolist()]


@pytest.mark.parametrize("steps", [1, 8, 12, 33])
def test_no_more_is_read_than_is_trained_on(
    tiny_subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
):
    monkeypatch.setattr("reasoning_features.dictionaries.training_buffers.BATCHES", 10)
    subject = Counted(tiny_subject)
    rows = RandomRows(n=200)  # 20 of them are held out, and 180 × 16 tokens are 38 batches or so
    train(subject, tmp_path / "sae", replace(RECIPE, tokens=steps * 64), rows)
    assert len(set(subject.rows)) == len(subject.rows)  # in one pass no row is read twice
    share = float(kept(rows.rows(0, 200)).float().mean())
    needed = 64 * steps / share
    read = 16 * (len(subject.rows) - 20)
    lost = 64 * (steps // 10)  # what a buffer holds beyond whole batches
    assert needed <= 1.1 * read and read <= 1.15 * (needed + lost) + 2 * 16


def test_a_training_that_goes_on_reads_again_what_it_needs(
    tiny_subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("reasoning_features.dictionaries.training_buffers.BATCHES", 10)
    monkeypatch.setattr(streamed_training, "NEWEST_EVERY", 0.0)
    rows, home = RandomRows(n=200), tmp_path / "whole"
    whole = contents(train(tiny_subject, home, rows=rows))
    for calls, again in ((5, 40), (15, 80)):  # in the first buffer, which is read once; in the second
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            interrupted_at(patched, calls)
            train(tiny_subject, tmp_path / f"sae{calls}", rows=rows)
        subject = Counted(tiny_subject)
        train(subject, tmp_path / f"sae{calls}", rows=rows)
        assert contents(tmp_path / f"sae{calls}") == whole
        starts = subject.rows[20 : 20 + again]
        assert len(set(starts)) == again and starts[0] == tuple(rows.rows(20, 21)[0].tolist())
        assert len(subject.rows) < len(set(subject.rows)) + 2


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


def slowly(
    monkeypatch: pytest.MonkeyPatch, tiny_subject: Subject, folder: Path, batches: int, steps: int
) -> tuple[list[tuple[float, float]], float]:
    """A training in which a token takes 10 ms to read and a step half a second, by a clock of their own.

    Gives when a projection was made and what it said, and when the training was over.
    """
    subject, step, made = Counted(tiny_subject, seconds=0.01), SAETrainer.step, []

    def slow(self: SAETrainer, batch: torch.Tensor) -> object:
        subject.clock += 0.5
        return step(self, batch)

    def told(what: str, units: float, rate: float) -> None:
        made.append((subject.clock, project(what, units, rate)))

    with monkeypatch.context() as patched:
        patched.setattr("reasoning_features.dictionaries.training_buffers.BATCHES", batches)
        patched.setattr(SAETrainer, "step", slow)
        patched.setattr(streamed_training, "project", told)
        patched.setattr(streamed_training, "time", SimpleNamespace(monotonic=lambda: subject.clock))
        train(subject, folder, replace(RECIPE, tokens=steps * 64), RandomRows(n=200))
    return made, subject.clock


def test_the_time_is_told_once_from_a_whole_buffer(
    tiny_subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, end = slowly(monkeypatch, tiny_subject, tmp_path / "sae", 10, 60)
    ((when, said),) = made
    # 360 tokens held out and 640 of the first buffer are read, and 8 or 9 batches trained on
    assert 0.01 * 1000 + 7 * 0.5 < when <= 0.01 * 1000 + 10 * 0.5
    assert said == pytest.approx(end - when, rel=0.2)
    # one that goes on within a buffer is told the time of the next
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(streamed_training, "NEWEST_EVERY", 0.0)
        interrupted_at(patched, 5)
        slowly(patched, tiny_subject, tmp_path / "cut", 10, 60)
    made, end = slowly(monkeypatch, tiny_subject, tmp_path / "cut", 10, 60)
    ((when, said),) = made
    assert when > 0.01 * (1000 + 640) + 10 * 0.5 and said == pytest.approx(end - when, rel=0.2)
    # and one of a single buffer needs none
    assert slowly(monkeypatch, tiny_subject, tmp_path / "one", 64, 30)[0] == []


def test_a_training_that_a_cell_has_no_time_for(tiny_subject: Subject, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("reasoning_features.dictionaries.training_buffers.BATCHES", 10)
    monkeypatch.setenv(CELL_LIMIT, "0.000001")
    with pytest.raises(UserError, match=r"Training sae: about .* tokens/s, .* give make CELL_LIMIT=") as said:
        train(tiny_subject, tmp_path / "sae")
    assert not (tmp_path / "sae").exists() and "\n" not in str(said.value)
    monkeypatch.delenv(CELL_LIMIT)
    assert train(tiny_subject, tmp_path / "sae").is_dir()
    assert capsys.readouterr().out.count("measured just now") == 2


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
