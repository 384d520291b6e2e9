"""Where each artefact lives, wherever the caller stands."""

import os
from pathlib import Path


def root() -> Path:
    """The repository's root, found from the package's own place."""
    return Path(__file__).resolve().parent.parent


def resolve(path: str | Path) -> Path:
    """An absolute path as it stands, any other taken from the repository's root."""
    return root() / os.path.expanduser(path)  # Path's own raises where there is no such user


def relative(path: str | Path) -> str:
    """A path as it may be printed and stored: from the repository's root; of another its name alone."""
    absolute = resolve(path).resolve()
    return absolute.relative_to(root()).as_posix() if absolute.is_relative_to(root()) else absolute.name


class RunPaths:
    """The folders of one run (a profile's name, followed by its overrides where there are any)."""

    def __init__(self, run: str) -> None:
        self.data = root() / "data" / run  # models, autoencoders and results of many seeds
        self.artefacts = self.data / "artefacts"  # what notebooks store for one another
        self.shards = self.data / "shards"  # finished pieces of work, to go on from
        self.figures = root() / "figures" / run  # with tables, provenance and rendered notebooks
        self.build = root() / "build" / run  # executed notebooks and their stamps
