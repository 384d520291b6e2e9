"""Documents laid end to end come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import make_corpus
from transformers import AutoTokenizer

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.organism.tokenizer import train_tokenizer
from reasoning_features.organism.traces import base_documents, reasoning_documents
from reasoning_features.settings import Settings, load_settings
from reasoning_features.text.corpora import (
    general_corpus,
    reasoning_corpus,
    thinking_texts,
    with_words_that_occur,
)
from reasoning_features.text.corpus import Corpus, join


def written_out() -> Corpus:
    """Three documents: [10 11 12], [20], [30 31]; the first token of each is special."""
    return Corpus(
        name="example",
        tokens=np.array([10, 11, 12, 20, 30, 31], dtype=np.int32),
        starts=np.array([0, 3, 4, 6]),
        special=np.array([1, 0, 0, 1, 1, 0], dtype=bool),
        thinking=np.array([0, 1, 1, 0, 0, 1], dtype=bool),
        domains=["a", "b", "c"],
        moves=np.array([0, 1, 2, 0, 0, 2], dtype=np.int8),
        move_names=("prompt", "explore", "verify"),
        styles=["careful", "hasty", ""],
    )


def test_documents_and_places() -> None:
    corpus = written_out()
    assert [corpus.document(i).tolist() for i in range(3)] == [[10, 11, 12], [20], [30, 31]]
    assert corpus.document_of.tolist() == [0, 0, 0, 1, 2, 2]
    assert corpus.position_of.tolist() == [0, 1, 2, 0, 0, 1]


def test_batches_are_sorted_padded_and_point_back() -> None:
    # lengths 3, 1, 2 in order of length: documents 1, 2, 0. With at most 4 ids a batch, documents 1 and 2
    # fit together (2 rows of 2), document 0 comes alone (3 rows of 3 would be 9).
    batches = list(written_out().batches(max_tokens=4))
    assert [batch.documents.tolist() for batch in batches] == [[1, 2], [0]]
    assert batches[0].tokens.tolist() == [[20, 0], [30, 31]]
    assert batches[0].valid.tolist() == [[True, False], [True, True]]
    assert batches[0].positions.tolist() == [[3, -1], [4, 5]]
    assert batches[1].positions.tolist() == [[0, 1, 2]]


def test_every_token_comes_once_and_batches_keep_to_their_size() -> None:
    corpus = make_corpus(50)
    seen = np.zeros(corpus.n_tokens, dtype=int)
    for batch in corpus.batches(max_tokens=100):
        assert batch.tokens.numel() <= 100
        positions = batch.positions[batch.valid].numpy()
        seen[positions] += 1
        assert (corpus.tokens[positions] == batch.tokens[batch.valid].numpy()).all()
    assert (seen == 1).all()


def test_a_document_longer_than_a_batch_comes_alone() -> None:
    assert [batch.documents.tolist() for batch in written_out().batches(max_tokens=1)] == [[1], [2], [0]]


def test_select_keeps_order_and_labels() -> None:
    chosen = written_out().select([2, 0])
    assert chosen.tokens.tolist() == [30, 31, 10, 11, 12]
    assert chosen.starts.tolist() == [0, 2, 5]
    assert chosen.special.tolist() == [True, False, True, False, False]
    assert chosen.thinking.tolist() == [False, True, False, True, True]
    assert chosen.moves is not None and chosen.moves.tolist() == [0, 2, 0, 1, 2]
    assert (chosen.domains, chosen.styles) == (["c", "a"], ["", "careful"])


def test_join_is_one_after_the_other() -> None:
    corpus = written_out()
    both = join("both", [corpus.select([0, 1]), corpus.select([2])])
    assert both.digest == corpus.digest
    assert (both.domains, both.styles) == (corpus.domains, corpus.styles)
    assert both.moves is not None and (both.moves == corpus.moves).all()
    unlabelled = Corpus(
        "plain", corpus.tokens, corpus.starts, corpus.special, corpus.thinking, corpus.domains
    )
    mixed = join("mixed", [corpus, unlabelled])
    assert mixed.moves is None and mixed.styles is None and mixed.n_documents == 6


def test_digest_sees_tokens_and_boundaries() -> None:
    corpus = written_out()
    assert corpus.digest == written_out().digest
    assert corpus.digest != corpus.select([0, 2, 1]).digest


def test_texts(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ids = [tokenizer.encode(text) for text in ("Wait, try 3.", "Hmm")]
    n_tokens = sum(map(len, ids))
    nothing = np.zeros(n_tokens, dtype=bool)
    corpus = Corpus(
        name="text",
        tokens=np.array(ids[0] + ids[1], dtype=np.int32),
        starts=np.array([0, len(ids[0]), n_tokens]),
        special=nothing,
        thinking=nothing,
        domains=["a", "a"],
    )
    assert corpus.texts(tokenizer) == ["Wait, try 3.", "Hmm"]
    assert corpus.texts(tokenizer, np.arange(n_tokens) >= len(ids[0])) == ["", "Hmm"]


def test_empty_corpora_are_refused() -> None:
    with pytest.raises(UserError, match="'example' is empty"):
        written_out().select([])
    with pytest.raises(UserError, match="'nothing' is empty"):
        join("nothing", [])


def test_mismatched_arrays_are_refused() -> None:
    corpus = written_out()
    with pytest.raises(ValueError, match="one entry a token"):
        Corpus("x", corpus.tokens, corpus.starts, corpus.special[:2], corpus.thinking, corpus.domains)
    with pytest.raises(ValueError, match="no empty documents"):
        Corpus("x", corpus.tokens, np.array([0, 3, 3, 6]), corpus.special, corpus.thinking, corpus.domains)
    with pytest.raises(ValueError, match="one entry a document"):
        Corpus("x", corpus.tokens, corpus.starts, corpus.special, corpus.thinking, ["a"])


@pytest.fixture(scope="module")
def tokenizer():
    texts = [document.text for document in [*base_documents(300, 1), *reasoning_documents(1.0, 300, 1)]]
    return train_tokenizer(texts)


@pytest.fixture
def organism(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose only content is the cards of two arms."""
    for name, kappa in (("coupled-0", 1.0), ("decoupled-0", 0.0)):
        model = tmp_path / "data" / "organism" / "models" / name
        model.mkdir(parents=True)
        (model / "training.json").write_text(json.dumps({"kappa": kappa}))
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path


