"""Notebooks run from the command line: checked parameters, time limits, and outputs that are whole or absent.

``make`` calls ``python -m reasoning_features.running.execution``; see :func:`main` for its commands.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from reasoning_features import paths
from reasoning_features.bookkeeping import keys, sources
from reasoning_features.bookkeeping.keys import CELL_LIMIT, RECORD, Plan
from reasoning_features.bookkeeping.shares import SHARE, asked_share, known_engine
from reasoning_features.errors import ShareDone, UserError
from reasoning_features.files import drop_unfinished, read_json, write_json

KERNEL = "python3"
USER_ERRORS = frozenset({"UserError", "MissingArtefact", "CorruptArtefact", "ShareDone"})
GRACE = 10.0  # seconds to end in when interrupted
LOOK = 1.0  # seconds between looks whether make is still there
# how an execution ends that does not succeed
CELL_FAILED, CELL_TOO_LONG, KERNEL_DIED, TOO_LONG, ABANDONED = 3, 4, 5, 6, 7
INTERRUPTED = 130  # what a shell says of a command that was interrupted


NEEDS_DECISIONS = frozenset({"12"})
"""Notebooks about the effects of features on decisions, which are known in the organism's text alone."""


class RunFailed(UserError):
    """A notebook failed; the message says where, and what it said."""


def plan(
    numbers: list[str], profile: str, parameters: str = "", device: str = "", asked: list[str] | None = None
) -> list[Plan]:
    """Check parameters against notebooks, and save what each is to run.

    Where the profile's text has no known decisions, the notebooks of ``NEEDS_DECISIONS`` are left out.

    Parameters
    ----------
    numbers
        The notebooks' numbers, two digits each.
    profile
        A profile's name or the path of its file.
    parameters
        ``name=value`` words; each goes to the notebooks that declare it.
    device
        Where the model runs; empty for the profile's own.
    asked
        The numbers of those that were asked for by name (by default all); the others come before them.

    Raises
    ------
    UserError
        If a notebook, the profile or a parameter is not there, a value is of another type, or all that was
        asked for is left out.
    """
    from reasoning_features.bookkeeping.parameters import check, declared
    from reasoning_features.settings import load_settings

    notebooks = [_notebook(number) for number in numbers]
    place = str(Path(profile).resolve()) if profile.endswith((".yaml", ".yml")) else profile
    named = [_notebook(number).stem for number in asked or numbers]
    taken = check(notebooks, parameters, named)
    plans = []
    for path in notebooks:
        has, overrides = declared(path), taken[path.stem]
        settings = load_settings(place, **overrides)
        if path.stem[:2] in NEEDS_DECISIONS and settings.corpus != "organism":
            continue
        given = {"profile": place, "device": device or None}
        given = {n: v for n, v in given.items() if v is not None and n in has and v != has[n].default}
        plans.append(Plan(path.stem, settings.run, overrides | given, settings.model_dump(mode="json")))
    if not {made.notebook for made in plans} & set(named):
        raise UserError(
            f"{', '.join(named)} needs text whose decisions are known, and that of the profile {profile} has "
            "none: give PROFILE=organism."
        )
    for made in plans:
        made.save()
    return plans


