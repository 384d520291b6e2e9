"""The paper's claims with their numbers, what came out here beside them, and the rules of the verdicts.

The rules are fixed before a notebook is run; a notebook gives numbers and never a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from IPython.display import Markdown

from reasoning_features.errors import UserError
from reasoning_features.files import read_json, write_json, write_text
from reasoning_features.provenance import Run
from reasoning_features.tables import to_markdown

Rule = Literal["above control", "at least", "beside", "planted"]
AGREES, DISAGREES, UNDECIDED = "agrees", "disagrees", "undecided"
UNTESTABLE = "not testable here"
BESIDE, PLANTED = "shown beside, another model", "planted, not testable here"
BEGIN, END = "<!-- claims: written by make -->", "<!-- claims: end -->"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, or one that it leaves open and the companion tests.

    The rule says what the verdict compares: ``above control``: the interval lies above (agrees), below
    (disagrees) or about (undecided) the control; ``at least``: the same against the claim's bar;
    ``beside``: the numbers are of different models and are only shown; ``planted``: the organism was
    built so, hence only a real model can tell.
    """

    id: str
    notebook: str  # the notebook that records it
    place: str  # where the paper says it
    statement: str
    paper: str  # the paper's number, as printed
    rule: Rule
    bar: float | None = None


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "layer",
        "01_activations",
        "setup",
        "features are read in the middle of the model's depth (after block 19 of 32, counted from 0)",
        "0.62 of the depth",
        "beside",
    ),
    Claim(
        "moves",
        "01_activations",
        "not tested",
        "the residual stream at that layer holds the reasoning move, linearly (balanced accuracy)",
        "–",
        "above control",
    ),
    Claim(
        "l0",
        "02_sae",
        "SAE training",
        "few features are active on a token (L0)",
        "86 of 65,536",
        "beside",
    ),
    Claim(
        "variance_explained",
        "02_sae",
        "SAE training",
        "the autoencoder explains most of the variance",
        "68.5%",
        "at least",
        0.685,
    ),
    Claim(
        "second_seed",
        "02_sae",
        "not tested",
        "a second seed finds the same features again (share of live features, decoder cosine ≥ 0.7)",
        "–",
        "at least",
        0.6,
    ),
    Claim(
        "vocabulary",
        "03_reason_score",
        "figures 2 and 5",
        "words of thinking and rare elsewhere make the vocabulary R (words of R in the top 40)",
        "10 words, some chosen by hand",
        "planted",
    ),
    Claim(
        "selected",
        "03_reason_score",
        "equation 6, figure 6",
        "a small tail of features has high ReasonScore (features at the quantile)",
        "200 of 65,536 (q = 0.997)",
        "beside",
    ),
    Claim(
        "reasoning_words",
        "03_reason_score",
        "not tested",
        "ReasonScore finds what is special to the words of R, not to any words in their slots",
        "–",
        "above control",
    ),
    Claim(
        "dials",
        "03_reason_score",
        "not tested",
        "the chosen features hardly depend on α, the window and the released code's variant (Jaccard)",
        "–",
        "at least",
        0.5,
    ),
    Claim(
        "modes",
        "04_interpretation",
        "section on interpretation",
        "chosen features stand for uncertainty, exploration or reflection (share, by a rule)",
        "46 of 200, by hand",
        "beside",
    ),
    Claim(
        "governs",
        "04_interpretation",
        "implied",
        "ReasonScore finds the features that govern reasoning (average precision against causal effects)",
        "–",
        "above control",
    ),
    Claim(
        "token_driven",
        "04_interpretation",
        "not tested; 2601.05679",
        "chosen features answer to reasoning, not to its words (share that words alone drive)",
        "45–90% in 2601.05679",
        "beside",
    ),
    Claim(
        "function",
        "04_interpretation",
        "figure 3b, table 4",
        "steering a chosen feature changes what the answers do (share with a sure change)",
        "10 groups, no control",
        "above control",
    ),
)


