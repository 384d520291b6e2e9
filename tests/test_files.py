"""What every room stands on: places of files, digests that are read once, numbers that must be finite."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from reasoning_features import files
from reasoning_features.errors import UserError, check_finite
from reasoning_features.files import file_digest
from reasoning_features.paths import relative, resolve, root


def test_the_root_is_one_wherever_the_caller_stands_and_nothing_outside_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (root() / "reasoning_features" / "settings.py").is_file()
    assert resolve("data/x") == root() / "data" / "x"
    assert resolve(tmp_path) == tmp_path and resolve("~/mine.yaml") == tmp_path / "mine.yaml"
    assert relative(root() / "data" / "organism") == relative("data/organism") == "data/organism"
    assert relative(tmp_path / "model") == "model"


def test_a_file_is_read_once_and_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "weights", []
    monkeypatch.setattr(files, "SETTLED", 0.02e9)
    sha256 = files.hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda *given: read.append(1) or sha256(*given))
    path.write_text("1 2 3")
    written = os.stat(path)
    first = file_digest(path)
    assert file_digest(path) == first and len(read) == 2  # just written: another write may bear the same time
    time.sleep(0.05)
    assert {file_digest(path) for _ in range(3)} == {first} and len(read) == 3
    path.write_text("4 5 6")
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))  # as if it had not been written
    assert file_digest(path) != first
    (tmp_path / "other").write_text("1 2 3")
    (tmp_path / "other").replace(path)
    assert file_digest(path) == first


def test_the_first_that_is_not_finite_is_told_and_finite_numbers_are_given_back():
    for values, place in {
        torch.tensor([[1.0, -math.inf], [math.nan, math.inf]], requires_grad=True): r" \(first at \[0, 1\]\)",
        torch.tensor([1.0, math.nan]).bfloat16(): r" \(first at \[1\]\)",
        np.float64("nan"): "",
    }.items():
        with pytest.raises(UserError, match=f"^A weight is not finite{place}: raise it.$"):
            check_finite(values, "A weight", "raise it")
    # of the last two the sums are not finite
    for values in (np.empty((0, 3)), torch.tensor(3), torch.full((9,), 6e4).half(), np.full(9, -1e308)):
        assert check_finite(values, "A weight") is values