def run(plan: Plan, cell_limit: int = 3600, limit: int = 7200, maker: int | None = None) -> Path:
    """Execute a notebook by papermill; its executed copy is ``build/<run>/NN.ipynb``.

    Parameters
    ----------
    plan
        From :func:`plan`.
    cell_limit
        Seconds that one cell may take.
    limit
        Seconds that the whole notebook may take: a kernel that was killed answers no more.
    maker
        The process of make that asks for this, where one does: when it is gone, the run ends.

    Raises
    ------
    RunFailed
        If a cell failed, a limit passed or make is gone. The copy is kept as ``NN.failed.ipynb``; what an
        earlier run left as ``NN.ipynb`` stays.
    UserError
        If what the profile names is out of reach, or does not fit into disk or memory; nothing has run.
    """
    from reasoning_features.running.costs import check
    from reasoning_features.settings import Settings

    check(Settings(**plan.settings))
    known = keys.before(plan)
    executed, failed, record = plan.file("ipynb"), plan.file("failed.ipynb"), plan.file("record.json")
    partial, notes = plan.file("running.ipynb"), plan.file("running.json")
    # from here on nobody knows what is written: an interrupted run leaves no record that others would trust
    for stale in (failed, partial, notes, record):
        stale.unlink(missing_ok=True)
    for folder in (paths.RunPaths(plan.run).build, paths.RunPaths(plan.run).figures):
        drop_unfinished(folder)
    started = time.monotonic()
    code = _papermill(plan, partial, notes, cell_limit, limit, maker)
    if code != 0:
        notes.unlink(missing_ok=True)
        if partial.is_file():
            partial.replace(failed)
        raise RunFailed(_why(plan, code, failed, cell_limit, limit)[0])
    keys.seal(plan, notes, partial)
    notes.unlink(missing_ok=True)
    cost = {
        "seconds": round(time.monotonic() - started, 1),
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    write_json(plan.file("cost.json"), cost)
    partial.replace(executed)
    keys.write_key(plan, known | keys.after(plan))
    os.utime(executed)  # newer than its key
    return executed


def run_share(plan: Plan, share: str, cell_limit: int = 3600, limit: int = 7200) -> str:
    """Execute a notebook as far as its shards go, and make one share of them; says what comes next.

    Nothing that ``make`` looks at is written but shards: any number of shares may run side by side.

    Parameters
    ----------
    plan
        From :func:`plan`.
    share
        Which share, as ``3/16``.
    cell_limit, limit
        As for :func:`run`.

    Raises
    ------
    RunFailed
        If a cell failed or a limit passed.
    UserError
        If the share is none, or what the profile names is out of reach.
    """
    from reasoning_features.running.costs import check
    from reasoning_features.settings import Settings

    os.environ[SHARE] = share
    asked = asked_share()
    if asked is None or not asked.number:
        raise UserError("Say which share of the shards to make: give SHARD=3/16 for the third of sixteen.")
    check(Settings(**plan.settings))
    own = f"{plan.number}.share-{asked.number}-of-{asked.of}"
    output, notes = (plan.file("ipynb").with_name(f"{own}.{ending}") for ending in ("ipynb", "json"))
    output.unlink(missing_ok=True)
    code = _papermill(plan, output, notes, cell_limit, limit)
    notes.unlink(missing_ok=True)
    if code == 0:
        return f"{plan.notebook} has no shards to share: `make nb-{plan.number}` runs it."
    why, error = _why(plan, code, output, cell_limit, limit)
    if error != ShareDone.__name__:
        raise RunFailed(why)
    output.unlink(missing_ok=True)
    return why


def main(arguments: list[str] | None = None) -> int:
    """The command line.

    ``check``: check PARAMS, save a plan for each notebook and print ``NN:run`` for make. ``share``: one
    share of a notebook's shards.
    ``key``, ``run``, ``render``: one plan's key file, executed notebook, Markdown. ``verify``: rebuild
    the default profile elsewhere and compare. ``readme``: write the table of claims.

    Returns
    -------
    int
        0; 1 when a run failed or a comparison differs; 2 when what was asked for cannot be run; 130 when
        interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return _command(options)
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def execute(plan: Plan, output: Path, cell_limit: int) -> int:
    """Execute a plan's notebook in this process, saving its copy; returns how it ended."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    notebook = sources.notebook_path(plan.notebook)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            cwd=str(notebook.parent),  # where JupyterLab runs it
            parameters=plan.parameters,
            kernel_name=KERNEL,
            execution_timeout=cell_limit,
        )
    except papermill.PapermillExecutionError:
        return CELL_FAILED
    except CellTimeoutError:
        return CELL_TOO_LONG
    except DeadKernelError:
        return KERNEL_DIED
    return 0


def _papermill(
    plan: Plan, output: Path, notes: Path, cell_limit: int, limit: int, maker: int | None = None
) -> int:
    """Execute in a process of its own, ended after ``limit`` seconds; returns how it ended.

    However this process ends, the other one ends with it: it holds the other end of a pipe.
    """
    path = os.pathsep.join(filter(None, [str(paths.root()), os.environ.get("PYTHONPATH")]))
    arguments = [str(plan.file("plan.json")), str(output), str(cell_limit)]
    process = subprocess.Popen(
        [sys.executable, "-m", "reasoning_features.running.execution", "execute", *arguments],
        env=os.environ | {RECORD: str(notes), CELL_LIMIT: str(min(cell_limit, limit)), "PYTHONPATH": path},
        stdin=subprocess.PIPE,
    )
    try:
        return _wait(process, limit, maker)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # lets the kernel be shut down
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], limit: float, maker: int | None) -> int:
    """Wait for a process; not beyond the limit, nor when make, which started this one, was killed alone."""
    ends = time.monotonic() + limit
    while (left := ends - time.monotonic()) > 0:
        try:
            return process.wait(min(LOOK, left))
        except subprocess.TimeoutExpired:
            if maker is not None and os.getppid() != maker:
                return ABANDONED
    return TOO_LONG


