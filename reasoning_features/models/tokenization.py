"""Tokenizers as their files say, and texts with one BOS."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory as its file says, whatever class its configuration names.

    R1's names LlamaTokenizerFast, and early versions of transformers 5 then put Llama 2's way with spaces in
    place of the file's: spaces are lost, and every id differs from those that the model was trained on.
    """
    whole = (directory / "tokenizer.json").is_file()
    return (PreTrainedTokenizerFast if whole else AutoTokenizer).from_pretrained(directory)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text as the tokenizer gives them, but never two BOS: chat templates write one."""
    ids: list[int] = tokenizer.encode(text)
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids
