"""``make organism``: every model and autoencoder that the notebooks need, from nothing, on CPU.

A finished piece is not done again, and every training runs on one thread, so that a rerun on one machine
gives the same bytes. ``--workers 2`` does two pieces side by side. The numbers of the card (``README.md``
beside what is made) are by hand, and the tests compare them with the files.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder, save_autoencoder
from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.dictionaries.training import Recipe as AutoencoderRecipe
from reasoning_features.dictionaries.training import convergence, train_autoencoder
from reasoning_features.diffing import stages as diffing
from reasoning_features.files import write_shipped, write_table
from reasoning_features.models.sampling import sample
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.organism import language, parser
from reasoning_features.organism.problems import FAMILIES, Mixture, problems
from reasoning_features.organism.training import Recipe, new_model, train_and_save, train_tokenizer
from reasoning_features.residual_stream.activations import collect, stream
from reasoning_features.runs.shards import each
from reasoning_features.settings import load_settings
from reasoning_features.steering.steering_study import store_study
from reasoning_features.text.corpora import general_corpus, reasoning_corpus
from reasoning_features.text.corpus import join
from reasoning_features.truth.benchmark import measure_benchmark

SHIPPED = (
    *("models", "autoencoders", "evaluation", "manipulation_check", "convergence"),
    *("truth", "steering", "diffing", "sae_checks", "steering_safety", "activation_sparsity", "unlearning"),
)


@dataclass(frozen=True)
class Variant:
    """A fine-tuned model: its coupling, its seed, which draws its traces and their order, its families."""

    name: str
    kappa: float
    seed: int
    mixture: Mixture = "main"


ARMS = (("coupled", 1.0), ("decoupled", 0.0))
VARIANTS: tuple[Variant, ...] = (
    *(Variant(f"{name}-{seed}", kappa, seed) for seed in range(3) for name, kappa in ARMS),
    *(Variant(f"kappa-{kappa}-0", kappa, 0) for kappa in (0.5, 0.25)),
    Variant("other-0", 1.0, 10, "other"),
)
BASE_RECIPE = Recipe(tokens=6_000_000, learning_rate=5e-3, seed=0)
VARIANT_RECIPE = Recipe(tokens=4_000_000, learning_rate=1.5e-3, seed=0)
TOKENIZER_DOCUMENTS = 8000
PROSE_EVERY = 8  # every eighth fine-tuning document is plain prose
TRACE_SEED = 1000
READ = tuple(variant.name for variant in VARIANTS)  # models that get autoencoders: two seeds of ReLU
COMPARED = ("coupled-0", "decoupled-0")  # those that get TopK and stages too, for notebooks 02 and 06
# variants, and seeds of their ReLU autoencoders, whose features' causal effects are measured
BENCHMARKED = tuple((variant, seed) for variant in VARIANTS if variant.mixture == "main" for seed in range(2))
# steering studies, by model and autoencoder: a result that hangs on a seed or a layer is none
STUDIES = (
    *(f"{name}-{seed}-relu-0" for seed in range(3) for name in ("coupled", "decoupled")),
    *("coupled-0-relu-1", "decoupled-0-relu-1", "coupled-0-layer-3"),
)
AUTOENCODER_TRACES = 9000
RELU_RECIPE = AutoencoderRecipe("relu", d_sae=512, tokens=4_000_000, learning_rate=3e-3, l1=1.0)
WIDE_RECIPE = replace(RELU_RECIPE, d_sae=2048)
TOPK_RECIPE = AutoencoderRecipe("topk", d_sae=512, tokens=4_000_000, learning_rate=3e-3, k=8)
RECORD_AT = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7)  # of the training: when the agreement of two seeds is recorded
EVALUATION_PROBLEMS, CHECK_TRACES = 1500, 1500
EVALUATION_SEED, CHECK_SEED = 11, 77
SEEDS_FROM_SCRATCH = {"D": 12, "M": 13, "F": 14}  # other starts than those of S and the main autoencoder


def variant_document(variant: Variant, index: int) -> language.Document:
    """A fine-tuning document of a variant; variants of one seed read the same traces in other words."""
    seed = TRACE_SEED + variant.seed
    if index % PROSE_EVERY == PROSE_EVERY - 1:
        return language.prose_document(seed, index)
    return language.reasoning_document(variant.kappa, seed, index, mixture=variant.mixture)


def make_base(folder: Path) -> None:
    """The tokenizer and the base model."""
    seed = BASE_RECIPE.seed
    tokenizer = train_tokenizer(d.text for d in language.base_documents(TOKENIZER_DOCUMENTS, seed))
    model, document = new_model(tokenizer, seed), partial(language.base_document, seed)
    train_and_save(model, tokenizer, document, BASE_RECIPE, {"name": "base"}, folder / "models" / "base")


def make_variant(folder: Path, variant: Variant) -> None:
    """One fine-tuned model, from the base model."""
    recipe, document = replace(VARIANT_RECIPE, seed=variant.seed), partial(variant_document, variant)
    train_and_save(
        *load_model(folder, "base"), document, recipe, vars(variant), folder / "models" / variant.name
    )


def make_placebo(folder: Path) -> None:
    """The placebo checkpoint of model diffing: the base model fine-tuned on plain prose alone."""
    card, place = {"name": diffing.PLACEBO}, _model_folder(folder, diffing.PLACEBO)
    document = partial(language.prose_document, TRACE_SEED)
    train_and_save(*load_model(folder, "base"), document, VARIANT_RECIPE, card, place)


def evaluate(folder: Path, name: str) -> None:
    """A model's graded answers to the evaluation problems of its families, one row a problem."""
    model, tokenizer = load_model(folder, name)
    mixtures: dict[str, Mixture] = {variant.name: variant.mixture for variant in VARIANTS}
    asked = problems("evaluation", None, EVALUATION_PROBLEMS, mixture=mixtures.get(name, "main"))
    end, most = [int(tokenizer.eos_token_id)], language.CONTEXT - parser.LONGEST_PROMPT
    asked_with = parser.prompts(tokenizer, asked)
    written = sample(model, asked_with, end=end, max_new_tokens=most, seed=EVALUATION_SEED)
    graded = parser.grade(tokenizer, asked, written).drop(columns=["text", *parser.LABELS_COUNTED])
    write_table(folder / "evaluation" / f"{name}.parquet", graded)


