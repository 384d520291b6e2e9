"""`make bench`: what the companion's bulk work costs, as ratios to other ways of doing it.

Two ways are run in turn in one process, after a warm-up; growth is measured in processes of their own. With
``--device`` the same work is run at the shape of the paper's model with random weights: no time depends on
them but by the number of active features, which is the paper's. Tables: ``figures/bench``.
"""

import argparse
import copy
import datetime
import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from torch import Tensor
from transformers import AutoModel, LlamaConfig

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
from reasoning_features.residual_stream import activations
from reasoning_features.runs.preflight import check_device
from reasoning_features.runs.provenance import digest, imported_files, versions
from reasoning_features.scoring.feature_statistics import FeatureStatistics, accumulate, one_pass
from reasoning_features.settings import load_settings
from reasoning_features.steering.answering import Asked
from reasoning_features.steering.questions import Questions, load_questions
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import ALL, TokenSets, WordIndex, token_sets

FOLDER = paths.root() / "figures" / "bench"
BEGIN, END = "<!-- bench: written by make bench -->", "<!-- bench: end -->"
README = ["what", "against", "measure", "ratio", "lowest", "highest", "bar", "met"]
CAPTION = "Ratios of pairs run in turn in one process, after a warm-up: median, lowest and highest."
SCORES = "ReasonScore's statistics of all features"
EXAMPLES = "activating examples of all features, one pass"
RUNS = 5  # pairs that count
AT_ONCE = 48  # features for which the released script runs the model over the data once (its feature_batch)
# the paper's model up to its hook point, and its autoencoder
MODEL = LlamaConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336,
    num_hidden_layers=20, num_attention_heads=32, num_key_value_heads=8,
)  # fmt: skip
FEATURES, L0 = 65_536, 86

Work = Callable[[], float]  # does something once and returns how much of it was done, such as tokens
Bar = tuple[Literal["≤", "≥"], float]  # what a ratio is held to
Row = dict[str, Any]


def in_turn(ways: Sequence[Work]) -> list[list[float]]:
    """Rates a second of each way, run by run: each once to warm up, then ``RUNS`` rounds in turn."""
    rates: list[list[float]] = [[] for _ in ways]
    for _ in range(1 + RUNS):
        for way, kept in zip(ways, rates, strict=True):
            start = time.perf_counter()
            done = way()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            kept.append(done / (time.perf_counter() - start))
    return [kept[1:] for kept in rates]


def row(what: str, against: str, measure: str, ratios: Sequence[float], bar: Bar, sizes: str) -> Row:
    """One comparison: the median of its ratios, their extremes, and whether the bar is met."""
    ratio, (sign, limit) = median(ratios), bar
    met = ratio <= limit if sign == "≤" else ratio >= limit
    told: Row = {"what": what, "against": against, "measure": measure}
    told |= {"ratio": ratio, "lowest": min(ratios), "highest": max(ratios), "runs": len(ratios)}
    return told | {"bar": f"{sign} {limit:g}", "met": "yes" if met else "missed", "sizes": sizes}


def compared(what: str, against: str, ours: Work, theirs: Work, bar: Bar, sizes: str) -> Row:
    """The row of two ways run in turn: a ratio of times is held below its bar, one of speeds above it."""
    measure = "time" if bar[0] == "≤" else "speed"
    pairs = zip(*in_turn([ours, theirs]), strict=True)
    ratios = [b / a if measure == "time" else a / b for a, b in pairs]
    return row(what, against, f"{measure}, ours / theirs", ratios, bar, sizes)


