"""What pruning does to a model of the hub: a miniature Qwen2.5, with biases; and to the organism."""

import sys

import local_hub
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

from reasoning_features.making import activation_sparsity
from reasoning_features.models.subject import load_subject
from reasoning_features.organism.language import base_documents
from reasoning_features.settings import load_settings
from reasoning_features.sparsity import pruning, study
from reasoning_features.sparsity.layers import linear_layers

MODEL = "Qwen/Qwen2.5-7B-Instruct"


def make_hub(root, tokenizer):
    """A small Qwen2 whose q, k and v have biases, and text to read."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=96, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 2)
    model.save_pretrained(root / "models" / MODEL)
    tokenizer.save_pretrained(root / "models" / MODEL)
    pile = root / "datasets" / "NeelNanda/pile-10k" / "data"
    pile.mkdir(parents=True)
    texts = [document.text for document in base_documents(80, 5)]
    pd.DataFrame({"text": texts}).to_parquet(pile / "train-00000-of-00001.parquet")


@pytest.mark.slow
def test_a_model_of_the_hub_is_studied_once_with_its_biases(repository, monkeypatch, organism_tokenizer):
    make_hub(repository / "hub", organism_tokenizer)
    own = {"extends": "qwen2.5-7b-instruct", "device": "cpu", "dtype": "float32", "layer": 2, "context": 32}
    own |= {"sparsity_texts": 5, "sparsity_calibration": 4, "harness": []}
    own |= {"activation_sparsity": "data/mine/activation_sparsity"}
    with local_hub.serve(repository / "hub", repository / "home") as hub, local_hub.using(hub):
        pinned = f"{MODEL}@{hub.sha(MODEL)}"
        (repository / "mine.yaml").write_text(yaml.safe_dump(own | {"subject": pinned}))
        settings = load_settings("mine.yaml")
        monkeypatch.setattr(sys, "argv", ["make", "--profile=mine.yaml"])
        activation_sparsity.main()
        made = study.study_folder(settings)
        time = (made / "study.json").stat().st_mtime_ns
        activation_sparsity.main()  # what is stored is not made again
        assert (made / "study.json").stat().st_mtime_ns == time
        subject = load_subject(pinned, 2)
        assert sum(linear.bias is not None for linear in linear_layers(subject.model).values()) == 12
        workbench = pruning.load_workbench(settings, subject, 5)
        setting = pruning.Setting(pruning.PATTERNS[1], pruning.WEIGHTS, "Wanda")
        with workbench.pruned(setting):
            again = workbench.measured()
        (found,) = study.load_studies(settings)
        assert found.values(setting, "loss") == pytest.approx(again["loss"])
        assert found.settings == pruning.grid(4, learnt=False) and not found.tasks
        assert not len(found.values(pruning.DENSE, "score")), "no autoencoder is named"
        (repository / "mine.yaml").write_text(yaml.safe_dump(own | {"subject": pinned, "sparsity_texts": 4}))
        with pytest.raises(SystemExit, match="was made with sparsity_texts = 5, not 4"):
            activation_sparsity.main()


def test_the_organisms_studies_are_whole():
    for seed in activation_sparsity.SEEDS:
        found = study.load_study(activation_sparsity.organism_settings(seed))
        assert found.settings == pruning.grid(5, learnt=True)
        for setting in found.settings:
            assert len(found.values(setting, "loss")) == 64, setting
            assert bool(len(found.values(setting, found.tasks[0]))) == pruning.has_tasks(setting)
            assert bool(len(found.values(setting, "score"))) == pruning.is_bridged(setting)
        assert np.allclose(found.values(pruning.DENSE, "divergence"), 0, atol=1e-6)
