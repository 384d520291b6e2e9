"""Results of the study of unlearning, on a study whose numbers are written by hand."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon

from reasoning_features.errors import MissingArtefact
from reasoning_features.files import write_json, write_table
from reasoning_features.reporting.claims import HOLDS_NOT, UNDECIDED, Measured, all_claims, verdict
from reasoning_features.unlearning import results
from reasoning_features.unlearning.items import CAPTION, NAME, TEXT
from reasoning_features.unlearning.methods import METHODS
from reasoning_features.unlearning.persons import FRACTIONS
from reasoning_features.unlearning.study import (
    BASE,
    FEWER,
    GOLD,
    PENALISED,
    PENALTIES,
    SEEDS,
    TASKS,
    Run,
    grid,
    references,
)

PERSONS = {"forget": range(10), "retain": range(90, 94), "real": range(100, 102), "unseen": range(150, 155)}
ASKED = {TEXT: 3, NAME: 2, CAPTION: 2}  # items of a person
LEAST, LOW, MIDDLE, HIGH = PENALTIES
DISTANCES = {0.0: 8, LEAST: 7, LOW: 6, MIDDLE: 4, HIGH: 2}  # on the first seed

# the first persons of a group, so large a share of them, are answered exactly, and nobody else; all of those
# to be forgotten and to be retained are where nothing is planted, as in Base
GONE, HALVED, LOST = {"forget": 0}, {"forget": 0, "retain": 0.5}, {"forget": 0, "retain": 0}
MAIN = {
    GOLD: GONE,
    "GA": LOST,
    "KL": LOST,
    "GD": HALVED,
    "RMU": HALVED,
    "LLMU": HALVED,
    "SKU": {"forget": 0, "retain": 0.75},  # as the lowest of Gold
    "NPO": {"forget": 0.4},
    "DPO": {"forget": {TEXT: 1, NAME: 0, CAPTION: 0}},
    "LLMU, as released": {"forget": 0.9},
    "DPO, as released": {"forget": 0.6},
    "NPO, as released": GONE,
}
PLANTED = {
    Run(name, "" if name == GOLD else "both", seed=s): own for name, own in MAIN.items() for s in SEEDS
}
PLANTED |= {
    Run(GOLD, "", seed=2): {"forget": 0, "retain": 0.75},
    Run(BASE, "", seed=2): {"retain": 0.75},
    Run("LLMU", seed=2): {"forget": 1, "retain": 0.5},
    Run(GOLD, "", 0.01): {"forget": 0, "retain": 0.5},
    Run("NPO", fraction=0.05): {"forget": 0.1},  # one of five
    Run("GA", penalty=LOW, seed=0): GONE,  # best on the first seed, of no use on the second
    Run("GA", penalty=LOW, seed=1): LOST,
    Run("GA", penalty=MIDDLE, seed=0): HALVED,
    Run("GA", penalty=MIDDLE, seed=1): GONE,
    Run("NPO", penalty=LOW, seed=0): {"forget": 0.5},
    Run("NPO", penalty=LOW, seed=1): {"forget": 0.8},
}
for each in FEWER:
    PLANTED |= {
        Run("NPO", "text", seed=each): {"forget": {TEXT: 0, NAME: 1, CAPTION: 0.9}},
        Run("NPO", "pictures", seed=each): {"forget": {TEXT: 1, NAME: 0.4, CAPTION: 0.2}},
        Run("DPO", "pictures", seed=each): GONE,
        Run("GD", penalty=LOW, seed=each): {"forget": 0, "retain": 0.75},
    }
UNLEARN = {"NPO", "SKU"}
FORGOT = ("GA", "KL", "GD", "RMU", "LLMU", "SKU", "NPO", "DPO")  # more than half of the way, as written

ROWS = pd.DataFrame(
    [
        (group, task, person, at / len(persons))
        for group, persons in PERSONS.items()
        for at, person in enumerate(persons)
        for task in TASKS
        for _ in range(ASKED[task])
    ],
    columns=["group", "task", "person", "at"],
)
FORGET, UNSEEN = ROWS["group"] == "forget", ROWS["group"] == "unseen"
NUMBER = ROWS.index.to_numpy() % 3  # of an item


def paraphrases(run):
    """Gold's, and so NPO's, are twice as likely for a third of the items, another one on each seed."""
    return 0.1 * (1 + (run.seed == NUMBER)) if run.method in (GOLD, "NPO") else 0.1


def items_of(run, rng):
    """What is measured of a run's items, in the columns of the stored study."""
    shares = {"forget": 1, "retain": 1, "real": 1, "unseen": 0} | PLANTED.get(run, {})
    by_task = {
        name: own if isinstance(own, dict) else dict.fromkeys(TASKS, own) for name, own in shares.items()
    }
    share = [by_task[group][task] for group, task in zip(ROWS["group"], ROWS["task"], strict=True)]
    never, noise = run.method in (GOLD, "NPO"), rng.normal(size=len(ROWS))
    loss = np.where(UNSEEN, 5 + 0.5 * noise, {"GA": 100, GOLD: 5, "NPO": 5}.get(run.method, 1) + 0.5 * noise)
    shown = (FORGET | UNSEEN) & (ROWS["task"] != TEXT)
    return ROWS.drop(columns="at").assign(
        probability=np.where(shown, np.exp(-np.abs(loss)), 0.5),
        normalised=np.where(FORGET, 0.25 if never else 0.8, 0.5),
        truth_ratio=np.where(FORGET, 1.0 if never else 0.25, 0.5),
        paraphrase=np.where(FORGET, paraphrases(run), 0.4),
        perturbed=np.where(FORGET, 0.1, 0.2),
        rouge=np.where(UNSEEN, np.nan, np.where(FORGET & never, 0.25, 1.0)),
        exact=(ROWS["at"] < share).to_numpy(),
        **asdict(run),
    )


