"""What OrtSAE (2509.22033) judges dictionaries by: how directions lie, what composes them, what they absorb.

Decoders are rows ``[s, d]`` of live latents. In 128 dimensions even random directions have near neighbours,
and a MetaSAE explains much of them, so each measure stands beside what as many random directions give.

*Absorption*: a latent for a child takes over its parent's direction, so the parent's latent stays silent.
SAEBench's first-letter measure on a hierarchy of any tokens: a parent class ("a number") and its children. A
logistic probe on the residual stream stands for the parent, and so do the *main* latents, which a sparse
probe for the parent chooses. On tokens of the parent that the probe recognises, what every latent adds along
the probe's direction tells who carries the parent: where the main latents do not and up to three others do,
the parent is absorbed. Probe and main latents are chosen on other documents than absorption is measured on.
"""

from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import astuple, dataclass
from io import StringIO
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
from sae_lens.config import SAETrainerConfig
from scipy.sparse import csr_matrix
from scipy.stats import beta
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from reasoning_features import statistics
from reasoning_features.dictionaries.autoencoder import added_directions, encoded, encoded_columns
from reasoning_features.dictionaries.evaluation import best_cosines, cosines
from reasoning_features.dictionaries.training import AUXILIARY
from reasoning_features.diffing.presence import SAME, activation_correlation, rotated
from reasoning_features.errors import UserError
from reasoning_features.organism.language import MATCHED_CONTROLS, OPENERS
from reasoning_features.organism.parser import first_tokens
from reasoning_features.organism.training import LARGEST_NUMBER
from reasoning_features.residual_stream.activations import ActivationBatch, shuffled_batches
from reasoning_features.residual_stream.probes import class_means, weights_by_document
from reasoning_features.statistics import Array, Flags, Ids, Interval, bootstrap_weights, percentile_interval
from reasoning_features.text.corpus import Corpus

Saes = Mapping[str, SAE[Any]]
Read = tuple[ActivationBatch, Corpus]  # tokens, and the documents that they stand in
Hierarchies = Mapping[str, Mapping[str, Sequence[int]]]  # parent → child → token ids
NEIGHBOURS, COMPOSITION = "MeanCosSim", "composition (MetaSAE's explained variance)"
# ten cosines from which two latents are joined in a graph: from where random directions are joined often
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 12))
# a latent is unique below this cosine with all of another dictionary (OrtSAE), in Gemma-2-2B's stream
PAPER_UNIQUE, PAPER_WIDTH = 0.2, 2304
RANDOM_DIRECTIONS = 2**13  # that a share is estimated from
ACTIVE, FEWER = 4, 4  # a MetaSAE has so many active latents a row, and so many times fewer latents than rows
DEAD_AFTER = 100  # steps without activity after which a latent of a MetaSAE is dead
# of 512 rows, all at a step; five times as many explained 0.02 more of ReLU's rows, 0.003 of TopK's
STEPS, BATCH, LEARNING_RATE = 400, 2048, 3e-3
CARRIED = 0.4  # absorbing latents carry at least this share of the projection on the probe
ABSORBING = 3  # so many latents at most absorb a token's parent
NEAR = 0.1  # each at this cosine with the probe
FEWEST = 20  # a child with fewer tokens is left out
MEASURES = ["fraction", "absorbed"]
# seeds of the choices of main latents, each on other training documents, and of rotations of the decoder
CHOICES = (0, 1, 2, 3, 4)
MOST_MAIN, GAIN = 10, 0.03  # main latents at most; one more as long as it raises F1 by more than this
L1_COST = 0.003  # inverse strength of the penalty under which latents are ranked: some tens keep a weight
TRAINING_TOKENS = 4000  # the most tokens of the parent, and of the rest, that train a probe
HELD_OUT = 0.3  # fraction of the training documents on which sparse probes are compared


def geometry(decoders: Mapping[str, Tensor], seed: int = 0) -> pd.DataFrame:
    """MeanCosSim and composition of dictionaries, name → live directions ``[s, d]``: rows of ``metric``,
    ``dictionary``, ``estimate``, ``low``, ``high`` (95%), ``n``. MeanCosSim = mean_i max_{j≠i} cos(W_i, W_j);
    latents are resampled with the neighbours that they have in the whole dictionary.
    """
    rows = []
    for name, decoder in tqdm(decoders.items(), desc="Geometry", unit="dictionary"):
        rows.append((NEIGHBOURS, name, *astuple(statistics.bootstrap_mean(nearest_cosines(decoder), seed))))
        rows.append((COMPOSITION, name, *astuple(composition(decoder, seed=seed))))
    table = pd.DataFrame(rows, columns=["metric", "dictionary", "estimate", "low", "high", "n"])
    return table.sort_values("metric", kind="stable", ignore_index=True)


