"""Sparse autoencoders as SAELens keeps them, and how good one is.

Features are f = encode(x), reconstructions x̂ = decode(f). Explained variance is measured about the mean of
the activations, 1 − Σ‖x − x̂‖² / Σ‖x − mean‖², so that an autoencoder that only ever gives the mean scores 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.csgraph import maximum_bipartite_matching
from torch import Tensor

from reasoning_features import checksums, hub, paths
from reasoning_features.dictionaries.autoencoder_files import SAELENS, is_autoencoder, read_autoencoder
from reasoning_features.dictionaries.autoencoder_recipe import label_of
from reasoning_features.dictionaries.encoding import rows_at_once
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.residual_stream.activations import Moments

WIDE = 2**24
"""The most pairs of directions compared in float64 and at once; more are in float32, some at a time."""
CLEARLY = 0.05
"""The share of variance that must part two scalings of activations for one to be the autoencoder's own."""
MANY = 2**27
"""The most numbers of activations that stand in memory in float64: 1 GiB."""


def load_autoencoder(
    reference: str, d_model: int, hook_name: str | None = None, device: str = "cpu"
) -> SAE[Any]:
    """Load an SAE that works on raw activations, after its checksums.

    Args:
        reference: a directory (absolute, or relative to the repository's root) or
            ``owner/name[@revision][:folder]`` of the hub, with ``cfg.json`` and weights as SAELens or
            EleutherAI's sparsify keep them.
        d_model: width of the activations it is meant for.
        hook_name: hook point it is meant for; None accepts any.
        device: where to put it.

    Raises:
        MissingArtefact: there is no SAE in the directory.
        CorruptArtefact: the checksum of a file that is shipped, or was trained here, does not match, or the
            files cannot be read.
        UserError: the SAE has another width or hook point, or expects scaled activations, or is of a kind
            that is not known; or what :func:`reasoning_features.hub.local_copy` refuses.
    """
    path, name = hub.directory(reference), reference
    advice = "name the folder that has cfg.json, as owner/name:folder"
    if hub.is_local(reference):
        name = paths.relative(path)
        advice = (
            '`make organism` makes the shipped ones, `make nb-02 PARAMS="train_saes=true"` one of your own'
        )
        checksums.verify_shipped(path)
        if bad := checksums.damaged_training(path):
            raise CorruptArtefact(
                f"{paths.relative(bad[0])} is damaged or missing (its checksum is not the stored one): "
                'restore it, or run `make nb-02 PARAMS="train_saes=true"`, which trains it again.'
            )
    if not is_autoencoder(path):
        raise MissingArtefact(f"There is no autoencoder in {name}: {advice}.")
    try:
        sae = read_autoencoder(path, name, device)
    except UserError:
        raise
    except Exception as error:
        raise CorruptArtefact(f"The autoencoder in {name} cannot be read: restore its files.") from error
    if sae.cfg.d_in != d_model:
        raise UserError(
            f"The autoencoder in {name} is for activations of width {sae.cfg.d_in}, but the model's are "
            f"{d_model} wide: give one that was trained on this model."
        )
    if hook_name is not None and sae.cfg.metadata.hook_name != hook_name:
        raise UserError(
            f"The autoencoder in {name} reads {sae.cfg.metadata.hook_name}, not {hook_name}: "
            "give one that was trained at this layer."
        )
    if sae.cfg.normalize_activations != "none":
        raise UserError(
            f"The autoencoder in {name} expects scaled activations "
            f"({sae.cfg.normalize_activations}): fold the scaling into its weights first."
        )
    return sae.requires_grad_(False).eval()


def plainly_loaded(reference: str, device: str = "cpu") -> SAE[Any] | None:
    """The same autoencoder by ``sae_lens.SAE.load_from_disk`` alone; None where it is of another format."""
    path = hub.directory(reference)
    if not (path / SAELENS).is_file():
        return None
    return SAE.load_from_disk(path, device=device, dtype="float32")


