"""The part of ``make organism`` that notebook 13 needs: the steering studies of both arms, seed by seed.

Each study chooses and reports by the rules of :mod:`reasoning_features.steering.steering_study`, fixed before
any of them was run. Besides the default autoencoder's there are studies of another one, trained from another
seed, of the first models, and of another layer: a result that hangs on either is none.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.models.subject import load_subject
from reasoning_features.runs.shards import Each
from reasoning_features.settings import Settings, load_settings
from reasoning_features.steering.steering_study import prepare, study_model, tested
from reasoning_features.truth.benchmark import load_benchmarks


@dataclass(frozen=True)
class Studied:
    """A model and the autoencoder whose features steer it; ``layer`` None is the profile's."""

    arm: str
    autoencoder: str
    layer: int | None = None

    @property
    def name(self) -> str:
        """The study's folder; begins with the arm."""
        return f"{self.arm}-{self.autoencoder}" if self.layer is None else f"{self.arm}-layer-{self.layer}"


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
        unfinished: where finished answers are kept until the study is; one folder serves all studies.
        studied: the model and its autoencoder.
    """
    autoencoder = folder / "autoencoders" / studied.name
    if studied.layer is not None:
        autoencoder = folder / "diffing" / "layers" / str(studied.layer)
    places = {"subject": folder / "models" / studied.arm, "autoencoder": autoencoder}
    relative = {field: paths.relative(path) for field, path in places.items()}
    settings = load_settings(
        "organism", **relative, **({} if studied.layer is None else {"layer": studied.layer})
    )
    make_study(folder / "steering" / studied.name, settings, folder / "truth", unfinished)


def make_study(target: Path, settings: Settings, truth: Path, unfinished: Path) -> None:
    """The matched-budget search on one autoencoder's features, into ``target``; whole or not.

    ``truth`` is the folder of benchmarks.
    """
    torch.set_num_threads(1)
    subject = load_subject(settings.subject, settings.layer)
    sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name)
    benchmark = tested(settings, subject, sae, load_benchmarks(truth))
    tried = prepare(settings, subject, sae, benchmark)
    study = study_model(settings, subject, tried, benchmark.identity, unfinished)
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    study.save(fresh)
    fresh.rename(target)
