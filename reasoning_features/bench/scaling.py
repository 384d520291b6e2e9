"""How time and memory grow with tokens and features: three runs each, in processes of their own."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from reasoning_features.bench.processes import in_a_process
from reasoning_features.bench.setting import Sizes
from reasoning_features.bench.timing import Bar, Row
from reasoning_features.reporting.plots import new_figure

FLAT = Bar("at most", 1.1)
"""Peak memory at the most tokens over that at the fewest: what is called flat."""


def by_tokens(way: str, sizes: Sizes) -> pd.DataFrame:
    """A pass over more and more documents with the shipped autoencoder, a row a run."""
    runs = [in_a_process(way, documents) for documents in sizes.documents_by_step]
    return pd.DataFrame(runs).assign(way=way, against="tokens")


def by_features(sizes: Sizes) -> pd.DataFrame:
    """A ReasonScore pass with wider and wider autoencoders over the same documents, a row a run."""
    documents = sizes.documents_by_step[0]
    runs = [in_a_process("scores", documents, features) for features in sizes.features_by_step]
    return pd.DataFrame(runs).assign(way="scores", against="features")


def rows(scores: pd.DataFrame, examples: pd.DataFrame, by_sorting: pd.DataFrame) -> list[Row]:
    """Whether memory is flat in tokens and time linear, from three runs of each kind."""
    found = []
    for what, runs in (
        ("ReasonScore's statistics of all features", scores),
        ("activating examples of all features, one pass", examples),
        ("activating examples by sorting stored activations", by_sorting),
    ):
        tokens, peaks = runs["tokens"].to_numpy(), runs["peak"].to_numpy()
        told = f"{tokens[0]:,.0f} to {tokens[-1]:,.0f} tokens, a process each"
        note = f"peak {', '.join(f'{held / 2**20:,.0f}' for held in peaks)} MiB"
        against, bar = "itself on the fewest tokens", None if runs is by_sorting else FLAT
        ratio = float(peaks[-1] / peaks[0])
        found.append(Row(what, against, "peak memory, most / fewest tokens", (ratio,), bar, told, note))
    tokens, seconds = scores["tokens"].to_numpy(), scores["seconds"].to_numpy()
    ratio = float((seconds[-1] / tokens[-1]) / (seconds[0] / tokens[0]))
    told = f"{tokens[0]:,.0f} to {tokens[-1]:,.0f} tokens, a process each"
    given = "time a token, most / fewest tokens", (ratio,), Bar("at most", 1.15), told
    found.append(Row("ReasonScore's statistics of all features", "itself on the fewest tokens", *given))
    return found


def draw(data: pd.DataFrame) -> Figure:
    """Seconds and peak memory against tokens and against features, from the rows of all runs."""
    figure, axes = new_figure(1, 4, height=2.1)
    names = {"scores": "ReasonScore", "examples": "examples", "sorted examples": "by sorting"}
    for i, against in enumerate(("tokens", "features")):
        for axis, column, label, unit in (
            (axes[2 * i], "seconds", "seconds", 1.0),
            (axes[2 * i + 1], "peak", "peak memory, GiB", 2.0**30),
        ):
            for way, runs in data[data["against"] == against].groupby("way", sort=False):
                axis.plot(runs[against] / 1000, runs[column] / unit, label=names[str(way)])
            axis.set(xlabel=f"{against}, thousands", ylabel=label, ylim=(0, None), xlim=(0, None))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
