"""Rows of data sets and files, read by one checking reader: values as they are written, faults named.

Numbers, dates and texts stay strings as their file has them, or None; nothing infers a type. What is read
lies on disk, known by the content of its files.
"""

import csv
import glob
import gzip
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from reasoning_features import hub, paths
from reasoning_features.errors import UserError
from reasoning_features.files import file_digest
from reasoning_features.organism.language import END_THINK, THINK
from reasoning_features.settings import ProblemSource, TextSource


def _written(value: Any) -> Any:
    """A number, date or text as it is written; half a character, which UTF-8 cannot hold, as U+FFFD."""
    if isinstance(value, list | dict | bytes):
        return value
    text = value if isinstance(value, str) else getattr(value, "isoformat", str(value).lower)()
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _said(content: Any) -> str:
    """What a turn says: a text, nothing, or the texts of parts, where images and the like are named."""
    parts = content if isinstance(content, list) else [content]
    texts: list[Any] = []
    for part in (p if isinstance(p, dict) else {"text": "" if p is None else p} for p in parts):
        thought = part.get("thinking")
        named = f"[{part.get('type')}]" if thought is None else f"{THINK}\n{thought}\n{END_THINK}\n\n"
        texts.append(named if part.get("text") is None else part["text"])
    return "".join(map(_STRING[0].validate_python, texts))


class _Turn(BaseModel):
    """What was thought, where it stands apart, comes before what is said."""

    role: str = Field(min_length=1)
    content: Annotated[str, BeforeValidator(_said)] = ""
    reasoning_content: str | None = Field(default=None, exclude=True)

    def model_post_init(self, _: Any) -> None:
        if self.reasoning_content:
            self.content = _said([{"thinking": self.reasoning_content}]) + self.content


# what a column holds
_STRING = TypeAdapter[Any](Annotated[str, BeforeValidator(_written)]), "texts or numbers"
_IDS = TypeAdapter[Any](list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]]), "token ids"
_TURNS = TypeAdapter[Any](list[_Turn]), "turns with role and content"


_say = cache(lambda message: print(message, file=sys.stderr))


def tell_left_out(dataset: str, n: int, faults: Mapping[str, Sequence[int]]) -> None:
    """Say once which of a dataset's ``n`` rows have which fault. UserError: every row has one."""
    for fault, rows in faults.items():
        numbers = ", ".join(map(str, rows[:5])) + ", …" * (len(rows) > 5)
        told = f"{len(rows)} of {n} rows of {dataset} {fault} (rows {numbers}): "
        if sum(map(len, faults.values())) == n:
            raise UserError(f"{told}correct them, or name another column.")
        if rows:
            _say(f"{told}they are left out.")


def open_rows(source: TextSource | ProblemSource, columns: Sequence[str]) -> datasets.Dataset:
    """These columns of a source's rows, mapped from disk: a file is taken whole, whatever the split.

    Values are strings as they are written, or None; of a column of texts token ids or turns as well.
    UserError: nothing is there, it cannot be fetched or read, is not UTF-8, has no such configuration, split
    or column, or a value is of another kind.
    """
    place, split, local = paths.resolve(source.dataset), source.split, hub.is_local(source.dataset)
    which: dict[str, Any] = {"name": source.name}
    if not local:
        patterns = hub.dataset_files(source.dataset, source.name, split)
        place = hub.local_copy(source.dataset, "dataset", patterns)
        which, split = (which, split) if patterns is None else ({"data_files": patterns}, "train")
    elif not place.exists():
        raise UserError(f"There is no dataset in {source.dataset}: give a folder, a file, or owner/name.")
    datasets.disable_progress_bars()  # a file that is read from disk needs none
    try:
        found: Any = {split: [place]}
        if place.is_dir():
            found = datasets.load_dataset_builder(str(place), **which).config.data_files or {}
        if split not in found:
            raise UserError(f"{source.dataset} has no split {split!r}: it has {', '.join(map(str, found))}.")
        files = tuple(map(str, found[split]))  # those of the hub name their commit
        kinds = {_kind(file) for file in place.rglob("*")} & {".csv", ".jsonl", ".parquet"}
        if len(kinds) > 1:  # of which a folder's first would be read alone
            several = ", ".join(sorted(kinds))
            raise UserError(f"{source.dataset} has files of several kinds ({several}): name one of them.")
        versions = tuple(file_digest(Path(file)) for file in (*(files if local else ()), __file__))
        given = {"source": source, "files": files, "versions": versions, "columns": tuple(columns)}
        stored = datasets.Features(dict.fromkeys(columns, datasets.Value("large_string")))
        make = {"features": stored, "gen_kwargs": given, "writer_batch_size": 100}  # texts may be long
        rows = datasets.Dataset.from_generator(_checked_rows, **make)
    except Exception as error:  # whatever a damaged file leads to
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        if isinstance(cause, UserError):
            raise cause from None
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
        told = f"The dataset {source.dataset} cannot be read ({reason})"
        raise UserError(f"{told}: correct its name, split or file.") from error
    return rows.with_transform(lambda batch: {k: [json.loads(v or "null") for v in batch[k]] for k in batch})


