"""Training a sparse autoencoder on activations in memory, by a recipe and SAELens' trainer.

"relu" is the paper's architecture (loss ‖x − x̂‖² + λ Σ_i f_i ‖W_dec,i‖₂). "ortsae" and "soft_frozen_decoder"
are in :mod:`reasoning_features.dictionaries.architectures`. "frozen_decoder" and "frozen_encoder" are
BatchTopK with a part that stays as it was drawn: the baselines of the sanity checks (2602.14111).

The paper's schedule: Adam (0.9, 0.999), gradient clipped at 1, learning rate falling linearly over the last
20% of the steps, penalties warming up over the first 5%, input scaled by its expected norm. The scaling is
folded into the weights at the end: an SAE given back here works on raw activations.
"""

import hashlib
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE, BatchTopKTrainingSAE, JumpReLUTrainingSAE, SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from reasoning_features import paths
from reasoning_features.dictionaries import evaluation
from reasoning_features.dictionaries.architectures import SoftFrozenDecoder
from reasoning_features.dictionaries.autoencoder import NAMES, SCALED, check_weights, label_of, rows_at_once
from reasoning_features.dictionaries.evaluation import EXPLAINED
from reasoning_features.errors import UserError, check_finite
from reasoning_features.files import verify_shipped
from reasoning_features.residual_stream.activations import Moments, shuffled_batches
from reasoning_features.settings import Settings

Architecture = Literal[
    "relu", "topk", "batchtopk", "jumprelu", "matryoshka", "ortsae",
    "frozen_decoder", "soft_frozen_decoder", "frozen_encoder",
]  # fmt: skip
# weight of the loss that revives dead features: of all that are BatchTopK (α of OrtSAE's paper), and of TopK
AUXILIARY, TOPK_AUXILIARY = 1 / 32, 1.0
NESTED = (16, 8, 4, 2, 1)  # Matryoshka's levels: the first 1/16 of the features, the first 1/8, …, all
# SAELens' names of architectures, where they are not ours
THEIRS = {"relu": "standard", "matryoshka": "matryoshka_batchtopk"}
THEIRS |= {"frozen_decoder": "batchtopk", "frozen_encoder": "batchtopk"}
LOOK = 16  # steps from one look whether losses and weights are finite, for which a GPU waits, to the next
LOWER = "lower `learning_rate`; what was stored before is kept"
HELD_OUT = 8192  # activations that no step sees, on which a training is judged
AGREEMENT = ["matched share", "paired one to one"]  # columns of :func:`convergence`
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Recipe:
    """What determines a trained SAE besides its activations.

    ``seed``, model and architecture set the start and the order of the data: two SAEs that start alike would
    look alike. Decoder ``directions`` start as SAELens draws them, on the sphere ("iso"), or with the
    activations' covariance ("cov").
    """

    architecture: Architecture
    d_sae: int  # features
    tokens: int  # activations seen in training, repeats included
    learning_rate: float  # of Adam, before its decay
    batch: int = 2048  # activations a step
    seed: int = 0
    k: float = 16  # active features; of BatchTopK their mean over a batch; what "jumprelu" is held to
    l1: float = 5.0  # λ, in units of the scaled input ("relu"); weight of the L0 penalty ("jumprelu")
    directions: Literal["default", "iso", "cov"] = "default"
    gamma: float = 0.25  # of OrtSAE's penalty, as the next two
    chunks: int = 1
    every: int = 1
    cap: float = 0.8  # least cosine of a soft-frozen direction with its start
    auxiliary: float | None = None  # weight of the loss that revives dead features; None for the usual one

    @property
    def steps(self) -> int:
        """Of the optimiser."""
        return self.tokens // self.batch

    @property
    def label(self) -> str:
        """The architecture, and its start where that is not usual."""
        return label_of(self.architecture, self.directions)

    def start(self, model_name: str) -> int:
        """The seed of the random streams for a model."""
        text = f"{model_name}/{self.architecture}/{self.seed}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    @property
    def metadata(self) -> dict[str, Any]:
        """What an SAE's metadata keeps: what every architecture has, and of the rest what is not usual."""
        usual = {field.name: field.default for field in fields(self)}
        some = ("directions", "gamma", "chunks", "every", "cap", "auxiliary")
        return {n: v for n, v in asdict(self).items() if n not in some or v != usual[n]}


def settings_recipe(settings: Settings) -> Recipe:
    """The recipe of a profile's settings: the paper's architecture."""
    sizes = settings.d_sae, settings.train_tokens, settings.learning_rate, settings.train_batch
    return Recipe("relu", *sizes, settings.seed, settings.k, settings.l1)


