"""The environment says the same in all its files, and holds nothing that is not used."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from reasoning_features.paths import root

PROJECT = tomllib.loads((root() / "pyproject.toml").read_text())["project"]
LINES = (root() / "requirements.lock").read_text().splitlines()
LOCK = [line.split("==") for line in LINES if not line.startswith("#")]
CONDA = yaml.safe_load((root() / "environment.yml").read_text())["dependencies"]


def test_the_lock_is_exact_public_versions_sorted_for_the_oldest_python_that_is_promised():
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    assert sorted(LOCK, key=lambda line: line[0]) == LOCK
    for name, version in LOCK:
        assert re.fullmatch(r"[a-z0-9-]+", name) and Version(version).local is None, name
        wanted = importlib.metadata.metadata(name)["Requires-Python"] or ""
        assert SpecifierSet(wanted).contains(oldest), f"{name} needs Python {wanted}"


def test_the_lock_satisfies_every_range_and_conda_gets_it_with_the_same_python():
    locked = {canonicalize_name(name): version for name, version in LOCK}
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)], prereleases=True), text
    python = f"python{PROJECT['requires-python']}"
    assert [python, "pip", {"pip": ["-r requirements.lock", "-e ."]}] == CONDA


def test_a_notebook_does_not_open_with_a_warning_about_widgets():
    warns = "warnings.warn('IProgress not found. Please update jupyter and ipywidgets.')"
    code = f"import warnings, reasoning_features; {warns}"
    ran = subprocess.run([sys.executable, "-c", code], cwd=root(), capture_output=True, text=True, check=True)
    assert "IProgress" not in ran.stderr
