from __future__ import annotations

import pytest
from stub_notebooks import write_notebook

from reasoning_features.bookkeeping import sources
from reasoning_features.errors import UserError


@pytest.fixture
def package(tmp_path):
    """one imports two; two imports the subpackage's three; four stands alone."""
    folder = tmp_path / "package"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text("import json\nfrom package import two\n")
    (folder / "two.py").write_text("def late():\n    from package.sub.three import x\n")
    (folder / "sub" / "__init__.py").write_text("")
    (folder / "sub" / "three.py").write_text("x = 1\nfrom .. import one\n")
    (folder / "four.py").write_text("")
    return folder


def names(code, package):
    return [name.removeprefix("package/") for name in sources.imported_sources([code], package)]


def test_imports_are_followed_through_modules_functions_and_circles(package):
    reached = ["__init__.py", "one.py", "sub/__init__.py", "sub/three.py", "two.py"]
    assert names("from package.one import f", package) == reached
    assert names("%matplotlib inline\nimport package.two as t", package) == reached
    assert names("from package import four", package) == ["__init__.py", "four.py"]
    assert names("import numpy", package) == []


def test_a_change_in_a_source_changes_only_its_own_digest(package):
    before = sources.imported_sources(["import package.one"], package)
    (package / "two.py").write_text("y = 2\n")
    after = sources.imported_sources(["import package.one"], package)
    # two no longer imports three
    assert set(before) - set(after) == {"package/sub/__init__.py", "package/sub/three.py"}
    assert [n for n in after if after[n] != before[n]] == ["package/two.py"]


def test_what_a_module_reads_from_yaml_of_its_name_counts(package):
    (package / "four.yaml").write_text("- not: python")
    assert names("from package import four", package) == ["__init__.py", "four.py", "four.yaml"]


def test_the_package_itself_can_be_followed():
    found = sources.imported_sources(["from reasoning_features.reporting.tables import save_table"])
    assert (
        "reasoning_features/bookkeeping/provenance.py" in found and "reasoning_features/settings.py" in found
    )


def test_only_code_cells_count_and_a_missing_notebook_is_named(repository):
    path = write_notebook(repository, "01_one", "x = 1")
    cells = sources.code_cells(sources.notebook_path("01_one"))
    assert cells[-1] == "x = 1" and len(cells) == 3
    assert path.is_file()
    with pytest.raises(UserError, match="02_two"):
        sources.notebook_path("02_two")


def test_the_digest_keeps_the_borders_of_texts():
    assert sources.digest(["ab", "c"]) != sources.digest(["a", "bc"])
