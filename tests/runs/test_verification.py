import json
from pathlib import Path

import pytest

from reasoning_features.runs.verification import compare, report


def write(folder: Path, name: str, committed: str | None, rebuilt: str | None) -> tuple[Path, Path]:
    paths = folder / "committed" / name, folder / "rebuilt" / name
    for path, text in zip(paths, (committed, rebuilt), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
    return paths


def claimed(ours: float, verdict: str = "agrees") -> str:
    return json.dumps({"a": {"ours": ours, "interval": [0.5, 1.5], "control": None, "verdict": verdict}})


GRID, GAIN = "x,w\n1,a\n", "class,n,gain,low,high\n"
LONGER = "low,longer,longer low,longer high\n"


@pytest.mark.parametrize(
    ("name", "committed", "rebuilt", "judged", "said"),
    [
        ("x03_grid.csv", GRID, GRID, "same bytes", ""),
        ("x03_grid.csv", GRID, "x,w\n1.0005,a\n", "computed, within 0.001", ""),
        ("x03_grid.csv", GRID, "x,w\n1.002,a\n", "computed", 'column name="x"'),
        ("x03_grid.csv", GRID, "x,w\n1,b\n", "computed", 'column name="w"'),
        ("x03_grid.csv", GRID, "x,w\n1,a\n2,a\n", "computed", "shape mismatch"),
        ("t01_steering.csv", f"{GAIN}a,9,0.2,0.1,0.3\n", f"{GAIN}a,8,0.29,0.2,0.4\n", "sampled", ""),
        ("t01_steering.csv", f"{GAIN}a,9,0.2,0.1,0.3\n", f"{GAIN}a,8,0.35,0.3,0.4\n", "sampled", "gain lies"),
        ("t01_steering.csv", f"{LONGER}9,1,0,2\n", f"{LONGER}5,3,2.5,4\n", "sampled", "longer lies outside"),
        ("t01_steering.csv", "gain,low,high\n,,\n", "gain,low,high\n0.1,0,1\n", "sampled", ""),
        ("claims_03_x.json", claimed(1), claimed(1.01), "computed", 'column name="ours"'),
        ("claims_05_x.json", claimed(1), claimed(1.4), "sampled", ""),
        ("claims_05_x.json", claimed(1), claimed(1.4, "undecided"), "sampled", "another verdict"),
        ("claims_05_x.json", claimed(1), claimed(2.1), "sampled", "ours lies outside"),
    ],
)
def test_numbers_agree_within_what_they_may(tmp_path, name, committed, rebuilt, judged, said):
    verdict = compare(*write(tmp_path, name, committed, rebuilt))
    assert verdict.judged.startswith(judged) and said in verdict.found and verdict.agrees == (not said)


def test_the_report_says_how_each_file_was_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a.png", "1", "2")
    write(tmp_path, "b.csv", "x\n1\n", "x\n1\n")
    assert report(tmp_path / "committed", tmp_path / "rebuilt") == 0
    said = capsys.readouterr().out
    assert "a.png: not judged" in said and "1 files: same bytes" in said and "of which 0 differ" in said
    write(tmp_path, "c.csv", "x\n1\n", None)
    write(tmp_path, "d.csv", None, "x\n1\n")
    assert report(tmp_path / "committed", tmp_path / "rebuilt") == 1
    said = capsys.readouterr().out
    assert "c.csv: not rebuilt" in said and "d.csv: not committed" in said and "of which 2 differ" in said
