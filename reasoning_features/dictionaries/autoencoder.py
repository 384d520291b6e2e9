"""Sparse autoencoders of this package: loaded, saved, and their features computed.

Features are f = encode(x), reconstructions x̂ = decode(f), of raw activations x. Files are SAELens' or those
of EleutherAI's sparsify. Two things that SAELens 6 makes of them are put right: SAELens 5 folded a training's
scaling into the weights, but its configuration goes on to tell of scaled activations; and sparsify's
``layers.N.mlp`` is an MLP's output, encoded less the decoder's bias.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file
from torch import Tensor

from reasoning_features import hub, paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError, check_finite
from reasoning_features.files import damaged_training, read_json, verify_shipped

SAELENS, SPARSIFY = "sae_weights.safetensors", "sae.safetensors"  # files of weights, by format
SCALED = "expected_average_only_in"  # SAELens' name of activations scaled to a mean norm of √d
SITES = {"": "resid_post", ".mlp": "mlp_out"}  # sparsify's folder ``layers.N…`` → TransformerLens' name
CLEARLY = 0.05  # two scalings of activations are told apart where explained variance differs by more
ELEMENTS = 2**25  # the most feature activations held at once: 128 MiB in float32, 512 tokens at 65,536
# architecture → its name in figures and tables
NAMES = {"relu": "ReLU", "topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU"}
NAMES |= {"matryoshka": "Matryoshka", "ortsae": "OrtSAE", "frozen_decoder": "frozen decoder"}
NAMES |= {"soft_frozen_decoder": "soft-frozen decoder", "frozen_encoder": "frozen encoder"}


def load_autoencoder(
    reference: str, d_model: int, hook_name: str | None = None, device: str = "cpu"
) -> SAE[Any]:
    """Load an SAE that works on raw activations, in float32, after its checksums.

    ``reference`` is a directory (absolute, or from the repository's root) or
    ``owner/name[@revision][:folder]`` of the hub. ``d_model`` and ``hook_name`` are what it is meant for;
    None accepts any hook point. MissingArtefact: there is none. CorruptArtefact: a checksum does not match,
    or it cannot be read. UserError: another width, hook point, scale or kind, or weights that are not finite.
    """
    if not reference:
        raise MissingArtefact("The profile names no autoencoder: give one as `autoencoder`.")
    path, name = hub.directory(reference), reference
    advice = "name the folder that has cfg.json, as owner/name:folder"
    if hub.is_local(reference):
        name, again = paths.relative(path), 'run `make nb-02 PARAMS="train_saes=true"`'
        advice = f"`make organism` makes the shipped, for one of your own {again}"
        verify_shipped(path)
        if bad := damaged_training(path):
            damaged = f"{paths.relative(bad[0])} is damaged or missing (its checksum is not the stored one)"
            raise CorruptArtefact(f"{damaged}: restore it, or delete {name} and {again}.")
    if not (path / "cfg.json").is_file() or not any((path / file).is_file() for file in (SAELENS, SPARSIFY)):
        raise MissingArtefact(f"There is no autoencoder in {name}: {advice}.")
    told = f"The autoencoder in {name}"
    try:
        sae = (_read_sparsify if (path / SPARSIFY).is_file() else _read_saelens)(path, name, device)
        check_weights(sae, f"the autoencoder in {name}", remedy := "delete it, or give another")
        check_finite(sae(torch.ones(1, sae.cfg.d_in, device=device)), f"What {name} answers", remedy)
        hook = place_of(sae.cfg.metadata.hook_name or "")
    except UserError:
        raise
    except Exception as error:
        raise CorruptArtefact(f"{told} cannot be read: restore its files.") from error
    if sae.cfg.d_in != d_model:
        widths = f"is for activations of width {sae.cfg.d_in}, but the model's are {d_model} wide"
        raise UserError(f"{told} {widths}: give one that was trained on this model.")
    if hook_name is not None and hook != hook_name:
        reads = f"reads {sae.cfg.metadata.hook_name}, not" if hook else "tells by no hook_name that it reads"
        raise UserError(f"{told} {reads} {hook_name}: give one that was trained there.")
    if (scaled := sae.cfg.normalize_activations) != "none":
        raise UserError(f"{told} expects scaled activations ({scaled}): fold that into its weights first.")
    return sae.requires_grad_(False).eval()


def _read_saelens(path: Path, name: str, device: str) -> SAE[Any]:
    """An autoencoder in SAELens' format; weights of its version 5 are taken for folded (`check_scaling`)."""
    kind = read_json(path / "cfg.json").get("architecture", "standard")
    if kind not in SAE_CLASS_REGISTRY or "transcoder" in kind or kind == "temporal":
        raise UserError(f"{name} is of the kind {kind!r}: give an autoencoder of activations, for inference.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # how SAELens would load the model
        sae = SAE.load_from_disk(path, device=device, dtype="float32")
    version = sae.cfg.metadata.sae_lens_training_version or sae.cfg.metadata.sae_lens_version or 6
    if sae.cfg.normalize_activations == SCALED and int(str(version).split(".")[0]) < 6:
        sae.cfg.normalize_activations = "none"
    return sae


def _read_sparsify(path: Path, name: str, device: str) -> SAE[Any]:
    """An autoencoder in sparsify's format; raises UserError for any other than TopK."""
    config = read_json(path / "cfg.json")
    others = map(config.get, ("transcode", "skip_connection", "signed"))
    if any(others) or config.get("activation", "topk") != "topk":
        raise UserError(f"{name} is a transcoder, or has an activation of its own: give a TopK autoencoder.")
    place = re.fullmatch(r"layers\.(\d+)(\.\w+)?", path.name)
    if place is None or (place[2] or "") not in SITES:
        raise UserError(f"{name} does not tell by its folder where it reads: give layers.N or layers.N.mlp.")
    above, weights = path.parent / "config.json", load_file(path / SPARSIFY, device=device)
    model, hook = read_json(above).get("model") if above.is_file() else None, SITES[place[2] or ""]
    metadata = SAEMetadata(hook_name=f"blocks.{place[1]}.hook_{hook}", model_name=model)
    features, width = weights["encoder.weight"].shape
    options = {"apply_b_dec_to_input": True, "device": "meta", "metadata": metadata}
    sae = TopKSAE(TopKSAEConfig(d_in=width, d_sae=features, k=config["k"], **options))
    named = {"W_enc": weights["encoder.weight"].T, "b_enc": weights["encoder.bias"]}
    named |= {name: weights[name] for name in ("W_dec", "b_dec")}
    sae.load_state_dict({key: part.float().contiguous() for key, part in named.items()}, assign=True)
    sae.cfg.device = device
    return sae.to(device=device)


def save_autoencoder(
    sae: SAE[Any], directory: Path, tables: Mapping[str, pd.DataFrame] | None = None
) -> None:
    """Write an SAE in SAELens' format, whole or not, with ``tables`` as CSV; UserError: it is not finite."""
    check_weights(sae, f"the autoencoder for {paths.relative(directory)}", "train it again")
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    sae.save_model(partial)
    cfg = partial / "cfg.json"
    cfg.write_text(json.dumps(json.loads(cfg.read_text()), indent=1, sort_keys=True) + "\n")
    for name, table in (tables or {}).items():
        table.to_csv(partial / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)


def check_weights(sae: Any, which: str, remedy: str) -> None:
    """UserError where a weight of an autoencoder is not finite."""
    for name, values in sae.state_dict().items():
        check_finite(values, f"{name} of {which}", remedy)


def place_of(hook: str) -> str:
    """Our name of a place: "blocks.2.hook_resid_pre" and "model.layers.1" are "blocks.1.hook_resid_post"."""
    if before := re.fullmatch(r"blocks\.(\d+)\.hook_(?:resid_pre|in)", hook):
        return f"blocks.{int(before[1]) - 1}.hook_resid_post"  # −1: the embeddings, which no block gives
    output = re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)(\.mlp)?(?:\.hook_out)?", hook)
    return f"blocks.{output[1]}.hook_{SITES[output[2] or '']}" if output else hook


def compared_with_plain(sae: SAE[Any], reference: str, residual: Tensor) -> str:
    """Say that plain SAELens gives the same features and reconstructions of activations ``[n, d]`` bit by
    bit; AssertionError where it does not.
    """
    path, some = hub.directory(reference), residual[: rows_at_once(sae)].to(sae.device)
    if not (path / SAELENS).is_file():
        return "of another format than SAELens'"
    plain = SAE.load_from_disk(path, device=str(sae.device), dtype="float32")
    assert torch.equal(plain.encode(some), sae.encode(some)) and torch.equal(plain(some), sae(some))
    return f"{type(plain).__name__}: the same numbers exactly"


def label_of(architecture: str, directions: str) -> str:
    """The architecture, with the start of its directions where that is not usual: "frozen_decoder-iso"."""
    return architecture if directions == "default" else f"{architecture}-{directions}"


def architecture_label(sae: SAE[Any]) -> str:
    """The :func:`label_of` an autoencoder that was trained here; of any other SAELens' name of its kind."""
    recipe, kind = sae.cfg.metadata.recipe, sae.cfg.architecture()
    if not isinstance(recipe, dict) or "architecture" not in recipe:
        return "relu" if kind == "standard" else str(kind)
    return label_of(recipe["architecture"], recipe.get("directions", "default"))


def name_of(label: str) -> str:
    """A label's name: "frozen_decoder-cov" is the frozen decoder (cov); the usual, "iso", goes unsaid."""
    architecture, _, start = label.partition("-")
    return NAMES.get(architecture, architecture) + ("" if start in ("", "iso") else f" ({start})")


@torch.no_grad()
def check_scaling(sae: SAE[Any], residual: Tensor) -> None:
    """UserError where an SAE explains activations ``[n, d]`` only once they are scaled to a mean norm of √d:
    a checkpoint from within a training, beside which SAELens 5 wrote the same configuration as at its end.
    """
    residual = residual.to(sae.device).float()
    scale = residual.shape[1] ** 0.5 / residual.norm(dim=1).mean()
    total = (residual - residual.mean(0)).square().sum()
    parts, errors = residual.split(rows_at_once(sae)), []
    for by in (1.0, scale):
        errors.append(sum((part - sae.decode(sae.encode(part * by)) / by).square().sum() for part in parts))
    raw, scaled = (1 - check_finite(torch.stack(errors), "The error of a reconstruction") / total).tolist()
    if scaled > max(raw, 0.0) + CLEARLY:  # where activations are about √d long both explain about the same
        found = f"{scaled:.0%} of the variance of scaled activations and {raw:.0%} of raw ones"
        why = "it is a checkpoint from within a training; give the one of its end"
        raise UserError(f"The autoencoder explains {found}: {why}.")


def dictionary_digest(sae: Any) -> str:
    """SHA-256 of an autoencoder's weights, with their names and types."""
    digest = hashlib.sha256()
    for name, values in sorted(sae.state_dict().items()):
        plain = values.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(memoryview(plain.view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def rows_at_once(*saes: Any) -> int:
    """The most tokens whose features may stand in memory, for the widest of these autoencoders."""
    return max(1, ELEMENTS // max(sae.cfg.d_sae for sae in saes))


@torch.no_grad()
def encoded(sae: Any, residual: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Which rows, and features ``[m, f]`` of these activations ``[n, d]``, on the autoencoder's device."""
    rows = rows_at_once(sae)
    for start in range(0, len(residual), rows):
        part = slice(start, min(start + rows, len(residual)))
        yield part, sae.encode(residual[part].to(sae.device))


def encoded_columns(sae: Any, residual: Tensor, features: Sequence[int] | NDArray[Any]) -> Tensor:
    """Some features ``[n, k]`` of activations ``[n, d]``, float32 in the computer's memory."""
    columns = torch.as_tensor(features, dtype=torch.int64, device=sae.device)
    parts = [values[:, columns].float().cpu() for _, values in encoded(sae, residual)]
    return torch.cat(parts) if parts else torch.empty(0, len(columns))


@torch.no_grad()
def added_directions(sae: SAE[Any]) -> Tensor:
    """What a unit of each latent adds to the reconstruction ``[s, d]``, however the decoder scales it."""
    origin = sae.decode(torch.zeros(1, sae.cfg.d_sae, device=sae.device))
    parts = torch.arange(sae.cfg.d_sae, device=sae.device).split(rows_at_once(sae))
    ones = (torch.nn.functional.one_hot(part, sae.cfg.d_sae).float() for part in parts)
    return torch.cat([(sae.decode(one) - origin).float().cpu() for one in ones])
