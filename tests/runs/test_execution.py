"""The house end to end: stub notebooks in a repository of their own, run by make as a user would."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import psutil
import pytest
from hypothesis import HealthCheck, given
from stub_notebooks import write_notebook
from tiny import contents

from reasoning_features import paths
from reasoning_features.reporting import claims
from reasoning_features.runs import execution
from reasoning_features.runs.provenance import RECORD, begin
from reasoning_features.settings import load_settings

pytestmark = pytest.mark.slow

STORE = "with run.store('sample', ['seed']) as folder:\n    (folder / 'a').write_text('stored')"
DRAW = (
    "import pandas as pd\nfrom reasoning_features.reporting.plots import new_figure, save_figure\n"
    "fig, ax = new_figure()\nax.plot([1, 2])\n"
    "save_figure(fig, 'x01_line', pd.DataFrame({'y': [1, 2]}), run, 'A line.')"
)
READ = "print((run.find('sample', ['seed'], '01') / 'a').read_text())"
FAIL = (
    "import os, time\nfrom reasoning_features.errors import UserError\n"
    "assert os.path.basename(os.getcwd()) == 'notebooks'  # as in JupyterLab\n"
    "if alpha == 9:\n    raise UserError('Alpha is too large: give less.')\n"
    "if alpha == 8:\n    os.kill(os.getpid(), 9)\n"
    "if alpha == 7:\n    time.sleep(60)"
)
FIRST = ["run 01", "render 01"]
BOTH = [*FIRST, "run 02", "render 02"]
SAID = re.compile(r"^(\d\d)_\w+ (runs|is rendered)", re.MULTILINE)


def build_house(folder: Path) -> Path:
    """A repository with the package and the Makefile, and no notebooks yet."""
    shutil.copytree(paths.root() / "reasoning_features", folder / "reasoning_features")
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".gitignore"):
        shutil.copy(paths.root() / name, folder)
    (folder / "README.md").write_text(f"{claims.BEGIN}\n{claims.END}\n")
    (folder / "build").mkdir()
    (folder / "build" / "ready").touch()
    return folder


def command(*arguments: str) -> list[str]:
    """Make with this environment, which it takes for set up: nothing is installed from another folder."""
    return ["make", "--no-print-directory", f"VENV={sys.prefix}", "STAMP=build/ready", *arguments]


def environment(**more: str) -> dict[str, str]:
    """This process' environment, without what a make above it left."""
    return {n: value for n, value in os.environ.items() if not n.startswith(("MAKE", "MFLAGS"))} | more


