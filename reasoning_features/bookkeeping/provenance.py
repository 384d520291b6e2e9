"""A run: where its artefacts lie, what determined each, and what is written beside every figure and table."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reasoning_features import hub, paths
from reasoning_features.bookkeeping import sources
from reasoning_features.bookkeeping.keys import MANIFEST, RECORD
from reasoning_features.bookkeeping.shares import asked_share
from reasoning_features.checksums import damaged_files, directory_digest, file_digest, file_digests
from reasoning_features.errors import CorruptArtefact, MissingArtefact, ShareDone
from reasoning_features.files import drop_unfinished, read_json, write_json
from reasoning_features.settings import (
    AUTOENCODERS,
    MODELS,
    SECOND,
    TEXTS,
    Settings,
    TextSource,
    shipped_profiles,
)

PINNED = (*MODELS, *AUTOENCODERS, *SECOND, "truth", "diffing")
PACKAGES = (
    "datasets",
    "matplotlib",
    "numpy",
    "pandas",
    "sae-lens",
    "scikit-learn",
    "scipy",
    "seaborn",
    "torch",
    "transformer-lens",
    "transformers",
    "wordfreq",
)


@dataclass(frozen=True)
class Run:
    """One notebook under one set of settings; made by :func:`begin`."""

    notebook: str  # the notebook's name, such as 03_reason_score
    settings: Settings
    paths: paths.RunPaths
    provenance: dict[str, Any]  # what every figure and table of the run records
    _read: dict[str, str] = field(default_factory=dict, repr=False)  # manifest or file → SHA-256
    _written: set[str] = field(default_factory=set, repr=False)

    def __str__(self) -> str:
        made = self.provenance
        return (
            f"{self.notebook} · run {self.settings.run} · code {made['code_sha256'][:12]} · "
            f"python {made['versions']['python']}, torch {made['versions']['torch']} · "
            f"{self.settings.device} {self.settings.dtype} · seed {self.settings.seed}"
        )

    def find(self, name: str, fields: Sequence[str], maker: str) -> Path:
        """The folder of a stored artefact that these settings determine.

        Looks in the run's own folder, then in the profile's, then in those of the profile's other runs,
        so that an override which an artefact does not depend on does not make it anew.

        Parameters
        ----------
        name
            The artefact's name.
        fields
            The settings that determine it, as when it was stored.
        maker
            The number of the notebook that stores it, such as ``01``.

        Raises
        ------
        MissingArtefact
            If there is none; the message names the make target.
        CorruptArtefact
            If a file is not what its checksum says, and no other run has the artefact whole.
        """
        wanted = _determinants(self.settings, fields)
        damaged: list[Path] = []
        for folder in self._candidates(name):
            manifest = folder / MANIFEST
            if not manifest.is_file():
                continue
            stored = _stored(manifest)
            if stored is None:
                damaged.append(manifest)
            elif stored["determined_by"] == wanted:
                if bad := damaged_files(folder, stored["files"]):
                    damaged += bad
                    continue
                self._note(read=manifest)
                return folder
        overrides = {n: v for n, v in self.settings.overrides.items() if n in fields}
        target = f"`make nb-{maker}{_make_arguments(self.settings, overrides)}`"
        if damaged:
            raise CorruptArtefact(
                f"{paths.relative(damaged[0])} is damaged or missing (its checksum is not the stored one): "
                f"run {target}, which makes it again."
            )
        raise MissingArtefact(
            f"{self.notebook} needs the artefact {name!r}, which is not stored for these settings: "
            f"run {target}."
        )

    @contextlib.contextmanager
    def store(self, name: str, fields: Sequence[str]) -> Iterator[Path]:
        """A folder to write an artefact into, stored when the block ends without an error.

        Nothing is seen under the artefact's name until it is whole. What an interrupted block left is given
        to the next one, to go on from, as long as the settings that determine it and the code are the same.
        One share of an array of jobs stores nothing: it stops here
        (:class:`reasoning_features.errors.ShareDone`).

        Parameters
        ----------
        name
            The artefact's name, such as ``statistics``.
        fields
            The settings that determine its content; models and autoencoders count by their files.
        """
        wanted = _determinants(self.settings, fields)
        head = {"name": name, "notebook": self.notebook, "determined_by": wanted}
        final, partial = self.paths.artefacts / name, self.paths.artefacts / f".{name}.partial"
        started = partial / MANIFEST
        begun = head | {"code": [self.provenance["notebook_sha256"], self.provenance["code_sha256"]]}
        if partial.exists() and _stored(started) != begun:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        drop_unfinished(partial)
        write_json(started, begun)
        yield partial
        if self.paths.share:
            raise ShareDone(f"All shards of {self.notebook} are there: `make merge-{self.notebook[:2]}`.")
        files = {name: digest for name, digest in file_digests(partial).items() if name != MANIFEST}
        write_json(started, head | {"files": files})
        if final.exists():
            shutil.rmtree(final)
        partial.replace(final)
        self._note(written=[final / MANIFEST])

    def wrote(self, files: Sequence[Path]) -> None:
        """Note files that the run has saved, so that ``make`` misses them when they are gone or damaged."""
        self._note(written=files)

    def reads(self, place: str) -> str:
        """Note a shipped directory or file that the run reads beyond what its settings pin; gives it back.

        Every figure and table names it with its digest, and ``make`` runs the notebook again when it changes.

        Raises
        ------
        MissingArtefact
            If it is not there.
        """
        path = paths.resolve(place)
        if not path.exists():
            raise MissingArtefact(
                f"There is no {place}: `make organism` and `make sanity` make what is shipped."
            )
        self._note(read=path)
        return place

    def has_written(self, file: Path) -> bool:
        """Whether this run, and not an earlier one, has saved a file."""
        return paths.relative(file) in self._written

    def _candidates(self, name: str) -> list[Path]:
        own, profile = self.paths.artefacts / name, paths.RunPaths(self.settings.profile)
        others = sorted(profile.data.parent.glob(f"{self.settings.profile}+*/artefacts/{name}"))
        return list(dict.fromkeys([own, profile.artefacts / name, *others]))

    def _note(self, read: Path | None = None, written: Sequence[Path] = ()) -> None:
        if read is not None:
            digest = directory_digest if read.is_dir() else file_digest
            self._read[paths.relative(read)] = digest(read)
        self._written.update(paths.relative(path) for path in written)
        if record := os.environ.get(RECORD):
            inputs = self.provenance["inputs"]
            models = {inputs[name]: inputs[f"{name}_sha256"] for name in PINNED if f"{name}_sha256" in inputs}
            known = [each for name in TEXTS for each in inputs.get(f"{name}_commits", {}).items()]
            texts = {paths.relative(dataset): digest for dataset, digest in known if hub.is_local(dataset)}
            read_all = models | texts | self._read
            write_json(Path(record), {"read": read_all, "written": sorted(self._written)})


def begin(notebook: str, settings: Settings) -> Run:
    """Open a run of a notebook, and seed every source of random numbers with the settings' seed.

    Parameters
    ----------
    notebook
        The notebook's name without its ending, such as ``03_reason_score``.
    settings
        From :func:`reasoning_features.settings.load_settings`.
    """
    import torch

    random.seed(settings.seed)
    np.random.seed(settings.seed)
    torch.manual_seed(settings.seed)
    cells = sources.code_cells(sources.notebook_path(notebook))
    inputs = _determinants(settings, [name for name in (*PINNED, *TEXTS) if getattr(settings, name)])
    provenance = {
        "notebook": notebook,
        "notebook_sha256": sources.digest(cells),
        "code_sha256": sources.digest(f"{k} {v}" for k, v in sources.imported_sources(cells).items()),
        "run": settings.run,
        "settings": settings.model_dump(mode="json"),
        "seeds": [settings.seed],
        "inputs": inputs,
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "device": settings.device,
        "dtype": settings.dtype,
    }
    share = asked_share()
    own = f"{share.number}-of-{share.of}" if share and share.number else ""
    run = Run(notebook, settings, paths.RunPaths(settings.run, own), provenance)
    run._note()
    return run


def record_artefact(run: Run, name: str, files: Sequence[Path], caption: str) -> Path:
    """Write a figure's or table's provenance beside it: ``<name>.json``, with its files' checksums."""
    path = run.paths.figures / f"{name}.json"
    made = {"name": name, "caption": caption, "files": {file.name: file_digest(file) for file in files}}
    # commits of what was fetched since the run began
    inputs = run.provenance["inputs"] | _commits(run.settings, (*PINNED, *TEXTS))
    write_json(path, made | run.provenance | {"inputs": inputs, "artefacts": dict(sorted(run._read.items()))})
    run.wrote([*files, path])
    return path


