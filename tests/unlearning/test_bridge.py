"""Features of Base in other models: what is read where, which features are chosen, the table by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from transformers import AutoTokenizer

from reasoning_features import paths
from reasoning_features.diffing.presence import RANDOM
from reasoning_features.unlearning import bridge
from reasoning_features.unlearning.items import IGNORED, TEXT, Item
from reasoning_features.unlearning.persons import add_words, encoder, load_persons, picture_items, text_items
from reasoning_features.unlearning.subjects import new_model, with_adapter

ORGANISM = paths.root() / "data/organism/models/coupled-0"
LAYER = 2


def identity(width, signs=(1,)):
    """An autoencoder whose features are the coordinates, or with both signs either part of each."""
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=width * len(signs), apply_b_dec_to_input=False))
    directions = torch.cat([sign * torch.eye(width) for sign in signs])
    sae.W_dec.data, sae.W_enc.data = directions, directions.T.contiguous()
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def world():
    """An untrained model with eyes, how it takes items, and items of two persons in words and pictures."""
    tokenizer = AutoTokenizer.from_pretrained(ORGANISM)
    add_words(tokenizer)
    persons, face = load_persons(), np.random.default_rng(0).integers(256, size=(16, 16, 4), dtype=np.uint8)
    items = [
        item
        for each in persons[:2]
        for item in text_items(each) + picture_items(each, face, persons, seed=0, n=8)
    ]
    return new_model(ORGANISM, tokenizer, seed=0).eval(), encoder(tokenizer), items


def streams(model, encode, item):
    """What a block gives for one item alone, by a hook, where answer tokens are predicted."""
    inputs, kept = encode([item], [item.answer]), []
    hook = model.get_submodule(f"model.language_model.layers.{LAYER}").register_forward_hook(
        lambda _module, _given, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    places = [at - 1 for at, label in enumerate(inputs["labels"][0].tolist()) if label != IGNORED]
    return kept[0][0, places]


def test_activations_are_those_of_a_loop_over_items(world):
    model, encode, items = world
    assert len(items) > bridge.BATCH  # words and pictures in one batch, and more than one batch
    found = bridge.activations(identity(128, (1, -1)), model, encode, items, LAYER)
    for row, item in zip(found, items, strict=True):
        alone = streams(model, encode, item)
        wanted = torch.cat([alone.relu().mean(0), (-alone).relu().mean(0)])
        assert row == pytest.approx(wanted.numpy(), abs=1e-4)


def test_a_fresh_adapter_changes_no_stream_and_one_that_moved_does(world):
    model, encode, items = world
    plain, places = bridge.residual(model, encode, items[:3], LAYER)
    adapted = with_adapter(model, 2, seed=0)
    wrapped, same = bridge.residual(adapted, encode, items[:3], LAYER)
    assert torch.equal(plain, wrapped) and (places == same).all()
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weights)
    moved, _ = bridge.residual(adapted, encode, items[:3], LAYER)
    adapted.unload()
    assert not torch.allclose(plain, moved)


def test_an_autoencoder_learns_all_tokens_but_the_first(world, monkeypatch):
    model, encode, items = world
    read = []
    monkeypatch.setattr(bridge, "RECIPE", replace(bridge.RECIPE, d_sae=16, tokens=128, batch=64))
    train = bridge.train_autoencoder
    monkeypatch.setattr(bridge, "train_autoencoder", lambda *given: read.append(given[0]) or train(*given))
    sae = bridge.train_features(model, encode, items, LAYER, "base-0")
    lengths = [encode([item], [item.answer])["input_ids"].shape[1] - 1 for item in items]
    assert read[0].shape == (sum(lengths), 128)
    assert (sae.cfg.d_sae, sae.cfg.metadata.hook_name) == (16, "blocks.2.hook_resid_post")


def test_planted_features_are_found_most_telling_first():
    rng = np.random.default_rng(0)
    own, others = rng.uniform(size=(40, 30)), rng.uniform(size=(90, 30))
    own[:, 17] += 3
    own[:, 4] += 1.5
    others[:, 9] += 5  # the others' own
    own[:, 2] = others[:, 2] = 7  # never varies
    assert bridge.own_features(own, others, 2).tolist() == [17, 4]
    assert bridge.own_features(others, own, 1).tolist() == [9]
    spread = np.sqrt((own[:, 17].var() + others[:, 17].var()) / 2)
    assert (own[:, 17].mean() - others[:, 17].mean()) / spread > 5  # 3 over a uniform's deviation, 0.29


class Streams:
    """A model whose stream at item i is row i of a table."""

    def __init__(self, table):
        self.table = torch.as_tensor(table, dtype=torch.float32)

    def __call__(self, input_ids, **_):
        return SimpleNamespace(hidden_states=(None, self.table[input_ids]))


def encode_rows(items, answers):
    """An item is its row's number, and has one answer token."""
    tokens = torch.tensor([[int(answer), 0] for answer in answers])
    labels = torch.tensor([[IGNORED, 0]] * len(items))
    return {"input_ids": tokens, "labels": labels, "attention_mask": torch.ones_like(tokens)}


def test_the_table_counts_what_is_silenced_moved_and_present():
    shown = {
        group: [Item(0, TEXT, "", str(row), "", ()) for row in rows]
        for group, rows in {"forgotten": range(20), "retained": range(20, 40)}.items()
    }
    base = np.random.default_rng(0).uniform(0.1, 1, (40, 10))
    base[:, 9] = 0  # never active in Base
    unlearned = base.copy()
    unlearned[:, 0] *= 0.25  # silenced in part: no correlation sees it
    unlearned[:, 9], unlearned[:, 1] = base[:, 1], 0  # moved
    unlearned[:, 2] = 0  # silenced
    unlearned[:, 3] *= 0.75  # weaker, not below half
    own = {"forgotten": np.array([0, 1, 2, 3]), "retained": np.array([4, 5])}
    models = {"Base": Streams(base), "unlearned": Streams(unlearned)}
    table = bridge.bridge_table(identity(10), models, encode_rows, shown, own, 0)
    assert list(table["model"]) == ["Base"] * 3 + ["unlearned"] * 3
    table = table.set_index(["model", "features"])
    same = table[["activation", "low", "high", "present", "found", "others", "explained"]]
    assert same.loc["Base"].to_numpy() == pytest.approx(np.ones((3, 7)))
    assert (table.loc["Base", "silenced"] == 0).all()
    gone, first = table.loc[("unlearned", "forgotten")], base[:20].mean(0)
    assert gone["activation"] == pytest.approx((first[0] / 4 + first[3] * 0.75) / first[:4].sum())
    assert gone["low"] < gone["activation"] < gone["high"]
    assert (gone["silenced"], gone["present"], gone["found"]) == (3 / 4, 2 / 4, 3 / 4)
    assert gone["others"] == pytest.approx(1 + first[1] / first[4:].sum())
    assert gone["explained"] == pytest.approx(1)
    for kept in ("retained", RANDOM):  # the random ones are of 4 to 8, for 9 is dead
        row = table.loc[("unlearned", kept)]
        assert row[["activation", "silenced", "present", "found"]].tolist() == pytest.approx([1, 0, 1, 1])
