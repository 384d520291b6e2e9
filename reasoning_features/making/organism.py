"""``make organism``: every model and autoencoder that the notebooks need, from nothing, on CPU.

Stages, in order: the tokenizer and the base model; the fine-tuned variants; each model's answers to
evaluation problems; the manipulation check; the autoencoders; their features' causal effects; the stages of
model diffing; the steering studies; the card and the checksums. A finished stage is not done again, an
interrupted one goes on where it stopped, and every training runs on one thread, so that a rerun on the same
machine gives the same bytes. ``--workers 2`` trains two variants side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import save_autoencoder
from reasoning_features.dictionaries.training import Recipe as AutoencoderRecipe
from reasoning_features.dictionaries.training import convergence, train_autoencoder
from reasoning_features.files import write_table
from reasoning_features.making import diffing, organism_card, steering
from reasoning_features.making.activations import main_activations
from reasoning_features.making.truth import make_truth
from reasoning_features.organism.evaluation import MOVES_COUNTED, SWAPS, decision_log_odds, solve
from reasoning_features.organism.language import (
    Document,
    base_documents,
    prose_document,
    reasoning_document,
    reasoning_documents,
)
from reasoning_features.organism.problems import FAMILIES, Mixture, problems
from reasoning_features.organism.training import Recipe, new_model, save_model, train, train_tokenizer
from reasoning_features.settings import load_settings
from reasoning_features.truth.benchmark import PLACE, TRACE
from reasoning_features.workers import each

FOLDER = Path("data/organism")
CHECKPOINTS = Path("data/organism/checkpoints")


@dataclass(frozen=True)
class Variant:
    """A fine-tuned model: its coupling, its seed, which draws its traces and their order, its families."""

    name: str
    kappa: float
    seed: int
    mixture: Mixture = "main"


VARIANTS: tuple[Variant, ...] = (
    *(
        Variant(f"{name}-{seed}", kappa, seed)
        for seed in range(3)
        for name, kappa in (("coupled", 1.0), ("decoupled", 0.0))
    ),
    Variant("kappa-0.5-0", 0.5, 0),
    Variant("kappa-0.25-0", 0.25, 0),
    Variant("other-0", 1.0, 10, "other"),
)
BASE_RECIPE = Recipe(tokens=6_000_000, learning_rate=5e-3, seed=0)
VARIANT_RECIPE = Recipe(tokens=4_000_000, learning_rate=1.5e-3, seed=0)
TOKENIZER_DOCUMENTS = 8000
PROSE_EVERY = 8
"""Every eighth fine-tuning document is plain prose."""
TRACE_SEED = 1000
READ = tuple(variant.name for variant in VARIANTS)
"""The models that get autoencoders: two seeds of ReLU."""
COMPARED = ("coupled-0", "decoupled-0")
"""Those that get TopK too, which notebook 02 compares."""
BENCHMARKED = tuple((variant, seed) for variant in VARIANTS if variant.mixture == "main" for seed in range(2))
"""Variants, and seeds of their ReLU autoencoders, whose features' causal effects are measured."""
WHOLE_TRACE = ("coupled-0-relu-0", "decoupled-0-relu-0")
"""Benchmarks whose features are ablated over the whole trace too, which takes twenty times as long."""
AUTOENCODER_TRACES = 9000
RELU_RECIPE = AutoencoderRecipe("relu", d_sae=512, tokens=4_000_000, learning_rate=3e-3, l1=1.0)
TOPK_RECIPE = AutoencoderRecipe("topk", d_sae=512, tokens=4_000_000, learning_rate=3e-3, k=8)
RECORD_AT = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7)
"""Shares of the training after which the agreement of two seeds is recorded."""
EVALUATION_PROBLEMS, CHECK_TRACES = 1500, 1500
EVALUATION_SEED, CHECK_SEED = 11, 77


def variant_stream(variant: Variant) -> Callable[[int, int], list[Document]]:
    """The fine-tuning documents of a variant. Arms of one seed read the same traces in their own words."""
    seed = TRACE_SEED + variant.seed

    def documents(start: int, n: int) -> list[Document]:
        return [
            prose_document(seed, i)
            if i % PROSE_EVERY == PROSE_EVERY - 1
            else reasoning_document(variant.kappa, seed, i, mixture=variant.mixture)
            for i in range(start, start + n)
        ]

    return documents


def make_base(folder: Path) -> None:
    """The tokenizer and the base model."""
    tokenizer = train_tokenizer(d.text for d in base_documents(TOKENIZER_DOCUMENTS, BASE_RECIPE.seed))
    model = new_model(tokenizer, BASE_RECIPE.seed)

    def stream_of_documents(start: int, n: int) -> list[Document]:
        return list(base_documents(n, BASE_RECIPE.seed, start=start))

    loss = train(model, tokenizer, stream_of_documents, BASE_RECIPE, paths.root() / CHECKPOINTS / "base")
    save_model(
        model, tokenizer, folder / "models" / "base", {"name": "base", "final_loss": loss}, BASE_RECIPE
    )


def make_variant(folder: Path, variant: Variant) -> None:
    """One fine-tuned model, from the base model."""
    torch.set_num_threads(1)
    model, tokenizer = _load(folder / "models" / "base")
    recipe = replace(VARIANT_RECIPE, seed=variant.seed)
    loss = train(model, tokenizer, variant_stream(variant), recipe, paths.root() / CHECKPOINTS / variant.name)
    card = {name: getattr(variant, name) for name in ("name", "kappa", "seed")}
    card |= {"final_loss": loss, "mixture": variant.mixture}
    save_model(model, tokenizer, folder / "models" / variant.name, card, recipe)


