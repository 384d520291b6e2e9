"""Ways of pruning a model, and what they do to it: loss and divergence on held-out text, and tasks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import Condition
from reasoning_features.models.subject import Subject
from reasoning_features.organism.problems import Split
from reasoning_features.runs.shards import Arrays
from reasoning_features.settings import Settings
from reasoning_features.sparsity import harness, zero_shot
from reasoning_features.sparsity.layers import CORRECTIONS, calibrate, fit, linear_layers, replaced, sparse
from reasoning_features.sparsity.patterns import (
    CRITERIA,
    PRUNERS,
    AnyPattern,
    Pattern,
    Statistics,
    Unstructured,
)
from reasoning_features.steering.answering import answers
from reasoning_features.steering.questions import COMMON, Questions, load_questions
from reasoning_features.steering.steering_study import going_on
from reasoning_features.text.corpora import TEXT, general_corpus, reasoning_corpus
from reasoning_features.truth.benchmark import Variant

ACTIVATIONS, WEIGHTS = "activations", "weights"
KEPT = 4096  # tokens whose inputs are kept, for SparseGPT
LEARNT = ("L-PTS", "scale", "shift", "R-Sparse")  # corrections that are fitted
STEERED = (0.1, 0.3)  # lengths of the vector that steers problems, in mean norms of the stream
ENOUGH = 128  # sequences to fit on (released: 256): with few, what is learnt stays where it starts
# criteria without a setting of their own: the plain one, and the one that reads other texts of a batch, for
# texts come one at a time
LEFT_OUT = ("ACT", "CLACT, published")


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
        return {"pattern": "dense" if self == DENSE else str(self.pattern)} | told


DENSE = Setting(Pattern(1, 1))
PATTERNS = (Pattern(2, 4), Pattern(4, 8), Pattern(8, 16), Pattern(16, 32))
HALF, MOST = Unstructured(0.5), Unstructured(0.3)
COMPARED = (Pattern(2, 4), Pattern(8, 16))  # at which ways of pruning are compared
BY_PATTERN = (DENSE, *(Setting(pattern) for pattern in (*PATTERNS, HALF, MOST)))


def grid(n_blocks: int, learnt: bool) -> list[Setting]:
    """Every setting of a study; ``learnt``: with the corrections that are fitted."""
    parts: list[str | tuple[int, ...]] = ["mlp", *thirds(n_blocks)]
    ways = [name for name in CORRECTIONS if learnt or name not in LEARNT]
    return [
        *BY_PATTERN,
        *(Setting(pattern, WEIGHTS, by) for by in PRUNERS for pattern in (*PATTERNS, HALF)),
        *(Setting(pattern, by=by) for by in CRITERIA if by not in LEFT_OUT for pattern in COMPARED),
        *(Setting(pattern, correction=name) for name in ways for pattern in COMPARED),
        *(Setting(pattern, which=which) for which in parts for pattern in COMPARED),
    ]


def thirds(n_blocks: int) -> list[tuple[int, ...]]:
    """The blocks of a model in three parts by depth; fewer where there are fewer blocks."""
    parts = [tuple(map(int, part)) for part in np.array_split(np.arange(n_blocks), 3)]
    return [part for part in parts if part]


def has_tasks(setting: Setting) -> bool:
    """Whether tasks are asked under a setting: of all patterns, and of weights where they are compared."""
    return setting in BY_PATTERN or (setting.pattern in COMPARED and setting.by in ("magnitude", "Wanda"))


def is_bridged(setting: Setting) -> bool:
    """Whether features are read under a setting: of the patterns N:M, and of parts of the depth at 2:4."""
    at_depth = setting.pattern == PATTERNS[0] and isinstance(setting.which, tuple)
    return at_depth or (setting in BY_PATTERN and isinstance(setting.pattern, Pattern))


@dataclass(frozen=True)
class Workbench:
    """A model with held-out text on which it is measured, dense and pruned."""

    subject: Subject
    texts: list[Tensor]  # [n][t] token ids that statistics were not taken from
    starts: list[int]  # [n] the first token of each whose prediction counts
    dense: list[Tensor]  # [n][t − start, vocabulary] the dense model's log-probabilities, on the CPU
    calibration: list[Tensor]  # [m][t] token ids that statistics were taken from
    statistics: dict[str, Statistics]  # by layer

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
        corrections, criterion = {}, CRITERIA[setting.by]
        if setting.correction != "none":
            make = CORRECTIONS[setting.correction]
            batches = [text[None] for text in self.calibration]
            corrections = {name: [make(linear, known[name])] for name, linear in layers.items()}
            if setting.correction in LEARNT:
                fit(self.subject.model, layers, setting.pattern, corrections, batches, criterion)
        with sparse(layers, setting.pattern, criterion, corrections):
            yield

    def measured(self) -> Arrays:
        """As the model is now: mean loss and divergence from the dense model (nats a token) of each text
        ``[n]``.
        """
        found: dict[str, list[float]] = {"loss": [], "divergence": []}
        for text, start, dense in zip(self.texts, self.starts, self.dense, strict=True):
            own = _log_probabilities(self.subject, text, start)
            found["loss"].append(float(nll_loss(own, text[start:].to(own.device))))
            apart = kl_div(own, dense.to(own.device), reduction="batchmean", log_target=True)
            found["divergence"].append(float(apart))
        return {name: np.array(values) for name, values in found.items()}


@torch.no_grad()
def _log_probabilities(subject: Subject, text: Tensor, start: int) -> Tensor:
    logits = subject.model(text[None].to(subject.device), use_cache=False).logits[0, start - 1 : -1]
    return logits.float().log_softmax(-1)


def load_workbench(settings: Settings, subject: Subject, n: int) -> Workbench:
    """A dense model with ``n`` texts of the evaluation split, and statistics of the selection split's."""
    calibration, _ = load_texts(settings, subject, "selection", settings.sparsity_calibration)
    keep = 1 + int(np.searchsorted(np.cumsum([len(text) for text in calibration]), KEPT))
    batches, layers = [text[None] for text in calibration], linear_layers(subject.model)
    statistics = calibrate(subject.model, layers, batches, keep)
    texts, starts = load_texts(settings, subject, "evaluation", n)
    pairs = zip(texts, starts, strict=True)
    dense = [_log_probabilities(subject, text, start).cpu() for text, start in pairs]
    return Workbench(subject, texts, starts, dense, calibration, statistics)


