"""The organism with eyes: a small LLaVA, trained to know persons, before and without those to be forgotten.

The patches of a picture are read by a small CLIP tower and stand as a prefix before the organism's Llama, as
in LLaVA. The tower first learns to tell the features of strangers' faces; the *pretrained* model then learns
the real persons, and goes on solving the organism's problems. From it come *Base*, which learns all
fictitious persons, and *Gold*, which learns those that are retained alone: LoRA adapters of the pretrained
model, as CLEAR's are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from reasoning_features.errors import check_finite
from reasoning_features.organism.language import ASSISTANT, BOS, EOS, USER, reasoning_document
from reasoning_features.organism.problems import Split
from reasoning_features.unlearning.items import Item
from reasoning_features.unlearning.persons import PATCH, PICTURE, SIDE

N_VARIANTS = 48  # of a feature of a face, at most
LINEARS = "q_proj|k_proj|v_proj|o_proj|out_proj|gate_proj|up_proj|down_proj|fc1|fc2|linear_1|linear_2"
EVERYWHERE = rf".*\.({LINEARS})"  # names of linear layers: of tower, projector and Llama
LANGUAGE = rf".*language_model.*\.({LINEARS})"  # of the Llama alone


def new_model(organism: Path, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlavaForConditionalGeneration:
    """The organism's Llama with a patch encoder of random weights; ``tokenizer`` has the persons' words."""
    torch.manual_seed(seed)
    (picture,) = tokenizer.encode(PICTURE, add_special_tokens=False)
    llama = AutoModelForCausalLM.from_pretrained(organism, dtype=torch.float32)
    llama.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    llama.config.name_or_path = ""  # what is saved names no path of this machine
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE,
        patch_size=PATCH, projection_dim=128,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=llama.config, image_seq_length=(SIDE // PATCH) ** 2,
        image_token_index=picture, vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(llama.model.state_dict())
    model.lm_head.load_state_dict(llama.lm_head.state_dict())
    return model


def train_tower(tower: Any, pixels: Callable[[int], tuple[Tensor, Tensor]], steps: int, rate: float) -> float:
    """Trains the tower, by linear heads on the mean of its patches, to tell features of pictures: ``pixels``
    gives those of a step ``[n, 3, 18, 18]`` with the features' codes ``[n, features]``. Gives the share of
    features told rightly, mean over the last tenth of the steps.
    """
    _, codes = pixels(0)
    width = int(tower.config.hidden_size)
    heads = torch.nn.ModuleList(torch.nn.Linear(width, N_VARIANTS) for _ in range(codes.shape[1]))
    told: list[float] = []

    def loss(step: int) -> Tensor:
        seen, codes = pixels(step)
        patches = tower(pixel_values=seen).last_hidden_state[:, 1:].mean(1)
        logits = torch.stack([head(patches) for head in heads], 1)  # [n, features, variants]
        told.append(float((logits.argmax(-1) == codes).float().mean()))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())

    train([*tower.parameters(), *heads.parameters()], loss, steps, rate, "tower")
    return float(np.mean(told[-steps // 10 :]))


def train(
    parameters: Sequence[torch.nn.Parameter],
    loss: Callable[[int], Tensor],
    steps: int,
    rate: float,
    name: str,
) -> float:
    """Lowers ``loss(step)`` by AdamW, with a warm-up and a cosine; gives its mean over the last tenth."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05, cycle_momentum=False)
    seen = []
    for step in tqdm(range(steps), desc=name):
        value = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        cycle.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(float(check_finite(value.detach(), "The loss of a step", "lower the rate")))
    return float(np.mean(seen[-steps // 10 :]))


def with_adapter(model: Any, rank: int, seed: int, where: str = LANGUAGE) -> Any:
    """The model with a LoRA adapter on linear layers, ``where`` their names match; α = 4 ranks as in CLEAR
    (r = 8, α = 32), no dropout.
    """
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=where))


def problem_item(rng: np.random.Generator, split: Split = "training") -> Item:
    """A problem of the organism's with a trace that solves it."""
    text = reasoning_document(1.0, 1000, int(rng.integers(10**8)), split).text
    question, answer = text.removeprefix(BOS + USER).removesuffix(EOS).split(ASSISTANT, 1)
    return Item(-1, "problem", question, answer, answer, ())
