"""Whatever interrupts make, and whenever: a rerun ends in the same bytes and does nothing finished again."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from houses import EXECUTED, WAYS, Interrupted, build_house, contents, make, ran
from stub_notebooks import write_notebook

from reasoning_features import paths
from reasoning_features.bookkeeping.keys import MANIFEST
from reasoning_features.files import read_json

pytestmark = pytest.mark.slow

ALONE = (
    "import fcntl, time\n"
    "busy = open(run.paths.data.parent.parent / 'busy', 'w')\n"
    "fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where another notebook is at work\n"
    "time.sleep(0.5)"
)
PIECES = (
    "import os, shutil, time\n"
    "made = run.paths.data.parent.parent / 'pieces'\n"
    "with run.store('pieces', ['seed']) as folder:\n"
    "    (folder / 'unfinished').mkdir(exist_ok=True)\n"
    "    for piece in 'abcd':\n"
    "        file = folder / 'unfinished' / piece\n"
    "        if file.exists():\n            continue\n"
    "        print(piece, file=made.open('a'))\n"
    "        (folder / piece).write_text('torn')\n"
    "        while piece == 'c' and not made.with_name('go').exists():\n            time.sleep(0.05)\n"
    "        file.write_text(piece)\n"
    "    for piece in 'abcd':\n        (folder / piece).write_text(piece)\n"
    "    shutil.rmtree(folder / 'unfinished')"
)
LINGER = (
    "import time\nhome = run.paths.data.parent.parent\n(home / 'begun').touch()\n"
    "while not (home / 'go').exists():\n    time.sleep(0.05)\n(home / 'ended').touch()"
)


# --- stub notebooks -----------------------------------------------------------------------------------------


def spans(house: Path, numbers: list[str]) -> list[tuple[str, str]]:
    """When the notebooks' executions began and ended, from papermill's own notes."""
    notes = [read_json(house / f"build/organism/{n}.ipynb")["metadata"]["papermill"] for n in numbers]
    return [(note["start_time"], note["end_time"]) for note in notes]


@pytest.mark.parametrize("goals", [["all", "nb-02"], ["nb-03", "nb-01", "nb-02"]])
def test_one_notebook_after_the_other_under_j_and_after_a_kill(tmp_path, goals):
    house = build_house(tmp_path)
    numbers = ["01", "02", "03"]
    for number in numbers:
        write_notebook(house, f"{number}_stub", ALONE)
    killed = Interrupted(house, "-j4", *goals)
    killed.wait((house / "build/organism/02.running.json").exists)
    killed.kill_all()
    assert "run 01" not in (does := ran(make(house, "-j4", *goals)))
    assert [step for step in does if step.startswith("run")] == ["run 02", "run 03"]
    when = spans(house, numbers)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(when))


@pytest.mark.parametrize("way", WAYS)
def test_nothing_lives_on_and_writes_beside_the_rerun(tmp_path, way):
    house = build_house(tmp_path)
    write_notebook(house, "01_stub", LINGER)
    interrupted = Interrupted(house, "nb-01")
    interrupted.wait((house / "begun").exists)
    assert len(interrupted.descendants()) >= 3  # the runner, papermill, the kernel
    assert interrupted.end(way) == []
    (house / "go").touch()
    assert not (house / "ended").exists() and not (house / "build/organism/01.ipynb").exists()
    assert ran(make(house, "nb-01")) == ["run 01", "render 01"]


def test_a_notebook_ends_with_make_also_where_that_is_killed_at_once(tmp_path):
    house = build_house(tmp_path)
    write_notebook(house, "01_stub", LINGER)
    interrupted = Interrupted(house, "nb-01")
    interrupted.wait(lambda: interrupted.executed != [])
    assert interrupted.end("make killed") == []
    (house / "go").touch()
    assert not (house / "begun").exists() and not (house / "build/organism/01.ipynb").exists()


def test_pieces_that_an_interrupted_stage_stored_are_not_made_again(tmp_path):
    house = build_house(tmp_path)
    write_notebook(house, "01_stub", PIECES)
    interrupted = Interrupted(house, "nb-01")
    made = house / "pieces"
    interrupted.wait(lambda: made.is_file() and made.read_text().split() == ["a", "b", "c"])
    interrupted.kill_all()
    (house / "go").touch()
    assert ran(make(house, "nb-01")) == ["run 01", "render 01"]
    assert made.read_text().split() == ["a", "b", "c", "c", "d"]
    stored = contents(house / "data/organism/artefacts")
    assert sorted(stored) == ["pieces/a", "pieces/artefact.json", "pieces/b", "pieces/c", "pieces/d"]
    assert stored["pieces/c"] == b"c"


# --- the notebooks themselves, in the smoke profile ---------------------------------------------------------

real = pytest.mark.timeout(1800)
SEED = 2503
KILLS = 8  # beside one in the whole run, and one within a sweep
SMOKE = ("all", "PROFILE=smoke", "PARAMS=", "DEVICE=")
KEPT = ("build", "figures", "data")


@pytest.fixture(scope="module")
def reference() -> Path:
    """This repository with the smoke profile made by an uninterrupted make, as ``make test`` does before."""
    root = paths.root()
    (root / "build").mkdir(exist_ok=True)
    with (root / "build" / "smoke.lock").open("w") as lock:  # one worker makes it, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        (root / "build" / "ready").touch()
        done = make(root, *SMOKE, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def copied(reference: Path, folder: Path, made: bool) -> Path:
    """The repository elsewhere; with what the smoke profile made, or without."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=reference,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (reference / name).is_file() and not name.startswith("figures/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(reference / name, folder / name)
    if made:
        for kind in KEPT:
            shutil.copytree(reference / kind / "smoke", folder / kind / "smoke")
    (folder / "build").mkdir(exist_ok=True)
    (folder / "build" / "ready").touch()
    return folder


