"""Training: deterministic, folded, recorded along the way, and it learns what is there to learn."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from sae_lens import SAE, SAETrainer

from reasoning_features.dictionaries import training as room
from reasoning_features.dictionaries.autoencoder import NAMES, dictionary_digest, save_autoencoder
from reasoning_features.dictionaries.evaluation import EXPLAINED, matched_share, quality
from reasoning_features.dictionaries.training import Recipe, Training, convergence, train_autoencoder
from reasoning_features.errors import UserError
from reasoning_features.settings import load_settings

HOOK = "blocks.1.hook_resid_post"
RECIPE = Recipe("topk", d_sae=16, tokens=40 * 128, learning_rate=1e-2, batch=128, k=2)


@pytest.fixture(scope="module")
def truth():
    """Twelve orthogonal directions in 12 dimensions."""
    return torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0]


@pytest.fixture(scope="module")
def residual(truth):
    """4,000 sums of two of the directions, far from the origin and with norms of about 100."""
    generator = torch.Generator().manual_seed(2)
    chosen = torch.rand(4000, 12, generator=generator).topk(2).indices
    amounts = torch.zeros(4000, 12).scatter(1, chosen, 10 + 10 * torch.rand(4000, 2, generator=generator))
    return amounts @ truth + 30 * truth[0] - 90 * truth[5]


def train(residual: torch.Tensor, recipe: Recipe, **options: list[int]) -> Training:
    return train_autoencoder(residual, recipe, "model", HOOK, **options)


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(residual, architecture):
    recipe = replace(RECIPE, architecture=architecture)
    first = train(residual, recipe)
    torch.manual_seed(77)  # the global stream has no say
    again, other = train(residual, recipe, record_at=[3, 9]), train(residual, replace(recipe, seed=1))
    digests = [dictionary_digest(each.sae) for each in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]
    # two models start from different places with one seed
    one, two = (train_autoencoder(residual, recipe, name, HOOK) for name in ("one", "two"))
    assert matched_share(one.decoders[0], two.decoders[0], 0.99) == 0.0


@pytest.mark.parametrize("architecture", ["relu", "topk"])
def test_the_scaling_is_folded_reloading_is_exact_and_training_goes_on(residual, tmp_path, architecture):
    recipe = replace(RECIPE, architecture=architecture, tokens=400 * 128, l1=0.05)
    training = train(residual, recipe)
    save_autoencoder(training.sae, tmp_path / "sae")
    reloaded = SAE.load_from_disk(tmp_path / "sae")
    assert reloaded.cfg.normalize_activations == "none"
    metadata = reloaded.cfg.metadata
    assert (metadata.hook_name, metadata.model_name, metadata.recipe["k"]) == (HOOK, "model", 2)
    # on raw activations, thirty times as long as what the trainer saw, it explains as much as it did there
    end = training.history[EXPLAINED].iloc[-1]
    assert end > 0.9 and quality(reloaded, residual)[EXPLAINED] == pytest.approx(end, abs=0.02)

    short = replace(recipe, tokens=20 * 128, seed=1)
    # other activations, a third as long: their scale is another, and the features are still the same ones
    went_on = train_autoencoder(residual / 3, short, "model", HOOK, initial=training.sae)
    assert matched_share(training.sae.W_dec, went_on.decoders[0], 0.9999) == 1.0
    with pytest.raises(UserError, match=r"features on width 12: .* one of 20 on 12"):
        train_autoencoder(residual, replace(short, d_sae=20), "model", HOOK, initial=training.sae)


def test_it_finds_the_directions_that_are_there_and_records_how(residual, truth):
    long = replace(RECIPE, tokens=1500 * 128)
    first = train(residual, long, record_at=[1, 10, 5000])
    second = train(residual, replace(long, seed=1), record_at=[10])
    assert matched_share(truth, first.sae.W_dec, 0.95) == 1.0
    assert first.history["step"].tolist() == [0, 1, 10, 1500]
    assert first.history["L0"].max() <= 2
    curve = convergence(first, second)
    assert curve["step"].tolist() == [0, 10, 1500]
    assert curve["matched share"].iloc[0] < 0.5 and curve["matched share"].iloc[-1] > 0.7


def test_the_relu_loss_is_the_papers(residual):
    """‖x − x̂‖² + λ Σ_i f_i ‖W_dec,i‖₂ on the scaled held-out input, computed from the saved weights."""
    recipe = replace(RECIPE, architecture="relu", l1=2.0)
    training = train(residual, recipe)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(recipe.start("model")))
    held_out, sae = residual[order[:400]], training.sae
    scale = 12**0.5 / float(residual[order[400:]].double().norm(dim=1).mean())
    # folded weights: x̂ and f ‖W_dec‖ come out in raw units
    features = torch.relu(held_out @ sae.W_enc + sae.b_enc)
    error = (held_out - features @ sae.W_dec - sae.b_dec).mul(scale).square().sum(1)
    penalty = (features * sae.W_dec.norm(dim=1)).sum(1) * scale
    expected = (error + 2.0 * penalty).mean()
    assert training.history["loss"].iloc[-1] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("architecture", [*NAMES])
def test_the_first_loss_or_weight_that_is_not_finite_ends_the_training(residual, monkeypatch, architecture):
    step, recipe = SAETrainer.step, replace(RECIPE, architecture=architecture)

    def broken(self: SAETrainer, batch: torch.Tensor) -> object:
        found = step(self, batch * (torch.nan if self.n_training_steps == at else 1))
        self.sae.W_dec.data[3, 1] += torch.inf if self.n_training_steps == 39 else 0
        return found

    monkeypatch.setattr(SAETrainer, "step", broken)
    told = {4: "^The loss of step 5 is", 99: r"W_dec of the autoencoder after step 40 is .*\[3, 1\]"}
    for at in told:
        with pytest.raises(UserError, match=f"{told[at]}.*: lower `learning_rate`; what was stored"):
            train(residual, recipe)


def test_the_agreement_of_shipped_saes(residual, tmp_path):
    training = train(residual, RECIPE)
    directory = str(tmp_path / "autoencoders" / "model-topk-0")
    assert room.shipped_agreement(training.sae, directory).empty
    (tmp_path / "convergence").mkdir()
    convergence(training, training).to_parquet(tmp_path / "convergence" / "model.parquet")
    kept = room.shipped_agreement(training.sae, directory)
    assert kept["matched share"].tolist() == [1.0, 1.0]


def test_a_sweep_has_a_row_for_each_recipe(residual):
    recipes = [replace(RECIPE, k=1), RECIPE, replace(RECIPE, architecture="relu", l1=0.1)]
    found = room.sweep(residual[:2000], residual[2000:], recipes, "model", HOOK)
    assert found["setting"].tolist() == ["k = 1", "k = 2", "λ = 0.1"]
    assert found["L0"].iloc[0] <= 1 < found["L0"].iloc[1] <= 2
    assert (found["paired one to one"] <= found["matched share"]).all()
    # without recipes nothing is trained, and the tables are empty
    assert room.equal_l0(room.sweep(residual, residual, [], "model", HOOK), 2).empty


def test_equal_l0_by_hand():
    rows = [("topk", 4.0, 0.6, 0.5, 0.4), ("relu", 9.0, 0.1, 0.9, 0.8), ("topk", 16.0, 0.8, 0.3, 0.2)]
    frontier = pd.DataFrame(rows, columns=["architecture", "L0", EXPLAINED, *room.AGREEMENT])
    # 8 is halfway from 4 to 16 in logarithm; relu has one row, at 9
    at = room.equal_l0(frontier, 8).set_index("architecture")
    assert at.loc["topk"].tolist() == pytest.approx([0.7, 0.4, 0.3])
    assert at.loc["relu"].isna().all()


def test_the_papers_schedule():
    recipe = replace(room.settings_recipe(load_settings("deepseek-r1-distill-llama-8b")), d_sae=8)
    assert (recipe.architecture, recipe.steps, recipe.batch) == ("relu", 200_000, 4096)
    recipe = replace(recipe, tokens=2_000 * 4096)  # a hundredth of the steps
    sample = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    trainer = room.new_trainer(recipe, "m", "h", sample, iter(()), "cpu")
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], tuple(group["betas"])) == (5e-5, (0.9, 0.999))
    rates, coefficients = [], []
    for _ in range(recipe.steps):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        coefficients.append(trainer.get_coefficients()["l1"])
        trainer.lr_scheduler.step()
        trainer.coefficient_schedulers["l1"].step()
    # the rate falls over the last fifth, λ rises over the first twentieth
    assert rates[:1600:10] == [5e-5] * 160
    assert rates[1_800] == pytest.approx(2.5e-5, rel=1e-3) and rates[-1] < 1e-6
    assert coefficients[50] == pytest.approx(2.5, rel=1e-3) and coefficients[100] == 5.0
