"""What the loss says of an SAE, against SAEs whose effect is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WIDTH, signed_identity

from reasoning_features.dictionaries.autoencoder_evaluation import evaluate, loss_by_document, loss_recovered
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import ActivationBatch, stream
from reasoning_features.residual_stream.losses import next_token_loss
from reasoning_features.text.corpus import Corpus

SAES = {"perfect": signed_identity(WIDTH), "nothing": signed_identity(WIDTH, 0.0)}


@pytest.fixture
def losses(tiny_subject: Subject, tiny_corpus: Corpus) -> pd.DataFrame:
    return loss_by_document(tiny_subject, SAES, tiny_corpus, 100, np.zeros(WIDTH))


def test_loss_is_recovered_wholly_by_a_perfect_sae_and_not_at_all_by_a_zero_one(
    losses: pd.DataFrame, tiny_corpus: Corpus
) -> None:
    assert losses.index.tolist() == list(range(tiny_corpus.n_documents))
    # every token but the first (BOS) of each document is predicted
    assert losses["tokens"].tolist() == (np.diff(tiny_corpus.starts) - 1).tolist()
    assert loss_recovered(losses, "perfect").estimate == pytest.approx(1.0, abs=1e-5)
    assert loss_recovered(losses, "nothing").estimate == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(losses["averaged"], losses["zeroed"])  # the mean given is zero


def test_loss_of_a_document_is_the_models_own(
    losses: pd.DataFrame, tiny_subject: Subject, tiny_corpus: Corpus
) -> None:
    ids = torch.from_numpy(tiny_corpus.document(3)).long()[None]
    expected = next_token_loss(tiny_subject.logits(ids), ids, torch.ones_like(ids, dtype=torch.bool)).sum()
    assert losses["clean"][3] == pytest.approx(float(expected), rel=1e-5)


def test_special_tokens_are_left_as_they_are(tiny_subject: Subject, tiny_corpus: Corpus) -> None:
    # with everything zeroed but BOS, the prediction of the first ordinary token is untouched
    first = Corpus(
        name="two tokens",
        tokens=tiny_corpus.tokens[:2],
        starts=np.array([0, 2]),
        special=tiny_corpus.special[:2],
        thinking=tiny_corpus.thinking[:2],
        domains=["a"],
    )
    losses = loss_by_document(tiny_subject, {}, first, 100, np.zeros(WIDTH))
    assert losses["zeroed"][0] == pytest.approx(losses["clean"][0], rel=1e-6)


def test_loss_recovered_by_hand() -> None:
    # clean 2, reconstructed 3, averaged 4, zeroed 7: (7 − 3)/(7 − 2) = 0.8 and (4 − 3)/(4 − 2) = 0.5
    losses = pd.DataFrame({"clean": [1.0, 1], "sae": [1.0, 2], "averaged": [2.0, 2], "zeroed": [3.0, 4]})
    assert loss_recovered(losses, "sae").estimate == pytest.approx(0.8)
    assert loss_recovered(losses, "sae", "averaged").estimate == pytest.approx(0.5)


def test_table(losses: pd.DataFrame, tiny_subject: Subject, tiny_corpus: Corpus) -> None:
    read = list(stream(tiny_subject, tiny_corpus, 100))
    fresh = ActivationBatch(
        torch.cat([batch.residual for batch in read]), torch.cat([batch.positions for batch in read])
    )
    table = evaluate(SAES, fresh, tiny_corpus.document_of, losses, fresh.residual).set_index("autoencoder")
    assert table["features"].tolist() == [2 * WIDTH] * 2
    assert table.loc["perfect", "L0"] == WIDTH
    assert table.loc["perfect", "fraction of variance explained"] == pytest.approx(1.0)
    assert table.loc["perfect", "loss recovered"] == pytest.approx(1.0, abs=1e-5)
    mean = fresh.residual.double().mean(0)
    # giving zero: error Σ‖x‖² is the deviation about the mean plus n‖mean‖²
    deviation = (fresh.residual.double() - mean).square().sum()
    expected = -float(len(fresh.residual) * mean.square().sum() / deviation)
    assert table.loc["nothing", "fraction of variance explained"] == pytest.approx(expected, rel=1e-6)
    low, high = (table[f"fraction of variance explained {end}"]["nothing"] for end in ("low", "high"))
    assert low < expected < high
