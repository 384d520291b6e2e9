"""Layers that read pruned inputs: corrections against loops, on tiny models, and no trace left."""

import copy
import statistics
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from reasoning_features.errors import UserError
from reasoning_features.sparsity import layers as sparse_layers
from reasoning_features.sparsity.layers import (
    CORRECTIONS,
    calibrate,
    fit,
    linear_layers,
    replaced,
    sparse,
)
from reasoning_features.sparsity.patterns import CRITERIA, PRUNERS, Pattern, Unstructured, amber, mask, wina

WIDTH, HALF, FULL = 16, Pattern(2, 4), Pattern(4, 4)
TOKENS = torch.arange(24).reshape(2, 12)
SIZES = {
    "vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3)).eval().requires_grad_(False)


@pytest.fixture
def qwen():
    """Its q, k and v have large biases, as Qwen2.5's do."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, initializer_range=0.3)).eval().requires_grad_(False)
    for block in model.model.layers:
        for name in "qkv":
            getattr(block.self_attn, f"{name}_proj").bias.normal_(0, 20)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_layers_are_found_by_name_and_block(llama):
    found = linear_layers(llama)
    assert len(found) == 14 and not any("lm_head" in name for name in found)
    assert list(linear_layers(llama, "mlp")) == [
        f"model.layers.{block}.mlp.{name}" for block in range(2) for name in sparse_layers.MLP
    ]
    assert set(linear_layers(llama, [1])) == {name for name in found if ".1." in name}
    with pytest.raises(UserError, match="Block 2 is not there"):
        linear_layers(llama, [0, 2])
    with pytest.raises(UserError, match="'attention'"):
        linear_layers(llama, "attention")
    llama.model.layers[0].mlp = llama.model.layers[1].mlp = nn.Identity()
    with pytest.raises(UserError, match="no linear layer down_proj"):
        linear_layers(llama)


def traces(model):
    """What could stay behind: hooks, parameters and their bytes."""
    hooks = [(*m._forward_hooks, *m._forward_pre_hooks) for m in model.modules()]
    return hooks, [(n, id(p), p.data_ptr(), p.grad, p.tolist()) for n, p in model.named_parameters()]


def test_no_trace_is_left_even_after_an_exception(llama):
    layers, before, dense = linear_layers(llama), traces(llama), logits(llama)
    weights = {name: torch.zeros_like(linear.weight) for name, linear in layers.items()}
    with sparse(layers, HALF):
        assert not torch.equal(logits(llama), dense)
    with replaced(layers, weights):
        assert not torch.equal(logits(llama), dense)
    for context in (sparse(layers, HALF), replaced(layers, weights)):
        with pytest.raises(KeyError), context:
            assert traces(llama) != before
            raise KeyError
    with (
        pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj has 16 inputs"),
        sparse(layers, Pattern(2, 32)),
    ):
        pass
    name = next(iter(layers))
    for wrong in ({name: torch.zeros(3, 3)}, {name: weights[name], "none": torch.zeros(1)}):
        with pytest.raises(UserError, match="own shape"), replaced(layers, wrong):
            pass
    calibrate(llama, layers, [TOKENS])
    assert traces(llama) == before and torch.equal(logits(llama), dense)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_mask_of_ones_changes_no_bit(llama, qwen, criterion):
    for model in (llama, qwen, copy.deepcopy(qwen).bfloat16()):
        layers, dense = linear_layers(model), logits(model)
        learnt = {name: [CORRECTIONS[c](linear, None) for c in ("VAR", "scale", "shift", "R-Sparse")]
                  for name, linear in layers.items()}  # fmt: skip
        with sparse(layers, FULL, CRITERIA[criterion]):
            assert torch.equal(logits(model), dense)
        with sparse(layers, Unstructured(1.0), CRITERIA[criterion], learnt):
            assert torch.equal(logits(model), dense)
        with sparse(layers, HALF, CRITERIA[criterion]):
            assert not torch.equal(logits(model), dense)


@contextmanager
def without_bias(layers):
    own = {name: linear.bias for name, linear in layers.items()}
    for linear in layers.values():
        linear.bias = None
    yield
    for name, linear in layers.items():
        linear.bias = own[name]


def test_the_bias_is_kept_and_its_loss_would_cost_more_than_pruning(qwen):
    def divergence():
        return torch.nn.functional.kl_div(
            logits(qwen).log_softmax(-1), dense, log_target=True, reduction="batchmean"
        )

    layers, dense = linear_layers(qwen), logits(qwen).log_softmax(-1)
    with sparse(layers, Pattern(15, 16)):
        pruned = divergence()
    with without_bias(layers), sparse(layers, FULL):
        assert divergence() > 10 * pruned


def test_a_layer_reads_what_the_mask_keeps_of_it(llama):
    layers, read = linear_layers(llama, [0]), {}

    def look(name, inputs):
        read[name] = inputs[0]

    handles = [m.register_forward_pre_hook(lambda _, x, n=n: look(n, x)) for n, m in layers.items()]
    logits(llama)
    dense = dict(read)
    for handle in handles:
        handle.remove()
    name = "model.layers.0.self_attn.q_proj"
    with sparse(layers, HALF, wina):
        handle = layers[name].register_forward_pre_hook(lambda _, x: look(name, x))
        logits(llama)
    handle.remove()
    kept = mask(wina(layers[name].weight)(dense[name]), HALF)
    assert torch.equal(read[name], dense[name] * kept)


def test_calibration_is_that_of_a_loop(llama):
    layers, seen = linear_layers(llama, "mlp"), {}
    handles = [
        m.register_forward_pre_hook(lambda _, x, n=n: seen.update({n: x[0]})) for n, m in layers.items()
    ]
    logits(llama)
    for handle in handles:
        handle.remove()
    found = calibrate(llama, layers, TOKENS.split(1), keep=1)
    assert set(found) == set(layers)
    for name, x in seen.items():
        rows, told = x.flatten(0, 1).tolist(), found[name]
        columns = list(zip(*rows, strict=True))
        torch.testing.assert_close(told.norms, torch.tensor([sum(v * v for v in c) ** 0.5 for c in columns]))
        torch.testing.assert_close(told.largest, torch.tensor([max(map(abs, c)) for c in columns]))
        assert told.median == pytest.approx(statistics.mean(map(statistics.median_low, rows)), rel=1e-4)
        (kept,) = told.inputs
        torch.testing.assert_close(kept, x[0])
    assert not calibrate(llama, layers, [TOKENS])[name].inputs
    with pytest.raises(UserError, match="at least one batch"):
        calibrate(llama, layers, [])


@pytest.fixture
def one():
    """A layer with a bias, inputs ``[2, 5, 16]`` for it, and what calibration tells of them."""
    torch.manual_seed(3)
    linear = nn.Linear(WIDTH, 6).double().requires_grad_(False)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64) + torch.linspace(-1, 2, WIDTH, dtype=torch.float64)
    flat = x.flatten(0, 1)
    known = sparse_layers.Statistics(
        flat.norm(dim=0), flat.abs().amax(0), float(flat.median(-1).values.mean()), list(x)
    )
    return linear, x, known


def pruned(token, scores):
    """2:4 of one token, in a loop."""
    kept = [0.0] * len(token)
    for start in range(0, len(token), 4):
        for i in sorted(range(start, start + 4), key=lambda i: -scores[i])[:2]:
            kept[i] = token[i]
    return kept


def plain(token):
    return pruned(token, [abs(v) for v in token])


def shifted(token, eta):
    return [v + e for v, e in zip(plain([v - e for v, e in zip(token, eta, strict=True)]), eta, strict=True)]


def looped(name, token, linear, known):
    """What one token's inputs become."""
    if name == "VAR":
        kept = plain(token)
        return [v * (statistics.variance(token) / statistics.variance(kept)) ** 0.5 for v in kept]
    if name == "LS":
        pairs = zip(known.largest.tolist(), linear.weight.T.tolist(), strict=True)
        s = [(most / max(map(abs, column))) ** 0.5 for most, column in pairs]
        return [v * e for v, e in zip(plain([v / e for v, e in zip(token, s, strict=True)]), s, strict=True)]
    eta = {"D-PTS, median": statistics.median_low(token), "D-PTS, mean": statistics.mean(token),
           "S-PTS": known.median}  # fmt: skip
    return shifted(token, [eta.get(name, 0.0)] * WIDTH)


@pytest.mark.parametrize("name", ["VAR", "D-PTS, median", "D-PTS, mean", "S-PTS", "L-PTS", "LS"])
def test_each_correction_of_inputs_is_that_of_a_loop(one, name):
    linear, x, known = one
    correction = CORRECTIONS[name](linear, known)
    expected = [[looped(name, token, linear, known) for token in sequence] for sequence in x.tolist()]
    with sparse({"it": linear}, HALF, corrections={"it": [correction]}):
        found = linear(x)
    made = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, linear(made))
    if name == "VAR":
        torch.testing.assert_close(made.var(-1), x.var(-1))
    if name.startswith("D-PTS"):  # folded: a rank-1 term in place of a dense input
        eta = x.median(-1, keepdim=True).values if "median" in name else x.mean(-1, keepdim=True)
        folded = linear((x - eta) * mask((x - eta).abs(), HALF)) + eta * linear.weight.sum(1)
        torch.testing.assert_close(found, folded)


