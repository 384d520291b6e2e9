"""How long something will take is told from a rate measured just before, and refused where it is too long."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from reasoning_features.bookkeeping import projections
from reasoning_features.bookkeeping.projections import measured_rate, project
from reasoning_features.errors import UserError
from reasoning_features.steering import answering as steering
from reasoning_features.steering.benchmarks import COMMON, Questions


def test_time_is_told_and_a_limit_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project("Reading", 21_000_000, 1840) == pytest.approx(11_413, rel=1e-3)
    assert capsys.readouterr().out == "Reading: about 3.2 hours at 1,840 tokens/s, measured just now.\n"
    monkeypatch.setenv(projections.CELL_LIMIT, "3600")
    with pytest.raises(
        UserError, match=r"a cell may take 60\.0 minutes: give make CELL_LIMIT=22826 LIMIT=45652"
    ):
        project("Reading", 21_000_000, 1840)
    assert project("Reading", 1000, 10, unit="rows") == 100.0
    assert "about 100 seconds at 10 rows/s" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(UserError, match="a cell may take 50 seconds"):
        project("Reading", 1000, 10, limit_seconds=50)


def test_a_rate_is_measured_after_a_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ran = [0.0], []

    def work() -> float:
        clock[0] += 10.0 if not ran else 0.5  # the first run pays for what is set up once
        ran.append(1)
        return 100.0

    monkeypatch.setattr(projections.time, "monotonic", lambda: clock[0])
    assert measured_rate(work) == 200.0 and len(ran) == 5


def test_answers_are_begun_to_measure_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Questions(
        "some", [[1]] * 40, ["d"] * 40, 0, 1000, COMMON, lambda *_: pd.DataFrame(), kept=Path("x")
    )
    begun: list[Questions] = []
    monkeypatch.setattr(steering, "answers", lambda _, few, *rest, **__: begun.append(few))
    monkeypatch.setattr(steering, "measured_rate", lambda work: work())
    # 16 answers of 64 tokens were begun in "a second"; 40 answers under 3 conditions, 250 tokens each
    assert steering.project_answers(None, asked, 3) == pytest.approx(40 * 3 * 250 / (16 * 64))  # type: ignore[arg-type]
    assert len(begun[0]) == 16 and begun[0].max_new_tokens == 64 and begun[0].kept is None
    assert "120 answers: about 29 seconds at 1,024 tokens/s" in capsys.readouterr().out
