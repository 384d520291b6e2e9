"""A tiny random model with its tokenizer, and a random corpus, for the tests of every room."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reasoning_features import paths
from reasoning_features.settings import Settings, load_settings
from reasoning_features.text.corpus import Corpus
from reasoning_features.truth.benchmark import Benchmark
from reasoning_features.truth.decisions import Decisions
from reasoning_features.truth.effects import Effects

LAYERS, WIDTH, VOCABULARY = 3, 32, 300
HOOK = "blocks.1.hook_resid_post"


def make_tiny_llama(directory: Path, seed: int = 0) -> Path:
    """A random Llama (3 layers, width 32) with a byte-level BPE, as a Hugging Face directory."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<|bos|>", "<|eos|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    text = "Wait, let me try 3 + 4. Hmm, but 7 is wrong. Perhaps 9 is right."
    tokenizer.train_from_iterator([text] * 20, trainer)
    named = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|eos|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(directory)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def make_corpus(n_documents: int = 12, seed: int = 0, longest: int = 40) -> Corpus:
    """Random documents of 5 to ``longest`` tokens that begin with BOS, with three moves in turn."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, longest, size=n_documents)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = rng.integers(2, VOCABULARY, size=starts[-1]).astype(np.int32)
    tokens[starts[:-1]] = 0
    special = np.isin(np.arange(starts[-1]), starts[:-1])
    domains = ["even" if i % 2 == 0 else "odd" for i in range(n_documents)]
    moves, names = (np.arange(starts[-1]) % 3).astype(np.int8), ("explore", "verify", "answer")
    return Corpus("random", tokens, starts, special, ~special, domains, moves=moves, move_names=names)


def relu_sae(*weights: torch.Tensor, centred: bool = False) -> StandardSAE:
    """ReLU(x E + b_enc) D + b_dec, ``weights`` in this order; ``centred`` takes b_dec from x first."""
    d, features = weights[0].shape
    metadata = SAEMetadata(hook_name=HOOK, model_name="m")
    config = StandardSAEConfig(d_in=d, d_sae=features, apply_b_dec_to_input=centred, metadata=metadata)
    sae = StandardSAE(config)
    sae.W_enc.data, sae.W_dec.data, sae.b_enc.data, sae.b_dec.data = (w.contiguous() for w in weights)
    return sae.requires_grad_(False)


def signed_identity(d: int, gain: float = 1.0, centre: torch.Tensor | None = None) -> StandardSAE:
    """An SAE of 2d features, ReLU(±(x − centre)), which gives centre + gain · (x − centre)."""
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    middle = torch.zeros(d) if centre is None else centre
    return relu_sae(both.T.clone(), gain * both, torch.zeros(2 * d), middle, centred=True)


Numbers = Sequence[int] | np.ndarray


def make_decisions(
    corpus: Corpus, documents: Numbers, places: Numbers, *sides: list[int], name: str = "persistence"
) -> Decisions:
    """Decisions at some places of some documents, all against, of no style; ``sides``: what opens each."""
    at, n = np.asarray(documents), len(places)
    opens = (np.array(side) for side in sides)
    where = corpus.starts[at] + np.asarray(places)
    return Decisions(name, corpus, where, at, [""] * n, np.zeros(n, dtype=bool), *opens)


class Positive:
    """An autoencoder whose features are the residual stream's positive part."""

    def __init__(self, d_in: int, decoder: torch.Tensor | None = None) -> None:
        self.cfg, self.device = SimpleNamespace(d_in=d_in, d_sae=d_in), torch.device("cpu")
        self.W_dec = torch.eye(d_in) if decoder is None else decoder

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)


def reversed_batches(activations: np.ndarray, *splits: int) -> Iterator[Any]:
    """The tokens of activations ``[n, d]`` in batches that end at ``splits``, each in reverse order."""
    for part in np.split(np.arange(len(activations)), splits):
        at = torch.from_numpy(part[::-1].copy())
        yield SimpleNamespace(residual=torch.from_numpy(activations[part[::-1]]), positions=at)


