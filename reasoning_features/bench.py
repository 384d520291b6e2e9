"""`make bench`: what the companion's bulk work costs, as ratios to other ways of doing it.

Two ways are run in turn in one process, after a warm-up; how time and memory grow is measured in processes
of their own. With ``--device`` the same work is run at the shape of the paper's model with random weights: no
time depends on them but by the number of active features, which is the paper's. Tables: ``figures/bench``.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gc
import hashlib
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import encoded, load_autoencoder
from reasoning_features.dictionaries.training import Recipe, new_trainer, settings_recipe
from reasoning_features.files import file_digest, write_between, write_json, write_text
from reasoning_features.interpretation.features import ActivatingExamples
from reasoning_features.models.conditions import Condition, feature_conditions
from reasoning_features.models.sampling import TEMPERATURE, TOP_P
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.reporting.plots import write_csv
from reasoning_features.reporting.tables import to_markdown
from reasoning_features.residual_stream.activations import (
    collect,
    harvest,
    load_sample,
    shuffled_batches,
    stream,
)
from reasoning_features.runs.preflight import check_device
from reasoning_features.runs.provenance import versions
from reasoning_features.scoring.feature_statistics import FeatureStatistics, accumulate, one_pass
from reasoning_features.settings import Settings, load_settings
from reasoning_features.steering.answering import Asked
from reasoning_features.steering.questions import Questions, load_questions
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.text.corpus import Corpus, TokenBatch
from reasoning_features.text.words import ALL, TokenSets, token_sets

BEGIN, END = "<!-- bench: written by make bench -->", "<!-- bench: end -->"
SHOWN = ["what", "against", "measure", "ratio", "lowest", "highest", "runs", "bar", "met", "sizes", "note"]
CAPTION = (
    "Ratios of pairs run in turn in one process, after a warm-up: median, lowest and highest. Absolute times "
    "are the machine's; the ratios are what is compared."
)
GROWTH = "Time and peak memory of a pass against tokens, each run in a process of its own."
PAPER_FEATURES, PAPER_L0 = 65_536, 86
AT_ONCE = 48  # features for which the released script runs the model over the data once (its feature_batch)
EXAMPLES = 12  # activating examples kept of each feature


# --- two ways in turn ---------------------------------------------------------------------------------------

Work = Callable[[], float]  # does something once and returns how much of it was done, such as tokens
Bar = tuple[Literal["≤", "≥"], float]  # what a ratio is held to


def in_turn(
    ways: Sequence[Work], runs: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Rates a second of each way, run by run: each once to warm up, then ``runs`` rounds in turn."""
    rates: list[list[float]] = [[] for _ in ways]
    for counts in [False] + [True] * runs:
        for way, kept in zip(ways, rates, strict=True):
            start = clock()
            done = way()
            if counts:
                kept.append(done / (clock() - start))
    return rates


def row(
    what: str, against: str, measure: str, ratios: Sequence[float], bar: Bar | None, sizes: str,
    note: str = "",
) -> dict[str, Any]:  # fmt: skip
    """One comparison: the median of its ratios, their extremes, and whether the bar is met."""
    ratio, met = median(ratios), ""
    if bar is not None:
        met = "yes" if (ratio <= bar[1] if bar[0] == "≤" else ratio >= bar[1]) else "missed"
    return {
        "what": what, "against": against, "measure": measure,
        "ratio": ratio, "lowest": min(ratios), "highest": max(ratios), "runs": len(ratios),
        "bar": f"{bar[0]} {bar[1]:g}" if bar else "", "met": met, "sizes": sizes, "note": note,
    }  # fmt: skip


