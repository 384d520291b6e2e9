"""Notebooks on text of which nothing else is known: they run through, and say what cannot be tested."""

from __future__ import annotations

import shutil

import papermill
import pytest

from reasoning_features import paths
from reasoning_features.claims import UNTESTABLE
from reasoning_features.files import read_json
from reasoning_features.settings import load_settings


@pytest.mark.slow
def test_steering_without_problems(tmp_path):
    given = {"corpus": "organism-text", "seed": 3}
    held = paths.RunPaths(load_settings("smoke", **given).run)
    try:
        papermill.execute_notebook(
            paths.root() / "notebooks" / "05_steering.ipynb",
            tmp_path / "out.ipynb",
            parameters={"profile": "smoke"} | given,
            kernel_name="python3",
            progress_bar=False,
        )
        claims = read_json(held.figures / "claims_05_steering.json")
        assert len(claims) == 7 and {claim["verdict"] for claim in claims.values()} == {UNTESTABLE}
    finally:
        shutil.rmtree(held.figures, ignore_errors=True)
        shutil.rmtree(held.data, ignore_errors=True)


@pytest.mark.slow
def test_interpretation_without_labels(tmp_path):
    given = {"corpus": "organism-text", "reasoning_documents": 100, "seed": 3, "pages": 2}
    held = paths.RunPaths(load_settings("smoke", **given).run)
    try:
        papermill.execute_notebook(
            paths.root() / "notebooks" / "04_interpretation.ipynb",
            tmp_path / "out.ipynb",
            parameters={"profile": "smoke"} | given,
            kernel_name="python3",
            progress_bar=False,
        )
        claims = read_json(held.figures / "claims_04_interpretation.json")
        assert {name for name, claim in claims.items() if claim["verdict"] == UNTESTABLE} == {
            "modes", "governs", "function"
        }  # fmt: skip
        assert claims["token_driven"]["ours"] is not None
        assert (held.figures / "features" / "index.html").is_file()
        assert not (held.figures / "x04_effects.png").exists()
    finally:
        shutil.rmtree(held.figures, ignore_errors=True)
        shutil.rmtree(held.data, ignore_errors=True)
