"""The house end to end: stub notebooks in a repository of their own, run by make as a user would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from houses import build_house, contents, make, ran
from stub_notebooks import write_notebook

pytestmark = pytest.mark.slow

ALONE = (
    "import pathlib, time\n"
    "busy = pathlib.Path(run.paths.data.parent / 'busy')\n"
    "busy.parent.mkdir(exist_ok=True)\nbusy.touch(exist_ok=False)\ntime.sleep(0.3)\nbusy.unlink()"
)
STORE = "with run.store('sample', ['seed']) as folder:\n    (folder / 'a').write_text('stored')"
DRAW = (
    "import pandas as pd\nfrom reasoning_features.reporting.plots import new_figure, save_figure\n"
    "fig, ax = new_figure()\nax.plot([1, 2])\n"
    "save_figure(fig, 'x01_line', pd.DataFrame({'y': [1, 2]}), run, 'A line.')"
)
READ = "print((run.find('sample', ['seed'], '01') / 'a').read_text())"
FAIL = (
    "from reasoning_features.errors import UserError\n"
    "if alpha == 9:\n    raise UserError('Alpha is too large: give less.')"
)
WHERE = "import os\nassert os.path.basename(os.getcwd()) == 'notebooks', os.getcwd()"
"""JupyterLab runs a notebook in its own folder: one that works here and not there would go unseen."""
DIE = "import os, time\nif alpha == 8:\n    os.kill(os.getpid(), 9)\nif alpha == 7:\n    time.sleep(60)"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A repository with the package, the Makefile and two stub notebooks, already made once."""
    folder = build_house(tmp_path_factory.mktemp("house"))
    write_notebook(folder, "01_one", ALONE, STORE, DRAW)
    write_notebook(folder, "02_two", WHERE, ALONE, READ, FAIL, DIE)
    done = make(folder, "-j4", "all")
    assert done.returncode == 0, done.stderr
    return folder


def test_everything_is_made_and_a_second_make_does_nothing_at_once(house):
    assert {"01_one.md", "02_two.md", "x01_line.png", "x01_line.json"} <= set(
        contents(house / "figures/organism")
    )
    assert "![A line.](x01_line.png)" in (house / "figures/organism/01_one.md").read_text()
    assert json.loads((house / "build/organism/01.cost.json").read_text())["peak_mebibytes"] > 0
    started = time.monotonic()
    assert ran(make(house, "all")) == []
    assert time.monotonic() - started < 3


def test_a_change_reruns_what_depends_on_it_and_nothing_else(house):
    second = house / "notebooks/02_two.ipynb"
    text = second.read_text()
    second.write_text(text.replace("# 02_two", "# The second"))
    assert ran(make(house, "all")) == ["render 02"]
    assert (house / "figures/organism/02_two.md").read_text().startswith("# The second\n")

    second.write_text(text.replace("print(run)", "print(run.settings.seed)"))
    assert ran(make(house, "all")) == ["run 02", "render 02", "readme"]

    module = house / "reasoning_features/reporting/plots.py"
    module.write_text(module.read_text() + "\n# only 01 imports this\n")
    assert ran(make(house, "all")) == ["run 01", "render 01", "readme"]

    unused = house / "reasoning_features/reporting/tables.py"
    unused.write_text(unused.read_text() + "\n# no notebook imports this\n")
    assert ran(make(house, "all")) == []

    shutil.rmtree(house / "data/organism/artefacts/sample")
    assert ran(make(house, "nb-01")) == ["run 01", "render 01"]
    assert ran(make(house, "all")) == ["readme"]  # what 02 read is the same again

    (house / "figures/organism/x01_line.png").unlink()
    assert ran(make(house, "all")) == ["run 01", "render 01", "readme"]


def test_a_changed_artefact_reruns_the_notebook_that_read_it(house):
    first = house / "notebooks/01_one.ipynb"
    first.write_text(first.read_text().replace("'stored'", "'stored anew'"))
    assert ran(make(house, "all")) == ["run 01", "render 01", "run 02", "render 02", "readme"]
    assert "stored anew" in (house / "figures/organism/02_two.md").read_text()


def test_a_rebuild_gives_the_same_bytes(house):
    before = contents(house / "figures/organism")
    shutil.rmtree(house / "figures/organism")
    assert "run 01" in ran(make(house, "all"))
    assert contents(house / "figures/organism") == before


def test_parameters_land_in_a_folder_of_their_own(house):
    before = contents(house / "figures/organism")
    done = make(house, "nb-02", "PARAMS=alpha=0.3 window='[1, 2]'")
    assert "run 02" in ran(done)
    assert contents(house / "figures/organism") == before
    text = (house / "figures/organism+alpha=0.3+window=1-2/02_two.md").read_text()
    assert "alpha = 0.3\nwindow = [1, 2]" in text
    assert ran(make(house, "nb-02", "PARAMS=alpha=0.3 window='[1,2]'")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nb-02", "PARAMS=alfa=0.3"], "There is no parameter 'alfa' in 02_two"),
        (["all", "PARAMS=alpha=much"], "not of the type Optional[float]"),
        (["all", "PARAMS=profile=smoke"], "PROFILE=smoke"),
        (["all", "PROFILE=organsm"], "There is no profile 'organsm'"),
        (["nb-07"], "There is no notebook with the number '07'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(house, arguments, said):
    before = contents(house / "build"), contents(house / "figures")
    done = make(house, *arguments)
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""
    assert (contents(house / "build"), contents(house / "figures")) == before


@pytest.mark.parametrize(
    ("alpha", "said"),
    [("9", "Alpha is too large: give less."), ("8", "02_two was ended, since its kernel died")],
)
def test_a_failed_run_says_why_in_a_sentence_and_leaves_no_output(house, alpha, said):
    done = make(house, "nb-02", f"PARAMS=alpha={alpha}")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("make: ***") and lines[-2].startswith(said)
    built = house / f"build/organism+alpha={alpha}.0"
    assert (built / "02.failed.ipynb").is_file() and not (built / "02.ipynb").exists()
    assert not (house / f"figures/organism+alpha={alpha}.0/02_two.md").exists()


@pytest.mark.parametrize("limit", ["CELL_LIMIT", "LIMIT"])
def test_a_run_is_ended_at_its_time_limit(house, limit):
    started = time.monotonic()
    done = make(house, "nb-02", "PARAMS=alpha=7", f"{limit}=15")
    assert done.returncode == 2 and f"give {limit}= to make" in done.stderr
    assert time.monotonic() - started < 50


def test_plain_papermill_works_from_any_directory(house, tmp_path):
    notebook, out = house / "notebooks/01_one.ipynb", tmp_path / "out.ipynb"
    environment = os.environ | {"PYTHONPATH": str(house)}
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(notebook),
        str(out),
        "-k",
        "python3",
        "-p",
        "alpha",
        "0.4",
    ]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=300)
    assert (house / "figures/organism+alpha=0.4/x01_line.png").is_file()


def test_verify_rebuilds_what_is_committed_and_clean_leaves_it(house):
    assert ran(make(house, "all")) is not None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=house, check=True)
    done = make(house, "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "x01_line.csv: same bytes" in done.stdout and "0 differ" in done.stdout
    (house / "data/organism/models").mkdir(parents=True)
    (house / "data/organism/models/weights").write_text("trained")
    make(house, "clean")
    kept = subprocess.run(["git", "status", "--short"], cwd=house, capture_output=True, text=True, check=True)
    assert kept.stdout == "?? data/\n"
    assert not (house / "build").exists() and not (house / "data/organism/artefacts").exists()
    assert [path.name for path in (house / "figures").iterdir()] == ["organism"]