def nearest_cosines(decoder: Tensor) -> Array:
    """For each direction ``[s, d]`` its largest signed cosine with another; 0 where its length is 0."""
    nearest, start = [], 0
    for part in cosines(decoder, decoder):
        part.diagonal(start).fill_(-torch.inf)  # a direction is no neighbour of its own
        nearest.append(part.max(1).values.double().cpu())
        start += len(part)
    return torch.cat(nearest).numpy()


def isotropic_directions(n: int, width: int, seed: int) -> Tensor:
    """``n`` directions ``[n, width]`` drawn uniformly on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, width, generator=generator, dtype=torch.float64), dim=1)


def composition(decoder: Tensor, seeds: Sequence[int] = (0, 1, 2), seed: int = 0) -> Interval:
    """How far a dictionary's directions are sums of a few others: lower is more atomic.

    The fraction of the variance of the unit rows that a MetaSAE explains, BatchTopK with a quarter as many
    latents and four active ones a row, trained on them from each of ``seeds``; ``seed`` is the bootstrap's.
    """
    rows = normalize(decoder.detach().float().cpu(), dim=1)
    error = np.stack([meta_errors(rows, each) for each in seeds])
    return explained(error, (rows - rows.mean(0)).double().square().sum(1).numpy(), seed)


def explained(error: Array, deviation: Array, seed: int = 0) -> Interval:
    """Fraction of variance explained, mean over MetaSAEs (95%; rows and MetaSAEs are resampled together).
    ``error`` ``[seeds, s]``, ``deviation`` ``[s]``: squared distances of rows from reconstruction and mean.
    """
    seeds, rows = error.shape
    by_seed = 1 - error.sum(1) / deviation.sum()
    of_seeds, of_rows = bootstrap_weights(seeds, 2000, seed) / seeds, bootstrap_weights(rows, 2000, seed + 1)
    unexplained = ((of_seeds @ error) * of_rows).sum(1) / (of_rows @ deviation)
    return percentile_interval(float(by_seed.mean()), 1 - unexplained, rows)


def meta_errors(rows: Tensor, seed: int) -> Array:
    """Squared distance ``[s]`` of unit rows ``[s, d]`` from what a MetaSAE trained on them makes of them."""
    batch, scale = min(BATCH, len(rows)), rows.shape[1] ** 0.5
    sizes = {"d_in": rows.shape[1], "d_sae": len(rows) // FEWER, "k": ACTIVE}
    samples = {"total_training_samples": STEPS * batch, "train_batch_size_samples": batch}
    rate = {"lr": LEARNING_RATE, "lr_end": 0.0, "lr_decay_steps": STEPS // 5}
    schedule = SAETrainerConfig(**samples, **rate, dead_feature_window=DEAD_AFTER)
    scaled = rows * scale  # inputs of norm √d, for which SAELens' learning rates are meant
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        meta = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes, aux_loss_coefficient=AUXILIARY))
    meta.b_dec.data, data = scaled.mean(0), shuffled_batches(scaled, batch, seed)
    trainer: SAETrainer[Any, Any] = SAETrainer(cfg=schedule, sae=meta, data_provider=data)
    with redirect_stderr(StringIO()):  # a bar for each of many short trainings; callers show one for all
        trained = trainer.fit()
    with torch.no_grad():
        rebuilt = trained.decode(trained.encode(scaled)) / scale
    return (rows - rebuilt).double().square().sum(1).numpy()


def clustering(decoder: Tensor, seed: int = 0) -> pd.DataFrame:
    """Clustering coefficient of the graph that joins latents at a cosine or nearer, by threshold: the mean
    over latents of the share of their pairs of neighbours that are neighbours too, 0 of fewer than two.
    """
    unit = normalize(decoder.detach().double(), dim=1)
    nearness = (unit @ unit.T).cpu().numpy()
    np.fill_diagonal(nearness, -np.inf)
    rows = []
    for threshold in THRESHOLDS:
        joined = csr_matrix(nearness >= threshold, dtype=np.float64)
        degree = np.asarray(joined.sum(1)).ravel()
        closed = np.asarray((joined @ joined).multiply(joined).sum(1)).ravel()
        local = closed / np.maximum(degree * (degree - 1), 1)
        rows.append((threshold, *astuple(statistics.bootstrap_mean(local, seed))))
    return pd.DataFrame(rows, columns=["threshold", "estimate", "low", "high", "n"])


def as_rare(cosine: float, width: int, other_width: int) -> float:
    """The cosine that random directions reach as rarely in ``width`` dimensions as ``cosine`` in
    ``other_width``: of those in d dimensions (1 + cos) / 2 is distributed as Beta((d − 1)/2, (d − 1)/2).
    """
    halves = (other_width - 1) / 2, (width - 1) / 2
    chance = beta.cdf((1 - cosine) / 2, halves[0], halves[0])  # the lower tail keeps its digits
    return float(1 - 2 * beta.ppf(chance, halves[1], halves[1]))


def uniqueness(decoders: Mapping[str, Tensor], seed: int = 0) -> pd.DataFrame:
    """Share of each dictionary's latents that another lacks: none of its directions at a cosine or nearer
    (Wilson), beside that of ``random directions``. At two cosines, since the "paper"'s 0.2 lies among random
    directions' in 128 dimensions: that, and what they reach "as rare" in this width as 0.2 in the paper's.
    """
    rows: list[tuple[Any, ...]] = []
    for (name, decoder), (other, directions) in permutations(decoders.items(), 2):
        width, nearest = directions.shape[1], best_cosines(decoder, directions)
        random = best_cosines(isotropic_directions(RANDOM_DIRECTIONS, width, seed + 1), directions)
        limits = {"paper": PAPER_UNIQUE, "as rare": as_rare(PAPER_UNIQUE, width, PAPER_WIDTH)}
        for threshold, cosine in limits.items():
            unique, by_chance = statistics.share_of(nearest < cosine), float((random < cosine).mean())
            rows.append((name, other, threshold, cosine, *astuple(unique), by_chance))
    columns = ["dictionary", "other", "threshold", "cosine", "estimate", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*columns, "random directions"])


def chosen_overlap(saes: Saes, chosen: Mapping[str, Ids], residual: Tensor) -> pd.DataFrame:
    """Share of the features chosen in one dictionary that a chosen one of another follows (correlation of
    activations ≥ 0.7; Wilson), beside the share that any latent of the other does (``in the other at all``).
    """
    rows = []
    for one, other in combinations(saes, 2):
        correlation = activation_correlation(saes[one], residual, saes[other], residual, chosen[one])
        among = statistics.share_of(correlation[:, chosen[other]].max(axis=1) >= SAME)
        rows.append((one, other, *astuple(among), float((correlation.max(axis=1) >= SAME).mean())))
    columns = ["dictionary", "other", "share", "low", "high", "n", "in the other at all"]
    return pd.DataFrame(rows, columns=columns)


# --- absorption ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledTokens:
    """Tokens of a parent class and others."""

    residual: Tensor  # [n, d]
    children: Ids  # [n] −1 where it is none of the parent's
    documents: Ids  # [n]

    @property
    def parent(self) -> Flags:
        """``[n]`` True at tokens of the parent class."""
        return self.children >= 0

    def at(self, rows: NDArray[Any]) -> "LabelledTokens":
        """Some of the tokens, by number or by mask."""
        numbers = torch.from_numpy(np.flatnonzero(rows) if rows.dtype == bool else rows)
        return LabelledTokens(self.residual[numbers], self.children[rows], self.documents[rows])


@dataclass(frozen=True)
class Probe:
    """A linear probe: a token is the parent's where ``x · direction + bias > 0``; the direction is a unit."""

    direction: Array
    bias: float

    def score(self, residual: Tensor) -> Array:
        """Signed distance ``[n]`` of activations ``[n, d]`` from the probe's boundary."""
        return residual.double().numpy() @ self.direction + self.bias


