"""Measures of an autoencoder against closed forms, and the model's loss through known ones."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WIDTH, corpus_of, signed_identity

from reasoning_features.dictionaries import evaluation
from reasoning_features.dictionaries.evaluation import EXPLAINED
from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import collect, next_token_loss, stream

SAES = {"perfect": signed_identity(WIDTH), "nothing": signed_identity(WIDTH, 0.0)}


@pytest.fixture
def residual():
    return torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([5.0, 0, -3, 1])


@pytest.mark.parametrize("gain", [0.0, 0.5, 1.0, 3.0])
def test_scaled_reconstruction(residual, gain):
    # x̂ = mean + gain (x − mean): the error is (1 − gain)² of the deviation
    scaled = signed_identity(4, gain, centre=residual.mean(0))
    assert evaluation.reconstruct(scaled, residual).explained == pytest.approx(1 - (1 - gain) ** 2, abs=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_no_variance_and_no_finite_error_are_told(residual):
    with pytest.raises(UserError, match="The fraction of variance explained is not finite: give activations"):
        evaluation.quality(signed_identity(4), torch.ones(5, 4))
    (endless := signed_identity(4)).W_dec.data[0, 0] = torch.inf
    with pytest.raises(UserError, match=r"The error of a reconstruction is not finite \(first at \[0, 0\]\)"):
        evaluation.reconstruct(endless, residual)


def test_active_features_by_hand():
    # features: +x0, +x1, −x0, −x1. (2, 0): one active; (1, −1): two; (3, 0): one. −x0 never fires.
    points = torch.tensor([[2.0, 0.0], [1.0, -1.0], [3.0, 0.0]])
    found = evaluation.reconstruct(signed_identity(2), points)
    assert found.active.tolist() == [1, 2, 1]
    np.testing.assert_allclose(found.density, [1.0, 0.0, 0.0, 1 / 3])
    assert found.live.tolist() == [True, False, False, True]
    summary = evaluation.quality(signed_identity(2), points)
    assert (summary["L0"], summary["dead share"]) == (pytest.approx(4 / 3), 0.5)
    assert summary["median density"] == pytest.approx(2 / 3)
    # of tokens of documents 4, 7 and 4
    assert found.by_document(np.array([4, 7, 4]))["active"].to_dict() == {4: 2, 7: 2}


def test_shares_found_again_by_hand():
    decoder = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]])
    other = torch.tensor([[0.5, 0.0], [1.0, 0.1], [0.0, 0.0]])
    # cosines with (1, 0) and (1, .1)/1.005: row 0 has 1; row 1 has .0995; row 2 points away: its best is the
    # zero direction's 0; row 3 has .774 with the second
    np.testing.assert_allclose(evaluation.best_cosines(decoder, other), [1, 0.0995, 0, 0.774], atol=1e-3)
    assert evaluation.matched_share(decoder, other) == 0.5
    # each partner once: of three directions near (1, 0) and one near (0, 1) those two can pair only two
    crowd = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.1, 1.0]])
    axes = torch.eye(2)
    assert evaluation.matched_share(crowd, axes) == 1.0
    assert evaluation.paired_share(crowd, axes) == 0.5


def test_principal_components_and_directions_of_a_covariance(residual):
    # variances 9, 4 and 1 along three axes, far from the origin
    points = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 1], [0, 0, -1]]) + 50
    assert evaluation.principal_explained(points, 1) == pytest.approx(9 / 14)
    assert evaluation.principal_explained(points, 2) == pytest.approx(13 / 14)
    # random directions have the covariance
    stretched = residual * torch.tensor([10.0, 1, 1, 0.1])
    drawn = evaluation.gaussian_directions(stretched, 20_000, seed=0)
    expected = torch.cov(stretched.double().T)
    spread = expected.diagonal().sqrt().outer(expected.diagonal().sqrt())
    torch.testing.assert_close(torch.cov(drawn.T) / spread, expected / spread, atol=0.05, rtol=0)


def test_many_are_compared_and_summed_some_at_a_time(residual, monkeypatch):
    one, other, sae = residual[:80], residual[100:190], signed_identity(4, gain=0.5)

    def measured() -> tuple[list[float], torch.Tensor, np.ndarray]:
        found, drawn = evaluation.reconstruct(sae, residual), evaluation.gaussian_directions(residual, 5, 0)
        shares = [evaluation.paired_share(one, other, 0.99), evaluation.matched_share(one, other, 0.99)]
        numbers = [found.explained, evaluation.principal_explained(residual, 2), *shares]
        return numbers, drawn @ drawn.T, evaluation.best_cosines(one, other)

    whole = measured()
    monkeypatch.setattr(evaluation, "WIDE", 1000)
    monkeypatch.setattr(evaluation, "MANY", 50)
    monkeypatch.setattr("reasoning_features.dictionaries.autoencoder.ELEMENTS", 50)
    parts = measured()
    assert parts[0] == pytest.approx(whole[0], abs=1e-9)
    torch.testing.assert_close(parts[1], whole[1])
    np.testing.assert_allclose(parts[2], whole[2], atol=1e-6)


@pytest.fixture
def losses(tiny_subject, tiny_corpus):
    return evaluation.loss_by_document(tiny_subject, SAES, tiny_corpus, 100)


def test_loss_of_a_document_is_the_models_own(losses, tiny_subject, tiny_corpus):
    # every token but the first (BOS) of each document is predicted
    assert losses["tokens"].tolist() == (np.diff(tiny_corpus.starts) - 1).tolist()
    ids = torch.from_numpy(tiny_corpus.document(3)).long()[None]
    expected = next_token_loss(tiny_subject.logits(ids), ids).sum()
    assert losses["clean"][3] == pytest.approx(float(expected), rel=1e-5)
    # with everything zeroed but BOS, which is special, the prediction of the first token is untouched
    first = evaluation.loss_by_document(tiny_subject, {}, corpus_of(["<s>", "wait"]), 100)
    assert first["zeroed"][0] == pytest.approx(first["clean"][0], rel=1e-6)


def test_table(losses, tiny_subject, tiny_corpus):
    fresh = collect(stream(tiny_subject, tiny_corpus, 100))
    table = evaluation.evaluate(SAES, fresh, tiny_corpus.document_of, losses, fresh.residual)
    table = table.set_index("autoencoder")
    assert table["features"].tolist() == [2 * WIDTH] * 2
    assert table.loc["perfect", "L0"] == WIDTH
    assert table.loc["perfect", EXPLAINED] == pytest.approx(1.0)
    assert table["loss recovered"].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)
    # clean 2, reconstructed 3, zeroed 7 in all: (7 − 3)/(7 − 2) = 0.8
    by_hand = pd.DataFrame({"clean": [1.0, 1], "nothing": [1.0, 2], "zeroed": [3.0, 4]})
    given = fresh, tiny_corpus.document_of, by_hand, fresh.residual
    found = evaluation.evaluate({"nothing": SAES["nothing"]}, *given)
    assert found["loss recovered"].tolist() == pytest.approx([0.8])
    mean = fresh.residual.double().mean(0)
    # giving zero: error Σ‖x‖² is the deviation about the mean plus n‖mean‖²
    deviation = (fresh.residual.double() - mean).square().sum()
    expected = -float(len(fresh.residual) * mean.square().sum() / deviation)
    assert table.loc["nothing", EXPLAINED] == pytest.approx(expected, rel=1e-6)
    low, high = (table[f"{EXPLAINED} {end}"]["nothing"] for end in ("low", "high"))
    assert low < expected < high
