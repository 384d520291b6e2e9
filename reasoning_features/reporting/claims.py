"""The claims of the papers, whose rules ``claims.yaml`` fixes, and what came out for each.

On the organism a verdict says whether the method recovers the planted effect; *reproduced* is kept for real
models. Claims about dictionaries of whatever model, and about what nobody planted, hold here or do not.
"""

import argparse
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import yaml
from IPython.display import Markdown
from matplotlib.figure import Figure
from pydantic import BaseModel

from reasoning_features.errors import UserError
from reasoning_features.files import read_json, write_between, write_json, write_text
from reasoning_features.paths import RunPaths, root
from reasoning_features.reporting import plots
from reasoning_features.reporting.tables import NOTHING, cell, to_markdown
from reasoning_features.runs.provenance import Run
from reasoning_features.settings import load_settings, read_overrides
from reasoning_features.statistics import Interval, finding

RECOVERS, DOES_NOT = "recovers the planted effect", "does not"
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
HOLDS, HOLDS_NOT = "holds here", "does not hold here"
UNDECIDED, UNTESTABLE, BESIDE = "undecided", "not testable here", "shown beside, another model"
MAIN_PAPER = "2503.18878"
SIDES = {"holds": (RECOVERS, REPRODUCED, HOLDS), "does not hold": (DOES_NOT, NOT_REPRODUCED, HOLDS_NOT)}
FARTHEST = 8  # half widths of an interval: claims farther from their line are drawn there
BEGIN, END = "<!-- claims: written by make -->", "<!-- claims: end -->"
CHANGED = "†"
ABOUT = f"""# Claims

[claims.yaml](../../reasoning_features/reporting/claims.yaml) has the rules, and what would falsify each
claim. A rule was fixed before its numbers; {CHANGED} marks rules that were changed when numbers of an earlier
version were known, and the file says how. On the organism a verdict says whether the method recovers the
planted effect; where none was planted, whether the claim holds here. Where a rule has a margin, an effect
whose 90% interval lies within it counts as none (accuracy: 1.5 points). What n counts, and what the interval
is over, stands beside.

"""


class Rule(BaseModel, extra="forbid", frozen=True):
    """What decides a claim: how the interval of ``quantity`` has to lie to ``line``.

    The line is a number, or ``control``, the number that the claim's control gives. With a ``margin``, a 90%
    interval within the margin of it speaks against the claim: so small an effect is none. ``real models
    only``: the organism was built so and cannot tell; real models are shown beside.
    """

    quantity: str
    unit: str
    comparison: Literal["above", "at least", "at most", "shown beside", "real models only"]
    line: float | Literal["control"] | None = None
    margin: float | None = None
    n: str | None = None  # what is counted: the independent units

    def line_at(self, control: float | None) -> float | None:
        """The line, where the control's number is this."""
        return control if self.line == "control" else self.line


class Claim(BaseModel, extra="forbid", frozen=True):
    """One claim of a paper, or a question that it leaves open."""

    id: str
    notebook: str  # the notebook that measures it
    paper: str  # arXiv's number
    place: str  # where the paper says it
    number: str  # the paper's number, as printed; – where it has none
    statement: str
    falsified: str  # what would speak against it
    rule: Rule
    headline: bool = False  # whether the README shows it
    planted: bool = True  # whether the organism was built to have the effect
    changed: str = ""  # why the rule was changed after earlier numbers were known


class Measured(NamedTuple):
    """What came out for one claim."""

    value: Interval | float  # an estimate with its 95% interval, or a number without one
    control: float | None = None  # the number that the claim's control gave
    narrow: Interval | None = None  # a difference's 90% interval, which alone can show that there is none
    n: int | None = None  # independent units, where the value is a number

    @property
    def estimate(self) -> float:
        return self.value.estimate if isinstance(self.value, Interval) else self.value

    @property
    def ends(self) -> tuple[float, float] | None:
        value = self.value
        return (value.low, value.high) if isinstance(value, Interval) and not math.isnan(value.low) else None