def load_texts(settings: Settings, subject: Subject, split: Split, n: int) -> tuple[list[Tensor], list[int]]:
    """Token ids of ``n`` texts, as many as there are, and the first token of each that is to be predicted.

    They are windows of ``settings.context``, each of another text of the general corpus; what is shorter is
    left out. The organism, which never predicts a prompt, has its traces. UserError: fewer than two.
    """
    real, documents = settings.corpus == TEXT, n
    read = general_corpus if real else reasoning_corpus
    whole = settings.context if real else 1  # tokens
    corpus = read(settings, subject.tokenizer, split, documents=documents)
    while corpus.n_documents == documents and (np.diff(corpus.starts) >= whole).sum() < n:
        documents *= 2  # there may be more
        corpus = read(settings, subject.tokenizer, split, documents=documents)
    parts = np.split(np.arange(corpus.n_tokens), corpus.starts[1:-1])
    parts = [part for part in parts if len(part) >= whole][:n]
    if len(parts) < 2:
        told = f"Fewer than two of the general text's {split} texts have {whole} tokens"
        raise UserError(f"{told}: take longer ones, or a shorter context.")
    starts = [1 if real else int(np.argmax(corpus.thinking[part])) for part in parts]
    return [torch.from_numpy(corpus.tokens[part].astype(np.int64)) for part in parts], starts


def load_tasks(settings: Settings, subject: Subject) -> list[Callable[[], Arrays]]:
    """What the settings ask of the model as it is: zero-shot tasks (which items are answered rightly), and
    problems, whose answers are right or not and take so many tokens of thinking, ``steered`` too.
    """
    n, made = settings.zero_shot_items, list[Callable[[], Arrays]]()
    for task in settings.zero_shot:
        made.append(partial(_named, task, zero_shot.correct, subject, zero_shot.load_items(task, n)))
    made += [partial(_named, task, harness.answered, subject, task, n) for task in settings.harness]
    if settings.sparsity_problems:
        norm, direction = going_on(Variant(settings, subject, None))
        steered = (
            []
            if direction is None
            else [Condition(f"steered at {share:g}", vector=share * norm * direction) for share in STEERED]
        )
        made.append(partial(_solved, settings, subject, steered))
    return made


def _named(name: str, ask: Callable[..., Any], *given: Any) -> Arrays:
    return {name: ask(*given)}


def load_problems(settings: Settings, subject: Subject) -> Questions:
    """The problems of the evaluation split that a study asks, as many as the settings say."""
    n, start = settings.sparsity_problems, settings.shown_start
    return load_questions(settings, subject.tokenizer, "evaluation", n, start)


def _solved(settings: Settings, subject: Subject, steered: Sequence[Condition]) -> Arrays:
    answered = answers(subject, load_problems(settings, subject), steered, settings.seed, progress=None)
    parts = answered.groupby("condition", sort=False)
    return {f"{name}: {what}": own[what].to_numpy() for name, own in parts for what in COMMON}