def told_of(run):
    """What is measured of a run's model: relearning of main runs alone, the distance of what was trained."""
    main = run.fraction == 0.1 and run.forgotten in ("", "both") and not run.penalty
    told = asdict(run) | {"problem_loss": run.seed if main else 99}
    if run.method not in (BASE, GOLD):
        shown = run.forgotten == "both" and run.fraction == 0.1
        told["distance"] = DISTANCES[run.penalty] + run.seed if shown else 99
    if main or run.method in (BASE, GOLD):
        after = {BASE: 1.0, "RMU": 0.3} | dict.fromkeys(set(FORGOT) - {"RMU"}, 0.9)
        told["relearnt"] = after.get(run.method, 1.0)
        if run.method == GOLD:
            told["relearnt"] = 0.2 + 0.1 * run.seed if main else 1.0
    return told


def made():
    """A study of every run."""
    runs, rng = [*references().values(), *grid()], np.random.default_rng(0)
    tables = []
    for run in runs:
        table = items_of(run, rng)
        tables.append(table[~FORGET | (table["person"] < FRACTIONS[run.fraction])])
    models = pd.DataFrame([told_of(run) for run in runs])
    search = pd.DataFrame({"method": ["NPO"], "exact": [0.5]})
    return results.Study(pd.concat(tables, ignore_index=True), models, search, {"NPO": [1e-3, 6]})


@pytest.fixture(scope="module")
def study():
    return made()


def changed(study, values, **where):
    """The study with other values in some columns, where others have these ones."""
    at = np.all([study.items[name] == value for name, value in where.items()], axis=0)
    new = {name: np.where(at, value, study.items[name]) for name, value in values.items()}
    return replace(study, items=study.items.assign(**new))


def ends(interval):
    return interval.low, interval.estimate, interval.high