@cache
def all_claims() -> tuple[Claim, ...]:
    """The claims of ``claims.yaml``, in its order."""
    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    return tuple(Claim(**entry) for entry in yaml.safe_load(text))


def verdict(claim: Claim, measured: Measured, planted: bool) -> str:
    """What a claim's rule says about numbers, which are the organism's where ``planted``."""
    rule, narrow = claim.rule, measured.narrow
    if rule.comparison == "real models only" and planted:
        return UNTESTABLE
    if rule.line is None:
        return BESIDE
    if isinstance(measured.value, Interval) and measured.ends is None:  # one unit has no interval
        return UNDECIDED
    line = rule.line_at(measured.control)
    if line is None or (rule.margin is not None and narrow is None):
        lacks = "control" if line is None else "90% interval, for its margin"
        told = f"{claim.notebook} gives claim {claim.id!r} of claims.yaml no {lacks}"
        raise UserError(f"{told}: change its rule.")
    low, high = measured.ends or (measured.estimate,) * 2
    if rule.comparison == "above":
        holds, fails = low > line, high < line
    elif rule.comparison == "at least":
        holds, fails = low >= line, high < line
    else:
        holds, fails = high <= line, low > line
    if rule.margin is not None and narrow is not None:
        about = Interval(narrow.estimate - line, narrow.low - line, narrow.high - line, narrow.n)
        if finding(about, rule.margin) == "no effect":
            holds, fails = False, True
    if not holds and not fails:
        return UNDECIDED
    words = (RECOVERS, DOES_NOT) if planted else (REPRODUCED, NOT_REPRODUCED)
    if claim.paper != MAIN_PAPER or not (claim.planted if planted else claim.number != "–"):
        words = HOLDS, HOLDS_NOT  # nothing was planted, or there is nothing to reproduce
    return words[0] if holds else words[1]


def record(run: Run, measured: Mapping[str, Measured | Interval | float | None]) -> Markdown:
    """Judge and write a notebook's claims, by id; one left out, or None, could not be tested. Gives a table
    of claim, paper, verdict and ours: estimate, 95% interval, n and control, as far as there are.
    """
    own = [claim for claim in all_claims() if claim.notebook == run.notebook]
    if unknown := sorted(set(measured) - {claim.id for claim in own}):
        raise ValueError(f"{', '.join(unknown)}: no claim of {run.notebook} in claims.yaml")
    rows = {claim.id: _judged(claim, measured.get(claim.id), run.settings.planted) for claim in own}
    path = run.paths.figures / f"claims_{run.notebook}.json"
    write_json(path, rows)
    run.wrote([path])
    table = frame([path]).map(cell)
    table["control"] = "control " + table["control"]
    found = table[["ours", "95% interval", "n", "control"]].to_numpy()
    ours = "ours; 95% interval; n; control"
    table[ours] = ["; ".join(text for text in row if not text.endswith(NOTHING)) for row in found]
    return Markdown(to_markdown(table[["claim", "paper", ours, "verdict"]]))


def frame(files: Iterable[Path]) -> pd.DataFrame:
    """One row a recorded claim, in the order of ``claims.yaml``."""
    recorded = {name: row for file in files for name, row in read_json(file).items()}
    columns = ["id", "claim", "paper", "where", "ours", "95% interval", "n", "control", "verdict", "notebook"]
    rows = []
    for claim in (claim for claim in all_claims() if claim.id in recorded):
        row = recorded[claim.id]
        where = claim.place if claim.paper == MAIN_PAPER else f"{claim.paper}, {claim.place}"
        ends = row["interval"] and "{:.3g} to {:.3g}".format(*row["interval"])
        n = None if row["n"] is None else f"{row['n']} {claim.rule.n}"
        name = f"{claim.id} {CHANGED}" if claim.changed else claim.id
        told = [name, claim.statement, claim.number, where, row["ours"], ends, n, row["control"]]
        rows.append([*told, row["verdict"], claim.notebook[:2]])
    return pd.DataFrame(rows, columns=columns)