def compared(
    what: str, against: str, rates: Sequence[Sequence[float]], measure: Literal["time", "speed"],
    bar: Bar | None, sizes: str, note: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The row of our rates and theirs from :func:`in_turn`, its ratios being of time or of speed."""
    ours, theirs = rates
    ratios = [a / b if measure == "speed" else b / a for a, b in zip(ours, theirs, strict=True)]
    found = row(what, against, f"{measure}, ours / theirs", ratios, bar, sizes, note)
    return found | {"ours per s": median(ours), "theirs per s": median(theirs)}


# --- what is benchmarked ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How much each comparison does."""

    documents: int = 600  # scored and harvested; some 70 tokens each
    runs: int = 5  # pairs that count
    wide: int = 4096  # features of the wider autoencoder
    released_passes: int = 3  # of the released procedure that are run; the rest is reckoned
    train_tokens: int = 204_800
    problems: int = 32  # answered under each condition
    features: int = 8  # these times the strengths are the conditions
    strengths: int = 8
    few: int = 2  # conditions of the peers that are run; the rest would be as many runs more
    documents_by_step: tuple[int, ...] = (1000, 2000, 4000)  # of the runs in processes of their own


@dataclass(frozen=True)
class Organism:
    """The organism, its shipped autoencoder, reasoning documents, and R's sets: all tokens, R, its words."""

    settings: Settings
    subject: Subject
    sae: Any
    corpus: Corpus
    sets: TokenSets

    @staticmethod
    def load(documents: int) -> Organism:
        """The organism with so many reasoning documents."""
        settings = load_settings("organism")
        subject = load_subject(settings.subject, settings.layer)
        sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
        corpus = reasoning_corpus(settings, subject.tokenizer, "selection", documents=documents)
        sets = token_sets(corpus, subject.tokenizer, {"R": settings.words}, [settings.window])
        return Organism(settings, subject, sae, corpus, sets)

    @property
    def tokens(self) -> int:
        """Tokens that count."""
        return int((~self.corpus.special).sum())

    def batches(self) -> list[TokenBatch]:
        """The corpus in forward passes."""
        return list(self.corpus.batches(self.settings.batch_tokens))

    def stream(self) -> Iterator[Any]:
        """Activations of the corpus, batch by batch."""
        return stream(self.subject, self.corpus, self.settings.batch_tokens)


def random_autoencoder(
    residual: Tensor, d_sae: int, active: float | None = None, device: str = "cpu"
) -> StandardSAE:
    """``d_sae`` random directions, of which ``active`` are active on a token of activations ``[n, d]``.

    By default the paper's L0 times the square root of ``d_sae``'s part of its features: 22 of 4,096.
    """
    wanted = PAPER_L0 * (d_sae / PAPER_FEATURES) ** 0.5 if active is None else active
    width, some = residual.shape[1], residual[:256].float().to(device)
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=d_sae, device=device)).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    directions = torch.randn(width, d_sae, generator=generator, device=device)
    sae.W_enc.data = directions / directions.norm(dim=0)
    sae.W_dec.data = sae.W_enc.data.T.contiguous()
    sae.b_dec.data.zero_()
    before = some @ sae.W_enc.data
    sae.b_enc.data = -before.mean(0)
    deviations = (before + sae.b_enc.data).flatten()
    sae.b_enc.data -= deviations.kthvalue(max(1, int(len(deviations) * (1 - wanted / d_sae)))).values
    return sae


# --- ReasonScore --------------------------------------------------------------------------------------------


def statistics(given: Organism, sae: Any) -> FeatureStatistics:
    """Our pass: sums of all features over all sets."""
    return accumulate(given.stream(), sae, given.sets)


def _residuals(given: Organism, batches: Sequence[TokenBatch]) -> Iterator[tuple[Tensor, Tensor]]:
    """Residual activations ``[n, d]`` of a batch's tokens that count, and their positions ``[n]``."""
    special = torch.from_numpy(given.corpus.special)
    for batch in batches:
        counted = batch.valid.clone()
        counted[batch.valid] = ~special[batch.positions[batch.valid]]
        yield given.subject.residual(batch.tokens)[counted], batch.positions[counted]