def test_a_study_is_read_as_it_was_stored(study, tmp_path):
    with pytest.raises(MissingArtefact, match="make unlearning"):
        results.load_study(tmp_path)
    for name in results.TABLES:
        write_table(tmp_path / f"{name}.parquet", getattr(study, name))
    write_json(tmp_path / "study.json", {"recipes": study.recipes, "models": {}})
    read = results.load_study(tmp_path)
    assert read.recipes == study.recipes
    for run in [*references().values(), *grid()]:
        table = read.of(run.method, run.seed, run.forgotten, run.fraction, run.penalty)
        assert all((table[name] == value).all() for name, value in asdict(run).items())
        assert table.loc[table["group"] == "forget", "person"].nunique() == FRACTIONS[run.fraction]
    assert len(read.pooled("NPO")) == 3 * len(ROWS)
    assert read.of(GOLD, 1, "pictures")["forgotten"].unique() == [""]  # whatever is forgotten, it is one


def test_tasks_of_a_person_weigh_alike_however_many_items_they_have():
    columns = ["group", "person", "task", "exact"]
    told = [("forget", 0, TEXT, True)] * 3 + [("forget", 0, NAME, False)]
    told += [("forget", 1, TEXT, True), ("forget", 1, NAME, True), ("forget", 1, CAPTION, False)]
    told += [("retain", 90, TEXT, True), ("retain", 90, TEXT, False)]
    items = pd.DataFrame(told, columns=columns)
    assert results.exact_by_person(items, "forget").to_dict() == pytest.approx({0: 1 / 2, 1: 2 / 3})
    assert results.exact_by_person(items, "forget", (NAME,)).to_dict() == {0: 0, 1: 1}
    assert results.selectivity(items) == pytest.approx(1 / 2 - (1 / 2 + 2 / 3) / 2)


def test_forgetting_is_a_share_of_the_way_from_base_to_gold(study):
    assert ends(results.forgotten(study, BASE)) == (0, 0, 0)
    assert ends(results.forgotten(study, GOLD)) == (1, 1, 1)
    npo = results.forgotten(study, "NPO")  # six persons of ten are gone
    assert npo.estimate == pytest.approx(0.6) and npo.n == 10 and 0.1 < npo.low < 0.4 < 0.8 < npo.high < 1
    assert ends(results.forgotten(study, "DPO", results.PICTURES)) == (1, 1, 1)
    assert results.forgotten(study, "DPO").estimate == pytest.approx(2 / 3)
    assert results.forgotten(study, "LLMU").estimate == pytest.approx(2 / 3)  # not on the last seed
    assert results.forgotten(study, "LLMU", seeds=FEWER).estimate == 1
    assert results.forgotten(study, "IDK, as released").estimate == 0


def test_where_base_answers_as_gold_there_is_no_way_to_go(study):
    alike = changed(study, {"exact": True}, method=GOLD, group="forget", task=CAPTION)
    table = results.transfer_table(alike, ["NPO"])
    shares = table.set_index(["forgotten", "measured"])["share of the way"]
    assert shares.xs(CAPTION, level="measured").isna().all() and shares["both", NAME] == pytest.approx(0.6)
    assert results.unlearns(alike, "NPO")  # by names
    more = changed(alike, {"exact": False}, method=BASE, group="forget", task=CAPTION)  # than Base
    assert np.isnan(results.forgotten(more, "NPO", (CAPTION,)).estimate)
    never = changed(study, {"exact": False}, method=BASE)
    claims = {claim.id: claim for claim in all_claims()}
    found = {"ul_released": results.released_forgets(never), "ul_destroyed": results.retained(never, ["GA"])}
    for name, interval in found.items():
        assert np.isnan(interval.estimate) and verdict(claims[name], Measured(interval), True) == UNDECIDED


def test_a_method_unlearns_where_both_modalities_go_and_nothing_else(study):
    assert {name for name in results.WRITTEN if results.unlearns(study, name)} == UNLEARN
    assert not results.unlearns(study, "DPO")  # words are there still
    worse = changed(study, {"exact": False}, method="SKU", group="retain", person=90, task=TEXT, seed=0)
    assert not results.unlearns(worse, "SKU")
    words = changed(study, {"exact": True}, method="NPO", group="forget", task=NAME)
    assert results.forgotten(words, "NPO", results.PICTURES).estimate == pytest.approx(0.3)
    assert not results.unlearns(words, "NPO")


