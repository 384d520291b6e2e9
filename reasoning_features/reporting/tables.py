"""Tables: one frame written as CSV, Markdown and LaTeX, with its provenance."""

from typing import Any

import pandas as pd
from IPython.display import Markdown

from reasoning_features.files import write_text
from reasoning_features.reporting.plots import write_csv
from reasoning_features.runs.provenance import Run, record_artefact

DIGITS = 4  # significant digits where people read; the CSV has six
NOTHING = "–"
SHOWN = 30  # rows that a notebook shows


def save_table(data: pd.DataFrame, name: str, run: Run, caption: str) -> Markdown:
    """Save a table without its index as CSV, Markdown and LaTeX, with its provenance; give its first rows."""
    if data.empty:
        return Markdown(f"Not testable here: there is nothing in `{name}`.")
    folder = run.paths.figures
    csv, markdown, latex = (folder / f"{name}.{ending}" for ending in ("csv", "md", "tex"))
    write_csv(csv, data)
    write_text(markdown, f"{to_markdown(data)}\n{caption}\n")
    text = data.map(cell).to_latex(index=False, escape=True, caption=_escaped(caption), label=f"tab:{name}")
    write_text(latex, text)
    record_artefact(run, name, [csv, markdown, latex], caption)
    left = f"\nThese are {SHOWN} of {len(data)} rows: `{csv.name}` has all.\n" if len(data) > SHOWN else ""
    return Markdown(to_markdown(data.head(SHOWN)) + left)


def to_markdown(data: pd.DataFrame) -> str:
    """A frame as a Markdown table, numbers to the right, ending in a newline."""
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in data.dtypes]
    lines = [
        [str(column) for column in data.columns],
        ["---:" if number else "---" for number in numeric],
        *([cell(value) for value in row] for row in data.itertuples(index=False, name=None)),
    ]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def cell(value: Any) -> str:
    """A cell's text: numbers to four digits, a dash for nothing."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return NOTHING
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    """Text as LaTeX sets it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
