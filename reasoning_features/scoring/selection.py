"""What the features chosen by ReasonScore depend on: documents, hyperparameters, and the vocabulary itself.

All is made from the sums of one pass by block of documents, ``[blocks, s, f]``: resampling blocks gives
intervals, two halves of the blocks the stability.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, product
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from reasoning_features.reporting import plots
from reasoning_features.residual_stream.probes import weights_by_document
from reasoning_features.scoring import reason_score
from reasoning_features.scoring.feature_statistics import FeatureStatistics
from reasoning_features.statistics import Array, Flags, chance_jaccard, null_rank, percentile_interval
from reasoning_features.text.words import Window, word_set

REFERENCE, TWINS = "R", "twins"  # the vocabulary that the others are compared with; its counterparts
NULLS = {"random": "random vocabularies", "slot": "mixtures of R and its counterparts"}  # kind → label
IDENTITIES = {"token": 0, "token and the one before": 1}  # what identity baselines see → tokens of context


def top_mean(scores: Array, k: int) -> Array:
    """Mean of the ``k`` largest scores ``[..., f]`` → ``[...]``."""
    return np.sort(scores, axis=-1)[..., -k:].mean(axis=-1)


def chosen(scores: Array, k: int) -> Flags:
    """Which features are among the ``k`` best ``[..., f]``; ties go to the lower index."""
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    member = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(member, best, True, axis=-1)
    return member


def overlap(first: Flags, second: Flags) -> Array:
    """Jaccard overlap of two selections ``[..., f]`` → ``[...]``."""
    union = (first | second).sum(axis=-1)
    return np.where(union > 0, (first & second).sum(axis=-1) / np.maximum(union, 1), 1.0)


def score_all(
    statistics: FeatureStatistics, vocabularies: Mapping[str, Sequence[str]], window: Window, alpha: float
) -> dict[str, Array]:
    """ReasonScore of every feature ``[..., f]`` for each vocabulary."""
    return {
        name: reason_score.vocabulary_scores(statistics, name, words, window, alpha)
        for name, words in vocabularies.items()
    }


def top_features(
    statistics: FeatureStatistics,
    words: Sequence[str],
    window: Window,
    alpha: float,
    k: int,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """The ``k`` best features for R, best first, from statistics by block, with 95% bootstrap intervals.
    ``main_word`` is that around which it is most active, ``chosen_again`` the share of resamples with it.
    """
    whole = statistics.total()
    scores = reason_score.vocabulary_scores(whole, REFERENCE, words, window, alpha)
    weights = weights_by_document(len(statistics.counts), seed, resamples)[1:]
    again = reason_score.resampled_scores(statistics, REFERENCE, words, window, alpha, weights)
    by_word = reason_score.set_means(whole, REFERENCE, words, window)[2]
    best = reason_score.select(scores, k=k)
    low, high = np.quantile(again[:, best], [0.025, 0.975], axis=0)
    columns = {"rank": np.arange(1, k + 1), "feature": best, "score": scores[best], "low": low, "high": high}
    columns["entropy"] = reason_score.entropy(by_word)[best]
    columns["main_word"] = [words[i] for i in by_word[:, best].argmax(axis=0)]
    columns["chosen_again"] = chosen(again, k)[:, best].mean(axis=0)
    return pd.DataFrame(columns)


@dataclass(frozen=True)
class Hyperparameters:
    """One way to compute the score; the released code folds the decoder's norms into activations."""

    alpha: float
    window: Window
    variant: Literal["paper", "released"] = "paper"

    @property
    def name(self) -> str:
        return "α = {:g}, window {}-{}, {}".format(self.alpha, *self.window, self.variant)

    def score(
        self, statistics: FeatureStatistics, norms: Array, words: Sequence[str], weights: Array | None = None
    ) -> Array:
        """ReasonScore of R ``[..., f]``; with decoder ``norms`` ``[f]``, perhaps of resamples ``[b, g]``."""
        own = statistics.only(reason_score.sets_of_score(REFERENCE, words, self.window))
        folded = own if self.variant == "paper" else own.scaled(norms)
        given = folded, REFERENCE, words, self.window, self.alpha
        if weights is None:
            return reason_score.vocabulary_scores(*given)
        return reason_score.resampled_scores(*given, weights)


