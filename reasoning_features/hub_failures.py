"""What the hub's failures mean, each as one sentence that says what to do."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from reasoning_features.errors import MissingArtefact, UserError

Kind = Literal["model", "dataset"]
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Reference:
    """A repository of the hub, the revision asked for (None: its main branch), and a folder in it."""

    repo: str
    revision: str | None = None
    folder: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None


def passing(error: BaseException) -> str | None:
    """Why a failure may pass by itself, or None where trying again does not help."""
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError) and link.response is not None:
            status = link.response.status_code
            return f"the hub answers {status}" if status >= 500 or status == 429 else None
        if isinstance(link, OfflineModeIsEnabled):
            return None
        if "Consistency check" in str(link) or type(link).__name__ in {"RemoteProtocolError", "ReadError"}:
            return "a file ended half way"
        if type(link).__name__ in {"ReadTimeout", "ConnectTimeout", "PoolTimeout"}:
            return "the hub does not answer in time"
    return None


def sentence(asked: Reference, kind: Kind, error: BaseException) -> UserError:
    """What a failure means and what to do about it, as the error to raise."""
    chain = list(_chain(error))
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    for link in chain:
        if isinstance(link, GatedRepoError):
            return UserError(f"{asked.repo} is gated: accept its terms at {page(asked, kind)}, and {log_in}.")
        if isinstance(link, HfHubHTTPError) and "Invalid credentials" in str(link):
            return UserError(
                f"The hub refuses the token it was given for {asked.repo}: {log_in} to a valid one."
            )
        if isinstance(link, RevisionNotFoundError):
            return UserError(
                f"{asked.repo} has no revision {asked.revision}: see {page(asked, kind)}/commits/main."
            )
        if isinstance(link, RepositoryNotFoundError):
            return UserError(
                f"There is no {kind} {asked.repo} on the hub, or it is private: check the name, "
                f"and for a private one {log_in}."
            )
        if isinstance(link, OSError) and link.errno == errno.ENOSPC:
            return too_little_disk(f"{asked} needs more than there is")
    offline = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub cannot be reached"
    status = [link.response.status_code for link in chain if isinstance(link, HfHubHTTPError)]
    if status:
        return UserError(f"The hub answers {status[0]} to the request for {asked}: see {page(asked, kind)}.")
    if isinstance(error, LocalEntryNotFoundError) or unreachable(error):
        return MissingArtefact(
            f"{asked} is not in the cache, and {offline}: run once with network, or set HF_HOME to a cache "
            "that holds it."
        )
    return UserError(f"{asked} could not be fetched ({str(error).splitlines()[0]}).")


def too_little_disk(need: str) -> UserError:
    """The error to raise where a download does not fit; ``need`` says what needs how much."""
    return UserError(
        f"{need} on the disk of the cache, of which {gigabytes(free_disk())} are free: "
        "free some, or set HF_HOME to a folder on a larger disk."
    )


def unreachable(error: BaseException) -> bool:
    """Whether there is no network, or none is wanted."""
    return isinstance(error, OfflineModeIsEnabled) or "Connect" in type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def page(asked: Reference, kind: Kind) -> str:
    """The repository's page."""
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{asked.repo}"


def free_disk() -> int:
    """Bytes that are free on the disk of the cache."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def gigabytes(size: float) -> str:
    """A number of bytes as text, in GB, or in MB where it is small."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