def released_pass(
    given: Organism, sae: Any, batches: Sequence[TokenBatch], features: Sequence[int]
) -> FeatureStatistics:
    """One pass of the released procedure: some features' activations kept for all tokens, then summed."""
    encoder, bias = sae.W_enc[:, list(features)], sae.b_enc[list(features)]
    values, positions = [], []
    for residual, at in _residuals(given, batches):
        values.append(torch.relu(residual @ encoder + bias))
        positions.append(at)
    stored, order = torch.cat(values), torch.cat(positions).numpy()
    inside = [stored[torch.from_numpy(given.sets.mask(name)[order])] for name in given.sets.names]
    sums = [some.sum(0, dtype=torch.float64).numpy() for some in inside]
    return FeatureStatistics(given.sets.names, np.array(list(map(len, inside)), dtype=float), np.stack(sums))


def scoring_rows(given: Organism, sizes: Sizes) -> list[dict[str, Any]]:
    """ReasonScore at two widths against the bare pass; at the wider one against the released procedure."""
    batches, of = given.batches(), "ReasonScore's statistics of all features"
    first = collect(given.stream()).residual
    wide, found = random_autoencoder(first, sizes.wide), []

    def ours(sae: Any) -> float:
        statistics(given, sae)
        return float(given.tokens)

    def bare(sae: Any) -> float:
        for residual, _ in _residuals(given, batches):
            for _part in encoded(sae, residual):
                pass
        return float(given.tokens)

    for sae in (given.sae, wide):
        active = float((sae.encode(first[:4096]) > 0).sum(1).double().mean())
        rates = in_turn([partial(ours, sae), partial(bare, sae)], sizes.runs)
        width = f"{sae.cfg.d_sae:,} features ({active:.3g} active on a token)"
        told = f"{given.tokens:,} tokens, {width}, {len(given.sets.names)} sets"
        against = "the model's prefix and the encoder alone, same batches"
        found.append(compared(of, against, rates, "time", ("≤", 1.15), told))
    passes = math.ceil(sizes.wide / AT_ONCE)
    ran = min(sizes.released_passes, passes)

    def released() -> float:
        for i in range(ran):
            released_pass(given, wide, batches, range(i * AT_ONCE, min((i + 1) * AT_ONCE, sizes.wide)))
        return given.tokens * ran / passes

    rates = in_turn([partial(ours, wide), released], sizes.runs)
    note = f"{passes} passes; {ran} of them are run each time and the time multiplied"
    against = f"the released procedure, {AT_ONCE} features a pass"
    return [*found, compared(of, against, rates, "speed", ("≥", 30), told, note)]


# --- harvesting and training --------------------------------------------------------------------------------


def truncated(subject: Subject) -> Any:
    """The Hugging Face model with its blocks up to the hook point alone; no weight is copied."""
    whole: Any = subject.model.base_model
    model = copy.copy(whole)
    model._modules = dict(whole._modules)
    model.layers = whole.layers[: subject.layer + 1]
    return model


def harvesting_rows(given: Organism, sizes: Sizes) -> list[dict[str, Any]]:
    """Tokens a second of a harvest, written with its checksums, against the truncated model's."""
    batches, size, model = given.batches(), given.settings.batch_tokens, truncated(given.subject)

    def harvested() -> float:
        with tempfile.TemporaryDirectory() as folder:
            harvest(given.subject, given.corpus, Path(folder) / "sample", size, progress=False)
        return float(given.tokens)

    @torch.no_grad()
    def plain() -> float:
        for batch in batches:
            model(input_ids=batch.tokens, use_cache=False)
        return float(given.tokens)

    told = f"{given.tokens:,} tokens, {len(batches)} batches of up to {size:,}"
    against = f"Hugging Face's model of {given.subject.layer + 1} blocks, nothing kept"
    rates = in_turn([harvested, plain], sizes.runs)
    return [compared("harvesting to disk, with checksums", against, rates, "speed", ("≥", 0.95), told)]