@dataclass(frozen=True)
class Given:
    """A model, an autoencoder, documents, and R's sets; its works give the number of tokens that count."""

    subject: Subject
    sae: Any
    corpus: Corpus
    sets: TokenSets  # all tokens, R, its words
    batch_tokens: int

    @property
    def tokens(self) -> float:
        return float((~self.corpus.special).sum())

    def stream(self) -> Iterator[Any]:
        return activations.stream(self.subject, self.corpus, self.batch_tokens)

    def residuals(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same by the bare model: activations ``[n, d]`` of tokens that count, and their positions."""
        special = torch.from_numpy(self.corpus.special)
        for batch in self.corpus.batches(self.batch_tokens):
            counted = batch.valid.clone()
            counted[batch.valid] = ~special[batch.positions[batch.valid]]
            yield self.subject.residual(batch.tokens)[counted].float(), batch.positions[counted]

    def read(self) -> float:
        """The model's prefix alone."""
        for _ in self.residuals():
            pass
        return self.tokens

    def encode(self) -> float:
        """The model's prefix and the encoder alone."""
        for residual, _ in self.residuals():
            for _part in encoded(self.sae, residual):
                pass
        return self.tokens

    def score(self) -> float:
        """Our pass: sums of all features over all sets."""
        accumulate(self.stream(), self.sae, self.sets)
        return self.tokens

    def examples(self) -> float:
        """Our pass for the strongest examples of all features."""
        kept: Any = ActivatingExamples(self.corpus, 12)
        one_pass(self.stream(), self.sae, [kept])
        kept.result()
        return self.tokens

    def harvest(self, folder: Path) -> float:
        """A sample of all activations, written with its checksums."""
        activations.harvest(self.subject, self.corpus, folder, self.batch_tokens, progress=False)
        return self.tokens


def organism(documents: int) -> Given:
    """The organism and its shipped autoencoder with so many reasoning documents."""
    settings = load_settings("organism")
    subject = load_subject(settings.subject, settings.layer)
    sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
    corpus = reasoning_corpus(settings, subject.tokenizer, "selection", documents=documents)
    sets = token_sets(WordIndex(corpus, subject.tokenizer), {"R": settings.words}, [settings.window])
    return Given(subject, sae, corpus, sets, settings.batch_tokens)


def random_autoencoder(residual: Tensor, d_sae: int, active: float) -> StandardSAE:
    """``d_sae`` random directions, of which ``active`` are active on a token of activations ``[n, d]``."""
    width, some, device = residual.shape[1], residual[:256].float(), str(residual.device)
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=d_sae, device=device)).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    directions = torch.randn(width, d_sae, generator=generator, device=device)
    sae.W_enc.data = directions / directions.norm(dim=0)
    sae.W_dec.data = sae.W_enc.data.T.contiguous()
    sae.b_dec.data.zero_()
    before = some @ sae.W_enc.data
    sae.b_enc.data = -before.mean(0)
    deviations = (before + sae.b_enc.data).flatten()
    sae.b_enc.data -= deviations.kthvalue(max(1, int(len(deviations) * (1 - active / d_sae)))).values
    return sae


def released_pass(given: Given, features: Sequence[int]) -> FeatureStatistics:
    """One pass of the released procedure: some features' activations kept for all tokens, then summed."""
    encoder, bias = given.sae.W_enc[:, list(features)], given.sae.b_enc[list(features)]
    values, positions = [], []
    for residual, at in given.residuals():
        values.append(torch.relu(residual @ encoder + bias))
        positions.append(at)
    stored, order = torch.cat(values), torch.cat(positions).numpy()
    inside = [stored[torch.from_numpy(given.sets.mask(name)[order])] for name in given.sets.names]
    sums = [some.sum(0, dtype=torch.float64).numpy() for some in inside]
    return FeatureStatistics(given.sets.names, np.array(list(map(len, inside)), dtype=float), np.stack(sums))


def scoring_rows(given: Given, features: int = 4096, passes: int = 3) -> list[Row]:
    """ReasonScore at two widths against the bare pass; at the wider one against the released procedure.

    The wider autoencoder is random, with as many active ``features`` as the paper's L0 times the square root
    of its part of the paper's features. So many ``passes`` of the released procedure are run.
    """
    first, found = activations.collect(given.stream()).residual, []
    wide = replace(given, sae=random_autoencoder(first, features, L0 * (features / FEATURES) ** 0.5))
    against = "the model's prefix and the encoder alone, same batches"
    for each in (given, wide):
        active = float((each.sae.encode(first[:4096]) > 0).sum(1).double().mean())
        told = f"{given.tokens:,.0f} tokens, {len(given.sets.names)} sets, {each.sae.cfg.d_sae:,} features"
        told += f" ({active:.3g} active on a token)"
        found.append(compared(SCORES, against, each.score, each.encode, ("≤", 1.15), told))
    needed = math.ceil(features / AT_ONCE)

    def released() -> float:
        for i in range(passes):
            released_pass(wide, range(i * AT_ONCE, (i + 1) * AT_ONCE))
        return given.tokens * passes / needed

    against = f"the released procedure, {AT_ONCE} features a pass"
    told += f"; {passes} of {needed} passes are run each time and the time multiplied"
    return [*found, compared(SCORES, against, wide.score, released, ("≥", 30), told)]


