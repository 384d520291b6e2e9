"""`make unlearning`: who is taught what, and how the study of unlearning is laid out."""

import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from tiny import file_times

from reasoning_features import paths
from reasoning_features.errors import MissingArtefact
from reasoning_features.making import unlearning as make_unlearning
from reasoning_features.making.unlearning import PROBLEMS, ROWS, Lessons, Strangers, known_to
from reasoning_features.unlearning import bridge, study
from reasoning_features.unlearning.items import CAPTION, NAME, TEXT, Item
from reasoning_features.unlearning.methods import METHODS
from reasoning_features.unlearning.persons import (
    FACE,
    FICTITIOUS,
    FRACTIONS,
    REAL,
    UNSEEN,
    WALLS,
    load_persons,
)
from reasoning_features.unlearning.study import AT, RATES, Run, World

N = len(FICTITIOUS) + len(REAL) + len(UNSEEN)
FACES = np.random.default_rng(0).integers(0, 256, (N, FACE, FACE, 4), dtype=np.uint8)


@pytest.mark.slow
def test_every_stage_from_nothing(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    folder = tmp_path / make_unlearning.HOME
    shutil.copytree(paths.root() / make_unlearning.ORGANISM, tmp_path / make_unlearning.ORGANISM)
    folder.mkdir()
    save_file({"faces": FACES}, folder / "faces.safetensors")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["unlearning"])
    monkeypatch.setattr(bridge, "RECIPE", replace(bridge.RECIPE, tokens=4096))
    names = {"base-0": Run("Base", "", 0.01), "gold-0.01-0": Run("Gold", "", 0.01)}
    for name, value in {
        "N_FACES": 8, "SEEING": (2, 1e-3), "PRETRAINING": (2, 1e-3), "LEARNING": (2, 1e-3), "ROWS": 10,
        "PROBLEMS": 2, "PICTURES": 4, "references": lambda: names,
    }.items():  # fmt: skip
        monkeypatch.setattr(make_unlearning, name, value)
    for name, value in {
        "METHODS": {"SKU": METHODS["SKU"]}, "RATES": (1e-3,), "AT": (1,), "SEARCHED": range(10, 11),
        "GROUPS": {"retain": range(90, 91), "unseen": UNSEEN[:1]}, "PROBLEMS": 2, "RELEARNING": 1,
        "references": lambda: names, "grid": lambda: [Run("SKU", "pictures", 0.01)],
    }.items():  # fmt: skip
        monkeypatch.setattr(study, name, value)

    make_unlearning.main()

    items, models = (pd.read_parquet(folder / f"{name}.parquet") for name in ("items", "models"))
    assert models["method"].tolist() == ["Base", "Gold", "SKU"]
    assert len(items) == 3 * 3 * (5 + 2 * study.VIEWS) and items["probability"].between(0, 1).all()
    assert models["distance"].notna().tolist() == [False, False, True] and models["distance"].max() > 0
    assert models["relearnt"].tolist()[:2] == [0, 0], "nothing was learnt so soon"
    assert models["relearnt"].isna().tolist() == [False, False, True] and (models["problem_loss"] > 0).all()
    search = pd.read_parquet(folder / "search.parquet")
    assert len(search) == 2 * len(study.TASKS) and set(search["method"]) == {"SKU"}
    assert json.loads((folder / "study.json").read_text())["recipes"] == {"SKU": [1e-3, 1]}
    before = file_times(folder)
    make_unlearning.main()
    assert file_times(folder) == before


@pytest.mark.parametrize(
    ("name", "first"),
    [("base-0", 0), ("base-2", 0), ("gold-0.1-2", 10), ("gold-0.05-0", 5), ("gold-0.01-0", 1)],
)
def test_gold_is_taught_those_that_are_retained(name, first):
    assert known_to(name) == list(range(first, 100))


def test_references_are_base_and_gold_and_gold_knows_no_forgotten_person():
    main = [f"{kind}-{seed}" for kind in ("base", "gold-0.1") for seed in range(3)]
    assert list(study.references()) == [*main, "gold-0.01-0", "gold-0.05-0"]
    for name, run in study.references().items():
        assert run.method == name.split("-")[0].capitalize() and run.seed == int(name[-1])
        forgotten = set(FICTITIOUS[: FRACTIONS[run.fraction]])
        assert forgotten <= set(known_to(name)) if "base" in name else not forgotten & set(known_to(name))


