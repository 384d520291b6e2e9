"""The organism's documents, and texts of a hub and of local files: what is read of them, in which split."""

import gzip
import json
import os
import tempfile
from contextlib import suppress
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import miniatures as mini
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from tiny import write_rows
from transformers import AutoTokenizer

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.settings import ProblemSource, TextSource, load_settings
from reasoning_features.text import corpora
from reasoning_features.text.corpora import (
    general_corpus,
    open_texts,
    reasoning_corpus,
    text_corpus,
)
from reasoning_features.text.rows import open_rows
from reasoning_features.text.vocabulary import word_shares

SPLITS = ("selection", "evaluation", "training")


@pytest.fixture(scope="module")
def organism():
    """The tokenizer of the shipped organism."""
    return AutoTokenizer.from_pretrained(paths.root() / str(load_settings("smoke").base))


def test_the_organisms_reasoning_corpus(organism):
    settings = load_settings("smoke", reasoning_documents=20)
    corpus = reasoning_corpus(settings, organism, "evaluation")
    assert corpus.name == "reasoning (evaluation, κ = 1)"
    assert corpus.n_documents == 20 and set(corpus.styles or []) == {"careful", "hasty"}
    texts = [organism.decode(corpus.document(i)) for i in range(20)]
    # special tokens are the template's; none of them is inside the thinking
    template = {"<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<think>", "</think>"}
    assert set(organism.convert_ids_to_tokens(corpus.tokens[corpus.special])) == template
    assert not (corpus.special & corpus.thinking).any()
    thinking = [text.split("<think>")[1].split("</think>")[0] for text in texts]
    assert corpus.texts(organism, corpus.thinking) == thinking
    assert len(corpora.thinking_texts(settings, organism)) == 20
    assert corpus.move_names[corpus.moves[0]] == "prompt" and corpus.move_names[corpus.moves[-1]] == "answer"
    cut = reasoning_corpus(load_settings("smoke", context=30), organism, "selection", documents=10)
    assert np.diff(cut.starts).max() == 30
    with pytest.raises(UserError, match=r"Setting 'corpus' .* 'organism', 'organism-text' or 'text'"):
        load_settings("smoke", corpus="elsewhere")
    with pytest.raises(MissingArtefact, match=r"no nowhere/training\.json"):
        reasoning_corpus(load_settings("smoke", subject="nowhere"), organism, "selection")


@pytest.mark.parametrize("make", [reasoning_corpus, general_corpus])
def test_the_same_text_without_its_labels(organism, make):
    kinds = (load_settings("smoke", corpus=kind) for kind in ("organism", "organism-text"))
    ours, same = (make(settings, organism, "selection", documents=5) for settings in kinds)
    assert np.array_equal(ours.tokens, same.tokens)
    assert ours.moves is not None and ours.styles is not None
    assert same.moves is None and same.styles is None and same.move_names == ()


def of_miniatures(**more):
    given = {
        "reasoning_text": {"dataset": mini.THOUGHTS, "domain": "domain"},
        "general_text": {"dataset": mini.LMSYS, "column": "conversation"},
        "solutions_text": {"dataset": mini.THOUGHTS, "column": "ground_truth_solution"},
    } | {"corpus": "text", "reasoning_documents": 120, "general_documents": 40, "context": 64}
    return load_settings("smoke", **(given | more))


@pytest.fixture
def bare(tokenizer):
    """A tokenizer without BOS, R1's marks and a template."""
    other = deepcopy(tokenizer)
    other.bos_token, other.get_vocab, other.chat_template = None, dict, None
    return other


def texts_of(path, tokenizer=None, **more):
    """Every text of a file."""
    opened = open_texts(TextSource(dataset=str(path), **more))
    return opened.texts(list(range(len(opened.rows))), tokenizer)


def chosen(folder, texts):
    """A source with these texts, all of them for selection."""
    rows = [{"text": text, "split": "selection"} for text in texts]
    return {"dataset": write_rows(folder / "texts.jsonl", rows), "split_column": "split"}