def results(folder: Path) -> dict[str, bytes]:
    """Figures, tables, pages and artefacts, by name."""
    return contents(folder / "figures/smoke") | contents(folder / "data/smoke/artefacts")


def assert_same(folder: Path, reference: Path) -> None:
    found, wanted = results(folder), results(reference)
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


def finished(folder: Path) -> list[str]:
    """The numbers of the notebooks whose execution is whole: newer than the key."""
    build = folder / "build/smoke"
    copies = {path.stem: path for path in build.glob("[0-9][0-9].ipynb")}
    return sorted(
        number
        for number, path in copies.items()
        if path.stat().st_mtime_ns >= path.with_suffix(".key").stat().st_mtime_ns
    )


def seconds(reference: Path) -> dict[str, float]:
    """Notebook → seconds that it took."""
    costs = sorted((reference / "build/smoke").glob("[0-9][0-9].cost.json"))
    return {path.name[:2]: read_json(path)["seconds"] for path in costs}


def forget(folder: Path, number: str) -> None:
    """Remove what a notebook made, as if it had never run, and every piece of work that is kept."""
    build = folder / "build/smoke"
    for kept in [path for path in (folder / "data/smoke").iterdir() if path.name != "artefacts"]:
        shutil.rmtree(kept)
    for name in read_json(build / f"{number}.record.json")["sha256"]:
        path = folder / name
        if path.name == MANIFEST:
            shutil.rmtree(path.parent)
        else:
            path.unlink()
    for path in [*build.glob(f"{number}.*"), *(folder / "figures/smoke").glob(f"{number}_*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def moments(reference: Path) -> list[tuple[str, float, str]]:
    """Random moments of the whole run, uniform over its time: notebook, seconds into it, way of ending."""
    draw, cost = random.Random(SEED), seconds(reference)
    drawn = []
    for i in range(KILLS):
        at = draw.uniform(0, sum(cost.values()))
        number = next(iter(cost))
        for number in cost:
            if at < cost[number]:
                break
            at -= cost[number]
        drawn.append((number, at, WAYS[max(0, i - 4) % len(WAYS)]))
    return drawn


@real
def test_killed_at_a_random_moment_of_the_whole_run(reference, tmp_path):
    folder = copied(reference, tmp_path, made=False)
    moment = random.Random(SEED).uniform(0.1, 0.9) * sum(seconds(reference).values())
    began, killed = time.monotonic(), Interrupted(folder, *SMOKE)
    killed.wait(lambda: time.monotonic() - began > moment, limit=1200)
    killed.kill_all()
    done_before = finished(folder)
    print(f"killed after {moment:.0f} s: {killed.executed} begun, {done_before} finished")
    again = make(folder, *SMOKE, timeout=1200)
    assert again.returncode == 0, again.stderr
    assert sorted(done_before + EXECUTED.findall(again.stdout)) == list(seconds(reference))
    assert_same(folder, reference)
    assert EXECUTED.findall(make(folder, *SMOKE).stdout) == []


@real
@pytest.mark.parametrize("place", range(KILLS))
def test_killed_at_a_random_moment_of_one_notebook(reference, tmp_path, place):
    folder = copied(reference, tmp_path, made=True)
    notebook, moment, way = moments(reference)[place]
    forget(folder, notebook)
    killed = Interrupted(folder, *SMOKE)
    killed.wait(lambda: killed.executed != [])
    began = time.monotonic()
    killed.wait(lambda: time.monotonic() - began > moment, limit=1200)
    assert killed.end(way) == []
    done_before = finished(folder)
    print(f"{way} {moment:.0f} s into {notebook}: {'finished' if notebook in done_before else 'unfinished'}")
    assert killed.executed == [notebook]
    again = make(folder, *SMOKE, timeout=1200)
    assert again.returncode == 0, again.stderr
    assert EXECUTED.findall(again.stdout) == ([] if notebook in done_before else [notebook])
    assert_same(folder, reference)


@real
def test_killed_within_a_sweep_its_finished_conditions_are_not_asked_again(reference, tmp_path):
    folder = copied(reference, tmp_path / "copy", made=True)
    forget(folder, "05")
    unfinished = folder / "data/smoke/artefacts/.steering.partial/unfinished"
    enough = random.Random(SEED).randint(2, 4)
    killed = Interrupted(folder, *SMOKE)
    killed.wait(lambda: len(list(unfinished.rglob("*.safetensors"))) >= enough, limit=600)
    killed.kill_all()
    kept = list(unfinished.rglob("*.safetensors"))
    assert len(kept) >= enough and "05" not in finished(folder)
    numbers = {path: path.stat().st_ino for path in kept}
    for path in kept:  # so that no other file is given these numbers
        os.link(path, tmp_path / f"{path.parent.name}-{path.name}")
    again, most = Interrupted(folder, *SMOKE), 0
    while again.process.poll() is None:
        most = max(most, len(list(unfinished.rglob("*.safetensors"))))
        try:
            assert {path: path.stat().st_ino for path in kept} == numbers
        except FileNotFoundError:
            assert most > len(kept)  # the study was whole
        time.sleep(0.05)
    assert again.process.returncode == 0 and again.executed == ["05"]
    assert_same(folder, reference)
