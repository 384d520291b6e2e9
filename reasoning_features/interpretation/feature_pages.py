"""Static pages of features: an index that sorts, and a page a feature; they work from disk, load nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from reasoning_features.files import write_text
from reasoning_features.interpretation.feature_interface import FeatureInterface
from reasoning_features.runs.provenance import Run, record_artefact

FOLDER = "features"
NOTHING = "–"

STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--paper:#fff;--dim:#5a5a5a;--line:#d5d5d5;--link:#0059a8;
--shade:230 159 0;--bar:#0072b2}
@media(prefers-color-scheme:dark){:root{--ink:#ececec;--paper:#16181b;--dim:#a9a9a9;--line:#3b3f45;
--link:#7cc0f5;--shade:150 80 0;--bar:#56b4e9}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:62rem;background:var(--paper);color:var(--ink);
font:16px/1.45 system-ui,sans-serif}
a{color:var(--link)}h1{font-size:1.4rem;margin:.4rem 0}h2{font-size:1.05rem;margin:1.3rem 0 .4rem}
p{margin:.4rem 0}caption{white-space:nowrap}
.dim,caption,figcaption{color:var(--dim);font-size:.9rem;text-align:left}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:left}td.n,th.n{text-align:right}
th button{font:inherit;font-weight:bold;color:inherit;background:none;border:0;padding:.3rem 0;cursor:pointer}
th[aria-sort=ascending] button::after{content:" ▲"}th[aria-sort=descending] button::after{content:" ▼"}
pre,code{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.85rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.2rem 0 .8rem;padding:.4rem .6rem;
border-left:3px solid var(--line)}
pre span{background:rgb(var(--shade)/var(--a));border-radius:2px}.peak{outline:1px solid var(--dim)}
.two{display:flex;flex-wrap:wrap;gap:0 3rem}svg{display:block;width:100%;max-width:28rem;height:7rem;
border-bottom:1px solid var(--line)}rect{fill:var(--bar)}figure{margin:0}
"""

SCRIPT = """
const body=document.querySelector("tbody");
function key(row,i){const v=row.cells[i].dataset.value;return v===""?null:isNaN(v)?v:Number(v)}
document.querySelectorAll("th button").forEach(button=>button.addEventListener("click",()=>{
const head=button.parentElement,i=head.cellIndex,first=head.dataset.first,other=
first==="ascending"?"descending":"ascending",way=head.getAttribute("aria-sort")===first?other:first;
document.querySelectorAll("th").forEach(h=>h.removeAttribute("aria-sort"));
head.setAttribute("aria-sort",way);const sign=way==="ascending"?1:-1;
[...body.rows].map(row=>[key(row,i),row]).sort(([a],[b])=>a===b?0:a===null?1:b===null?-1:a<b?-sign:sign)
.forEach(([,row])=>body.append(row))}));
"""


class Embedded:
    """A page inside a notebook; where only Markdown is shown, a link to it."""

    def __init__(self, page: str, link: str) -> None:
        self._page, self._link = page, link

    def _repr_html_(self) -> str:
        # without sandbox rights: the page needs no script
        source = html.escape(self._page, quote=True)
        return (
            f'<iframe sandbox srcdoc="{source}" title="A feature\'s page" '
            'style="box-sizing:border-box;width:100%;height:36rem;border:1px solid #8888"></iframe>'
        )

    def _repr_markdown_(self) -> str:
        return self._link


def write_pages(interfaces: Sequence[FeatureInterface], run: Run, title: str) -> Path:
    """Write ``figures/<run>/features``: the index and a page a feature; pages of an earlier writing go.

    The same features give the same bytes; their provenance lies beside the folder.

    Args:
        interfaces: the features, in the index' first order.
        run: the notebook's run.
        title: what these features are of, in a few words.

    Returns:
        The index.
    """
    folder = run.paths.figures / FOLDER
    pages = {page_name(interface.feature): feature_page(interface) for interface in interfaces}
    pages["index.html"] = index_page(interfaces, title)
    for stale in folder.glob("*.html"):
        if stale.name not in pages:
            stale.unlink()
    for name, text in pages.items():
        write_text(folder / name, text)
    record_artefact(run, FOLDER, [folder / name for name in pages], title)
    return folder / "index.html"


def page_name(feature: int) -> str:
    """The file of a feature's page."""
    return f"feature_{feature}.html"


def embed(interface: FeatureInterface) -> Embedded:
    """A feature's page for the notebook to show."""
    said = f"{interface.mode}, " if interface.mode else ""
    link = (
        f"[Feature {interface.feature}]({FOLDER}/{page_name(interface.feature)}) "
        f"({said}ReasonScore {interface.score:.3g}, rank {interface.rank}); "
        f"[all pages]({FOLDER}/index.html)"
    )
    return Embedded(feature_page(interface, navigation=False), link)