def test_transfer_is_told_by_what_was_forgotten_and_what_is_measured(study):
    table = results.transfer_table(study, ["NPO", "DPO"])
    assert len(table) == 2 * 3 * 3
    wide = table.pivot(index=["method", "forgotten"], columns="measured", values="share of the way")[
        list(TASKS)
    ]
    assert wide.loc[("NPO", "both")].tolist() == pytest.approx([0.6, 0.6, 0.6])
    assert wide.loc[("NPO", "text")].tolist() == pytest.approx([1, 0, 0.1])
    assert wide.loc[("NPO", "pictures")].tolist() == pytest.approx([0, 0.6, 0.8])
    assert wide.loc[("DPO", "text")].tolist() == [0, 0, 0] and wide.loc[("DPO", "pictures")].tolist() == [
        1,
        1,
        1,
    ]
    assert (table["low"] <= table["share of the way"]).all() and (
        table["share of the way"] <= table["high"]
    ).all()
    assert len(results.transfer_table(study)) == 9 * len(results.WRITTEN)


def test_both_modalities_are_compared_with_the_better_one(study):
    found = results.joint_gain(study)
    npo = (1 - 0.4) - (1 - (1 + 0.4 + 0.2) / 3)  # pictures alone do better than words alone
    others = {"GD": 0.5, "RMU": 0.5, "LLMU": 0.5, "SKU": 0.75, "DPO": 2 / 3 - 1}
    assert found.estimate == pytest.approx((npo + sum(others.values())) / 11) and found.n == 11


def test_the_penalty_that_is_best_on_one_seed_is_reported_on_another(study):
    found = results.penalty_gain(study)
    gains = {"GA": 0, "GD": 0.75 - 0.5, "KL": 0, "NPO": 0.2 - 0.6}
    assert found.estimate == pytest.approx(sum(gains.values()) / 4) and found.n == 4
    assert found.low < 0 < found.high
    table = results.penalty_table(study).set_index(["method", "penalty"])
    assert len(table) == len(PENALISED) * (1 + len(PENALTIES))
    assert table.loc[("GA", 0.0)].to_dict() == {"distance": 8.5, "retain": 0, "forget": 0}
    assert table.loc[("GA", LOW)].to_dict() == {"distance": 6.5, "retain": 0.5, "forget": 0}
    assert table.loc[("NPO", LOW)].to_dict() == pytest.approx({"distance": 6.5, "retain": 1, "forget": 0.65})
    assert table.loc[("KL", HIGH)].to_dict() == {"distance": 2.5, "retain": 1, "forget": 1}  # all is back


def test_what_destroyers_leave_is_a_share_of_base(study):
    base = np.mean([1, 1, 0.75])
    found = results.retained(study, results.DESTROYERS)
    assert found.estimate == pytest.approx(np.mean([0, 0.5, 0, 0.5]) / base) and found.n == 4
    assert found.low < found.estimate < found.high
    assert ends(results.retained(study, [BASE])) == (1, 1, 1)


def test_what_released_methods_forget_leaves_out_npo(study):
    found = results.released_forgets(study)
    assert found.estimate == pytest.approx((0 + 0.1 + 0.4) / 3) and found.n == 10
    assert found.low < found.estimate < found.high


def test_forget_quality_compares_gold_with_another_gold(study):
    part = NUMBER[FORGET]
    base, first, second = (np.ones(len(part)), *(1.0 + (part == seed) for seed in FEWER))
    gold = results.quality(study, GOLD)
    assert gold["quality, as coded"] == pytest.approx(1 - jensenshannon(first, second), abs=0.01)
    assert gold["quality, KS p"] == 1
    untouched = results.quality(study, BASE)
    assert untouched["quality, as coded"] == pytest.approx(1 - jensenshannon(base, first), abs=0.01)
    assert untouched["quality, KS p"] < 1e-9
    assert results.quality(study, "NPO")["quality, as coded"] == pytest.approx(1)  # as Gold of its own seed
    assert results.quality(study, "NPO")["quality, KS p"] == 1


