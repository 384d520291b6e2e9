"""A harvest is what the model gives; interrupted, damaged and foreign samples are noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_corpus

from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream import activations
from reasoning_features.residual_stream.activations import (
    Moments,
    batches_of,
    harvest,
    load_sample,
    sample_key,
    stream,
)
from reasoning_features.text.corpus import Corpus

BATCH_TOKENS = 60


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "BATCHES_A_SHARD", 2)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_stream_equals_hidden_states_of_each_document(tiny_subject: Subject, tiny_corpus: Corpus) -> None:
    seen: dict[int, torch.Tensor] = {}
    for batch in stream(tiny_subject, tiny_corpus, BATCH_TOKENS):
        assert batch.residual.dtype == torch.float32
        seen |= dict(zip(batch.positions.tolist(), batch.residual, strict=True))
    assert sorted(seen) == np.flatnonzero(~tiny_corpus.special).tolist()
    for i in range(tiny_corpus.n_documents):
        ids = torch.from_numpy(tiny_corpus.document(i)).long()[None]
        hidden = tiny_subject.model(input_ids=ids, output_hidden_states=True).hidden_states[2][0]
        ours = torch.stack([seen[p] for p in range(tiny_corpus.starts[i] + 1, tiny_corpus.starts[i + 1])])
        torch.testing.assert_close(ours, hidden[1:], rtol=1e-4, atol=1e-4)  # another batch, other sums


def test_a_sample_is_the_stream(tiny_subject: Subject, tiny_corpus: Corpus, tmp_path: Path) -> None:
    include = tiny_corpus.moves == 1
    directory = harvest(tiny_subject, tiny_corpus, tmp_path / "sample", BATCH_TOKENS, include, progress=False)
    sample = load_sample(directory, sample_key(tiny_subject, tiny_corpus, BATCH_TOKENS, include))
    streamed = list(stream(tiny_subject, tiny_corpus, BATCH_TOKENS, include))
    assert torch.equal(sample.residual, torch.cat([batch.residual for batch in streamed]))
    assert sorted(sample.positions.tolist()) == np.flatnonzero(include).tolist()
    again = list(batches_of(sample, 7))
    assert torch.equal(torch.cat([batch.residual for batch in again]), sample.residual)
    assert max(len(batch.positions) for batch in again) == 7


def test_an_interrupted_harvest_goes_on_and_gives_the_same_bytes(
    tiny_subject: Subject, tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(harvest(tiny_subject, tiny_corpus, tmp_path / "whole", BATCH_TOKENS, progress=False))
    assert len(whole) > 3  # at least three shards and the manifest
    read, calls = activations._read, []

    def failing(*args: object) -> activations.ActivationBatch:
        calls.append(1)
        if len(calls) == 4:  # in the second shard of two batches
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(activations, "_read", failing)
    with pytest.raises(KeyboardInterrupt):
        harvest(tiny_subject, tiny_corpus, tmp_path / "cut", BATCH_TOKENS, progress=False)
    assert not (tmp_path / "cut").exists()
    assert [path.name for path in (tmp_path / "cut.shards").glob("*/*.safetensors")] == ["00000.safetensors"]
    n_batches = len(list(tiny_corpus.batches(BATCH_TOKENS)))
    calls.clear()
    calls.extend([1] * 4)
    harvest(tiny_subject, tiny_corpus, tmp_path / "cut", BATCH_TOKENS, progress=False)
    assert len(calls) - 4 == n_batches - 2  # the first shard was not computed again
    assert contents(tmp_path / "cut") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_a_damaged_shard_of_an_interrupted_harvest_is_named_and_computed_again(
    tiny_subject: Subject, tiny_corpus: Corpus, tmp_path: Path, monkeypatch, capsys
) -> None:
    expected = contents(harvest(tiny_subject, tiny_corpus, tmp_path / "whole", BATCH_TOKENS, progress=False))
    with monkeypatch.context() as patch:
        patch.setattr(activations, "_write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            harvest(tiny_subject, tiny_corpus, tmp_path / "cut", BATCH_TOKENS, progress=False)
    (shard,) = (tmp_path / "cut.shards").glob("*/00001.safetensors")
    shard.unlink()  # the interrupted sample has a link to it
    shard.write_bytes(b"half")
    harvest(tiny_subject, tiny_corpus, tmp_path / "cut", BATCH_TOKENS, progress=False)
    assert "00001.safetensors is damaged: it is made again" in capsys.readouterr().err
    assert contents(tmp_path / "cut") == expected


def test_damage_is_named(tiny_subject: Subject, tiny_corpus: Corpus, tmp_path: Path) -> None:
    directory = harvest(tiny_subject, tiny_corpus, tmp_path / "s", BATCH_TOKENS, progress=False)
    shard = directory / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(CorruptArtefact, match=r"shard-00001\.safetensors is missing or damaged"):
        load_sample(directory)
    load_sample(directory, shards=[0])
    shard.unlink()
    with pytest.raises(CorruptArtefact, match=r"shard-00001\.safetensors"):
        load_sample(directory)
    (directory / "manifest.json").write_text("{")
    with pytest.raises(CorruptArtefact, match=r"manifest\.json is damaged"):
        load_sample(directory)


def test_a_sample_of_something_else_is_refused_and_kept(
    tiny_subject: Subject, tiny_corpus: Corpus, tmp_path: Path
) -> None:
    directory = harvest(tiny_subject, tiny_corpus, tmp_path / "s", BATCH_TOKENS, progress=False)
    before = contents(directory)
    other = make_corpus(9, seed=1)
    with pytest.raises(UserError, match="sample with another corpus_digest, included_digest"):
        harvest(tiny_subject, other, directory, BATCH_TOKENS, progress=False)
    with pytest.raises(UserError, match="sample with another included_digest"):
        load_sample(
            directory,
            sample_key(tiny_subject, tiny_corpus, BATCH_TOKENS, np.ones(tiny_corpus.n_tokens, dtype=bool)),
        )
    harvest(tiny_subject, tiny_corpus, directory, BATCH_TOKENS, progress=False)
    assert contents(directory) == before


def test_a_missing_sample_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="`make nb-01` makes it"):
        load_sample(tmp_path / "nothing")


def test_statistics_of_shards_merge_to_one_pass(
    tiny_subject: Subject, tiny_corpus: Corpus, tmp_path: Path
) -> None:
    directory = harvest(tiny_subject, tiny_corpus, tmp_path / "s", BATCH_TOKENS, progress=False)
    n_shards = len(contents(directory)) - 1
    parts = [Moments.of(load_sample(directory, shards=[i]).residual) for i in range(n_shards)]
    merged = parts[-1]
    for part in parts[:-1]:
        merged = merged.merge(part)
    once = Moments.of(load_sample(directory).residual)
    assert merged.count == once.count
    np.testing.assert_allclose(merged.mean, once.mean, rtol=1e-12)
    assert merged.variance == pytest.approx(once.variance, rel=1e-12)
    assert merged.mean_norm == pytest.approx(once.mean_norm, rel=1e-12)


def test_moments_by_hand() -> None:
    # (0, 0) and (6, 8): mean (3, 4), each point 5 away from it, norms 0 and 10
    moments = Moments.of(torch.tensor([[0.0, 0.0], [6.0, 8.0]]))
    assert moments.mean.tolist() == [3.0, 4.0]
    assert (moments.variance, moments.mean_norm) == (25.0, 5.0)


@pytest.mark.parametrize("part", [1, 6, 200, 2**24])
def test_moments_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(activations, "PART", part)
    # (3i, −4i) for i < n, of norm 5i: Σ i = n(n − 1)/2, Σ i² = n(n − 1)(2n − 1)/6, all whole numbers
    n = 101
    i = torch.arange(float(n))
    moments = Moments.of(torch.stack([3 * i, -4 * i], dim=1))
    linear, square = n * (n - 1) // 2, n * (n - 1) * (2 * n - 1) // 6
    assert moments.count == n and moments.norms == 5 * linear
    assert moments.total.tolist() == [3 * linear, -4 * linear]
    assert moments.squares.tolist() == [9 * square, 16 * square]
    # the variance of i is (n² − 1)/12
    assert moments.variance == pytest.approx(25 * (n**2 - 1) / 12, rel=1e-12)


def test_shuffled_batches_are_epochs_in_seeded_orders() -> None:
    residual = torch.arange(10.0)[:, None]
    batches = activations.shuffled_batches(residual, 5, seed=0)
    first, second = ([next(batches).flatten() for _ in range(2)] for _ in range(2))
    assert torch.equal(torch.cat(first).sort().values, residual.flatten())  # each activation once an epoch
    assert torch.equal(torch.cat(second).sort().values, residual.flatten())
    assert not torch.equal(torch.cat(first), torch.cat(second))
    again = activations.shuffled_batches(residual, 5, seed=0)
    assert all(torch.equal(next(again).flatten(), batch) for batch in first)
    with pytest.raises(UserError, match="holds 10 activations, fewer than one batch of 11"):
        next(activations.shuffled_batches(residual, 11, seed=0))


def test_rows_are_found_by_the_tokens_place_in_the_corpus():
    batch = activations.ActivationBatch(
        residual=torch.arange(4.0)[:, None], positions=torch.tensor([7, 2, 9, 4])
    )
    rows = batch.rows(np.array([2, 9, 2]))
    assert rows.tolist() == [1, 2, 1]
    assert batch.residual[torch.from_numpy(rows), 0].tolist() == [1.0, 2.0, 1.0]
    with pytest.raises(ValueError, match="were not read"):
        batch.rows(np.array([2, 3]))


def test_attention_sinks_are_left_out_unless_they_are_asked_for(
    tiny_subject: Subject, tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = activations.collect(activations.stream(tiny_subject, tiny_corpus, BATCH_TOKENS))
    place = int(plain.positions[5])
    # at its block every token keeps its stream, but for one that is made a hundred times as long
    whole = Subject.residual

    def with_a_sink(self: Subject, tokens: torch.Tensor) -> torch.Tensor:
        found = whole(self, tokens).clone()
        for batch in tiny_corpus.batches(BATCH_TOKENS):
            if batch.tokens.shape == tokens.shape and torch.equal(batch.tokens, tokens):
                found[batch.positions == place] *= 100
        return found

    monkeypatch.setattr(Subject, "residual", with_a_sink)
    left = activations.collect(activations.stream(tiny_subject, tiny_corpus, BATCH_TOKENS))
    assert set(plain.positions.tolist()) - set(left.positions.tolist()) == {place}
    asked = ~tiny_corpus.special
    every = activations.collect(activations.stream(tiny_subject, tiny_corpus, BATCH_TOKENS, asked))
    assert sorted(every.positions.tolist()) == sorted(plain.positions.tolist())
    shared = activations.in_common({"one": left, "other": every})
    assert torch.equal(shared["one"].positions, shared["other"].positions)
    assert torch.equal(shared["one"].residual, shared["other"].residual)
    assert len(shared["one"].positions) == len(plain.positions) - 1


def test_a_sink_is_ten_times_as_long_as_the_median() -> None:
    residual = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 19.9], [20.1, 0.0]])
    assert activations.no_sink(residual).tolist() == [True, True, True, True, False]
    assert activations.no_sink(residual[:0]).tolist() == []
