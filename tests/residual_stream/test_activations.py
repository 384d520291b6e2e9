"""A harvest is what the model gives; interrupted, damaged and foreign samples are noticed."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import damage

from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream import activations
from reasoning_features.residual_stream.activations import Moments, harvest, load_sample, stream
from reasoning_features.runs.shards import read_shard

BATCH_TOKENS = 60


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(activations, "BATCHES_A_SHARD", 2)


def test_stream_equals_hidden_states_of_each_document(tiny_subject, tiny_corpus):
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


def test_a_sample_is_the_stream(tiny_subject, tiny_corpus, tmp_path):
    harvest(tiny_subject, tiny_corpus.head(3), tmp_path, BATCH_TOKENS)
    harvest(tiny_subject, tiny_corpus, tmp_path, BATCH_TOKENS, progress=False)  # replaces the first
    sample = load_sample(tmp_path)
    streamed = list(stream(tiny_subject, tiny_corpus, BATCH_TOKENS))
    assert torch.equal(sample.residual, torch.cat([batch.residual for batch in streamed]))
    assert sorted(sample.positions.tolist()) == np.flatnonzero(~tiny_corpus.special).tolist()
    include = tiny_corpus.moves == 1
    asked = activations.collect(stream(tiny_subject, tiny_corpus, BATCH_TOKENS, include))
    assert sorted(asked.positions.tolist()) == np.flatnonzero(include).tolist()


def test_damaged_and_missing_samples_are_named(tiny_subject, tiny_corpus, tmp_path):
    with pytest.raises(MissingArtefact, match="`make nb-01` makes it"):
        load_sample(tmp_path / "nothing")
    harvest(tiny_subject, tiny_corpus, tmp_path, BATCH_TOKENS)
    (shard,) = tmp_path.rglob("00001.safetensors")
    damage(shard)
    with pytest.raises(CorruptArtefact, match=r"00001\.safetensors is damaged"):
        load_sample(tmp_path)


@pytest.mark.parametrize("part", [6, 2**24])
def test_moments_by_hand_in_parts(monkeypatch, part):
    monkeypatch.setattr(activations, "PART", part)
    # (3i, −4i) for i < n, of norm 5i
    n = 101
    i = torch.arange(float(n))
    residual = torch.stack([3 * i, -4 * i], dim=1)
    moments = Moments.of(residual)
    # the variance of i is (n² − 1)/12
    assert moments.variance == pytest.approx(25 * (n**2 - 1) / 12, rel=1e-12)
    assert moments.mean.tolist() == [150, -200] and (moments.count, moments.mean_norm) == (n, 250)


def test_shuffled_batches_are_epochs_in_seeded_orders():
    residual = torch.arange(10.0)[:, None]
    batches = activations.shuffled_batches(residual, 5, seed=0)
    first, second = ([next(batches).flatten() for _ in range(2)] for _ in range(2))
    assert torch.equal(torch.cat(first).sort().values, residual.flatten())  # each activation once an epoch
    assert torch.equal(torch.cat(second).sort().values, residual.flatten())
    assert not torch.equal(torch.cat(first), torch.cat(second))
    with pytest.raises(UserError, match="holds 10 activations, fewer than one batch of 11"):
        next(activations.shuffled_batches(residual, 11, seed=0))


def test_rows_are_found_by_the_tokens_place_in_the_corpus():
    batch = activations.ActivationBatch(torch.arange(4.0)[:, None], torch.tensor([7, 2, 9, 4]))
    assert batch.rows(np.array([2, 9, 2])).tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="were not read"):
        batch.rows(np.array([2, 3]))


def test_attention_sinks_are_left_out_unless_they_are_asked_for(tiny_subject, tiny_corpus, monkeypatch):
    plain = activations.collect(stream(tiny_subject, tiny_corpus, BATCH_TOKENS))
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
    left = activations.collect(stream(tiny_subject, tiny_corpus, BATCH_TOKENS))
    assert set(plain.positions.tolist()) - set(left.positions.tolist()) == {place}
    asked = ~tiny_corpus.special
    every = activations.collect(stream(tiny_subject, tiny_corpus, BATCH_TOKENS, asked))
    assert sorted(every.positions.tolist()) == sorted(plain.positions.tolist())
    shared = activations.in_common({"one": left, "other": every})
    assert torch.equal(shared["one"].residual, shared["other"].residual)
    assert len(shared["one"].positions) == len(plain.positions) - 1
    # ten times as long as the median
    residual = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 19.9], [20.1, 0.0]])
    assert activations.no_sink(residual).tolist() == [True, True, True, True, False]
    assert activations.no_sink(residual[:0]).tolist() == []


def test_a_token_has_the_loss_of_predicting_it(tiny_subject, tiny_corpus):
    table = activations.token_table(tiny_subject, tiny_corpus, [0, 1], 90)
    assert len(table) == int((~tiny_corpus.special).sum())
    assert not table.isna().to_numpy().any()  # the only token that nothing predicts, BOS, is special
    ids = torch.from_numpy(tiny_corpus.document(5)).long()[None]
    log_probabilities = tiny_subject.logits(ids).log_softmax(-1)[0]
    rows = table[table["document"] == 5].set_index("position")
    assert rows["loss"][3] == pytest.approx(-float(log_probabilities[2, ids[0, 3]]), rel=1e-4)
    norms = tiny_subject.residuals(ids, [1])[1][0].norm(dim=-1)
    assert rows["norm 1"][3] == pytest.approx(float(norms[3]), rel=1e-4)
    assert rows["move"][3] == tiny_corpus.move_names[tiny_corpus.moves[tiny_corpus.starts[5] + 3]]


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_what_is_not_finite_stops_every_reading_before_its_shard(tiny_subject, tiny_corpus, tmp_path, value):
    # a token of the longest document, which is read last, has no finite stream
    corpus, model, last = tiny_corpus, deepcopy(tiny_subject.model), int(np.diff(tiny_corpus.starts).argmax())
    corpus.tokens[corpus.tokens == 299], corpus.tokens[corpus.starts[last] + 3] = 298, 299
    model.get_input_embeddings().weight.data[299, 5] = value
    subject, every = replace(tiny_subject, model=model), np.ones(corpus.n_tokens, dtype=bool)
    for read in (
        lambda: list(stream(subject, corpus, BATCH_TOKENS, every)),
        lambda: activations.token_table(subject, corpus, [0, 1], BATCH_TOKENS),
        lambda: harvest(subject, corpus, tmp_path, BATCH_TOKENS, progress=False),
    ):
        with pytest.raises(UserError, match=r"The (activation at layer 1|logit) of .* is not finite .*: run"):
            read()
    assert all(np.isfinite(read_shard(file)["residual"]).all() for file in tmp_path.rglob("*.safetensors"))
    assert len(load_sample(tmp_path).positions) < (~corpus.special).sum()  # those before it are kept
    with pytest.raises(UserError, match="The mean activation in a dimension is not finite"):
        Moments.of(torch.tensor([[1.0, 2.0], [1.0, value]]))
    with pytest.raises(UserError, match="The loss of a token is not finite"):
        activations.next_token_loss(torch.full((1, 3, 4), value), torch.zeros(1, 3, dtype=torch.int64))


def test_means_by_place_and_move_by_hand():
    # move a: 1, 2, 6 (two documents), mean 3; move b: 10; a first token without a value is left out
    rows = [(0, 1, "a", 1.0), (0, 15, "a", 2.0), (1, 16, "a", 6.0), (1, 2, "b", 10.0), (1, 0, "b", np.nan)]
    table = pd.DataFrame(rows, columns=["document", "position", "move", "loss"])
    means = activations.means_by_place_and_move(table, "loss").set_index(["by", "group"])
    assert means["mean"].to_dict() == {
        ("position", 0): pytest.approx(13 / 3), ("position", 16): 6, ("move", "a"): 3, ("move", "b"): 10,
    }  # fmt: skip
    assert means["tokens"].tolist() == [3, 1, 3, 1]
    # a's resamples are 1.5 (document 0 twice), 3 or 6; b is 10 whenever document 1 is drawn
    assert means.loc[("move", "a"), ["low", "high"]].tolist() == [1.5, 6.0]
    assert means.loc[("move", "b"), ["low", "high"]].tolist() == [10.0, 10.0]
    unlabelled = activations.means_by_place_and_move(table.assign(move=None), "loss")
    assert unlabelled["by"].unique().tolist() == ["position"]
    with pytest.raises(UserError, match="The loss of a token is not finite"):
        activations.means_by_place_and_move(table.assign(position=7), "loss")


def test_means_are_drawn_over_places_and_moves_and_by_depth():
    place = pd.DataFrame({"by": "position", "group": range(0, 1024, 128)})
    move = pd.DataFrame({"by": "move", "group": [f"move number {i}" for i in range(12)]})
    means = pd.concat([place, move]).assign(mean=2.0, low=1.5, high=2.5)
    plain = activations.draw_means(means, "norm of the stream")
    fig = activations.draw_means(pd.concat([means.assign(layer=i) for i in range(4)]), "norm of the stream")
    left, right = fig.axes[:2]
    assert right.get_xticklabels()[0].get_text() == "move number 0"
    assert (plain.axes[0].get_yscale(), left.get_yscale()) == ("linear", "log")
    assert len(left.containers) == 4 and fig.axes[2].get_ylabel() == "layer"
