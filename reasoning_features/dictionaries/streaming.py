"""Training an autoencoder on activations that stream from a model, where they would not fit on a disk.

Texts are packed end to end into rows of tokens, as the released scripts do (TransformerLens'
``tokenize_and_concatenate``): joined by EOS, cut up, each row with BOS before it where the tokenizer has one.
Sources come in equal parts. Rows are read in a seeded order, as many at a time as hold 64 batches, and their
activations shuffled. A training that was interrupted goes on from its newest checkpoint with the very batches
it would have had, and ends in the same bytes.

SAELens' runner does not serve here: its store of activations knows no attention sinks and leaves its
half-used buffer and random state out of a checkpoint.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE, SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.dictionaries import training
from reasoning_features.dictionaries.autoencoder import dictionary_digest, save_autoencoder
from reasoning_features.dictionaries.training import HELD_OUT, Recipe, held_out_quality
from reasoning_features.errors import UserError
from reasoning_features.files import MADE, file_digests, read_json, write_json
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import SINK, no_sink, reading_key
from reasoning_features.settings import Settings, TextSource
from reasoning_features.text.corpora import TextRows, beginning, groups, open_texts, without_bos

BATCHES = 64  # batches that a buffer holds: 2 GB of 16-bit activations of width 4,096 at the paper's batch
SAVE_EVERY = 1200.0  # seconds from one checkpoint to the next
WEIGHTS, PROGRESS = "weights.safetensors", "progress.json"
COLUMNS = ["step", "tokens", "loss", "L0", "fraction of variance explained", "dead share"]  # of the history
# texts that are packed together, at least and at most; between these half as many as were packed before
FIRST_TEXTS, MOST_TEXTS = 50, 2000
Rows = NDArray[np.int32]
Place = tuple[int, int]  # the next batch: number of the buffer, number of the batch in it


# --- rows of tokens -----------------------------------------------------------------------------------------


def training_rows(settings: Settings, tokenizer: Any, sources: Sequence[TextSource], tokens: int) -> Rows:
    """Rows of token ids ``[n, settings.context]``, of the sources in turn, in an order drawn by the seed.

    Of a source with a ``split_column`` only rows for training are used. ``tokens`` are wanted of all sources
    together; there may be fewer, or some half more. UserError: no sources, one without a whole row, or token
    ids that the tokenizer does not have.
    """
    if not sources:
        raise UserError("There are no texts to train on: set `training_text`.")
    needed = -(-tokens // (settings.context * len(sources)))
    parts = []
    for source in sources:
        opened = open_texts(source)
        order = opened.order(settings.seed, "training" if source.split_column else None)
        if opened.tokens:
            rows = _token_rows(opened, order, tokenizer, settings.context)
        else:
            rows = _text_rows(opened, order, tokenizer, settings.context, needed)
            rows = np.random.default_rng([settings.seed, 1]).permutation(rows)
        if not len(rows):
            lacking = f"The rows of {source.dataset} do not fill one row of {settings.context} tokens"
            raise UserError(f"{lacking}: lower `context`.")
        parts.append(rows)
    n = min(map(len, parts))
    return np.stack([rows[:n] for rows in parts], axis=1).reshape(-1, settings.context)


def _token_rows(opened: TextRows, order: NDArray[np.int64], tokenizer: Any, context: int) -> Rows:
    """A column of token ids as it is; of longer rows first the beginnings of all."""
    rows = [row for numbers in groups(order) for row in opened.ids(numbers, tokenizer)]
    pieces = range(0, max(map(len, rows), default=0) - context + 1, context)
    cut = [[row[at : at + context] for row in rows if len(row) >= at + context] for at in pieces]
    return np.concatenate([np.empty((0, context), dtype=np.int32), *cut])


def _text_rows(opened: TextRows, order: NDArray[np.int64], tokenizer: Any, context: int, needed: int) -> Rows:
    """Texts in their order joined by EOS and cut into rows, some texts at a time until there are enough."""
    packed: list[Rows] = []
    start, first = 0, beginning(tokenizer)
    width = context - len(first)
    with tqdm(total=needed, desc=f"rows of {opened.name}", unit="row", leave=False) as bar:
        while start < len(order) and sum(map(len, packed)) < needed:
            texts = min(max(FIRST_TEXTS, start // 2), MOST_TEXTS)
            joined = np.concatenate(_encoded(opened, order[start : start + texts], tokenizer))
            n = len(joined) // width
            packed.append(np.hstack([np.tile(first, (n, 1)), joined[: n * width].reshape(n, width)]))
            bar.update(n)
            start += texts
    return np.concatenate(packed)


def _encoded(opened: TextRows, chosen: NDArray[np.int64], tokenizer: Any) -> list[Rows]:
    """The token ids of some texts, with EOS and without BOS; those that are empty are left out."""
    ids = [np.empty(0, dtype=np.int32)]
    for numbers in groups(chosen):
        texts = [without_bos(text, tokenizer) for text in opened.texts(numbers, tokenizer) if text]
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids += [np.asarray([*row.ids, tokenizer.eos_token_id], dtype=np.int32) for row in encoded]
    return ids


# --- their activations --------------------------------------------------------------------------------------


def ordinary(tokens: Tensor, special: Tensor) -> Tensor:
    """Tokens ``[b, t]`` to train on: neither special nor the first of a row, the attention sink."""
    kept = ~torch.isin(tokens, special)
    kept[:, 0] = False
    return kept


class Buffers:
    """The activations of rows of tokens at a subject's hook point, a buffer at a time.

    The first rows, a tenth at most, are held out; the others come again when they are through, shuffled
    otherwise. A forward pass reads at most ``batch_tokens`` ids. UserError: too few rows to hold some out.
    """

    def __init__(self, subject: Subject, rows: Rows, recipe: Recipe, batch_tokens: int) -> None:
        self._subject, self._rows, self._batch, self._steps = subject, rows, recipe.batch, recipe.steps
        self._seed = recipe.start(subject.short_name)
        self.place: Place = (0, 0)
        context = rows.shape[1]
        self._rows_at_once = max(1, batch_tokens // context)
        self._special = torch.tensor(sorted(subject.tokenizer.all_special_ids), dtype=torch.int64)
        self._held_out = min(-(-HELD_OUT // context), len(rows) // 10)
        if not self._held_out:
            raise UserError("Fewer than ten rows to train on: take more texts or a shorter context.")
        # of a short training no more is read than it needs, and a tenth to spare for what is left out
        batches = min(BATCHES, recipe.steps + recipe.steps // 10 + 2)
        self._size = min(max(1, batches * recipe.batch // context), len(rows) - self._held_out)

    def held_out(self) -> Tensor:
        """Activations ``[n, d]`` float32 that no batch holds, at most 8,192."""
        return self._read(self._rows[: self._held_out])[:HELD_OUT].float()

    def batches(self, done: int = 0) -> Iterator[Tensor]:
        """The batches ``[batch, d]`` float32 that are left from :attr:`place` on, ``done`` being before it.
        What a buffer holds beyond whole batches is left out.
        """
        while done < self._steps:
            number, first = self.place
            buffer = self.buffer(number)
            whole = len(buffer) // self._batch
            for i in range(first, min(whole, first + self._steps - done)):
                self.place = (number, i + 1) if i + 1 < whole else (number + 1, 0)
                yield buffer[i * self._batch : (i + 1) * self._batch].float()
            done += whole - first
            del buffer  # none is kept while another is read

    def buffer(self, number: int) -> Tensor:
        """Shuffled activations ``[n, d]`` of one buffer, in the model's precision and on its device;
        UserError where they are fewer than one batch.
        """
        chosen = (number * self._size + np.arange(self._size)) % (len(self._rows) - self._held_out)
        activations = self._read(self._rows[self._held_out + chosen])
        if len(activations) < self._batch:
            few = f"{len(activations):,} of {self._rows[chosen].size:,} tokens are neither special nor"
            few += f" attention sinks, fewer than one batch of {self._batch:,}"
            raise UserError(f"{few}: take more texts or a smaller train_batch.")
        drawn = np.random.default_rng([self._seed, number]).permutation(len(activations))
        return activations[torch.from_numpy(drawn).to(activations.device)]

    def _read(self, rows: Rows) -> Tensor:
        """Activations ``[n, d]`` of ordinary tokens but for sinks."""
        read = []
        parts = torch.from_numpy(rows.astype(np.int64)).split(self._rows_at_once)
        for part in tqdm(parts, desc="Reading activations", leave=False):
            residual = self._subject.residual(part)
            residual = residual[ordinary(part, self._special).to(residual.device)]
            read.append(residual[no_sink(residual)])
        return torch.cat(read)


# --- the training -------------------------------------------------------------------------------------------


def profile_autoencoders(settings: Settings, subject: Subject) -> dict[str, str]:
    """The profile's autoencoders, none twice: "default", "ReLU", "TopK", "second seed" → where each is. With
    ``train_saes`` the default is trained into ``data/<profile>/autoencoder``, unless it is there.
    """
    default = settings.autoencoder
    if settings.train_saes:
        folder = paths.RunPaths(settings.profile).data / "autoencoder"
        recipe = training.settings_recipe(settings)
        train_streamed(settings, subject, settings.training_text, recipe, folder)
        default = paths.relative(folder)
    others = {"ReLU": settings.autoencoder_relu, "TopK": settings.autoencoder_topk}
    others["second seed"] = settings.autoencoder_second
    return {"default": default} | {n: to for n, to in others.items() if to and to != settings.autoencoder}


def train_streamed(
    settings: Settings,
    subject: Subject,
    sources: Sequence[TextSource],
    recipe: Recipe,
    folder: Path,
    initial: SAE[Any] | None = None,
) -> None:
    """Train an autoencoder on a subject's activations on some texts; what is there already is kept.

    It goes on from ``initial``, if given, and comes into ``folder`` in SAELens' format, for raw activations,
    with ``training.csv`` and what it was made from. ``settings.checkpoints`` evenly spaced steps have a row
    of history and a checkpoint, beside one every twenty minutes: twelve bytes a weight, the newest in
    ``<folder>.training``. UserError: too few rows or tokens, another training there, or as training.steps.
    """
    key = reading_key(subject) | settings.model_dump(include={"context", "seed", "batch_tokens"})
    key |= {"texts": [source.model_dump() for source in sources], "sinks_from": SINK}
    key |= {"recipe": asdict(recipe), "device": torch.device(settings.device).type}
    key["initial"] = None if initial is None else dictionary_digest(initial)
    work, whole = (folder.with_name(folder.name + ending) for ending in (".training", ".whole"))
    if folder.exists():
        check_made(folder, key)
        shutil.rmtree(work, ignore_errors=True)
        return
    rows = training_rows(settings, subject.tokenizer, sources, recipe.tokens)
    key["rows"] = hashlib.sha256(rows.tobytes()).hexdigest()
    if (work / MADE).is_file():
        check_made(work, key)
    name, hook, device = subject.short_name, subject.hook_name, settings.device
    buffers = Buffers(subject, rows, recipe, settings.batch_tokens)
    held_out = buffers.held_out().to(device)
    with _fast_products(device):
        trainer = training.new_trainer(recipe, name, hook, buffers.buffer(0).cpu(), iter(()), device, initial)
        write_json(work / MADE, key)  # only once there is something to train
        history = _train(trainer, buffers, held_out, work, settings.checkpoints)
        sae = training.finished(trainer)
    save_autoencoder(sae, whole, {"training": pd.DataFrame(history, columns=COLUMNS)})
    write_json(whole / MADE, key | {"files": file_digests(whole)})
    os.replace(whole, folder)
    shutil.rmtree(work)


def _train(
    trainer: SAETrainer[Any, Any], buffers: Buffers, held_out: Tensor, work: Path, checkpoints: int
) -> list[dict[str, float]]:
    """All steps that are left, with checkpoints in ``work``; gives the history, a row at each spaced step."""
    history = _resume(trainer, buffers, work) or [held_out_quality(trainer, held_out)[0]]
    trainer.data_provider = buffers.batches(trainer.n_training_steps)
    total, saved = trainer.cfg.total_training_steps, time.monotonic()
    spaced = {round(total * i / (checkpoints + 1)) for i in range(1, checkpoints + 2)}
    for step in training.steps(trainer, spaced):
        if step in spaced:
            history.append(held_out_quality(trainer, held_out)[0])
        # where losses and weights were found finite
        if step in spaced or (step % training.LOOK == 0 and time.monotonic() - saved > SAVE_EVERY):
            _save(trainer, work, buffers.place, history)
            saved = time.monotonic()
    return history


def _save(trainer: SAETrainer[Any, Any], work: Path, place: Place, history: list[dict[str, float]]) -> None:
    """Writes everything that decides what comes next, whole or not at all, in place of what was there."""
    fresh, before = work / "checkpoint.new", list(work.glob("step-*"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    state = trainer.sae.state_dict().items()
    save_file({name: value.detach().cpu().contiguous() for name, value in state}, fresh / WEIGHTS)
    trainer.save_trainer_state(fresh)
    write_json(fresh / PROGRESS, {"place": place, "history": history})
    os.replace(fresh, work / f"step-{trainer.n_training_steps}")
    for folder in before:
        shutil.rmtree(folder)


def _resume(trainer: SAETrainer[Any, Any], buffers: Buffers, work: Path) -> list[dict[str, float]]:
    """Puts the trainer and its data where the newest checkpoint stands, if any; gives its history."""
    found = sorted(work.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    if not found:
        return []
    progress = read_json(found[-1] / PROGRESS)
    trainer.sae.load_state_dict(load_file(found[-1] / WEIGHTS))
    trainer.load_trainer_state(found[-1])
    buffers.place = tuple(progress["place"])
    return list(progress["history"])


def check_made(folder: Path, key: dict[str, Any]) -> None:
    """UserError where a training, or its checkpoint, was made from other things, or tells not what."""
    name = paths.relative(folder)
    try:
        found = read_json(folder / MADE)
    except (OSError, ValueError) as error:
        unread = f"{name} is there already, and what it was made from cannot be read in {MADE}"
        raise UserError(f"{unread}: delete it or choose another name.") from error
    if different := ", ".join(name for name in key if found.get(name) != key[name]):
        raise UserError(f"{name} is of a training with another {different}: delete it or choose another.")


@contextlib.contextmanager
def _fast_products(device: str) -> Iterator[None]:
    """On a GPU float32 matrices are multiplied with its matrix units (TF32), several times as fast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if torch.device(device).type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