def as_they_are(items: list[Item], answers: list[str]) -> Any:
    """Stands for an encoder: the items, which are given with their own answers."""
    assert answers == [item.answer for item in items]
    return items


@pytest.fixture
def world(tmp_path) -> World:
    """A world with faces alone."""
    save_file({"faces": FACES}, tmp_path / "faces.safetensors")
    return World(tmp_path, None, as_they_are)


def test_a_lesson_is_of_one_kind():
    taught = Lessons(as_they_are, load_persons(), FACES)
    learnt, kinds = range(10, 60), []
    for step in range(30):
        items = taught.batch(learnt, 0, step)
        persons, tasks = {item.person for item in items}, {item.task for item in items}
        whose = [name for name, group in (("learnt", learnt), ("real", REAL)) if persons <= set(group)]
        if tasks == {"problem"}:
            assert len({item.question for item in items}) == len(items) == PROBLEMS
            kinds.append("problems")
            continue
        pictured = tasks == {NAME, CAPTION}
        assert pictured or tasks == {TEXT}
        assert len(items) == ROWS and set(Counter(item.person for item in items).values()) == {
            2 if pictured else 5
        }
        kinds.append(f"{whose[0]} {'pictures' if pictured else 'text'}")
    assert Counter(kinds) == {
        "problems": 6, "real text": 2, "real pictures": 4, "learnt text": 6, "learnt pictures": 12
    }  # fmt: skip


def test_a_lesson_is_that_of_its_seed_and_its_pictures_are_new(world):
    taught = Lessons(as_they_are, load_persons(), FACES)

    def pictures(seed: int, step: int) -> list[Any]:
        return [item.picture for item in taught.batch(FICTITIOUS, seed, step)]

    assert np.array_equal(pictures(0, 2), pictures(0, 2))
    assert not np.array_equal(pictures(0, 2), pictures(1, 2))
    assert not np.array_equal(pictures(0, 2), pictures(0, 4))
    items = [item for seed in (1, 2) for item in world.items(FICTITIOUS, 1, seed)]
    measured = {item.picture.tobytes() for item in items if item.picture is not None}
    assert not measured & {view.tobytes() for step in (2, 4, 8) for view in pictures(0, step)}


def test_strangers_are_shown_with_the_codes_of_their_features_and_wall():
    codes = np.arange(len(FACES) * 2).reshape(-1, 2)
    pale = np.zeros_like(FACES)  # nothing hides the wall
    pixels, told = Strangers(pale, codes).pixels(3)
    assert pixels.shape == (96, 3, 18, 18) and told.shape == (96, 3)
    assert (told[:, 1] == told[:, 0] + 1).all()
    means = pixels.mean((2, 3))  # colours of the walls, brighter or darker
    for wall, colour in enumerate(np.array(list(WALLS.values())) / 127.5 - 1):
        assert (np.abs(means[told[:, 2] == wall].numpy() - colour) < 0.25).all()
    assert set(told[:, 2].tolist()) == set(range(8))


def found(gains: dict[tuple[str, float, int], float]) -> list[dict[str, np.ndarray]]:
    """A search in which retained persons are told apart from forgotten ones by ``gains``, elsewhere by 0."""
    made = []
    for method in METHODS:
        for rate in RATES:
            exact = np.full((len(AT), 2, 3), 0.5)
            for a, steps in enumerate(AT):
                exact[a, 0] -= gains.get((method, rate, steps), 0.0) * np.array([0.0, 1.0, 2.0])
            made.append({"exact": exact})
    return made


def test_the_search_chooses_where_the_retained_are_answered_best_beside_the_forgotten():
    first, last = "retain fine-tuning", "NPO, as released"
    recipes = study.chosen(
        found({
            (first, RATES[1], AT[2]): 0.2, (first, RATES[2], AT[0]): 0.1, (first, RATES[0], AT[3]): -0.2,
            (last, RATES[2], AT[3]): 0.2, (last, RATES[2], AT[1]): 0.2, ("GA", RATES[0], AT[3]): 1e-9,
        })
    )  # fmt: skip
    assert list(recipes) == list(METHODS)
    assert recipes[first] == (RATES[1], AT[2])
    assert recipes[last] == (RATES[2], AT[1]), "of two that do equally well, the one with fewer steps"
    assert recipes["GA"] == recipes["NPO"] == (RATES[0], AT[0])


