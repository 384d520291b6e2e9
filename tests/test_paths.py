from __future__ import annotations

from pathlib import Path

from reasoning_features.paths import RunPaths, relative, resolve, root


def test_the_root_holds_the_package_wherever_the_caller_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert (root() / "reasoning_features" / "paths.py").is_file()
    assert resolve("data/x") == root() / "data" / "x"
    assert resolve(tmp_path) == tmp_path


def test_relative_paths_never_name_folders_outside_the_repository(tmp_path):
    assert relative(root() / "data" / "organism") == "data/organism"
    assert relative("data/organism") == "data/organism"
    assert relative(tmp_path / "model") == "model"


def test_runs_have_folders_of_their_own():
    one, other = RunPaths("organism"), RunPaths("organism+alpha=0.3")
    assert one.figures == root() / "figures" / "organism"
    folders = [p for run in (one, other) for p in (run.data, run.figures, run.build)]
    assert len(set(folders)) == 6
    assert one.artefacts.parent == one.data
    assert isinstance(one.build, Path)
