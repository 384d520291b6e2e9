"""Models, autoencoders and data sets of the Hugging Face hub, as folders of this machine's cache.

The only room that talks to the hub. A reference reads ``owner/name[@revision][:folder]``; what it names is
fetched once and is a folder from then on, known by the sha of its commit, so that everything after works
offline. Weights are taken as safetensors alone, and no code of a repository is ever run.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.hub_failures import (
    Kind,
    Reference,
    free_disk,
    gigabytes,
    passing,
    sentence,
    too_little_disk,
    unreachable,
)

REFERENCE = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./-]+))?")
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
UNUSED = ("original/*", "onnx/*", "consolidated*", "*activations_store_state*", "*sparsity.safetensors", ".*")
TRIES = 5
PAUSE = 2.0  # seconds before the second try; each further one waits twice as long
_told: set[str] = set()


@dataclass(frozen=True)
class Copy:
    """A folder of the cache, and the commit that it holds."""

    path: Path
    sha: str


@dataclass(frozen=True)
class File:
    """A file of a repository: its name, its size in bytes, and whether the cache holds it."""

    name: str
    size: int
    cached: bool


def parse(reference: str) -> Reference:
    """The parts of ``owner/name[@revision][:folder]``.

    Raises:
        UserError: the reference does not read so.
    """
    found = REFERENCE.fullmatch(reference)
    if found is None:
        raise UserError(f"{reference!r} is no reference to the hub: write owner/name, owner/name@revision or "
                        "owner/name@revision:folder.")  # fmt: skip
    return Reference(*found.groups())


def is_local(reference: str) -> bool:
    """Whether this names a folder of the machine: one that is there, or that cannot be a name on the hub."""
    if paths.resolve(reference).exists() or REFERENCE.fullmatch(reference) is None:
        return True
    return reference.startswith(("data/", "./", "../"))


def directory(reference: str, patterns: Sequence[str] | None = None) -> Path:
    """Where a model or an autoencoder lies: a local directory as it is named, or a copy of the hub's.

    Raises:
        UserError, MissingArtefact: as for :func:`local_copy`.
    """
    return paths.resolve(reference) if is_local(reference) else local_copy(reference, patterns=patterns).path


def local_copy(reference: str, kind: Kind = "model", patterns: Sequence[str] | None = None) -> Copy:
    """Fetch what a reference names, as far as the cache lacks it; what is pinned and held asks no network.

    A file counts only once it is whole. An unavailable hub or a file that ends half way is tried again a few
    times, going on where it stopped; every such try is told on the standard error stream.

    Args:
        reference: ``owner/name[@revision][:folder]``.
        kind: "model" (weights, configurations, tokenizers) or "dataset" (all files).
        patterns: names of files to take, with ``*``, instead of those of the kind.

    Raises:
        MissingArtefact: it is not in the cache and the hub cannot be reached.
        UserError: no such repository, revision or folder; access is not granted; a wrong token; too little
            disk; or the hub failed every time.
    """
    asked = parse(reference)
    allowed, ignored = _wanted(asked, kind, patterns)
    chosen: dict[str, Any] = {
        "repo_id": asked.repo,
        "repo_type": kind,
        "revision": asked.revision,
        "allow_patterns": allowed,
        "ignore_patterns": ignored,
    }
    if (held := _held(asked, kind, chosen)) is not None:
        return _copy(asked, held)
    for attempt in range(1, TRIES + 1):
        try:
            if not constants.is_offline_mode():
                _check_disk(asked, kind, patterns)
            return _copy(asked, Path(snapshot_download(**chosen)))
        except UserError:
            raise
        except Exception as error:
            reason = passing(error)
            if (reason or unreachable(error)) and (held := _from_cache(chosen)) is not None:
                return _copy(asked, held)
            if reason is None:
                raise sentence(asked, kind, error) from error
            if attempt == TRIES:
                raise UserError(
                    f"{asked} could not be fetched in {TRIES} tries ({reason}): try again later; "
                    "what has arrived is kept."
                ) from error
            pause = PAUSE * 2 ** (attempt - 1)
            print(f"{asked}: {reason}; trying again in {pause:g} s.", file=sys.stderr)
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def files(reference: str, kind: Kind = "model", patterns: Sequence[str] | None = None) -> list[File]:
    """The files that :func:`local_copy` takes, without fetching any; asks the hub for those it does not know.

    Raises:
        UserError, MissingArtefact: as for :func:`local_copy`.
    """
    asked = parse(reference)
    try:
        return _files(asked, kind, patterns)
    except UserError:
        raise
    except Exception as error:
        raise sentence(asked, kind, error) from error


def refusal(reference: str, kind: Kind = "model") -> str:
    """Why the hub will not give the files of a repository, as one sentence; nothing where it will."""
    asked = parse(reference)
    try:
        HfApi().auth_check(asked.repo, repo_type=kind)
    except Exception as error:
        return "" if passing(error) is not None else str(sentence(asked, kind, error))
    return ""


def known_sha(reference: str, kind: Kind = "model") -> str | None:
    """The commit of a reference, as far as it is pinned or the cache knows it; asks no network."""
    asked = parse(reference)
    if asked.pinned:
        return asked.revision
    ref = _storage(asked, kind) / "refs" / (asked.revision or "main")
    return ref.read_text().strip() if ref.is_file() else None


def _wanted(
    asked: Reference, kind: Kind, patterns: Sequence[str] | None
) -> tuple[list[str] | None, list[str] | None]:
    """Patterns to take (None: all) and to leave out."""
    if patterns is not None:
        return list(patterns), None
    if kind == "dataset":
        return None, [".*"]
    if asked.folder:
        inside = [f"{asked.folder}/{pattern}" for pattern in ("*.safetensors", "*.json")]
        return [*inside, "config.json"], list(UNUSED)
    return list(WEIGHTS), list(UNUSED)


def _held(asked: Reference, kind: Kind, chosen: dict[str, Any]) -> Path | None:
    """The cache's folder of a commit, where it is known to be whole."""
    if not asked.pinned:
        return None
    try:
        get_cached_repo_tree(asked.repo, repo_type=kind, revision=asked.revision)
    except CachedRepoTreeNotFoundError:
        return None
    return _from_cache(chosen)


def _from_cache(chosen: dict[str, Any]) -> Path | None:
    try:
        return Path(snapshot_download(**chosen, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _copy(asked: Reference, snapshot: Path) -> Copy:
    sha = snapshot.name
    if not asked.pinned and str(asked) not in _told:
        _told.add(str(asked))
        branch = asked.revision or "main"
        print(f"{asked.repo}: {branch} is now {sha}; pin it as {asked.repo}@{sha}.", file=sys.stderr)
    path = snapshot / asked.folder if asked.folder else snapshot
    if not path.is_dir():
        what = f"the folder {asked.folder}" if asked.folder else "the files asked for"
        raise MissingArtefact(f"{asked} lacks {what}, here or on the hub: name what it has.")
    return Copy(path, sha)


def _tree(asked: Reference, kind: Kind) -> list[tuple[str, int, str]]:
    """Name, size and commit of every file of the revision."""
    api = HfApi()
    sha = _now(api, asked, kind)
    try:
        listed: Iterable[Any] = get_cached_repo_tree(asked.repo, repo_type=kind, revision=sha)
    except CachedRepoTreeNotFoundError:
        if asked.pinned:  # asked without retries: says at once where the hub is out of reach
            api.repo_info(asked.repo, repo_type=kind, revision=sha)
        listed = api.list_repo_tree(asked.repo, repo_type=kind, revision=sha, recursive=True)
    return [(entry.path, entry.size, sha) for entry in listed if hasattr(entry, "size")]


def _now(api: HfApi, asked: Reference, kind: Kind) -> str:
    """The commit of a revision; of a branch or tag out of reach, the one that it named last."""
    if asked.pinned and asked.revision:
        return asked.revision
    try:
        sha = api.repo_info(asked.repo, repo_type=kind, revision=asked.revision).sha
        assert sha is not None
        return sha
    except Exception as error:
        held = known_sha(str(asked), kind)
        if held is None or not unreachable(error):
            raise
        return held


def _is_cached(asked: Reference, kind: Kind, name: str, sha: str) -> bool:
    return isinstance(try_to_load_from_cache(asked.repo, name, revision=sha, repo_type=kind), str)


def _storage(asked: Reference, kind: Kind) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{asked.repo.replace('/', '--')}"


def _files(asked: Reference, kind: Kind, patterns: Sequence[str] | None) -> list[File]:
    allowed, ignored = _wanted(asked, kind, patterns)
    listed = _tree(asked, kind)
    names = [name for name, _, _ in listed]
    kept = set(filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored))
    found = [
        File(name, size, _is_cached(asked, kind, name, sha)) for name, size, sha in listed if name in kept
    ]
    if asked.folder and not any(file.name.startswith(f"{asked.folder}/") for file in found):
        held = ", ".join(sorted({name.rsplit("/", 1)[0] for name in names if "/" in name})[:8])
        raise UserError(f"{asked} has no folder {asked.folder}: it holds {held or 'none'}.")
    return found


def _check_disk(asked: Reference, kind: Kind, patterns: Sequence[str] | None) -> None:
    """Refuse a download that does not fit; where sizes are not to be had, the download itself says why."""
    try:
        wanted = _files(asked, kind, patterns)
    except UserError:
        raise
    except Exception as error:
        if passing(error) is not None or unreachable(error):
            raise
        return
    missing = sum(file.size for file in wanted if not file.cached)
    if missing > free_disk():
        raise too_little_disk(f"{asked} needs {gigabytes(missing)}")
