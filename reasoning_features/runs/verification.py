"""A rebuild in another place compared with what is committed: every number within what it may differ by."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import read_json

COMPUTED = 1e-3  # relative: the same computation in another order
# What depends on answers that are drawn, on trainings done live, or on labels by thresholds on noisy effects:
# another processor adds in another order, and one draw or label falls otherwise.
SAMPLED = (
    *("[xt]02_*", "[fxt]04_*", "[fxt]05_*", "t01_*", "x1[23]_*"),
    *("x07_winners*", "x07_steering*", "x08_steered*"),
    *("claims_02_*", "claims_04_*", "claims_05_*", "claims_1*"),
)


class Verdict(NamedTuple):
    """How a rebuilt file compares: whether it agrees, how it was judged, and what differs."""

    agrees: bool
    judged: str
    found: str = ""


def verify(profile: str) -> int:
    """Rebuild a profile in a clone of what is committed, and compare its figures: 0 if all agree, else 1."""
    with tempfile.TemporaryDirectory() as folder:
        clone, committed = Path(folder) / "clone", Path(folder) / "committed"
        _run("git", "clone", "--quiet", str(paths.root()), str(clone))
        figures = clone / "figures" / profile
        if not figures.is_dir():
            raise UserError(f"No figures of {profile} are committed: there is nothing to compare with.")
        shutil.move(figures, committed)
        (clone / "build").mkdir()
        (clone / "build" / "ready").touch()
        given = f"VENV={sys.prefix}", "STAMP=build/ready", f"PROFILE={profile}", "PARAMS=", "DEVICE="
        _run("make", "-C", str(clone), "all", *given)
        return report(committed, figures)


def _run(*command: str) -> None:
    """Run a command to its end, outside of any make that called us."""
    environment = {n: value for n, value in os.environ.items() if not n.startswith(("MAKE", "MFLAGS"))}
    if subprocess.run(command, env=environment).returncode != 0:
        raise UserError(f"`{' '.join(command)}` failed: it says why above.")


def report(committed: Path, rebuilt: Path) -> int:
    """Print how the files of two folders compare, and how each was judged; 0 when they agree, 1 when not."""
    folders = (committed, rebuilt)
    names = sorted({str(p.relative_to(d)) for d in folders for p in d.rglob("*") if p.is_file()})
    found = [compare(committed / name, rebuilt / name) for name in names]
    for name, verdict in zip(names, found, strict=True):
        print(": ".join(filter(None, (name, verdict.judged, verdict.found))))
    for kind, n in Counter(verdict.judged for verdict in found).items():
        print(f"{n} files: {kind}")
    bad = sum(not verdict.agrees for verdict in found)
    print(f"{len(names)} files, of which {bad} differ beyond what they may.")
    return 1 if bad else 0


def compare(committed: Path, rebuilt: Path) -> Verdict:
    """Whether a rebuilt file agrees with the committed one: by bytes, else by its numbers."""
    if not (committed.is_file() and rebuilt.is_file()):
        return Verdict(False, "not rebuilt" if committed.is_file() else "not committed")
    if committed.read_bytes() == rebuilt.read_bytes():
        return Verdict(True, "same bytes")
    if committed.suffix == ".csv":
        a, b = pd.read_csv(committed), pd.read_csv(rebuilt)
    elif committed.name.startswith("claims_"):
        a, b = _claims(committed), _claims(rebuilt)
    else:
        return Verdict(True, "not judged", "images, pages and provenance are drawn from the tables")
    if any(fnmatch(committed.name, pattern) for pattern in SAMPLED):
        wrong, kind = _outside_intervals(a, b), "sampled, within its own intervals"
    else:
        wrong, kind = _beyond_a_thousandth(a, b), f"computed, within {COMPUTED:g}"
    return Verdict(not wrong, kind, wrong)


def _claims(path: Path) -> pd.DataFrame:
    """A file of claims, a row each."""
    claims = pd.DataFrame.from_dict(read_json(path), orient="index")
    ends = [interval or (None, None) for interval in claims["interval"]]
    claims[["low", "high"]] = pd.DataFrame(ends, index=claims.index)
    return claims[["ours", "low", "high", "control", "verdict"]]


def _beyond_a_thousandth(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """What differs beyond the tolerance of computed numbers; empty where nothing does."""
    try:
        pd.testing.assert_frame_equal(
            b, a, check_dtype=False, check_exact=False, rtol=COMPUTED, atol=COMPUTED / 10
        )
    except AssertionError as error:
        return str(error).split("\n[")[0].splitlines()[-1]
    return ""


def _outside_intervals(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """Which sampled number lies outside the committed interval; those without an interval are not judged."""
    if list(a.columns) != list(b.columns):
        return f"other columns, {', '.join(map(str, {*a.columns} ^ {*b.columns}))}"
    if len(a) != len(b):  # rows of features or traces that were chosen: another choice, other rows
        return ""
    columns = list(a.columns)
    if "verdict" in columns and list(a["verdict"]) != list(b["verdict"]):
        return "another verdict"
    for place, low in enumerate(columns):
        high = low.removesuffix("low") + "high"
        if not low.endswith("low") or high not in columns:
            continue
        estimate = low[:-4] if low[:-4] in columns else columns[place - 1]
        value, least, most = _floats(b[estimate]), _floats(a[low]), _floats(a[high])
        slack = COMPUTED * (1 + np.abs(_floats(a[estimate])))
        outside = (value < least - slack) | (value > most + slack)  # what is empty is not outside
        if outside.any():
            return f"{estimate} lies outside the interval in {outside.sum()} of {len(a)} rows"
    return ""


def _floats(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").to_numpy(float)