def test_corrections_of_outputs_are_their_formulas_and_nest_with_those_of_inputs(one):
    linear, x, known = one
    scale, shift, residual = (CORRECTIONS[name](linear, known) for name in ("scale", "shift", "R-Sparse"))
    for correction in (scale, shift, residual):
        for tensor in correction.learnt:
            tensor.normal_()
    (s,), (moved,), (b, a) = scale.learnt, shift.learnt, residual.learnt
    read = x * mask(x.abs(), HALF)
    for given, expected in [
        ([scale], (1 + s) * (read @ linear.weight.T) + linear.bias),
        ([scale, shift], (1 + s) * (read @ linear.weight.T) + linear.bias + moved),
        ([residual], linear(read) + (x - read) @ b @ a),
    ]:
        with sparse({"it": linear}, HALF, corrections={"it": given}):
            torch.testing.assert_close(linear(x), expected)
    assert a.shape == (6, 6) and b.shape == (WIDTH, 6), "a rank above the layer's is cut"
    with sparse(
        {"it": linear}, HALF, corrections={"it": [CORRECTIONS[n](linear, known) for n in ("S-PTS", "VAR")]}
    ):
        found = linear(x)
    moved = x - known.median
    kept = moved * mask(moved.abs(), HALF)
    kept = kept * (moved.var(-1, keepdim=True) / kept.var(-1, keepdim=True)).sqrt()
    torch.testing.assert_close(found, linear(kept + known.median))


