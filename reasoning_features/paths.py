"""Where each artefact lives, wherever the caller stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def root() -> Path:
    """The repository's root, found from the package's own place."""
    return Path(__file__).resolve().parent.parent


def resolve(path: str | Path) -> Path:
    """An absolute path as it stands, any other taken from the repository's root."""
    return root() / Path(path).expanduser()


def relative(path: str | Path) -> str:
    """A path as it may be printed and stored: from the repository's root, with forward slashes.

    A path outside the repository is reduced to its name, so that no machine's folders are recorded.
    """
    absolute = resolve(path).resolve()
    return absolute.relative_to(root()).as_posix() if absolute.is_relative_to(root()) else absolute.name


@dataclass(frozen=True)
class RunPaths:
    """The folders of one run (a profile's name, followed by its overrides where there are any)."""

    run: str

    @property
    def data(self) -> Path:
        """Models, autoencoders and results of many seeds: ``data/<run>``."""
        return root() / "data" / self.run

    @property
    def artefacts(self) -> Path:
        """What notebooks store for one another, and ``make clean`` may delete: ``data/<run>/artefacts``."""
        return self.data / "artefacts"

    @property
    def shards(self) -> Path:
        """Pieces of work that are finished, to go on from: ``data/<run>/shards``."""
        return self.data / "shards"

    @property
    def figures(self) -> Path:
        """Figures, tables, provenance and notebooks rendered to Markdown: ``figures/<run>``."""
        return root() / "figures" / self.run

    @property
    def build(self) -> Path:
        """Executed notebooks, keys and logs: ``build/<run>``."""
        return root() / "build" / self.run