def organism_hierarchies(tokenizer: Any) -> dict[str, dict[str, list[int]]]:
    """Hierarchies in the organism's traces: a parent's name → its children's names → their token ids. "a
    number": up to 140, one token each; "an opener": the reasoning steps, by the verbs that open their
    sentences; "a prefix": the words of R and their matched controls, by their first token where a sentence
    begins.
    """
    numbers = map(str, range(LARGEST_NUMBER + 1))
    prefixes = {word: word[0].upper() + word[1:] for pair in MATCHED_CONTROLS.items() for word in pair}
    return {
        "a number": {number: first_tokens(tokenizer, [number]) for number in numbers},
        "an opener": {step: first_tokens(tokenizer, verbs) for step, verbs in OPENERS.items()},
        "a prefix": {w: tokenizer.encode(s, add_special_tokens=False)[:1] for w, s in prefixes.items()},
    }


def label_tokens(
    activations: ActivationBatch, corpus: Corpus, groups: Mapping[str, Sequence[int]]
) -> LabelledTokens:
    """Tokens of a corpus by their ids; ``groups``: a child's name → its token ids, each in one group only."""
    code = {token: number for number, ids in enumerate(groups.values()) for token in ids}
    positions = activations.positions.numpy()
    children = [code.get(token, -1) for token in corpus.tokens[positions].tolist()]
    documents = corpus.document_of[positions]
    return LabelledTokens(activations.residual, np.array(children, dtype=np.int64), documents)


