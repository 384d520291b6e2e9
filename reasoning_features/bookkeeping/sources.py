"""Moved to :mod:`reasoning_features.runs.provenance`."""

from reasoning_features.runs.provenance import PACKAGE, code_cells, digest
from reasoning_features.runs.provenance import imported_files as imported_sources

__all__ = ["PACKAGE", "code_cells", "digest", "imported_sources"]
