"""Decisions are where openers follow; what tells their side is chosen on one half, reported on the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny import WIDTH, Pieces, corpus_of, make_corpus, make_decisions, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.organism import language
from reasoning_features.organism.parser import DECISIONS
from reasoning_features.settings import load_settings
from reasoning_features.text.corpora import reasoning_corpus
from reasoning_features.truth import decisions as choices
from reasoning_features.truth.decisions import Decisions


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


def test_wordings_come_in_pairs_of_one_length(corpus, organism_tokenizer):
    pairs = choices.swapped(corpus, organism_tokenizer, "organism")
    places = choices.find_decisions(corpus, organism_tokenizer, "organism")["persistence"].positions.tolist()
    for one, other in pairs.values():
        assert (one.starts == corpus.starts).all() and (other.starts == corpus.starts).all()
        assert (one.tokens != other.tokens).sum() > corpus.n_documents
        of_other = choices.find_decisions(other, organism_tokenizer, "organism")["persistence"]
        assert of_other.positions.tolist() == places
    texts = pairs["careful and hasty markers"][1].texts(organism_tokenizer)
    assert choices.swapped(corpus, organism_tokenizer, "openthoughts") == {}
    lines = [line for text in texts for line in text.split("\n")[1:-2]]
    assert {line.split(", ")[1].split(" ")[0] for line in lines} <= set(language.MARKERS_HASTY)


def stub(styles: list[str]) -> Decisions:
    n = len(styles)
    made = make_decisions(make_corpus(), np.zeros(n, dtype=np.int64), np.arange(n) + 1, [3, 4], [5])
    return replace(made, styles=styles)


def test_the_draw_is_balanced_and_seeded():
    decisions = stub(["careful"] * 30 + ["hasty"] * 50)
    drawn = choices.balanced(decisions, 20, seed=0)
    assert drawn.styles.count("careful") == drawn.styles.count("hasty") == 10
    assert (np.diff(drawn.positions) > 0).all()
    assert choices.balanced(decisions, 20, seed=0).positions.tolist() == drawn.positions.tolist()
    with pytest.raises(UserError, match=r"40 decisions .* careful traces .* there are 30: lower `decisions`"):
        choices.balanced(decisions, 80, seed=0)


def test_log_odds_by_hand():
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
    taken = replace(
        stub(["", ""]), corpus=labelled, positions=np.array([1, 4]), towards=np.array([True, False])
    )
    monkeypatch.setattr(choices, "find_decisions", lambda *_: {"persistence": taken})
    sets = choices.label_sets(labelled, Pieces(), "organism")
    # nothing precedes the first sentence; the token before the sentence of verifying is 2
    assert {name: np.flatnonzero(mask).tolist() for name, mask in sets.items()} == {
        "mean:explore": [1, 2, 6],
        "before:explore": [5],
        "mean:verify": [3, 4, 5],
        "before:verify": [2],
        "at persistence:positive": [1],
        "at persistence:negative": [4],
    }


# --- what features tell ------------------------------------------------------------------------------------


def test_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    activations = rng.integers(0, 4, size=(60, 5)).astype(np.float32)  # with many ties
    classes = rng.integers(0, 3, size=60)
    found = choices.auc_by_class(activations, classes, 4)
    assert found.shape == (5, 4)
    for feature in range(5):
        for label in range(3):
            expected = roc_auc_score(classes == label, activations[:, feature])
            assert found[feature, label] == pytest.approx(expected)
    assert np.isnan(found[:, 3]).all()


def test_class_and_side_are_chosen_on_the_first_half():
    classes = np.tile([0, 1, 2], 40)
    half = np.arange(120) < 60
    activations = np.zeros((120, 3), dtype=np.float32)
    activations[:, 0] = classes == 1  # high at class 1
    activations[:, 1] = classes != 2  # low at class 2
    activations[:, 2] = np.where(half, classes == 0, classes != 0)  # the other half says the opposite
    best, high, auc = choices.best_class(activations, classes, half, 3)
    assert best.tolist() == [1, 2, 0]
    assert high.tolist() == [True, False, True]
    assert auc.tolist() == pytest.approx([1, 1, 0])
    # class 2 only in the first half: it cannot be reported, so it is not chosen
    missing = np.where(half, classes, classes % 2)
    assert 2 not in choices.best_class(activations, missing, half, 3)[0]


def test_targets_by_hand(tiny_subject):
    text = "Try 3. Hm.\nNo."
    ids = tiny_subject.tokenizer.encode(text, add_special_tokens=False)
    pieces = [tiny_subject.tokenizer.decode([i]) for i in ids]
    begins = np.cumsum([0, *map(len, pieces)])[:-1]
    moves = np.searchsorted([text.index(" Hm"), text.index("No")], begins, side="right")  # one a sentence
    corpus = replace(
        corpus_of(["<s>"] + ["a"] * len(ids), thinking=range(1, len(ids) + 1)),
        tokens=np.array([0, *ids], dtype=np.int32),
        moves=np.array([0, *moves], dtype=np.int8),
        move_names=("explore", "uncertain", "backtrack"),
    )
    found = choices.targets(corpus, tiny_subject.tokenizer, {})
    assert found["current move"][1].tolist() == [-1, *moves]
    following = found["next move"][1]
    told = {"".join(pieces[:at]): int(following[at]) for at in np.flatnonzero(following >= 0)}
    assert told == {"Try 3.": 1, "Try 3. Hm.\n": 2}


def test_a_table_a_label(tiny_subject, tiny_corpus):
    features, n, sae = np.array([0, 3, WIDTH]), tiny_corpus.n_documents, signed_identity(WIDTH)
    documents = np.arange(n)
    at = {"corpus": tiny_corpus, "positions": tiny_corpus.starts[:-1] + 2, "documents": documents}
    own = replace(stub([""] * n), **at, towards=documents % 2 == 0)
    table = choices.decodability(
        tiny_subject, sae, tiny_corpus, {"persistence": own}, features, 256, 150, seed=0
    )
    counts = table.groupby("label")["tokens"].first().to_dict()
    assert counts["current move"] == 150 and counts["persistence"] == n
    # moves at random ends of sentences: no class is in both halves
    assert table.loc[table["label"] == "next move", "auc"].isna().all()
    # by hand: feature 3 is the positive part of coordinate 3
    first = np.random.default_rng(0).permutation(n) < n // 2
    texts = [torch.from_numpy(tiny_corpus.document(i).astype(np.int64))[None] for i in range(n)]
    active = np.array([max(float(tiny_subject.residual(text)[0, 2, 3]), 0.0) for text in texts])
    row = table[(table["label"] == "persistence") & (table["feature"] == 3)].iloc[0]
    expected = roc_auc_score(own.towards[~first], active[~first])
    assert row["auc"] == pytest.approx(expected) or row["auc"] == pytest.approx(1 - expected)
