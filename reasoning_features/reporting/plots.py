"""One style for every figure, and figures saved with their data and provenance in bytes that repeat."""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from IPython.display import Image, Markdown
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reasoning_features.files import unfinished, write_text
from reasoning_features.runs.provenance import Run, record_artefact

# Okabe and Ito's colours, told apart with any colour vision; never the only mark of a group. There may be
# more groups than colours: what draws them asks ``look`` for each
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 5)))
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "+++", "ooo")

TEXT_WIDTH = 6.75  # inches, the whole text
LETTERS = 36  # the most of a name beside a row
STYLE: Any = {
    "axes.prop_cycle": cycler(color=COLOURS) + cycler(marker=MARKERS) + cycler(linestyle=LINES),
    "figure.dpi": 100, "figure.constrained_layout.use": True, "savefig.dpi": 200, "pdf.fonttype": 42,
    "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
    "axes.formatter.min_exponent": 4,  # logarithmic axes have plain numbers from 0.001 to 1000
    "grid.alpha": 0.25, "grid.linewidth": 0.5, "legend.fontsize": 7, "legend.frameon": False,
    "lines.linewidth": 1.3, "lines.markersize": 4, "hatch.linewidth": 0.5,
}  # fmt: skip


def narrow(text: str) -> str:
    """Text in as many characters, each one place wide: fullwidth forms plain, others that are not a box."""
    found = []
    for c in text:
        c = unicodedata.normalize("NFKC", c) if unicodedata.east_asian_width(c) == "F" else c
        wide = unicodedata.east_asian_width(c) in "WF"
        found.append("□" if wide or unicodedata.combining(c) or not c.isprintable() else c)
    return "".join(found)


def variant_name(name: str) -> str:
    """A model of the organism in words: "coupled-0" → "R matters (κ = 1)"; other names as they are."""
    kind, _, seed = name.rpartition("-")
    known = {"coupled": "R matters (κ = 1)", "decoupled": "R does not matter (κ = 0)"}
    words = known.get(kind, kind.replace("kappa-", "κ = ") if kind.startswith("kappa-") else "")
    return (words if seed == "0" else f"{words}, seed {seed}") if words else name


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = TEXT_WIDTH, height: float = 2.4, **options: Any
) -> tuple[Figure, Any]:
    """A figure in the companion's style and its axes, so many inches wide, each row of panels so high."""
    plt.rcdefaults()
    plt.rcParams.update(STYLE)
    return plt.subplots(rows, columns, figsize=(width, height * rows), **options)


def panels(
    n: int, across: int = 4, *, ylabel: str = "", height: float = 2.4, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of ``n`` panels, at most ``across`` side by side, ``ylabel`` left of every row; its axes."""
    across = min(n, across)
    fig, axes = new_figure(-(-n // across), across, height=height, squeeze=False, **options)
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    for ax in axes.flat[n:]:
        ax.remove()
    for ax in axes.flat[n - across : n]:  # the lowest of each column, which need not lie in the last row
        ax.tick_params(labelbottom=True)
    return fig, list(axes.flat[:n])


def look(i: int, *parts: str) -> dict[str, Any]:
    """How series ``i`` looks, as matplotlib's options, by default colour, marker and line; 512 differ."""
    turn = i + i // len(COLOURS)
    every: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[turn % len(MARKERS)]}
    every |= {"linestyle": LINES[(turn + i // 64) % len(LINES)], "hatch": HATCHES[turn % len(HATCHES)]}
    return {part: every[part] for part in parts or ("color", "marker", "linestyle")}


def colour_bar(fig: Figure, axes: Sequence[Axes], values: pd.Series, label: str) -> ScalarMappable:
    """Draw a colour bar right of the panels for series that are numbers (depths), and give their colours."""
    colours = ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 0.9, 256)))  # yellow is faint on white
    scale = ScalarMappable(Normalize(values.min(), values.max()), colours)
    ticks = MaxNLocator("auto", integer=pd.api.types.is_integer_dtype(values))
    fig.colorbar(scale, ax=axes, label=label, ticks=ticks)
    return scale


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Write names left of rows, the first on top; long ones are cut, and none is read as mathematics."""
    cut = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in map(str, names)]
    ax.set_yticks(range(len(cut)), [name.replace("$", r"\$") for name in cut])
    ax.set_ylim(len(cut) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def legend_below(fig: Figure, marks: Mapping[str, Any] | None = None) -> None:
    """One legend for all panels, below them, in as few rows as fit the width; the figure grows by more rows.
    ``marks``: label → its mark; without them, those of all panels, each label once.
    """
    if marks is None:
        marks = {}
        for ax in fig.axes:
            found = zip(*ax.get_legend_handles_labels(), strict=True)
            marks |= {label: mark for mark, label in found if label not in marks}
    labels = [fill(label, 60) for label in marks]
    for rows in range(1, len(marks) + 1):
        columns = -(-len(marks) // rows)
        legend = fig.legend([*marks.values()], labels, loc="outside lower center", ncols=columns)
        box = legend.get_window_extent()
        if box.width <= fig.bbox.width or columns == 1:
            fig.set_figheight(fig.get_figheight() + box.height * (rows - 1) / rows / fig.dpi)
            return
        legend.remove()


def distribution(ax: Axes, frame: pd.DataFrame, x: str, hue: str, *, bins: int, log: bool = False) -> None:
    """Draw the density of column ``x``, one outline a group of column ``hue``, perhaps on a log axis."""
    style: Any = {"stat": "density", "element": "step", "fill": False, "marker": ""}
    for place, (group, values) in enumerate(frame.groupby(hue, sort=False)[x]):
        style |= look(place, "color", "linestyle") | {"label": str(group)}
        sns.histplot(x=values, bins=bins, log_scale=log or None, ax=ax, **style)
    ax.set(xlabel=x, ylabel="density")


def points(
    ax: Axes, x: Any, table: pd.DataFrame, value: str, ends: tuple[str, str], label: str, i: int
) -> None:
    """Draw a column's values at ``x``, with bars between two other columns, as series ``i``."""
    if table[value].isna().all():  # nor is it named in the legend
        return
    spread = np.abs(table[list(ends)].to_numpy().T - table[value].to_numpy())
    ax.errorbar(x, table[value], spread, label=label, capsize=2, **look(i))


