"""The hub of the tests serves what Hugging Face's own clients ask for, and fails when it is told to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import local_hub
import miniatures
import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from local_hub import LocalHub
from mini_profile import BENCHMARKS, settings_of_miniatures
from sae_lens import SAE, StandardSAE
from transformers import AutoTokenizer

from reasoning_features.reporting.plots import COLOURS, LINES, MARKERS


def test_a_snapshot_is_what_is_served(hub: LocalHub) -> None:
    path = Path(snapshot_download(miniatures.LLAMA, allow_patterns=["*.json", "*.safetensors"]))
    assert path.name == hub.sha(miniatures.LLAMA) and path.is_relative_to(hub.home)
    source = hub.root / "models" / miniatures.LLAMA
    assert (path / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert not (path / "pytorch_model.bin").exists()
    seen = hub.asked("")
    with local_hub.using(hub, offline=True):
        assert Path(snapshot_download(miniatures.LLAMA, allow_patterns=["*.json"])) == path
    assert hub.asked("") == seen


def test_switches(hub: LocalHub) -> None:
    repo = miniatures.QWEN
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info(repo, revision="v1")
    assert hub.tag(repo, "v1") == HfApi().model_info(repo, revision="v1").sha
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("mini/nothing")
    hub.gated[repo] = "hf_right"
    for token in (False, "hf_wrong"):
        with pytest.raises(GatedRepoError):
            snapshot_download(repo, allow_patterns="config.json", token=token)
    snapshot_download(repo, allow_patterns="config.json", token="hf_right")
    hub.private[repo] = "hf_right"
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info(repo, token=False)


@pytest.mark.slow
def test_a_process_of_its_own(hub: LocalHub) -> None:
    code = (
        "import datasets; from transformers import AutoModelForCausalLM;"
        f"print(datasets.load_dataset('{miniatures.GPQA}', 'gpqa_diamond', split='train').num_rows);"
        f"print(datasets.load_dataset('{miniatures.LMSYS}', split='train').column_names[2]);"
        f"print(AutoModelForCausalLM.from_pretrained('{miniatures.LLAMA}').config.num_hidden_layers)"
    )
    for offline in ("0", "1"):
        environment = hub.environment(HF_HUB_OFFLINE=offline)
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        told = [str(miniatures.PROBLEMS[miniatures.GPQA]), "conversation", str(miniatures.LAYERS)]
        assert ran.stdout.split() == told, ran.stderr


def test_no_two_dimensions_are_equal_and_lists_run_out(miniature_root: Path) -> None:
    config = json.loads((miniature_root / "models" / miniatures.LLAMA / "config.json").read_text())
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    dimensions = [config[name] for name in (*names, "intermediate_size", "vocab_size")]
    settings = settings_of_miniatures()
    dimensions += [miniatures.VOCABULARY + miniatures.MARKS, miniatures.FEATURES, miniatures.QWEN_FEATURES]
    dimensions += [settings["context"], miniatures.ROW, miniatures.TEXTS, settings["reasoning_documents"]]
    dimensions += [settings["general_documents"], settings["probe_documents"], settings["sample_documents"]]
    dimensions += [len(miniatures.DOMAINS), len(BENCHMARKS)]
    assert len(set(dimensions)) == len(dimensions), sorted(dimensions)
    assert config["vocab_size"] == miniatures.VOCABULARY + miniatures.MARKS + miniatures.SPARE
    assert min(miniatures.LAYERS, len(miniatures.DOMAINS), len(BENCHMARKS)) > len(COLOURS)
    assert len(COLOURS) * len(MARKERS) * len(LINES) < miniatures.FEATURES


def test_the_tokenizer_is_that_of_r1(miniature_root: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(miniature_root / "models" / miniatures.LLAMA)
    assert tokenizer.all_special_tokens == [miniatures.BOS, miniatures.EOS]
    ids = tokenizer.encode("Wait, what?")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids[1:]) == "Wait, what?"
    for mark in (miniatures.USER, miniatures.THINK, miniatures.END_THINK, miniatures.PAD):
        assert len(tokenizer.encode(mark, add_special_tokens=False)) == 1
    asked = [{"role": "user", "content": "How many?"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text == f"{miniatures.BOS}{miniatures.USER}How many?{miniatures.ASSISTANT}<think>\n"


def test_the_autoencoder_is_as_it_was_left(miniature_root: Path) -> None:
    directory = miniature_root / "models" / miniatures.LLAMA_SAE / miniatures.HOOK
    told = json.loads((directory / "cfg.json").read_text())
    assert told["sae_lens_version"] == "5.5.2" and told["activation_fn"] == "relu"
    sae = SAE.load_from_disk(directory)
    assert isinstance(sae, StandardSAE) and sae.cfg.metadata.hook_name == miniatures.HOOK
    texts = [row["text"] for row in miniatures.thoughts(8)]
    points = miniatures.activations(miniature_root / "models" / miniatures.LLAMA, texts, "resid_post")
    features = sae.encode(points)
    explained = 1 - (points - sae.decode(features)).square().sum() / (points - points.mean(0)).square().sum()
    assert explained > 0.5 and 5 < (features > 0).sum(1).float().mean() < 50


def test_every_word_of_r_and_many_others_occur_often() -> None:
    texts = " ".join(row["text"] for row in miniatures.thoughts()).lower()
    counts = Counter(texts.replace(",", " ").replace(".", " ").split())
    words = (
        "alternatively",
        "hmm",
        "maybe",
        "wait",
        "perhaps",
        "let",
        "therefore",
        "however",
        "but",
        "another",
    )
    assert all(counts[word] >= 20 for word in words)
    assert sum(n >= 20 for word, n in counts.items() if word.isalpha() and word not in words) >= 30