def _determinants(settings: Settings, fields: Sequence[str]) -> dict[str, Any]:
    """The value of each field as JSON has it; of a field that names a local directory, its content too.

    Of one that names a repository of the hub, its commit, as far as it is pinned or has been fetched.
    """
    values = settings.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name in sorted(fields):
        found[name] = values[name]
        if name in PINNED and values[name] and (directory := paths.resolve(values[name])).is_dir():
            found[name] = paths.relative(directory)
            found[f"{name}_sha256"] = directory_digest(directory)
    return found | _commits(settings, fields)


def _commits(settings: Settings, fields: Sequence[str]) -> dict[str, Any]:
    """``<field>_commit`` of models and autoencoders of the hub, ``<field>_commits`` of any data set."""
    found: dict[str, Any] = {}
    for name in sorted(fields):
        value = getattr(settings, name)
        if name in PINNED and value and not hub.is_local(value) and (commit := hub.known_sha(value)):
            found[f"{name}_commit"] = commit
        if name in TEXTS and value:
            each = [value] if isinstance(value, TextSource) else value
            listed = each.values() if isinstance(each, dict) else each
            named = sorted({source.dataset for source in listed})
            known = {dataset: content for dataset in named if (content := _content(dataset))}
            if known:
                found[f"{name}_commits"] = known
    return found


def _content(dataset: str) -> str | None:
    """What pins a data set: the hub's commit, or a local file's or folder's digest."""
    if not hub.is_local(dataset):
        return hub.known_sha(dataset, "dataset")
    path = paths.resolve(dataset)
    if path.is_file():
        return file_digest(path)
    return directory_digest(path) if path.is_dir() else None


def _stored(manifest: Path) -> dict[str, Any] | None:
    """What a manifest holds; None where it is not there or cannot be read."""
    try:
        held = read_json(manifest)
    except (OSError, ValueError):
        return None
    return held if isinstance(held, dict) and "determined_by" in held else None


def _make_arguments(settings: Settings, overrides: dict[str, Any]) -> str:
    place = "" if settings.profile in shipped_profiles() else "path/of/"
    profile = f" PROFILE={place}{settings.profile}{'.yaml' if place else ''}"
    profile = "" if settings.profile == "organism" else profile
    if not overrides:
        return profile
    given = " ".join(
        f"{name}={json.dumps(value) if isinstance(value, int | float) else repr(_plain(value))}"
        for name, value in sorted(overrides.items())
    )
    return f'{profile} PARAMS="{given}"'


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _version(package: str) -> str:
    """The installed public version (a build's own suffix, as in 2.0+cpu, says where it came from)."""
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
