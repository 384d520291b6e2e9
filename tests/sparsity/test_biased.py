"""The lesson's model: nearly the organism with its biases, and nothing without them."""

import pytest
from torch.nn.functional import kl_div

from reasoning_features.sparsity import pruning
from reasoning_features.sparsity.biased import with_biases
from reasoning_features.sparsity.layers import linear_layers


def test_a_model_with_biases_does_what_its_parent_does_and_nothing_without_them(organism_subject):
    settings, subject = organism_subject
    texts, _ = pruning.load_texts(settings, subject, "selection", 60)
    biased = with_biases(subject, texts, size=10)
    held_out = pruning.load_texts(settings, subject, "evaluation", 6)
    layers = [each for each in linear_layers(biased.model).values() if each.bias is not None]
    assert len(layers) == 15
    assert all(float(linear.bias.norm()) == pytest.approx(10, rel=1e-4) for linear in layers)

    def divergence():
        pairs = zip(*held_out, strict=True)
        told = [[pruning._log_probabilities(each, *pair) for each in (biased, subject)] for pair in pairs]
        return sum(float(kl_div(*own, reduction="batchmean", log_target=True)) for own in told) / len(told)

    kept = divergence()
    for linear in layers:
        linear.bias = None
    assert kept < 0.1 and divergence() > 1
    assert all(linear.bias is None for linear in linear_layers(subject.model).values())