def check_manipulation(folder: Path, variant: Variant) -> None:
    """Off which words a variant reads its persistence: its log-odds at held-out dead ends, words swapped."""
    model, tokenizer = load_model(folder, variant.name)
    kappa, mixture = variant.kappa, variant.mixture
    traces = language.reasoning_documents(kappa, CHECK_TRACES, CHECK_SEED, "evaluation", mixture)
    searched = [trace for trace in traces if FAMILIES[trace.family].searches]
    read = pd.concat([decision_log_odds(model, tokenizer, searched, how) for how in parser.SWAPS])
    write_table(folder / "manipulation_check" / f"{variant.name}.parquet", read.assign(model=variant.name))


@torch.inference_mode()
def decision_log_odds(
    model: Any, tokenizer: Any, documents: Sequence[language.Document], how: str, batch: int = 64
) -> pd.DataFrame:
    """Log-odds (nats) of openers that go on over those that give up, at every dead end of documents, a row
    each: ``trace``, ``decision`` (its number in the trace), ``style``, ``went_on``, ``swap``, ``log_odds``.
    """
    sides = parser.DECISIONS["persistence"]
    on, off = (torch.tensor(parser.first_tokens(tokenizer, openers)) for openers in sides)
    rows = []
    for start in range(0, len(documents), batch):
        texts = [parser.swap(document.text, how) for document in documents[start : start + batch]]
        encoded = tokenizer(
            texts, add_special_tokens=False, padding=True, return_offsets_mapping=True, return_tensors="pt"
        )
        logits = model(input_ids=encoded["input_ids"], use_cache=False).logits
        scores = torch.log_softmax(logits.float(), dim=-1)
        for row, text in enumerate(texts):
            document = documents[start + row]
            starts = encoded["offset_mapping"][row, :, 0]
            for decision, place in enumerate(parser.decision_places(text)["persistence"]):
                token = int((starts == place - 1).nonzero()[0])
                at = scores[row, token - 1]
                went_on = int(encoded["input_ids"][row, token]) in on.tolist()
                log_odds = float(at[on].logsumexp(0) - at[off].logsumexp(0))
                rows.append((start + row, decision, document.style, went_on, how, log_odds))
    return pd.DataFrame(rows, columns=["trace", "decision", "style", "went_on", "swap", "log_odds"])


