"""Every architecture trains by its recipe, and plain SAELens loads what comes out, with the same numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from reasoning_features.dictionaries.autoencoder import quality
from reasoning_features.dictionaries.autoencoder_recipe import Architecture, Recipe
from reasoning_features.dictionaries.autoencoder_training import save_autoencoder, train_autoencoder
from reasoning_features.errors import UserError

pytestmark = pytest.mark.slow
HOOK = "blocks.1.hook_resid_post"
RECIPE = Recipe("batchtopk", d_sae=48, tokens=1500 * 256, learning_rate=3e-3, batch=256, k=3)
ARCHITECTURES = get_args(Architecture)
EXACT = ("relu", "topk", "jumprelu")
"""Reloaded as what they were trained as; the others as a JumpReLU of one threshold."""


@pytest.fixture(scope="module")
def residual() -> torch.Tensor:
    """Sums of three of 40 directions in 16 dimensions, away from the origin."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
    chosen = torch.rand(20_000, 40, generator=generator).topk(3).indices
    amounts = torch.zeros(20_000, 40).scatter(1, chosen, 5 + 5 * torch.rand(20_000, 3, generator=generator))
    return amounts @ directions + 7


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small only make threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trainings(residual):
    return {
        name: train_autoencoder(residual, replace(RECIPE, architecture=name, l1=1.0), "model", HOOK)
        for name in ARCHITECTURES
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_training_learns_and_its_file_is_plain_saelens(residual, trainings, tmp_path, architecture) -> None:
    training = trainings[architecture]
    explained = training.history["fraction of variance explained"]
    assert explained.iloc[-1] > max(0.3, explained.iloc[0] + 0.1)
    save_autoencoder(training.sae, tmp_path / "sae")
    plain = (
        "import sys\nfrom safetensors.torch import load_file, save_file\nfrom sae_lens import SAE\n"
        "sae = SAE.load_from_disk(sys.argv[1])\n"
        "assert 'reasoning_features' not in sys.modules\n"
        "x = load_file(sys.argv[2])['x']\n"
        "save_file({'f': sae.encode(x).detach().contiguous()}, sys.argv[3])"
    )
    save_file({"x": residual[:512]}, tmp_path / "x.safetensors")
    given = [str(tmp_path / name) for name in ("sae", "x.safetensors", "f.safetensors")]
    if architecture in ("ortsae", "soft_frozen_decoder"):  # one process each is enough of a check
        subprocess.run([sys.executable, "-c", plain, *given], check=True)
        features = load_file(tmp_path / "f.safetensors")["f"]
    else:
        features = SAE.load_from_disk(tmp_path / "sae").encode(residual[:512])
    assert torch.equal(features, training.sae.encode(residual[:512]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reloaded_it_is_as_sparse_and_explains_as_much_as_in_training(
    residual, trainings, architecture
) -> None:
    training = trainings[architecture]
    last = training.history.iloc[-1]
    start = replace(RECIPE, architecture=architecture).start("model")
    order = torch.randperm(len(residual), generator=torch.Generator().manual_seed(start))
    found = quality(training.sae, residual[order[: len(residual) // 10]])  # what was held out
    tight = architecture in EXACT
    assert found["L0"] == pytest.approx(last["L0"], rel=0.01 if tight else 0.02)
    column = "fraction of variance explained"
    assert found[column] == pytest.approx(last[column], abs=0.005)


def test_metadata_tell_the_recipe_and_leave_out_what_is_usual(trainings) -> None:
    told = trainings["ortsae"].sae.cfg.metadata.recipe
    assert told["architecture"] == "ortsae" and "gamma" not in told
    assert replace(RECIPE, architecture="ortsae", gamma=1.0).told["gamma"] == 1.0


@pytest.mark.parametrize("architecture", ["frozen_decoder", "jumprelu", "topk"])
def test_a_training_goes_on_from_one_that_is_over(residual, trainings, architecture) -> None:
    before = trainings[architecture].sae
    recipe = replace(RECIPE, architecture=architecture, tokens=20 * 256, learning_rate=1e-4, seed=1, l1=1.0)
    after = train_autoencoder(residual, recipe, "model", HOOK, initial=before)
    column = "fraction of variance explained"
    assert after.history[column].iloc[0] == pytest.approx(
        trainings[architecture].history[column].iloc[-1], abs=0.02
    )
    if architecture == "frozen_decoder":
        unit = torch.nn.functional.normalize
        np.testing.assert_allclose(unit(after.sae.W_dec, dim=1), unit(before.W_dec, dim=1), atol=1e-5)


def test_a_training_does_not_go_on_from_another_kind(residual, trainings) -> None:
    recipe = replace(RECIPE, architecture="topk", tokens=256)
    with pytest.raises(UserError, match="go on from a jumprelu"):
        train_autoencoder(residual, recipe, "model", HOOK, initial=trainings["batchtopk"].sae)
