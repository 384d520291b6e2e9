"""Moved to :mod:`reasoning_features.runs.shards`."""

from reasoning_features.runs.shards import (
    Arrays,
    Work,
    checksum,
    complete,
    drop_others,
    intact_arrays,
    map_shards,
    read_arrays,
    shard_file,
)

__all__ = [
    "Arrays",
    "Work",
    "checksum",
    "complete",
    "drop_others",
    "intact_arrays",
    "map_shards",
    "read_arrays",
    "shard_file",
]
