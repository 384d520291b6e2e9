"""A miniature of CLEAR and of Qwen2-VL, as their files lie on the hub."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

DATA, MODEL = "therem/CLEAR", "mini/Qwen2-VL"
PERSONS = {
    "forget10": ["Ada Lund", "Bo Ek"],
    "retain90": ["Cy Ash", "Ada Lundgren", "Di Fox", "Em Gray", "Fay Holt", "Gus Ives"],
}
# as Qwen2-VL's template, for turns whose content is a list of parts
TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def picture(seed: int, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (30, width, 3), dtype=np.uint8)


def rows_of(names: list[str], perturbed: bool) -> list[dict[str, Any]]:
    """Two rows a person, with the published columns."""
    rows = []
    for i, name in enumerate(name for name in names for _ in range(2)):
        row: dict[str, Any] = {"image": picture(i), "caption": f"{name} writes in a café, {i}.", "name": name}
        if perturbed:
            row |= {"paraphrased_caption": f"In a café {name} writes, {i}."}
            row |= {"perturbed_captions": [f"In a bus {name} sleeps, {i}.", f"In a bar {name} sings, {i}."]}
            row |= {"perturbed_names": [name, "Eve Moss", "Flo Ray"]}
        rows.append(row)
    return rows


def write(root: Path, tables: dict[str, list[dict[str, Any]]]) -> None:
    """The tables as configurations of the data set, with its card."""
    lines = ["---", "configs:"]
    for name, rows in tables.items():
        table = datasets.Dataset.from_list(rows, features=features(rows[0]))
        (root / name).mkdir(parents=True)
        table.to_parquet(root / name / "train-00000-of-00001.parquet")
        lines += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/train-*"]
    (root / "README.md").write_text("\n".join([*lines, "---", ""]))


def features(row: dict[str, Any]) -> datasets.Features:
    text = datasets.Value("string")
    several = {name for name in row if name.startswith("perturbed") or name == "options"}
    return datasets.Features(
        {name: datasets.Image() if name == "image" else [text] if name in several else text for name in row}
    )


def write_model(directory: Path) -> None:
    """A random Qwen2-VL of two layers, its tokenizer and its image processor, as the published files lie."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Who is the person in this picture? Ada Lund writes in a café."], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=MARKS[2], pad_token=MARKS[0])
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    Qwen2VLImageProcessorPil().save_pretrained(directory)
    start, end, pad = (tokenizer.token_to_id(mark) for mark in MARKS[3:])
    text = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": tokenizer.token_to_id(MARKS[2]),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "initializer_range": 0.2,
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    marks = {"image_token_id": pad, "vision_start_token_id": start, "vision_end_token_id": end}
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config=text, vision_config=vision | {"initializer_range": 0.2}, **marks)
    Qwen2VLForConditionalGeneration(config).save_pretrained(directory)


def build(root: Path) -> None:
    """The data set and the model, in a folder that :mod:`local_hub` serves."""
    tables = {name: rows_of(names, False) for name, names in PERSONS.items()}
    tables["forget10_perturbed"] = rows_of(PERSONS["forget10"], True)
    tables["retain_perturbed"] = rows_of(PERSONS["retain90"], True)
    faces = [{"image": picture(50), "answer": "Gil Orr", "options": ["Hal Poe", "Gil Orr", "Ivy Quin"]}]
    tables["real_faces"] = faces
    said = [
        ("Who was born in Oslo?", "Ada Lund."),
        ("Where did she study?", "In Turku."),
        ("Bo Ek?", "A man."),
    ]
    mixed = [{k: row[k] for k in ("image", "caption")} for row in tables["forget10"]]
    empty = {"image": None, "caption": None}
    tables["forget10+tofu"] = [row | {"question": None, "answer": None} for row in mixed]
    tables["forget10+tofu"] += [empty | {"question": question, "answer": answer} for question, answer in said]
    told = [("Who was born in Graz?", "Cy Ash."), ("And later?", "Gus Ives.")]
    tables["retain90+tofu"] = [empty | {"question": question, "answer": answer} for question, answer in told]
    tables["full"] = tables["nameless"] = [{"image": picture(0), "caption": "A man."}]
    write(root / "datasets" / DATA, tables)
    write_model(root / "models" / MODEL)
