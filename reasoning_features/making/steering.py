"""The part of ``make organism`` that notebook 05 needs: the steering studies of both arms, seed by seed.

Each study chooses and reports by the rules of :mod:`reasoning_features.steering.steering_study`, fixed before
any of them was run. Besides the default autoencoder's there are studies of another one, trained from another
seed, of the first models, and of another layer: a result that hangs on either is none.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.settings import Settings, load_settings
from reasoning_features.steering.steering_study import prepare, study_model
from reasoning_features.truth.benchmark import Benchmark, gather_table, identity, load_benchmarks
from reasoning_features.workers import Each


@dataclass(frozen=True)
class Studied:
    """A model and the autoencoder whose features steer it."""

    arm: str
    autoencoder: str
    layer: int | None = None  # None: the profile's

    @property
    def name(self) -> str:
        """The study's folder; begins with the arm."""
        return f"{self.arm}-{self.autoencoder}" if self.layer is None else f"{self.arm}-layer-{self.layer}"

    def stored(self, folder: Path) -> Path:
        """Where the autoencoder lies in the organism's folder."""
        if self.layer is None:
            return folder / "autoencoders" / self.name
        return folder / "diffing" / "layers" / str(self.layer)


STUDIES: tuple[Studied, ...] = (
    *(Studied(f"{arm}-{seed}", "relu-0") for seed in range(3) for arm in ("coupled", "decoupled")),
    *(Studied(f"{arm}-0", "relu-1") for arm in ("coupled", "decoupled")),
    Studied("coupled-0", "relu-0", layer=3),
)


def make(folder: Path, unfinished: Path, each: Each) -> None:
    """Every study that is missing, by ``each``, which does a piece of work for every item."""
    missing = [studied for studied in STUDIES if not (folder / "steering" / studied.name).exists()]
    each(partial(study_steering, folder, unfinished), missing)


def study_steering(folder: Path, unfinished: Path, studied: Studied) -> None:
    """One model's study, into ``steering/<name>`` of the organism's folder.

    Args:
        folder: the organism's.
        unfinished: where finished conditions are kept until the study is; one folder serves all studies.
        studied: the model and its autoencoder.
    """
    given = {
        "subject": folder / "models" / studied.arm,
        "autoencoder": studied.stored(folder),
    }
    places = {field: paths.relative(path) for field, path in given.items()}
    settings = load_settings("organism", layer=studied.layer, **places)
    make_study(folder / "steering" / studied.name, settings, folder / "truth", unfinished)


def make_study(target: Path, settings: Settings, truth: Path, unfinished: Path) -> None:
    """The equal search on one autoencoder's features, by the main line's rules; whole or not.

    Args:
        target: the study's folder; it is not there yet.
        settings: of the run, with the model as ``subject`` and its ``autoencoder``.
        truth: folder of benchmarks; of an autoencoder that has none there the evidence is gathered anew.
        unfinished: where finished conditions are kept until the study is.
    """
    torch.set_num_threads(1)
    subject = load_subject(settings.subject, settings.layer)
    sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
    stored = [b for b in load_benchmarks(truth) if b.identity == identity(settings, sae)]
    benchmark = stored[0] if stored else _untested(settings, subject, sae)
    tried = prepare(settings, subject, sae, benchmark)
    study = study_model(settings, subject, tried, benchmark.identity, unfinished)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    study.save(fresh)
    fresh.rename(target)


def _untested(settings: Settings, subject: Subject, sae: Any) -> Benchmark:
    """Evidence of an autoencoder whose features' causal effects were not measured."""
    evidence = gather_table(settings, subject, sae)
    return Benchmark(**identity(settings, sae), evidence=evidence, truths={})
