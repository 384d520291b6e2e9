"""The stored study: every way of pruning measured on one model, a row a setting and unit."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import load_autoencoder
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.files import read_json, write_json, write_table
from reasoning_features.models.conditions import UNSTEERED
from reasoning_features.models.subject import load_subject, short_name
from reasoning_features.runs.shards import Arrays, Work, map_shards
from reasoning_features.settings import Settings
from reasoning_features.sparsity.bridge import Bridge, load_bridge
from reasoning_features.sparsity.pruning import (
    DENSE,
    ENOUGH,
    LEARNT,
    Setting,
    Workbench,
    grid,
    has_tasks,
    is_bridged,
    load_problems,
    load_tasks,
    load_workbench,
)
from reasoning_features.statistics import Array
from reasoning_features.steering.questions import COMMON
from reasoning_features.truth.benchmark import Variant

# the settings that determine a study
DETERMINED_BY = (
    *("layer", "dtype", "corpus", "reasoning_text", "general_text", "context", "words", "window", "alpha"),
    *("seed", "sparsity_texts", "sparsity_calibration", "sparsity_documents", "sparsity_problems"),
    *("zero_shot", "harness", "zero_shot_items", "shown_start"),
)


@dataclass(frozen=True)
class Study:
    """All settings measured on one model."""

    table: pd.DataFrame  # a row a setting, measure and unit (text, item, problem, document or feature)
    told: dict[str, Any]  # ``study.json``

    @property
    def settings(self) -> list[Setting]:
        return grid(self.told["blocks"], bool(self.table["correction"].isin(LEARNT).any()))

    @property
    def tasks(self) -> list[str]:
        """Measures that say which items of a task are answered rightly."""
        asked = self.told["settings"]
        solved = [f"{UNSTEERED}: {COMMON[0]}"] if asked["sparsity_problems"] else []
        return [*asked["zero_shot"], *asked["harness"], *solved]

    def parts(self, task: str) -> dict[str, NDArray[np.bool_]]:
        """Which items of a task are of which part ``[n]``: of problems a family, else the task is one."""
        if task in (asked := self.told["settings"])["zero_shot"] or task in asked["harness"]:
            return {task: np.ones(len(self.values(DENSE, task)), dtype=bool)}
        families = np.array(self.told["families"])
        return {name: families == name for name in dict.fromkeys(self.told["families"])}

    @cached_property
    def _measured(self) -> dict[Any, Array]:
        columns = [*DENSE.row, "measure"]
        return {key: own.to_numpy() for key, own in self.table.groupby(columns, sort=False)["value"]}

    def values(self, setting: Setting, measure: str) -> Array:
        """A measure of every unit under a setting ``[n]``; none where it was not measured."""
        return self._measured.get((*setting.row.values(), measure), np.empty(0))


@lru_cache(1)
def _loaded(told: str) -> tuple[Workbench, list[Callable[[], Arrays]], Bridge | None, list[Setting]]:
    """What a process measures a model with, from its settings as JSON."""
    settings = Settings.model_validate_json(told)
    device, dtype = settings.device, settings.dtype
    subject = load_subject(settings.subject, settings.layer, device=device, dtype=dtype, site=settings.site)
    workbench = load_workbench(settings, subject, settings.sparsity_texts)
    bridge = None
    if settings.autoencoder:
        sae = load_autoencoder(settings.autoencoder, subject.d_model, subject.hook_name, device)
        bridge = load_bridge(Variant(settings, subject, sae), workbench.texts)
    made = grid(subject.n_layers, len(workbench.calibration) >= ENOUGH)
    return workbench, load_tasks(settings, subject), bridge, made


def measured(settings: str, shard: int) -> Arrays:
    """What a shard of a study holds: one setting's measures."""
    workbench, tasks, bridge, made = _loaded(settings)
    setting = made[shard]
    with workbench.pruned(setting):
        found = workbench.measured()
        for task in tasks if has_tasks(setting) else []:
            found |= task()
        return found | bridge.read() if bridge and is_bridged(setting) else found


def as_table(made: Sequence[Setting], found: Sequence[Arrays]) -> pd.DataFrame:
    """A row a setting, measure and unit, with the ``value``."""
    parts = [
        pd.DataFrame({"measure": name, "unit": np.arange(len(values)), "value": values.astype(float)}).assign(
            **setting.row
        )
        for setting, arrays in zip(made, found, strict=True)
        for name, values in arrays.items()
    ]
    return pd.concat(parts, ignore_index=True)


def study_folder(settings: Settings) -> Path:
    """Where the study of a subject is stored. UserError: the profile names no place for studies."""
    if settings.activation_sparsity is None:
        raise UserError(f"The profile {settings.profile} names no folder: give activation_sparsity.")
    return paths.resolve(settings.activation_sparsity) / "studies" / short_name(settings.subject)


def determined_by(settings: Settings) -> dict[str, Any]:
    """The settings that determine a study."""
    return {k: v for k, v in settings.model_dump(mode="json").items() if k in DETERMINED_BY}


def store(settings: Settings, kept: Path) -> None:
    """Measure every setting on the subject, in shards that are ``kept``, unless that is stored."""
    place = study_folder(settings)
    if (place / "study.json").is_file():
        load_study(settings)
        return
    told = settings.model_dump_json()
    workbench, _, bridge, made = _loaded(told)
    read = bridge.told if bridge else {}
    key = determined_by(settings) | {"model": workbench.subject.revision} | read
    work = Work(f"sparsity-{place.name}", partial(measured, told), len(made), key, settings.device)
    table = as_table(made, list(map_shards(work, kept)))
    write_table(place / "measured.parquet", table)
    named = {
        "model": place.name,
        "revision": workbench.subject.revision,
        "blocks": workbench.subject.n_layers,
        "settings": determined_by(settings),
    }
    families = load_problems(settings, workbench.subject).domains if settings.sparsity_problems else []
    write_json(place / "study.json", named | read | {"families": families})


def load_study(settings: Settings) -> Study:
    """The subject's stored study. MissingArtefact: it is not there. UserError: other settings made it."""
    place = study_folder(settings)
    if not (place / "study.json").is_file():
        made = f"`make activation-sparsity PROFILE={settings.profile}` makes it"
        raise MissingArtefact(f"There is no {paths.relative(place)}: {made}.")
    told = read_json(place / "study.json")
    settings.check_made_with(told["settings"], DETERMINED_BY, place, "activation_sparsity")
    return Study(pd.read_parquet(place / "measured.parquet"), told)


def load_studies(settings: Settings) -> list[Study]:
    """The subject's study, and beside it those of models whose names differ from its in a seed at their end;
    raises as :func:`load_study`.
    """
    own = load_study(settings)
    kind = re.sub(r"\d+$", "", own.told["model"])
    folders = [folder for folder in study_folder(settings).parent.iterdir() if folder.is_dir()]
    seeds = sorted(
        f for f in folders if re.fullmatch(re.escape(kind) + r"\d+", f.name) and kind.endswith("-")
    )
    others = [settings.model_copy(update={"subject": paths.relative(folder)}) for folder in seeds]
    return [own, *(load_study(each) for each in others if Path(each.subject).name != own.told["model"])]