def test_criteria_of_weights_see_smoothed_weights(one):
    linear, x, known = one
    smoothing = CORRECTIONS["LS"](linear, known)
    s = smoothing.scale
    for criterion in (wina, amber):
        with sparse({"it": linear}, HALF, criterion, {"it": [smoothing]}):
            found = linear(x)
        kept = mask(criterion(linear.weight * s)(x / s), HALF)
        torch.testing.assert_close(found, linear(x * kept))
    dead = torch.nn.Linear(WIDTH, 6).double().requires_grad_(False)
    dead.weight[:, 3] = 0
    assert CORRECTIONS["LS"](dead, known).scale[3] == 1


def fitted(linear, inputs, corrections):
    """Fit one layer that is a whole model, a sequence of inputs a step; gives the losses."""
    model = SimpleNamespace(
        device="cpu", base_model=lambda input_ids, use_cache: linear(inputs[int(input_ids)])
    )
    steps = [torch.tensor(i) for i in range(len(inputs))]
    return fit(model, {"it": linear}, HALF, {"it": corrections}, steps)["it"]


@pytest.mark.parametrize("names", [["L-PTS"], ["scale"], ["shift"], ["R-Sparse"], ["L-PTS", "shift"]])
def test_what_is_learnt_comes_nearer_to_the_dense_layer(one, names):
    linear, few, known = one
    x = torch.randn(4, 64, WIDTH, dtype=few.dtype) + few.flatten(0, 1).mean(0)
    corrections = [CORRECTIONS[name](linear, known) for name in names]
    before = [tensor.clone() for correction in corrections for tensor in correction.learnt]

    def error():
        with sparse({"it": linear}, HALF, corrections={"it": corrections}):
            read = linear(x)
        return float((read - linear(x)).square().mean())

    first = error()
    losses = fitted(linear, list(x) * 25, corrections)
    learnt = [tensor for correction in corrections for tensor in correction.learnt]
    assert len(losses) == 100 and sum(losses[:4]) / 4 == pytest.approx(first, rel=0.05)
    assert error() < first and not any(tensor.requires_grad for tensor in learnt)
    moved = max(float((new - old).abs().max()) for new, old in zip(learnt, before, strict=True))
    assert 1e-3 < moved < 100 * 1e-4 * 1.1, "a hundred steps of at most 1e-4"
    assert linear.weight.grad is None and not linear._forward_hooks


def test_what_cannot_be_fitted_is_told(one):
    linear, x, known = one
    for inputs, name in ((list(x), "VAR"), ([], "L-PTS")):
        with pytest.raises(UserError, match="nothing to fit"):
            fitted(linear, inputs, [CORRECTIONS[name](linear, known)])


def test_layers_of_a_model_learn_side_by_side_as_they_would_alone(llama):
    layers, before = linear_layers(llama), traces(llama)
    batches = TOKENS.split(1) * 3
    made = {name: [CORRECTIONS["shift"](linear, None)] for name, linear in layers.items()}
    found = fit(llama, layers, HALF, made, batches)
    name = list(layers)[9]
    alone = {name: [CORRECTIONS["shift"](layers[name], None)]}
    assert fit(llama, {name: layers[name]}, HALF, alone, batches)[name] == pytest.approx(found[name])
    torch.testing.assert_close(alone[name][0].learnt, made[name][0].learnt)
    assert traces(llama) == before and {len(own) for own in found.values()} == {6}


def test_every_criterion_correction_and_pruned_weight_runs_on_a_model(llama):
    layers, dense = linear_layers(llama), logits(llama)
    known = calibrate(llama, layers, [TOKENS], keep=2)
    for make in CORRECTIONS.values():
        corrections = {name: [make(linear, known[name])] for name, linear in layers.items()}
        with sparse(layers, HALF, corrections=corrections):
            assert logits(llama).isfinite().all()
    for prune in PRUNERS.values():
        weights = {name: prune(linear.weight, HALF, known[name]) for name, linear in layers.items()}
        assert all((w.unflatten(-1, (-1, 4)) != 0).sum(-1).max() == 2 for w in weights.values())
        with replaced(layers, weights), sparse(layers, HALF):
            assert not torch.equal(logits(llama), dense)
    assert torch.equal(logits(llama), dense)
