"""A shipped table is read wherever the caller stands, and only as it was shipped."""

from __future__ import annotations

import pandas as pd
import pytest

from reasoning_features.errors import CorruptArtefact, MissingArtefact
from reasoning_features.files import write_shipped
from reasoning_features.sae_checks.shipped import load_dictionaries, load_table, name_of

PLACE = "data/organism/foundations/table.parquet"


def test_a_shipped_table_is_checked_before_it_is_read(repository, monkeypatch):
    table = pd.DataFrame({"gamma": [0.0, 0.25]})
    path = repository / PLACE
    path.parent.mkdir(parents=True)
    table.to_parquet(path)
    write_shipped([path], repository / "data/organism/checksums.json")
    monkeypatch.chdir(path.parent)
    assert load_table(PLACE).equals(table) and load_table(str(path)).equals(table)
    table.iloc[:1].to_parquet(path)
    with pytest.raises(CorruptArtefact, match=PLACE):
        load_table(PLACE)
    path.unlink()
    with pytest.raises(MissingArtefact, match=PLACE):
        load_table(PLACE)


def test_names_say_the_start_where_it_is_not_the_sphere(repository):
    labels = ("batchtopk", "frozen_decoder-iso", "frozen_decoder-cov")
    assert [name_of(label) for label in labels] == ["BatchTopK", "frozen decoder", "frozen decoder (cov)"]
    with pytest.raises(MissingArtefact, match="no dictionaries of nobody"):
        load_dictionaries("data/organism/foundations", "nobody", 8, "hook")
