"""A real model's path, on miniatures that a hub on loopback serves: notebooks, as ``make`` runs them."""

import json
import shutil
from collections.abc import Iterator

import local_hub
import mini_profile
import miniatures as mini
import pandas as pd
import pytest
from tiny import remove_runs, run_notebooks

from reasoning_features import paths
from reasoning_features.files import read_json
from reasoning_features.reporting.claims import UNTESTABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """A profile's name; it and what its runs made is gone afterwards."""
    name = f"miniature-{request.node.name.split('[')[0].removeprefix('test_')[:24]}"
    yield name
    remove_runs(name)


def test_what_the_hub_serves(miniature_root, name, tmp_path):
    """From an empty cache, with two answers to each problem; then 05 offline: the same numbers."""
    profile = mini_profile.write_profile(paths.root(), name, samples=2)
    with local_hub.serve(miniature_root, tmp_path / "home") as hub:
        run_notebooks(profile, ("03", "04", "05"), hub.environment())
        sha = hub.sha(mini.LLAMA)
    figures = paths.RunPaths(name).figures
    inputs = read_json(figures / "x03_published.json")["inputs"]
    assert inputs["subject"] == mini.LLAMA and sha in json.dumps(inputs)
    found = pd.read_csv(figures / "x03_published.csv")
    assert set(found["hyperparameters"]) == {"paper", "released code"}
    assert (found["found"] <= found["features"]).all()
    steered = pd.read_csv(figures / "t01_steering.csv")
    assert {*steered["benchmark"]} == {"all problems", *mini_profile.BENCHMARKS} and {*steered["k"]} == {2}
    named = {f"{feature} at 2" for feature in (mini_profile.ONE, mini_profile.OTHER)}
    assert {"unsteered", *named} < set(steered["condition"])
    # text of which nothing else is known: what needs labels or answers is said to be untestable
    claims = read_json(figures / "claims_04_interpretation.json")
    untestable = {claim for claim, row in claims.items() if row["verdict"] == UNTESTABLE}
    assert untestable == {"modes", "function"} and claims["token_driven"]["ours"] is not None
    assert (figures / "features" / "index.html").is_file()

    first = {path.name: path.read_bytes() for path in figures.glob("*.csv")}
    kept = list(paths.RunPaths(name).data.rglob("*.jsonl"))
    before = [path.read_bytes() for path in kept]
    shutil.rmtree(figures)
    offline = hub.environment(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    run_notebooks(profile, ("05",), offline)
    again = {path.name: path.read_bytes() for path in figures.glob("*.csv")}
    assert "t01_steering.csv" in again and again == {table: first[table] for table in again}
    assert kept and [path.read_bytes() for path in kept] == before, "answers were made twice"


def test_everything_trained(miniature_root, name, tmp_path):
    """``train_saes=true`` and ``full=true``: the autoencoder, the stages, the matched-budget search."""
    profile = mini_profile.write_profile(paths.root(), name, train_saes=True, full=True)
    with local_hub.serve(miniature_root, tmp_path / "home") as hub:
        run_notebooks(profile, ("03", "06", "13"), hub.environment())
    figures = paths.RunPaths(name).figures
    stages = pd.read_csv(figures / "f04_diffing.csv")["stage"]
    assert {"S", "S-D", "S-M", "S-D-F", "S-M-F"} <= set(stages)
    assert "ReasonScore" in set(pd.read_csv(figures / "t13_winners.csv")["class"])


def test_a_qwen_with_an_autoencoder_of_its_mlp(miniature_root, name, tmp_path):
    changes = {"subject": mini.QWEN, "base": mini.QWEN_BASE, "site": "mlp_out", "published": {}}
    sizes = {"d_sae": mini.QWEN_FEATURES, "k": mini.QWEN_K}
    changes |= sizes | {"autoencoder": f"{mini.QWEN_SAE}:{mini.MLP}"}
    profile = mini_profile.write_profile(paths.root(), name, **changes)
    with local_hub.serve(miniature_root, tmp_path / "home") as hub:
        run_notebooks(profile, ("03", "05"), hub.environment())
    scores = pd.read_csv(paths.RunPaths(name).figures / "f06_reason_score.csv")
    assert scores["rank"].nunique() == mini.QWEN_FEATURES