def _end_with_parent() -> None:
    """End this process at once, and so its kernel within a second, when the one that started it is gone.

    Otherwise it would go on writing beside the next make.
    """

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(INTERRUPTED)

    threading.Thread(target=wait, daemon=True).start()


def _why(plan: Plan, code: int, failed: Path, cell_limit: int, limit: int) -> tuple[str, str]:
    """Why a run ended, in a sentence (a user's error as it stands, or where to look); the error's name."""
    if code == CELL_FAILED:
        for place, cell in enumerate(read_json(failed)["cells"]):
            for output in cell.get("outputs", []):
                if output["output_type"] != "error":
                    continue
                if output["ename"] in USER_ERRORS:
                    return output["evalue"], output["ename"]
                said = f"{output['ename']}: {output['evalue']}".splitlines()[0]
                told = f"{plan.notebook} failed in cell {place} ({said}): see {paths.relative(failed)}."
                return told, output["ename"]
    why = {
        CELL_TOO_LONG: f"a cell took more than {cell_limit} seconds: give CELL_LIMIT= to make",
        KERNEL_DIED: "its kernel died: is there enough memory",
        TOO_LONG: f"it took more than {limit} seconds: give LIMIT= to make",
        ABANDONED: "make was killed: a rerun goes on from what is finished",
    }
    return f"{plan.notebook} was ended, since {why.get(code, f'its process ended with code {code}')}.", ""


def _notebook(number: str) -> Path:
    found = sorted((paths.root() / "notebooks").glob(f"{number}_*.ipynb"))
    if len(found) != 1:
        raise UserError(
            f"There is no notebook with the number {number!r} in notebooks/: give one such as 01."
        )
    return found[0]


def _command(options: argparse.Namespace) -> int:
    """Do what the command line asks; what only one command needs is imported there."""
    if options.command == "check":
        known_engine(options.engine)
        plans = plan(options.numbers, options.profile, options.parameters, options.device, options.asked)
        for made in plans:
            keys.drop_damaged_rendering(made)
        print(*(f"{made.number}:{made.run}" for made in plans))
    elif options.command == "share":
        (made,) = plan([options.number], options.profile, options.parameters, options.device)
        print(run_share(made, options.share, options.cell_limit, options.limit))
    elif options.command == "readme":
        from reasoning_features.reporting.claims import update_readme

        update_readme(paths.root() / "README.md", paths.RunPaths(options.profile).figures)
    elif options.command == "verify":
        from reasoning_features.running.verification import verify

        return verify(options.profile)
    elif options.command == "execute":
        _end_with_parent()
        return execute(Plan.load(options.plan), options.output, options.cell_limit)
    elif options.command == "key":
        keys.renew(Plan.load(options.plan))
    elif options.command == "run":
        run(Plan.load(options.plan), options.cell_limit, options.limit, options.maker)
    elif options.command == "render":
        from reasoning_features.running.rendering import render

        render(Plan.load(options.plan))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reasoning_features.running.execution")
    commands = parser.add_subparsers(dest="command", required=True)
    check, share = commands.add_parser("check"), commands.add_parser("share")
    check.add_argument("numbers", nargs="+")
    check.add_argument("--asked", nargs="+")
    check.add_argument("--engine", default="")
    share.add_argument("number")
    share.add_argument("share")
    for command in (check, share):
        command.add_argument("--profile", default="organism")
        command.add_argument("--parameters", default="")
        command.add_argument("--device", default="")
    for name in ("readme", "verify"):
        commands.add_parser(name).add_argument("--profile", default="organism")
    for name in ("key", "run", "render", "execute"):
        commands.add_parser(name).add_argument("plan", type=Path)
    for name in ("run", "share"):
        commands.choices[name].add_argument("--cell-limit", type=int, default=3600)
        commands.choices[name].add_argument("--limit", type=int, default=7200)
    commands.choices["run"].add_argument("--maker", type=int)
    commands.choices["execute"].add_argument("output", type=Path)
    commands.choices["execute"].add_argument("cell_limit", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
