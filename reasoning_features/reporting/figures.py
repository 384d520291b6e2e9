"""One style for every figure, and figures saved with their data and provenance in bytes that repeat."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from cycler import cycler
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasoning_features.bookkeeping.provenance import Run, record_artefact
from reasoning_features.files import unfinished, write_text

# Okabe and Ito's colours, told apart with any colour vision; never the only mark of a group
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 5)))
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "+++", "ooo")

COLUMN_WIDTH = 3.25  # inches, one column of a two-column page
TEXT_WIDTH = 6.75  # inches, the whole text
DOTS = 200  # dots an inch in PNG files
NAME = re.compile(r"[ftx]\d\d[a-z]?_[a-z0-9_]+")
STYLE: Any = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "savefig.dpi": DOTS,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
}


def narrow(text: str) -> str:
    """Text whose characters are each one place wide, as it is drawn beside shades: as many as before.

    Fullwidth forms (R1's ``｜``) become their plain ones, other wide characters and combining marks a box.
    """
    plain = (unicodedata.normalize("NFKC", c) if unicodedata.east_asian_width(c) == "F" else c for c in text)
    return "".join(
        "□" if unicodedata.east_asian_width(c) in "WF" or unicodedata.combining(c) else c for c in plain
    )


def use_style() -> None:
    """Set the companion's style for everything that matplotlib draws from here on."""
    plt.rcdefaults()
    cycle = cycler(color=COLOURS) + cycler(marker=MARKERS) + cycler(linestyle=LINES)
    plt.rcParams.update(STYLE)
    plt.rcParams["axes.prop_cycle"] = cycle


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = TEXT_WIDTH, height: float = 2.4, **options: Any
) -> tuple[Figure, Any]:
    """A figure in the companion's style and its axes, as :func:`matplotlib.pyplot.subplots` gives them.

    Parameters
    ----------
    rows, columns
        Panels.
    width, height
        Inches: of the whole figure, and of one row of panels.
    options
        Anything else for ``subplots``.
    """
    use_style()
    return plt.subplots(rows, columns, figsize=(width, height * rows), **options)


def legend_below(fig: Figure, ax: Axes, title: str | None = None) -> None:
    """One legend for all panels, taken from ``ax``, below them, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, title=title, loc="outside lower center", ncols=len(labels))


def distribution(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    hue: str | None = None,
    *,
    bins: int | str = 40,
    log: bool = False,
) -> None:
    """Draw the density of a column, one outline a group, told apart by colour and by line.

    Parameters
    ----------
    ax
        Where to draw.
    frame
        One row an observation.
    x
        The column of values.
    hue
        The column of groups, where there are any.
    bins
        Bins, as for :func:`numpy.histogram`.
    log
        A logarithmic axis of values.
    """
    groups = [] if hue is None else list(pd.unique(frame[hue]))
    if len(groups) > len(COLOURS):
        raise ValueError(f"{len(groups)} groups, but only {len(COLOURS)} colours can be told apart")
    for group, colour, line in zip(groups or [None], COLOURS, LINES, strict=False):
        values = frame[x] if group is None else frame.loc[frame[hue] == group, x]
        sns.histplot(
            x=values,
            bins=bins,
            stat="density",
            element="step",
            fill=False,
            log_scale=log or None,
            color=colour,
            linestyle=line,
            marker="",
            label=None if group is None else str(group),
            ax=ax,
        )
    ax.set(xlabel=x, ylabel="density")
    if groups:
        ax.legend(title=hue)


def save_figure(fig: Figure, name: str, data: pd.DataFrame, run: Run, caption: str) -> Image:
    """Save a figure as PNG and PDF with its data as CSV and its provenance as JSON, and close it.

    The same figure gives the same bytes (under one version of matplotlib): no dates, no software's name.

    Parameters
    ----------
    fig
        The figure.
    name
        After the paper's figure: ``f02_vocabulary``; what the paper lacks begins with ``x`` and the
        notebook's number.
    data
        The numbers that are drawn, one row a mark.
    run
        The notebook's run.
    caption
        What the figure shows, in a sentence or two.

    Returns
    -------
    Image
        The saved PNG, for the notebook to show.
    """
    check_name(name)
    folder = run.paths.figures
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf, csv = (folder / f"{name}.{ending}" for ending in ("png", "pdf", "csv"))
    _draw(fig, png, {"Software": None})
    _draw(fig, pdf, {"Creator": None, "Producer": None, "CreationDate": None})
    plt.close(fig)
    write_csv(csv, data)
    record_artefact(run, name, [png, pdf, csv], caption)
    return Image(filename=str(png), width=round(fig.get_figwidth() * 100), alt=caption)


def _draw(fig: Figure, path: Path, metadata: dict[str, None]) -> None:
    """Write an image whole or not at all."""
    fig.savefig(unfinished(path), format=path.suffix[1:], metadata=metadata)
    unfinished(path).replace(path)


def write_csv(path: Path, data: pd.DataFrame) -> None:
    """Write a table as CSV: no index, six significant digits, newlines alone."""
    write_text(path, data.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def check_name(name: str) -> None:
    """A figure's or table's name must say which of the paper's it is (``f``, ``t``) or that it is ours."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name such as f02_vocabulary, t01_steering or x03_grid")