def training_rows(given: Organism, sizes: Sizes) -> list[dict[str, Any]]:
    """SAELens' trainer on activations read from disk, against the same trainer on activations in memory."""
    batch = min(given.settings.train_batch, sizes.train_tokens)
    recipe = replace(settings_recipe(given.settings), tokens=sizes.train_tokens, batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "sample"
        harvest(given.subject, given.corpus, place, given.settings.batch_tokens, progress=False)
        residual = load_sample(place).residual

        def train(read: Callable[[], Tensor]) -> float:
            sample = read()
            data = shuffled_batches(sample, recipe.batch, recipe.seed)
            name, hook = given.settings.subject, given.subject.hook_name
            new_trainer(recipe, name, hook, sample, data, "cpu").fit()
            return float(recipe.steps * recipe.batch)

        reads = (lambda: load_sample(place).residual, lambda: residual)
        rates = in_turn([partial(train, read) for read in reads], sizes.runs)
        told = f"{recipe.steps} steps of {recipe.batch:,}, {recipe.d_sae} features, width {residual.shape[1]}"
        what, against = "SAE training from disk, checksums included", "the same trainer on tensors in memory"
        times = recipe.tokens / len(residual)
        note = f"{len(residual):,} activations are read once and trained on {times:.1f} times"
    return [compared(what, against, rates, "time", ("≤", 1.05), told, note)]


# --- steered answers ----------------------------------------------------------------------------------------


def questions_of_one_length(given: Organism, n: int) -> Questions:
    """``n`` problems whose prompts have as many tokens, so that no way of sampling has to pad."""
    asked = load_questions(given.settings, given.subject.tokenizer, "selection", 8 * n)
    length = Counter(map(len, asked.prompts)).most_common(1)[0][0]
    chosen = [i for i, prompt in enumerate(asked.prompts) if len(prompt) == length][:n]
    if len(chosen) < n:
        raise ValueError(f"only {len(chosen)} of {8 * n} problems have prompts of one length")
    prompts, domains = [asked.prompts[i] for i in chosen], [asked.domains[i] for i in chosen]
    return replace(asked, prompts=prompts, domains=domains)


def conditions_of(given: Organism, sizes: Sizes) -> tuple[list[Condition], Tensor]:
    """The most active features at the profile's strengths, and every feature's largest activation ``[f]``."""
    features = given.sae.encode(collect(given.stream()).residual[:8192])
    maxima = features.amax(0)
    often = (features > 0).sum(0).argsort(descending=True)[: sizes.features].tolist()
    strengths = given.settings.strengths[: sizes.strengths]
    return feature_conditions(given.sae, often, strengths, maxima.numpy()), maxima


def released_change(sae: Any, feature: int, target: float) -> Callable[[Tensor], Tensor]:
    """The released hook: encode the stream, set a feature to ``target``, decode, and add the error back."""

    def change(stream: Tensor) -> Tensor:
        features = sae.encode(stream)
        error = stream - sae.decode(features)
        features[..., feature] = target
        return sae.decode(features) + error

    return change


def written(tokens: Tensor, prompt: int, end: int) -> float:
    """New tokens of rows ``[b, t]`` behind prompts of one length, the first ``end`` counted, padding not."""
    new = tokens[:, prompt:].numpy()
    ended = new == end
    return float(np.where(ended.any(1), ended.argmax(1) + 1, new.shape[1]).sum())


def generation_rows(given: Organism, sizes: Sizes) -> list[dict[str, Any]]:
    """All conditions in one batch against a run each, and one condition against unsteered answers."""
    subject, asked = given.subject, questions_of_one_length(given, sizes.problems)
    conditions, maxima = conditions_of(given, sizes)
    few = conditions[:: max(1, len(conditions) // sizes.few)][: sizes.few]
    prompts, end = torch.tensor(asked.prompts), asked.end
    common: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "eos_token_id": end, "do_sample": True}
    common |= {"temperature": TEMPERATURE, "top_p": TOP_P}
    bridge, model = subject.bridge(), cast(Any, subject.model)

    def ours(chosen: Sequence[Condition]) -> float:
        answers: dict[int, list[int]] = {}
        rows = range(len(asked) * len(chosen))
        Asked(subject, asked, chosen, 0, len(rows)).write(rows, answers.__setitem__)
        return float(sum(map(len, answers.values())))

    @torch.no_grad()
    def by_bridge(condition: Condition) -> float:
        def add(stream: Tensor, hook: Any) -> Tensor:
            return stream if condition.vector is None else stream + condition.vector

        options = common | {"prepend_bos": False, "return_type": "tokens", "verbose": False}
        with bridge.hooks(fwd_hooks=[(subject.hook_name, add)]):
            return written(bridge.generate(prompts, **options), prompts.shape[1], end)

    @torch.no_grad()
    def by_hugging_face() -> float:
        options = common | {"pad_token_id": end, "top_k": 0, "attention_mask": torch.ones_like(prompts)}
        return written(model.generate(prompts, **options), prompts.shape[1], end)

    def by_released_hook(condition: Condition) -> float:
        target = condition.gamma * float(maxima[condition.feature])
        with subject.edited(released_change(given.sae, condition.feature, target)):
            return by_hugging_face()

    peers: dict[str, Work] = {
        "TransformerBridge.generate with a hook, a run a condition": lambda: sum(map(by_bridge, few)),
        "Hugging Face's generate with the released hook, a run a condition": lambda: sum(
            map(by_released_hook, few)
        ),
    }
    told = f"{len(conditions)} conditions × {len(asked)} problems, up to {asked.max_new_tokens} new tokens"
    note = f"{len(few)} of the {len(conditions)} runs of the other way are run each time"
    what = f"steered sampling, {len(conditions)} conditions in one batch"
    first, *others = in_turn([lambda: ours(conditions), *peers.values()], sizes.runs)
    found = [
        compared(what, against, (first, rates), "speed", ("≥", 3), told, note)
        for against, rates in zip(peers, others, strict=True)
    ]
    rates = in_turn([lambda: ours(few[:1]), by_hugging_face], 2 * sizes.runs)
    told = f"{len(asked)} problems, up to {asked.max_new_tokens} new tokens"
    what, against = "steered sampling, one condition", "Hugging Face's generate, unsteered, same problems"
    return [*found, compared(what, against, rates, "speed", ("≥", 0.97), told)]


def examples_in_one_pass(given: Organism, sae: Any) -> np.ndarray:
    """Positions of the strongest examples of all features ``[f, m]``, kept while reading."""
    kept: Any = ActivatingExamples(given.corpus, EXAMPLES)
    one_pass(given.stream(), sae, [kept])
    return kept.result().positions


# --- growth with tokens -------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Organism, Any], Any]] = {"scores": statistics, "examples": examples_in_one_pass}
NAMES = {
    "scores": "ReasonScore's statistics of all features",
    "examples": "activating examples of all features, one pass",
}


def peak(device: str = "cpu") -> int:
    """The most memory held so far, bytes: the card's, or this process's."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    # Linux counts what the parent held into a child's ru_maxrss, so its own record is read there
    status = Path("/proc/self/status")
    if found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text() if status.is_file() else ""):
        return 1024 * int(found[1])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held


def measured(way: str, documents: int) -> dict[str, float]:
    """One pass of a way over the organism's documents: ``seconds``, ``peak`` in bytes, ``tokens``."""
    given = Organism.load(documents)
    WAYS[way](replace(given, corpus=given.corpus.head(50)), given.sae)  # warms up
    start = time.perf_counter()
    WAYS[way](given, given.sae)
    return {"seconds": time.perf_counter() - start, "peak": peak(), "tokens": given.tokens}


def in_a_process(way: str, documents: int) -> dict[str, Any]:
    """:func:`measured` in a process that has held nothing else, with the ``way``."""
    command = [sys.executable, "-m", "reasoning_features.bench", "--measure", json.dumps([way, documents])]
    environment = os.environ | {"PYTHONPATH": str(paths.root())}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1]) | {"way": way}