def band(
    ax: Axes, table: pd.DataFrame, x: str, value: str, ends: tuple[str, str], style: Mapping[str, Any]
) -> None:
    """Draw a line through a column's values in a style, and a band between two other columns."""
    low, high = (table[end] for end in ends)
    ax.fill_between(table[x], low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.plot(table[x], table[value], **style)


def grouped_points(ax: Axes, table: pd.DataFrame, place: str, group: str, value: str) -> None:
    """Draw values with their intervals (``low``, ``high``), groups side by side at every place along x."""
    places, groups = list(pd.unique(table[place])), list(pd.unique(table[group]))
    apart = min(0.16, 0.8 / max(len(groups), 1))  # all groups of a place stay within it
    for i, name in enumerate(groups):
        rows = table[table[group] == name]
        x = [places.index(at) + (i - (len(groups) - 1) / 2) * apart for at in rows[place]]
        spread = np.abs(rows[["low", "high"]].to_numpy().T - rows[value].to_numpy())
        ax.errorbar(x, rows[value], spread, label=name, capsize=2, **look(i) | {"linestyle": ""})
    ax.set_xticks(range(len(places)), places, rotation=45, ha="right")


def forest(
    ax: Axes,
    table: pd.DataFrame,
    row: str,
    value: str,
    group: str | None = None,
    ends: tuple[str, str] = ("low", "high"),
    unit: float = 1.0,
    names: Sequence[str] = (),
) -> None:
    """Draw values times ``unit`` with their intervals, ``names`` (or as they come) in rows, by groups."""
    rows = list(names or pd.unique(table[row]))
    groups = [None] if group is None else list(pd.unique(table[group]))
    apart = min(0.15, 0.8 / max(1, len(groups)))  # all groups of a name stay within its row
    ax.axvline(0, color="0.4", linestyle=":", marker="", linewidth=1)
    for i, name in enumerate(groups):
        own = table if group is None else table[table[group] == name]
        y = [rows.index(at) + (i - (len(groups) - 1) / 2) * apart for at in own[row]]
        spread = np.abs(own[list(ends)].to_numpy().T - own[value].to_numpy())
        style = look(i, "color", "marker") | {"linestyle": "", "capsize": 2}
        ax.errorbar(unit * own[value], y, xerr=unit * spread, label=name, **style)
    name_rows(ax, rows)


def scatter(ax: Axes, table: pd.DataFrame, x: str, y: str, group: str) -> None:
    """Draw a point a row, the first group's small and grey; the others over them, in marks of their own."""
    for i, (name, rows) in enumerate(table.groupby(group, sort=False)):
        style = look(i, "color", "marker") if i else {"color": "0.7", "marker": "."}
        ax.scatter(rows[x], rows[y], s=16, label=name, alpha=0.7, linewidth=0, **style)


def save_figure(fig: Figure, name: str, data: pd.DataFrame, run: Run, caption: str) -> Image | Markdown:
    """Save a figure as PNG and PDF with its data (a row a mark) as CSV and its provenance as JSON; close it.

    Its name is the paper's figure's, as ``f02_vocabulary``, or begins with ``x`` and the notebook's number.
    A figure without data is not saved, and a sentence says so: the profile lacks what it takes.
    """
    if data.empty:
        plt.close(fig)
        return Markdown(f"Not testable here: there is nothing to draw in `{name}`.")
    folder = run.paths.figures
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf, csv = (folder / f"{name}.{ending}" for ending in ("png", "pdf", "csv"))
    pdf_dates: Any = {"Creator": None, "Producer": None, "CreationDate": None}
    for path, metadata in ((png, {"Software": None}), (pdf, pdf_dates)):
        fig.savefig(unfinished(path), format=path.suffix[1:], metadata=metadata)
        unfinished(path).replace(path)
    plt.close(fig)
    write_csv(csv, data)
    record_artefact(run, name, [png, pdf, csv], caption)
    return Image(filename=str(png), width=round(fig.get_figwidth() * 100), alt=caption)


def write_csv(path: Path, data: pd.DataFrame) -> None:
    """Write a table as CSV: no index, six significant digits, newlines alone."""
    write_text(path, data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