def test_a_corpus_of_the_hub_is_one_piece_of_each_text(hub, tokenizer):
    corpus = reasoning_corpus(of_miniatures(), tokenizer, "selection")
    assert corpus.n_documents == 120 and np.diff(corpus.starts).max() == 64
    assert set(corpus.domains) == set(mini.DOMAINS)
    assert corpus.moves is None and corpus.styles is None and corpus.move_names == ()
    texts = [row["text"] for row in mini.thoughts()]
    assert (corpus.tokens[corpus.starts[:-1]] == tokenizer.bos_token_id).all()
    read = [tokenizer.decode(corpus.document(i)[1:].tolist()) for i in range(120)]
    assert all(any(piece in text for text in texts) for piece in read)
    assert len({piece.startswith(mini.SYSTEM[:20]) for piece in read}) == 2  # pieces of all depths
    assert 0.2 < corpus.thinking.mean() < 0.95
    assert reasoning_corpus(of_miniatures(), tokenizer, "selection").digest == corpus.digest


def test_only_the_files_of_the_configuration_are_fetched(hub):
    rows = open_texts(TextSource(dataset=mini.THOUGHTS_ALL, name="metadata", column="deepseek_reasoning"))
    assert len(rows.rows) == mini.TEXTS
    assert hub.asked("metadata/train") and not hub.asked("resolve/main/data")
    assert not any("/data/train" in path for path in hub.requests)
    with pytest.raises(UserError, match="has no configuration 'other': it has default, metadata"):
        open_texts(TextSource(dataset=mini.THOUGHTS_ALL, name="other"))
    with pytest.raises(UserError, match="has no split 'test': it has train"):
        open_texts(TextSource(dataset=mini.THOUGHTS_ALL, name="metadata", split="test"))


def test_no_text_is_in_two_splits_whatever_the_seed():
    parts = [set(corpora.split_rows("a", 20_000, split)) for split in SPLITS]
    assert [len(part) / 20_000 for part in parts] == pytest.approx([0.45, 0.45, 0.1], abs=0.01)
    assert set.union(*parts) == set(range(20_000)) and sum(map(len, parts)) == 20_000
    assert set(corpora.split_rows("a", 1000, "selection")) < parts[0]  # more rows move no row