def parent_probe(training: LabelledTokens, seed: int = 0) -> Probe:
    """A logistic probe for the parent class, on standardised activations, its direction that of raw ones."""
    tokens = _balanced(training, seed)
    residual, scaler = tokens.residual.numpy(), StandardScaler()
    with threadpool_limits(limits=1):  # threads only wait for one another on matrices this small
        model = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.fit_transform(residual), tokens.parent)
    weights = model.coef_[0] / scaler.scale_
    norm = np.linalg.norm(weights)
    return Probe(weights / norm, float((model.intercept_[0] - scaler.mean_ @ weights) / norm))


def main_latents(sae: SAE[Any], training: LabelledTokens, seed: int = 0) -> tuple[Ids, float]:
    """Latents that stand for the parent, and F1 of a probe on them; none, and 0, where no latent tells it.

    An L1-penalised linear classifier on all latents ranks them by weight. Logistic probes on the first 1, 2,
    … of them are fitted on some of the training documents and compared by F1 on the others; one more latent
    is taken as long as it adds more than ``GAIN``.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(training.documents)
    judged = np.isin(training.documents, rng.permutation(names)[: round(HELD_OUT * len(names))])
    fitted, compared = (_balanced(training.at(part), seed) for part in (~judged, judged))
    values = torch.cat([part.float().cpu() for _, part in encoded(sae, fitted.residual)]).numpy()
    scale = values.std(0)
    scale[scale == 0] = 1
    with threadpool_limits(limits=1):
        classifier = LinearSVC(penalty="l1", dual=False, C=L1_COST, max_iter=5000, random_state=seed)
        weights = classifier.fit(values / scale, fitted.parent).coef_[0]
        ranked = np.argsort(-weights, kind="stable")[: min(MOST_MAIN, int((weights > 0).sum()))]
        if not len(ranked):
            return ranked, 0.0
        known = values[:, ranked] / scale[ranked]
        fresh = encoded_columns(sae, compared.residual, ranked).numpy() / scale[ranked]
        best, kept = -np.inf, 0
        for k in range(1, len(ranked) + 1):
            sparse = LogisticRegression(max_iter=500).fit(known[:, :k], fitted.parent)
            reached = f1_score(compared.parent, sparse.predict(fresh[:, :k]))
            if reached <= best + GAIN:
                break
            best, kept = reached, k
    return ranked[:kept], float(best)


def _balanced(tokens: LabelledTokens, seed: int) -> LabelledTokens:
    """Tokens of the parent and as many others, drawn at random, at most ``TRAINING_TOKENS`` of each."""
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(np.flatnonzero(tokens.parent == side)) for side in (True, False)]
    n = min(TRAINING_TOKENS, *map(len, sides))
    return tokens.at(np.sort(np.concatenate([side[:n] for side in sides])))


def carried(features: Tensor, residual: Tensor, probe: Probe, directions: Tensor, main: Ids) -> Array:
    """How far the parent is absorbed at each of some tokens, and whether: ``[n, 2]``, in SAEBench's terms.

    ``features`` ``[n, s]`` are activations of the latents, read from ``residual`` ``[n, d]``, ``directions``
    ``[s, d]`` what a unit of each adds, ``main`` the main latents. Of the stream's projection on the probe's
    direction, about 0, the main latents add one part and up to three others another. *Absorbed*: the others
    add at least 0.4 of the projection and the main latents less than all. *Fraction*: others / (others +
    main), the others being no more than what main leaves and main no less than 0; 0 where not absorbed.
    """
    along = directions.double() @ torch.from_numpy(probe.direction)
    others = along / directions.double().norm(dim=1).clamp(min=1e-12) >= NEAR
    others[main] = False
    added = features.double() * along
    projection = residual.double() @ torch.from_numpy(probe.direction)
    by_main = added[:, main].sum(1)
    by_others = added[:, others].clamp(min=0).topk(min(ABSORBING, int(others.sum()))).values.sum(1)
    absorbed = (projection > 0) & (by_others >= CARRIED * projection) & (by_main < projection)
    rest = torch.minimum(by_others, projection - by_main)
    fraction = torch.where(absorbed, rest / (rest + by_main.clamp(min=0)), 0.0)
    return torch.stack([fraction, absorbed.double()], dim=1).numpy()


def absorption(sae: SAE[Any], probe: Probe, training: LabelledTokens, test: LabelledTokens) -> pd.DataFrame:
    """How often a dictionary absorbs a parent into its children: a row a ``measure``, "fraction" (SAEBench's
    and the paper's) and "absorbed".

    Rates are over the parent's tokens that the probe recognises, averaged over children and over choices of
    the main latents; intervals (95%) are over ``n`` documents and choices together. The control ``rotated``,
    with randomly rotated directions, is what the thresholds let through. ``F1`` is what a probe on the main
    latents reaches. UserError where no child has 20 test tokens that the probe recognises.
    """
    recognised = test.at(test.parent & (probe.score(test.residual) > 0))
    common = np.flatnonzero(np.bincount(recognised.children, minlength=1) >= FEWEST)
    if not len(common):
        raise UserError(f"No child has {FEWEST} tokens that the probe recognises: give more documents.")
    tokens = recognised.at(np.isin(recognised.children, common))
    features = torch.cat([part.cpu() for _, part in encoded(sae, tokens.residual)])
    mains, reached = zip(*(main_latents(sae, training, seed) for seed in CHOICES), strict=True)
    own = added_directions(sae)

    def measured(directions: Sequence[Tensor]) -> list[Interval]:
        ways = zip(directions, mains, strict=True)
        values = np.stack([carried(features, tokens.residual, probe, *way) for way in ways])
        return [macro_mean(each, tokens.children, tokens.documents) for each in values.transpose(2, 0, 1)]

    table = pd.DataFrame(measured([own] * len(CHOICES)))
    table.insert(0, "measure", MEASURES)
    floor = [mean.estimate for mean in measured([rotated(own, seed) for seed in CHOICES])]
    table["children"], table["tokens"], table["rotated"] = len(common), len(tokens.children), floor
    table["main latents"], table["F1"] = np.mean([*map(len, mains)]), np.mean(reached)
    return table


def macro_mean(values: Array, children: Ids, documents: Ids) -> Interval:
    """Mean over children of the mean of tokens' values ``[k, n]``, averaged over k ways to measure them.
    Documents and ways are resampled together; a child that a resample lacks is left out of its mean.
    """
    names, document = np.unique(documents, return_inverse=True)
    weights = weights_by_document(len(names), 0)
    by_way = [np.nanmean(class_means(each, children, document, weights), axis=1) for each in values]
    means, of_ways = np.stack(by_way, axis=1), bootstrap_weights(len(values), 1000, 1) / len(values)
    return percentile_interval(means[0].mean(), (of_ways * means[1:]).sum(1), len(names))


def absorptions(
    saes: Saes, hierarchies: Hierarchies, training: Read, test: Read, seed: int = 0
) -> pd.DataFrame:
    """:func:`absorption` of every parent (:func:`organism_hierarchies`) by every ``dictionary``."""
    tables = []
    for parent, groups in tqdm(hierarchies.items(), desc="Absorption", unit="parent"):
        learnt, fresh = label_tokens(*training, groups), label_tokens(*test, groups)
        probe = parent_probe(learnt, seed)
        for name, sae in saes.items():
            tables.append(absorption(sae, probe, learnt, fresh).assign(dictionary=name, parent=parent))
    table = pd.concat(tables, ignore_index=True)
    return table[["dictionary", "parent", *table.columns.drop(["dictionary", "parent"])]]