def make(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run make to its end."""
    options = {"cwd": folder, "env": environment(**more), "capture_output": True, "text": True}
    return subprocess.run(command(*arguments), timeout=900, **options)


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a make that succeeded did, as 'run 01' and 'render 01'."""
    assert done.returncode == 0, done.stderr
    return [f"{'run' if did == 'runs' else 'render'} {number}" for number, did in SAID.findall(done.stdout)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the package, the Makefile and two stub notebooks, already made once."""
    folder = build_house(tmp_path_factory.mktemp("house"))
    write_notebook(folder, "01_one", STORE, DRAW)
    write_notebook(folder, "02_two", READ, FAIL)
    assert ran(make(folder, "all")) == BOTH
    return folder


def test_everything_is_made_and_a_second_make_does_nothing(house: Path) -> None:
    made = contents(house / "figures/organism")
    assert {"01_one.md", "02_two.md", "x01_line.png", "x01_line.json"} <= set(made)
    assert b"![A line.](x01_line.png)" in made["01_one.md"]
    assert ran(make(house, "all")) == []


def test_a_change_reruns_what_depends_on_it_and_nothing_else(house: Path) -> None:
    second = house / "notebooks/02_two.ipynb"
    text = second.read_text()
    second.write_text(text.replace("# 02_two", "# The second"))
    assert ran(make(house, "all")) == ["render 02"]
    assert (house / "figures/organism/02_two.md").read_text().startswith("# The second\n")
    second.write_text(text.replace("print(run)", "print(run.settings.seed)"))
    done = make(house, "all")
    assert ran(done) == ["run 02", "render 02"] and "its code cells changed" in done.stdout
    for module, does in (("plots", ["run 01", "render 01"]), ("tables", [])):  # 02 draws nothing
        source = house / f"reasoning_features/reporting/{module}.py"
        source.write_text(source.read_text() + "\n# changed\n")
        assert ran(make(house, "all")) == does
    first = house / "notebooks/01_one.ipynb"
    first.write_text(first.read_text().replace("'stored'", "'stored anew'"))
    assert ran(make(house, "all")) == BOTH
    assert "stored anew" in (house / "figures/organism/02_two.md").read_text()


def test_what_is_damaged_or_gone_is_named_and_made_again(house: Path) -> None:
    before = contents(house / "figures/organism") | contents(house / "data")
    for name in ("data/organism/artefacts/sample/a", "figures/organism/02_two.md"):
        (house / name).write_bytes((house / name).read_bytes()[:5])
    done = make(house, "all")
    assert ran(done) == ["run 01", "render 01", "render 02"]
    assert "sample/a is gone or damaged" in done.stdout
    (house / "figures/organism/x01_line.png").unlink()
    (house / "build/organism/02.stamp.json").write_text('{"key"')
    done = make(house, "all")
    assert ran(done) == BOTH and "x01_line.png is gone or damaged" in done.stdout
    assert contents(house / "figures/organism") | contents(house / "data") == before


def test_parameters_land_in_a_folder_of_their_own_and_rerun_what_they_touch(house: Path) -> None:
    before = contents(house / "figures/organism")
    done = make(house, "nb-02", "PARAMS=alpha=0.3 window='[1, 2]' selected=7")
    assert ran(done) == ["run 02", "render 02"]  # 01's artefact does not depend on any of them
    assert contents(house / "figures/organism") == before
    text = (house / "figures/organism+alpha=0.3+selected=7+window=1-2/02_two.md").read_text()
    assert 'alpha = 0.3\nwindow = [1, 2]\nchanges = {"selected": 7}' in text
    assert ran(make(house, "nb-02", "PARAMS=alpha=0.3 window='[1,2]' selected=7")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nb-02", "PARAMS=alfa=0.3"], "There is no setting 'alfa' for PARAMS: see alpha"),
     (["all", "ENGINE=slurm"], "There is no engine 'slurm'"), (["nb-07"], "No rule to make target 'nb-07'")],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_first(house: Path, arguments: list[str], said: str) -> None:
    before = contents(house / "figures")
    done = make(house, *arguments)
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""
    assert contents(house / "figures") == before


@pytest.mark.parametrize(
    ("alpha", "said"),
    [("9", "Alpha is too large: give less."), ("8", "The kernel of 02_two died: is there enough memory?"),
     ("7", "A cell of 02_two took more than 8 seconds: give CELL_LIMIT= to make.")],
)  # fmt: skip
def test_a_failed_run_says_why_in_a_sentence_and_leaves_no_output(house: Path, alpha: str, said: str) -> None:
    done = make(house, "nb-02", f"PARAMS=alpha={alpha}", "CELL_LIMIT=8")
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and lines[-1].startswith("make: ***") and lines[-2] == said
    assert not (house / f"build/organism+alpha={alpha}.0/02.ipynb").exists()
    assert not (house / f"figures/organism+alpha={alpha}.0/02_two.md").exists()


def test_plain_papermill_works_from_any_directory(house: Path, tmp_path: Path) -> None:
    notebook, out = house / "notebooks/01_one.ipynb", tmp_path / "out.ipynb"
    run = [sys.executable, "-m", "papermill", notebook, out, "-k", "python3", "-p", "alpha", "0.4"]
    subprocess.run(run, cwd=tmp_path, env=environment(PYTHONPATH=str(house)), check=True, capture_output=True)
    assert (house / "figures/organism+alpha=0.4/x01_line.png").is_file()


def test_a_profile_of_any_name_and_place_runs_with_this_interpreter_alone(tmp_path: Path) -> None:
    """No kernel and no startup file of the user's own is taken; a changed text of one's own reruns."""
    house = build_house(tmp_path / "a house")
    asks = "import sys\nread = settings.reasoning_text\n"
    write_notebook(house, "01_one", f"{asks}print(sys.prefix, 'startup' in globals(), settings.alpha)")
    own = {"extends": "smoke", "reasoning_text": {"dataset": "texts.jsonl"}, "alpha": 0.25}
    (house / "it's a&b;c:$5 50%.yaml").write_text(json.dumps(own))
    (house / "texts.jsonl").write_text('{"text": "one"}\n')
    kernel = tmp_path / ".local/share/jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    another = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(another))
    startup = tmp_path / ".ipython/profile_default/startup/00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("startup = 1\n")
    given = "nb-01", "PROFILE=it's a&b;c:$5 50%.yaml"
    assert ran(make(house, *given, HOME=str(tmp_path))) == FIRST
    (page,) = (house / "figures").glob("*/01_one.md")
    assert f"{sys.prefix} False 0.25" in page.read_text()
    assert ran(make(house, *given)) == []
    (house / "texts.jsonl").write_text('{"text": "two"}\n')
    done = make(house, *given)
    assert ran(done) == FIRST and "its inputs changed (reasoning_text)" in done.stdout


PLACES = {
    "subject": "models/a", "base": "models/b", "autoencoder": "sae", "truth": "truth", "steering": "studies",
    "reasoning_text": "texts/a.jsonl", "general_text": "texts", "training_text": "c.jsonl",
    "problems": "d.csv",
}  # fmt: skip


@given(st.sets(st.sampled_from(sorted(PLACES))), st.sampled_from(sorted(PLACES)), st.integers(0, 39))
@hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_changed_byte_of_any_input_reruns_exactly_what_asked_for_it(
    repository, monkeypatch, asked, name, at
):
    data = {"name": {"dataset": "d.csv"}}, [{"dataset": "c.jsonl"}]
    values = {each: {"dataset": place} if "text" in each else place for each, place in PLACES.items()}
    values |= {"extends": "smoke", "problems": data[0], "training_text": data[1]}
    (repository / "mine.yaml").write_text(json.dumps(values))
    files = {each: place if "." in place else f"{place}/deep/file" for each, place in PLACES.items()}
    for file in files.values():
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        (repository / file).write_bytes(bytes(40))
    write_notebook(repository, "01_one")

    def executed(_: str, out: str, **__: object) -> None:
        made = begin("01_one", load_settings("mine.yaml"))
        for setting in asked:
            getattr(made.settings, setting)
        made.wrote([])
        shutil.copy(repository / "notebooks/01_one.ipynb", out)

    monkeypatch.setattr("papermill.execute_notebook", executed)
    monkeypatch.setattr(execution, "check", lambda _: None)
    for variable in (RECORD, "JUPYTER_PATH", "IPYTHONDIR", "PYTHONPATH"):
        monkeypatch.setenv(variable, "")
    made = execution.plan("01", "mine.yaml")
    made.file("lock").parent.mkdir(parents=True, exist_ok=True)
    execution.run(made)
    assert made.outdated() == ""
    changed = bytearray(40)
    changed[at] = 1
    (repository / files[name]).write_bytes(changed)
    affected = {name, *(["general_text"] if name == "reasoning_text" else [])}  # whose folder holds its file
    assert bool(made.outdated()) == bool(affected & asked)
    assert not asked & affected or made.outdated().startswith("its inputs changed (")


def test_independent_notebooks_run_side_by_side_with_one_thread_each(tmp_path: Path) -> None:
    house = build_house(tmp_path)
    meet = (
        "import os, pathlib, time\nhome = pathlib.Path(run.paths.build)\n(home / '{0}').touch()\n"
        "until = time.monotonic() + 300\n"
        "while not (home / '{1}').exists():\n    assert time.monotonic() < until\n    time.sleep(0.1)\n"
        "assert os.environ['OMP_NUM_THREADS'] == '1'"
    )
    write_notebook(house, "03_three", meet.format(3, 7))
    write_notebook(house, "07_seven", meet.format(7, 3))
    assert sorted(ran(make(house, "-j2", "all"))) == ["render 03", "render 07", "run 03", "run 07"]


def test_what_a_killed_run_finished_is_not_made_again_and_nothing_lives_on(tmp_path: Path) -> None:
    house = build_house(tmp_path)
    pieces = (
        "import time\nhome = run.paths.data.parent.parent\n"
        "with run.store('pieces', ['seed']) as folder:\n"
        "    for piece in 'abc':\n"
        "        if (folder / piece).exists():\n            continue\n"
        "        print(piece, file=(home / 'made').open('a'))\n"
        "        while piece == 'c' and not (home / 'go').exists():\n            time.sleep(0.05)\n"
        "        (folder / piece).write_text(piece)"
    )
    write_notebook(house, "01_stub", pieces)
    with (house / "build/log").open("w") as log:
        process = subprocess.Popen(command("nb-01"), cwd=house, env=environment(), stdout=log, stderr=log)
    made, until = house / "made", time.monotonic() + 120
    while not (made.is_file() and made.read_text().split() == ["a", "b", "c"]):
        assert time.monotonic() < until and process.poll() is None, (house / "build/log").read_text()
        time.sleep(0.05)
    everyone = psutil.Process(process.pid).children(recursive=True)
    runner = next(each for each in everyone if "reasoning_features.runs.execution" in each.cmdline())
    runner.send_signal(signal.SIGKILL)
    assert process.wait(30) != 0
    assert psutil.wait_procs(everyone, 15)[1] == []  # the kernel ends with who started it
    assert not (house / "data/organism/artefacts/pieces").exists()
    (house / "go").touch()
    assert ran(make(house, "nb-01")) == FIRST
    assert made.read_text().split() == ["a", "b", "c", "c"]
    assert sorted(contents(house / "data/organism/artefacts/pieces")) == ["a", "artefact.json", "b", "c"]


def test_verify_rebuilds_what_is_committed_and_clean_leaves_it(house: Path) -> None:
    assert ran(make(house, "all")) is not None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=house, check=True)
    done = make(house, "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "x01_line.csv: same bytes" in done.stdout and "of which 0 differ" in done.stdout
    (house / "data/organism/models").mkdir(parents=True)
    (house / "data/organism/models/weights").write_text("trained")
    make(house, "clean")
    kept = subprocess.run(["git", "status", "--short"], cwd=house, capture_output=True, text=True, check=True)
    assert kept.stdout == "?? data/\n"
    assert not (house / "build").exists() and not (house / "data/organism/artefacts").exists()
