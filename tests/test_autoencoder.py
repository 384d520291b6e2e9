"""Metrics of an SAE against closed forms, and what is refused on loading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file
from tiny import HOOK, signed_identity

import reasoning_features.dictionaries.autoencoder as room
from reasoning_features.dictionaries.autoencoder import (
    best_cosines,
    check_scaling,
    gaussian_directions,
    load_autoencoder,
    matched_share,
    paired_share,
    principal_explained,
    quality,
    reconstruct,
)
from reasoning_features.dictionaries.autoencoder_training import save_autoencoder
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError


@pytest.fixture
def residual() -> torch.Tensor:
    return torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([5.0, 0, -3, 1])


def test_perfect_reconstruction(residual: torch.Tensor) -> None:
    found = reconstruct(signed_identity(4), residual)
    assert found.explained == pytest.approx(1.0, abs=1e-12)
    assert found.l0 == 4.0  # each coordinate is either positive or negative


def test_mean_only_explains_nothing_although_the_mean_is_large(residual: torch.Tensor) -> None:
    mean_only = signed_identity(4, gain=0.0, centre=residual.mean(0))
    assert reconstruct(mean_only, residual).explained == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("gain", [0.5, 0.9, 1.5, 3.0])
def test_scaled_reconstruction(residual: torch.Tensor, gain: float) -> None:
    # x̂ = mean + gain (x − mean): the error is (1 − gain)² of the deviation
    scaled = signed_identity(4, gain, centre=residual.mean(0))
    assert reconstruct(scaled, residual).explained == pytest.approx(1 - (1 - gain) ** 2, abs=1e-6)


def test_scaled_about_zero_by_hand() -> None:
    # x ∈ {1, 3}, mean 2, deviations 1 and 1; x̂ = x/2 gives errors 1/4 and 9/4: 1 − 2.5/2 = −0.25
    found = reconstruct(signed_identity(1, gain=0.5), torch.tensor([[1.0], [3.0]]))
    assert found.error.tolist() == [0.25, 2.25]
    assert found.deviation.tolist() == [1.0, 1.0]
    assert found.explained == -0.25


def test_active_features_by_hand() -> None:
    # features: +x0, +x1, −x0, −x1. (2, 0): one active; (1, −1): two; (3, 0): one. −x0 never fires.
    found = reconstruct(signed_identity(2), torch.tensor([[2.0, 0.0], [1.0, -1.0], [3.0, 0.0]]))
    assert found.active.tolist() == [1, 2, 1]
    np.testing.assert_allclose(found.density, [1.0, 0.0, 0.0, 1 / 3])
    assert found.live.tolist() == [True, False, False, True]
    assert found.dead_share == 0.5
    summary = found.summary()
    assert summary["L0"] == pytest.approx(4 / 3)
    assert summary["median density"] == pytest.approx(2 / 3)


def test_shards_give_what_one_pass_gives(residual: torch.Tensor) -> None:
    sae = signed_identity(4, 0.5)
    whole = reconstruct(sae, residual, size=17)
    mean = residual.double().mean(0).numpy()
    parts = [reconstruct(sae, part, mean) for part in residual.split(60)]
    np.testing.assert_allclose(np.concatenate([part.deviation for part in parts]), whole.deviation)
    np.testing.assert_allclose(np.concatenate([part.error for part in parts]), whole.error, rtol=1e-5)


def test_matched_share_by_hand() -> None:
    decoder = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]])
    other = torch.tensor([[0.5, 0.0], [1.0, 0.1], [0.0, 0.0]])
    # cosines with (1, 0) and (1, .1)/1.005: row 0 has 1; row 1 has .0995; row 2 points away: its best is the
    # zero direction's 0; row 3 has .774 with the second
    np.testing.assert_allclose(best_cosines(decoder, other), [1, 0.0995, 0, 0.774], atol=1e-3)
    assert matched_share(decoder, other) == 0.5
    assert matched_share(decoder, other, threshold=0.8) == 0.25
    assert matched_share(decoder, decoder) == 1.0


def test_paired_share_counts_each_partner_once() -> None:
    # three directions that all lie near (1, 0), one near (0, 1): against those two, only two can be paired
    crowd = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.1, 1.0]])
    axes = torch.eye(2)
    assert matched_share(crowd, axes) == 1.0
    assert paired_share(crowd, axes) == 0.5
    assert paired_share(axes, crowd) == 1.0


def test_reloading_gives_the_same_numbers(tmp_path: Path, residual: torch.Tensor) -> None:
    sae = signed_identity(4, 0.7, centre=torch.ones(4))
    save_autoencoder(sae, tmp_path / "sae")
    reloaded = load_autoencoder(str(tmp_path / "sae"), 4, HOOK)
    assert quality(reloaded, residual) == quality(sae, residual)
    assert torch.equal(SAE.load_from_disk(tmp_path / "sae")(residual), sae(residual))
    with pytest.raises(UserError, match="is there already"):
        save_autoencoder(sae, tmp_path / "sae")


def test_an_sae_of_another_width_or_place_is_refused(tmp_path: Path) -> None:
    save_autoencoder(signed_identity(4), tmp_path / "sae")
    with pytest.raises(UserError, match="activations of width 4, but the model's are 128 wide"):
        load_autoencoder(str(tmp_path / "sae"), 128)
    with pytest.raises(UserError, match=r"reads blocks\.1\.hook_resid_post, not blocks\.2"):
        load_autoencoder(str(tmp_path / "sae"), 4, "blocks.2.hook_resid_post")


def test_an_sae_that_was_not_folded_is_refused(tmp_path: Path) -> None:
    save_autoencoder(signed_identity(4), tmp_path / "sae")
    cfg = tmp_path / "sae" / "cfg.json"
    cfg.write_text(
        json.dumps(json.loads(cfg.read_text()) | {"normalize_activations": "expected_average_only_in"})
    )
    with pytest.raises(UserError, match=r"expects scaled activations \(expected_average_only_in\)"):
        load_autoencoder(str(tmp_path / "sae"), 4)


def test_missing_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="no autoencoder in nothing: `make organism`"):
        load_autoencoder(str(tmp_path / "nothing"), 4)
    save_autoencoder(signed_identity(4), tmp_path / "sae")
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    del weights["W_enc"]
    save_file(weights, tmp_path / "sae" / "sae_weights.safetensors")
    with pytest.raises(CorruptArtefact, match="in sae cannot be read"):
        load_autoencoder(str(tmp_path / "sae"), 4)


def test_sums_by_document() -> None:
    found = reconstruct(signed_identity(1, gain=0.5), torch.tensor([[1.0], [3.0], [-2.0]]), np.zeros(1))
    sums = found.by_document(np.array([4, 7, 4]))
    # errors x²/4, deviations x², one feature active on each token
    assert sums.loc[4].to_dict() == {"error": 1.25, "deviation": 5.0, "active": 2.0, "tokens": 2.0}
    assert sums.loc[7, "error"] == 2.25


def test_principal_components_by_hand() -> None:
    # variances 9, 4 and 1 along three axes, far from the origin
    points = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 1], [0, 0, -1]]) + 50
    assert principal_explained(points, 1) == pytest.approx(9 / 14)
    assert principal_explained(points, 2) == pytest.approx(13 / 14)
    assert principal_explained(points, 3) == pytest.approx(1)


def test_gaussian_directions_have_the_covariance(residual: torch.Tensor) -> None:
    stretched = residual * torch.tensor([10.0, 1, 1, 0.1])
    drawn = gaussian_directions(stretched, 20_000, seed=0)
    expected = torch.cov(stretched.double().T)
    scale = expected.diagonal().sqrt()
    torch.testing.assert_close(
        torch.cov(drawn.T) / scale / scale[:, None], expected / scale / scale[:, None], atol=0.05, rtol=0
    )
    assert torch.equal(drawn, gaussian_directions(stretched, 20_000, seed=0))


def test_scaling_is_found_out_from_activations(residual: torch.Tensor) -> None:
    sae = signed_identity(4)
    sae.b_enc.data -= 0.1  # a threshold tells scales apart: small activations leave features silent
    check_scaling(sae, residual)
    with pytest.raises(UserError, match=r"% of the variance of scaled activations and .*% of raw ones"):
        check_scaling(sae, residual / 1000)


def test_many_directions_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(300, 8, generator=generator) for _ in range(2))
    whole = best_cosines(one, other), paired_share(one, other, 0.8), matched_share(one, other, 0.8)
    monkeypatch.setattr(room, "WIDE", 1000)
    parts = best_cosines(one, other), paired_share(one, other, 0.8), matched_share(one, other, 0.8)
    np.testing.assert_allclose(parts[0], whole[0], atol=1e-6)
    assert parts[1:] == whole[1:]


def test_many_activations_are_summed_some_at_a_time(
    residual: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = signed_identity(4, gain=0.5)
    whole = principal_explained(residual, 2), gaussian_directions(residual, 5, 0), reconstruct(sae, residual)
    monkeypatch.setattr(room, "MANY", 50)
    monkeypatch.setattr("reasoning_features.dictionaries.encoding.ELEMENTS", 50)
    parts = principal_explained(residual, 2), gaussian_directions(residual, 5, 0), reconstruct(sae, residual)
    assert parts[0] == pytest.approx(whole[0], abs=1e-12)
    torch.testing.assert_close((parts[1] @ parts[1].T), (whole[1] @ whole[1].T))
    assert parts[2].explained == pytest.approx(whole[2].explained, abs=1e-9) and parts[2].l0 == whole[2].l0
