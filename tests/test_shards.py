"""Work in shards: made once, whole or absent, merged in order, shared among jobs."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
from tiny import signed_identity

from reasoning_features.bookkeeping import shards
from reasoning_features.bookkeeping.shards import Work, drop_others, map_shards, shard_file
from reasoning_features.bookkeeping.shares import ENGINE, SHARE, Share, asked_engine, asked_share
from reasoning_features.errors import ShareDone, UserError
from reasoning_features.scoring import passes
from reasoning_features.scoring.feature_statistics import SetSums, accumulate
from reasoning_features.scoring.selection import document_blocks
from reasoning_features.text.word_masks import ALL, TokenSets


def squares(made, shard):
    made.append(shard)
    return {"square": np.array([shard**2]), "text": np.arange(shard, dtype=np.float32)}


@pytest.fixture
def made():
    return []


@pytest.fixture
def work(made):
    return Work("squares", partial(squares, made), 5, {"seed": 1})


def values(work, folder):
    return [int(arrays["square"][0]) for arrays in map_shards(work, folder, progress=False)]


def test_shards_are_made_once_and_given_in_their_order(work, made, tmp_path):
    assert values(work, tmp_path) == [0, 1, 4, 9, 16] == values(work, tmp_path)
    assert made == [0, 1, 2, 3, 4]
    other = Work("squares", work.compute, 5, {"seed": 2})
    assert other.digest != work.digest and values(other, tmp_path)[-1] == 16
    assert len(made) == 10
    drop_others(other, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [other.folder(tmp_path).name]


def test_an_interrupted_map_goes_on_and_gives_the_same_bytes(work, made, tmp_path):
    def broken(shard):
        if shard == 3:
            raise KeyboardInterrupt
        return work.compute(shard)

    cut = Work("squares", broken, 5, {})
    with pytest.raises(KeyboardInterrupt):
        values(cut, tmp_path)
    assert made == [0, 1, 2]
    cut.folder(tmp_path).rename(work.folder(tmp_path))  # the code is part of what determines a shard
    assert len(list(work.folder(tmp_path).glob("0*.safetensors"))) == 3
    again = [shard_file(work, tmp_path, i).read_bytes() for i in range(3)]
    assert values(work, tmp_path / "whole") == [0, 1, 4, 9, 16]
    own = [shard_file(work, tmp_path / "whole", i).read_bytes() for i in range(3)]
    assert [a[-8:] for a in again] == [a[-8:] for a in own]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "of other work"])
def test_a_damaged_shard_is_named_and_made_again(work, made, tmp_path, capsys, damage):
    values(work, tmp_path)
    file = shard_file(work, tmp_path, 2)
    whole = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(whole[:-3])
    elif damage == "flipped":
        whole[-1] ^= 1
        file.write_bytes(whole)
    elif damage == "emptied":
        file.write_bytes(b"")
    else:
        other = Work("squares", work.compute, 5, {"seed": 2})
        values(other, tmp_path)
        file.write_bytes(shard_file(other, tmp_path, 2).read_bytes())
    made.clear()
    assert values(work, tmp_path) == [0, 1, 4, 9, 16] and made == [2]
    assert "00002.safetensors is damaged: it is made again." in capsys.readouterr().err


def test_shares_together_make_all_and_each_says_what_comes_next(work, made, tmp_path, monkeypatch):
    monkeypatch.setenv(SHARE, "2/2")
    with pytest.raises(ShareDone, match="squares: 2 of 5 shards are there; run the other shares, then merge"):
        values(work, tmp_path)
    monkeypatch.setenv(SHARE, "merge")
    with pytest.raises(ShareDone, match="2 of 5 shards are there; run the shares that were left out"):
        values(work, tmp_path)
    assert made == [1, 3]
    monkeypatch.setenv(SHARE, "1/2")
    assert values(work, tmp_path) == [0, 1, 4, 9, 16] and made == [1, 3, 0, 2, 4]
    monkeypatch.setenv(SHARE, "merge")
    assert values(work, tmp_path) == [0, 1, 4, 9, 16] and len(made) == 5


@pytest.mark.parametrize("told", ["3", "0/4", "5/4", "a/b", "1/2/3"])
def test_a_share_that_is_none_is_refused(told, monkeypatch):
    monkeypatch.setenv(SHARE, told)
    with pytest.raises(UserError, match="is not a share: give SHARD=3/16"):
        asked_share()


def test_every_shard_is_in_one_share():
    for shard in range(20):
        assert sum(Share(number, 7).has(shard) for number in range(1, 8)) == 1
    assert not Share(0, 1).has(0)


def test_an_unknown_engine_is_refused(monkeypatch):
    monkeypatch.delenv(ENGINE, raising=False)
    assert asked_engine() == ""
    monkeypatch.setenv(ENGINE, "slurm")
    with pytest.raises(UserError, match="no engine 'slurm': leave ENGINE out, or give ENGINE=ray"):
        asked_engine()
    monkeypatch.setenv(ENGINE, "ray")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs Ray"):
        asked_engine()


def test_arrays_come_back_as_they_were(tmp_path):
    given = {
        "none": np.array(3),
        "empty": np.zeros((0, 2), np.float32),
        "turned": np.arange(6).reshape(2, 3).T,
    }
    (found,) = map_shards(Work("arrays", lambda shard: given, 1, {}), tmp_path, progress=False)
    for name, array in given.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("blocks", [None, 3, 50])
def test_a_pass_in_shards_sums_what_one_pass_does(tiny_subject, tiny_corpus, tmp_path, blocks):
    sets = TokenSets.of({ALL: ~tiny_corpus.special, "odd": np.arange(tiny_corpus.n_tokens) % 2 == 1})
    sae = signed_identity(tiny_subject.d_model)
    groups = document_blocks(tiny_corpus, blocks) if blocks else None
    found = {}
    for kept in (None, tmp_path):
        sums = SetSums(sets, groups, blocks or 1)
        given = tiny_subject, sae, tiny_corpus, {"sums": sums}, 64, {"sets": sets.digest}
        passes.one_pass_in_shards("test", *given, kept, blocks, tokens=50)
        found[kept] = sums.result()
    assert len(list(tmp_path.glob("test-*/*.safetensors"))) >= 2
    np.testing.assert_array_equal(found[None].sums, found[tmp_path].sums)
    from reasoning_features.residual_stream.activations import stream

    whole = accumulate(stream(tiny_subject, tiny_corpus, 64), sae, sets)
    total = found[None].total() if blocks else found[None]
    np.testing.assert_allclose(total.sums, whole.sums, rtol=1e-6)
    np.testing.assert_array_equal(total.counts, whole.counts)


def test_the_code_is_part_of_what_determines_a_shard(work, monkeypatch):
    before = Work("a", partial(passes._shard), 1, {}).digest
    monkeypatch.setattr(shards.sources, "imported_sources", lambda code: {"changed": "x"})
    assert Work("a", partial(passes._shard), 1, {}).digest != before
    assert os.environ.get(ENGINE) in (None, "")
