"""Models, autoencoders and data sets of the Hugging Face hub, as folders of this machine's cache.

The only module that talks to the hub. A reference reads ``owner/name[@revision][:folder]``; what it names is
fetched once and is a folder from then on, known by the sha of its commit, so that everything after works
offline. Weights are taken as safetensors alone, and no code of a repository is ever run.
"""

import errno
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import HfApi, constants, errors, snapshot_download

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact, UserError

Kind = Literal["model", "dataset"]
REFERENCE = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w./-]+))?")
WEIGHTS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
UNUSED = ["original/*", "onnx/*", "consolidated*", "*activations_store_state*", "*sparsity.safetensors", ".*"]
# endings of files with rows
ROWS = (".arrow", ".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv", ".txt")
UNREACHED = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
_announced: set[str] = set()


class Reference(NamedTuple):
    """A repository of the hub, the revision asked for (None: its main branch), and a folder in it."""

    repo: str
    revision: str | None = None
    folder: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision or "") is not None


def parse(reference: str) -> Reference:
    """The parts of ``owner/name[@revision][:folder]``."""
    found = REFERENCE.fullmatch(reference)
    if found is None:
        forms = "owner/name, owner/name@revision or owner/name@revision:folder"
        raise UserError(f"{reference!r} is no reference to the hub: write {forms}.")
    return Reference(*found.groups())


def is_local(reference: str) -> bool:
    """Whether this names a folder of the machine: one that is there, or that cannot be a name on the hub."""
    if paths.resolve(reference).exists() or REFERENCE.fullmatch(reference) is None:
        return True
    return reference.startswith(("data/", "./", "../")) or Path(reference).suffix in ROWS


def directory(reference: str, patterns: Sequence[str] | None = None) -> Path:
    """Where a model or an autoencoder lies: the local directory, or the hub's by :func:`local_copy`."""
    return paths.resolve(reference) if is_local(reference) else local_copy(reference, patterns=patterns)


def local_copy(reference: str, kind: Kind = "model", patterns: Sequence[str] | None = None) -> Path:
    """The folder of what a reference names, fetched as far as the cache lacks it.

    A model's weights, configurations and tokenizer are taken, all files of a data set, or those of the given
    ``patterns``. UserError says what is in the way (MissingArtefact: not in the cache, and no network).
    """
    asked = parse(reference)
    snapshot = Path(_download(asked, kind, patterns))
    if not asked.pinned and str(asked) not in _announced:
        _announced.add(str(asked))
        now = f"{asked.repo}: {asked.revision or 'main'} is now {snapshot.name}"
        print(f"{now}; pin it as {asked.repo}@{snapshot.name}.", file=sys.stderr)
    path = snapshot / asked.folder if asked.folder else snapshot
    if not path.is_dir():
        what = f"the folder {asked.folder}" if asked.folder else "the files asked for"
        raise MissingArtefact(f"{asked} lacks {what}, here or on the hub: name what it has.")
    return path


def sizes(reference: str, kind: Kind = "model", patterns: Sequence[str] | None = None) -> tuple[int, int]:
    """Bytes of what :func:`local_copy` takes, and of what of it the cache lacks; fetches nothing."""
    try:
        files = _download(parse(reference), kind, patterns, dry_run=True)
    except MissingArtefact:  # without network: whole in the cache, or missing
        cached = Path(_download(parse(reference), kind, patterns, local_files_only=True))
        return sum(file.stat().st_size for file in cached.rglob("*") if file.is_file()), 0
    return sum(f.file_size for f in files), sum(f.file_size for f in files if f.will_download)