def truncated(subject: Subject) -> Any:
    """The Hugging Face model with its blocks up to the hook point alone; no weight is copied."""
    whole: Any = subject.model.base_model
    model = copy.copy(whole)
    model._modules = dict(whole._modules)
    model.layers = whole.layers[: subject.layer + 1]
    return model


def train(recipe: Recipe, hook: str, read: Callable[[], Tensor], device: str = "cpu") -> float:
    """Train an autoencoder by SAELens' trainer on activations ``[n, d]``; how many it was trained on."""
    sample = read()
    data = activations.shuffled_batches(sample.to(device), recipe.batch, recipe.seed)
    new_trainer(recipe, "model", hook, sample, data, device).fit()
    return float(recipe.steps * recipe.batch)


def disk_rows(given: Given, train_tokens: int = 204_800) -> list[Row]:
    """A harvest against the truncated model's pass; training from disk against training from memory."""
    batches, model = list(given.corpus.batches(given.batch_tokens)), truncated(given.subject)

    @torch.no_grad()
    def plain() -> float:
        for batch in batches:
            model(input_ids=batch.tokens, use_cache=False)
        return given.tokens

    with tempfile.TemporaryDirectory() as folder:
        places = (Path(folder) / str(i) for i in count())
        what = "harvesting to disk, with checksums"
        against = f"Hugging Face's model of {given.subject.layer + 1} blocks, nothing kept"
        told = f"{given.tokens:,.0f} tokens, {len(batches)} batches of up to {given.batch_tokens:,}"
        harvested = compared(what, against, lambda: given.harvest(next(places)), plain, ("≥", 0.95), told)

        def from_disk() -> Tensor:
            return activations.load_sample(Path(folder) / "0").residual

        residual, settings = from_disk(), load_settings("organism")
        batch, n = min(settings.train_batch, train_tokens), len(residual)
        recipe = replace(settings_recipe(settings), tokens=train_tokens, batch=batch)
        start = partial(train, recipe, given.subject.hook_name)
        what, against = "SAE training from disk, checksums included", "the same trainer on tensors in memory"
        told = f"{recipe.steps} steps of {batch:,}, {recipe.d_sae} features, width {residual.shape[1]}; "
        told += f"{n:,} activations are read once and trained on {train_tokens / n:.1f} times"
        ways = partial(start, from_disk), partial(start, lambda: residual)
        return [harvested, compared(what, against, *ways, ("≤", 1.05), told)]


def questions_of_one_length(given: Given, n: int) -> Questions:
    """``n`` problems whose prompts have as many tokens, so that no way of sampling has to pad."""
    asked = load_questions(load_settings("organism"), given.subject.tokenizer, "selection", 8 * n)
    pairs = list(zip(asked.prompts, asked.domains, strict=True))
    length = Counter(map(len, asked.prompts)).most_common(1)[0][0]
    prompts, domains = zip(*[pair for pair in pairs if len(pair[0]) == length][:n], strict=True)
    return replace(asked, prompts=[*prompts], domains=[*domains])


def released_change(sae: Any, feature: int, target: float, stream: Tensor) -> Tensor:
    """The released hook: encode the stream, set a feature to ``target``, decode, and add the error back."""
    features = sae.encode(stream)
    error = stream - sae.decode(features)
    features[..., feature] = target
    return sae.decode(features) + error


def written(tokens: Tensor, prompt: int, end: int) -> float:
    """New tokens of rows ``[b, t]`` behind prompts of one length, the first ``end`` counted, padding not."""
    new = tokens[:, prompt:].numpy()
    ended = new == end
    return float(np.where(ended.any(1), ended.argmax(1) + 1, new.shape[1]).sum())


def answered(subject: Subject, asked: Questions, conditions: Sequence[Condition]) -> float:
    """Answers the questions under all conditions in one batch; the number of new tokens."""
    answers: dict[int, list[int]] = {}
    rows = range(len(asked) * len(conditions))
    Asked(subject, asked, conditions, 0, None, len(rows)).write(rows, answers.__setitem__)
    return float(sum(map(len, answers.values())))