@dataclass(frozen=True)
class Training:
    """An SAE and how it came about."""

    sae: SAE[Any]  # works on raw activations
    history: pd.DataFrame  # a row a step, of :func:`held_out_quality`
    decoders: dict[int, Tensor]  # step → decoder directions [s, d]
    live: dict[int, Flags]  # step → [s] active on a held-out activation


def train_autoencoder(
    residual: Tensor,
    recipe: Recipe,
    model_name: str,
    hook_name: str,
    record_at: Sequence[int] = (),
    device: str = "cpu",
    initial: SAE[Any] | None = None,
) -> Training:
    """Train an SAE on raw activations ``[n, d]``; the same arguments give the same bytes on the same machine.

    The first 8,192 activations of a seeded order (at most a tenth) are held out; steps 0, ``record_at`` and
    the last are recorded. ``initial`` is an SAE on raw activations to go on from. UserError: as
    :func:`new_trainer` and :func:`steps`.
    """
    start = recipe.start(model_name)
    order = torch.randperm(len(residual), generator=torch.Generator().manual_seed(start))
    n_held_out = min(HELD_OUT, len(residual) // 10)
    held_out, sample = residual[order[:n_held_out]].to(device), residual[order[n_held_out:]]
    data = shuffled_batches(sample, recipe.batch, start)
    trainer = new_trainer(recipe, model_name, hook_name, sample, data, device, initial)
    rows: list[dict[str, float]] = []
    decoders, live = dict[int, Tensor](), dict[int, Flags]()
    for step in chain([0], steps(trainer)):
        if step in {0, *record_at, recipe.steps}:
            numbers, live[step] = held_out_quality(trainer, held_out)
            rows.append(numbers)
            decoders[step] = trainer.sae.W_dec.detach().cpu().clone()
    return Training(finished(trainer), pd.DataFrame(rows), decoders, live)


def new_trainer(
    recipe: Recipe,
    model_name: str,
    hook_name: str,
    sample: Tensor,
    data: Iterator[Tensor],
    device: str,
    initial: SAE[Any] | None = None,
) -> SAETrainer[Any, Any]:
    """SAELens' trainer at the first step; the same arguments give the same start.

    A ``sample`` of raw activations ``[n, d]`` gives the scale and the start; ``data`` are endless batches.
    UserError: too few tokens for one step, or ``initial`` is of another kind or size.
    """
    if recipe.steps < 1:
        few = f"{recipe.tokens:,} training tokens are fewer than one batch of {recipe.batch:,}"
        raise UserError(f"{few}: raise train_tokens.")
    moments, width, start = Moments.of(sample), sample.shape[1], recipe.start(model_name)
    if not moments.variance > 0:
        raise UserError("The activations of the sample are all the same: give texts that differ.")
    scale = width**0.5 / moments.mean_norm
    about = SAEMetadata(model_name=model_name, hook_name=hook_name, recipe=recipe.metadata)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        sae = _random_start(recipe, width, start, about).to(device)
    if recipe.directions != "default":
        _start_at(sae, start_directions(recipe, sample, start))
    if initial is not None:
        _start_from(sae, initial, scale)
    else:
        sae.b_dec.data = torch.from_numpy(moments.mean * scale).to(sae.b_dec)
        if not sae.cfg.apply_b_dec_to_input:  # then the encoder's bias takes the mean away instead
            sae.b_enc.data = -(sae.b_dec.data @ sae.W_enc.data)
    samples, rate = recipe.steps * recipe.batch, recipe.learning_rate
    seen = {"total_training_samples": samples, "train_batch_size_samples": recipe.batch}
    rates = {"lr": rate, "lr_end": 0.0, "lr_decay_steps": recipe.steps // 5}
    schedule = SAETrainerConfig(**seen, **rates, device=device)
    trainer = SAETrainer(cfg=schedule, sae=sae, data_provider=data)
    trainer.activation_scaler.scaling_factor = scale
    return trainer


def _random_start(recipe: Recipe, width: int, start: int, metadata: SAEMetadata) -> TrainingSAE[Any]:
    """SAELens' training SAE of a recipe, drawn from torch's global random stream."""
    warm_up = max(1, recipe.steps // 20)
    usual = TOPK_AUXILIARY if recipe.architecture == "topk" else AUXILIARY
    revival = {"aux_loss_coefficient": usual if recipe.auxiliary is None else recipe.auxiliary}
    options: dict[str, Any] = revival | {"k": float(recipe.k)}  # of all that are BatchTopK
    match recipe.architecture:
        case "relu":
            options = {"l1_coefficient": recipe.l1, "l1_warm_up_steps": warm_up}
            options["apply_b_dec_to_input"] = False
        case "topk":
            options["k"] = int(recipe.k)
        case "jumprelu":
            options = {"l0_coefficient": recipe.l1, "l0_warm_up_steps": warm_up, "target_l0": recipe.k}
            options["jumprelu_sparsity_loss_mode"] = "quadratic"
        case "matryoshka":
            options["matryoshka_widths"] = sorted({max(1, recipe.d_sae // part) for part in NESTED})
        case "ortsae":
            options |= {"gamma": recipe.gamma, "chunks": recipe.chunks, "every": recipe.every}
            options["partition_seed"] = start
        case "soft_frozen_decoder":
            options["cap"] = recipe.cap
    kind, config = get_sae_training_class(THEIRS.get(recipe.architecture, recipe.architecture))
    options |= {"d_in": width, "d_sae": recipe.d_sae, "normalize_activations": SCALED, "metadata": metadata}
    sae = kind(config(**options))
    sae.W_dec.requires_grad_(recipe.architecture != "frozen_decoder")
    sae.W_enc.requires_grad_(recipe.architecture != "frozen_encoder")
    return sae


def start_directions(recipe: Recipe, sample: Tensor, seed: int) -> Tensor:
    """Where a recipe's decoder directions start ``[d_sae, d]``, where SAELens does not draw them."""
    if recipe.directions == "cov":
        return evaluation.gaussian_directions(sample, recipe.d_sae, seed)
    return torch.randn(recipe.d_sae, sample.shape[1], generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _start_at(sae: TrainingSAE[Any], directions: Tensor) -> None:
    """Gives a new SAE its decoder directions, and its encoder the same, as SAELens does where it draws."""
    length = sae.cfg.decoder_init_norm
    sae.W_dec.data = (normalize(directions, dim=1) * length).to(sae.W_dec)
    sae.W_enc.data = sae.W_dec.data.T.clone(memory_format=torch.contiguous_format)
    if isinstance(sae, SoftFrozenDecoder):
        sae.start = sae.W_dec.data.clone()


def _start_from(sae: TrainingSAE[Any], initial: SAE[Any], scale: float) -> None:
    """Gives a new SAE the features of an SAE on raw activations, while its own inputs are scaled."""
    kind = sae.cfg.get_inference_config_class().architecture()
    if initial.cfg.architecture() != kind or initial.W_enc.shape != sae.W_enc.shape:
        given = f"a {initial.cfg.architecture()} autoencoder of {initial.cfg.d_sae} features"
        makes = f"the recipe makes a {kind} one of {sae.cfg.d_sae} on {sae.cfg.d_in}"
        raise UserError(f"Training cannot go on from {given} on width {initial.cfg.d_in}: {makes}.")
    sae.W_enc.data = (initial.W_enc.data / scale).to(sae.W_enc)
    sae.W_dec.data = (initial.W_dec.data * scale).to(sae.W_dec)
    sae.b_dec.data = (initial.b_dec.data * scale).to(sae.b_dec)
    sae.b_enc.data = initial.b_enc.data.clone().to(sae.b_enc)
    if isinstance(sae, BatchTopKTrainingSAE):  # its threshold is in units of the decoder's norms
        sae.topk_threshold = (initial.threshold * initial.W_dec.norm(dim=1)).mean().double() * scale
    elif isinstance(sae, JumpReLUTrainingSAE):
        sae.threshold.data = initial.threshold.data.clone().to(sae.threshold)


def steps(trainer: SAETrainer[Any, Any], looked: Collection[int] = ()) -> Iterator[int]:
    """Take the steps that are left and give each's number; UserError: a loss or a weight is not finite."""
    total, done = trainer.cfg.total_training_samples, trainer.n_training_samples
    losses = dict[int, Tensor]()
    with tqdm(total=total, initial=done, desc="Training SAE", unit_scale=True) as bar:
        while trainer.n_training_samples < total:
            trainer.maybe_reset_sparsity()
            batch = next(trainer.data_provider)
            losses[step := trainer.n_training_steps + 1] = trainer.step(batch).loss.detach()
            trainer.n_training_steps = step
            bar.update(len(batch))
            if step % LOOK == 0 or step in looked or trainer.n_training_samples >= total:
                for number in list(losses):
                    check_finite(losses.pop(number), f"The loss of step {number:,}", LOWER)
                check_weights(trainer.sae, f"the autoencoder after step {step:,}", LOWER)
            yield step


@torch.no_grad()
def held_out_quality(trainer: SAETrainer[Any, Any], held_out: Tensor) -> tuple[dict[str, float], Flags]:
    """Step, tokens, loss (of scaled input), L0, explained variance and dead share on raw activations
    ``[n, d]``, by name; and which features are active on any of them ``[f]``.
    """
    sae, scaled = trainer.sae, held_out * trainer.activation_scaler.scaling_factor
    mean, parts = scaled.mean(0), scaled.split(rows_at_once(sae))
    loss, error, deviation, active = 0.0, 0.0, 0.0, 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=scaled.device)
    buffers = {name: buffer.clone() for name, buffer in sae.named_buffers(recurse=False)}
    at = trainer.get_coefficients(), None, trainer.n_training_steps, False  # no mask of the dead, no logging
    for part in parts:
        output = sae.training_forward_pass(TrainStepInput(part, *at))
        loss += float(output.loss) * len(part) / len(scaled)
        error += float((part - output.sae_out).double().square().sum())
        deviation += float((part - mean).double().square().sum())
        active += float((output.feature_acts > 0).sum(1).double().sum())
        fired |= (output.feature_acts > 0).any(0)
    check_finite(np.float64(loss), f"The held-out loss at step {trainer.n_training_steps:,}", LOWER)
    for name, buffer in buffers.items():  # a pass moves BatchTopK's threshold, and this one is no step
        setattr(sae, name, buffer)
    live = fired.cpu().numpy()
    numbers = {
        "step": trainer.n_training_samples // trainer.cfg.train_batch_size_samples,
        "tokens": trainer.n_training_samples,
        "loss": loss,
        "L0": active / len(scaled),
        EXPLAINED: 1 - error / deviation,
        "dead share": float(1 - live.mean()),
    }
    return numbers, live


def finished(trainer: SAETrainer[Any, Any]) -> SAE[Any]:
    """The inference SAE of a training that is over, on raw activations, exactly as a saved copy loads."""
    trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.set_final_sae_metadata()
    trainer.sae.to("cpu").cfg.device = "cpu"
    with tempfile.TemporaryDirectory() as directory:
        trainer.sae.save_inference_model(directory)
        return SAE.load_from_disk(directory).requires_grad_(False).eval()


def convergence(first: Training, second: Training) -> pd.DataFrame:
    """What one seed finds and another too, at the steps both recorded: the ``matched share`` of either's live
    features with a live partner, averaged over both, and ``paired one to one``, where none counts twice.
    """
    tokens = first.history.set_index("step")["tokens"]
    rows = []
    for step in sorted(first.decoders.keys() & second.decoders.keys()):
        one, other = first.decoders[step][first.live[step]], second.decoders[step][second.live[step]]
        row = {"step": step, "tokens": tokens[step]}
        for name, share in zip(AGREEMENT, (evaluation.matched_share, evaluation.paired_share), strict=True):
            row[name] = (share(one, other) + share(other, one)) / 2
        rows.append(row)
    return pd.DataFrame(rows)


def shipped_agreement(sae: SAE[Any], directory: str) -> pd.DataFrame:
    """What :func:`convergence` gave of a shipped SAE and its second seed; empty where it is not kept."""
    home = (paths.root() / directory).parent.parent
    table = home / "convergence" / f"{sae.cfg.metadata.model_name}.parquet"
    if not table.is_file():
        return pd.DataFrame(columns=["step", "tokens", *AGREEMENT])
    verify_shipped(table)
    return pd.read_parquet(table)


def sweep(
    residual: Tensor,
    held_out: Tensor,
    recipes: Sequence[Recipe],
    model_name: str,
    hook_name: str,
    device: str = "cpu",
) -> pd.DataFrame:
    """Train two seeds of each recipe; measure the first on activations it has not seen, and their agreement,
    by ``architecture`` and ``setting`` (its k or λ).
    """
    rows = []
    for recipe in recipes:
        first, second = (
            train_autoencoder(residual, replace(recipe, seed=seed), model_name, hook_name, device=device)
            for seed in (recipe.seed, recipe.seed + 1)
        )
        setting = f"λ = {recipe.l1:g}" if recipe.architecture == "relu" else f"k = {recipe.k:g}"
        shares = convergence(first, second).iloc[-1][AGREEMENT]
        row = {"architecture": NAMES[recipe.architecture], "setting": setting}
        rows.append(row | evaluation.quality(first.sae, held_out) | shares.to_dict())
    columns = ["architecture", "setting", "L0", EXPLAINED, "dead share", *AGREEMENT]
    return pd.DataFrame(rows, columns=columns)


def equal_l0(frontier: pd.DataFrame, l0: float) -> pd.DataFrame:
    """Explained variance and agreement of seeds at one L0, a row an architecture: between its rows of
    :func:`sweep`, linearly in log L0; NaN outside their range.
    """
    found, columns, ends = [], [EXPLAINED, *AGREEMENT], {"left": np.nan, "right": np.nan}
    for architecture, rows in frontier.sort_values("L0").groupby("architecture"):
        at = {name: np.interp(np.log(l0), np.log(rows["L0"]), rows[name], **ends) for name in columns}
        found.append({"architecture": architecture} | at)
    return pd.DataFrame(found, columns=["architecture", *columns])