def test_the_organisms_reasoning_corpus(organism: Path, tokenizer) -> None:
    settings = load_settings("smoke", reasoning_documents=20)
    corpus = reasoning_corpus(settings, tokenizer, "evaluation")
    assert corpus.name == "reasoning (evaluation, κ = 1)"
    assert corpus.n_documents == 20 and set(corpus.styles or []) == {"careful", "hasty"}
    text = tokenizer.decode(corpus.document(0))
    assert text.startswith("<|bos|><|user|>") and "<think>" in text and text.endswith("<|eos|>")
    # special tokens are the template's; none of them is inside the thinking
    assert set(tokenizer.convert_ids_to_tokens(corpus.tokens[corpus.special])) == {
        "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<think>", "</think>",
    }  # fmt: skip
    assert not (corpus.special & corpus.thinking).any()
    thinking = corpus.texts(tokenizer, corpus.thinking)[0]
    assert thinking == text.split("<think>")[1].split("</think>")[0]
    assert corpus.moves is not None
    assert corpus.move_names[corpus.moves[0]] == "prompt" and corpus.move_names[corpus.moves[-1]] == "answer"


def test_an_arm_has_its_own_words_for_the_same_traces(organism: Path, tokenizer) -> None:
    settings = load_settings("smoke", reasoning_documents=20)
    assert settings.contrast is not None
    coupled = reasoning_corpus(settings, tokenizer, "evaluation")
    decoupled = reasoning_corpus(settings, tokenizer, "evaluation", model=settings.contrast)
    assert (coupled.domains, coupled.styles) == (decoupled.domains, decoupled.styles)
    assert coupled.digest != decoupled.digest
    assert reasoning_corpus(settings, tokenizer, "evaluation").digest == coupled.digest
    assert reasoning_corpus(settings, tokenizer, "selection").digest != coupled.digest