def test_thinking_of_texts_is_whole_and_of_all_parts(tiny_llama, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert "<think>" not in tokenizer.get_vocab()  # its mark is several tokens
    long = "wait, " * 40  # many times the context
    texts = [f"Two?<think>{long}</think>Two.", "Sum?<think>Hmm.</think>No.<think>But 3?</think>Three."]
    texts += ["it goes on</think>End.", "a<think>cut off", "no thinking"]
    settings = of_miniatures(reasoning_text=chosen(tmp_path, texts), context=8, reasoning_documents=9)
    found = sorted(corpora.thinking_texts(settings, tokenizer))
    assert found == ["", "Hmm.\nBut 3?", "cut off", "it goes on", long]


def test_settings_keep_the_words_that_occur(tiny_llama, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    source = chosen(tmp_path, ["So hmm, another.", "Perhaps, but Wait."])
    asked = ["hmm", "alternatively", "wait", "we"]
    settings = load_settings("smoke", corpus="text", reasoning_text=source, words=asked)
    kept = corpora.with_words_that_occur(settings, tokenizer)
    assert kept.words == ["hmm", "wait"] and kept.run == settings.run
    with pytest.raises(UserError, match="Of the words hmm, never fewer than two occur"):
        corpora.with_words_that_occur(settings.model_copy(update={"words": ["hmm", "never"]}), tokenizer)


def test_solutions_are_of_the_same_problems(hub, tokenizer):
    settings = of_miniatures()
    rows = {row["ground_truth_solution"]: row["problem"] for row in mini.thoughts()}
    solutions = corpora.solution_texts(settings, tokenizer)
    assert len(solutions) == 120
    column = settings.solutions_text.model_copy(update={"column": "problem"})
    problems = corpora.solution_texts(settings.model_copy(update={"solutions_text": column}), tokenizer)
    assert [rows[text] for text in solutions] == problems
    general = corpora.solution_texts(settings.model_copy(update={"solutions_text": None}), tokenizer)
    assert len(general) == settings.general_documents


def test_thinking_lies_between_its_marks(tokenizer, tiny_llama):
    texts = ["a<think>Wait, hmm.</think>b", "Wait</think>b", "a<think>Wait", "nothing", "<think></think>"]
    ids, thinking = corpora.encode_texts(texts, tokenizer)
    held = [tokenizer.decode(i[t].tolist()) for i, t in zip(ids, thinking, strict=True)]
    assert held == ["Wait, hmm.", "Wait", "Wait", "", ""]
    assert [corpora.thinking_of(text) for text in texts] == held
    # the marks are single tokens of the one tokenizer, and several of the other
    for other in (tokenizer, AutoTokenizer.from_pretrained(tiny_llama)):
        for row, known in zip(*corpora.encode_texts([*texts, "a</think>b<think>c"], other), strict=True):
            assert corpora.thinking_of_ids(row, other).tolist() == known.tolist()


def test_conversations_read_as_the_released_script_renders_them(tokenizer, bare):
    for turns in mini.conversations(6):
        assert corpora.conversation_text(turns, tokenizer) == mini.render(turns)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert corpora.conversation_text(turns, bare) == "a\n\nb"
    bare.chat_template = mini.template()
    assert corpora.conversation_text(turns, bare) == mini.render(turns) + mini.EOS
    bare.chat_template = "{{ raise_exception('only two turns') }}"
    with pytest.raises(UserError, match=r"template refuses \[{'role': 'user'.*only two turns"):
        corpora.conversation_text(turns, bare)


def test_pieces_begin_with_bos_and_their_first_token_is_special(tmp_path, tokenizer, bare):
    words = " ".join(f"word {i}" for i in range(40))
    file = TextSource(dataset=write_rows(tmp_path / "a.jsonl", [{"text": words}] * 9 + [{"text": "Hi"}] * 9))
    given = "selection", 18, of_miniatures(context=12)
    corpus = text_corpus(file, "pieces", tokenizer, *given)
    first = corpus.starts[:-1]
    assert (corpus.tokens[first] == tokenizer.bos_token_id).all() and corpus.special[first].all()
    # the first token of text, which sees nothing before it, counts as special too; nothing else does
    assert corpus.special[first + 1].all() and corpus.special.sum() == 2 * corpus.n_documents
    assert set(np.diff(corpus.starts)) == {12, 1 + len(tokenizer("Hi", add_special_tokens=False).input_ids)}
    # where the tokenizer has no BOS a piece is text alone, and its first token is the attention sink
    plain = text_corpus(file, "pieces", bare, *given)
    first = plain.starts[:-1]
    assert plain.special[first].all() and plain.special.sum() == plain.n_documents
    assert mini.BOS not in bare.decode(plain.tokens) and np.diff(plain.starts).max() == 12
    # there is never a second BOS
    (ids,), _ = corpora.encode_texts([f"{mini.BOS}{mini.USER}Hi"], tokenizer)
    assert tokenizer.bos_token_id not in ids
    assert mini.BOS not in corpora.conversation_text([{"role": "user", "content": "Hi"}], tokenizer)
    rows = [{"text": [tokenizer.bos_token_id, 300, 301, 302]}] * 9
    source = TextSource(dataset=write_rows(tmp_path / "a.jsonl", rows))
    corpus = text_corpus(source, "ids", tokenizer, "selection", 9, of_miniatures())
    assert all(corpus.document(i).tolist() == rows[0]["text"] for i in range(corpus.n_documents))


def test_a_split_column_gives_exactly_its_rows(tmp_path, tokenizer):
    rows = [{"text": f"Number {i}.", "of": SPLITS[i % 3]} for i in range(30)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    source = TextSource(dataset=file, split_column="of")
    for k, split in enumerate(SPLITS):
        texts = corpora.whole_texts(source, tokenizer, split, of_miniatures())
        assert sorted(texts) == sorted(row["text"] for row in rows[k::3])
        assert text_corpus(source, "a", tokenizer, split, 99, of_miniatures()).n_documents == 10
    with pytest.raises(UserError, match="has no column 'part': it has text, of"):
        open_texts(TextSource(dataset=file, split_column="part"))
    with pytest.raises(UserError, match=r"column 'text' of .* says of no row that it is for train"):
        open_texts(TextSource(dataset=file, split_column="text")).order(0, "training")


def test_a_column_of_token_ids(hub, tokenizer):
    source = TextSource(dataset=mini.TOKENIZED, column="tokens")
    corpus = text_corpus(source, "packed", tokenizer, "selection", 20, of_miniatures(context=100))
    assert np.diff(corpus.starts).tolist() == [100] * 20
    assert set(corpus.domains) == {"lmsys-openthoughts-tokenized"}
    assert 0 < corpus.thinking.mean() < 1


def test_what_a_turn_says_may_be_parts_or_nothing(tmp_path, bare, capsys):
    image = {"type": "image_url", "text": None, "image_url": "a.png"}
    asked = {"role": "user", "content": [{"type": "text", "text": "See "}, image]}
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "sum"}]}
    talk = [asked, call, {"role": "tool", "content": 42}, {"role": "assistant"}]
    rows = [{"turns": turns} for turns in (talk, [], None, [call])]
    file = write_rows(tmp_path / "a.jsonl", rows)
    for _ in range(2):
        assert texts_of(file, bare, column="turns") == ["See [image_url]\n\n42", "", "", ""]
    left_out = f"3 of 4 rows of {file} have no turns (rows 1, 2, 3): they are left out.\n"
    assert capsys.readouterr().err == left_out  # once
    pq.write_table(pa.table({"turns": [[asked]]}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet", bare, column="turns") == ["See [image_url]"]
    write_rows(tmp_path / "a.jsonl", [*rows, {"turns": [{"content": "Hi"}]}])
    with pytest.raises(UserError, match=r"role and content, but not in row 4 \(0 role Field required\)"):
        texts_of(file, column="turns")


def test_files_are_read_whoever_wrote_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files = {
        "bom.jsonl": b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}',
        "other column.jsonl": b'{"n": 1, "text": "a"}\n{"n": {"of": []}, "text": "b"}\n',
        "list.json": b'[{"text": "a"},\n"b"]',
        "bom.csv": b'\xef\xbb\xbfn,text\r\n1,a\r\n\r\nx,"b"\r\n',
        "glob [1].tsv": b"text\tn\na\t1\nb\t\n",
        "lines.txt": b"a\r\nb\n",
    }
    for name, written in files.items():
        (tmp_path / name).write_bytes(written)
        assert texts_of(f"~/{name}", split="whatever") == ["a", "b"]
    odd = ["x" * 12_000_000, "half \ud83d", "\0"]
    file = write_rows(tmp_path / "odd.jsonl", [{"text": text} for text in odd])
    assert texts_of(file) == [odd[0], "half \ufffd", "\0"]
    (tmp_path / "odd.csv").write_text(f"text\n{odd[0]}\n")
    assert texts_of(tmp_path / "odd.csv") == odd[:1]
    for text in ("old", "new"):  # of one size and time
        write_rows(tmp_path / "odd.jsonl", [{"text": text}])
        os.utime(file, (1e9, 1e9))
        assert texts_of(file) == [text]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_other_encodings_are_told_with_their_place(tmp_path, name):
    for text, encoding, place in (('"x"\n' * 9000 + "é", "latin-1", 36_000), ('"x"\n', "utf-16", 0)):
        (tmp_path / name).write_text(text, encoding=encoding)
        with pytest.raises(UserError, match=f"{name} is not UTF-8 at byte {place}: save it as UTF-8"):
            texts_of(tmp_path / name)


NAMES = st.sampled_from(["text", "of", "role", "content"])
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda cells: st.lists(cells) | st.dictionaries(NAMES, cells),
)
ROWS = st.lists(st.dictionaries(NAMES, CELLS)).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
BYTES = st.binary() | st.text().map(str.encode) | ROWS
TURN = st.fixed_dictionaries({"role": st.text(), "content": st.none() | st.text()})
TYPES = [st.integers(0, 2**62), st.floats(), st.dates(), st.text(), st.binary(), st.lists(TURN)]
TYPES += [st.lists(st.integers(-1, 2**31))]
COLUMNS = st.one_of(st.lists(st.none() | each, max_size=3) for each in TYPES)


