"""Training an autoencoder from the sample on disk, against the same from memory and another trainer."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from reasoning_features import paths
from reasoning_features.bench.setting import Setting, Sizes
from reasoning_features.bench.timing import Bar, Row, compared, in_turn
from reasoning_features.dictionaries.training import Recipe, new_trainer
from reasoning_features.residual_stream import activations
from reasoning_features.residual_stream.activations import Moments, shuffled_batches

PEERS = "build/bench-peers/bin/python"
"""The interpreter of the environment whose dependencies clash with this one's; ``make bench`` makes it."""
PEER = Path(__file__).with_name("dictionary_learning_peer.py")


def recipe_of(setting: Setting, tokens: int) -> Recipe:
    """The profile's recipe for so many tokens."""
    settings = setting.settings
    rate, batch = settings.learning_rate, min(settings.train_batch, tokens)
    return Recipe("relu", settings.d_sae, tokens, rate, batch, settings.seed, l1=settings.l1)


def train(setting: Setting, recipe: Recipe, residual: Tensor) -> float:
    """SAELens' trainer to its end on activations in memory ``[n, d]``; gives the tokens it took."""
    data = shuffled_batches(residual, recipe.batch, recipe.seed)
    name, hook = setting.settings.subject, setting.subject.hook_name
    trainer = new_trainer(recipe, name, hook, Moments.of(residual), data, "cpu")
    trainer.fit()
    return float(recipe.steps * recipe.batch)


def rows(setting: Setting, sizes: Sizes) -> list[Row]:
    """From disk against from memory; dictionary_learning beside it, where its environment is there."""
    recipe = recipe_of(setting, sizes.train_tokens)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "sample"
        activations.harvest(
            setting.subject, setting.corpus, place, setting.settings.batch_tokens, progress=False
        )
        residual = activations.load_sample(place).residual

        def from_disk() -> float:
            return train(setting, recipe, activations.load_sample(place).residual)

        def from_memory() -> float:
            return train(setting, recipe, residual)

        pairs = in_turn(from_disk, from_memory, sizes.runs)
        told = f"{recipe.steps} steps of {recipe.batch:,}, {recipe.d_sae} features, width {residual.shape[1]}"
        what, bar = "SAE training from disk, checksums included", Bar("at most", 1.05)
        against = "the same trainer on tensors in memory"
        times = recipe.tokens / len(residual)
        note = f"{len(residual):,} activations are read once and trained on {times:.1f} times"
        found = [compared(what, against, pairs, "time", bar, told, note)]
        if paths.resolve(PEERS).is_file():
            found.append(_beside_dictionary_learning(from_memory, residual, recipe, sizes, told))
    return found


def _beside_dictionary_learning(ours: Any, residual: Tensor, recipe: Recipe, sizes: Sizes, told: str) -> Row:
    """dictionary_learning's StandardTrainer, in a process of its own environment that waits in between."""
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "residual.safetensors"
        save_file({"residual": residual.contiguous()}, stored)
        command = [str(paths.resolve(PEERS)), str(PEER), str(stored)]
        command += [str(number) for number in (recipe.d_sae, recipe.batch, recipe.steps)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, text=True, **pipes) as peer:  # type: ignore[call-overload]
            version = peer.stdout.readline().strip()

            def theirs() -> float:
                peer.stdin.write("train\n")
                peer.stdin.flush()
                return float(peer.stdout.readline())

            pairs = in_turn(ours, theirs, sizes.runs)
            peer.stdin.close()
    note = "a process of another environment, run in turn; a standard autoencoder of the same size"
    against = f"dictionary_learning {version}"
    return compared("SAE training with SAELens, from memory", against, pairs, "speed", None, told, note)
