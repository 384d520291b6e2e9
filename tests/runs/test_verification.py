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


@pytest.mark.parametrize(
    ("rebuilt", "agrees", "said"),
    [
        ("x,w\n1,a\n", True, ""),
        ("x,w\n1.0005,a\n", True, ""),
        ("x,w\n1.002,a\n", False, 'column name="x"'),
        ("x,w\n1,b\n", False, 'column name="w"'),
        ("x,w\n1,a\n2,a\n", False, "shape mismatch"),
    ],
)
def test_computed_numbers(tmp_path: Path, rebuilt: str, agrees: bool, said: str) -> None:
    """They agree to a thousandth."""
    verdict = compare(*write(tmp_path, "x03_grid.csv", "x,w\n1,a\n", rebuilt))
    assert verdict.agrees == agrees and said in verdict.found
    assert verdict.judged == ("same bytes" if rebuilt == "x,w\n1,a\n" else "computed, within 0.001")


@pytest.mark.parametrize(
    ("header", "row", "rebuilt", "said"),
    [
        ("class,n,gain,low,high", "a,9,0.2,0.1,0.3", "a,8,0.29,0.2,0.4", ""),
        ("class,n,gain,low,high", "a,9,0.2,0.1,0.3", "a,8,0.35,0.32,0.4", "gain lies outside the"),
        ("low,longer,longer low,longer high", "9,1,0,2", "5,3,2.5,4", "longer lies outside"),
        ("gain,low,high", ",,", "0.1,0,1", ""),
    ],
)
def test_sampled_numbers(tmp_path: Path, header: str, row: str, rebuilt: str, said: str) -> None:
    """They agree within their own intervals."""
    verdict = compare(*write(tmp_path, "t01_steering.csv", f"{header}\n{row}\n", f"{header}\n{rebuilt}\n"))
    assert verdict.judged.startswith("sampled") and said in verdict.found and verdict.agrees == (not said)


@pytest.mark.parametrize(
    ("notebook", "ours", "verdict", "agrees"),
    [
        ("03", 1.01, "agrees", False),
        ("05", 1.4, "agrees", True),
        ("05", 1.4, "undecided", False),
        ("05", 2.1, "agrees", False),
    ],
)
def test_claims_keep_verdicts(tmp_path: Path, notebook: str, ours: float, verdict: str, agrees: bool) -> None:
    def told(ours: float, verdict: str) -> str:
        return json.dumps({"a": {"ours": ours, "interval": [0.5, 1.5], "control": None, "verdict": verdict}})

    files = write(tmp_path, f"claims_{notebook}_x.json", told(1, "agrees"), told(ours, verdict))
    assert compare(*files).agrees == agrees


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
