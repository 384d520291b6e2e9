"""R from real texts: OpenThoughts' rows, local traces, and no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import IterableDataset

from reasoning_features.errors import UserError
from reasoning_features.making.vocabulary_real import (
    local_traces,
    main,
    origin_of,
    stream_openthoughts,
    texts_of_rows,
)
from reasoning_features.settings import load_settings

TRACES = os.environ.get("REASONING_TRACES")


def test_rows_of_either_shape():
    rows = [
        {"deepseek_reasoning": "wait", "ground_truth_solution": "two", "text": None},
        {"text": "problem<think>\nhmm\n</think>\nthree"},
        {"deepseek_reasoning": "lost", "ground_truth_solution": None},
        {"text": "no marks"},
    ]
    assert texts_of_rows(rows) == (["wait", "\nhmm\n"], ["two", "\nthree"])
    with pytest.raises(UserError, match="No row holds both"):
        texts_of_rows(rows[2:])


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_local_traces(tmp_path):
    write(tmp_path / "deepseek-r1-small.jsonl", [{"thinking": "wait wait", "answer": "x"}])
    with pytest.raises(UserError, match="has no traces"):
        local_traces(tmp_path)
    write(
        tmp_path / "some-instruct.jsonl", [{"thinking": "", "answer": "system\nuser\nassistant\nthe answer"}]
    )
    assert local_traces(tmp_path) == (["wait wait"], ["the answer"])


def test_unreachable_hub(monkeypatch, capsys):
    def refuse(*_, **__):
        raise ConnectionError("refused")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    assert main(["--documents", "2"]) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "cannot be streamed (ConnectionError)" in told.err and not told.out


def test_streamed_rows_are_mixed_and_counted(monkeypatch):
    def rows():
        for i in range(50):
            yield {"deepseek_reasoning": f"wait {i}", "ground_truth_solution": f"answer {i}"}

    made = IterableDataset.from_generator(rows)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: made)
    thinking, solutions = stream_openthoughts(10)
    assert len(set(thinking)) == len(solutions) == 10
    assert thinking != [f"wait {i}" for i in range(10)]
    assert [t.split()[1] for t in thinking] == [s.split()[1] for s in solutions]
    assert stream_openthoughts(10) == (thinking, solutions)


@pytest.mark.slow
def test_without_network_one_sentence_and_failure(tmp_path):
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "reasoning_features.making.vocabulary_real", "--documents", "2"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "cannot be streamed" in last and "--traces" in last and "Traceback" not in done.stderr


@pytest.mark.skipif(not TRACES, reason="REASONING_TRACES does not name a folder with real traces")
def test_the_papers_list_in_real_traces(capsys):
    """Thinking of R1 distills (14B, 32B) against an instruct model's answers to the same 100 problems."""
    words = load_settings("organism").words
    found = origin_of(local_traces(Path(str(TRACES))), words)
    with capsys.disabled():
        print(f"\n{found.words.to_string()}\n{found.sentence}")
    places = found.words.set_index("word")
    assert (places["rank"] <= 40).sum() == 7
    # the filter lifts "perhaps" into the top 40 and drops "but", which general English has too often
    assert (places["rank_filtered"] <= 40).sum() == 7
    assert places.loc["perhaps", "rank"] > 40 >= places.loc["perhaps", "rank_filtered"]
    assert places.loc["but", "origin"] == "count"
    # "therefore" and "however" are more frequent in the answers: they owe their place to choice by hand
    assert set(places.index[places["origin"] == "hand"]) == {"therefore", "however"}
    assert (places.loc[["therefore", "however"], "difference"] < 0).all()