def write_tables(figures: Path, readme: Path | None = None) -> None:
    """Write ``claims.md`` from a run's recorded claims, and the headline ones between the README's marks."""
    files = sorted(figures.glob("claims_*.json"))
    table = frame(files)
    write_text(figures / "claims.md", ABOUT + to_markdown(table))
    if not (distances := summary(files)).empty:
        draw_summary(distances).savefig(figures / "claims.png", metadata={"Software": None})
    if readme:
        shown = table[table["id"].str.split().str[0].isin([c.id for c in all_claims() if c.headline])]
        columns = ["claim", "paper", "ours", "95% interval", "verdict", "notebook"]
        write_between(readme, BEGIN, END, to_markdown(shown[columns]))


def summary(files: Iterable[Path]) -> pd.DataFrame:
    """Every claim with an interval and a line: how far ours lies on the claim's side of its line, by paper.
    The unit is half of the 95% interval: every bar reaches 1 to either side, as far as it is symmetric.
    """
    recorded = {name: row for file in files for name, row in read_json(file).items()}
    rows = []
    for claim in sorted(all_claims(), key=_asked_by):
        row, rule = recorded.get(claim.id, {}), claim.rule
        if row.get("interval") and rule.line is not None and row["verdict"] != UNTESTABLE:
            at = np.array([row["ours"], *row["interval"]]) - rule.line_at(row["control"])
            at = np.sort(-at if rule.comparison == "at most" else at)
            low, ours, high = np.clip(2 * at / max(at[2] - at[0], 1e-12), -FARTHEST, FARTHEST)
            side = next((side for side, own in SIDES.items() if row["verdict"] in own), UNDECIDED)
            name = f"{_asked_by(claim)} · {claim.id}"
            rows.append({"claim": name, "side": side, "ours": ours, "low": low, "high": high})
    return pd.DataFrame(rows)


def _asked_by(claim: Claim) -> str:
    """The paper whose claim it is, without a version; "ours" where no paper has a number."""
    return "ours" if claim.number == "–" else claim.paper.split("v")[0]


def draw_summary(table: pd.DataFrame) -> Figure:
    """Draw the rows of ``summary``, colours by the side on which a claim lies."""
    fig, ax = plots.new_figure(height=0.8 + 0.17 * len(table))
    by_side = table.sort_values("side", key=lambda side: side.map([*SIDES, UNDECIDED].index), kind="stable")
    plots.forest(ax, by_side, "claim", "ours", "side", names=table["claim"].tolist())
    ax.set_xlabel(f"distance from the rule's line in half intervals, cut at {FARTHEST}; right: for the claim")
    plots.legend_below(fig)
    return fig


def _judged(claim: Claim, found: Measured | Interval | float | None, planted: bool) -> dict[str, Any]:
    """One claim as it is written, numbers to six significant digits."""
    if found is None:
        return {"ours": None, "interval": None, "n": None, "control": None, "verdict": UNTESTABLE}
    measured = found if isinstance(found, Measured) else Measured(found)
    value, narrow, ends = measured.value, measured.narrow, measured.ends
    n = value.n if isinstance(value, Interval) else measured.n
    row = {"ours": _rounded(measured.estimate), "interval": ends and [*map(_rounded, ends)]}
    row |= {"n": None if n is None else int(n), "control": _rounded(measured.control)}
    row |= {"interval_90": [_rounded(narrow.low), _rounded(narrow.high)]} if narrow and ends else {}
    return row | {"verdict": verdict(claim, measured, planted)}


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")


if __name__ == "__main__":  # the last step of `make all`
    parser = argparse.ArgumentParser(prog="python -m reasoning_features.reporting.claims")
    for option in ("--profile", "--parameters", "--device"):
        parser.add_argument(option, default="")
    asked = parser.parse_args()
    changes = read_overrides(asked.parameters) | ({"device": asked.device} if asked.device else {})
    name = load_settings(asked.profile, **changes).run
    write_tables(RunPaths(name).figures, root() / "README.md" if name == "organism" else None)
