"""Ways of steering: equation 7 and the released hook, in batches of many conditions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import WIDTH, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.models import conditions as room
from reasoning_features.models.conditions import Condition, check_conditions, feature_conditions


@pytest.fixture
def sae():
    torch.manual_seed(2)
    found = signed_identity(WIDTH, gain=0.5, centre=torch.linspace(-0.2, 0.2, WIDTH))
    found.W_dec.data += 0.1 * torch.randn(2 * WIDTH, WIDTH)
    return found


def changed(tiny_subject, conditions, tokens, condition, sae=None):
    """The stream that a condition goes on with, and the one it was given, in a mixed batch."""
    stream = tiny_subject.residual(tokens)
    which = torch.arange(len(conditions)).repeat_interleave(len(tokens))
    change = room.stream_change(tiny_subject, conditions, which, sae)
    return change(stream.repeat(len(conditions), 1, 1), torch.arange(len(which)))[which == condition], stream


TOKENS = torch.tensor([[0, 5, 6, 9], [0, 7, 8, 4]])


def test_special_tokens_are_spared_and_a_direction_is_taken_away_everywhere(tiny_subject):
    tokens = torch.tensor([[0, 5, 6, 1], [7, 0, 4, 9]])  # 0 and 1 are special
    vector, direction = torch.ones(WIDTH), torch.nn.functional.normalize(torch.arange(1.0, WIDTH + 1), dim=0)
    conditions = [Condition("plain"), Condition("spares", vector=vector, spares_special=True)]
    conditions += [Condition("added", vector=vector), Condition("away", removed=direction)]
    stream, which = tiny_subject.residual(tokens), torch.arange(4).repeat_interleave(2)
    change = room.stream_change(tiny_subject, conditions, which)
    made = change(stream.repeat(4, 1, 1), torch.arange(8), tokens.repeat(4, 1)).split(2)
    assert torch.equal(made[0], stream) and torch.equal(made[2], stream + vector)
    added = torch.where((tokens > 1)[..., None], stream + vector, stream)
    assert torch.equal(made[1], added), "the vector, where a token is not special, and nothing elsewhere"
    assert (made[3] @ direction).abs().max() < 1e-4
    along = (stream @ direction)[..., None] * direction
    torch.testing.assert_close(made[3] + along, stream)
    with pytest.raises(UserError, match="away"):
        check_conditions(tiny_subject, [Condition("away", removed=torch.ones(WIDTH + 1))])


def test_exactly_equation_7_is_added_at_every_place_of_its_rows_alone(tiny_subject, sae):
    (one,) = feature_conditions(sae, [3], [0.5], np.arange(1.0, 2 * WIDTH + 1))  # f_max = 4
    assert torch.equal(one.vector, 0.5 * 4.0 * sae.W_dec[3]) and (one.feature, one.gamma) == (3, 0.5)
    other = Condition("another", vector=torch.ones(WIDTH))
    steered, stream = changed(tiny_subject, [Condition("none"), one, other], TOKENS, 1)
    assert torch.equal(steered, stream + 0.5 * 4.0 * sae.W_dec[3])
    untouched, _ = changed(tiny_subject, [Condition("none"), one, other], TOKENS, 0)
    assert torch.equal(untouched, stream)


def test_a_clamp_is_encode_edit_decode_with_the_error_kept(tiny_subject, sae):
    clamps = feature_conditions(sae, [3, 40], [-0.5, 2.0], np.full(2 * WIDTH, 1.5), clamp=True)
    conditions = [Condition("none"), *clamps, Condition("added", vector=torch.ones(WIDTH))]
    for i, condition in enumerate(conditions[1:-1], start=1):
        clamped, stream = changed(tiny_subject, conditions, TOKENS, i, sae)
        features = sae.encode(stream)
        error = stream - sae.decode(features)
        features[..., condition.feature] = condition.gamma * 1.5
        torch.testing.assert_close(clamped, sae.decode(features) + error)
        assert not torch.allclose(clamped, stream)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Condition("twice"), "Two conditions are named 'twice'"),
        (Condition("short", vector=torch.zeros(3)), "is not 32 finite"),
        (Condition("endless", vector=torch.full((WIDTH,), torch.inf)), "of 'endless' is not 32 finite"),
        (Condition("unknown", 3, clamp=float("nan")), "The clamp of 'unknown' is not finite"),
        (Condition("clamped", 3, clamp=1.0), "give the autoencoder"),
    ],
)
def test_what_no_condition_can_be_is_told(tiny_subject, condition, said):
    with pytest.raises(UserError, match=said):
        check_conditions(tiny_subject, [condition, Condition("twice")])
    half = SimpleNamespace(d_model=WIDTH, model=SimpleNamespace(dtype=torch.float16))  # overflows at 65,520
    with pytest.raises(UserError, match="'strong' is not 32 finite"):
        check_conditions(half, [Condition("strong", vector=torch.full((WIDTH,), 7e4))])


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(
    ("feature", "gamma", "said"),
    [(2 * WIDTH, 1.0, "is not there"), (0, 1.0, "never active"), (3, np.nan, "A strength"),
     (5, 1.0, "The largest")],
)  # fmt: skip
def test_what_cannot_be_steered_is_told(clamp, feature, gamma, said):
    maxima = np.arange(2.0 * WIDTH)
    maxima[5] = np.inf if feature == 5 else 1.0
    with pytest.raises(UserError, match=said):
        feature_conditions(signed_identity(WIDTH), [feature], [gamma], maxima, clamp)
