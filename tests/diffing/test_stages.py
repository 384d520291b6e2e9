"""Stages: their paths, their text, how they are kept; trained by streaming, one from the other."""

from pathlib import Path

import pytest
import torch
from tiny import make_tiny_llama, write_rows

from reasoning_features import paths
from reasoning_features.dictionaries.evaluation import best_cosines
from reasoning_features.dictionaries.training import Recipe, train_autoencoder
from reasoning_features.diffing import stages as staged
from reasoning_features.diffing.stages import PATHS, planned_trainings, train_stages
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.settings import Settings, load_settings

HOOK = "blocks.1.hook_resid_post"
STAGES = ["S", "S-S", "S-S-S", "S-D", "S-M", "S-D-F", "S-M-F"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A base and a fine-tuned tiny model, and two local files of texts."""
    home = tmp_path_factory.mktemp("stages")
    base, model = (str(make_tiny_llama(home / name, seed)) for seed, name in enumerate(("base", "tuned")))
    prose, traces = ({"dataset": str(home / f"{name}.jsonl")} for name in ("prose", "traces"))
    for texts, text in ((prose, "The {} is right, but {} is wrong."), (traces, "Wait, let me try {} + {}.")):
        long = [" ".join(text.format(i, 7 * i + j) for j in range(20)) for i in range(40)]
        write_rows(Path(texts["dataset"]), [{"text": each} for each in long])
    named = {"corpus": "text", "subject": model, "base": base, "layer": 1, "context": 16, "layers": [0]}
    named |= {"base_text": [prose], "reasoning_text": traces, "training_text": [traces]}
    training = {"train_tokens": 60 * 64, "train_batch": 64, "learning_rate": 1e-2, "checkpoints": 1}
    return load_settings("organism", **named, **training, d_sae=48, l1=0.1, batch_tokens=128)


@pytest.fixture(scope="module")
def subject(settings: Settings) -> Subject:
    return load_subject(settings.subject, settings.layer)


@pytest.fixture(scope="module")
def folder(settings: Settings, subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("diffing") / "diffing"
    assert train_stages(settings, subject, home) == str(home)
    return home


def test_all_stages_are_read_again(settings: Settings, subject: Subject, folder: Path):
    found = staged.load_stages(str(folder), subject.short_name, subject.d_model, subject.hook_name)
    assert list(found) == STAGES
    assert [reader for reader, _ in found.values()] == ["base"] * 4 + ["tuned"] * 3
    named = {name: sae.cfg.metadata.model_name for name, (_, sae) in found.items()}
    assert named == {name: "base" if reader == "base" else "tuned" for name, (reader, _) in found.items()}
    table = staged.stage_qualities(str(folder), "tuned").set_index("path")
    assert table.loc["S-0", "tokens"] == 60 * 64 and table.loc["S-D", "tokens"] == 18 * 64
    layers = staged.load_layers(str(folder), "tuned", subject.d_model)
    assert list(layers) == [0] and layers[0].cfg.metadata.hook_name == "blocks.0.hook_resid_post"

    # each goes on from the one before
    for after, before in (("S-S", "S"), ("S-D", "S"), ("S-D-F", "S-D"), ("S-M-F", "S-M")):
        cosines = best_cosines(found[before][1].W_dec, found[after][1].W_dec)
        assert cosines.mean() > 0.8, (after, before)
        assert not torch.equal(found[before][1].W_dec, found[after][1].W_dec)


def test_what_is_there_is_kept_and_nothing_is_loaded(settings, subject, folder, monkeypatch):
    monkeypatch.setattr(staged, "load_subject", None)
    monkeypatch.setattr(staged, "train_streamed", None)
    train_stages(settings, subject, folder)
    with pytest.raises(UserError, match="S-0 is of a training with another recipe: delete it"):
        train_stages(settings.model_copy(update={"l1": 0.2}), subject, folder)


def test_what_will_be_trained(settings: Settings, folder: Path, tmp_path: Path):
    planned = planned_trainings(settings, tmp_path)
    assert [each.training for each in planned] == [*STAGES, "layer 0"]
    assert [each.model for each in planned] == ["base"] * 4 + ["tuned"] * 4
    read = ["base", "base", "base", "stages", "base", "stages", "stages", "training"]
    assert [each.texts for each in planned] == [f"{texts}_text" for texts in read]
    assert [each.recipe.tokens for each in planned] == [3840, *[1152] * 6, 3840]
    assert len({each.recipe.seed for each in planned if each.training in ("S", "S-D", "S-D-F")}) == 3
    assert not any(each.folder.is_dir() for each in planned)
    assert all(each.folder.is_dir() for each in planned_trainings(settings, folder))
    # the paper's: 2.3 billion tokens
    real = planned_trainings(load_settings("deepseek-r1-distill-llama-8b"))
    assert sum(each.recipe.tokens for each in real) == pytest.approx(2.8 * 819.2e6)


def test_what_is_missing_is_named(settings: Settings, subject: Subject, tmp_path: Path):
    for update, told in (
        ({"base": None}, "set `base`"),
        ({"base_text": []}, "no texts to train S on: set `base_text`"),
        ({"reasoning_text": None}, "no texts to train S-D on: set `stages_text`"),
        ({"training_text": []}, "no texts to train layer 0 on: set `training_text`"),
    ):
        with pytest.raises(UserError, match=told):
            train_stages(settings.model_copy(update=update), subject, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_text_of_the_stages():
    settings = load_settings("smoke")
    tokenizer = load_subject(settings.subject, 0).tokenizer
    texts = {s: staged.stage_corpus(s, settings, tokenizer, settings.subject, 20) for s in staged.STAGES}
    assert texts["S"].digest == texts["M"].digest != texts["D"].digest == texts["F"].digest
    assert not texts["S"].thinking.any() and texts["D"].thinking.any()
    assert settings.contrast is not None and (paths.root() / settings.contrast).is_dir()
    other = staged.stage_corpus("D", settings, tokenizer, settings.contrast, 20)
    assert other.digest != texts["D"].digest  # the same traces in the other arm's words


def test_all_stages_of_a_model_are_kept_in_half_the_space(repository: Path):
    residual = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    recipe = Recipe("relu", d_sae=16, tokens=64, learning_rate=1e-2, batch=64, l1=0.1)
    home = repository / "data" / "diffing"
    with pytest.raises(MissingArtefact, match=r"no stages in data/diffing: `make organism` trains"):
        staged.load_stages("data/diffing", "arm", 8, HOOK)
    for owner, names in {"base": ("S-0", "S-1"), "arm": PATHS, "placebo": ("S-M", "S-M-F")}.items():
        for name in names:
            training = train_autoencoder(residual, recipe, "arm", HOOK)
            before = training.sae.W_dec.clone()
            staged.store_half(training, home / owner / name)
    loaded = staged.load_stage("data/diffing", "arm", "S-M", 8, HOOK)
    assert loaded.W_dec.dtype == torch.float32 and torch.allclose(loaded.W_dec, before, rtol=1e-3, atol=1e-4)
    assert (home / "base/S-0/sae_weights.safetensors").stat().st_size < 2 * (2 * 16 * 8 + 16 + 8) + 600
    found = staged.load_stages("data/diffing", "arm", 8, HOOK)
    assert list(found) == ["S", *PATHS, "placebo S-M", "placebo S-M-F"]
    assert [reader for reader, _ in found.values()] == ["base"] * 2 + ["arm"] * 3 + ["placebo"] * 2
    table = staged.stage_qualities("data/diffing", "arm")
    assert table["path"].tolist() == ["S-0", "S-1", *sorted(PATHS), "S-M", "S-M-F"]
    with pytest.raises(MissingArtefact, match="make organism"):
        staged.load_stage("data/diffing", "other", "S-D-F", 8, HOOK)