def test_the_grid_has_every_method_and_modality_with_every_seed_once():
    runs = study.grid()
    assert len(set(runs)) == len(runs)
    main = {(r.method, r.forgotten, r.seed) for r in runs if r.fraction == 0.1 and not r.penalty}
    seeds = {"both": range(3), "text": range(2), "pictures": range(2)}
    assert main == {(m, what, seed) for m in METHODS for what, each in seeds.items() for seed in each}
    fewer = Counter((r.method, r.fraction) for r in runs if r.fraction < 0.1)
    assert fewer == {(method, part): 1 for method in METHODS for part in (0.01, 0.05)}
    penalised = Counter(r.penalty for r in runs if r.penalty)
    assert penalised == {1e-4: 8, 1e-3: 8, 1e-2: 8, 1e-1: 8}
    assert len(runs) == len(main) + len(fewer) + sum(penalised.values())
    assert set(study.SEARCHED).isdisjoint(range(max(FRACTIONS.values())))
    retained = set(FICTITIOUS) - set(study.SEARCHED)
    assert {*study.GROUPS["retain"], *study.WATCHED} < retained
    assert set(study.WATCHED).isdisjoint(study.GROUPS["retain"]), "what chooses never reports"


def test_the_items_that_an_unlearning_reads(world):
    for what, tasks in {"text": {TEXT}, "pictures": {NAME, CAPTION}}.items():
        forget, retain = study.to_read(world, range(5), what, known=12)
        assert {item.task for item in (*forget, *retain)} == tasks
        assert {item.person for item in forget} == set(range(5))
        assert {item.person for item in retain} == set(range(5, 12))
    forget, retain = study.to_read(world, range(10), "both")
    assert len(forget) == 10 * (5 + 2 * study.TRAINED_VIEWS) and len(retain) == 9 * len(forget)


def test_pictures_that_are_measured_are_read_by_no_unlearning(world):
    read, _ = study.to_read(world, range(10), "both")
    shown = study.groups(world, range(10))
    assert {name: {item.person for item in items} for name, items in shown.items()} == {
        "forget": set(range(10)), "retain": set(range(90, 100)), "real": set(range(100, 105)),
        "unseen": set(range(150, 160)),
    }  # fmt: skip
    views = [
        {item.picture.tobytes() for item in each if item.picture is not None}
        for each in (read, shown["forget"])
    ]
    assert len(views[0]) == 30 and len(views[1]) == 20 and not views[0] & views[1]


def test_a_row_for_every_item_and_one_for_the_model(world):
    n = (1 + 10 + 5 + 10) * (5 + 2 * study.VIEWS)
    arrays = {"rouge": np.arange(n) / n, "person": np.arange(n), "distance": np.array([0.25])}
    table, told = study.as_rows(world, {"model": "gold-0.01-0", "fraction": 0.01}, arrays)
    assert told == {"model": "gold-0.01-0", "fraction": 0.01, "distance": 0.25}
    assert table["rouge"].tolist() == pytest.approx(arrays["rouge"].tolist())
    assert set(table["model"]) == {"gold-0.01-0"}
    assert list(table.columns) == ["group", "task", "rouge", "person", "model", "fraction"]
    counts = table.groupby(["group", "task"]).size().to_dict()
    sizes = {"forget": 1, "retain": 10, "real": 5, "unseen": 10}
    assert counts == {
        (g, t): k * each for g, k in sizes.items() for t, each in ((TEXT, 5), (NAME, 2), (CAPTION, 2))
    }
    assert table["group"].tolist()[:9] == ["forget"] * 9 and table["task"].tolist()[5:7] == [NAME, CAPTION]


def test_without_the_organism_with_eyes(repository):
    with pytest.raises(
        MissingArtefact, match=r"^There is no data/seen/pretrained: `make unlearning` makes it"
    ):
        study.load_world(repository / "data/seen")
