"""Notebooks on text of which nothing else is known: they run through, and say what cannot be tested."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import papermill
import pytest

from reasoning_features import paths
from reasoning_features.files import read_json
from reasoning_features.reporting.claims import UNTESTABLE
from reasoning_features.settings import load_settings


@contextlib.contextmanager
def executed(notebook: str, folder: Path, **given: object) -> Iterator[paths.RunPaths]:
    """Where a notebook's results lie, in smoke on text without labels; they are gone afterwards."""
    given = {"corpus": "organism-text", "seed": 3, **given}
    held = paths.RunPaths(load_settings("smoke", **given).run)
    try:
        papermill.execute_notebook(
            paths.root() / "notebooks" / f"{notebook}.ipynb",
            folder / "out.ipynb",
            parameters={"profile": "smoke", "changes": given},
            kernel_name="python3",
            progress_bar=False,
        )
        yield held
    finally:
        shutil.rmtree(held.figures, ignore_errors=True)
        shutil.rmtree(held.data, ignore_errors=True)


@pytest.mark.slow
def test_interpretation_without_labels(tmp_path):
    with (
        executed("03_reason_score", tmp_path, reasoning_documents=100),
        executed("04_interpretation", tmp_path, reasoning_documents=100, pages=2) as held,
    ):
        claims = read_json(held.figures / "claims_04_interpretation.json")
        assert {name for name, claim in claims.items() if claim["verdict"] == UNTESTABLE} == {
            "modes",
            "function",
        }
        assert claims["token_driven"]["ours"] is not None
        assert (held.figures / "features" / "index.html").is_file()
