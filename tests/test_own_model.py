"""The steps of data/README.md for a model of one's own, followed word by word: a local folder, no hub."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import miniatures as mini
import pandas as pd
import pytest
from tiny import remove_runs, write_rows

from reasoning_features import paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NAME = "own-model-of-the-test"


def section() -> str:
    text = (paths.root() / "data" / "README.md").read_text(encoding="utf-8")
    return text.split("## Your own model, step by step")[1].split("\n## ")[0]


@pytest.fixture
def home() -> Iterator[Path]:
    """The folder that the steps call data/mine."""
    yield paths.root() / "data" / NAME
    remove_runs(NAME)


def test_the_steps(home):
    # step 1
    rows = mini.thoughts()
    general = [mini.render(turns) for turns in mini.conversations()]
    write_rows(home / "thinking.jsonl", [{"text": row["text"]} for row in rows])
    write_rows(home / "general.jsonl", [{"text": text} for text in general])
    sums = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(12)]
    write_rows(home / "problems.jsonl", sums)
    mini.make_tokenizer(home / "model", [row["text"] for row in rows] + general, reasoning=True)
    mini.make_model(home / "model", "llama", seed=0)
    # step 2
    written = re.search(r"```yaml\n(.*?)\n *```", section(), re.DOTALL)
    profile = paths.root() / f"{NAME}.yaml"
    profile.write_text(textwrap.dedent(written[1]).replace("data/mine", f"data/{NAME}"))
    # steps 3 and 4
    commands = [line for line in re.findall(r"`(make [^`]*)`", section()) if "mine.yaml" in line]
    assert [shlex.split(command)[1] for command in commands] == ["nb-02", "all"]
    options = {"cwd": paths.root(), "env": os.environ | {"HF_HUB_OFFLINE": "1"}}
    for command in commands:
        given = [*shlex.split(command.replace("mine.yaml", str(profile))), f"VENV={sys.prefix}"]
        made = subprocess.run(given, capture_output=True, text=True, **options)
        assert made.returncode == 0, made.stderr[-2000:]
    assert (home / "autoencoder" / "cfg.json").is_file()
    figures = paths.RunPaths(NAME).figures
    assert {path.name[:2] for path in figures.glob("*.md")} >= {"01", "02", "03", "04", "05", "06"}
    assert len(pd.read_csv(figures / "x03_top_features.csv")) == 10
