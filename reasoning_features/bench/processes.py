"""Passes in processes of their own: how long they take and how much memory they hold at most."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from reasoning_features import paths
from reasoning_features.bench import examples, scoring, setting
from reasoning_features.residual_stream.activations import stream


def peak() -> int:
    """The most memory this process has held, bytes.

    Linux counts what the parent held into a child's ``ru_maxrss``, so its own record is read there.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else 1024 * held


WAYS = {
    "scores": scoring.statistics,
    "examples": examples.in_one_pass,
    "sorted examples": examples.by_sorting,
}


def measured(way: str, documents: int, features: int | None) -> dict[str, float]:
    """One pass: ``seconds``, ``held before`` and ``peak`` in bytes, ``tokens`` and ``features``.

    Args:
        way: one of :data:`WAYS`.
        documents: reasoning documents that are read.
        features: of an autoencoder of random directions; None for the shipped one.
    """
    given = setting.load(documents)
    first = next(stream(given.subject, given.corpus, given.settings.batch_tokens)).residual
    sae = given.sae if features is None else setting.random_autoencoder(first, features)
    WAYS[way](replace(given, corpus=given.corpus.head(50)), sae)  # warms up
    before, start = peak(), time.perf_counter()
    WAYS[way](given, sae)
    taken = time.perf_counter() - start
    numbers = {"seconds": taken, "held before": before, "peak": peak()}
    return numbers | {"tokens": given.tokens, "features": sae.cfg.d_sae}


def in_a_process(way: str, documents: int, features: int | None = None) -> dict[str, float]:
    """:func:`measured` in a process that has held nothing else."""
    command = [sys.executable, "-m", __name__, json.dumps([way, documents, features])]
    environment = os.environ | {"PYTHONPATH": str(paths.root())}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measured(*json.loads(sys.argv[1]))))
