"""A feature to look at: its interface as a figure, snippets of many features, and static pages of HTML.

The pages (``feature_views.html``, a template) work from disk and load nothing: an index that sorts, and a
page a feature.
"""

import html
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reasoning_features.files import write_text
from reasoning_features.interpretation.features import Example, FeatureInterface
from reasoning_features.reporting.plots import COLOURS, legend_below, narrow, new_figure
from reasoning_features.runs.provenance import Run, record_artefact
from reasoning_features.text.traces import CHARACTER_WIDTH, MONOSPACE

FOLDER = "features"
CHARACTERS, MARGIN = 96, 8  # of a line of text, and left of it for the feature's number or the activation
LINE = 0.128  # inches
LONGEST_LABEL = 14
SHOWN = 6  # examples in a feature's figure
SHADES = (0.25, 1.0)  # that a legend explains
Lines = list[list[tuple[str, float]]]


def visible(text: str) -> str:
    """A token as it is drawn: newlines and tabs as signs, what cannot be drawn in one place as a box."""
    signs = {"\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c, narrow(c)) for c in text)


def draw_interface(interface: FeatureInterface) -> tuple[Figure, pd.DataFrame]:
    """Top logits on both sides, the histogram of activations, and examples with shaded tokens."""
    drawn = interface.examples[:SHOWN]
    blocks = [(f"{example.activations[example.peak]:.2f}", wrapped(example)) for example in drawn]
    text_height = LINE * sum(len(lines) + 0.6 for _, lines in blocks) + 0.35
    top_height = max(1.75, 0.55 + 0.12 * max(len(interface.negative), len(interface.positive)))
    heights = [top_height, text_height]
    fig, axes = new_figure(2, 3, height=sum(heights) / 2, height_ratios=heights, squeeze=False)
    for ax in axes[1]:
        ax.remove()
    below = fig.add_subplot(axes[1, 0].get_gridspec()[1, :])
    _bars(axes[0, 0], interface.negative, "lowers", COLOURS[0])
    _bars(axes[0, 1], interface.positive, "raises", COLOURS[1])
    if len(interface.histogram):
        axes[0, 2].stairs(interface.histogram, interface.edges, fill=True, color=COLOURS[2])
        axes[0, 2].set_xscale("log", base=2)
    axes[0, 2].set_title(f"active on {interface.density:.2%} of tokens", loc="right")  # wider than the panel
    axes[0, 2].set(xlabel="activation (log)", ylabel="tokens a bin")
    _write(below, blocks, max(interface.maximum, 1e-12))
    below.set_title("strongest examples, one a document (left: activation at the peak)", loc="left")
    mode = f" · {interface.mode}" if interface.mode else ""
    title = f"feature {interface.feature} · ReasonScore {interface.score:.3g} (rank {interface.rank}){mode}"
    fig.suptitle(title, fontsize=9)
    _fit(fig, [below])
    return fig, pd.DataFrame(_rows(interface, drawn), columns=["part", "item", "text", "value"])


def draw_snippets(
    groups: Mapping[str, Sequence[Example]], maxima: Mapping[int, float]
) -> tuple[Figure, pd.DataFrame]:
    """Snippets a row each, by heading if any; tokens shaded by their share of the largest (legend)."""
    blocks = {
        heading: [(str(each.feature), wrapped(each, max(maxima[each.feature], 1e-12))) for each in examples]
        for heading, examples in groups.items()
        if examples
    }
    lines = [sum(len(part) + 0.6 for _, part in block) for block in blocks.values()]
    n = max(len(blocks), 1)
    height = (LINE * sum(lines) + 0.3 * n + 0.35) / n
    fig, axes = new_figure(n, 1, height=height, height_ratios=lines or None, squeeze=False)
    axes[0, 0].axis("off")
    for ax, (heading, block) in zip(axes[:, 0], blocks.items(), strict=False):
        _write(ax, block, 1.0)
        ax.set_title(heading, loc="left")
    for share in SHADES:
        label = f"{share:.0%} of the feature's largest activation"
        axes[0, 0].add_patch(plt.Rectangle((0, 0), 0, 0, color=COLOURS[4], alpha=share, label=label))
    axes[0, 0].plot([], [], linestyle="", marker="", label="⏎ is a new line")
    legend_below(fig)
    _fit(fig, axes[:, 0])
    rows = [
        (heading, example.feature, place, visible(piece), float(value))
        for heading, examples in groups.items()
        for place, example in enumerate(examples, start=1)
        for piece, value in zip(example.pieces, example.activations, strict=True)
    ]
    return fig, pd.DataFrame(rows, columns=["group", "feature", "snippet", "text", "activation"])


def wrapped(example: Example, scale: float = 1.0) -> Lines:
    """An example cut into lines, between tokens where they fit one; activations divided by ``scale``."""
    lines: Lines = [[]]
    for piece, value in zip(example.pieces, example.activations / scale, strict=True):
        text, written = visible(piece), sum(len(part) for part, _ in lines[-1])
        if lines[-1] and written + len(text) > CHARACTERS:
            lines.append([])
        for start in range(0, len(text), CHARACTERS):  # a token longer than a line
            lines += [[]] if start else []
            lines[-1].append((text[start : start + CHARACTERS], float(value)))
    return [line for line in lines if line]


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
                    box = plt.Rectangle((column, row - 0.5), len(text), 1, color=COLOURS[4], linewidth=0)
                    box.set_alpha(min(value / maximum, 1.0))
                    ax.add_patch(box)
                start = column + len(text) - len(text.lstrip())
                ax.text(start, row, text.lstrip(), **style)
                column += len(text)
            row += 1
        row += 0.6


def _fit(fig: Figure, axes: Sequence[Axes]) -> None:
    """Set text a little smaller than a character's place, once panels have their width."""
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
    ax.set(title=title, xlabel="logits, activation 1 in\na stream of norm √d")


def _rows(interface: FeatureInterface, examples: Sequence[Example]) -> Iterator[tuple[str, int, str, float]]:
    for part, tokens in (("negative", interface.negative), ("positive", interface.positive)):
        for item, (text, value) in enumerate(tokens, start=1):
            yield part, item, visible(text), value
    for item, (edge, count) in enumerate(zip(interface.edges, interface.histogram, strict=False), start=1):
        yield "histogram", item, f"{edge:.4g}", float(count)
    for item, example in enumerate(examples, start=1):
        for piece, value in zip(example.pieces, example.activations, strict=True):
            yield "example", item, visible(piece), float(value)


# --- pages --------------------------------------------------------------------------------------------------


def write_pages(interfaces: Sequence[FeatureInterface], run: Run, title: str) -> Path:
    """Write ``figures/<run>/features`` anew and give its index, which lists the features in this order."""
    folder = run.paths.figures / FOLDER
    pages = {f"feature_{interface.feature}.html": feature_page(interface) for interface in interfaces}
    pages["index.html"] = index_page(interfaces, title)
    shutil.rmtree(folder, ignore_errors=True)  # pages of features that are no longer among them
    for name, text in pages.items():
        write_text(folder / name, text)
    record_artefact(run, FOLDER, [folder / name for name in pages], title)
    return folder / "index.html"


def embed(interface: FeatureInterface) -> dict[str, str]:
    """A feature's page in a frame and, for where only Markdown is shown, a link to it, by MIME type."""
    source = html.escape(feature_page(interface, navigation=False), quote=True)
    style = "box-sizing:border-box;width:100%;height:36rem;border:1px solid #8888"
    # without sandbox rights: the page needs no script
    frame = f'<iframe sandbox srcdoc="{source}" title="A feature\'s page" style="{style}"></iframe>'
    mode = f"{interface.mode}, " if interface.mode else ""
    link = f"[Feature {interface.feature}]({FOLDER}/feature_{interface.feature}.html) ({mode}ReasonScore "
    link += f"{interface.score:.3g}, rank {interface.rank}); [all pages]({FOLDER}/index.html)"
    return {"text/html": frame, "text/markdown": link}


def index_page(interfaces: Sequence[FeatureInterface], title: str) -> str:
    """The table of features; a click on a heading sorts by it, a second one the other way."""
    effects = list(dict.fromkeys(name for interface in interfaces for name in interface.effects))
    described = any(interface.description for interface in interfaces)
    return _page(title=title, interfaces=interfaces, effects=effects, described=described)


def feature_page(interface: FeatureInterface, navigation: bool = True) -> str:
    """One feature's page: what is known of it, logits, histogram, shaded examples; ``navigation`` links to
    the index, to which a page inside another has no way.
    """
    facts = {
        "ReasonScore": f"{interface.score:.3g} (rank {interface.rank})", "mode": interface.mode or "–",
        "density": f"{interface.density:.3g} of tokens", "largest activation": f"{interface.maximum:.3g}",
    }  # fmt: skip
    facts |= {f"effect on {name}": f"{value:.3g} nats" for name, value in interface.effects.items()}
    counts, edges = interface.histogram.tolist(), interface.edges.tolist()
    bars = [(n, n / max(counts), *ends) for n, *ends in zip(counts, edges[:-1], edges[1:], strict=True)]
    examples, title = [], f"Feature {interface.feature}"
    for each in interface.examples:
        shades = (each.activations.astype(float) / max(interface.maximum, 1e-12)).clip(max=1)
        # a newline alone would show no shade
        pieces = [p.replace("\n", "⏎\n") if a > 0 else p for p, a in zip(each.pieces, shades, strict=True)]
        at_peak = [i == each.peak for i in range(len(pieces))]
        examples.append([*zip(pieces, each.activations.tolist(), shades.tolist(), at_peak, strict=True)])
    shown = {"shown": interface, "facts": facts, "bars": bars, "examples": examples}
    return _page(title=title, navigation=navigation, **shown)


def _page(**values: Any) -> str:
    """The template filled and escaped; what no UTF-8 file or parser takes becomes a sign."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_printable)
    environment.filters["spaced"] = lambda text: text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    return environment.from_string(template).render(values) + "\n"


def _printable(value: Any) -> Any:
    if type(value) is not str:  # numbers, and what macros made
        return value
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)
