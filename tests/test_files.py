from __future__ import annotations

from pathlib import Path

import pytest

from reasoning_features.paths import RunPaths, relative, resolve, root


def test_the_root_holds_the_package_wherever_the_caller_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (root() / "reasoning_features" / "settings.py").is_file()
    assert resolve("data/x") == root() / "data" / "x"
    assert resolve(tmp_path) == tmp_path and resolve("~/mine.yaml") == tmp_path / "mine.yaml"


def test_relative_paths_never_name_folders_outside_the_repository(tmp_path: Path) -> None:
    assert relative(root() / "data" / "organism") == relative("data/organism") == "data/organism"
    assert relative(tmp_path / "model") == "model"


def test_runs_have_folders_of_their_own() -> None:
    one, other = RunPaths("organism"), RunPaths("organism+alpha=0.3")
    assert one.figures == root() / "figures" / "organism" and one.artefacts.parent == one.data
    assert len({p for run in (one, other) for p in (run.data, run.figures, run.build)}) == 6