def architecture_label(sae: SAE[Any]) -> str:
    """What an autoencoder was trained as, and where its directions started where that is not usual.

    One that this package trained tells by its recipe
    (:class:`reasoning_features.dictionaries.autoencoder_recipe.Recipe`); any other is "topk", or "relu".
    """
    recipe = sae.cfg.metadata.recipe
    if recipe is None:
        return "topk" if sae.cfg.architecture() == "topk" else "relu"
    return label_of(recipe["architecture"], recipe.get("directions", "default"))


@torch.no_grad()
def check_scaling(sae: SAE[Any], residual: Tensor) -> None:
    """Raises UserError where an SAE explains activations ``[n, d]`` only once they are scaled.

    A checkpoint from within a training expects activations of mean norm √d; SAELens 5 wrote the same
    configuration beside it and beside the folded weights of the training's end.
    """
    given = residual.to(sae.device).float()
    scale = given.shape[1] ** 0.5 / given.norm(dim=1).mean()
    whole = (given - given.mean(0)).square().sum()
    errors = [
        sum(
            float((part - sae.decode(sae.encode(part * by)) / by).square().sum())
            for part in given.split(rows_at_once(sae))
        )
        for by in (1.0, scale)
    ]
    raw, scaled = (1 - error / float(whole) for error in errors)
    if scaled > max(raw, 0.0) + CLEARLY:  # where activations are about √d long both explain about the same
        raise UserError(
            f"The autoencoder explains {scaled:.0%} of the variance of scaled activations and {raw:.0%} of "
            "raw ones: it is a checkpoint from within a training; give the one of its end."
        )


@dataclass(frozen=True)
class Reconstruction:
    """How well each token's activation is reconstructed, and how often each feature is active.

    Attributes:
        error: ``[n]`` squared distance of x from its reconstruction.
        deviation: ``[n]`` squared distance of x from the mean activation.
        active: ``[n]`` number of active features.
        density: ``[s]`` share of tokens on which each feature is active.
    """

    error: NDArray[np.float64]
    deviation: NDArray[np.float64]
    active: NDArray[np.int64]
    density: NDArray[np.float64]

    @property
    def l0(self) -> float:
        """Mean number of active features."""
        return float(self.active.mean())

    @property
    def explained(self) -> float:
        """Fraction of variance explained, about the mean."""
        return float(1 - self.error.sum() / self.deviation.sum())

    @property
    def live(self) -> NDArray[np.bool_]:
        """``[s]`` True for features active on at least one token."""
        return self.density > 0

    @property
    def dead_share(self) -> float:
        """Share of features active on no token."""
        return float(1 - self.live.mean())

    def by_document(self, documents: NDArray[np.int64]) -> pd.DataFrame:
        """Sums a document, for intervals that resample documents.

        Args:
            documents: ``[n]`` the document of each token.

        Returns:
            One row a document: ``tokens``, and summed ``error``, ``deviation``, ``active``.
        """
        held = {"document": documents, "error": self.error, "deviation": self.deviation}
        tokens = pd.DataFrame(held | {"active": self.active, "tokens": 1})
        return tokens.groupby("document").sum()

    def summary(self) -> dict[str, float]:
        """The numbers of this reconstruction that have a name."""
        return {
            "L0": self.l0,
            "fraction of variance explained": self.explained,
            "dead share": self.dead_share,
            "median density": float(np.median(self.density[self.live])) if self.live.any() else 0.0,
        }


@torch.no_grad()
def reconstruct(
    sae: SAE[Any], residual: Tensor, mean: NDArray[np.float64] | None = None, size: int = 4096
) -> Reconstruction:
    """Reconstruct activations ``[n, d]`` and keep what the quality of an SAE is computed from.

    Args:
        sae: encodes and decodes raw activations.
        residual: the activations.
        mean: ``[d]`` the mean that variance is measured about; by default that of ``residual``. Shards of
            one sample need the mean of all (:class:`reasoning_features.residual_stream.activations.Moments`).
        size: the most activations in one pass.
    """
    centre = _mean(residual) if mean is None else torch.from_numpy(mean)
    errors, deviations, actives = [], [], []
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.int64)
    for batch in residual.split(min(size, rows_at_once(sae))):
        features = sae.encode(batch.to(sae.device))
        output = sae.decode(features).cpu()
        errors.append((batch.double() - output.double()).square().sum(1))
        deviations.append((batch.double() - centre).square().sum(1))
        actives.append((features > 0).sum(1).cpu())
        fired += (features > 0).sum(0).cpu()
    return Reconstruction(
        error=torch.cat(errors).numpy(),
        deviation=torch.cat(deviations).numpy(),
        active=torch.cat(actives).numpy(),
        density=(fired.double() / len(residual)).numpy(),
    )


