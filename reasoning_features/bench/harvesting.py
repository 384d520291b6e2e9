"""Harvesting to disk against the plain model, cut off behind the same block."""

from __future__ import annotations

import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from reasoning_features.bench.setting import Setting, Sizes
from reasoning_features.bench.timing import Bar, Row, compared, in_turn
from reasoning_features.residual_stream import activations


def truncated(setting: Setting) -> Any:
    """The Hugging Face model with its blocks up to the hook point alone; no weight is copied."""
    whole: Any = setting.subject.model.base_model
    model = copy.copy(whole)
    model._modules = dict(whole._modules)
    model.layers = whole.layers[: setting.subject.layer + 1]
    return model


def rows(setting: Setting, sizes: Sizes) -> list[Row]:
    """Tokens a second of a harvest, written with its checksums, against the truncated model's."""
    batches = list(setting.corpus.batches(setting.settings.batch_tokens))
    model, size = truncated(setting), setting.settings.batch_tokens

    def harvested() -> float:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "sample"
            activations.harvest(setting.subject, setting.corpus, place, size, progress=False)
            shutil.rmtree(place)
        return float(setting.tokens)

    @torch.no_grad()
    def plain() -> float:
        for batch in batches:
            model(input_ids=batch.tokens, use_cache=False)
        return float(setting.tokens)

    pairs = in_turn(harvested, plain, sizes.runs)
    sizes_told = f"{setting.tokens:,} tokens, {len(batches)} batches of up to {size:,}"
    against = f"Hugging Face's model of {setting.subject.layer + 1} blocks, nothing kept"
    told = "harvesting to disk, with checksums"
    return [compared(told, against, pairs, "speed", Bar("at least", 0.95), sizes_told)]