def grid_table(
    grid: Sequence[Hyperparameters], scores: Sequence[Array], default: Array, counts: Sequence[int]
) -> pd.DataFrame:
    """Jaccard overlap of each selection with the default's, for every number of features chosen."""
    rows = []
    for (way, values), k in product(zip(grid, scores, strict=True), counts):
        row = {"alpha": way.alpha, "window": "{}-{}".format(*way.window), "variant": way.variant, "k": k}
        row |= {"overlap": float(overlap(chosen(values, k), chosen(default, k)))}
        rows.append(row | {"chance": chance_jaccard(len(default), k, k)})
    return pd.DataFrame(rows)


def resampled_overlap(
    statistics: FeatureStatistics,
    norms: Array,
    words: Sequence[str],
    grid: Sequence[Hyperparameters],
    default: Hyperparameters,
    k: int,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Overlap of each other selection with the default's, a column a setting by its name, from sums by block
    (resample 0: the data).
    """
    weights = weights_by_document(len(statistics.counts), seed, resamples)
    reference = chosen(default.score(statistics, norms, words, weights), k)
    scored = ((way.name, way.score(statistics, norms, words, weights)) for way in grid if way != default)
    return pd.DataFrame({name: overlap(reference, chosen(scores, k)) for name, scores in scored})


def intervals(resampled: pd.DataFrame, columns: Iterable[str], blocks: int) -> pd.DataFrame:
    """Columns whose first row is the data and the others resamples: an estimate and a 95% interval each."""
    rows = []
    for column in columns:
        estimate, *draws = resampled[column]
        rows.append({"statistic": column} | vars(percentile_interval(estimate, draws, blocks)))
    return pd.DataFrame(rows)


def null_table(
    blocks: FeatureStatistics, vocabularies: Mapping[str, Sequence[str]], window: Window, alpha: float, k: int
) -> pd.DataFrame:
    """Every vocabulary beside R, from statistics by block; a name's first word is its ``kind``.

    ``score_mass`` is the mean of the k best scores; ``overlap_halves`` is of the top k on one half of the
    blocks with R's on the other half: NaN for R, which is its own reference.
    """
    even = np.arange(len(blocks.counts)) % 2 == 0
    parts = blocks.weighted(np.stack([even, ~even]).astype(np.float64))
    whole = score_all(blocks.total(), vocabularies, window, alpha)
    halves = {name: chosen(own, k) for name, own in score_all(parts, vocabularies, window, alpha).items()}
    reference = set(vocabularies[REFERENCE])
    rows = []
    for name, scores in whole.items():
        row: dict[str, Any] = {"vocabulary": name, "kind": name.split()[0]}
        row |= {"words_of_R": len(reference & set(vocabularies[name]))}
        row |= {"score_mass": float(top_mean(scores, k)), "maximum": float(scores.max())}
        shared = overlap(halves[REFERENCE], halves[name][::-1])
        rows.append(row | {"overlap_halves": float(shared.mean())})
    table = pd.DataFrame(rows)
    return table.assign(overlap_halves=table["overlap_halves"].mask(table["vocabulary"] == REFERENCE))


def null_ranks(table: pd.DataFrame, statistics: Sequence[str]) -> pd.DataFrame:
    """Where R stands within each kind of nulls of :func:`null_table`, a row a statistic that R has."""
    ours = table[table["kind"] == REFERENCE].iloc[0]
    rows = []
    for kind, null in table[table["kind"].isin(NULLS)].groupby("kind"):
        for name in ours[list(statistics)].dropna().index:
            rank = null_rank(float(ours[name]), null[name])
            row = {"null": kind, "statistic": name, "ours": rank.value, "null_mean": null[name].mean()}
            row |= {"null_95": null[name].quantile(0.95), "z": rank.z, "percentile": rank.percentile}
            rows.append(row | {"p_value": rank.p_value, "n": rank.n})
    return pd.DataFrame(rows)


def resampled_comparison(
    statistics: FeatureStatistics,
    vocabularies: Mapping[str, Sequence[str]],
    window: Window,
    alpha: float,
    k: int,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """R against other vocabularies, from statistics by block: a row a ``resample`` (0: the data).

    ``score_mass`` is the mean of the k best scores, ``above_twins`` how far it lies above the counterparts',
    ``z`` is of R among the other vocabularies, ``overlap`` the mean of R's top k with theirs.
    """
    weights = weights_by_document(len(statistics.counts), seed, resamples)
    mass, member = {}, {}
    for name, words in vocabularies.items():
        scores = reason_score.resampled_scores(statistics, name, words, window, alpha, weights)
        mass[name], member[name] = top_mean(scores, k), chosen(scores, k)
    others = [name for name in vocabularies if name not in (REFERENCE, TWINS)]
    null = np.array([mass[name] for name in others])
    shared = [overlap(member[REFERENCE], member[name]) for name in others]
    columns = {"resample": np.arange(resamples + 1), "score_mass": mass[REFERENCE]}
    columns |= {"above_twins": mass[REFERENCE] - mass[TWINS], "null_mean": null.mean(axis=0)}
    columns["z"] = (mass[REFERENCE] - null.mean(axis=0)) / null.std(axis=0, ddof=1)
    return pd.DataFrame(columns | {"overlap": np.mean(shared, axis=0)})


def held_out_overlap(
    blocks: FeatureStatistics,
    learnt: Mapping[str, FeatureStatistics],
    words: Sequence[str],
    window: Window,
    alpha: float,
    k: int,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Overlap with R's choice of ``k`` features on odd blocks of documents, a row a resample of these (0: the
    data): of R's choice on even blocks, ``R``, and by statistics ``learnt`` there. Words are those of both.
    """
    even = np.arange(len(blocks.counts)) % 2 == 0
    counts = blocks.only([word_set(word, window) for word in words]).counts > 0
    words = list(compress(words, counts[even].any(axis=0) & counts[~even].any(axis=0)))
    weights = np.zeros((resamples + 1, len(even)))
    weights[:, ~even] = weights_by_document(int((~even).sum()), seed, resamples)
    target = reason_score.resampled_scores(blocks, REFERENCE, words, window, alpha, weights)
    shared = {}
    for name, own in {REFERENCE: blocks.weighted(even.astype(np.float64)), **learnt}.items():
        scores = reason_score.vocabulary_scores(own, REFERENCE, words, window, alpha)
        shared[name] = overlap(chosen(scores, k), chosen(target, k))
    return pd.DataFrame(shared)


def identity_table(
    score: Array, identity: Mapping[str, Array], live: Flags, held_out: pd.DataFrame, blocks: int
) -> pd.DataFrame:
    """How far a ranking ``[f]`` is what token identity alone gives: Spearman's correlation over the ``live``
    features ``[f]``; of :func:`held_out_overlap`, its overlap and how far it falls short of that of R's own
    score, with the 95% interval of that.
    """
    rows, whole = [], held_out.iloc[0]
    for name, values in identity.items():
        short, *drawn = held_out[REFERENCE] - held_out[name]
        row = {"identity": name, "spearman": float(spearmanr(score[live], values[live]).statistic)}
        row |= {"overlap": whole[name], "overlap of ReasonScore": whole[REFERENCE]}
        rows.append(row | percentile_interval(short, drawn, blocks).row("falls short by"))
    return pd.DataFrame(rows)


def draw_scores(
    scores: Mapping[str, Array], name: str, k: int, quantile: float
) -> tuple[Figure, pd.DataFrame]:
    """Figure 6: R's scores ``[f]`` by rank, with k, a quantile, and the random vocabularies' middle 95%."""
    own = np.sort(scores[REFERENCE])[::-1]
    data = pd.DataFrame({"rank": np.arange(1, len(own) + 1), REFERENCE: own})
    fig, (ax,) = plots.panels(1, height=2.6, ylabel="ReasonScore")
    random = [np.sort(values)[::-1] for each, values in scores.items() if each != REFERENCE]
    if random:
        low, high = np.quantile(random, [0.025, 0.975], axis=0)
        data["random low"], data["random high"] = low, high
        label = NULLS["random"]
        ax.fill_between(data["rank"], low, high, color=plots.COLOURS[4], alpha=0.7, label=label, zorder=3)
    ax.plot(data["rank"], own, color=plots.COLOURS[0], marker="", label=REFERENCE)
    grey: dict[str, Any] = {"color": plots.COLOURS[7], "marker": ""}
    ax.axvline(k, linestyle=plots.LINES[1], label=f"k = {k}", **grey)
    ax.axhline(np.quantile(own, quantile), linestyle=plots.LINES[3], label=f"quantile {quantile}", **grey)
    ax.set(xscale="log", xlabel="rank", title=plots.variant_name(name))
    decade = 10 ** np.floor(np.log10(own[0] / 20))  # the band is seen at every rank
    ax.set_yscale("symlog", linthresh=decade, linscale=0.6)
    ax.xaxis.set_major_formatter("{x:g}")
    plots.legend_below(fig)
    return fig, data.assign(variant=name)


def draw_nulls(tables: Mapping[str, pd.DataFrame], statistic: str, label: str) -> tuple[Figure, pd.DataFrame]:
    """A statistic of :func:`null_table`, cumulated over nulls, with R's and the twins', a panel a model."""
    fig, axes = plots.panels(len(tables), sharex=True)
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        nulls = table[table["kind"].isin(NULLS)].groupby("kind", sort=False)[statistic]
        for i, (kind, values) in enumerate(nulls):
            ax.ecdf(values.dropna(), marker="", label=NULLS[str(kind)], **plots.look(i, "color", "linestyle"))
        for kind, mark, line in ((REFERENCE, REFERENCE, "-"), (TWINS, "its counterparts", ":")):
            for value in table.loc[table["kind"] == kind, statistic].dropna():
                ax.axvline(value, color=plots.COLOURS[7], linestyle=line, marker="", label=mark)
        ax.set(xlabel=label, ylabel="fraction of vocabularies\nat this value or below")
        ax.set_title(plots.variant_name(name))
    plots.legend_below(fig)
    columns = ["vocabulary", "kind", "words_of_R", statistic]
    data = pd.concat([own[columns].assign(variant=name) for name, own in tables.items()], ignore_index=True)
    return fig, data


def draw_identity(frame: pd.DataFrame, name: str, k: int) -> tuple[Figure, pd.DataFrame]:
    """Ranks by ReasonScore against ranks by identity alone; how well a token tells each (live) feature."""
    fig, axes = plots.panels(3, height=2.1)
    ranked = frame.assign(**{each: reason_score.ranks(frame[each]) for each in ("score", *IDENTITIES)})
    groups = ranked.assign(features=np.where(frame["chosen"], f"top {k}", "other features"))
    groups = groups.sort_values("chosen", kind="stable")
    for ax, column in zip(axes[:2], IDENTITIES, strict=True):
        plots.scatter(ax, groups, column, "score", "features")
        ax.axline((1, 1), (2, 2), color="0.5", linewidth=0.7, marker="")
        ax.set(xscale="log", yscale="log", xlabel=f"rank by identity:\n{column}", title=name)
        ax.set_ylabel("rank by ReasonScore")
    plots.distribution(axes[2], groups, "f1", "features", bins=20)
    axes[2].set(xlabel="F1 of the best single token", title=name)
    plots.legend_below(fig)
    axes[2].legend()
    columns = ["feature", "score", "rank", "density", "chosen", "best token", "precision", "recall", "f1"]
    drawn = frame.columns.intersection([*columns, *IDENTITIES], sort=False)
    return fig, frame[drawn].assign(variant=name)
