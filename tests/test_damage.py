"""Make notices what was damaged, names it, and makes it again; what depends on it stays where bytes agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from houses import build_house, contents, make, ran
from stub_notebooks import write_notebook

pytestmark = pytest.mark.slow

STORE = (
    "with run.store('sample', ['seed']) as folder:\n"
    "    for name in 'ab':\n        (folder / name).write_text('stored')"
)
DRAW = (
    "import pandas as pd\nfrom IPython.display import display\n"
    "from reasoning_features.reporting.plots import new_figure, save_figure\n"
    "fig, ax = new_figure()\nax.plot([1, 2])\n"
    "display(save_figure(fig, 'x01_line', pd.DataFrame({'y': [1, 2]}), run, 'A line.'))\n"
    "fig, ax = new_figure()"
)
READ = "print((run.find('sample', ['seed'], '01') / 'a').read_text())"
AGAIN = ["run 01", "render 01", "readme"]
SAMPLE, FIGURES, BUILD = "data/organism/artefacts/sample", "figures/organism", "build/organism"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = build_house(tmp_path_factory.mktemp("house"))
    write_notebook(folder, "01_one", STORE, DRAW)
    write_notebook(folder, "02_two", READ)
    assert len(ran(make(folder, "all"))) == 5
    return folder


def results(folder: Path) -> dict[str, bytes]:
    return contents(folder / "figures") | contents(folder / "data")


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def change(path: Path) -> None:
    held = path.read_bytes()
    path.write_bytes(held[:-2] + bytes([held[-2] ^ 1]) + held[-1:])


@pytest.mark.parametrize(
    ("harm", "files", "how", "does"),
    [
        (
            change,
            [f"{SAMPLE}/a", f"{FIGURES}/x01_line.png", f"{FIGURES}/x01_line.csv", f"{BUILD}/01.ipynb"],
            "damaged",
            AGAIN,
        ),
        (tear, [f"{SAMPLE}/artefact.json", f"{FIGURES}/x01_line.json"], "damaged", AGAIN),
        (Path.unlink, [f"{SAMPLE}/b", f"{FIGURES}/x01_line.pdf"], "gone", AGAIN),
        (tear, [f"{BUILD}/01.record.json"], "damaged", AGAIN),
        (tear, [f"{FIGURES}/01_one.md"], "damaged", ["render 01"]),
        (Path.unlink, [f"{FIGURES}/01_one_files/output_4_1.png"], "gone", ["render 01"]),
    ],
)
def test_what_is_damaged_is_named_and_made_again(house, harm, files, how, does):
    before = results(house)
    for name in files:
        harm(house / name)
    done = make(house, "all")
    assert ran(done) == does
    again = "runs" if "run 01" in does else "is rendered"
    named = {f"{file} is {how}: 01_one {again} again." for file in files}
    assert {line for line in done.stderr.splitlines() if line.endswith("again.")} == named
    assert results(house) == before
    assert ran(make(house, "all")) == []


def test_what_make_only_notes_for_itself_stops_nothing(house):
    before = results(house)
    for ending in ("plan.json", "cost.json", "rendered.json"):
        tear(house / BUILD / f"01.{ending}")
    assert ran(make(house, "all")) == []
    tear(house / BUILD / "01.key")  # nobody knows any more what it was
    assert ran(make(house, "all")) == AGAIN
    assert results(house) == before


def test_what_reads_a_damaged_artefact_runs_again_only_where_bytes_differ(house):
    change(house / SAMPLE / "a")
    done = make(house, "nb-02")
    assert ran(done) == ["run 01"]  # and 02 is as it was, since what it reads is the same again
    assert f"{SAMPLE}/a is damaged: 01_one runs again." in done.stderr
