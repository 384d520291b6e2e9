"""Datasets of the hub and local files as rows: opened, checked, split and turned into texts or token ids.

A row belongs to one split for good: what its ``split_column`` says, or else drawn from the dataset's name
and the row's number alone. So texts on which features were chosen never serve to evaluate them.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from numpy.typing import NDArray

from reasoning_features import hub, paths
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.organism.problems import Split
from reasoning_features.settings import ProblemSource, TextSource

SHARES: dict[Split, float] = {"selection": 0.45, "evaluation": 0.45, "training": 0.10}
"""Shares of a dataset's rows."""
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
"""R1's marks of turns: the released script puts them before each turn of a conversation."""
_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class TextRows:
    """The rows of a source of texts.

    Attributes:
        source: where they come from.
        name: the dataset's name, without its owner and revision.
        rows: the dataset, mapped from disk.
        tokens: whether the column holds token ids.
    """

    source: TextSource
    name: str
    rows: datasets.Dataset
    tokens: bool

    @property
    def content(self) -> str:
        """Digest of the number of rows and of 64 of them: tells what was read, wherever it lies."""
        some = np.unique(np.linspace(0, len(self.rows) - 1, 64).astype(int)).tolist()
        values = self.rows[some][self.source.column]
        return hashlib.sha256(repr((len(self.rows), values)).encode()).hexdigest()

    def order(self, seed: int, split: Split | None = None) -> NDArray[np.int64]:
        """Numbers of the rows, of one split or of all, in a seeded order.

        It depends on the dataset, not on the column: two columns of one dataset are read in the same rows.

        Raises:
            UserError: the ``split_column`` has no row of this split.
        """
        column = self.source.split_column
        if split is None:
            mine = np.arange(len(self.rows))
        elif column is None:
            mine = split_rows(self.name, len(self.rows), split)
        else:
            mine = np.flatnonzero([told == split for told in self.rows[column]])
            if not len(mine):
                raise UserError(
                    f"The column {column!r} of {self.source.dataset} says of no row that it is for {split}: "
                    f"name another as `split_column`, with {', '.join(SHARES)} in it."
                )
        return np.random.default_rng([seed, stable_number(self.name)]).permutation(mine)

    def texts(self, rows: list[int], tokenizer: Any) -> list[str]:
        """The texts of some rows; empty where a row has none."""
        return [self.text_of(value, tokenizer) for value in self.rows[rows][self.source.column]]

    def ids(self, rows: list[int]) -> list[NDArray[np.int32]]:
        """The token ids of some rows, where the column holds token ids."""
        return [np.asarray(value, dtype=np.int32) for value in self.rows[rows][self.source.column]]

    def domains(self, rows: list[int]) -> list[str]:
        """The domain of each row: what the column of domains says, else the dataset's name."""
        if self.source.domain is None:
            return [self.name] * len(rows)
        return [str(value or "other") for value in self.rows[rows][self.source.domain]]

    def text_of(self, value: Any, tokenizer: Any) -> str:
        """A row's text: of a conversation its turns with their marks, of token ids what they say."""
        if value is None:
            return ""
        if self.tokens:
            return str(tokenizer.decode(value))
        return value if isinstance(value, str) else conversation_text(value, tokenizer)


def open_texts(source: TextSource) -> TextRows:
    """Opens a source of texts and checks its columns.

    Raises:
        UserError: the dataset, its configuration, split or a column is not there, or the column holds neither
            texts nor conversations nor token ids.
    """
    rows = open_rows(source)
    named = [source.column, source.domain, source.split_column]
    columns = list(dict.fromkeys(column for column in named if column is not None))
    for column in columns:
        check_column(source, rows, column)
    rows = rows.select_columns(columns)  # others are not to be decoded with every row
    first = next((value for value in rows[: min(100, len(rows))][source.column] if value), "")
    whole = isinstance(first, (list, np.ndarray)) and all(
        isinstance(item, (int, np.integer)) for item in first
    )
    turns = isinstance(first, list) and all(isinstance(item, dict) and "content" in item for item in first)
    if not (isinstance(first, str) or whole or turns):
        raise UserError(
            f"The column {source.column!r} of {source.dataset} holds neither texts, nor conversations (turns "
            "with role and content), nor token ids: name another as `column`."
        )
    return TextRows(source, dataset_name(source.dataset), rows, whole)


def open_rows(source: TextSource | ProblemSource) -> datasets.Dataset:
    """The rows of a source, mapped from disk: a file is taken whole, whatever the split.

    Raises:
        UserError: nothing is there, it cannot be fetched or read, or has no such configuration or split.
    """
    place = paths.resolve(source.dataset)
    if place.is_file():
        if place.suffix not in _FORMATS:
            raise UserError(f"The file {source.dataset} must be one of {', '.join(_FORMATS)}.")
        return _loaded(source, _FORMATS[place.suffix], data_files=str(place), split="train")
    if not hub.is_local(source.dataset):
        return _from_hub(source)
    if not place.is_dir():
        raise UserError(f"There is no dataset in {source.dataset}: give a folder, a file, or owner/name.")
    return _loaded(source, str(place), name=source.name, split=source.split)