def refusal_row(given: Given, asked: Questions, vectors: int = 64, few: int = 4) -> Row:
    """Greedy answers under many random vectors, as notebook 09 has them, beside a run a vector."""
    subject, (end,) = given.subject, given.subject.ends
    drawn = torch.randn(vectors, subject.d_model, generator=torch.Generator().manual_seed(0))
    conditions = [Condition(f"{i}", vector=v, spares_special=True) for i, v in enumerate(drawn)]
    prompts = torch.tensor(asked.prompts)

    @torch.no_grad()
    def in_a_loop() -> float:
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": asked.max_new_tokens}
        options |= {"eos_token_id": end, "pad_token_id": end}
        total, model = 0.0, cast(Any, subject.model)
        with subject.edited(partial(torch.add, drawn[0])):
            for prompt in prompts[:few, None]:
                told = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
                total += written(told, prompts.shape[1], end)
        return total

    sizes = f"{vectors} vectors × {len(asked)} problems; the other way runs {few} of these each time"
    against = "Hugging Face's generate with a hook, a run a vector and problem"
    ours = partial(answered, subject, replace(asked, greedy=True), conditions)
    return compared(f"greedy answers under {vectors} vectors", against, ours, in_a_loop, ("≥", 5), sizes)


def generation_rows(given: Given, asked: Questions, features: int = 8, few: int = 2) -> list[Row]:
    """All conditions in one batch against a run each, of which ``few`` are run; one against no condition."""
    subject, prompts, (end,) = given.subject, torch.tensor(asked.prompts), given.subject.ends
    active = given.sae.encode(activations.collect(given.stream()).residual[:8192])
    maxima, often = active.amax(0), (active > 0).sum(0).argsort(descending=True)[:features].tolist()
    strengths = load_settings("organism").strengths
    conditions = feature_conditions(given.sae, often, strengths, maxima.numpy())
    some = conditions[:: len(conditions) // few][:few]
    common: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "eos_token_id": end, "do_sample": True}
    common |= {"temperature": TEMPERATURE, "top_p": TOP_P}
    bridge, model = subject.bridge(), cast(Any, subject.model)

    ours = partial(answered, subject, asked)

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
        with subject.edited(partial(released_change, given.sae, condition.feature, target)):
            return by_hugging_face()

    told = f"{len(asked)} problems, up to {asked.max_new_tokens} new tokens"
    together = f"steered sampling, {len(conditions)} conditions in one batch"
    sizes = f"{len(conditions)} conditions × {told}; the other way runs {few} of them each time"
    all_of_them, alone = partial(ours, conditions), "steered sampling, one condition"
    against = "TransformerBridge.generate with a hook, a run a condition"
    hooked = "Hugging Face's generate with the released hook, a run a condition"
    unsteered = "Hugging Face's generate, unsteered, same problems"
    return [
        compared(together, against, all_of_them, lambda: sum(map(by_bridge, some)), ("≥", 3), sizes),
        compared(together, hooked, all_of_them, lambda: sum(map(by_released_hook, some)), ("≥", 3), sizes),
        compared(alone, unsteered, partial(ours, some[:1]), by_hugging_face, ("≥", 0.97), told),
    ]


WAYS: dict[str, Callable[[Given], float]] = {SCORES: Given.score, EXAMPLES: Given.examples}


def peak() -> int:
    """The most memory that this process has held, bytes: Linux counts into ru_maxrss what a parent held."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def measured(way: str, documents: int) -> tuple[float, int, float]:
    """One pass of a way over the organism's documents: seconds, peak memory in bytes, tokens."""
    given = organism(documents)
    WAYS[way](replace(given, corpus=given.corpus.head(50)))  # warms up
    start = time.perf_counter()
    tokens = WAYS[way](given)
    return time.perf_counter() - start, peak(), tokens


def growth_rows(documents: tuple[int, int] = (1000, 4000)) -> list[Row]:
    """Whether memory is flat in tokens and time linear: few documents and many, a fresh process each."""
    found, against = [], "itself on the fewest tokens"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for way in WAYS:
            (seconds, held, few), (longer, more, many) = pool.map(measured, [way] * 2, documents)
            told = f"{few:,.0f} and {many:,.0f} tokens, a process each"
            sizes = f"{told}; peak {held / 2**20:,.0f} and {more / 2**20:,.0f} MiB"
            memory, pace = [more / held], [longer / many / (seconds / few)]
            found.append(row(way, against, "peak memory, most / fewest tokens", memory, ("≤", 1.1), sizes))
            found.append(row(way, against, "time a token, most / fewest tokens", pace, ("≤", 1.15), told))
    return found


# --- the paper's shape on a device --------------------------------------------------------------------------


