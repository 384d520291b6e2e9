"""A run of a notebook: its inputs by their content, its artefacts, and the provenance beside every figure."""

import ast
import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasoning_features import hub, paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.files import (
    damaged_files,
    directory_digest,
    file_digest,
    file_digests,
    read_json,
    write_json,
)
from reasoning_features.settings import INPUTS, PINNED, TEXTS, Settings

PACKAGE = "reasoning_features"
MANIFEST = "artefact.json"  # a stored artefact's settings, and its files with their digests
RECORD = "REASONING_FEATURES_RECORD"  # names the file that a run tells what it read and wrote
PACKAGES = (
    *("datasets", "jinja2", "latex2sympy2-extended", "math-verify", "matplotlib", "numpy", "pandas"),
    *("pyarrow", "sae-lens", "scikit-learn", "scipy", "seaborn", "sympy", "tokenizers", "torch"),
    *("transformer-lens", "transformers", "wordfreq"),
)
TABLES = {".csv", ".tsv", ".json"}
MAGIC = re.compile(r"^\s*[%!].*$", re.MULTILINE)  # a notebook's own commands


def notebook_path(notebook: str) -> Path:
    """The notebook's file, from its name or its number; UserError if there is none."""
    found = sorted((paths.root() / "notebooks").glob(f"{notebook}*.ipynb"))
    if len(found) != 1:
        raise UserError(f"There is no notebook {notebook!r} in notebooks/: give a number such as 03.")
    return found[0]


def code_cells(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells, in order."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def digest(texts: Iterable[str]) -> str:
    """SHA-256 over texts, with their borders."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def imported_files(code: Iterable[str]) -> dict[str, str]:
    """File → SHA-256 of every source of the package that code imports (absolutely), directly or through
    others; tables beside an imported source count as well, and the YAML and HTML of its name.
    """
    found: set[Path] = set()
    waiting = {name for text in code for name in _imports(text)}
    while waiting:
        new = {file for name in waiting for file in _files_of(name.split("."))} - found
        found |= new
        sources = [file.read_text(encoding="utf-8") for file in new if file.suffix == ".py"]
        waiting = {name for source in sources for name in _imports(source)}
    return dict(sorted((paths.relative(file), file_digest(file)) for file in found))


@functools.cache
def _imports(source: str) -> tuple[str, ...]:
    """The names within the package that a source imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(MAGIC.sub("", source))):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{name.name}" for name in node.names]
    return tuple(name for name in names if name.split(".")[0] == PACKAGE)


def _files_of(parts: list[str]) -> Iterator[Path]:
    """The files that importing a dotted name reads: each room's ``__init__`` and the module's own."""
    for n in range(1, len(parts) + 1):
        place = paths.root().joinpath(*parts[:n])
        for file in (place / "__init__.py", *(place.with_suffix(end) for end in (".py", ".yaml", ".html"))):
            if file.is_file():
                yield file
                yield from (other for other in file.parent.iterdir() if other.suffix in TABLES)


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:  # a build's own suffix, as in 2.0+cpu, says where it came from
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package).split("+")[0]
    return found


def content(reference: str, kind: hub.Kind = "model") -> str | None:
    """What pins a file, a folder or a repository of the hub: its digest or commit; None if there is none."""
    path = paths.resolve(reference)
    if path.exists():
        return file_digest(path) if path.is_file() else directory_digest(path)
    return None if hub.is_local(reference) else hub.known_sha(reference, kind)


def references(settings: Settings, name: str) -> list[str]:
    """The models, autoencoders, folders or data sets that a setting names."""
    return sorted({each if isinstance(each, str) else each.dataset for each in settings.named(name)})


