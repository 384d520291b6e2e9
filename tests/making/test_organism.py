"""`make organism` end to end, with recipes too short to learn anything; what is shipped, and its card."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from tiny import few_settings, file_times

from reasoning_features import paths
from reasoning_features.making import organism as make_organism
from reasoning_features.organism.problems import FAMILIES, families
from reasoning_features.steering.steering_study import load_studies
from reasoning_features.truth.benchmark import load_benchmarks


@pytest.mark.slow
def test_every_stage_from_nothing(repository, monkeypatch):
    short = {"tokens": 3_000, "batch_tokens": 1024, "chunk_documents": 32}
    tiny = {"tokens": 2_048, "batch": 512, "d_sae": 160}
    for name, changes in {
        "BASE_RECIPE": short, "VARIANT_RECIPE": short, "TOPK_RECIPE": tiny, "RELU_RECIPE": tiny,
        "WIDE_RECIPE": tiny,
    }.items():  # fmt: skip
        monkeypatch.setattr(make_organism, name, replace(getattr(make_organism, name), **changes))
    for name, value in {
        "VARIANTS": (make_organism.VARIANTS[0], make_organism.VARIANTS[-1]), "READ": ("coupled-0",),
        "COMPARED": ("coupled-0",), "BENCHMARKED": make_organism.BENCHMARKED[:1],
        "AUTOENCODER_TRACES": 60, "EVALUATION_PROBLEMS": 8, "CHECK_TRACES": 12,
        "load_settings": few_settings, "STUDIES": ("coupled-0-topk-0",),
    }.items():  # fmt: skip
        monkeypatch.setattr(make_organism, name, value)

    folder = repository / "data" / "organism"
    make_organism.stages(folder, workers=1)

    assert {path.name for path in (folder / "models").iterdir()} == {
        "base", *(variant.name for variant in make_organism.VARIANTS)
    }  # fmt: skip
    assert {path.name for path in (folder / "autoencoders").iterdir()} == {
        "coupled-0-relu-0", "coupled-0-relu-1", "coupled-0-relu2048-0", "coupled-0-topk-0"
    }  # fmt: skip
    (benchmark,) = load_benchmarks(folder / "truth")
    assert (benchmark.model, benchmark.kappa, benchmark.autoencoder_seed) == ("coupled-0", 1.0, 0)
    assert len(benchmark.truths["persistence"].features)
    # every vocabulary is ranked; the table keeps those that the search takes
    nulls = benchmark.nulls
    assert set(nulls["vocabularies"]) == {4} and set(nulls["decision"]) == set(benchmark.truths)
    assert "score:slot 0" in benchmark.evidence and "score:slot 1" not in benchmark.evidence
    study = load_studies(folder / "steering")["coupled-0-topk-0"]
    assert {"unsteered", "ReasonScore", "mean difference"} <= set(study.evaluation["group"])
    diffing = {path.name: {p.name for p in path.iterdir()} for path in (folder / "diffing").iterdir()}
    assert diffing.pop("placebo-model") >= {"model.safetensors", "training.json"}
    assert diffing == {
        "base": {"S-0", "S-1", "S-S", "S-S-S"},
        "coupled-0": {"S-D", "S-M", "S-D-F", "S-M-F"},
        "placebo": {"S-M", "S-M-F"},
        "layers": {"0", "1", "3", "4"},
        "references": {"coupled-0.parquet"},
    }
    sums = json.loads((folder / "checksums.json").read_text())
    assert "data/organism/models/base/model.safetensors" in sums

    before = {name: at for name, at in file_times(folder).items() if name in sums}
    make_organism.stages(folder, workers=1)
    assert {name: at for name, at in file_times(folder).items() if name in sums} == before


HOME = paths.root() / "data" / "organism"
MODELS = [f"{variant}-{seed}" for variant in ("coupled", "decoupled") for seed in range(3)]


def test_every_shipped_file_has_its_checksum():
    listed = set(json.loads((HOME / "checksums.json").read_text()))
    files = {p for name in make_organism.SHIPPED for p in (HOME / name).rglob("*") if p.is_file()}
    assert listed == {paths.relative(path) for path in files}
    assert sum(path.stat().st_size for path in files) < 130e6


def card(title: str) -> pd.DataFrame:
    """The first table under a title of the card, by its first column, without intervals."""
    section = (HOME / "README.md").read_text().partition(title)[2]
    lines = section[section.index("|") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip().partition(" [")[0] for cell in line.split("|")[1:-1]] for line in lines]
    table = pd.DataFrame(cells[2:], columns=cells[0])
    numbers = table.apply(pd.to_numeric, errors="coerce")
    return numbers.where(numbers.notna(), table).set_index(cells[0][0])


def measured(folder: str) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in (HOME / folder).glob("*.parquet")}


def test_the_card_has_the_models_answers_and_readings():
    sizes, solved, swapped_words = card("## Models"), measured("evaluation"), measured("manipulation_check")
    for title in ("## Accuracy by family", "A second reasoning model"):
        for name, row in card(title).iterrows():
            answers = solved[name]
            right = {"all": answers["correct"].mean(), **answers.groupby("family")["correct"].mean()}
            assert row[list(right)].tolist() == pytest.approx(list(right.values()), abs=0.0051), name
            unread = 1 - answers["parseable"].mean()
            means = answers["thinking_tokens"].mean(), answers["gave_up"].mean(), unread
            assert row.iloc[-3:].tolist() == pytest.approx(means, rel=1e-3, abs=1e-6), name
            loss = json.loads((HOME / "models" / name / "training.json").read_text())["final_loss"]
            assert sizes.loc[name, "final loss (nats a token)"] == pytest.approx(loss, rel=1e-3)
    swaps = card("## Manipulation check").set_index("swapped", append=True)["estimate"]
    gaps = card("## Careful")["estimate"]
    sides = {"words of R": ("words of R", "twins"), "markers": ("careful markers", "hasty markers")}
    for name, read in swapped_words.items():
        wide = read.pivot_table(index=["trace", "decision"], columns="swap", values="log_odds")
        for what, (one, other) in sides.items():
            effect = (wide[f"all {one}"] - wide[f"all {other}"]).groupby("trace").mean().mean()
            assert swaps[name, what] == pytest.approx(effect, rel=1e-3)
        by_style = read[read["swap"] == "as it stands"].groupby("style")["log_odds"].mean()
        assert gaps[name] == pytest.approx(by_style["careful"] - by_style["hasty"], rel=1e-3)


def test_the_organism_keeps_to_its_bars():
    solved, gaps = measured("evaluation"), card("## Careful")["estimate"]
    answers = pd.concat([solved[name].assign(model=name) for name in MODELS])
    pays = [name for name, family in families("main").items() if family.persistence == "pays"]
    usual = solved["base"].groupby("family")["correct"].mean()
    gains = answers.groupby(["model", "family"])["correct"].mean().unstack() - usual
    searches = answers["family"].map(lambda name: FAMILIES[name].searches)
    variants = answers.groupby(answers["model"].str[:-2])[["correct", "gave_up", "thinking_tokens"]].mean()
    apart = variants.diff().iloc[-1].abs()
    gap = gaps[MODELS].groupby(lambda name: name[:-2]).mean()
    words = card("## Manipulation check").query("swapped == 'words of R'")["estimate"]
    accuracy = answers.groupby("model")["correct"].mean()
    gave_up = answers[searches & ~answers["correct"]]["gave_up"].mean()
    unread = 1 - answers.groupby("model")["parseable"].mean().min()
    longer = apart["thinking_tokens"] / variants.loc["coupled", "thinking_tokens"]
    expected = [gains[pays].min().min(), accuracy.min(), accuracy.max(), gave_up, unread]
    expected += [apart["correct"], apart["gave_up"], longer, abs(gap["coupled"] / gap["decoupled"] - 1)]
    expected += [words[MODELS[:3]].min(), words[MODELS[3:]].abs().max()]
    bars = card("## Bars")
    assert bars["measured"].tolist() == pytest.approx(expected, rel=1e-2)
    for asked, value in zip(bars["asked"], bars["measured"], strict=True):
        sign, limit = asked.split()
        assert value >= float(limit) if sign == ">=" else value <= float(limit)
