"""What pruning does to a model: loss and divergence on held-out text, and tasks, a row a setting and unit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from reasoning_features.errors import UserError
from reasoning_features.models.subject import Subject
from reasoning_features.organism.problems import Split
from reasoning_features.runs.shards import Arrays
from reasoning_features.settings import Settings
from reasoning_features.sparsity.layers import CORRECTIONS, calibrate, fit, linear_layers, replaced, sparse
from reasoning_features.sparsity.patterns import CRITERIA, PRUNERS, AnyPattern, Statistics
from reasoning_features.sparsity.zero_shot import Item, correct
from reasoning_features.text.corpora import general_corpus

ACTIVATIONS, WEIGHTS = "activations", "weights"
CALIBRATION = 16  # sequences of the selection split that statistics are of, and corrections are fitted on


@dataclass(frozen=True)
class Setting:
    """One way of pruning a model."""

    pattern: AnyPattern
    what: str = ACTIVATIONS
    by: str = "ACT"  # a criterion of activations, or a pruner of weights
    correction: str = "none"
    which: str | tuple[int, ...] = "all"  # layers: all, of the MLPs alone, or of some blocks

    @property
    def row(self) -> dict[str, str]:
        """The setting in words, as columns of a table."""
        which = self.which if isinstance(self.which, str) else f"blocks {self.which[0]} to {self.which[-1]}"
        told = {"what": self.what, "by": self.by, "correction": self.correction, "layers": which}
        return {"pattern": str(self.pattern)} | told


@dataclass(frozen=True)
class Workbench:
    """A model with held-out text and tasks on which it is measured, dense and pruned."""

    subject: Subject
    windows: Tensor  # [n, t] token ids that statistics were not taken from
    statistics: Mapping[str, Statistics]  # by layer
    items: Mapping[str, Sequence[Item]] = field(default_factory=dict)

    @cached_property
    def dense(self) -> list[Tensor]:
        """Log-probabilities ``[t − 1, vocabulary]`` of the dense model in each window."""
        return [_log_probabilities(self.subject, window) for window in self.windows]

    @contextmanager
    def pruned(self, setting: Setting) -> Iterator[None]:
        """Inside, the model is pruned. UserError as :func:`linear_layers` and :func:`sparse` raise it."""
        layers = linear_layers(self.subject.model, setting.which)
        known = {name: self.statistics[name] for name in layers}
        if setting.what == WEIGHTS:
            prune = PRUNERS[setting.by]
            new = {n: prune(linear.weight, setting.pattern, known[n]) for n, linear in layers.items()}
            with replaced(layers, new):
                yield
            return
        corrections = {}
        if setting.correction != "none":
            make, criterion = CORRECTIONS[setting.correction], CRITERIA[setting.by]
            corrections = {name: [make(linear, known[name])] for name, linear in layers.items()}
            for name, (own,) in corrections.items():
                if own.learnt:
                    fit(layers[name], setting.pattern, known[name].inputs, [own], criterion)
        with sparse(layers, setting.pattern, CRITERIA[setting.by], corrections):
            yield

    def measured(self) -> Arrays:
        """As the model is now: mean loss and divergence from the dense model (nats a token) of each window
        ``[n]``, and of each task's items whether they are answered rightly.
        """
        found: dict[str, list[float]] = {"loss": [], "divergence": []}
        for window, dense in zip(self.windows, self.dense, strict=True):
            own = _log_probabilities(self.subject, window)
            found["loss"].append(float(nll_loss(own, window[1:].to(own.device))))
            found["divergence"].append(float(kl_div(own, dense, reduction="batchmean", log_target=True)))
        told = {name: np.array(values) for name, values in found.items()}
        return told | {name: correct(self.subject, items) for name, items in self.items.items()}


@torch.no_grad()
def _log_probabilities(subject: Subject, window: Tensor) -> Tensor:
    logits = subject.model(window[None].to(subject.device), use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1)


def load_workbench(
    settings: Settings, subject: Subject, n: int, items: Mapping[str, Sequence[Item]] | None = None
) -> Workbench:
    """A subject with ``n`` windows of the general text's evaluation split, and statistics of its selection
    split.
    """
    calibrated = text_windows(settings, subject, "selection", CALIBRATION).split(1)
    statistics = calibrate(subject.model, linear_layers(subject.model), calibrated, keep=CALIBRATION)
    return Workbench(subject, text_windows(settings, subject, "evaluation", n), statistics, items or {})


def text_windows(settings: Settings, subject: Subject, split: Split, n: int) -> Tensor:
    """Token ids ``[n, settings.context]``: the general text's documents end to end, cut into windows; as many
    as there are. UserError: not one.
    """
    corpus, length = general_corpus(settings, subject.tokenizer, split), settings.context
    if not (n := min(n, len(corpus.tokens) // length)):
        told = f"The general text's {split} split has fewer than {length} tokens"
        raise UserError(f"{told}: take more documents, or a shorter context.")
    return torch.from_numpy(corpus.tokens[: n * length].reshape(n, length).astype(np.int64))


def measured(workbench: Workbench, made: Sequence[Setting], shard: int) -> Arrays:
    """What a shard of a study holds: one setting's measures."""
    with workbench.pruned(made[shard]):
        return workbench.measured()


def as_table(made: Sequence[Setting], found: Sequence[Arrays]) -> pd.DataFrame:
    """A row a setting, measure and unit (window or item), with the ``value``."""
    parts = [
        pd.DataFrame({"measure": name, "unit": np.arange(len(values)), "value": values.astype(float)}).assign(
            **setting.row
        )
        for setting, arrays in zip(made, found, strict=True)
        for name, values in arrays.items()
    ]
    return pd.concat(parts, ignore_index=True)
