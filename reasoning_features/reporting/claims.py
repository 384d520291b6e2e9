"""What came out for the papers' claims, and the rules of the verdicts.

The rules are fixed before a notebook is run; a notebook gives numbers and never a verdict. On the organism,
where the effect was planted, a verdict says whether the method recovers it; *reproduced* and *not reproduced*
are kept for real models. Claims of the companion papers are of dictionaries, and hold here or do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown

from reasoning_features.bookkeeping.provenance import Run
from reasoning_features.files import read_json, write_between, write_json
from reasoning_features.reporting.companion_claims import COMPANION_CLAIMS
from reasoning_features.reporting.paper_claims import CLAIMS, Claim
from reasoning_features.reporting.tables import to_markdown
from reasoning_features.statistics import Interval, finding

RECOVERS, DOES_NOT = "recovers the planted effect", "does not"
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
HOLDS, HOLDS_NOT = "holds here", "does not hold here"
UNDECIDED, UNTESTABLE = "undecided", "not testable here"
BESIDE = "shown beside, another model"
Ends = tuple[float, float]
ALL_CLAIMS = tuple(sorted((*CLAIMS, *COMPANION_CLAIMS), key=lambda claim: claim.notebook))
BEGIN, END = "<!-- claims: written by make -->", "<!-- claims: end -->"


def _claim(run: Run, id: str) -> Claim:
    claim = next((c for c in ALL_CLAIMS if c.id == id and c.notebook == run.notebook), None)
    if claim is None:
        raise ValueError(f"{id!r} is no claim of {run.notebook}")
    return claim


def verdict(
    claim: Claim,
    ours: float,
    interval: Ends | None,
    control: float | None,
    planted: bool,
    narrow: Ends | None = None,
) -> str:
    """What a claim's rule says of numbers; see :class:`Claim`, and :func:`record` for the arguments.

    ``planted``: whether the numbers are the organism's. Undecided where the interval holds the line.

    Raises:
        ValueError: the claim's rule needs a control or a 90% interval that was not given.
    """
    if claim.rule == "planted" and planted:
        return UNTESTABLE
    if claim.rule in ("beside", "planted"):
        return BESIDE
    low, high = interval or (ours, ours)
    if claim.rule == "effect":
        if narrow is None:
            raise ValueError(f"claim {claim.id!r} is of a difference, and no 90% interval was given")
        none = finding(Interval(ours, *narrow, n=0)) == "no effect"
        holds, fails = low > 0, high < 0 or none
    else:
        line = control if claim.rule == "above control" else claim.bar
        if line is None:
            raise ValueError(f"claim {claim.id!r} is judged against a control, and none was given")
        holds, fails = low > line, high < line
        if claim.rule == "at least":
            holds = low >= line
        elif claim.rule == "at most":
            holds, fails = high <= line, low > line
    if not holds and not fails:
        return UNDECIDED
    # about dictionaries, of whatever model; or a control that the paper does not have
    if claim.source or (claim.paper == "–" and not planted):
        return HOLDS if holds else HOLDS_NOT
    if planted:
        return RECOVERS if holds else DOES_NOT
    return REPRODUCED if holds else NOT_REPRODUCED


def record(
    run: Run,
    id: str,
    ours: float,
    interval: Ends | None = None,
    n: int | None = None,
    control: float | None = None,
    narrow: Ends | None = None,
) -> str:
    """Record what came out for a claim, in ``figures/<run>/claims_<notebook>.json``.

    Parameters
    ----------
    run
        The notebook's run.
    id
        The claim's name in :data:`reasoning_features.reporting.paper_claims.CLAIMS`; one of the run's
        notebook.
    ours
        The number that came out here.
    interval
        Its 95% interval, where it is an estimate.
    n
        How many independent observations it rests on.
    control
        The number that the claim's control gave.
    narrow
        Its 90% interval, of a difference of accuracies (1 is 100 points): what shows that there is none.

    Returns
    -------
    str
        The verdict.
    """
    said = verdict(_claim(run, id), ours, interval, control, run.settings.planted, narrow)
    numbers = {"ours": ours, "interval": list(interval) if interval else None, "n": n, "control": control}
    numbers |= {"interval_90": list(narrow)} if narrow else {}
    _keep(run, id, _rounded(numbers) | {"verdict": said})
    return said


def missing(run: Run) -> list[str]:
    """The claims of the run's notebook that it has not recorded yet, in order."""
    held = read_json(_path(run)) if run.has_written(_path(run)) else {}
    return [c.id for c in ALL_CLAIMS if c.notebook == run.notebook and c.id not in held]


def record_untestable(run: Run, id: str) -> str:
    """Record that a claim cannot be tested on this text, which lacks what it takes; gives the verdict."""
    nothing = {"ours": None, "interval": None, "n": None, "control": None}
    _keep(run, _claim(run, id).id, nothing | {"verdict": UNTESTABLE})
    return UNTESTABLE


def _keep(run: Run, id: str, numbers: dict[str, Any]) -> None:
    """Write one claim of the notebook into its file, which keeps nothing of an earlier run."""
    path = _path(run)
    held = read_json(path) if run.has_written(path) else {}
    write_json(path, held | {id: numbers})
    run.wrote([path])


def show(run: Run) -> Markdown:
    """The notebook's claims beside the paper, as recorded so far."""
    return Markdown(to_markdown(frame([_path(run)])))


def frame(files: Iterable[Path]) -> pd.DataFrame:
    """One row a recorded claim, in the order of :data:`ALL_CLAIMS`."""
    held: dict[tuple[str, str], dict[str, Any]] = {}
    for file in files:
        notebook = file.stem.removeprefix("claims_")
        for name, value in read_json(file).items():
            held[notebook, name] = value
    columns = ["claim", "paper", "where", "ours", "95% interval", "n", "control", "verdict", "notebook"]
    rows = [_row(c, held[c.notebook, c.id]) for c in ALL_CLAIMS if (c.notebook, c.id) in held]
    return pd.DataFrame(rows, columns=columns)


def update_readme(readme: Path, figures: Path) -> bool:
    """Write the table of recorded claims between the README's markers; says whether it changed.

    Raises
    ------
    UserError
        If the markers are not there.
    """
    table = to_markdown(frame(sorted(figures.glob("claims_*.json"))))
    return write_between(readme, BEGIN, END, table)


def _path(run: Run) -> Path:
    return run.paths.figures / f"claims_{run.notebook}.json"


def _row(claim: Claim, held: dict[str, Any]) -> list[Any]:
    interval = held["interval"]
    return [
        claim.statement,
        claim.paper,
        claim.where,
        held["ours"],
        None if interval is None else f"{interval[0]:.3g} to {interval[1]:.3g}",
        None if held["n"] is None else str(held["n"]),
        held["control"],
        held["verdict"],
        claim.notebook[:2],
    ]


def _rounded(value: Any) -> Any:
    """Numbers to six significant digits, as in the tables."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")