def growth_rows(growth: pd.DataFrame) -> list[dict[str, Any]]:
    """Whether memory is flat in tokens and time linear, from runs over more and more documents."""
    found, against = [], "itself on the fewest tokens"
    for way, runs in growth.groupby("way"):
        first, last = runs.iloc[0], runs.iloc[-1]
        told = f"{first['tokens']:,.0f} to {last['tokens']:,.0f} tokens, a process each"
        note = "peak " + ", ".join(f"{size / 2**20:,.0f}" for size in runs["peak"]) + " MiB"
        memory = [last["peak"] / first["peak"]]
        pace = [last["seconds"] / last["tokens"] / (first["seconds"] / first["tokens"])]
        what = NAMES[str(way)]
        found.append(row(what, against, "peak memory, most / fewest tokens", memory, ("≤", 1.1), told, note))
        found.append(row(what, against, "time a token, most / fewest tokens", pace, ("≤", 1.15), told))
    return found


# --- the paper's shape on a device --------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A model's prefix, an autoencoder behind it, and how much is run; by default the paper's."""

    blocks: int = 20  # up to the hook point
    hidden: int = 4096
    intermediate: int = 14_336
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 128_256
    features: int = PAPER_FEATURES
    active: float = PAPER_L0  # features active on a token
    context: int = 1024  # tokens a document
    batch_tokens: int = 16_384  # tokens of a forward pass
    batches: int = 4  # forward passes that are timed
    train_batch: int = 4096  # tokens of a step of training
    train_steps: int = 10  # that are timed
    matmul: int = 8192  # width of the square matrices by which the device's rate is measured
    runs: int = 3  # the median of these counts

    @property
    def prefix_flop(self) -> float:
        """Operations a token in the blocks: two a weight, and attention over half the context on average."""
        attention = 2 * self.hidden**2 * (1 + self.kv_heads / self.heads)
        weights = attention + 3 * self.hidden * self.intermediate
        return float(self.blocks * (2 * weights + 4 * self.hidden * self.context / 2))

    @property
    def encode_flop(self) -> float:
        """Operations a token in the encoder."""
        return 2.0 * self.hidden * self.features


