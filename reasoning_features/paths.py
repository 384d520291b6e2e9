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
    """A path as it may be printed and stored: from the repository's root; of another its name alone."""
    absolute = resolve(path).resolve()
    return absolute.relative_to(root()).as_posix() if absolute.is_relative_to(root()) else absolute.name


@dataclass(frozen=True)
class RunPaths:
    """The folders of one run (a profile's name, followed by its overrides where there are any)."""

    run: str

    @property
    def data(self) -> Path:
        """Models, autoencoders and results of many seeds."""
        return root() / "data" / self.run

    @property
    def artefacts(self) -> Path:
        """What notebooks store for one another; `make clean` may delete it."""
        return self.data / "artefacts"

    @property
    def shards(self) -> Path:
        """Finished pieces of work, to go on from."""
        return self.data / "shards"

    @property
    def figures(self) -> Path:
        """Figures, tables, provenance and notebooks rendered to Markdown."""
        return root() / "figures" / self.run

    @property
    def build(self) -> Path:
        """Executed notebooks and their stamps."""
        return root() / "build" / self.run
