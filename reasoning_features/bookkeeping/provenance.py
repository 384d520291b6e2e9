"""Moved to :mod:`reasoning_features.runs.provenance`."""

from reasoning_features.runs.provenance import Run, begin, record_artefact

__all__ = ["Run", "begin", "record_artefact"]