def random_subject(shape: Shape, device: str) -> Subject:
    """A Llama of random bf16 weights up to the hook point, made on the device, without the unembedding."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(2048, shape.context),
    )
    with torch.device("meta"):
        model: Any = LlamaModel(config)
        model.to(torch.bfloat16)
    model.to_empty(device=device)
    with torch.device(device):  # its frequencies are no weights
        model.rotary_emb = LlamaRotaryEmbedding(config)
    for name, weights in model.named_parameters():
        if "norm" in name:
            weights.data.fill_(1)
        else:
            weights.data.uniform_(-(3**0.5) * 0.02, 3**0.5 * 0.02)
    model.eval().requires_grad_(False)
    return Subject(model, cast(Any, None), shape.blocks - 1, "random", "random", "")


def random_corpus(shape: Shape) -> tuple[Corpus, TokenSets]:
    """Documents of random tokens, and twelve sets as large as R's: all tokens, ten words, their union."""
    generator, documents = (
        np.random.default_rng(0),
        max(1, shape.batches * shape.batch_tokens // shape.context),
    )
    starts = shape.context * np.arange(documents + 1, dtype=np.int64)
    n, names = int(starts[-1]), ["random"] * documents
    tokens, special = generator.integers(0, shape.vocabulary, n).astype(np.int32), np.zeros(n, dtype=bool)
    special[starts[:-1]] = True
    words = {f"word {i}": ~special & (generator.random(n) < 0.01) for i in range(10)}
    sets = {ALL: ~special} | words | {"union": np.any(list(words.values()), axis=0)}
    return Corpus("random", tokens, starts, special, ~special, names), TokenSets.of(sets)


def timed(work: Callable[[], Any], runs: int, device: str) -> float:
    """Median seconds, after a warm-up; waits for what a GPU has been given."""

    def whole() -> float:
        work()
        wait(device)
        return 1.0

    return median(1 / rate for rate in in_turn([whole], runs)[0])


def wait(device: str) -> None:
    """Returns when a GPU has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def measure_pass(shape: Shape, device: str) -> tuple[dict[tuple[str, str], float], Tensor]:
    """A pass at this shape: (quantity, unit) → value; and activations ``[n, d]`` float32 to train on."""
    a, b = (torch.randn(shape.matmul, shape.matmul, device=device).to(torch.bfloat16) for _ in range(2))
    rate = 2 * shape.matmul**3 / timed(lambda: a @ b, shape.runs, device)
    subject, (corpus, sets) = random_subject(shape, device), random_corpus(shape)
    batches, tokens = list(corpus.batches(shape.batch_tokens)), corpus.n_tokens
    first = subject.residual(batches[0].tokens)[0]
    sae = random_autoencoder(first, shape.features, shape.active, device)

    def prefix() -> None:
        for batch in batches:
            subject.residual(batch.tokens)

    def encoding() -> None:
        for batch in batches:
            for _ in encoded(sae, subject.residual(batch.tokens).flatten(0, 1).float()):
                pass

    def scoring() -> None:
        accumulate(stream(subject, corpus, shape.batch_tokens), sae, sets)

    read, encode, whole = (timed(work, shape.runs, device) for work in (prefix, encoding, scoring))
    active = float((sae.encode(first.float()) > 0).sum(1).double().mean())
    flop = shape.prefix_flop + shape.encode_flop
    values = {
        ("bf16 product of matrices, measured", "TFLOP/s"): rate / 1e12,
        ("features active on a token", "features"): active,
        ("prefix", "tokens/s"): tokens / read,
        ("prefix and encoder", "tokens/s"): tokens / encode,
        (f"whole ReasonScore pass, {len(sets.names)} sets", "tokens/s"): tokens / whole,
        ("prefix, share of the measured rate", "share"): tokens / read * shape.prefix_flop / rate,
        ("whole pass, share of the measured rate (goal 0.5)", "share"): tokens / whole * flop / rate,
        ("prefix, share of the pass", "share"): read / whole,
        ("encoder, share of the pass", "share"): (encode - read) / whole,
        ("the rest, share of the pass", "share"): (whole - encode) / whole,
        ("peak memory of the pass", "GB"): peak(device) / 1e9,
        ("scoring 10M tokens", "hours"): 1e7 * whole / tokens / 3600,
    }
    return values, first.float().cpu()


def training_rate(shape: Shape, sample: Tensor, device: str) -> float:
    """Tokens a second of SAELens' trainer on activations ``[n, d]``, its first steps left out."""
    residual = sample.repeat(-(-2 * shape.train_batch // len(sample)), 1).to(device)
    warm, steps = 2, shape.train_steps
    recipe = Recipe("relu", shape.features, (warm + steps) * shape.train_batch, 1e-4, shape.train_batch)
    data = shuffled_batches(residual, shape.train_batch, 0)
    trainer = new_trainer(recipe, "random", "blocks.0.hook_resid_post", sample, data, device)
    marks: list[float] = []

    def mark(checkpoint_path: Any = None) -> None:
        wait(device)
        marks.append(time.perf_counter())

    trainer.save_checkpoint_fn = mark
    trainer.checkpoint_thresholds = [n * shape.train_batch - 1 for n in (warm, warm + steps)]
    trainer.fit()
    return steps * shape.train_batch / (marks[1] - marks[0])


def measure_device(shape: Shape, device: str) -> pd.DataFrame:
    """Rates at this shape on this device: one row a quantity, with ``value`` and ``unit``.

    Steps of training are measured when the model is gone: they take eight times the autoencoder's memory.
    """
    values, sample = measure_pass(shape, device)
    gc.collect()
    trained = training_rate(shape, sample, device)
    values[f"SAE training, batches of {shape.train_batch:,}", "tokens/s"] = trained
    for told, tokens in (("819.2M", 819.2e6), ("1B", 1e9)):  # the paper's: read once, and trained on once
        hours = tokens * (1 / values["prefix", "tokens/s"] + 1 / trained) / 3600
        values[f"SAE training, {told} tokens, harvested and trained", "hours"] = hours
    values["peak memory, training too", "GB"] = peak(device) / 1e9
    rows = [(quantity, value, unit) for (quantity, unit), value in values.items()]
    return pd.DataFrame(rows, columns=["quantity", "value", "unit"])


# --- tables -------------------------------------------------------------------------------------------------


def processor() -> str:
    """The processor's name, as the system tells it."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", told.read_text() if told.is_file() else "")
    return found[1].strip() if found else platform.processor() or platform.machine()


def code_digest() -> str:
    """SHA-256 of the package's sources."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()


def write(folder: Path, name: str, table: pd.DataFrame, shown: str, caption: str, code: str) -> None:
    """Write a table as CSV and Markdown, and the record beside them: when, on what, by which code."""
    csv, markdown = folder / f"{name}.csv", folder / f"{name}.md"
    write_csv(csv, table)
    write_text(markdown, f"{shown}\n{caption}\n")
    record = {
        "caption": caption,
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "code_sha256": code,
        "files": {file.name: file_digest(file) for file in (csv, markdown)},
    }
    write_json(folder / f"{name}.json", record)


def compare(sizes: Sizes, folder: Path) -> pd.DataFrame:
    """Run every comparison and write ``ratios`` and ``growth``."""
    code, given, rows = code_digest(), Organism.load(sizes.documents), []
    for comparison in (scoring_rows, harvesting_rows, training_rows, generation_rows):
        rows += comparison(given, sizes)
        gc.collect()
    runs = [(way, documents) for way in WAYS for documents in sizes.documents_by_step]
    growth = pd.DataFrame([in_a_process(way, documents) for way, documents in runs])
    table = pd.DataFrame(rows + growth_rows(growth))
    write(folder, "ratios", table, to_markdown(table[SHOWN]), CAPTION, code)
    write(folder, "growth", growth, to_markdown(growth), GROWTH, code)
    return table


def on_device(shape: Shape, device: str, folder: Path) -> pd.DataFrame:
    """Run the paper's shape on a device and write ``device_<card>``."""
    code = code_digest()
    card = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else processor()
    table = measure_device(shape, device).assign(card=card, date=datetime.date.today().isoformat())
    name = "device_" + re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
    caption = f"The paper's shape with random weights on {card}: {shape}."
    write(folder, name, table, to_markdown(table), caption, code)
    return table


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where to run the paper's true shape, such as cuda")
    parser.add_argument("--folder", type=Path, default=paths.root() / "figures" / "bench")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one pass, for a process of its own
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measured(*json.loads(asked.measure))))
        return
    check_device(asked.device)
    if asked.device != "cpu":
        print(to_markdown(on_device(Shape(), asked.device, asked.folder)))
        return
    table = compare(Sizes(), asked.folder)
    print(to_markdown(table[SHOWN]))
    short = table[[name for name in SHOWN if name not in ("runs", "sizes", "note")]]
    write_between(paths.root() / "figures" / "bench" / "README.md", BEGIN, END, to_markdown(short))
    print("The paper's true shape was left out: it takes a GPU (make bench DEVICE=cuda).")


if __name__ == "__main__":
    main()
