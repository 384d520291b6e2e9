"""A rebuild in another place compared with what is committed: numbers within tolerances, and the bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import read_json


@dataclass(frozen=True)
class Tolerance:
    """How far numbers of the files that a pattern names may lie apart: |a − b| ≤ absolute + relative·|a|."""

    pattern: str
    relative: float
    absolute: float
    reason: str


# The first that fits counts. Processors add in different orders, and a training amplifies it.
TOLERANCES = (
    Tolerance("x02_*", 0.1, 0.02, "trained live"),
    Tolerance("t02_*", 0.1, 0.02, "trained live"),
    Tolerance("claims_02_*", 0.1, 0.02, "trained live"),
    Tolerance("*.html", 0.011, 0.011, "rounded for reading"),
    Tolerance("*", 1e-3, 1e-4, "the same computation in another order"),
)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+")


def verify(profile: str) -> int:
    """Rebuild a profile from what is committed, in a clone elsewhere, and compare its figures' folder.

    Prints one line a file. Numbers (tables, claims) must agree within their tolerance, the files must be the
    same ones; whether bytes agree is said of all.

    Returns
    -------
    int
        0 when all agree, 1 when not.

    Raises
    ------
    UserError
        If there is nothing committed to compare with, or the rebuild fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        clone, committed = Path(folder) / "clone", Path(folder) / "committed"
        _succeed(["git", "clone", "--quiet", str(paths.root()), str(clone)], "git clone failed")
        figures = clone / "figures" / profile
        if not figures.is_dir():
            raise UserError(f"No figures of {profile} are committed: there is nothing to compare with.")
        shutil.move(figures, committed)
        ready = clone / "build" / "ready"
        ready.parent.mkdir()
        ready.touch()
        command = ["make", "-C", str(clone), "all", f"VENV={sys.prefix}", f"STAMP={ready}"]
        _succeed([*command, f"PROFILE={profile}", "PARAMS=", "DEVICE="], "the rebuild failed")
        return report(committed, figures)


def report(committed: Path, rebuilt: Path) -> int:
    """Print how the files of two folders compare; 0 when they agree, 1 when not."""
    names = sorted(
        {p.relative_to(d).as_posix() for d in (committed, rebuilt) for p in d.rglob("*") if p.is_file()}
    )
    found = {name: compare(committed / name, rebuilt / name) for name in names}
    for name, (_, said) in found.items():
        print(f"{name}: {said}")
    bad = [name for name, (agree, _) in found.items() if not agree]
    same = sum(said == "same bytes" for _, said in found.values())
    print(f"{same} of {len(names)} files have the same bytes; {len(bad)} differ beyond their tolerance.")
    return 1 if bad else 0


def compare(committed: Path, rebuilt: Path) -> tuple[bool, str]:
    """Whether a rebuilt file agrees with the committed one, and what to say of it."""
    if not (committed.is_file() and rebuilt.is_file()):
        return False, "not rebuilt" if committed.is_file() else "not committed"
    if committed.read_bytes() == rebuilt.read_bytes():
        return True, "same bytes"
    if committed.suffix == ".csv":
        return _compare_frames(pd.read_csv(committed), pd.read_csv(rebuilt), tolerance(committed.name))
    if committed.suffix == ".html":
        return _compare_pages(committed.read_text(), rebuilt.read_text(), tolerance(committed.name))
    if committed.name.startswith("claims_"):
        return _compare_frames(_claims(committed), _claims(rebuilt), tolerance(committed.name))
    return True, "other bytes"


def tolerance(name: str) -> Tolerance:
    """The tolerance that is declared for a file."""
    return next(t for t in TOLERANCES if fnmatch(name, t.pattern))


def _compare_frames(a: pd.DataFrame, b: pd.DataFrame, allowed: Tolerance) -> tuple[bool, str]:
    if list(a.columns) != list(b.columns) or len(a) != len(b):
        return False, f"another shape: {a.shape} and {b.shape}"
    largest = 0.0
    for column in a.columns:
        if not all(pd.api.types.is_numeric_dtype(kind) for kind in (a[column].dtype, b[column].dtype)):
            if list(a[column].astype(str)) != list(b[column].astype(str)):
                return False, f"column {column} has other words"
            continue
        x, y = a[column].to_numpy(float), b[column].to_numpy(float)
        if not np.allclose(y, x, rtol=allowed.relative, atol=allowed.absolute, equal_nan=True):
            return False, f"column {column} lies beyond {allowed.relative:g} ({allowed.reason})"
        largest = max(largest, float(np.nanmax(np.abs(y - x), initial=0.0)))
    return True, f"within tolerance, largest difference {largest:.2g}"


def _compare_pages(a: str, b: str, allowed: Tolerance) -> tuple[bool, str]:
    """Pages agree when they have the same words, and their numbers lie within the tolerance."""
    if NUMBER.split(a) != NUMBER.split(b):
        return False, "the page has other words"
    x, y = (np.array([float(number) for number in NUMBER.findall(text)]) for text in (a, b))
    if not np.allclose(y, x, rtol=allowed.relative, atol=allowed.absolute):
        return False, f"a number lies beyond {allowed.relative:g} ({allowed.reason})"
    return True, f"within tolerance, largest difference {np.abs(y - x).max(initial=0.0):.2g}"


def _claims(path: Path) -> pd.DataFrame:
    """A file of claims as one row, the ends of intervals as columns of their own."""
    cells: dict[str, Any] = {}
    for column, value in pd.json_normalize(read_json(path)).iloc[0].items():
        many = value if isinstance(value, list) else [value]
        cells |= {f"{column}[{place}]": [item] for place, item in enumerate(many)}
    return pd.DataFrame(cells)


def _succeed(command: list[str], failed: str) -> None:
    """Run a command to its end, outside of any make that called us."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    if subprocess.run(command, env=environment).returncode != 0:
        raise UserError(f"{failed}: {json.dumps(' '.join(command[:3]))} says why above.")