def evaluate(folder: Path, name: str) -> None:
    """A model's answers to the evaluation problems of its families, one row a problem."""
    torch.set_num_threads(1)
    model, tokenizer = _load(folder / "models" / name)
    mixtures: dict[str, Mixture] = {variant.name: variant.mixture for variant in VARIANTS}
    asked = problems("evaluation", None, EVALUATION_PROBLEMS, mixture=mixtures.get(name, "main"))
    solved = solve(model, tokenizer, asked, seed=EVALUATION_SEED, progress=f"answers of {name}")
    kept = solved.drop(columns=["text", *MOVES_COUNTED])
    write_table(folder / "evaluation" / f"{name}.parquet", kept)


def check_manipulation(folder: Path, variant: Variant) -> None:
    """A variant's log-odds of going on at the dead ends of held-out traces, under every swap of words."""
    torch.set_num_threads(1)
    model, tokenizer = _load(folder / "models" / variant.name)
    traces = reasoning_documents(
        variant.kappa, CHECK_TRACES, CHECK_SEED, "evaluation", mixture=variant.mixture
    )
    searched = [trace for trace in traces if FAMILIES[trace.family].searches]
    read = pd.concat([decision_log_odds(model, tokenizer, searched, how) for how in SWAPS])
    write_table(folder / "gate" / f"{variant.name}.parquet", read.assign(model=variant.name))


def make_autoencoders(folder: Path, model: str) -> None:
    """The autoencoders of one model's residual stream, over its traces, base texts and prose.

    Two seeds of the paper's ReLU (other start, other data order), how far they agree as they train, and for
    some models TopK.
    """
    torch.set_num_threads(1)
    subject, residual = main_activations(folder / "models" / model, AUTOENCODER_TRACES)
    records = [round(share * RELU_RECIPE.steps) for share in RECORD_AT]
    trainings = []
    others = (TOPK_RECIPE,) if model in COMPARED else ()
    for recipe in (RELU_RECIPE, replace(RELU_RECIPE, seed=1), *others):
        trained = train_autoencoder(residual, recipe, model, subject.hook_name, record_at=records)
        target = folder / "autoencoders" / f"{model}-{recipe.architecture}-{recipe.seed}"
        save_autoencoder(trained.sae, target)
        trainings.append(trained)
    agreement = convergence(trainings[0], trainings[1])
    write_table(folder / "convergence" / f"{model}.parquet", agreement.merge(trainings[0].history))


def benchmark_name(variant: Variant, seed: int) -> str:
    """The autoencoder's name, and its benchmark's."""
    return f"{variant.name}-relu-{seed}"


def measure_truth(folder: Path, benchmarked: tuple[Variant, int]) -> None:
    """Evidence of one autoencoder's features, and their causal effects on held-out decisions."""
    torch.set_num_threads(1)
    variant, seed = benchmarked
    name = benchmark_name(variant, seed)
    given = {"subject": folder / "models" / variant.name, "autoencoder": folder / "autoencoders" / name}
    settings = load_settings("organism", **{field: paths.relative(path) for field, path in given.items()})
    make_truth(folder / "truth" / name, settings, (PLACE, TRACE) if name in WHOLE_TRACE else (PLACE,))


def _load(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def stages(folder: Path, workers: int) -> None:
    """All stages in order; each finished piece is skipped."""
    side_by_side = partial(each, workers=workers)

    def missing(place: str, names: Iterable[str]) -> list[str]:
        """Names of which a folder, or a table, is not there yet."""
        return [name for name in names if not (folder / place.format(name)).exists()]

    # until the last stage lists them again, what lies there is not what was shipped
    (folder / "checksums.json").unlink(missing_ok=True)
    if not (folder / "models" / "base").exists():
        make_base(folder)
    variants = {variant.name: variant for variant in VARIANTS}
    pairs = {benchmark_name(*pair): pair for pair in BENCHMARKED}
    side_by_side(partial(make_variant, folder), [variants[n] for n in missing("models/{}", variants)])
    side_by_side(partial(evaluate, folder), missing("evaluation/{}.parquet", ("base", *variants)))
    unchecked = missing("gate/{}.parquet", variants)
    side_by_side(partial(check_manipulation, folder), [variants[n] for n in unchecked])
    side_by_side(partial(make_autoencoders, folder), missing("convergence/{}.parquet", READ))
    side_by_side(partial(measure_truth, folder), [pairs[n] for n in missing("truth/{}", pairs)])
    given = VARIANT_RECIPE, RELU_RECIPE, AUTOENCODER_TRACES, TRACE_SEED, paths.root() / CHECKPOINTS
    diffing.make(diffing.Plan(folder, COMPARED, *given), side_by_side)
    steering.make(folder, paths.root() / CHECKPOINTS / "steering", side_by_side)
    organism_card.write(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``python -m reasoning_features.making.organism [--folder F] [--workers N]``."""
    parser = argparse.ArgumentParser(description="Make the organism from nothing (resumable).")
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where it goes, from the repository's root"
    )
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side, one thread each")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stages(paths.root() / options.folder, options.workers)


if __name__ == "__main__":
    main()
