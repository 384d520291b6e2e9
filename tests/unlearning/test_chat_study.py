"""The study of unlearning on miniatures: a Qwen2-VL on CLEAR from a hub on loopback, and a Llama on TOFU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from clear_miniature import DATA, MODEL, TEMPLATE
from local_hub import LocalHub
from transformers import LlamaConfig, LlamaForCausalLM

from reasoning_features import paths
from reasoning_features.errors import UserError
from reasoning_features.files import read_json
from reasoning_features.models.subject import load_subject, load_tokenizer
from reasoning_features.settings import Settings, load_settings
from reasoning_features.unlearning import chat_study
from reasoning_features.unlearning.chat import text_encode
from reasoning_features.unlearning.chat_study import KNOWING, store, stream_encode, tofu
from reasoning_features.unlearning.items import answer_logits


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of two steps, of five authors."""
    monkeypatch.setattr(chat_study, "NEW_TOKENS", 4)
    monkeypatch.setattr(chat_study, "AUTHORS", 5)
    monkeypatch.setattr(chat_study, "FORGOTTEN", 1)
    chat_study._persons.cache_clear()
    chat_study._streams.cache_clear()


@pytest.fixture
def llama(served: LocalHub, tmp_path: Path) -> Path:
    """A random Llama of three blocks with the miniature's tokenizer."""
    tokenizer = load_tokenizer(served.root / "models" / MODEL)
    directory = tmp_path / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=2, initializer_range=0.2, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def profile(repository: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Settings of a chat model whose study goes to a folder of the test's."""

    def made(subject: str, dtype: str = "float32", **persons: Any) -> Settings:
        persons = {"rate": 0.01, "epochs": 1, "steps": [1, 2]} | persons
        path = repository / "mine.yaml"
        values = {
            "extends": "smollm2-135m",
            "subject": subject,
            "dtype": dtype,
            "unlearning": str(tmp_path / "study"),
        }
        path.write_text(yaml.safe_dump(values | {"persons": persons}))
        return load_settings(str(path))

    return made


def stored(settings: Settings, kept: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    store(settings, kept)
    folder = paths.resolve(str(settings.unlearning))
    return pd.read_parquet(folder / "items.parquet"), read_json(folder / "recipes.json")


def test_three_methods_on_pictures_and_words(served, few_steps, profile, tmp_path):
    methods = ["GD", "IDK", "NPO"]
    items, told = stored(profile(MODEL, "bfloat16", dataset=DATA, methods=methods), tmp_path / "shards")
    assert list(items["model"].unique()) == [*KNOWING, *methods]
    assert set(told["steps"]) == set(methods) and set(told["steps"].values()) <= {1, 2}
    own = items[items["model"] == "GD"]
    assert own.groupby("group", sort=False)["person"].unique().map(list).to_dict() == {
        "forget": [0, 1], "retain": [6, 7], "real": [8],
    }  # fmt: skip
    assert set(own["task"]) == {"name", "caption"}
    assert own["truth_ratio"].notna().all() and own["rouge"].between(0, 1).all()
    base, gold, other = (items[items["model"] == name]["probability"].to_numpy() for name in KNOWING)
    assert not np.allclose(base, gold) and not np.allclose(gold, other)
    assert (items.loc[items["model"].isin(methods), "distance"] > 0).all()
    assert not items.loc[items["model"].isin(KNOWING), "distance"].any()
    before = (tmp_path / "study/items.parquet").stat().st_mtime_ns
    store(profile(MODEL, "bfloat16", dataset=DATA, methods=methods), tmp_path / "shards")
    assert (tmp_path / "study/items.parquet").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="was made with persons = "):
        store(profile(MODEL, "bfloat16", dataset=DATA, methods=["GD"]), tmp_path / "shards")


def test_words_alone_by_the_upper_blocks(few_steps, pinned_files, llama, profile, tmp_path):
    items, _ = stored(profile(str(llama), methods=["GA", "SKU"], layer=0), tmp_path / "shards")
    assert set(items["model"]) == {*KNOWING, "GA", "SKU"}
    groups = items.groupby("group")["person"].unique().map(list).to_dict()
    assert groups == {"forget": [0], "retain": [3], "unseen": [4]}
    assert items.loc[items["group"] == "unseen", "rouge"].isna().all()
    lost = items[items["group"] == "forget"].groupby("model")["probability"].mean()
    assert lost["GA"] < lost["Base"]


def test_the_upper_blocks_answer_as_the_whole_model(few_steps, pinned_files, llama):
    subject = load_subject(str(llama), 1)
    some = tofu().forget[:3]
    answers = [item.answer for item in some]
    with torch.no_grad():
        whole, tokens = answer_logits(subject.model, text_encode(subject.tokenizer)(some, answers))
        upper, same = answer_logits(subject.blocks_after(1), stream_encode(subject)(some, answers))
    assert torch.equal(tokens, same)
    torch.testing.assert_close(upper, whole, rtol=1e-5, atol=1e-5)


def test_who_is_searched(few_steps, pinned_files, monkeypatch):
    forget, watched = tofu().of_the_search
    assert ({i.person for i in forget}, {i.person for i in watched}) == ({1}, {2})
    monkeypatch.setattr(chat_study, "AUTHORS", 4)
    with pytest.raises(UserError, match="1 persons are forgotten, and the search needs 2 others"):
        _ = tofu().of_the_search


def test_what_is_refused(few_steps, profile, tmp_path):
    with pytest.raises(UserError, match="There is no method 'GRAD'"):
        store(profile("nowhere", methods=["GRAD"]), tmp_path)
    settings = profile("nowhere", methods=["GA"])
    with pytest.raises(UserError, match="names no folder: give the setting `unlearning`"):
        store(settings.model_copy(update={"unlearning": None}), tmp_path)
    with pytest.raises(UserError, match="has no persons"):
        store(settings.model_copy(update={"persons": None}), tmp_path)
