"""A profile of the miniatures: the paper's own profile, with other names and small numbers."""

from pathlib import Path
from typing import Any

import miniatures as mini
import yaml

NAME = "miniature"
ONE, OTHER, NEVER = 43, mini.FEATURES - 7, mini.DEAD - 5
"""Features that a paper might name: two that are active, and one that never is."""
BENCHMARKS: dict[str, dict[str, Any]] = {
    "AIME-2024": {"dataset": mini.AIME, "split": "train"},
    "MATH-500": {"dataset": mini.MATH, "selection": 0.5},
    "GPQA-Diamond": {
        "dataset": mini.GPQA, "name": "gpqa_diamond", "split": "train", "problem": "Question",
        "answer": "Correct Answer", "wrong": [f"Incorrect Answer {i}" for i in (1, 2, 3)],
    },
}  # fmt: skip


def settings_of_miniatures() -> dict[str, Any]:
    """What differs from the paper's profile."""
    read = {
        "subject": mini.LLAMA, "base": mini.LLAMA_BASE, "layer": mini.LAYER, "device": "cpu",
        "reasoning_text": {"dataset": mini.THOUGHTS, "domain": "domain"},
        "general_text": {"dataset": mini.LMSYS, "column": "conversation"},
        "solutions_text": {"dataset": mini.THOUGHTS, "column": "ground_truth_solution"},
        "training_text": [{"dataset": mini.TOKENIZED, "column": "tokens"}],
        "base_text": [{"dataset": mini.SLIM}], "problems": BENCHMARKS,
        "autoencoder": f"{mini.LLAMA_SAE}:{mini.HOOK}", "d_sae": mini.FEATURES,
        "published": {"uncertainty": [NEVER, ONE, 77], "steered in version 2": [NEVER, ONE, OTHER]},
    }  # fmt: skip
    few = {
        "reasoning_documents": 150, "general_documents": 80, "probe_documents": 23, "sample_documents": 41,
        "context": mini.CONTEXT, "batch_tokens": 4000, "train_tokens": 8192, "train_batch": 512,
        "learning_rate": 1e-3, "checkpoints": 2, "selected": 20, "selected_grid": [10, 20],
        "alphas": [0.0, 0.7], "windows": [[1, 2], [2, 3]], "random_vocabularies": 4, "blocks": 10,
        "published_problems": 3, "max_new_tokens": 24, "text_problems": 3, "text_tokens": 16, "examples": 3,
        "pages": 3, "gammas": [-2.0, 2.0], "interpreted": 2, "interpretation_problems": 3, "candidates": 2,
        "search_vocabularies": 2, "strengths": [-1.0, 1.0], "screening_problems": 3, "rescreened": 1,
        "rescreening_problems": 3, "steering_problems": 4,
    }  # fmt: skip
    return {"extends": "deepseek-r1-distill-llama-8b"} | read | few


def write_profile(folder: Path, name: str = NAME, **changes: Any) -> Path:
    """The profile as a YAML file in a folder; gives its path."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings_of_miniatures() | changes, sort_keys=False))
    return path
