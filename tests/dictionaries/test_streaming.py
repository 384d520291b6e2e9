"""Streamed training: what is read, that interruptions leave no trace, and that it is the training it says."""

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import miniatures as mini
import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE, SAETrainer
from tiny import contents, damage, file_times, write_rows

from reasoning_features.dictionaries import streaming, training
from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.dictionaries.streaming import Buffers, ordinary, train_streamed, training_rows
from reasoning_features.dictionaries.training import Recipe, new_trainer
from reasoning_features.errors import CorruptArtefact, UserError
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.settings import TextSource, load_settings

TALKS = TextSource(dataset=mini.LMSYS, column="conversation")
SLIM = TextSource(dataset=mini.SLIM)
PIECES = 6  # that the miniatures' conversations are packed in


def rows_of(tokenizer, *sources, tokens=100_000, context=32, **more):
    settings = load_settings("smoke", corpus="text", context=context, **more)
    return training_rows(settings, tokenizer, sources, tokens)


def test_token_ids_are_used_as_they_are_longer_rows_cut_up(tmp_path, tokenizer):
    rows = [{"ids": ids and list(range(ids))} for ids in (70, 40, 5, None)]
    source = TextSource(dataset=write_rows(tmp_path / "ids.jsonl", rows), column="ids")
    packed = rows_of(tokenizer, source)
    assert sorted(packed.tolist()) == [list(range(32)), list(range(32)), list(range(32, 64))]


@pytest.mark.parametrize("bos", [True, False])
def test_texts_are_packed_with_eos_between_and_bos_before_each_row(hub, tokenizer, bos):
    if not bos:
        tokenizer = deepcopy(tokenizer)
        tokenizer.bos_token = None
    rows = rows_of(tokenizer, TALKS, tokens=10**9)
    assert rows.shape == (len(rows), 32) and rows.dtype == np.int32
    tokens = torch.from_numpy(rows)
    begun = tokens == tokenizer.convert_tokens_to_ids(mini.BOS)
    assert begun[:, 0].all() if bos else not begun.any()
    assert not begun[:, 1:].any()
    texts = [mini.render(turns) for turns in mini.conversations()]
    lengths = sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    assert 0 <= lengths - int((~begun).sum()) < 32 * PIECES  # of each piece less than a row is left over


def test_only_rows_for_training_where_a_column_tells_splits(tmp_path, tokenizer):
    splits = "training", "selection", "evaluation"
    told = [{"text": f"Wait {i}. " * 20, "ids": [i + 300] * 64, "split": splits[i % 3]} for i in range(60)]
    given = {"dataset": write_rows(tmp_path / "split.jsonl", told), "split_column": "split"}
    sources = [TextSource(column=each, **given) for each in ("text", "ids")]
    held, ids = (rows_of(tokenizer, source).ravel().tolist() for source in sources)
    assert {int(number) % 3 for number in re.findall(r"Wait (\d+)\.", tokenizer.decode(held))} == {0}
    assert len(ids) == 2 * 20 * 32 and {(i - 300) % 3 for i in ids} == {0}


def test_sources_come_in_turn(hub, tokenizer):
    both, *alone = (rows_of(tokenizer, *sources) for sources in ((TALKS, SLIM), (TALKS,), (SLIM,)))
    for k, each in enumerate(alone):
        assert set(map(tuple, both[k::2].tolist())) <= set(map(tuple, each.tolist()))
    assert len(both) == 2 * min(map(len, alone))


def test_what_cannot_be_packed_is_told(tmp_path, tokenizer):
    for text, said in (
        ("Wait", "do not fill one row of 32 tokens"),
        ([5] * 31, "do not fill one row of 32 tokens"),
        ([5, 900_000] * 40, "holds the token id 900000"),
    ):
        file = write_rows(tmp_path / "short.jsonl", [{"text": text}])
        with pytest.raises(UserError, match=said):
            rows_of(tokenizer, TextSource(dataset=file))
    with pytest.raises(UserError, match="set `training_text`"):
        rows_of(tokenizer)


RECIPE = Recipe("relu", d_sae=48, tokens=30 * 64, learning_rate=1e-2, batch=64, l1=0.1)
SETTINGS = load_settings("smoke", batch_tokens=64, checkpoints=2)


def random_rows(n: int = 60, seed: int = 0) -> np.ndarray:
    """Rows of 16 random tokens of the tiny model; 0 and 1 are BOS and EOS."""
    return np.random.default_rng(seed).integers(0, 40, size=(n, 16), dtype=np.int32)


ROWS = random_rows()


def train(subject: Subject, folder: Path, recipe: Recipe = RECIPE, rows=ROWS, **options) -> Path:
    """Train on these rows in the place of some texts'."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(streaming, "training_rows", lambda *_: rows)
        train_streamed(SETTINGS, subject, [], recipe, folder, **options)
    return folder


@pytest.fixture(scope="module", params=["relu", "topk"])
def recipe(request):
    return replace(RECIPE, architecture=request.param, k=4)


@pytest.fixture(scope="module")
def uninterrupted(tiny_subject, recipe, tmp_path_factory):
    return contents(train(tiny_subject, tmp_path_factory.mktemp("whole") / "sae", recipe))


def interrupted_at(monkeypatch: pytest.MonkeyPatch, calls: int, method: str = "step") -> None:
    """The user interrupts at the ``calls``-th call of a method of SAELens' trainer from now."""
    left, called = iter(range(1, calls)), getattr(SAETrainer, method)

    def interrupting(self: SAETrainer, given: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return called(self, given)

    monkeypatch.setattr(SAETrainer, method, interrupting)


@pytest.mark.parametrize(
    ("every", "method", "interruptions"),
    [(0.0, "step", [2, 9, 1]), (1e9, "save_trainer_state", [2])],  # the second while a checkpoint is written
)
def test_interruptions_leave_no_trace(
    tiny_subject, recipe, uninterrupted, tmp_path, monkeypatch, every, method, interruptions
):
    monkeypatch.setattr(streaming, "SAVE_EVERY", every)
    monkeypatch.setattr(training, "LOOK", 1)
    for calls in interruptions:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            interrupted_at(patched, calls, method)
            train(tiny_subject, tmp_path / "sae", recipe)
        assert not (tmp_path / "sae").exists()
    torch.manual_seed(1)  # the global stream has no say
    assert contents(train(tiny_subject, tmp_path / "sae", recipe)) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_it_goes_on_from_before_the_first_loss_that_is_not_finite(
    tiny_subject, recipe, uninterrupted, tmp_path, monkeypatch
):
    step, bad = SAETrainer.step, {12: torch.nan}
    monkeypatch.setattr(SAETrainer, "step", lambda s, batch: step(s, batch * bad.get(s.n_training_steps, 1)))
    with pytest.raises(UserError, match="The loss of step 13 is not finite: lower `learning_rate`; what was"):
        train(tiny_subject, tmp_path / "sae", recipe)
    assert [path.name for path in (tmp_path / "sae.training").glob("step-*")] == ["step-10"]
    bad.clear()
    assert contents(train(tiny_subject, tmp_path / "sae", recipe)) == uninterrupted


def test_it_is_the_plain_training_on_the_same_batches(tiny_subject, recipe, uninterrupted, tmp_path):
    name, hook = tiny_subject.short_name, tiny_subject.hook_name
    buffers = Buffers(tiny_subject, ROWS, recipe, 64)
    trainer = new_trainer(recipe, name, hook, buffers.buffer(0), buffers.batches(), "cpu")
    trainer.fit().save_inference_model(tmp_path)
    assert (tmp_path / "sae_weights.safetensors").read_bytes() == uninterrupted["sae_weights.safetensors"]


def test_what_is_written(tiny_subject, tmp_path):
    recipe = replace(RECIPE, tokens=200 * 64, l1=0.01)
    folder = train(tiny_subject, tmp_path / "sae", recipe)
    sae = SAE.load_from_disk(folder).requires_grad_(False)
    table = pd.read_csv(folder / "training.csv")
    assert table["step"].tolist() == [0, 67, 133, 200]
    # on raw activations that no step has seen it explains what the history says
    x = Buffers(tiny_subject, ROWS, recipe, 64).held_out()
    explained = 1 - (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert float(explained) == pytest.approx(table["fraction of variance explained"].iloc[-1], abs=1e-3)
    assert float(explained) > 0.8
    # what is there is kept; going on from it starts where it stood
    before = file_times(folder)
    train(tiny_subject, folder, recipe)
    assert file_times(folder) == before
    further = train(tiny_subject, tmp_path / "further", RECIPE, initial=sae)
    start = pd.read_csv(further / "training.csv").iloc[0]
    assert start["fraction of variance explained"] == pytest.approx(float(explained), abs=1e-3)


def test_a_model_in_half_the_bits_and_an_autoencoder_in_all(tiny_llama, tmp_path):
    subject = load_subject(str(tiny_llama), 1, dtype="bfloat16")
    buffers = Buffers(subject, ROWS, RECIPE, 64)
    assert next(buffers.batches()).dtype == buffers.held_out().dtype == torch.float32
    sae = SAE.load_from_disk(train(subject, tmp_path / "sae"))
    assert sae.W_dec.dtype == torch.float32 and sae.cfg.metadata.recipe["tokens"] == RECIPE.tokens
    with pytest.raises(UserError, match="of a training with another dtype: delete it"):
        train(load_subject(str(tiny_llama), 1), tmp_path / "sae")


def kept(tokens: torch.Tensor) -> torch.Tensor:
    """Which of the rows' tokens are trained on: neither BOS nor EOS nor the first of a row."""
    return ordinary(tokens, torch.tensor([0, 1]))


def test_no_batch_holds_what_is_held_out_and_all_else_comes_again_in_another_order(tiny_subject):
    rows = torch.from_numpy(ROWS).long()
    buffers = Buffers(tiny_subject, ROWS, replace(RECIPE, tokens=40 * 64), 64)
    # six rows of sixty are held out, without their special tokens
    assert len(buffers.held_out()) == int(kept(rows[:6]).sum())
    taken, whole = [(batch, buffers.place) for batch in buffers.batches()], int(kept(rows[6:]).sum()) // 64
    assert [after for _, after in taken[:whole]] == [*((0, i) for i in range(1, whole)), (1, 0)]
    first, again = (torch.cat([batch for batch, _ in taken[at : at + whole]]) for at in (0, whole))
    assert len(taken) == 40 and not torch.equal(first, again)
    every = torch.cat([tiny_subject.residual(part)[kept(part)] for part in rows[6:].split(4)])
    nearest = torch.cdist(first.double(), every.double()).min(1)
    assert float(nearest.values.max()) < 1e-3 and len(nearest.indices.unique()) > 0.9 * len(first)


def test_attention_sinks_are_no_batch(tiny_subject, monkeypatch):
    residual = Subject.residual

    def with_sinks(self, tokens):
        stream = residual(self, tokens)
        stream[:, [0, 5]] *= 100.0
        return stream

    buffers = Buffers(tiny_subject, ROWS, replace(RECIPE, tokens=6 * 64), 64)
    usual = float(buffers.buffer(0).norm(dim=1).mean())
    monkeypatch.setattr(Subject, "residual", with_sinks)
    assert all(float(batch.norm(dim=1).max()) < 5 * usual for batch in buffers.batches())


def test_another_training_is_not_taken_for_this_one_and_damage_is_named(tiny_subject, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        interrupted_at(patched, 15)
        train(tiny_subject, tmp_path / "sae")
    with pytest.raises(UserError, match=r"sae.training is of a training with another rows: delete it"):
        train(tiny_subject, tmp_path / "sae", rows=random_rows(seed=1))
    folder = train(tiny_subject, tmp_path / "sae")
    with pytest.raises(UserError, match="sae is of a training with another recipe"):
        train(tiny_subject, folder, replace(RECIPE, l1=0.2))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="other is there already, and what it was made from cannot be read"):
        train(tiny_subject, tmp_path / "other")

    damage(folder / "sae_weights.safetensors")
    with pytest.raises(CorruptArtefact, match=r"sae_weights\.safetensors is damaged .*train_saes=true"):
        load_autoencoder(str(folder), tiny_subject.d_model)


def test_too_little_to_train_on(tiny_subject, tmp_path):
    with pytest.raises(UserError, match="attention sinks, fewer than one batch of 640"):
        train(tiny_subject, tmp_path / "sae", replace(RECIPE, batch=640), ROWS[:12])
    with pytest.raises(UserError, match="Fewer than ten rows"):
        train(tiny_subject, tmp_path / "sae", rows=ROWS[:8])
    with pytest.raises(UserError, match="raise train_tokens"):
        train(tiny_subject, tmp_path / "sae", replace(RECIPE, tokens=60))
    assert not list(tmp_path.iterdir())
