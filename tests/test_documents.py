"""What readers are told: links lead somewhere, code can be imported, the README is short."""

import ast
import importlib
import re

import pytest

from reasoning_features.paths import root
from reasoning_features.reporting import claims

PAGES = [
    *("README.md", "data/README.md", "data/organism/README.md", "data/organism/ABOUT.md"),
    *("data/smollm2-135m/README.md", "figures/bench/README.md", "reasoning_features/README.md"),
    "reasoning_features/profiles/README.md",
]
SHOWN = [root() / "figures" / run for run in ("organism", "smollm2-135m")]
RENDERED = [str(page.relative_to(root())) for run in SHOWN for page in sorted(run.glob("[0-9]*.md"))]


@pytest.mark.parametrize("name", [*PAGES, *RENDERED])
def test_links_lead_to_files(name):
    page = root() / name
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_code_on_pages_imports_what_there_is(name):
    for block in re.findall(r"```python\n(.*?)```", (root() / name).read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.parse(block).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_the_readme_is_short_and_holds_the_headline_claims():
    text = (root() / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.encode()) <= 12_000
    table = text.partition(claims.BEGIN)[2].partition(claims.END)[0]
    headlines = [claim for claim in claims.all_claims() if claim.headline]
    assert all(claim.statement in table for claim in headlines)
    assert all(f"notebooks/{path.name}" in text for path in (root() / "notebooks").glob("*.ipynb"))
