import numpy as np
import pandas as pd
from tiny import contents

from reasoning_features.reporting.tables import save_table, to_markdown

TABLE = pd.DataFrame({"word": ["wait", "a|b"], "share_%": [1 / 3, np.nan], "n": [10, 20_000]})


def test_markdown_shows_four_digits_and_a_dash_for_nothing():
    assert to_markdown(TABLE) == (
        "| word | share_% | n |\n| --- | ---: | ---: |\n| wait | 0.3333 | 10 |\n| a\\|b | – | 20000 |\n"
    )


def test_a_table_is_saved_four_ways_with_the_same_bytes_each_time(run):
    shown = save_table(TABLE, "x01_words", run, "Words & shares, 100%.")
    files = contents(run.paths.figures)
    assert list(files) == ["x01_words.csv", "x01_words.json", "x01_words.md", "x01_words.tex"]
    assert files["x01_words.csv"] == b"word,share_%,n\nwait,0.333333,10\na|b,,20000\n"
    latex = files["x01_words.tex"].decode()
    assert r"Words \& shares, 100\%." in latex and r"share\_\%" in latex and "0.3333" in latex
    assert shown.data in files["x01_words.md"].decode()
    save_table(TABLE, "x01_words", run, "Words & shares, 100%.")
    assert contents(run.paths.figures) == files


def test_a_long_table_is_shown_in_part_and_saved_whole(run):
    shown = save_table(pd.DataFrame({"feature": range(31)}), "x01_features", run, "Features.")
    assert shown.data.endswith("| 29 |\n\nThese are 30 of 31 rows: `x01_features.csv` has all.\n")
    assert "| 30 |" in (run.paths.figures / "x01_features.md").read_text()
