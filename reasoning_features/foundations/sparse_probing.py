"""k-sparse probing: how well a few latents of an autoencoder tell a label, as in SAEBench (2503.09532).

For every class of a labelling, against the rest, the k latents whose means differ most between the two are
chosen on training documents, and a logistic regression on them alone is tested on others. The sanity checks
for sparse autoencoders (2602.14111) ask what such a number stands between: the *ceiling* is a regression on
the whole residual stream, and the stream's own k best coordinates are a dictionary that nobody trained; the
*floor* is an autoencoder that gives the mean whatever it reads, whose latents are constant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from reasoning_features.dictionaries.autoencoder import encoded
from reasoning_features.errors import UserError
from reasoning_features.foundations.dictionary_geometry import added_directions
from reasoning_features.foundations.names import CEILING, FLOOR
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.residual_stream.probes import move_targets
from reasoning_features.statistics import Interval, bootstrap_weights, percentile_interval
from reasoning_features.text.corpus import Corpus

Array = NDArray[np.float64]
KS = (1, 5)
TEST_SHARE = 0.4
"""Share of the documents that probes are tested on."""
PROBE = ["dictionary", "labelling", "k"]


@dataclass(frozen=True)
class Labelling:
    """What tokens are told apart by: ``targets`` ``[n_tokens]`` are codes of ``classes``, -1 for none."""

    name: str
    targets: NDArray[np.int64]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class SparseProbes:
    """Probes' answers on test documents, one probe a dictionary, labelling, k and class.

    Attributes:
        probes: a row a probe: ``dictionary``, ``labelling``, ``k``, ``class``, ``latents`` (those chosen).
        hits: ``[p, t, 2]`` tokens of each test document that each probe got right: of the class, of the rest.
        totals: ``[p, t, 2]`` tokens of each test document: of the class, of the rest.
    """

    probes: pd.DataFrame
    hits: Array
    totals: Array

    def per_class(self, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """``probes`` with ``balanced accuracy``, its 95% ``low`` and ``high``, and ``documents`` tested."""
        return self._table([*PROBE, "class", "latents"], n_resamples, seed)

    def averaged(self, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Balanced accuracy averaged over classes: ``dictionary``, ``labelling``, ``k`` and as above."""
        return self._table(PROBE, n_resamples, seed)

    def difference(
        self,
        one: str,
        other: str,
        labelling: str,
        k: int,
        n_resamples: int = 1000,
        seed: int = 0,
        other_k: int | None = None,
        level: float = 0.95,
    ) -> Interval:
        """Averaged balanced accuracy of one dictionary less another's, test documents resampled with both.

        Probes of ``one`` are given ``k`` latents, those of ``other`` (a dictionary, ``CEILING`` or ``FLOOR``)
        ``other_k``, or as many.

        Raises:
            UserError: there are no such probes.
        """
        asked = ((one, k), (other, k if other_k is None else other_k))
        weights = self._weights(n_resamples, seed)
        means = [self._means(self._rows(name, labelling, count), weights) for name, count in asked]
        found = means[0] - means[1]  # both lack the same classes in the same resamples
        return percentile_interval(found[0], found[1:], self.totals.shape[1], level)

    def _rows(self, *probe: str | int) -> NDArray[np.int64]:
        """The probes of one dictionary, labelling and k."""
        held = self.probes
        for column, value in zip(PROBE, probe, strict=True):
            known = held[column].unique()
            if value not in known:
                raise UserError(
                    f"There is no probe {probe}: its {column} may be {', '.join(map(str, known))}."
                )
            held = held[held[column] == value]
        return held.index.to_numpy()

    def _weights(self, n_resamples: int, seed: int) -> Array:
        """How often each test document counts: ``[1 + resamples, t]``, first all of them once."""
        documents = self.totals.shape[1]
        return np.concatenate([np.ones((1, documents)), bootstrap_weights(documents, n_resamples, seed)])

    def _means(self, rows: NDArray[np.int64], weights: Array) -> Array:
        """Mean balanced accuracy of some probes under each row of ``weights``."""
        hits, totals = (
            np.einsum("rt,pts->rps", weights, of[rows], optimize=True) for of in (self.hits, self.totals)
        )
        sides = np.divide(hits, totals, out=np.full_like(hits, np.nan), where=totals > 0)
        accuracy = sides.mean(-1)  # nan where a resample lacks the class: left out of its mean
        return np.nanmean(accuracy[~np.isnan(accuracy).all(1)], axis=1)

    def _table(self, columns: list[str], n_resamples: int, seed: int) -> pd.DataFrame:
        """One row for each value of some columns."""
        documents, weights = self.totals.shape[1], self._weights(n_resamples, seed)
        rows = []
        for values, held in self.probes.groupby(columns, sort=False):
            means = self._means(held.index.to_numpy(), weights)
            found = percentile_interval(means[0], means[1:], documents)
            rows.append((*values, found.estimate, found.low, found.high, documents))
        return pd.DataFrame(rows, columns=[*columns, "balanced accuracy", "low", "high", "documents"])


def labellings(corpus: Corpus) -> list[Labelling]:
    """The move of every token, and the family of the document at its thinking tokens.

    Raises:
        UserError: the corpus has no move labels.
    """
    families, code = np.unique(corpus.domains, return_inverse=True)
    thinking = corpus.thinking & ~corpus.special
    return [
        Labelling("move", move_targets(corpus), corpus.move_names),
        Labelling("family", np.where(thinking, code[corpus.document_of], -1), tuple(families.tolist())),
    ]