def test_the_organisms_general_corpus(organism: Path, tokenizer) -> None:
    settings = load_settings("smoke")
    corpus = general_corpus(settings, tokenizer, "selection", documents=60)
    assert {"direct", "attempt", "several", "prose"} <= set(corpus.domains)
    assert not corpus.thinking.any()


def test_documents_are_cut_at_the_context(organism: Path, tokenizer) -> None:
    settings = load_settings("smoke", context=30)
    corpus = reasoning_corpus(settings, tokenizer, "selection", documents=10)
    assert np.diff(corpus.starts).max() == 30


def test_unknown_kinds_and_no_documents_are_refused(organism: Path, tokenizer) -> None:
    with pytest.raises(UserError, match="'elsewhere' is unknown"):
        general_corpus(load_settings("smoke", corpus="elsewhere"), tokenizer, "selection")
    with pytest.raises(UserError, match=r"'general \(selection\)' is empty"):
        general_corpus(load_settings("smoke"), tokenizer, "selection", documents=0)
    with pytest.raises(MissingArtefact, match=r"no nowhere/training\.json"):
        reasoning_corpus(load_settings("smoke", subject="nowhere"), tokenizer, "selection")


def test_the_same_text_without_its_labels() -> None:
    labelled, plain = load_settings("smoke"), load_settings("smoke", corpus="organism-text")
    tokenizer = AutoTokenizer.from_pretrained(paths.root() / str(labelled.base))
    for make in (reasoning_corpus, general_corpus):
        ours, same = (make(settings, tokenizer, "selection", documents=5) for settings in (labelled, plain))
        assert np.array_equal(ours.tokens, same.tokens)
        assert ours.moves is not None and ours.styles is not None
        assert same.moves is None and same.styles is None and same.move_names == ()


def settings_of_texts(folder: Path, texts: list[str], **more: object) -> Settings:
    """Settings of a file with these texts, all of the selection split."""
    lines = [json.dumps({"text": text, "split": "selection"}) for text in texts]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    source = {"dataset": str(folder / "texts.jsonl"), "split_column": "split"}
    return load_settings("smoke", corpus="text", reasoning_text=source, general_text=source, **more)


def test_thinking_of_texts_is_whole_and_of_all_parts(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert "<think>" not in tokenizer.get_vocab()  # its mark is several tokens
    long = "wait, " * 40  # many times the context
    texts = [
        f"Two?<think>{long}</think>Two.",
        "Sum?<think>Hmm.</think>No.<think>But 3?</think>Three.",
        "it goes on</think>End.",
        "a<think>cut off",
        "no thinking",
    ]
    settings = settings_of_texts(tmp_path, texts, context=8, reasoning_documents=9)
    assert sorted(thinking_texts(settings, tokenizer)) == ["", "Hmm.\nBut 3?", "cut off", "it goes on", long]
    fewer = settings.model_copy(update={"reasoning_documents": 2})
    assert thinking_texts(fewer, tokenizer) == thinking_texts(settings, tokenizer)[:2]


def test_thinking_of_the_organism_is_that_of_its_traces(organism: Path, tokenizer) -> None:
    settings = load_settings("smoke", reasoning_documents=5)
    corpus = reasoning_corpus(settings, tokenizer, "selection")
    traces = [tokenizer.decode(corpus.document(i)) for i in range(5)]
    whole = [trace.split("<think>")[1].split("</think>")[0] for trace in traces]
    assert thinking_texts(settings, tokenizer) == whole


def test_settings_keep_the_words_that_occur(tiny_llama: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    asked = ["hmm", "another", "wait", "but"]
    # "another" and "but" are looked for as they open a sentence
    texts = ["So hmm, another.", "Perhaps, but wait."]
    settings = settings_of_texts(tmp_path, texts, words=asked)
    kept = with_words_that_occur(settings, tokenizer)
    assert kept.words == ["hmm", "wait"] and kept.run == settings.run
    assert kept.model_copy(update={"words": asked}) == settings
    with pytest.raises(UserError, match="Of the words hmm, never fewer than two occur"):
        with_words_that_occur(settings_of_texts(tmp_path, texts, words=["hmm", "never"]), tokenizer)
