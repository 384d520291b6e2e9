"""Reading autoencoders from their files: SAELens' format, that of its version 5, and EleutherAI's sparsify's.

Two things that SAELens 6 makes of such files are put right here. SAELens 5 folded the scaling of a training
into the weights at its end, but wrote the training's own configuration beside them, which goes on to tell of
scaled activations. And sparsify's ``layers.N.mlp`` is the output of an MLP, encoded less the decoder's bias,
with one decoder direction a row.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file

from reasoning_features.errors import UserError
from reasoning_features.files import read_json

CONFIGURATION = "cfg.json"
SAELENS, SPARSIFY = "sae_weights.safetensors", "sae.safetensors"
SCALED = "expected_average_only_in"
SITES = {"": "resid_post", ".mlp": "mlp_out", ".self_attn": "attn_out", ".attention": "attn_out"}


def is_autoencoder(path: Path) -> bool:
    """Whether a directory holds an autoencoder of a known format."""
    held = any((path / weights).is_file() for weights in (SAELENS, SPARSIFY))
    return held and (path / CONFIGURATION).is_file()


def read_autoencoder(path: Path, name: str, device: str) -> SAE[Any]:
    """The autoencoder in a directory, in float32 on the device.

    Where the files tell of scaled activations and version 5 wrote them, the weights are taken for folded;
    :func:`reasoning_features.dictionaries.autoencoder.check_scaling` finds out from activations whether they
    are.

    Args:
        path: the directory.
        name: what to call it in messages.
        device: where to put it.

    Raises:
        UserError: a transcoder, or a variant of sparsify's format that is not known.
        Exception: what the libraries raise where a file is damaged.
    """
    if (path / SPARSIFY).is_file():
        return _read_sparsify(path, name, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # how SAELens would load the model
        sae = SAE.load_from_disk(path, device=device, dtype="float32")
    metadata = sae.cfg.metadata
    if sae.cfg.normalize_activations == SCALED and _version(metadata) < 6:
        sae.cfg.normalize_activations = "none"
    return sae


def _version(metadata: SAEMetadata) -> int:
    """The major version of SAELens that trained an autoencoder; of an unknown one, this one's."""
    told = metadata.sae_lens_training_version or metadata.sae_lens_version
    return int(str(told).split(".")[0]) if told else 6


def _read_sparsify(path: Path, name: str, device: str) -> SAE[Any]:
    told = read_json(path / CONFIGURATION)
    if told.get("transcode") or told.get("skip_connection"):
        raise UserError(f"{name} is a transcoder, not an autoencoder: give one that encodes what it decodes.")
    if told.get("activation", "topk") != "topk" or told.get("signed"):
        raise UserError(f"{name} has an activation that is not known here: give a TopK autoencoder.")
    place = re.fullmatch(r"layers\.(\d+)(\.\w+)?", path.name)
    if place is None or (place[2] or "") not in SITES:
        raise UserError(f"{name} does not tell by its folder where it reads: give layers.N or layers.N.mlp.")
    above = path.parent / "config.json"
    weights = load_file(path / SPARSIFY, device=device)
    features, width = weights["encoder.weight"].shape
    metadata = SAEMetadata(
        hook_name=f"blocks.{place[1]}.hook_{SITES[place[2] or '']}",
        model_name=read_json(above).get("model") if above.is_file() else None,
    )
    sae = TopKSAE(
        TopKSAEConfig(
            d_in=width,
            d_sae=features,
            k=told["k"],
            apply_b_dec_to_input=True,
            device="meta",
            metadata=metadata,
        )
    )
    named = {
        "W_enc": weights["encoder.weight"].T,
        "b_enc": weights["encoder.bias"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    state = {key: tensor.to(torch.float32).contiguous() for key, tensor in named.items()}
    sae.load_state_dict(state, assign=True)
    sae.cfg.device = device
    return sae.to(device=device)