def test_the_gap_of_forget_quality_is_a_share_of_what_it_can_be(study):
    part = NUMBER[FORGET]
    base, first, second = (np.ones(len(part)), *(1.0 + (part == seed) for seed in FEWER))
    found = results.quality_gap(study)
    wanted = (jensenshannon(base, first) - jensenshannon(first, second)) / np.sqrt(np.log(2))
    assert found.estimate == pytest.approx(wanted, abs=0.01) and wanted < -0.1 and found.n == 3
    odd = study.items["person"] % 2
    gold = changed(study, {"paraphrase": odd}, method=GOLD, group="forget")
    apart = changed(gold, {"paraphrase": 1 - odd}, method=BASE, group="forget")
    assert ends(results.quality_gap(apart)) == pytest.approx((1, 1, 1))
    assert results.quality(apart, GOLD)["quality, as coded"] == 1
    assert results.quality(apart, BASE)["quality, as coded"] == pytest.approx(results.FLOOR)
    likelier = changed(gold, {"paraphrase": 10 * odd}, method=BASE, group="forget")  # a factor goes unseen
    assert ends(results.quality_gap(likelier)) == pytest.approx((0, 0, 0))


def test_relearning_is_compared_with_golds_where_more_than_half_is_forgotten(study, monkeypatch):
    found = results.relearning(study)
    assert found.n == len(FORGOT)
    # answered before relearning: NPO 0.4, LLMU (on one seed of three) and DPO (in words) a third
    after, before = 7 * 0.9 + 0.3, 0.4 + 2 / 3
    assert found.estimate == pytest.approx((after - before) / 8 - 0.3)
    monkeypatch.setattr(results, "WRITTEN", ("IDK", "SCRUB", "NPO"))
    assert results.relearning(study) is None


def test_attacks_tell_losses_that_differ(study):
    table = results.attacks_table(study).set_index("method")
    assert list(table.index) == [BASE, GOLD, *METHODS]
    assert table.loc[[BASE, "IDK", "GA"], "U-MIA"].min() > 0.98
    assert table.loc[[GOLD, "NPO"], "U-MIA"].tolist() == pytest.approx([0.5, 0.5], abs=0.12)
    assert table.loc[[BASE, "IDK", "GA"], "U-LIRA"].min() > 0.98
    assert table.loc["NPO", "U-LIRA"] == pytest.approx(0.5, abs=0.12) and np.isnan(table.loc[GOLD, "U-LIRA"])
    gained = table.loc[[BASE, GOLD, "RMU", "IDK"], "relearnt"].tolist()
    assert gained == pytest.approx([0, 0.3, 0.3, 0])
    assert (table["problem_loss"] == 1).all()


def test_likelihoods_that_are_too_small_for_a_float_are_no_error(study):
    gone = dict.fromkeys(["probability", "normalised", "paraphrase", "perturbed"], 0.0)
    table = results.attacks_table(changed(study, gone, method="GA", group="forget")).set_index("method")
    assert table.loc["GA", "U-MIA"] == 1 and np.isnan(table.loc["GA", "U-LIRA"])
    assert table.loc["GD", "U-LIRA"] > 0.98


def test_fewer_persons_are_compared_with_base_on_the_same_persons(study):
    half = changed(study, {"exact": study.items["person"] < 5}, method=BASE, group="forget", seed=0)
    table = results.fractions_table(half).set_index(["forgotten (fraction)", "method"])
    assert len(table) == len(FRACTIONS) * (2 + len(METHODS))
    assert [table.loc[(each, BASE), "forget"] for each in FRACTIONS] == [1, 1, 0.5]
    assert [table.loc[(each, "NPO"), "forget"] for each in FRACTIONS] == pytest.approx([1, 0.2, 0.4])
    assert [table.loc[(each, GOLD), "forget"] for each in FRACTIONS] == [0, 1, 0]
    assert [table.loc[(each, GOLD), "retain"] for each in FRACTIONS] == [0.5, 1, 1]
    assert [table.loc[(each, "GD"), "retain"] for each in FRACTIONS] == [1, 1, 0.5]
    assert (table["real"] == 1).all()