def quality(sae: SAE[Any], residual: Tensor) -> dict[str, float]:
    """L0, fraction of variance explained, dead share and median density of live features on activations."""
    return reconstruct(sae, residual).summary()


def best_cosines(decoder: Tensor, other: Tensor) -> NDArray[np.float64]:
    """For each decoder direction ``[s, d]`` its largest cosine with a direction of ``other`` ``[r, d]``.

    A direction of length 0 has cosine 0 with everything.
    """
    found = [part.max(1).values.double().cpu() for part in _cosines(decoder, other)]
    return torch.cat(found).numpy()


def _cosines(decoder: Tensor, other: Tensor) -> Iterator[Tensor]:
    """Cosines ``[m, r]`` of some rows of ``decoder`` at a time with all of ``other``."""
    dtype = torch.float64 if len(decoder) * len(other) <= WIDE else torch.float32
    unit, others = (
        torch.nn.functional.normalize(directions.detach().to(dtype), dim=1) for directions in (decoder, other)
    )
    for part in unit.split(max(1, WIDE // len(others))):
        yield part @ others.T


def matched_share(decoder: Tensor, other: Tensor, threshold: float = 0.7) -> float:
    """Share of an SAE's features that another SAE has too: a decoder direction at cosine ≥ ``threshold``.

    Args:
        decoder: ``[s, d]`` decoder directions; leave dead features out.
        other: ``[r, d]`` those of the other SAE; leave dead features out.
        threshold: smallest cosine of a match (0.7 in the paper's model diffing).
    """
    return float((best_cosines(decoder, other) >= threshold).mean())


def paired_share(decoder: Tensor, other: Tensor, threshold: float = 0.7) -> float:
    """Share of an SAE's features that can be paired with one of another SAE's, each used once.

    The largest pairing at cosine ≥ ``threshold``. It tells features found again from many features that all
    point at the same few directions, as early in training: :func:`matched_share` counts each of those.
    """
    near = vstack([csr_matrix((part >= threshold).cpu().numpy()) for part in _cosines(decoder, other)])
    return float((maximum_bipartite_matching(near, perm_type="column") >= 0).mean())


def principal_explained(residual: Tensor, k: int) -> float:
    """Fraction of variance that the ``k`` leading principal components of activations ``[n, d]`` explain.

    What any ``k`` fixed directions can do at most: an SAE with L0 = k has to be better to be worth its name.
    """
    variances = torch.linalg.eigvalsh(_covariance(residual)).flip(0)
    return float(variances[:k].sum() / variances.sum())


def gaussian_directions(residual: Tensor, n: int, seed: int) -> Tensor:
    """``n`` random directions ``[n, d]`` with the covariance of activations: what is shared by chance."""
    generator = torch.Generator().manual_seed(seed)
    variances, axes = torch.linalg.eigh(_covariance(residual))
    noise = torch.randn(n, residual.shape[1], generator=generator, dtype=torch.float64)
    return (noise * variances.clamp(min=0).sqrt()) @ axes.T


def _covariance(residual: Tensor) -> Tensor:
    """Covariance ``[d, d]`` of activations ``[n, d]`` in float64; of many, some are summed at a time."""
    if residual.numel() <= MANY:
        return torch.cov(residual.double().T)
    mean = _mean(residual)
    total = torch.zeros(residual.shape[1], residual.shape[1], dtype=torch.float64)
    for part in residual.split(max(1, MANY // residual.shape[1])):
        centred = part.double() - mean
        total += centred.T @ centred
    return total / (len(residual) - 1)


def _mean(residual: Tensor) -> Tensor:
    """Mean activation ``[d]`` in float64."""
    if residual.numel() <= MANY:
        return torch.from_numpy(Moments.of(residual).mean)
    return residual.mean(0, dtype=torch.float64)