def _from_hub(source: TextSource | ProblemSource) -> datasets.Dataset:
    """The rows of a dataset of the hub: only its configuration's files, where its card names them."""
    patterns = hub_files(source)
    folder = hub.local_copy(source.dataset, "dataset", patterns).path
    if patterns is None:
        return _loaded(source, str(folder), name=source.name, split=source.split)
    found = sorted({str(file) for pattern in patterns for file in folder.glob(pattern)})
    kinds = [kind for ending, kind in _FORMATS.items() if found and ending in Path(found[0]).suffixes]
    if not kinds:
        raise UserError(f"The dataset {source.dataset} holds no {', '.join(_FORMATS)} in {patterns}.")
    return _loaded(source, kinds[0], data_files=found, split="train")


def hub_files(source: TextSource | ProblemSource) -> list[str] | None:
    """Patterns of a dataset's files that hold this configuration and split, from its card; None: all files.

    Raises:
        UserError: the card knows no such configuration or split, or as :func:`hub.local_copy`.
    """
    try:
        card = hub.local_copy(source.dataset, "dataset", ["README.md"]).path / "README.md"
        parts = card.read_text(encoding="utf-8").split("---\n")
        told = (yaml.safe_load(parts[1]) if len(parts) > 2 else None) or {}
    except (MissingArtefact, FileNotFoundError, yaml.YAMLError):  # no card, or none that tells
        return None
    files = {each.get("config_name", "default"): each.get("data_files") for each in told.get("configs", [])}
    if not any(files.values()):
        return None
    name = source.name or next((n for n in ("default", *files) if n in files), "")
    if not files.get(name):
        raise UserError(f"{source.dataset} has no configuration {source.name!r}: it has {', '.join(files)}.")
    splits: dict[str, list[str]] = {}
    for each in _listed(files[name]):
        given = each if isinstance(each, dict) else {"split": "train", "path": each}
        splits.setdefault(given["split"], []).extend(_listed(given["path"]))
    if source.split not in splits:
        raise UserError(f"{source.dataset} has no split {source.split!r}: it has {', '.join(splits)}.")
    return splits[source.split]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _loaded(source: TextSource | ProblemSource, path: str, **options: Any) -> datasets.Dataset:
    try:
        with quiet():
            rows = datasets.load_dataset(path, **options)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(
            f"The dataset {source.dataset} cannot be read ({reason}): correct its name, split or file."
        ) from error
    if len(rows) == 0:
        raise UserError(f"The dataset {source.dataset} has no rows: name another.")
    return rows


def check_column(source: TextSource | ProblemSource, rows: datasets.Dataset, column: str) -> None:
    """Raises a UserError where a column is not there."""
    if column not in rows.column_names:
        raise UserError(
            f"The dataset {source.dataset} has no column {column!r}: it has {', '.join(rows.column_names)}."
        )


def conversation_text(turns: list[dict[str, Any]], tokenizer: Any) -> str:
    """A conversation as one text, as the released ``prepare_lmsys_dataset.py`` renders it.

    A tokenizer without R1's marks renders it by its own chat template; one without a template gets the
    turns' contents with blank lines between.
    """
    vocabulary = tokenizer.get_vocab()
    if USER not in vocabulary or ASSISTANT not in vocabulary:
        if tokenizer.chat_template is None:
            return "\n\n".join(str(turn["content"]) for turn in turns)
        return without_bos(str(tokenizer.apply_chat_template(turns, tokenize=False)), tokenizer)
    marks, parts = {"user": USER, "assistant": ASSISTANT}, []
    for place, turn in enumerate(turns):
        parts.append(marks.get(turn["role"], "") + str(turn["content"]))
        if turn["role"] == "assistant" and place < len(turns) - 1:
            parts.append(tokenizer.eos_token)
    return "".join(parts)


def without_bos(text: str, tokenizer: Any) -> str:
    """A text without the beginning-of-text token that it may begin with."""
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text


def split_rows(name: str, n: int, split: Split) -> NDArray[np.int64]:
    """Numbers of the rows of one split among a dataset's first ``n``."""
    drawn = np.random.default_rng(stable_number(name)).random(n)
    edges = np.cumsum([0.0, *SHARES.values()])
    place = list(SHARES).index(split)
    return np.flatnonzero((drawn >= edges[place]) & (drawn < edges[place + 1]))


def dataset_name(reference: str) -> str:
    """The last part of a dataset's name without its revision, or a file's name without its ending."""
    last = reference.rstrip("/").rsplit("/", 1)[-1].split("@", 1)[0]
    ending = Path(last).suffix
    return last.removesuffix(ending) if ending in _FORMATS else last


def stable_number(text: str) -> int:
    """A number of 32 bits that stands for a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within this context ``datasets`` draws no progress bars of its own."""
    before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            datasets.enable_progress_bars()
