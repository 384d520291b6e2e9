"""Shares of a notebook's shards, made side by side and then merged, as jobs of an array would make them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stub_notebooks import write_notebook

from reasoning_features import paths
from reasoning_features.reporting import claims

pytestmark = pytest.mark.slow

WORK = (
    "from functools import partial\n"
    "from reasoning_features.bookkeeping.shards import Work, map_shards\n"
    "from reasoning_features.squares import square\n"
    "log = str(run.paths.data.parent / 'log')\n"
    "work = Work('squares', partial(square, log), 5, {'seed': settings.seed})\n"
    "found = [int(a['square'][0]) for a in map_shards(work, run.paths.shards, progress=False)]"
)
STORE = "with run.store('squares', ['seed']) as folder:\n    (folder / 'all').write_text(str(found))"
DRAW = (
    "import pandas as pd\nfrom reasoning_features.reporting.tables import save_table\n"
    "save_table(pd.DataFrame({'square': [0]}), 'x01_before', run, 'A table drawn before the shards.')"
)
SQUARES = (
    "import numpy as np\n\n\ndef square(log, shard):\n    with open(log, 'a') as file:\n"
    "        file.write(f'{shard}\\n')\n    return {'square': np.array([shard**2])}\n"
)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A repository with a notebook that makes a table, shards, and an artefact of them."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(paths.root() / "reasoning_features", folder / "reasoning_features")
    (folder / "reasoning_features" / "squares.py").write_text(SQUARES)
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".gitignore"):
        shutil.copy(paths.root() / name, folder)
    (folder / "README.md").write_text(f"{claims.BEGIN}\n{claims.END}\n")
    for name in ("build", "data"):
        (folder / name).mkdir()
    (folder / "build" / "ready").touch()
    write_notebook(folder, "01_squares", DRAW, WORK, STORE)
    return folder


def make(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["make", "--no-print-directory", f"VENV={sys.prefix}", "STAMP=build/ready", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **options)


def test_shares_side_by_side_then_merged(house):
    jobs = [make(house, "share-01", f"SHARD={number}/3") for number in (1, 3)]
    told = [job.communicate()[0] for job in jobs]
    assert all(job.returncode == 0 for job in jobs), told
    assert "of 5 shards are there; run the other shares, then merge." in told[0]
    assert sorted((house / "data" / "log").read_text().split()) == list("023")
    assert not (house / "figures" / "organism").exists()  # a share draws nothing that is kept
    refused = make(house, "merge-01")
    assert "squares: 3 of 5 shards are there; run the shares that were left out" in refused.communicate()[1]
    assert make(house, "share-01", "SHARD=2/3").wait() == 0
    again = make(house, "share-01", "SHARD=2/3").communicate()[0]
    assert "All shards of 01_squares are there: `make merge-01`." in again
    merged = make(house, "merge-01")
    merged.communicate()
    assert merged.returncode == 0
    assert (house / "data/organism/artefacts/squares/all").read_text() == "[0, 1, 4, 9, 16]"
    assert (house / "figures/organism/x01_before.csv").is_file()
    assert len((house / "data" / "log").read_text().split()) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["share-01"], "Say which share of the shards to make: give SHARD=3/16"),
        (["share-01", "SHARD=4/3"], "SHARD='4/3' is not a share"),
        (["share-07", "SHARD=1/3"], "There is no notebook with the number '07'"),
        (["nb-01", "ENGINE=slurm"], "There is no engine 'slurm'"),
    ],
)
def test_what_cannot_be_shared_is_refused(house, arguments, said):
    refused = make(house, *arguments)
    assert said in refused.communicate()[1] and refused.returncode != 0