def inputs(settings: Settings, fields: Iterable[str] = INPUTS) -> dict[str, dict[str, str]]:
    """Setting → each thing that it names → what pins its content, as far as it is there."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted(INPUTS.intersection(fields)):
        kind: hub.Kind = "model" if name in PINNED else "dataset"
        known = {each: pin for each in references(settings, name) if (pin := content(each, kind))}
        found |= {name: known} if known else {}
    return found


def determinants(settings: Settings, fields: Iterable[str]) -> dict[str, Any]:
    """The value of each setting as JSON has it; of what names models or data, its content too."""
    values = settings.model_dump(mode="json", include=set(fields))
    for name, known in inputs(settings, fields).items():
        if name in TEXTS or isinstance(values[name], list):
            values[f"{name}_commits"] = {_recorded(each): sha for each, sha in known.items()}
        else:
            ending = "sha256" if hub.is_local(values[name]) else "commit"
            values[f"{name}_{ending}"], values[name] = known[values[name]], _recorded(values[name])
    return dict(sorted(values.items()))


def _recorded(reference: str) -> str:
    return paths.relative(reference) if hub.is_local(reference) else reference


@dataclass(frozen=True)
class Run:
    """A notebook under one set of settings; made by :func:`begin`."""

    notebook: str  # the notebook's name, such as 03_reason_score
    settings: Settings
    paths: paths.RunPaths
    provenance: dict[str, Any]  # what every figure and table of the run records
    _read: dict[str, str] = field(default_factory=dict, repr=False)  # place → content
    _written: set[str] = field(default_factory=set, repr=False)

    def __str__(self) -> str:
        made = self.provenance
        return (
            f"{self.notebook} · run {self.settings.run} · code {made['code_sha256'][:12]} · "
            f"python {made['versions']['python']}, torch {made['versions']['torch']} · "
            f"{self.settings.device} {self.settings.dtype} · seed {self.settings.seed}"
        )

    def find(self, name: str, fields: Sequence[str], maker: str) -> Path:
        """The folder of an artefact that notebook ``maker`` ("01") stored, and that ``fields`` determine.

        Another run of the profile may have stored it: an override on which it does not depend makes nothing
        anew. MissingArtefact and CorruptArtefact name the make target.
        """
        self.settings._asked.update(fields)
        wanted = determinants(self.settings, fields)
        damaged: list[Path] = []
        for manifest in manifests(self.settings, name):
            stored = stored_manifest(manifest)
            if stored and stored["determined_by"] != wanted:
                continue
            bad = damaged_files(manifest.parent, stored["files"]) if stored else [manifest]
            if not bad:
                self.reads(paths.relative(manifest))
                return manifest.parent
            damaged += bad
        make = f"run `make nb-{maker}` with the same PROFILE and PARAMS."
        if damaged:
            raise CorruptArtefact(f"{paths.relative(damaged[0])} is damaged or missing: {make}")
        raise MissingArtefact(f"{self.notebook} needs {name!r}, not stored for these settings: {make}")

    @contextlib.contextmanager
    def store(self, name: str, fields: Sequence[str]) -> Iterator[Path]:
        """A folder to write an artefact into, which ``fields`` determine; stored when the block ends well.

        What an interrupted block left is given to the next one, to go on from, as long as what determines it
        and the code are the same.
        """
        self.settings._asked.update(fields)
        head = {"name": name, "notebook": self.notebook, "determined_by": determinants(self.settings, fields)}
        begun = head | {"code": [self.provenance["notebook_sha256"], self.provenance["code_sha256"]]}
        final, partial = self.paths.artefacts / name, self.paths.artefacts / f".{name}.partial"
        if partial.exists() and stored_manifest(partial / MANIFEST) != begun:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        for left in partial.rglob(".*.partial"):
            left.unlink()
        write_json(partial / MANIFEST, begun)
        yield partial
        files = {name: sha for name, sha in file_digests(partial).items() if name != MANIFEST}
        write_json(partial / MANIFEST, head | {"files": files})
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        self.wrote([final / MANIFEST, *(final / file for file in files)])

    def reads(self, place: str) -> str:
        """Note a directory or file that the run reads beyond what its settings name, and give it back: when
        it changes ``make`` reruns the notebook. MissingArtefact where it is not there.
        """
        if (pin := content(place)) is None:
            raise MissingArtefact(f"There is no {place}: `make organism` and `make sanity` make what ships.")
        self._read[place] = pin
        self._record()
        return place

    def wrote(self, files: Iterable[Path]) -> None:
        """Note files that the run has saved, so that ``make`` misses them when they are gone or damaged."""
        self._written.update(paths.relative(path) for path in files)
        self._record()

    def _record(self) -> None:
        """Tell make, where it started this run, what was asked for, read, by content, and written so far."""
        if record := os.environ.get(RECORD):
            told = {"inputs": sorted(INPUTS & self.settings._asked), "read": self._read}
            write_json(Path(record), told | {"written": sorted(self._written)})


def begin(notebook: str, settings: Settings) -> Run:
    """Open a run of a notebook (``03_reason_score``), and seed every source of random numbers."""
    from transformers import set_seed

    set_seed(settings.seed)
    cells = code_cells(notebook_path(notebook))
    code = (f"{file} {sha}" for file, sha in imported_files(cells).items())
    provenance = settings.model_dump(include={"device", "dtype"}) | {"run": settings.run}
    provenance |= {"notebook": notebook, "notebook_sha256": digest(cells), "code_sha256": digest(code)}
    provenance |= {"settings": settings.model_dump(mode="json"), "seeds": [settings.seed]}
    provenance |= {"inputs": determinants(settings, [name for name in INPUTS if settings.named(name)])}
    provenance |= {"versions": versions()}
    run = Run(notebook, settings, paths.RunPaths(settings.run), provenance)
    atexit.register(run._record)  # what was asked for after the last figure
    return run


def record_artefact(run: Run, name: str, files: Sequence[Path], caption: str) -> Path:
    """Write a figure's or table's provenance beside it: ``<name>.json``, with its files' checksums."""
    path = run.paths.figures / f"{name}.json"
    made = {"name": name, "caption": caption, "files": {file.name: file_digest(file) for file in files}}
    named = {name: references(run.settings, name) for name in INPUTS}
    fetched = [name for name, places in named.items() if not all(map(hub.is_local, places))]
    known = run.provenance["inputs"] | determinants(run.settings, fetched)
    read = {paths.relative(place): pin for place, pin in sorted(run._read.items())}
    write_json(path, made | run.provenance | {"inputs": known, "artefacts": read})
    run.wrote([*files, path])
    return path


def manifests(settings: Settings, name: str = "*") -> list[Path]:
    """Manifests of stored artefacts of a name: the run's own, the profile's, those of its other runs."""
    places = [settings.run, settings.profile, f"{settings.profile}+*"]
    home = paths.root() / "data"
    found = [path for place in places for path in sorted(home.glob(f"{place}/artefacts/{name}/{MANIFEST}"))]
    return list(dict.fromkeys(path for path in found if not path.parent.name.startswith(".")))


def stored_manifest(path: Path) -> dict[str, Any] | None:
    """What a manifest or stamp holds; None where it is not there or cannot be read."""
    try:
        return dict(read_json(path))
    except (OSError, ValueError):
        return None