def _claim(run: Run, id: str) -> Claim:
    claim = next((c for c in CLAIMS if c.id == id and c.notebook == run.notebook), None)
    if claim is None:
        raise ValueError(f"{id!r} is no claim of {run.notebook}")
    return claim


def verdict(
    claim: Claim,
    ours: float,
    interval: tuple[float, float] | None,
    control: float | None,
    planted: bool,
) -> str:
    """What a claim's rule says of numbers; see :class:`Claim`."""
    if claim.rule == "planted" and planted:
        return PLANTED
    if claim.rule in ("beside", "planted"):
        return BESIDE
    line = claim.bar if claim.rule == "at least" else control
    if line is None:
        raise ValueError(f"claim {claim.id!r} is judged against a control, and none was given")
    low, high = interval or (ours, ours)
    if low > line or (claim.rule == "at least" and low >= line):
        return AGREES
    return DISAGREES if high < line else UNDECIDED


def record(
    run: Run,
    id: str,
    ours: float,
    interval: tuple[float, float] | None = None,
    n: int | None = None,
    control: float | None = None,
) -> str:
    """Record what came out for a claim, in ``figures/<run>/claims_<notebook>.json``.

    Parameters
    ----------
    run
        The notebook's run.
    id
        The claim's name in :data:`CLAIMS`; one of the run's notebook.
    ours
        The number that came out here.
    interval
        Its 95% interval, where it is an estimate.
    n
        How many independent observations it rests on.
    control
        The number that the claim's control gave.

    Returns
    -------
    str
        The verdict.
    """
    said = verdict(_claim(run, id), ours, interval, control, run.settings.planted)
    numbers = {"ours": ours, "interval": list(interval) if interval else None, "n": n, "control": control}
    _keep(run, id, _rounded(numbers) | {"verdict": said})
    return said


def record_untestable(run: Run, id: str) -> str:
    """Record that a claim cannot be tested on this text, which lacks what it takes; gives the verdict."""
    nothing = {"ours": None, "interval": None, "n": None, "control": None}
    _keep(run, _claim(run, id).id, nothing | {"verdict": UNTESTABLE})
    return UNTESTABLE


def _keep(run: Run, id: str, numbers: dict[str, Any]) -> None:
    """Write one claim of the notebook into its file, which keeps no claim that is no longer one."""
    path = _path(run)
    held = read_json(path) if path.is_file() else {}
    known = {c.id for c in CLAIMS if c.notebook == run.notebook}
    held = {name: value for name, value in held.items() if name in known}
    write_json(path, held | {id: numbers})
    run.wrote([path])


def show(run: Run) -> Markdown:
    """The notebook's claims beside the paper, as recorded so far."""
    return Markdown(to_markdown(frame([_path(run)])))


def frame(files: Iterable[Path]) -> pd.DataFrame:
    """One row a recorded claim, in the order of :data:`CLAIMS`."""
    held: dict[tuple[str, str], dict[str, Any]] = {}
    for file in files:
        notebook = file.stem.removeprefix("claims_")
        for name, value in read_json(file).items():
            held[notebook, name] = value
    columns = ["claim", "paper", "where", "ours", "95% interval", "n", "control", "verdict", "notebook"]
    rows = [_row(c, held[c.notebook, c.id]) for c in CLAIMS if (c.notebook, c.id) in held]
    return pd.DataFrame(rows, columns=columns)


def update_readme(readme: Path, figures: Path) -> bool:
    """Write the table of recorded claims between the README's markers; says whether it changed.

    Raises
    ------
    UserError
        If the markers are not there.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{readme.name} must hold the lines {BEGIN!r} and {END!r} once: put them back.")
    table = to_markdown(frame(sorted(figures.glob("claims_*.json"))))
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    written = pattern.sub(lambda _: f"{BEGIN}\n{table}{END}", text)
    return write_text(readme, written)


def _path(run: Run) -> Path:
    return run.paths.figures / f"claims_{run.notebook}.json"


def _row(claim: Claim, held: dict[str, Any]) -> list[Any]:
    interval = held["interval"]
    return [
        claim.statement,
        claim.paper,
        claim.place,
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