def make_benchmark(effect: np.ndarray, spread: float, noise: float = 0.0, dead: int = 0) -> Benchmark:
    """Effects ``[f]`` of moves of size 1, alike in 40 traces but for noise; ``dead`` features are first.
    Random directions of that size have effects of standard deviation ``spread``.
    """
    rng = np.random.default_rng(0)
    counts, size = rng.integers(1, 4, 40).astype(float), np.ones(len(effect))
    sums = (effect + noise * rng.standard_normal((40, len(effect)))) * counts[:, None]
    live, random = np.arange(dead, dead + len(effect)), np.array([[spread, -spread], [1.0, 1.0]])
    truth = Effects(live, sums.sum(0) / counts.sum(), size, random, sums, counts)
    evidence = pd.DataFrame({"feature": np.arange(dead + len(effect))})
    return Benchmark("coupled-0", 1.0, 0, "relu", 0, evidence, {"persistence": truth}, pd.DataFrame())


def few_settings(profile: str, **overrides: Any) -> Settings:
    """The smoke profile with few decisions, directions and vocabularies, whichever profile is asked for."""
    few = {"decisions": 10, "random_directions": 10, "random_vocabularies": 4, "slot_vocabularies": 4}
    few |= {"reasoning_documents": 100, "general_documents": 50, "candidates": 1, "search_vocabularies": 1}
    few["steering_problems"] = 8
    return load_settings("smoke", **overrides, **few)


def file_times(folder: Path) -> dict[str, int]:
    """When each file below a folder was written."""
    return {paths.relative(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def contents(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Every file below a folder by its name there."""
    files = (path for path in sorted(folder.rglob(pattern)) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_rows(path: Path, rows: Iterable[Any]) -> str:
    """Rows as JSON lines; gives the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def damage(file: Path) -> None:
    """Another last byte."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def run_notebooks(profile: Path, numbers: Sequence[str], env: dict[str, str] | None = None) -> None:
    """Run notebooks as make does, each in turn."""
    command = [sys.executable, "-m", "reasoning_features.runs.execution"]
    for number in numbers:
        given = [*command, number, f"--profile={profile}"]
        done = subprocess.run(given, env=env, cwd=paths.root(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def remove_runs(name: str) -> None:
    """Take away the profile of this name in the repository's root, and all that its runs made."""
    (paths.root() / f"{name}.yaml").unlink(missing_ok=True)
    for place in ("data", "figures", "build"):
        for made in (paths.root() / place).glob(f"{name}*"):
            shutil.rmtree(made)


PIECES = ("<s>", "wait", " wait", "Wait", "let", " let", " me", "But", " But", " but", "a", " a", " b", ".")


class Pieces:
    """A tokenizer that takes the longest piece at each place, and writes ? for what it does not know."""

    def __init__(self, pieces: Sequence[str] = PIECES) -> None:
        self.pieces = (*pieces, "?")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = []
        while text:
            found = max((p for p in self.pieces if text.startswith(p)), key=len, default="?")
            ids.append(self.pieces.index(found))
            text = text[len(found) :]
        return ids

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = False) -> str:
        return "".join(self.pieces[i] for i in ids)


def corpus_of(
    *documents: Sequence[str], thinking: Sequence[int] = (), pieces: Sequence[str] = PIECES
) -> Corpus:
    """Documents written as pieces; "<s>" is special."""
    written = [piece for document in documents for piece in document]
    tokens = np.array([pieces.index(piece) for piece in written], dtype=np.int32)
    starts = np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64)
    inside = np.isin(np.arange(len(tokens)), thinking)
    special = np.array([piece == "<s>" for piece in written])
    return Corpus("example", tokens, starts, special, inside, ["math"] * len(documents))


def small_corpus() -> Corpus:
    """Twelve documents of three kinds; two of these hold "wait" and "let me"."""
    return corpus_of(
        *[["<s>", " a", " b", " wait", " a", ".", " let", " me", " b"]] * 4,
        *[["<s>", "wait", " a", " a", " b", " let", " me", ".", " b", " b"]] * 4,
        *[["<s>", " b", " b", " a", ".", " b", " a", " b", " a"]] * 4,
    )