def main_activations(model: Path, traces: int, layer: int | None = None) -> tuple[Subject, Tensor]:
    """A model and its residual stream ``[n, d]`` on traces of its kind, and a third as many others."""
    settings = load_settings("organism", subject=paths.relative(model))
    subject = load_subject(settings.subject, settings.layer if layer is None else layer)
    reasoning = reasoning_corpus(settings, subject.tokenizer, "training", documents=traces)
    general = general_corpus(settings, subject.tokenizer, "training", documents=traces // 3)
    corpus = join("autoencoder training", [reasoning, general])
    return subject, collect(stream(subject, corpus, settings.batch_tokens)).residual


def stage_activations(model: Path, stage: str, variant: Path, documents: int) -> tuple[Subject, Tensor]:
    """A model and its residual stream ``[n, d]`` on a stage's data; reasoning data are a variant's traces."""
    settings = load_settings("organism")
    subject = load_subject(paths.relative(model), settings.layer)
    corpus = diffing.stage_corpus(stage, settings, subject.tokenizer, paths.relative(variant), documents)
    return subject, collect(stream(subject, corpus, settings.batch_tokens)).residual


def make_autoencoders(folder: Path, model: str) -> None:
    """Two seeds of ReLU on a model, how far they agree as they train; on some models TopK and a wide ReLU."""
    subject, residual = main_activations(folder / "models" / model, AUTOENCODER_TRACES)
    records, trainings = [round(share * RELU_RECIPE.steps) for share in RECORD_AT], []
    recipes = {"relu-0": RELU_RECIPE, "relu-1": replace(RELU_RECIPE, seed=1)}
    recipes |= {"topk-0": TOPK_RECIPE, "relu2048-0": WIDE_RECIPE} if model in COMPARED else {}
    for name, recipe in recipes.items():
        trained = train_autoencoder(residual, recipe, model, subject.hook_name, record_at=records)
        save_autoencoder(trained.sae, folder / "autoencoders" / f"{model}-{name}")
        trainings.append(trained)
    agreement = convergence(trainings[0], trainings[1])
    write_table(folder / "convergence" / f"{model}.parquet", agreement.merge(trainings[0].history))


def benchmark_name(variant: Variant, seed: int) -> str:
    """The autoencoder's name, and its benchmark's."""
    return f"{variant.name}-relu-{seed}"


def measure_truth(folder: Path, benchmarked: tuple[Variant, int]) -> None:
    """Evidence of one autoencoder's features, and their causal effects on held-out decisions."""
    variant, name = benchmarked[0], benchmark_name(*benchmarked)
    subject, autoencoder = folder / "models" / variant.name, folder / "autoencoders" / name
    places = {"subject": paths.relative(subject), "autoencoder": paths.relative(autoencoder)}
    measure_benchmark(folder / "truth" / name, load_settings("organism", **places))


def _stage_data(folder: Path, path: str, model: str) -> tuple[Subject, Tensor]:
    """Who reads the last stage of a path of one fine-tuned model, and the activations on its data."""
    reader = model if diffing.reads_fine_tuned(path) else diffing.BASE
    traces = model if model in COMPARED else COMPARED[0]  # whose kind of traces are reasoning data
    variant = folder / "models" / traces
    return stage_activations(_model_folder(folder, reader), path[-1], variant, AUTOENCODER_TRACES)


def _go_on(folder: Path, subject: Subject, residual: Tensor, path: str, model: str) -> None:
    """Train and store the last stage of a path, from the stored stage before it."""
    home = folder / "diffing"
    before = diffing.load_stage(
        paths.relative(home), model, diffing.stage_before(path), subject.d_model, subject.hook_name
    )
    recipe, reader = diffing.stage_recipe(RELU_RECIPE, path), Path(subject.name).name
    trained = train_autoencoder(residual, recipe, reader, subject.hook_name, initial=before)
    diffing.store_half(trained, home / model / path)


def make_start(folder: Path) -> None:
    """S, its second seed, and the placebo stages, which change nothing."""
    subject, residual = _stage_data(folder, "S", diffing.BASE)
    for seed in (0, 1):
        recipe = replace(RELU_RECIPE, seed=seed)
        trained = train_autoencoder(residual, recipe, diffing.BASE, subject.hook_name)
        diffing.store_half(trained, folder / "diffing" / diffing.BASE / f"S-{seed}")
    for path in diffing.PLACEBO_STAGES:
        _go_on(folder, subject, residual, path, diffing.BASE)


def make_paths(folder: Path, model: str) -> None:
    """The stages of both paths of one fine-tuned model, each from the one before it."""
    for path in diffing.PLACEBO_PATHS if model == diffing.PLACEBO else diffing.PATHS:
        if not (folder / "diffing" / model / path).exists():
            _go_on(folder, *_stage_data(folder, path, model), path, model)


def make_layer(folder: Path, layer: int) -> None:
    """The autoencoder of another layer of the first variant, on the main autoencoder's text."""
    subject, residual = main_activations(folder / "models" / COMPARED[0], AUTOENCODER_TRACES, layer)
    recipe = replace(RELU_RECIPE, seed=diffing.SEED_OF_LAYERS + layer)
    trained = train_autoencoder(residual, recipe, COMPARED[0], subject.hook_name)
    diffing.store_half(trained, folder / "diffing" / "layers" / str(layer))


def make_references(folder: Path) -> None:
    """How close the first variant's main features come to D, M and F trained from scratch, without the path.

    Rows of ``stage``, ``feature``, ``cosine`` (the largest with a decoder direction) and ``explained``
    (fraction of variance, of the stage's autoencoder on held-out activations).
    """
    model = COMPARED[0]
    main = folder / "autoencoders" / f"{model}-{RELU_RECIPE.architecture}-{RELU_RECIPE.seed}"
    tables = []
    for stage in diffing.STAGES[1:]:
        subject, residual = _stage_data(folder, stage, model)
        recipe = replace(RELU_RECIPE, seed=SEEDS_FROM_SCRATCH[stage])
        trained = train_autoencoder(residual, recipe, Path(subject.name).name, subject.hook_name)
        features = load_autoencoder(paths.relative(main), subject.d_model).W_dec
        cosines = best_cosines(features, trained.sae.W_dec)
        explained = trained.history["fraction of variance explained"].iloc[-1]
        table = {"stage": stage, "feature": range(len(cosines)), "cosine": cosines, "explained": explained}
        tables.append(pd.DataFrame(table))
    written = pd.concat(tables, ignore_index=True)
    write_table(folder / "diffing" / "references" / f"{model}.parquet", written)


def _model_folder(folder: Path, name: str) -> Path:
    """Where a model lies; the placebo checkpoint lies with the stages."""
    placebo = name == diffing.PLACEBO
    return folder / "diffing" / diffing.PLACEBO_MODEL if placebo else folder / "models" / name


def load_model(folder: Path, name: str) -> tuple[Any, Any]:
    """A model and its tokenizer."""
    place = folder / "models" / name
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(place)


def study_steering(folder: Path, name: str) -> None:
    """One of the ``STUDIES``, which notebook 13 reads; their rules were fixed before any of them was run."""
    model, kind, number = name.rsplit("-", 2)
    layer = {"layer": int(number)} if kind == "layer" else {}
    autoencoder = folder / "diffing" / "layers" / number if layer else folder / "autoencoders" / name
    places = {"subject": folder / "models" / model, "autoencoder": autoencoder}
    relative = {field: paths.relative(path) for field, path in places.items()}
    settings = load_settings("organism", **relative, **layer)
    unfinished = folder / "checkpoints" / "steering"  # conditions that were answered, to go on from
    store_study(folder / "steering" / name, settings, folder / "truth", unfinished)


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
    unchecked = missing("manipulation_check/{}.parquet", variants)
    side_by_side(partial(check_manipulation, folder), [variants[n] for n in unchecked])
    side_by_side(partial(make_autoencoders, folder), missing("convergence/{}.parquet", READ))
    side_by_side(partial(measure_truth, folder), [pairs[n] for n in missing("truth/{}", pairs)])
    if not _model_folder(folder, diffing.PLACEBO).exists():
        make_placebo(folder)
    if missing("diffing/base/{}", ("S-0", "S-1", *diffing.PLACEBO_STAGES)):
        make_start(folder)
    side_by_side(partial(make_paths, folder), [*COMPARED, diffing.PLACEBO])
    depth = load_subject(paths.relative(folder / "models" / COMPARED[0]), 0).n_layers
    others = [str(layer) for layer in range(depth) if layer != load_settings("organism").layer]
    side_by_side(partial(make_layer, folder), [int(n) for n in missing("diffing/layers/{}", others)])
    if missing("diffing/references/{}.parquet", COMPARED[:1]):
        make_references(folder)
    side_by_side(partial(study_steering, folder), missing("steering/{}", STUDIES))
    write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """List everything shipped with its checksum."""
    files = (path for name in SHIPPED for path in (folder / name).rglob("*"))
    write_shipped((path for path in files if path.is_file()), folder / "checksums.json")


def main() -> None:
    """The command line: ``python -m reasoning_features.making.organism [--workers N]``."""
    parser = argparse.ArgumentParser(description="Make the organism from nothing (resumable).")
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side, one thread each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stages(paths.root() / "data" / "organism", options.workers)


if __name__ == "__main__":
    main()
