"""Rows for training: packed texts, token ids as they are, and one order for good."""

from __future__ import annotations

import json
import re

import miniatures as mini
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from reasoning_features.dictionaries.training_buffers import ordinary
from reasoning_features.dictionaries.training_rows import training_rows
from reasoning_features.errors import UserError
from reasoning_features.settings import TextSource, load_settings
from reasoning_features.text.text_sources import TextRows, open_texts


@pytest.fixture(scope="module")
def tokenizer(miniature_root):
    return AutoTokenizer.from_pretrained(miniature_root / "models" / mini.LLAMA)


TOKENS = TextSource(dataset=mini.TOKENIZED, column="tokens")
TALKS = TextSource(dataset=mini.LMSYS, column="conversation")
SLIM = TextSource(dataset=mini.SLIM)
PIECES = 6
"""The miniatures' conversations are packed in so many pieces."""


def settings(**more):
    return load_settings("smoke", corpus="text", context=32, **more)


def test_token_ids_are_used_as_they_are_longer_rows_cut_up(hub, tokenizer):
    rows = training_rows(settings(), tokenizer, [TOKENS])
    held = open_texts(TOKENS)
    whole = np.concatenate(held.ids(list(range(len(held.rows))))).reshape(-1, 32)
    ours = rows.rows(0, len(rows)).numpy()
    assert len(rows) == len(whole) == 4 * len(held.rows)
    assert sorted(map(tuple, ours)) == sorted(map(tuple, whole))
    assert ours.tolist() != whole.tolist()


@pytest.mark.parametrize("bos", [True, False])
def test_texts_are_packed_with_eos_between_and_bos_before_each_row(hub, tokenizer, miniature_root, bos):
    if not bos:
        tokenizer = AutoTokenizer.from_pretrained(miniature_root / "models" / mini.LLAMA)
        tokenizer.bos_token = None
    rows = training_rows(settings(), tokenizer, [TALKS], tokens=10**9)
    tokens = rows.rows(0, len(rows))
    assert tokens.shape == (len(rows), 32) and tokens.dtype == torch.int64
    begun = tokens == tokenizer.convert_tokens_to_ids(mini.BOS)
    assert begun[:, 0].all() if bos else not begun.any()
    assert not begun[:, 1:].any()
    trained_on = ordinary(tokens, torch.tensor(tokenizer.all_special_ids))
    assert not trained_on[:, 0].any() and not trained_on[tokens == tokenizer.eos_token_id].any()
    assert trained_on[:, 1:].float().mean() > 0.8
    texts = [mini.render(turns) for turns in mini.conversations()]
    lengths = sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    left_over = lengths - int((~begun).sum())
    assert 0 <= left_over < 32 * PIECES  # of each piece less than a row
    between = sum(len(turns) // 2 for turns in mini.conversations())  # within conversations, and after each
    assert abs(int((tokens == tokenizer.eos_token_id).sum()) - between) <= 2 * PIECES


def test_only_rows_for_training_where_a_column_tells_splits(tmp_path, tokenizer, hub):
    splits = ("training", "selection", "evaluation")
    texts = [{"text": f"Wait {i}. " * 20, "split": splits[i % 3]} for i in range(60)]
    file = tmp_path / "split.jsonl"

    def rows_of(column, name="text", **more):
        file.write_text("".join(json.dumps(row) + "\n" for row in texts))
        source = TextSource(dataset=str(file), column=name, split_column=column)
        return training_rows(settings(), tokenizer, [source], **more)

    rows = rows_of("split")
    held = tokenizer.decode(rows.rows(0, len(rows)).flatten().tolist())
    assert {int(number) % 3 for number in re.findall(r"Wait (\d+)\.", held)} == {0}
    assert len(rows_of(None)) > 2 * len(rows) and rows_of(None).identity != rows.identity
    with pytest.raises(UserError, match="says of no row that it is for training: name another"):
        rows_of("text")
    # the same texts divided otherwise are other rows
    texts = [row | {"split": splits[(i + 1) % 3]} for i, row in enumerate(texts)]
    assert rows_of("split").identity != rows.identity
    # token ids that are taken as they are too
    texts = [{"ids": [i + 300] * 64, "split": row["split"]} for i, row in enumerate(texts)]
    rows = rows_of("split", "ids")
    assert len(rows) == 2 * 20 and {(int(i) + 1 - 300) % 3 for i in rows.rows(0, 40).flatten()} == {0}


def test_sources_come_in_turn_and_in_one_order(hub, tokenizer):
    both = training_rows(settings(), tokenizer, [TALKS, SLIM])
    alone = [training_rows(settings(), tokenizer, [each]) for each in (TALKS, SLIM)]
    for k, each in enumerate(alone):
        mine = set(map(tuple, both.rows(0, len(both))[k::2].tolist()))
        assert mine <= set(map(tuple, each.rows(0, len(each)).tolist()))
    assert len(both) == 2 * min(map(len, alone))
    again = training_rows(settings(), tokenizer, [TALKS, SLIM])
    assert again.identity == both.identity and torch.equal(again.rows(3, 17), both.rows(3, 17))
    assert torch.equal(both.rows(0, 20)[5:9], both.rows(5, 9))
    other = training_rows(settings(seed=1), tokenizer, [TALKS, SLIM])
    assert other.identity != both.identity and not torch.equal(other.rows(0, 9), both.rows(0, 9))
    assert both.rows(4, 4).shape == (0, 32)
    with pytest.raises(IndexError):
        both.rows(0, len(both) + 1)


def test_only_as_many_texts_as_are_needed_are_tokenised(tmp_path, tokenizer, hub, monkeypatch):
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"text": f"Wait, number {i}. " * 4}) + "\n" for i in range(500)))
    seen = []
    with_text = TextRows.text_of
    monkeypatch.setattr(TextRows, "text_of", lambda *given: seen.append(given[1]) or with_text(*given))
    some = training_rows(settings(), tokenizer, [TextSource(dataset=str(file))], tokens=3000)
    every = training_rows(settings(), tokenizer, [TextSource(dataset=str(file))], tokens=10**9)
    assert 3000 <= 32 * len(some) < 6000 < 32 * len(every)
    # 50 texts, and 50, were enough for the first; the second takes up what was packed already
    assert len(seen) == len(set(seen)) == 500


def test_what_cannot_be_packed_is_told(tmp_path, tokenizer, hub):
    file = tmp_path / "short.jsonl"
    file.write_text(json.dumps({"text": "Wait"}) + "\n")
    with pytest.raises(UserError, match="do not fill one row of 32 tokens"):
        training_rows(settings(), tokenizer, [TextSource(dataset=str(file))])
    with pytest.raises(UserError, match="have 128 tokens, fewer than the context of 256"):
        training_rows(load_settings("smoke", corpus="text", context=256), tokenizer, [TOKENS])
    with pytest.raises(UserError, match="set `training_text`"):
        training_rows(settings(), tokenizer, [])
    file.write_text(json.dumps({"text": [5, 900_000] * 40}) + "\n")
    with pytest.raises(UserError, match="holds the token id 900000"):
        training_rows(settings(), tokenizer, [TextSource(dataset=str(file))])
