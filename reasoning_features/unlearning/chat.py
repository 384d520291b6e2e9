"""Items as chat models take them, in words alone or as Qwen2-VL with their pictures."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

from reasoning_features import hub
from reasoning_features.errors import UserError
from reasoning_features.models.subject import load_tokenizer
from reasoning_features.runs.preflight import check_device
from reasoning_features.text.corpora import templated
from reasoning_features.unlearning.items import IGNORED, Encode, Inputs, Item


def text_encode(tokenizer: Any, device: str = "cpu") -> Encode:
    """How a chat model takes questions: its chat template's prompt, the answer, the end of its turn; pictures
    are left out. UserError: no chat template; where it is used, an answer's tokens depend on the prompt.
    """
    return _encode(tokenizer, tokenizer, device)


def qwen_encode(processor: Any, device: str = "cpu") -> Encode:
    """As :func:`text_encode`, each picture before its question; a batch may mix both kinds.

    Beside the tokens Qwen2-VL takes ``pixel_values [patches of all pictures, values]``, ``image_grid_thw
    [pictures, 3]``, in patches, and ``mm_token_type_ids [n, t]``, 1 where a picture is.
    """
    return _encode(processor, processor.tokenizer, device)


def _encode(reader: Any, tokenizer: Any, device: str) -> Encode:
    """As ``reader`` takes items: the tokenizer itself, or a processor that has it; batches on a device."""
    if reader.chat_template is None:
        raise UserError("The model has no chat template: give one that was taught to answer.")

    def encode(items: Sequence[Item], answers: Sequence[str]) -> Inputs:
        told = [answer + tokenizer.eos_token for answer in answers]
        texts, pictures = [], []
        for item, answer in zip(items, told, strict=True):
            content: Any = item.question
            if reader is not tokenizer:
                shown = [] if item.picture is None else [item.picture]
                content = [*({"type": "image"} for _ in shown), {"type": "text", "text": item.question}]
                pictures += shown
            turns = [{"role": "user", "content": content}]
            texts.append(templated(turns, reader, add_generation_prompt=True) + answer)
        how: dict[str, Any] = {"images": pictures} if pictures else {}
        how |= {"padding": True, "padding_side": "right", "add_special_tokens": False}
        inputs = dict(reader(text=texts, return_tensors="pt", **how))
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        for row, answer in enumerate(told):
            own = torch.tensor(tokenizer(answer, add_special_tokens=False).input_ids)
            end = int(inputs["attention_mask"][row].sum())
            if not inputs["input_ids"][row, end - len(own) : end].equal(own):
                why = "its tokens alone are others than after the question"
                raise UserError(f"The answer {answer!r} cannot be told from its prompt: {why}.")
            labels[row, end - len(own) : end] = own
        return {name: values.to(device) for name, values in inputs.items()} | {"labels": labels.to(device)}

    return encode


class _Processor(Qwen2VLProcessor):
    """Qwen2-VL's processor without its part for videos, which would need torchvision."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def load_vision_language(name: str, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """A Qwen2-VL and its processor, from a directory or ``owner/name[@revision]`` of the hub.

    UserError: as :func:`hub.local_copy`, no such device, another kind of model, or files that do not fit.
    """
    check_device(device)
    directory = hub.directory(name)
    loader: Any = AutoModelForImageTextToText  # whose types do not know that it gives two things
    options: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
    options |= {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    try:
        model, found = loader.from_pretrained(directory, output_loading_info=True, **options)
        tokenizer, images = load_tokenizer(directory), Qwen2VLImageProcessorPil.from_pretrained(directory)
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{name} cannot be loaded as a Qwen2-VL ({why}): restore it, or give one.") from error
    if not isinstance(model, Qwen2VLForConditionalGeneration):
        raise UserError(f"{name} is a {type(model).__name__}: give a Qwen2-VL.")
    if wrong := sorted(found["missing_keys"]):
        raise UserError(f"{name} lacks {len(wrong)} weights ({wrong[0]}): restore its files.")
    return model.eval(), _Processor(images, tokenizer, tokenizer.chat_template)
