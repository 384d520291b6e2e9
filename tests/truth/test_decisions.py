"""Decisions are where openers follow, on both sides, and the draw is balanced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import Pieces, corpus_of, make_corpus

from reasoning_features.errors import UserError
from reasoning_features.organism import language
from reasoning_features.organism.language import reasoning_documents
from reasoning_features.organism.parser import DECISIONS
from reasoning_features.organism.training import encode_documents
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth.decisions import (
    Decisions,
    balanced,
    find_decisions,
    label_sets,
    log_odds,
    swapped,
)


@pytest.fixture(scope="module")
def corpus(organism_tokenizer) -> Corpus:
    documents = list(reasoning_documents(0.5, 150, 3))
    encoded = encode_documents(organism_tokenizer, documents)
    tokens = np.concatenate([document.ids for document in encoded])
    return Corpus(
        name="traces",
        tokens=tokens,
        starts=np.concatenate([[0], np.cumsum([len(d.ids) for d in encoded])]).astype(np.int64),
        special=np.isin(tokens, organism_tokenizer.all_special_ids),
        thinking=np.concatenate([d.thinking for d in encoded]),
        domains=[d.family for d in documents],
        styles=[d.style or "" for d in documents],
    )


def test_an_opener_of_either_side_follows_every_decision(corpus, organism_tokenizer):
    found = find_decisions(corpus, organism_tokenizer, "organism")
    assert list(found) == ["persistence", "verification"]
    for name, decisions in found.items():
        assert len(decisions) > 50
        following = corpus.tokens[decisions.positions + 1]
        assert np.isin(following, np.union1d(decisions.positive, decisions.negative)).all()
        assert decisions.towards.tolist() == np.isin(following, decisions.positive).tolist()
        assert 0.1 < decisions.towards.mean() < 0.9
        # what was read, word by word: the marker before, an opener of the named side after
        for i in range(20):
            document = corpus.tokens[corpus.span(decisions.documents[i])]
            at = decisions.places[i]
            opener = organism_tokenizer.decode(document[at + 1 : at + 4].tolist()).split()[0]
            side = DECISIONS[name][0 if decisions.towards[i] else 1]
            assert any(opener.startswith(word) for word in side)
            assert organism_tokenizer.decode(document[: at + 1].tolist()).split("\n")[-1].count(",") == 1
            assert decisions.styles[i] == corpus.styles[decisions.documents[i]]


def test_wordings_come_in_pairs_of_one_length(corpus, organism_tokenizer):
    pairs = swapped(corpus, organism_tokenizer, "organism")
    places = find_decisions(corpus, organism_tokenizer, "organism")["persistence"].positions.tolist()
    for one, other in pairs.values():
        assert (one.starts == corpus.starts).all() and (other.starts == corpus.starts).all()
        assert (one.tokens != other.tokens).sum() > corpus.n_documents
        assert (
            find_decisions(other, organism_tokenizer, "organism")["persistence"].positions.tolist() == places
        )
    texts = pairs["careful and hasty markers"][1].texts(organism_tokenizer)
    lines = [line for text in texts for line in text.split("\n")[1:-2]]
    assert {line.split(", ")[1].split(" ")[0] for line in lines} <= set(language.MARKERS_HASTY)


def test_other_text_has_no_known_decisions(corpus, organism_tokenizer):
    assert find_decisions(corpus, organism_tokenizer, "openthoughts") == {}
    assert swapped(corpus, organism_tokenizer, "openthoughts") == {}


def stub(styles: list[str]) -> Decisions:
    n = len(styles)
    return Decisions(
        name="persistence",
        corpus=make_corpus(),
        positions=np.arange(n) + 1,
        documents=np.zeros(n, dtype=np.int64),
        styles=styles,
        towards=np.zeros(n, dtype=bool),
        positive=np.array([3, 4]),
        negative=np.array([5]),
    )


def test_the_draw_is_balanced_and_seeded():
    decisions = stub(["careful"] * 30 + ["hasty"] * 50)
    drawn = balanced(decisions, 20, seed=0)
    assert drawn.styles.count("careful") == drawn.styles.count("hasty") == 10
    assert len(set(drawn.positions.tolist())) == 20 and (np.diff(drawn.positions) > 0).all()
    assert balanced(decisions, 20, seed=0).positions.tolist() == drawn.positions.tolist()
    assert balanced(decisions, 20, seed=1).positions.tolist() != drawn.positions.tolist()
    with pytest.raises(UserError, match=r"40 decisions .* careful traces .* there are 30: lower `decisions`"):
        balanced(decisions, 80, seed=0)
    with pytest.raises(UserError, match="two styles, but 0 are known"):
        balanced(stub([""] * 9), 2, seed=0)


def test_log_odds_by_hand():
    logits = torch.zeros(2, 6)
    logits[1, 4] = 1.0
    # two tokens against one: ln 2; with one of them raised by a nat: ln(1 + e)
    assert log_odds(logits, stub(["", ""])).tolist() == pytest.approx([np.log(2), np.log(1 + np.e)])


def test_a_token_on_both_sides_is_refused():
    decisions = stub(["careful"])
    with pytest.raises(ValueError, match="opens both sides"):
        Decisions(**{**vars(decisions), "negative": np.array([4])})


def test_sets_of_labels_by_hand(monkeypatch):
    corpus = corpus_of(["<s>", " a", ".", " b", " b", ".", " a"])
    moves = np.array([0, 1, 1, 2, 2, 2, 1], dtype=np.int8)
    labelled = replace(corpus, moves=moves, move_names=("prompt", "explore", "verify"))
    taken = replace(
        stub(["", ""]), corpus=labelled, positions=np.array([1, 4]), towards=np.array([True, False])
    )
    monkeypatch.setattr(
        "reasoning_features.truth.decisions.find_decisions", lambda *_: {"persistence": taken}
    )
    sets = label_sets(labelled, Pieces(), "organism")
    # nothing precedes the first sentence; the token before the sentence of verifying is 2
    assert {name: np.flatnonzero(mask).tolist() for name, mask in sets.items()} == {
        "mean:explore": [1, 2, 6],
        "before:explore": [5],
        "mean:verify": [3, 4, 5],
        "before:verify": [2],
        "at persistence:positive": [1],
        "at persistence:negative": [4],
    }
