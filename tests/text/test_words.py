"""Sets of tokens around words, written out by hand; words put in land where they are said to."""

import re
from dataclasses import replace

import numpy as np
import pytest
from tiny import Pieces, corpus_of
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reasoning_features.errors import UserError
from reasoning_features.settings import load_settings
from reasoning_features.text import vocabulary
from reasoning_features.text import words as room
from reasoning_features.text.corpus import Corpus, starts_of
from reasoning_features.text.words import ALL, WordIndex, token_sets, vocabulary_set, word_set


def where(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


def around(corpus: Corpus, words: list[str], window: tuple[int, int]) -> list[list[int]]:
    sets = token_sets(WordIndex(corpus, Pieces()), {"R": words}, [window])
    return [where(sets.mask(word_set(word, window))) for word in words]


WORDS = ["wait", "Hmm", "let me", "let's", "but", "maybe", "naïve", "however", "ok"]
JOINED = ["", " ", " ", " ", ", ", "(", "\n", "—", "…", "’", "'", "🤔", "é", "s", "_", "3", "\u00a0", " “"]
SPLIT = Regex(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")


def sentences(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    forms = [form for word in WORDS for form in (word, word.upper(), word.capitalize(), f"{word}ing")]
    drawn = [[rng.choice(part) for part in (forms, JOINED) * 12] for _ in range(n)]
    return ["".join(row) for row in drawn]


def tokenizer_of(name: str, texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that normalises, splits and decodes as this model's, trained on half of the texts."""
    byte_level, marked = pre_tokenizers.ByteLevel, normalizers.Replace(" ", "▁")
    split = pre_tokenizers.Split(SPLIT, "isolated")
    own = pre_tokenizers.Sequence([split, byte_level(False, use_regex=False)])
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(False)])
    spaced = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    stripped, kept = decoders.Sequence([*spaced, decoders.Strip(" ", 1, 0)]), decoders.Sequence(spaced)
    llama2 = normalizers.Sequence([normalizers.Prepend("▁"), marked])
    whole, by_space = (pre_tokenizers.Split(at, "merged_with_previous") for at in ("\0", " "))
    normalizer, cutter, decoder = {
        "GPT-2": (None, byte_level(add_prefix_space=False), decoders.ByteLevel()),
        "Llama-3": (None, own, decoders.ByteLevel()),
        "Qwen2": (normalizers.NFC(), own, decoders.ByteLevel()),
        "SmolLM2": (None, digits, decoders.ByteLevel()),
        "Llama-2": (llama2, whole, stripped),
        "Gemma": (marked, by_space, kept),
    }[name]
    pieces = name in ("Llama-2", "Gemma")  # with bytes for what is not known
    built = Tokenizer(models.BPE(byte_fallback=pieces, fuse_unk=pieces))
    if normalizer:
        built.normalizer = normalizer
    built.pre_tokenizer, built.decoder = cutter, decoder
    special = ["<s>", *(f"<0x{i:02X}>" for i in range(256))] if pieces else ["<s>"]
    options = {"special_tokens": special, "vocab_size": 700, "show_progress": False}
    options |= {"limit_alphabet": 40} if pieces else {"initial_alphabet": byte_level.alphabet()}
    built.train_from_iterator(texts[: len(texts) // 2], trainers.BpeTrainer(**options))
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>")


def found_plainly(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[list[list[int]]]:
    """The plain reference, by word: a regular expression on the decoded text, and texts of its beginnings."""
    ends = [len(tokenizer.decode(ids[: i + 1]).rstrip("\ufffd")) for i in range(len(ids))]
    ends, found = np.maximum.accumulate(ends), []
    for word in WORDS:
        sought = word.lower().replace(" ", r"\s+").replace("'", "['’]")
        matches = re.finditer(rf"(?<!\w){sought}(?!\w)", tokenizer.decode(ids), re.IGNORECASE)
        found.append([[int((ends <= m.start()).sum()), int((ends < m.end()).sum()) + 1] for m in matches])
    return found


@pytest.mark.parametrize("name", ["GPT-2", "Llama-3", "Qwen2", "SmolLM2", "Llama-2", "Gemma"])
def test_words_are_found_in_context_whatever_the_tokenizer(name):
    texts = sentences(1000)
    tokenizer = tokenizer_of(name, texts)
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    starts, tokens = starts_of([len(row) for row in ids]), np.concatenate(ids).astype(np.int32)
    plain = np.zeros(len(tokens), dtype=bool)
    index = WordIndex(Corpus(name, tokens, starts, plain, plain, [""] * len(ids)), tokenizer)
    expected = [found_plainly(tokenizer, row) for row in ids]
    for place, word in enumerate(WORDS):
        rows = zip(expected, starts[:-1], strict=True)
        spans = [np.array(row[place]) + start for row, start in rows if row[place]]
        assert len(spans) > 300
        np.testing.assert_array_equal(index.occurrences(word), np.concatenate(spans), word)


def test_but_counts_in_one_form_in_the_papers_list_alone():
    corpus = corpus_of(["<s>", " but", ".", "But", " But", " wait", "But"], ["But"])
    index = WordIndex(corpus, Pieces())
    assert index.occurrences("but").tolist() == [[1, 2], [3, 4], [4, 5], [7, 8]]
    assert index.occurrences("but", {"but"}).tolist() == [[3, 4], [7, 8]]
    assert load_settings("organism").capitalised == {"but", "another"}
    assert load_settings("organism", words=["wait", "but"]).capitalised == set()
    known = vocabulary.lexicon(load_settings("organism"))
    assert known.capitalised == {"but", "another", known.twins["but"], known.twins["another"]}


def test_sets_written_out():
    # document one                              document two
    #  0     1    2      3      4     5    6     7     8      9      10   11
    #  <s>  " a" " wait" " let" " me" " b" "."   <s>   "Wait" " a"  " b"  "let"
    corpus = corpus_of(["<s>", " a", " wait", " let", " me", " b", "."], ["<s>", "Wait", " a", " b", "let"])
    wait, let_me = around(corpus, ["wait", "let me"], (2, 3))
    # wait at 2: 0…5, without the special 0; at 8: 6…11, clipped to its own document and without 7
    assert wait == [1, 2, 3, 4, 5, 8, 9, 10, 11]
    # let me at 3–4: 1…7 clipped to document one's 1…6; a bare "let" at 11 is no match. The words overlap
    assert let_me == [1, 2, 3, 4, 5, 6]
    assert around(corpus, ["wait", "let me"], (0, 0)) == [[2, 8], [3, 4]]
    # a match never crosses documents
    across = WordIndex(corpus_of([" a", " let"], [" me", " let", " me"]), Pieces())
    assert across.occurrences("let me").tolist() == [[3, 5]]


def test_token_sets_share_words_between_vocabularies_and_join_by_name():
    corpus = corpus_of(["<s>", " wait", " a", " b", " a"])
    index = WordIndex(corpus, Pieces())
    sets = token_sets(index, {"R": ["wait", "b"], "S": ["b"]}, [(0, 0), (0, 1)])
    assert sets.names[0] == ALL and len(sets.names) == 1 + 2 * (2 + 2)
    assert where(sets.mask(ALL)) == [1, 2, 3, 4]
    assert where(sets.mask(word_set("b", (0, 1)))) == [3, 4]
    assert where(sets.mask(vocabulary_set("R", (0, 0)))) == [1, 3]
    assert where(sets.mask(vocabulary_set("R", (0, 1)))) == [1, 2, 3, 4]
    wide = token_sets(index, {"R": ["wait"]}, [(0, 1)])
    both = token_sets(index, {"R": ["wait"]}, [(0, 0)]).join(wide)
    expected = token_sets(index, {"R": ["wait"]}, [(0, 0), (0, 1)])
    assert both.names == expected.names and both.digest == expected.digest
    with pytest.raises(UserError, match="'but' never occurs in the corpus 'example'"):
        token_sets(WordIndex(corpus_of([" wait", " b"]), Pieces()), {"R": ["wait", "but"]}, [(1, 1)])


def test_occurrence_table():
    # b occurs at 1 and 3, of which 3 is inside thinking; 5 tokens are not special
    corpus = corpus_of(["<s>", " b", " a", " b", " but", " wait"], thinking=[3, 5])
    index = WordIndex(corpus, Pieces())
    table = room.occurrence_table(index, ["b", "wait", "hmm", "but"], {"but"}).set_index("word")
    assert list(table.index) == ["b", "wait"]
    assert table.loc["b"].tolist() == [2, 0.5, 0.4]
    assert table.loc["wait", "thinking_share"] == 1.0
    assert room.occurrence_table(index, ["but"])["word"].tolist() == ["but"]


PIECES = ["a", " b", ".", " c", "\n", "d", "3", "5", " e", "!", " f"]
DOCUMENT = ["a", " b", " c", ".", " e", " f"]


def test_places_and_what_is_put_there_by_hand():
    corpus = corpus_of(DOCUMENT, ["d", " b", " c"], pieces=PIECES)
    # words begin with a space; "a" and "d" begin documents, "." continues
    assert room.word_boundaries(corpus, Pieces(PIECES)).tolist() == [1, 2, 4, 5, 7, 8]
    assert room.draw_places(corpus, Pieces(PIECES), 2, seed=5)[2:].tolist() == [7, 8]  # two in every document
    longer = room.inject(corpus, np.array([2, 4, 7]), np.array([6, 5, 9]), "changed")
    written = [PIECES[token] for token in longer.tokens]
    assert written == ["a", " b", "3", " c", ".", "d", " e", " f", "d", "!", " b", " c"]
    assert longer.starts.tolist() == [0, 8, 12]


def test_plain_documents_have_no_thinking_and_are_prose():
    corpus = corpus_of(DOCUMENT, DOCUMENT, DOCUMENT, pieces=PIECES)
    corpus.thinking[7] = True
    assert room.plain_documents(corpus).n_documents == 2
    moves = np.repeat(np.array([1, 0, 0], dtype=np.int8), len(DOCUMENT))
    labelled = replace(corpus, moves=moves, move_names=("prose", "explore"))
    assert room.plain_documents(labelled).n_documents == 1
    corpus.thinking[:] = True
    with pytest.raises(UserError, match="no plain documents"):
        room.plain_documents(corpus)


def test_hosts_hold_none_of_the_tokens_and_have_room():
    lines = ["<s>", " a", " b", ".", " wait", " b", ".", " a", " a", " b", "."], [" a", ".", " wait", "."]
    corpus, wait = corpus_of(*lines), Pieces().pieces.index(" wait")
    bare = room.hosts(corpus, Pieces(), [wait], 3, length=6)
    # of the second document one word is left: too few; the first is cut at six tokens
    assert Pieces().decode(bare.tokens.tolist()) == "<s> a b. b."
    assert bare.special.tolist() == [True] + [False] * 5 and bare.n_documents == 1
    with pytest.raises(UserError, match="has room for 9 words"):
        room.hosts(corpus, Pieces(), [], 9)
