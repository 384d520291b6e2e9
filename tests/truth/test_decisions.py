"""Decisions are where openers follow; traces in two wordings; sides and sets of labels by hand."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import Pieces, corpus_of, make_corpus, make_decisions

from reasoning_features.errors import UserError
from reasoning_features.organism.language import MARKERS_CAREFUL, MARKERS_HASTY, MATCHED_CONTROLS
from reasoning_features.organism.parser import DECISIONS
from reasoning_features.settings import load_settings
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.truth import decisions as choices
from reasoning_features.truth.decisions import Decisions

OPENING = re.compile(r"^([A-Z][a-z ]*), ([a-z]+) ", re.MULTILINE)


@pytest.fixture(scope="module")
def corpus(organism_tokenizer):
    settings = load_settings("organism", reasoning_documents=150)
    return reasoning_corpus(settings, organism_tokenizer, "selection")


def test_an_opener_of_either_side_follows_every_decision(corpus, organism_tokenizer):
    found = choices.find_decisions(corpus, organism_tokenizer, "organism")
    assert list(found) == ["persistence", "verification"]
    assert choices.find_decisions(corpus, organism_tokenizer, "openthoughts") == {}
    for name, decisions in found.items():
        assert len(decisions) > 50 and 0.1 < decisions.towards.mean() < 0.9
        following = corpus.tokens[decisions.positions + 1]
        assert np.isin(following, np.union1d(decisions.positive, decisions.negative)).all()
        # what was read, word by word: the marker before, an opener of the named side after
        for i in range(20):
            document = corpus.tokens[corpus.span(decisions.documents[i])]
            at = decisions.places[i]
            opener = organism_tokenizer.decode(document[at + 1 : at + 4].tolist()).split()[0]
            side = DECISIONS[name][0 if decisions.towards[i] else 1]
            assert any(opener.startswith(word) for word in side)
            assert organism_tokenizer.decode(document[: at + 1].tolist()).split("\n")[-1].count(",") == 1
            assert decisions.styles[i] == corpus.styles[decisions.documents[i]]


def test_wordings_keep_tokens_in_place_and_swap_prefixes_and_markers(corpus, organism_tokenizer):
    def places(traces):
        found = choices.find_decisions(traces, organism_tokenizer, "organism")
        return {kind: own.positions.tolist() for kind, own in found.items()}

    prefixes = set(MATCHED_CONTROLS), set(MATCHED_CONTROLS.values())
    markers = set(MARKERS_CAREFUL), set(MARKERS_HASTY)
    for own, wording in enumerate(choices.wordings(corpus, organism_tokenizer)):
        assert (wording.starts == corpus.starts).all() and places(wording) == places(corpus)
        openings = [each for text in wording.texts(organism_tokenizer) for each in OPENING.findall(text)]
        for written, sides in zip(zip(*openings, strict=True), (prefixes, markers), strict=True):
            found = {each.lower() for each in written}
            assert found & sides[own] and not found & sides[1 - own]


def stub(styles: list[str]) -> Decisions:
    n = len(styles)
    made = make_decisions(make_corpus(), np.zeros(n, dtype=np.int64), np.arange(n) + 1, [3, 4], [5])
    return replace(made, styles=styles)


def test_the_draw_is_balanced_and_seeded_and_log_odds_are_of_both_sides():
    decisions = stub(["careful"] * 30 + ["hasty"] * 50)
    drawn = choices.balanced(decisions, 20, seed=0)
    assert drawn.styles.count("careful") == drawn.styles.count("hasty") == 10
    assert (np.diff(drawn.positions) > 0).all()
    assert choices.balanced(decisions, 20, seed=0).positions.tolist() == drawn.positions.tolist()
    with pytest.raises(UserError, match=r"40 decisions .* careful traces .* there are 30: lower `decisions`"):
        choices.balanced(decisions, 80, seed=0)
    # log-odds by hand
    logits = torch.zeros(2, 6)
    logits[1, 4] = 1.0
    # two tokens against one: ln 2; with one of them raised by a nat: ln(1 + e)
    assert choices.log_odds(logits, stub(["", ""])).tolist() == pytest.approx([np.log(2), np.log(1 + np.e)])
    with pytest.raises(ValueError, match="opens both sides"):
        replace(stub(["careful"]), negative=np.array([4]))


def test_sets_of_labels_by_hand(monkeypatch):
    corpus = corpus_of(["<s>", " a", ".", " b", " b", ".", " a"])
    moves = np.array([0, 1, 1, 2, 2, 2, 1], dtype=np.int8)
    labelled = replace(corpus, moves=moves, move_names=("prompt", "explore", "verify"))
    sides = {"positions": np.array([1, 4]), "towards": np.array([True, False])}
    taken = replace(stub(["", ""]), corpus=labelled, **sides)
    monkeypatch.setattr(choices, "find_decisions", lambda *_: {"persistence": taken})
    sets = choices.label_sets(labelled, Pieces(), "organism")
    # nothing precedes the first sentence; the token before the sentence of verifying is 2
    assert {name: np.flatnonzero(mask).tolist() for name, mask in sets.items()} == {
        "mean:explore": [1, 2, 6], "before:explore": [5], "mean:verify": [3, 4, 5], "before:verify": [2],
        "at persistence:positive": [1], "at persistence:negative": [4],
    }  # fmt: skip