def index_page(interfaces: Sequence[FeatureInterface], title: str) -> str:
    """The table of features; a click on a heading sorts by it, a second one the other way."""
    effects = list(dict.fromkeys(name for interface in interfaces for name in interface.effects))
    described = any(interface.description for interface in interfaces)
    heads = [("rank", "ascending"), ("feature", "ascending"), ("score", "descending"), ("mode", "ascending")]
    heads += [
        ("density", "descending"),
        ("maximum", "descending"),
        *((name, "descending") for name in effects),
    ]
    marks = {"rank": " class=n aria-sort=ascending", "mode": ""}
    head = "".join(
        f'<th scope="col" data-first="{first}"{marks.get(name, " class=n")}>'
        f'<button type="button">{escaped(name)}</button></th>'
        for name, first in heads
    )
    head += "<th>description</th>" * described
    rows = []
    for interface in interfaces:
        numbers = [interface.effects.get(name) for name in effects]
        cells = [
            _number(interface.rank),
            f'<td class="n" data-value="{interface.feature}">'
            f'<a href="{page_name(interface.feature)}">{interface.feature}</a></td>',
            _number(interface.score),
            f'<td data-value="{escaped(interface.mode or "")}">{escaped(interface.mode or NOTHING)}</td>',
            *map(_number, [interface.density, interface.maximum, *numbers]),
            *([f"<td>{escaped(interface.description or NOTHING)}</td>"] if described else []),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    noted = (
        "<p class=dim>Effects are changes of a decision's log-odds, in nats, when the feature is ablated.</p>"
    )
    content = (
        f"<h1>{escaped(title)}</h1>\n<p class=dim>{len(interfaces)} features. Headings sort.</p>\n"
        f"{noted if effects else ''}"
        f"<div class=wide><table><thead><tr>{head}</tr></thead>\n<tbody>\n"
        f"{chr(10).join(rows)}\n</tbody></table></div>"
        f"\n<script>{SCRIPT}</script>"
    )
    return document(title, content)


def feature_page(interface: FeatureInterface, navigation: bool = True) -> str:
    """One feature's page: what is known of it, logits, histogram, examples with shaded tokens.

    Args:
        interface: the feature.
        navigation: whether to link to the index, which a page inside another has no way to.
    """
    name = f"Feature {interface.feature}"
    parts = ["<p><a href=index.html>all features</a></p>"] if navigation else []
    parts += [f"<h1>{name}</h1>", _facts(interface)]
    if interface.description:
        parts.append(f"<p>A judge's words: {escaped(interface.description)}</p>")
    parts.append("<h2>Logits</h2><p class=dim>Direct effect of one unit of activation.</p><div class=two>")
    parts += [_logits("raises", interface.positive), _logits("lowers", interface.negative), "</div>"]
    parts += ["<h2>Activations</h2>", _histogram(interface)]
    if interface.by_move:
        shares = "".join(
            f"<tr><td>{escaped(move)}</td>{_number(share)}</tr>" for move, share in interface.by_move.items()
        )
        parts.append(
            f"<div class=wide><table><caption>share of each move's tokens</caption>{shares}</table></div>"
        )
    parts.append("<h2>Examples</h2><p class=dim>Strongest first, one a document; the peak is outlined.</p>")
    parts += [_example(interface, place) for place in range(len(interface.examples))]
    if not interface.examples:
        parts.append("<p>It was active on no token.</p>")
    return document(name, "\n".join(parts))


def document(title: str, content: str) -> str:
    """A page of its own with this title and content, which are HTML already but for the title."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n<body>\n{content}\n</body></html>\n"
    )


def _facts(interface: FeatureInterface) -> str:
    facts = {
        "ReasonScore": f"{interface.score:.3g} (rank {interface.rank})",
        "mode": interface.mode or NOTHING,
        "density": f"{interface.density:.3g} of tokens",
        "largest activation": f"{interface.maximum:.3g}",
    }
    facts |= {f"effect on {name}": f"{value:.3g} nats" for name, value in interface.effects.items()}
    rows = "".join(f"<tr><th scope=row>{escaped(k)}</th><td>{escaped(v)}</td></tr>" for k, v in facts.items())
    return f"<div class=wide><table>{rows}</table></div>"


def _logits(title: str, tokens: Sequence[tuple[str, float]]) -> str:
    rows = "".join(
        f"<tr><td><code>{escaped(_spaced(text))}</code></td>{_number(value)}</tr>" for text, value in tokens
    )
    return f"<table><caption>{title}</caption>{rows}</table>"


def _histogram(interface: FeatureInterface) -> str:
    counts = interface.histogram
    if not len(counts):
        return "<p>No token.</p>"
    tallest = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect x="{place}.05" y="{1 - count / tallest:.3f}" width=".9" height="{count / tallest:.3f}">'
        f"<title>{low:.3g} to {high:.3g}: {count} tokens</title></rect>"
        for place, (count, low, high) in enumerate(
            zip(counts.tolist(), interface.edges[:-1], interface.edges[1:], strict=True)
        )
    )
    return (
        f'<figure><svg viewBox="0 0 {len(counts)} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="Histogram of activations">{bars}</svg><figcaption>Active tokens by activation, from '
        f"{interface.edges[0]:.3g} to {interface.edges[-1]:.3g} (log scale); the tallest bar has {tallest}."
        "</figcaption></figure>"
    )


def _example(interface: FeatureInterface, place: int) -> str:
    example = interface.examples[place]
    pieces = []
    for i, (piece, value) in enumerate(zip(example.pieces, example.activations, strict=True)):
        text = escaped(piece)
        if value > 0:
            text = text.replace("\n", "⏎\n")  # a newline alone would show no shade
            share = min(float(value) / max(interface.maximum, 1e-12), 1.0)
            peak = " class=peak" if i == example.peak else ""
            text = f'<span{peak} style="--a:{share:.2f}" title="{value:.3g}">{text}</span>'
        pieces.append(text)
    # a newline right after <pre> is dropped, so one is given
    return f"<pre>\n{''.join(pieces)}</pre>"


def _number(value: float | None) -> str:
    if value is None:
        return f'<td class="n" data-value="">{NOTHING}</td>'
    shown = str(value) if isinstance(value, int) else f"{value:.3g}"
    return f'<td class="n" data-value="{value:.6g}">{shown}</td>'


def _spaced(text: str) -> str:
    """A token with its spaces and newlines visible."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def escaped(text: str) -> str:
    """Text as it may stand in HTML, in quotes too; what no UTF-8 file or no parser takes becomes a sign."""
    kept = "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape(kept, quote=True)