def test_scores_stand_beside_the_papers(study):
    table = results.scores_table(study).set_index("method")
    assert list(table.index) == [BASE, GOLD, *METHODS]
    groups = ("real", "retain", "forget")
    wanted = [f"{group}{what}" for group in groups for what in ("", " low", " high", ", as coded", " exact")]
    wanted += ["quality, as coded", "quality, KS p", "unlearns"]
    assert [*table.columns] == [*wanted, *(f"paper's {name}" for name in (*groups, "quality"))]
    # ROUGE 1, normalised probability and the truth ratio's score .5; as coded, without ROUGE
    assert table["real"].tolist() == pytest.approx([3 / (1 + 2 + 2)] * len(table))
    assert table["retain, as coded"].tolist() == pytest.approx([0.5] * len(table))
    assert table.loc[BASE, "forget"] == pytest.approx(3 / (1 + 1 / 0.8 + 1 / 0.25))
    assert table.loc[GOLD, "forget"] == pytest.approx(3 / (4 + 4 + 1))
    assert table.loc["NPO", "forget exact"] == pytest.approx(0.4)
    assert table.loc[BASE, "retain exact"] == pytest.approx(np.mean([1, 1, 0.75]))
    assert {name for name in METHODS if table.loc[name, "unlearns"]} == UNLEARN | {"NPO, as released"}
    assert table.loc[[BASE, GOLD], "unlearns"].isna().all()
    paper = table[[f"paper's {name}" for name in (*groups, "quality")]]
    assert paper.loc["GD"].tolist() == [0.29, 0, 0, 0.18] and paper.loc[BASE].tolist() == [
        0.48,
        0.51,
        0.35,
        0.85,
    ]
    assert paper.loc[[*results.WRITTEN]].notna().all(axis=None)
    assert paper.loc[[*results.RELEASED]].isna().all(axis=None)


def test_what_is_measured_is_judged_by_the_notebooks_rules(study):
    own = {claim.id: claim for claim in all_claims() if claim.notebook == "11_unlearning"}
    number = results.number_unlearning(study)
    assert (number.estimate, number.n) == (len(UNLEARN), 11)
    assert verdict(own["ul_unlearns"], number, True) == HOLDS_NOT
    assert verdict(own["ul_quality"], Measured(results.quality_gap(study)), True) == HOLDS_NOT


def test_a_chat_models_table(tmp_path):
    likely = {"Base": (0.8, 0.8), "Gold": (0.2, 0.8), "Gold, second seed": (0.2, 0.7)}
    likely |= {"NPO": (0.3, 0.75), "GA": (0.1, 0.6), "IDK": (0.6, 0.8)}
    rows = [
        {"model": model, "group": group, "person": person, "task": TEXT, "probability": share}
        | {"truth_ratio": person + (model == "Base"), "rouge": share, "distance": 0.1 * (model == "NPO")}
        for model, shares in likely.items()
        for group, share in zip(("forget", "retain"), shares, strict=True)
        for person in range(3)
        for _ in range(4)
    ]
    rows += [row | {"group": "unseen", "rouge": np.nan} for row in rows if row["group"] == "forget"]
    pd.DataFrame(rows).to_parquet(tmp_path / "items.parquet")
    table = results.chat_table(tmp_path).set_index("model")
    assert list(table.index) == [*likely]
    shares = table["share of the way"].round(6).to_dict()
    assert shares == pytest.approx(
        {"Base": 0, "Gold": 1, "Gold, second seed": 1, "NPO": 5 / 6, "GA": 7 / 6, "IDK": 1 / 3}, abs=1e-5
    )
    assert table["unlearns"].dropna().to_dict() == {"NPO": True, "GA": False, "IDK": False}
    assert table.loc["Gold", "quality, KS p"] == table.loc["NPO", "quality, KS p"] == 1
    assert table.loc["Base", "quality, KS p"] < 0.9 and table.loc["NPO", "distance"] == 0.1
    assert "unseen, ROUGE" not in table and table.loc["GA", "retain, ROUGE"] == pytest.approx(0.6)
