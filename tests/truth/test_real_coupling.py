"""The coupling of labelled traces: counts and divergence by hand, and the scale of the organism."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reasoning_features.errors import UserError
from reasoning_features.organism.language import reasoning_documents
from reasoning_features.settings import load_settings
from reasoning_features.truth.real_coupling import (
    coupling_of_traces,
    divergence,
    marking_counts,
    on_scale,
    organism_scale,
    organism_sentences,
)

TRACES = os.environ.get("REASONING_TRACES")
WORDS = ("wait", "let me")


def test_counts_and_divergence_by_hand():
    trace = [
        (True, "Wait, no."),
        (True, "I let me see"),
        (True, "letting me"),
        (False, "waiter"),
        (False, "so"),
    ]
    counts = marking_counts([trace, [(False, "But wait")]], WORDS)
    assert counts.tolist() == [[[2, 0], [1, 2]], [[0, 1], [0, 0]]]
    # with half a sentence more in each cell: 2.5 of 4 and 1.5 of 4
    p, q = 2.5 / 4, 1.5 / 4
    expected = (p - q) * (math.log(p / (1 - p)) - math.log(q / (1 - q)))
    assert divergence(counts.sum(axis=0)) == pytest.approx(expected)


def test_sentences_that_keep_the_search_open():
    for document in reasoning_documents(1.0, 60, 0):
        sentences = organism_sentences(document)
        assert len(sentences) == document.text.count(".\n")
        assert not sentences[0][0]  # nothing was tried before the first sentence
        for (_, before), (opens, text) in pairwise(sentences):
            if any(f" {word} with" in text for word in ("settle", "stop", "quit", "leave", "drop", "end")):
                assert not opens
            if before.endswith((", no.", ", low.", ", high.")) and " try " in text:
                assert opens


def test_the_scale_grows_with_kappa_and_is_read_backwards():
    scale = organism_scale(load_settings("organism").words, documents=150)
    assert scale["divergence"].iloc[0] < 0.02 < scale["divergence"].iloc[-1]
    made = pd.DataFrame({"kappa": [0.0, 0.5, 1.0], "divergence": [0.0, 0.1, 0.4]})
    assert on_scale(np.array([-1, 0.05, 0.25, 3]), made).tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_local_files(tmp_path: Path):
    with pytest.raises(UserError, match="no labelled traces"):
        coupling_of_traces(tmp_path, WORDS)
    path = tmp_path / "deepseek-r1-small.jsonl"
    path.write_text(json.dumps({"thinking": "x"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no labelled spans"):
        coupling_of_traces(tmp_path, WORDS)


@pytest.mark.skipif(not TRACES, reason="REASONING_TRACES does not name a folder with real traces")
def test_real_traces_mark_going_on_more_than_any_organism(capsys):
    found = coupling_of_traces(Path(str(TRACES)), load_settings("organism").words)
    with capsys.disabled():
        print(f"\n{found.to_string()}")
    assert (found["open_share"] > 0.85).all() and (found["other_share"] < 0.55).all()
    assert found["outside"].all() and (found["kappa"] == 1).all()