def random_model(config: LlamaConfig, features: int, documents: int, length: int, device: str) -> Given:
    """A random bf16 Llama, an SAE as active as the paper's, random documents, twelve sets as large as R's."""
    with torch.device(device):
        model: Any = AutoModel.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    subject = Subject(model, cast(Any, None), config.num_hidden_layers - 1, "random", "random", "")
    generator, n = np.random.default_rng(0), documents * length
    starts = length * np.arange(documents + 1, dtype=np.int64)
    tokens = generator.integers(0, config.vocab_size, n).astype(np.int32)
    special = np.arange(n) % length == 0
    words = {f"word {i}": ~special & (generator.random(n) < 0.01) for i in range(10)}
    sets = {ALL: ~special} | words | {"union": np.any(list(words.values()), axis=0)}
    corpus = Corpus("random", tokens, starts, special, ~special, ["random"] * documents)
    given = Given(subject, None, corpus, TokenSets.of(sets), 16 * length)
    residual, _ = next(given.residuals())
    return replace(given, sae=random_autoencoder(residual, features, L0 * features / FEATURES))


def device_table(
    config: LlamaConfig, device: str, features: int, documents: int, length: int, batch: int
) -> pd.DataFrame:
    """Rates at this shape on this device: one row a quantity, with ``value`` and ``unit``."""
    given = random_model(config, features, documents, length, device)
    residual, _ = next(given.residuals())
    recipe = Recipe("relu", features, 32 * batch, 1e-4, batch)
    training = partial(train, recipe, "blocks.0.hook_resid_post", lambda: residual.cpu(), device)
    works: dict[str, Work] = {
        "prefix": given.read,
        "prefix and encoder": given.encode,
        f"whole ReasonScore pass, {len(given.sets.names)} sets": given.score,
        f"SAE training, batches of {batch:,}": training,
    }
    rates = [median(each) for each in in_turn(list(works.values()))]
    rows = [(name, rate, "tokens/s") for name, rate in zip(works, rates, strict=True)]
    rows.append(("scoring 10M tokens", 1e7 / rates[2] / 3600, "hours"))
    both = 1 / rates[0] + 1 / rates[3]  # the paper's tokens: read once, and trained on once
    rows.append(("SAE training, 1B tokens, harvested and trained", 1e9 * both / 3600, "hours"))
    if torch.device(device).type == "cuda":
        rows.append(("peak memory", torch.cuda.max_memory_allocated(device) / 1e9, "GB"))
    return pd.DataFrame(rows, columns=["quantity", "value", "unit"])


def processor(device: str) -> str:
    """The card's name, or the processor's, as the system tells it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else "unknown"


def write(folder: Path, name: str, table: pd.DataFrame, caption: str, device: str = "cpu") -> None:
    """Write a table as CSV and Markdown, and beside them when, on what and by which code it was made."""
    csv, markdown = folder / f"{name}.csv", folder / f"{name}.md"
    write_csv(csv, table)
    write_text(markdown, f"{to_markdown(table)}\n{caption}\n")
    code = imported_files(["import reasoning_features.bench"])
    record = {
        "caption": caption, "date": datetime.date.today().isoformat(),
        "processor": processor(device), "threads": torch.get_num_threads(), "versions": versions(),
        "code_sha256": digest(f"{file} {content}" for file, content in code.items()),
        "files": {file.name: file_digest(file) for file in (csv, markdown)},
    }  # fmt: skip
    write_json(folder / f"{name}.json", record)
    print(to_markdown(table))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where to run the paper's true shape, such as cuda")
    device = parser.parse_args().device
    check_device(device)
    if device != "cpu":
        card = processor(device)
        name = "device_" + re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
        caption = f"The paper's shape ({MODEL.num_hidden_layers} blocks) with random weights on {card}."
        write(FOLDER, name, device_table(MODEL, device, FEATURES, 64, 1024, 4096), caption, device)
        return
    given = organism(600)
    asked = questions_of_one_length(given, 32)
    rows = [*scoring_rows(given), *disk_rows(given), *generation_rows(given, asked)]
    rows += [refusal_row(given, asked), *growth_rows()]
    table = pd.DataFrame(rows)
    write(FOLDER, "ratios", table, CAPTION)
    write_between(FOLDER / "README.md", BEGIN, END, to_markdown(table[README]))
    print("The paper's true shape was left out: it takes a GPU (make bench DEVICE=cuda).")


if __name__ == "__main__":
    main()