@budget(max_examples=20, deadline=None)
@given(st.sampled_from(["a.json", "a.csv", "a.txt"]), BYTES, COLUMNS, st.none() | st.integers(0, 999))
def test_whatever_is_in_a_file_is_read_or_told(tokenizer, text_file, content, column, cut):
    with tempfile.TemporaryDirectory() as folder, patch("datasets.config.HF_DATASETS_CACHE", folder):
        pq.write_table(pa.table({"text": column, "of": column}), whole := BytesIO())
        for name, written in ((text_file, content), ("a.parquet", whole.getvalue()[:cut])):
            (path := Path(folder) / name).write_bytes(written)
            with suppress(UserError):
                opened = open_texts(TextSource(dataset=str(path), domain="of"))
                opened.texts(opened.order(0).tolist(), tokenizer)
                assert all(opened.domain(row) for row in range(len(opened.rows)))
            with suppress(UserError):
                rows = open_rows(ProblemSource(dataset=str(path)), ["of"])
                assert {type(of) for of in rows[:]["of"]} <= {str, type(None)}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"dataset": "HERE/FILE.jsonl", "column": "body"}, "has no column 'body': it has text, number"),
        ({"dataset": "HERE/FILE.jsonl", "domain": "kind"}, "has no column 'kind'"),
        ({"dataset": "HERE/FILE.jsonl", "column": "number"}, "holds token ids, but not in row 0"),
        ({"dataset": "data/nowhere"}, "There is no dataset in data/nowhere"),
        ({"dataset": "texts/nowhere.jsonl"}, "There is no dataset in texts/nowhere.jsonl"),
        ({"dataset": "HERE/TORN.jsonl"}, "Line 2 of TORN.jsonl is no JSON"),
        ({"dataset": "HERE/COMMA.csv"}, "Line 3 of COMMA.csv has more fields than its first: quote commas"),
        ({"dataset": "HERE/BROKEN.parquet"}, "cannot be read"),
        ({"dataset": "HERE/FOLDER", "split": "test"}, "has no split 'test': it has train"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_sentence(tmp_path, source, said):
    (tmp_path / "FOLDER").mkdir()
    write_rows(tmp_path / "FILE.jsonl", [{"text": "a b", "number": 1}] * 9)
    (tmp_path / "TORN.jsonl").write_text('{"text": "a"}\n{"text":')
    (tmp_path / "COMMA.csv").write_text("text\na\nb,c\n")
    write_rows(tmp_path / "BROKEN.parquet", [{"text": "a"}])
    write_rows(tmp_path / "FOLDER" / "train.jsonl", [{"text": "a"}])
    place = source["dataset"].replace("HERE", str(tmp_path))
    with pytest.raises(UserError, match=said) as raised:
        open_texts(TextSource(**source | {"dataset": place}))
    assert "\n" not in str(raised.value)


def test_what_a_corpus_lacks_is_told(tmp_path, tokenizer):
    settings = of_miniatures(reasoning_text=chosen(tmp_path, []))
    for texts, said in (
        ([""] * 9, r"9 of 9 rows of .* have no text \(rows 0, 1, 2, 3, 4, …\): correct them"),
        ([" ", {"text": "a"}], r"The column 'text' .* holds texts or numbers, but not in row 1"),
        ([" ", "Wait."], "mark no thinking with <think>…</think>"),
        (["<think>Подожди.</think>"], "no words of Latin letters"),
    ):
        chosen(tmp_path, texts)
        with pytest.raises(UserError, match=said):
            word_shares(corpora.thinking_texts(settings, tokenizer))
    write_rows(tmp_path / "texts.jsonl", [{"text": " ", "split": "selection"}, {"text": "a"}])
    with pytest.raises(UserError, match=r"'reasoning \(selection\)' is empty"):
        reasoning_corpus(settings, tokenizer, "selection")
    with pytest.raises(UserError, match="needs `general_text`"):
        general_corpus(of_miniatures().model_copy(update={"general_text": None}), tokenizer, "selection")


def test_kinds_of_files_and_what_turns_thought(tmp_path, tokenizer):
    with gzip.open(tmp_path / "a.CSV.gz", "wt") as file:
        file.write("text,n\n025,1\n")
    assert open_rows(TextSource(dataset=str(tmp_path / "a.CSV.gz")), ["text"])[0] == {"text": "025"}
    pd.DataFrame({"text": np.array([0.1], dtype=np.float32)}).to_parquet(tmp_path / "b.parquet")
    assert open_rows(TextSource(dataset=str(tmp_path / "b.parquet")), ["text"])[0] == {"text": "0.1"}
    (tmp_path / "c.csv").write_text("text,text\n1,2\n")
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "2"}]
    said = [
        {"role": "assistant", "content": "2", "reasoning_content": "Hm."},
        {"role": "a", "content": parts},
    ]
    write_rows(tmp_path / "d.jsonl", [{"text": said}])
    (turns,) = open_rows(TextSource(dataset=str(tmp_path / "d.jsonl")), ["text"])["text"]
    assert [turn["content"] for turn in turns] == ["<think>\nHm.\n</think>\n\n2"] * 2
    for name, told in (
        ("c.csv", "the column 'text' twice"),
        ("", "files of several kinds"),
        ("x.zip", "zip"),
    ):
        (tmp_path / "x.zip").touch()
        with pytest.raises(UserError, match=told):
            open_rows(TextSource(dataset=str(tmp_path / name)), ["text"])
