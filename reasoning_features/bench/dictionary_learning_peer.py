"""dictionary_learning's standard trainer, one training for each line that comes; runs in its own environment.

Arguments: a safetensors file with ``residual`` ``[n, d]``, features, batch, steps. Says its version first,
then, for each line, the tokens it has trained on.
"""

from __future__ import annotations

import importlib.metadata
import sys

import torch
from dictionary_learning.trainers import StandardTrainer
from safetensors.torch import load_file


def main() -> None:
    """Train once a line."""
    residual = load_file(sys.argv[1])["residual"]
    features, batch, steps = map(int, sys.argv[2:])
    print(importlib.metadata.version("dictionary-learning"), flush=True)
    for _ in sys.stdin:
        trainer = StandardTrainer(
            steps=steps,
            activation_dim=residual.shape[1],
            dict_size=features,
            layer=0,
            lm_name="",
            warmup_steps=max(1, steps // 20),
            sparsity_warmup_steps=max(1, steps // 20),
            seed=0,
            device="cpu",
        )
        order = torch.randperm(len(residual))
        done = 0
        for step in range(steps):
            start = done % (len(residual) - batch + 1)
            trainer.update(step, residual[order[start : start + batch]])
            done += batch
        print(done, flush=True)


if __name__ == "__main__":
    main()