def dataset_files(reference: str, name: str | None = None, split: str = "train") -> list[str] | None:
    """Patterns of the files of a configuration and split of a data set, as its card says; None: all files."""
    from datasets.data_files import sanitize_patterns
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    try:
        card = local_copy(reference, "dataset", ["README.md"]) / "README.md"
        configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data)
    except (MissingArtefact, FileNotFoundError, ValueError):  # no card, or a card that says nothing of it
        return None
    files = {each: config["data_files"] for each, config in configs.items() if config.get("data_files")}
    if not files:
        return None
    chosen = name or configs.get_default_config_name() or next(iter(configs))
    if chosen not in files:
        raise UserError(f"{reference} has no configuration {name!r}: it has {', '.join(files)}.")
    splits: dict[str, list[str]] = sanitize_patterns(files[chosen])
    if split not in splits:
        raise UserError(f"{reference} has no split {split!r}: it has {', '.join(splits)}.")
    return splits[split]


def refusal(reference: str, kind: Kind = "model") -> str:
    """Why the hub will not give the files of a repository, as one sentence; empty where it will."""
    asked = parse(reference)
    try:
        HfApi().auth_check(asked.repo, repo_type=kind)
    except Exception as error:
        return str(_explained(asked, kind, error))
    return ""


def known_sha(reference: str, kind: Kind = "model") -> str | None:
    """The commit of a reference, as far as it is pinned or the cache knows it; asks no network."""
    asked = parse(reference)
    if asked.pinned:
        return asked.revision
    folder = f"{kind}s--{asked.repo.replace('/', '--')}"
    ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / (asked.revision or "main")
    return ref.read_text().strip() if ref.is_file() else None


def free_disk() -> int:
    """Bytes that are free on the disk of the cache."""
    cache = Path(constants.HF_HUB_CACHE)
    return shutil.disk_usage(next(each for each in (cache, *cache.parents) if each.exists())).free


def _download(asked: Reference, kind: Kind, patterns: Sequence[str] | None, **how: Any) -> Any:
    """What ``snapshot_download`` gives, its failures as one sentence each."""
    taken, left = (WEIGHTS, UNUSED) if kind == "model" else (["*"], [".*"])
    if asked.folder:
        taken = [f"{asked.folder}/*.safetensors", f"{asked.folder}/*.json", "config.json"]
    if patterns is not None:
        taken, left = list(patterns), []
    try:
        how |= {"allow_patterns": taken, "ignore_patterns": left}
        return snapshot_download(asked.repo, repo_type=kind, revision=asked.revision, **how)
    except Exception as error:
        raise _explained(asked, kind, error) from error


def _explained(asked: Reference, kind: Kind, error: BaseException) -> UserError:
    """What a failure means and what to do about it, as the error to raise."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{asked.repo}"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    private = f"or it is private: check the name, and for a private one {log_in}."
    unknown = f"{asked.repo} has no revision {asked.revision}: see {page}/commits/main."
    meanings: list[tuple[type[BaseException], str]] = [
        (errors.GatedRepoError, f"{asked.repo} is gated: accept its terms at {page}, and {log_in}."),
        (errors.RevisionNotFoundError, unknown),
        (errors.RepositoryNotFoundError, f"There is no {kind} {asked.repo} on the hub, {private}"),
        (errors.HfHubHTTPError, f"The hub fails at the request for {asked}: try again, or see {page}."),
    ]
    chain = [error]
    while (link := chain[-1].__cause__ or chain[-1].__context__) and link not in chain:
        chain.append(link)
    for each in chain:
        if isinstance(each, errors.HfHubHTTPError) and "Invalid credentials" in str(each):
            return UserError(f"The hub refuses the token given for {asked.repo}: {log_in} to a valid one.")
        if isinstance(each, OSError) and each.errno == errno.ENOSPC:
            return UserError(f"{asked} does not fit on the disk of the cache: set HF_HOME to a larger one.")
        for kind_of_error, meaning in meanings:
            if isinstance(each, kind_of_error):
                return UserError(meaning)
    if any(isinstance(each, UNREACHED) or "Connect" in type(each).__name__ for each in chain):
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub cannot be reached"
        hint = "run once with network, or set HF_HOME to a cache that holds it."
        return MissingArtefact(f"{asked} is not in the cache, and {why}: {hint}")
    return UserError(f"{asked} could not be fetched ({str(error).splitlines()[0]}).")
