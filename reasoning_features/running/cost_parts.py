"""What a profile names, from models to benchmarks: how large it is, how much is here, what bars the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.settings import AUTOENCODERS, MODELS, SECOND, ProblemSource, Settings, TextSource

OPTIONAL = ("contrast", "base", *SECOND, "solutions_text")


@dataclass(frozen=True)
class Part:
    """A thing that a profile names: its size in bytes, how much of it is here, what stands in its way."""

    setting: str
    reference: str
    size: int | None = 0  # None: not known
    here: int = 0
    problem: str = ""

    @property
    def missing(self) -> int:
        """Bytes to fetch, as far as known."""
        return (self.size or 0) - self.here

    @property
    def whole(self) -> bool:
        """Whether all of it is here."""
        return self.size == self.here


def parts_of(settings: Settings) -> Iterator[Part]:
    """Everything that a profile names, with the sizes that the machine or the hub tell."""
    for name in (*MODELS, *AUTOENCODERS, *SECOND):
        if reference := getattr(settings, name):
            yield _part(name, reference, "model")
    for name, source in _sources(settings):
        yield _part(name, source.dataset, "dataset", source)


def _sources(settings: Settings) -> Iterator[tuple[str, TextSource | ProblemSource]]:
    """Data sets of the profile, each once; those of trainings only where they are asked for."""
    named: list[tuple[str, TextSource | ProblemSource | None]] = [
        ("reasoning_text", settings.reasoning_text),
        ("general_text", settings.general_text),
        ("solutions_text", settings.solutions_text),
        *(("problems", source) for source in settings.problems.values()),
    ]
    if settings.train_saes:
        named += [("training_text", source) for source in settings.training_text]
    if settings.train_saes and settings.base:
        named += [("base_text", source) for source in settings.base_text]
        named += [("stages_text", source) for source in settings.stages_text]
    seen: set[tuple[Any, ...]] = set()
    for name, source in named:
        if source is not None and (key := (source.dataset, source.name, source.split)) not in seen:
            seen.add(key)
            yield name, source


def hub_references(settings: Settings) -> Iterator[str]:
    """What a profile names of the hub."""
    from reasoning_features.hub import is_local

    named = [getattr(settings, name) for name in (*MODELS, *AUTOENCODERS, *SECOND)]
    every = [*named, *(source.dataset for _, source in _sources(settings))]
    return (reference for reference in every if reference and not is_local(reference))


def _part(setting: str, reference: str, kind: Any, source: TextSource | ProblemSource | None = None) -> Part:
    from reasoning_features import hub
    from reasoning_features.text.text_sources import hub_files

    if hub.is_local(reference):
        path = paths.resolve(reference)
        size = sum(file.stat().st_size for file in _weights(path, kind))
        return Part(setting, reference, size, size, "" if path.exists() else "not there yet")
    try:
        files = hub.files(reference, kind, hub_files(source) if source is not None else None)
    except UserError as error:
        return Part(setting, reference, None, 0, str(error))
    counted = [file for file in files if kind == "dataset" or file.name.endswith(".safetensors")]
    size, here = sum(f.size for f in counted), sum(f.size for f in counted if f.cached)
    problem = hub.refusal(reference, kind) if here < size else ""
    return Part(setting, reference, size, here, problem)


def _weights(path: Path, kind: str) -> list[Path]:
    if path.is_file():
        return [path]
    return [f for f in path.rglob("*") if f.is_file() and (kind == "dataset" or f.suffix == ".safetensors")]
