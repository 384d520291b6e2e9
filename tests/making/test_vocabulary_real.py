"""R from real texts: two models on the same problems."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from reasoning_features.making import vocabulary_real
from reasoning_features.making.vocabulary_real import main, same_problems
from reasoning_features.settings import load_settings
from reasoning_features.text.vocabulary import rank_words, vocabulary_origin

ROWS = {
    "thinking/deepseek-r1": [
        {"problem": "b", "text": "b\n<think>\nWait, wait. But hmm.\n</think>\n\nIt is b."},
        {"problem": "a", "text": "a\n<think>\nLet me see.\n</think>\n\nIt is a."},
    ],
    "plain/qwen2.5-32b-instruct": [{"problem": name, "solution": f"So {name}."} for name in "abc"],
}


def test_what_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(vocabulary_real, "read_rows", ROWS.__getitem__)
    monkeypatch.setattr(vocabulary_real, "RunPaths", lambda _: SimpleNamespace(figures=tmp_path / "figures"))
    monkeypatch.setattr(vocabulary_real, "TOP", 5)
    main()
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"f02_vocabulary.{end}" for end in ("png", "pdf", "csv", "json")} | {
        f"f05_reasoning_words.{end}" for end in ("md", "tex", "csv", "json")
    }
    drawn = pd.read_csv(tmp_path / "figures" / "f02_vocabulary.csv")
    # of seven words two are "wait"; equal differences are in the words' order
    assert drawn["word"].tolist() == ["wait", "but", "hmm", "let", "let me"]
    assert drawn["p_think"].tolist() == pytest.approx([2 / 7] + [1 / 7] * 4)
    told = json.loads((tmp_path / "figures" / "f02_vocabulary.json").read_text())
    for part in ("DeepSeek-R1's thinking", "Qwen2.5-32B-Instruct's solutions", "the same 2 problems"):
        assert part in told["caption"]
    assert "4 of 10 words of R are in the top 5 by count" in told["caption"]
    assert "4 of 10 words of R" in capsys.readouterr().out


def test_the_papers_list_in_real_thinking(pinned_files):
    thinking, solutions = same_problems()
    assert len(thinking) == len(solutions) == 633
    ranking = rank_words(thinking, solutions)
    places = vocabulary_origin(ranking, load_settings("organism").words).set_index("word")
    assert (places["rank"] <= 40).sum() == 7 and (places["rank_filtered"] <= 40).sum() == 6
    # the filter drops "but", which general English has too often
    assert places.loc["but", "origin"] == "count"
    # these owe their place to choice by hand; "therefore" is more frequent in the solutions
    assert set(places.index[places["origin"] == "hand"]) == {"perhaps", "therefore", "however"}
    assert places["difference"].lt(0).sum() == 1 and places.loc["therefore", "difference"] < 0