def _checked_rows(
    source: TextSource | ProblemSource, files: Sequence[str], versions: Sequence[str], columns: Sequence[str]
) -> Iterator[dict[str, str | None]]:
    """The rows of files, each value as JSON; ``versions`` only tell what is kept from that of other files."""
    names: dict[str, Any] = {}
    text = source.column if isinstance(source, TextSource) else None
    kinds: dict[str, tuple[TypeAdapter[Any], str]] = {}
    for number, row in enumerate(_raw_rows(files, columns)):
        names |= row
        kept: dict[str, str | None] = dict.fromkeys(columns)
        for column in columns:
            value = row.get(column)
            if value in (None, "", []) or value != value:  # NaN is not equal to itself
                continue
            item = value[0] if isinstance(value, list) else value
            kind = {int: _IDS, dict: _TURNS}.get(type(item), _STRING) if column == text else _STRING
            cell, what = kind = kinds.setdefault(column, kind)  # the first row decides
            try:
                value = cell.validate_python(value)
            except ValidationError as error:
                first = error.errors()[0]
                why = " ".join(map(str, [*first["loc"], first["msg"].splitlines()[0]]))
                lacks = f"{source.dataset} holds {what}, but not in row {number} ({why})"
                raise UserError(f"The column {column!r} of {lacks}: correct it, or name another.") from None
            said = [turn.content for turn in value] if kind is _TURNS else [value]
            if kind is _IDS or any(each.strip() for each in said):
                kept[column] = cell.dump_json(value).decode()
        yield kept
    if lacking := [column for column in columns if column not in names]:
        there = ", ".join(names) or "no rows"
        raise UserError(f"The dataset {source.dataset} has no column {lacking[0]!r}: it has {there}.")


def _csv_rows(lines: Any, name: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # of the whole process: a text may be long
    reader = csv.DictReader(lines, delimiter="\t" if _kind(name) == ".tsv" else ",", strict=True)
    header = list(reader.fieldnames or [])
    if twice := [column for column in header if header.count(column) > 1]:
        raise UserError(f"{name} has the column {twice[0]!r} twice: rename one.")
    for row in reader:
        if None in row:
            raise UserError(f"Line {reader.line_num} of {name} has more fields than its first: quote commas.")
        yield row


def _json_rows(lines: Any, name: str) -> Iterator[dict[str, Any]]:
    """The objects of a file, one on each line or all in one list; a value alone is of the column ``text``."""
    for number, line in enumerate(lines, 1):
        line = line.strip("\ufeff \t\r\n")
        try:
            text = line + lines.read() if line.startswith("[") else f"[{line}]"
            rows = json.loads(text, strict=False, parse_float=str, parse_constant=lambda _: None)  # NaN: None
        except json.JSONDecodeError as error:
            raise UserError(f"Line {number} of {name} is no JSON ({error}): correct it.") from error
        yield from (row if isinstance(row, dict) else {"text": row} for row in rows)


_READERS = dict.fromkeys((".json", ".jsonl", ".ndjson"), _json_rows) | {".csv": _csv_rows, ".tsv": _csv_rows}
_READERS[".txt"] = lambda lines, name: ({"text": line.rstrip("\r\n")} for line in lines)


def _kind(file: str | Path) -> str:
    """The ending of a file's name, whatever its case, and whether it is gzipped or not."""
    return Path(str(file).lower().removesuffix(".gz")).suffix


def _raw_rows(files: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of files by the names of columns, of which only ``columns`` surely have values."""
    for file in map(Path, files):
        if (kind := _kind(file)) not in hub.ROWS:
            raise UserError(f"{file.name} is of no kind that is read: give {', '.join(hub.ROWS)}.")
        if (read := _READERS.get(kind)) is None:  # columns have types of their own
            which = {"data_files": glob.escape(file.name), "split": "train", "streaming": True}
            rows = datasets.load_dataset(str(file.parent), **which)
            names = dict.fromkeys(rows.column_names or [])
            rows = rows.select_columns([column for column in columns if column in names]) if names else rows
            single = [c for c in names if getattr((rows.features or {}).get(c), "dtype", "") == "float32"]
            for row in rows:  # 0.1 in float32 is not 0.10000000149011612
                yield names | row | {c: row[c] and str(np.float32(row[c])) for c in single}
            continue
        with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as binary:
            lines = TextIOWrapper(binary, encoding="utf-8-sig", newline="")
            try:
                yield from read(lines, file.name)
            except UnicodeDecodeError as error:
                place = binary.tell() - len(error.object) + error.start
                raise UserError(f"{file.name} is not UTF-8 at byte {place}: save it as UTF-8.") from error