def sparse_probes(
    saes: Mapping[str, SAE[Any]],
    activations: ActivationBatch,
    corpus: Corpus,
    labels: Sequence[Labelling],
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> SparseProbes:
    """Probe every dictionary, the residual stream and the mean for every class of every labelling.

    A latent counts by its activation times the length of its decoder direction, in the stream's units, so
    that a dictionary scaled up and down again is the same dictionary.

    Args:
        saes: autoencoders of raw activations, by name; all latents of one stand in memory at once.
        activations: the stream at tokens of the corpus, as
            :func:`reasoning_features.residual_stream.activations.collect` gives them.
        corpus: the documents.
        labels: what to probe for; classes that no token has are left out.
        ks: how many latents a probe is given.
        seed: divides the documents.

    Returns:
        The probes of ``saes``; those of the stream's own coordinates (``CEILING``: the k best, and all of
        them, which is the ceiling); and those of constant latents (``FLOOR``).

    Raises:
        UserError: fewer than two classes, or one that is missing among the training or the test documents.
    """
    positions = activations.positions.numpy()
    names, document = np.unique(corpus.document_of[positions], return_inverse=True)
    tested = np.random.default_rng(seed).permutation(len(names))[: max(1, round(TEST_SHARE * len(names)))]
    stream = activations.residual.numpy()
    probes: list[tuple[Any, ...]] = []
    counts: list[tuple[Array, Array]] = []
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        for name, latents, few in _dictionaries(saes, stream, ks):
            for labelling in labels:
                targets = labelling.targets[positions]
                for code, chosen, hits, totals in _probed(
                    latents, targets, document, tested, few, labelling.name
                ):
                    what = (labelling.name, len(chosen), labelling.classes[code])
                    probes.append((name, *what, tuple(chosen.tolist())))
                    counts.append((hits, totals))
    hits, totals = (np.array(of) for of in zip(*counts, strict=True))
    return SparseProbes(pd.DataFrame(probes, columns=[*PROBE, "class", "latents"]), hits, totals)


def _dictionaries(
    saes: Mapping[str, SAE[Any]], stream: NDArray[np.float32], ks: Sequence[int]
) -> Iterator[tuple[str, NDArray[np.float32], Sequence[int]]]:
    """Name, latents ``[n, f]`` and numbers of latents of each dictionary, and of ceiling and floor."""
    for name, sae in saes.items():
        yield name, scaled_latents(sae, torch.from_numpy(stream)), ks
    yield CEILING, stream, [*ks, stream.shape[1]]
    yield FLOOR, np.zeros((len(stream), max(ks)), np.float32), ks


def lengths(sae: SAE[Any]) -> torch.Tensor:
    """How far the reconstruction moves ``[f]`` when a latent grows by 1, whatever scales the decoder."""
    return added_directions(sae).norm(dim=1)


def scaled_latents(sae: SAE[Any], residual: torch.Tensor) -> NDArray[np.float32]:
    """Latents ``[n, f]`` of activations ``[n, d]``, in units of the stream (:func:`lengths`)."""
    scale = lengths(sae)
    found = np.empty((len(residual), len(scale)), np.float32)
    for rows, values in encoded(sae, residual):
        found[rows] = (values.float().cpu() * scale).numpy()
    return found


def _probed(
    latents: NDArray[np.float32],
    targets: NDArray[np.int64],
    document: NDArray[np.int64],
    tested: NDArray[np.int64],
    ks: Sequence[int],
    labelling: str,
) -> Iterator[tuple[int, NDArray[np.int64], Array, Array]]:
    """For every class and k: its code, the latents chosen, hits and totals ``[t, 2]`` by test document."""
    place = np.full(document.max() + 1, -1)
    place[tested] = np.arange(len(tested))
    labelled, held_out = targets >= 0, place[document] >= 0
    training, test = labelled & ~held_out, labelled & held_out
    classes = np.unique(targets[labelled])
    for part, where in (("training", training), ("test", test)):
        if len(classes) < 2 or len(np.unique(targets[where])) < len(classes):
            raise UserError(
                f"Probes for {labelling} need two classes or more, each among the {part} documents: "
                "take more documents."
            )
    given, asked = latents[training], latents[test]
    known, true, at = targets[training], targets[test], place[document[test]]
    for code in classes:
        inside = known == code
        sums = inside.astype(np.float32) @ given
        difference = sums / inside.sum() - (given.sum(0) - sums) / (~inside).sum()
        order = np.argsort(-np.abs(difference), kind="stable")
        sides = (true == code, true != code)
        for k in ks:
            chosen = order[:k]
            scaler = StandardScaler().fit(given[:, chosen])
            model = LogisticRegression(class_weight="balanced", max_iter=500)
            model.fit(scaler.transform(given[:, chosen]), inside)
            right = model.predict(scaler.transform(asked[:, chosen])) == sides[0]
            hits = np.array([np.bincount(at, right & side, len(tested)) for side in sides], float)
            totals = np.array([np.bincount(at, side, len(tested)) for side in sides], float)
            yield int(code), chosen.astype(np.int64), hits.T, totals.T
