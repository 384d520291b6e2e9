"""A feature's interface as a figure, and snippets of many features by mode; each function only draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasoning_features.interpretation.activating_examples import Example
from reasoning_features.interpretation.feature_interface import FeatureInterface
from reasoning_features.reporting.plots import COLOURS, narrow, new_figure

MONOSPACE = "DejaVu Sans Mono"
CHARACTER_WIDTH = 0.602  # of that font, in font sizes
CHARACTERS = 96
"""Characters a line of text."""
MARGIN = 8
"""Characters left of it, for the feature's number or the activation."""
LINE = 0.128  # inches
SHADE = COLOURS[4]
LONGEST_LABEL = 14
Lines = list[list[tuple[str, float]]]


def visible(text: str) -> str:
    """A token as it is drawn: newlines and tabs as signs, what cannot be drawn in one place as a box."""
    signs = {"\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c, narrow(c)) for c in text)


def draw_interface(interface: FeatureInterface, examples: int = 6) -> tuple[Figure, pd.DataFrame]:
    """Top logits on both sides, the histogram of activations with density, and examples with shaded tokens.

    Args:
        interface: the feature.
        examples: how many to draw.

    Returns:
        The figure, and its rows: ``part`` ("negative", "positive", "histogram", "example"), ``item`` (rank,
        bin or example, from 1), ``text`` (token, or the bin's lower edge), ``value`` (logit, tokens or
        activation).
    """
    blocks = [
        (f"{example.activations[example.peak]:.2f}", wrapped(example))
        for example in interface.examples[:examples]
    ]
    text_height = LINE * sum(len(lines) + 0.6 for _, lines in blocks) + 0.35
    top_height = max(1.75, 0.55 + 0.12 * max(len(interface.negative), len(interface.positive)))
    heights = [top_height, text_height]
    fig, axes = new_figure(2, 3, height=sum(heights) / 2, height_ratios=heights, squeeze=False)
    for ax in axes[1]:
        ax.remove()
    below = fig.add_subplot(axes[1, 0].get_gridspec()[1, :])
    _bars(axes[0, 0], interface.negative, "lowers", COLOURS[0])
    _bars(axes[0, 1], interface.positive, "raises", COLOURS[1])
    _histogram(axes[0, 2], interface)
    _write(below, blocks, max(interface.maximum, 1e-12))
    below.set_title("strongest examples, one a document (left: activation at the peak)", loc="left")
    mode = f" · {interface.mode}" if interface.mode else ""
    fig.suptitle(
        f"feature {interface.feature} · ReasonScore {interface.score:.3g} (rank {interface.rank}){mode}",
        fontsize=9,
    )
    _fit(fig, [below])
    return fig, pd.DataFrame(_rows(interface, examples), columns=["part", "item", "text", "value"])


def draw_snippets(
    groups: Mapping[str, Sequence[Example]], maxima: Mapping[int, float]
) -> tuple[Figure, pd.DataFrame]:
    """Snippets a row each, in groups, tokens shaded by activation as a share of the feature's largest.

    Args:
        groups: heading → snippets, in order; a heading without any is left out.
        maxima: feature → its largest activation.

    Returns:
        The figure, and its rows: ``group``, ``feature``, ``snippet`` (from 1 in its group), ``text``,
        ``activation``.
    """
    shown = {heading: list(examples) for heading, examples in groups.items() if examples}
    blocks = {
        heading: [(str(example.feature), wrapped(_scaled(example, maxima))) for example in examples]
        for heading, examples in shown.items()
    }
    lines = [sum(len(part) + 0.6 for _, part in block) for block in blocks.values()]
    n = max(len(blocks), 1)
    height = (LINE * sum(lines) + 0.3 * n + 0.1) / n
    fig, axes = new_figure(n, 1, height=height, height_ratios=lines or None, squeeze=False)
    for ax, (heading, block) in zip(axes[:, 0], blocks.items(), strict=False):
        _write(ax, block, 1.0)
        ax.set_title(heading, loc="left")
    if not blocks:
        axes[0, 0].axis("off")
    _fit(fig, axes[:, 0])
    rows = [
        (heading, example.feature, place, visible(piece), float(value))
        for heading, examples in shown.items()
        for place, example in enumerate(examples, start=1)
        for piece, value in zip(example.pieces, example.activations, strict=True)
    ]
    return fig, pd.DataFrame(rows, columns=["group", "feature", "snippet", "text", "activation"])


def wrapped(example: Example, characters: int = CHARACTERS) -> Lines:
    """An example cut into lines of at most so many characters, between tokens where they fit a line."""
    lines: Lines = [[]]
    width = 0
    for piece, value in zip(example.pieces, example.activations, strict=True):
        text = visible(piece)
        if width + len(text) > characters and lines[-1]:
            lines.append([])
            width = 0
        for start in range(0, len(text), characters):  # a token longer than a line
            if start:
                lines.append([])
            lines[-1].append((text[start : start + characters], float(value)))
            width = len(text) - start if start else width + min(len(text), characters)
    return [line for line in lines if line]


def _scaled(example: Example, maxima: Mapping[int, float]) -> Example:
    largest = max(maxima[example.feature], 1e-12)
    return Example(
        example.feature, example.document, example.pieces, example.activations / largest, example.peak
    )


def _write(ax: Axes, blocks: Sequence[tuple[str, Lines]], maximum: float) -> None:
    """Text line by line, each block's label in the margin, tokens shaded by their value as a share."""
    rows = sum(len(lines) + 0.6 for _, lines in blocks)
    ax.set(xlim=(-MARGIN, CHARACTERS), ylim=(max(rows, 1), -0.3))
    ax.axis("off")
    style: dict[str, Any] = {"family": MONOSPACE, "va": "center", "parse_math": False, "in_layout": False}
    row = 0.5
    for label, lines in blocks:
        ax.text(-1, row, label, ha="right", color="#444444", **style)
        for line in lines:
            column = 0
            for text, value in line:
                if value > 0:
                    share = min(value / maximum, 1.0)
                    box = plt.Rectangle(
                        (column, row - 0.5), len(text), 1, color=SHADE, alpha=share, linewidth=0
                    )
                    ax.add_patch(box)
                start = column + len(text) - len(text.lstrip())
                ax.text(start, row, text.lstrip(), **style)
                column += len(text)
            row += 1
        row += 0.6


def _fit(fig: Figure, axes: Sequence[Axes]) -> None:
    """Set written text a little smaller than a character's place, once the panels have their width."""
    fig.draw_without_rendering()
    for ax in axes:
        inches = ax.get_window_extent().width / fig.dpi
        for text in ax.texts:
            text.set_fontsize(0.96 * inches * 72 / (CHARACTERS + MARGIN) / CHARACTER_WIDTH)


def _bars(ax: Axes, tokens: Sequence[tuple[str, float]], title: str, colour: str) -> None:
    names = [visible(text) for text, _ in tokens]
    names = [name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…" for name in names]
    ax.barh(range(len(tokens)), [value for _, value in tokens], color=colour, height=0.7)
    ax.set_yticks(range(len(tokens)), [name.replace(" ", "␣") for name in names])
    for label in ax.get_yticklabels():
        label.set(family=MONOSPACE, fontsize=7, parse_math=False)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(title=title, xlabel="logit at unit activation")


def _histogram(ax: Axes, interface: FeatureInterface) -> None:
    if len(interface.histogram):
        ax.stairs(interface.histogram, interface.edges, fill=True, color=COLOURS[2])
        ax.set_xscale("log", base=2)
    ax.set_title(f"active on {interface.density:.2%} of tokens", loc="right")  # wider than the panel
    ax.set(xlabel="activation (log)", ylabel="tokens a bin")


def _rows(interface: FeatureInterface, examples: int) -> Iterator[tuple[str, int, str, float]]:
    for part, tokens in (("negative", interface.negative), ("positive", interface.positive)):
        for item, (text, value) in enumerate(tokens, start=1):
            yield part, item, visible(text), value
    for item, (edge, count) in enumerate(zip(interface.edges, interface.histogram, strict=False), start=1):
        yield "histogram", item, f"{edge:.4g}", float(count)
    for item, example in enumerate(interface.examples[:examples], start=1):
        for piece, value in zip(example.pieces, example.activations, strict=True):
            yield "example", item, visible(piece), float(value)
