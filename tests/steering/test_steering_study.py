"""A matched-budget search: classes of equal size, choices by their rules, winners on fresh problems."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import make_corpus, make_decisions

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.models.conditions import UNSTEERED, Condition, added
from reasoning_features.settings import load_settings
from reasoning_features.steering import steering_study as search
from reasoning_features.steering.steering_study import CHOSEN, MEAN_DIFFERENCE, SLOT, Trial, Tried

D_SAE, D = 60, 8


@pytest.fixture
def sae():
    decoder = torch.randn(D_SAE, D, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(W_dec=decoder, cfg=SimpleNamespace(d_sae=D_SAE))


@pytest.fixture
def evidence(sae):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"maximum": rng.uniform(1, 5, D_SAE), "density": rng.uniform(0.01, 0.5, D_SAE)})
    table["decoder norm"] = sae.W_dec.norm(dim=1).numpy()
    table.loc[:4, ["density", "maximum"]] = 0.0
    for name in ("reason score", *(f"{kind} {i}" for kind in ("slot", "random") for i in range(3))):
        table[f"score:{name}"] = rng.normal(size=D_SAE)
    return table


def test_every_class_has_as_many_candidates_and_only_live_ones(evidence, sae):
    effects = np.where(evidence["density"] > 0, np.linspace(-1, 1, D_SAE), np.nan)
    settings = load_settings("organism", candidates=6, search_vocabularies=3, strengths=[1.0, -0.5])
    made = search.candidates(settings, sae, evidence, effects)
    groups = pd.Series([trial.group for trial in made]).value_counts()
    assert len(groups) == 6 and set(groups) == {12}
    for trial in made:
        feature, gamma = trial.condition.feature, trial.condition.gamma
        if feature >= 0:
            expected = gamma * evidence["maximum"][feature] * sae.W_dec[feature]
            assert torch.allclose(trial.condition.vector, expected.float())
            assert evidence["density"][feature] > 0
    causal = {trial.condition.feature for trial in made if trial.group == search.CAUSAL}
    assert causal == set(np.argsort(-np.abs(np.nan_to_num(effects)), kind="stable")[:6])
    groups = ([t.condition.vector for t in made if t.group == g] for g in (CHOSEN, search.DIRECTIONS))
    assert torch.allclose(*(torch.stack(vectors).norm(dim=1) for vectors in groups))
    assert search.CAUSAL not in {t.group for t in search.candidates(settings, sae, evidence, None)}
    with pytest.raises(UserError, match="lower `candidates`"):
        search.candidates(settings.model_copy(update={"candidates": 40}), sae, evidence, None)


def test_matched_features_are_near_and_none_of_the_chosen(evidence):
    live = np.flatnonzero(evidence["density"] > 0)
    chosen = live[:10]
    drawn = search.matched_features(evidence, chosen, live, seed=3)
    assert len(set(drawn)) == 10 and not set(drawn) & set(chosen)
    size = np.log(evidence["maximum"] * evidence["decoder norm"])
    far = np.abs(size[chosen].to_numpy()[:, None] - size[live].to_numpy()[None]).mean()
    assert np.abs(size[chosen].to_numpy() - size[drawn].to_numpy()).mean() < far


def test_the_mean_difference_is_of_the_decisions_own_tokens_and_the_mean_norm_of_all(tiny_subject):
    corpus = make_corpus(4)
    decisions = make_decisions(corpus, range(4), [1, 2, 3, 4], [10], [11])
    decisions = replace(decisions, towards=np.array([True, False, True, False]))
    ids = [torch.from_numpy(corpus.document(i)[None].astype(np.int64)) for i in range(4)]
    read = [tiny_subject.residual(tokens)[0] for tokens in ids]
    own = [residual[i + 1] for i, residual in enumerate(read)]
    expected = torch.nn.functional.normalize(own[0] + own[2] - own[1] - own[3], dim=0)
    found = search.mean_difference(tiny_subject, decisions, 100)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    norms = torch.cat([residual[1:] for residual in read]).norm(dim=1)  # but for BOS
    assert search.mean_norm(tiny_subject, corpus, 100) == pytest.approx(float(norms.mean()), rel=1e-5)


def test_every_baseline_has_both_signs_and_its_own_names(organism_tokenizer):
    settings = load_settings("organism", words=["wait", "hmm"])
    made = search.baselines(settings, organism_tokenizer, torch.tensor([0.6, 0.8]), 10.0)
    assert len({trial.condition.name for trial in made}) == len(made)
    gammas = pd.Series([t.condition.gamma for t in made]).groupby([t.group for t in made]).apply(sorted)
    signed = [MEAN_DIFFERENCE, search.REASONING_BIAS, search.STOPPING_BIAS]
    assert set(gammas.index) == {*signed, search.WAIT}
    assert all(gammas[name] == sorted(-gamma for gamma in gammas[name]) for name in signed)
    strongest = next(t.condition for t in made if t.condition.gamma == 0.3)
    assert float(strongest.vector.norm()) == pytest.approx(0.3 * 10)
    without = search.baselines(settings, organism_tokenizer, None, 10.0)
    assert MEAN_DIFFERENCE not in {trial.group for trial in without}


def trials(group, *features):
    """Features whose vectors are of that many ones, at two strengths."""
    asked = [(f"feature {i}", i, gamma) for i in features for gamma in (-0.2, 0.2)]
    return [Trial(group, one[0], added(*one, torch.full((4,), float(one[1])))) for one in asked]


def test_a_vector_that_two_classes_have_is_run_once_and_counted_in_both():
    tried = Tried(trials(CHOSEN, 7) + trials(SLOT, 7), [], norm=2.0)
    table = tried.table(tried.candidates)
    run = tried.conditions(table["condition"])
    assert [condition.name for condition in run] == ["feature 7 at -0.2", "feature 7 at 0.2"]
    assert table["share of norm"].tolist() == pytest.approx([-1.4, 1.4] * 2)
    names = [UNSTEERED] * 2 + [run[0].name] * 2 + [run[1].name] * 2
    answers = pd.DataFrame({"condition": names, "correct": [0, 1, 1, 1, 0, 0]})
    found = search.outcomes(table, answers, ["correct"])
    assert found["gain"].tolist() == [0.5, -0.5, 0.5, -0.5] and set(found["n"]) == {2}


def test_ties_go_to_the_weaker_then_to_the_earlier():
    gammas, correct = [0.4, -0.2, 0.2, 0.1, 0.4], [0.6, 0.6, 0.6, 0.5, 0.1]
    tried = pd.DataFrame({"group": ["a"] * 4 + ["b"], "gamma": gammas, "correct": correct})
    assert search.best(tried, 1)["gamma"].tolist() == [-0.2, 0.4]
    assert search.best(tried, 2)["gamma"].tolist() == [-0.2, 0.2, 0.4]


GOOD = {"feature 1 at 0.2": 0.9, "feature 2 at -0.2": 0.7, "bias at 2": 0.8}


@pytest.fixture
def asked(monkeypatch):
    """Answers by known chances; what was asked at each stage."""
    seen: dict[str, list[str]] = {}

    def run(model, questions, conditions, seed, progress, kept):
        names = [condition.name for condition in conditions]
        assert len(names) == len(set(names))
        seen[progress] = names
        rng, n = np.random.default_rng(len(seen)), 300
        right = pd.DataFrame({name: rng.random(n) < GOOD.get(name, 0.5) for name in [UNSTEERED, *names]})
        long = right.melt(var_name="condition", value_name="correct", ignore_index=False)
        return long.assign(problem=long.index, domain="pair", thinking_tokens=40)

    monkeypatch.setattr(search, "answers", run)
    told = SimpleNamespace(measures=("correct", "thinking_tokens"))
    monkeypatch.setattr(search, "load_questions", lambda *given, start=0: told)
    return seen


@pytest.fixture
def study(asked, tmp_path):
    biases = [Trial("bias", "", Condition(f"bias at {g:g}", gamma=g)) for g in (1.0, 2.0)]
    others = trials(search.CAUSAL, 3)  # a class whose best amplified feature is not asked for
    tried = Tried(trials(CHOSEN, 1, 2) + trials(SLOT, 2, 3) + others, biases, 10.0)
    settings, model = load_settings("organism", rescreened=2), SimpleNamespace(tokenizer=None)
    variant = SimpleNamespace(settings=settings, model=model)
    return search.study_model(variant, tried, {"model": "m"}, tmp_path)


def test_each_stage_asks_each_condition_once_and_one_winner_a_class_goes_on(study, asked):
    assert list(asked) == ["m, screening", "m, rescreening", "m, evaluation"]
    assert len(asked["m, screening"]) == 6  # three vectors at two strengths; two classes share one
    assert len(study.screening) == 10
    again = study.rescreening.groupby("group")["gamma"].apply(lambda gammas: (gammas > 0).sum()).to_dict()
    # the two best, and the two best of γ > 0
    assert again == {CHOSEN: 2, SLOT: 2, search.CAUSAL: 1, "bias": 2}
    assert not study.rescreening.duplicated(["group", "condition"]).any()
    winners = study.winners.set_index("group")
    assert winners["condition"][[CHOSEN, SLOT, "bias"]].tolist() == list(GOOD)
    amplified = winners.loc[[search.AMPLIFIED[CHOSEN], search.AMPLIFIED[SLOT]]]
    assert amplified["condition"].iloc[0] == winners["condition"][CHOSEN] and (amplified["gamma"] > 0).all()
    assert winners.loc[CHOSEN, "share of norm"] == pytest.approx(0.2 * 2 / 10)
    assert set(study.evaluation["group"]) == {UNSTEERED, *winners.index}
    assert search.AMPLIFIED[SLOT] in winners.index and f"{search.CAUSAL}, γ > 0" not in winners.index
    assert len(study.outcome(CHOSEN)) == 300
    assert study.outcome(CHOSEN).mean() == pytest.approx(0.9, abs=0.07)


def test_a_study_is_read_as_it_was_written(study, tmp_path):
    with pytest.raises(MissingArtefact, match="make organism"):
        search.load_studies(tmp_path)
    study.save(tmp_path / "m")
    again = search.load_studies(tmp_path)["m"]
    assert again.identity == study.identity
    pd.testing.assert_frame_equal(again.evaluation, study.evaluation)
    pd.testing.assert_frame_equal(again.winners, study.winners)
    (tmp_path / "m" / "screening.parquet").write_bytes(b"half")
    with pytest.raises(CorruptArtefact, match="restore"):
        search.load_studies(tmp_path)


def test_a_shipped_study_is_read_only_under_the_settings_it_was_made_with():
    shipped = search.load_studies(paths.resolve("data/organism/steering"))
    decoupled = shipped["decoupled-0-relu-0"]

    def found(identity=decoupled.identity, **override):
        return search.shipped_study(load_settings("organism", **override), shipped, identity)

    assert found() is decoupled
    for override in ({"alpha": 0.3}, {"layer": 3}, {"screening_problems": 4}):
        assert found(**override) is None
    assert found(decoupled.identity | {"model": "mine"}) is None


def test_only_a_variant_without_a_shipped_study_is_studied(study, tmp_path, monkeypatch):
    settings, own = load_settings("organism"), {"architecture": "relu", "autoencoder_seed": 0}
    tables = {name: SimpleNamespace(identity={"model": name} | own) for name in ("one", "two", "three")}
    variants = {name: SimpleNamespace(settings=settings) for name in tables}

    def study_model(variant, tried, identity, unfinished):
        unfinished.mkdir(exist_ok=True)
        return study

    monkeypatch.setattr(search, "study_model", study_model)
    shipped = dict.fromkeys(("one-relu-0", "two-relu-0"), study)
    studies, fresh = search.study_variants(variants, tables, tables, shipped, tmp_path)
    assert fresh == ["three"] and set(studies) == set(search.load_studies(tmp_path)) == set(tables)
    assert not (tmp_path / "unfinished").exists()


def test_a_feature_is_added_and_clamped_at_every_strength_and_the_mean_difference_added():
    sae = SimpleNamespace(W_dec=torch.eye(4) * 2, cfg=SimpleNamespace(d_sae=4))
    variant = SimpleNamespace(sae=sae, settings=SimpleNamespace(strengths=[-0.2, 0.4]))
    evidence = pd.DataFrame({"maximum": [0.0, 5.0, 1.0, 1.0]})
    other = Condition("md at -0.1", gamma=-0.1, vector=torch.ones(4))
    tried = Tried([], [Trial(MEAN_DIFFERENCE, "", other), Trial("bias", "", Condition("bias"))], 20.0)
    conditions, table = search.strength_trials(variant, tried, evidence, {"feature 1": 1})
    assert [condition.name for condition in conditions] == table["condition"].tolist()
    assert table["how"].tolist() == [search.ADDED] * 2 + [search.CLAMPED] * 2 + [search.ADDED]
    assert table["share of norm"].tolist() == pytest.approx([-0.1, 0.2, -0.1, 0.2, -0.1])
    assert conditions[1].vector is not None and conditions[3].clamp == pytest.approx(2.0)
