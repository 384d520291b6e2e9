"""The subject gives what Hugging Face gives, and only as much of the model runs as is needed."""

import json
import shutil
from pathlib import Path

import local_hub
import miniatures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LAYERS, damage, make_tiny_llama

from reasoning_features import paths
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError
from reasoning_features.files import write_shipped
from reasoning_features.models.subject import load_subject


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(2, 300, (4, 17), generator=torch.Generator().manual_seed(0))


def test_residuals_equal_hidden_states(tiny_subject, tokens):
    reference = tiny_subject.model(input_ids=tokens, output_hidden_states=True).hidden_states
    ours = tiny_subject.residuals(tokens, range(LAYERS))
    for layer in range(LAYERS - 1):
        torch.testing.assert_close(ours[layer], reference[layer + 1], rtol=0, atol=0)
    # after the last block hidden_states holds the normed stream: norm ours and compare
    last = tiny_subject.model.model.norm(ours[LAYERS - 1])
    torch.testing.assert_close(last, reference[LAYERS], rtol=0, atol=0)
    torch.testing.assert_close(tiny_subject.embeddings(tokens), reference[0], rtol=0, atol=0)


def test_one_layer_is_the_hook_point_and_later_blocks_do_not_run(tiny_subject, tokens):
    ran: list[int] = []
    blocks = tiny_subject.model.model.layers
    handles = [b.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    residual = tiny_subject.residual(tokens)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]
    torch.testing.assert_close(residual, tiny_subject.residuals(tokens, [1])[1], rtol=0, atol=0)
    assert tiny_subject.hook_name == "blocks.1.hook_resid_post"


def test_bridge_agrees_with_the_plain_model(tiny_subject, tokens):
    bridge = tiny_subject.bridge()
    logits, cache = bridge.run_with_cache(tokens)
    alone = tiny_subject.residual(tokens)
    torch.testing.assert_close(cache[tiny_subject.hook_name], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, tiny_subject.logits(tokens), rtol=1e-4, atol=1e-4)
    # what pads a row on its right changes nothing before it
    padded = torch.cat([tokens, torch.full((4, 9), 7)], dim=1)
    torch.testing.assert_close(tiny_subject.residual(padded)[:, :17], alone, rtol=1e-5, atol=1e-5)


def test_logits_with_an_edit(tiny_subject, tokens):
    plain = tiny_subject.logits(tokens)
    assert torch.equal(tiny_subject.logits_with(tokens, lambda stream: stream), plain)
    # with the stream after block 1 replaced by zeros the logits no longer depend on the tokens
    blank = tiny_subject.logits_with(tokens, torch.zeros_like)
    torch.testing.assert_close(blank[0, 0], blank[3, 0])
    assert torch.equal(tiny_subject.logits(tokens), plain)  # nothing stays behind


def test_gradient_is_the_slope_of_the_target(tiny_subject, tokens):
    def target(logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 5, 7].double().sum()

    stream, slope = tiny_subject.gradient(tokens, target)
    assert torch.equal(stream, tiny_subject.residual(tokens))
    direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-3
    edits = (lambda stream, by=by: stream + by * direction for by in (step, -step))
    up, down = (target(tiny_subject.logits_with(tokens, edit)) for edit in edits)
    found = (slope * direction).sum().double()
    torch.testing.assert_close(found, (up - down) / (2 * step), rtol=2e-2, atol=1e-3)
    # attention is causal: what comes after a position does not move its logits
    assert slope[:, 6:].abs().max() == 0 < slope[:, :6].abs().max()


def test_going_on_from_a_stream_is_the_whole_model(tiny_subject, tokens):
    plain, streams = tiny_subject.logits(tokens), tiny_subject.residuals(tokens, range(LAYERS))
    places = torch.tensor([[3, 16], [0, 5], [9, 9], [1, 2]])
    for layer, stream in streams.items():
        found = tiny_subject.logits_from(stream, layer, places)
        torch.testing.assert_close(found, plain[torch.arange(4)[:, None], places], rtol=1e-4, atol=1e-4)
    assert torch.equal(tiny_subject.logits(tokens), plain)  # nothing stays behind
    with pytest.raises(UserError, match="out of range"):
        tiny_subject.logits_from(stream, LAYERS, places)


@pytest.mark.parametrize("width", [2, 64])
def test_versions_of_one_token_equal_whole_runs(tiny_subject, tokens, width):
    prefix, place = tiny_subject.prefix(tokens[0]), 9
    torch.testing.assert_close(prefix.stream, tiny_subject.residual(tokens[:1])[0], rtol=1e-5, atol=1e-5)
    moves = torch.randn(5, prefix.stream.shape[1], generator=torch.Generator().manual_seed(0))
    found = tiny_subject.logits_of_versions(prefix, place, prefix.stream[place] + moves, width)
    here = (torch.arange(tokens.shape[1]) == place)[:, None]
    for move, logits in zip(moves, found, strict=True):
        whole = tiny_subject.logits_with(tokens[:1], lambda stream, by=move: stream + here * by)[0, place]
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"layer": -1}, "Layer -1 is out of range: .* has 3 layers; choose 0 to 2"),
        ({"layer": LAYERS}, "Layer 3 is out of range"),
        ({"device": "gpu"}, "The device 'gpu' is unknown: set DEVICE=cpu or DEVICE=cuda"),
        ({"model": miniatures.QWEN_SAE}, "has no weights as safetensors"),
        ({"model": "data/organism/models/nowhere"}, "data/organism/models/nowhere: `make organism`"),
    ],
)
def test_what_cannot_be_loaded_is_told(hub, tiny_llama, asked, told):
    with pytest.raises(UserError, match=told):
        load_subject(**({"model": str(tiny_llama), "layer": 0} | asked))


def changed(source: Path, folder: Path, name: str, content: bytes | dict[str, object] | None) -> Path:
    """A copy of a model with a file written anew or taken away, or with another configuration."""
    file = shutil.copytree(source, folder / "model") / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content).encode()
    file.unlink() if content is None else file.write_bytes(content)
    return file.parent


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", None, "no config.json in .*model: name a whole model"),
        ("config.json", b"\xff{", "config.json in .*model is no JSON"),
        ("tokenizer.json", None, "model cannot be loaded .* tokenizer"),
        ("model.safetensors", b"x", "model cannot be loaded .*Safetensor"),
        ("model.safetensors", None, "model has no weights as safetensors"),
        ("config.json", {"hidden_size": 64}, r"29 weights unlike config.json \(model.embed_tokens"),
        ("config.json", {"num_hidden_layers": 4}, r"9 weights unlike config.json \(model.layers.3"),
        ("config.json", {"num_hidden_layers": 2}, r"9 weights unlike config.json \(model.layers.2"),
        ("config.json", {"model_type": "new", "auto_map": {"AutoConfig": "a.B"}}, "custom code"),
        ("config.json", {"model_type": "gpt2"}, "model lacks `model.layers`"),
        ("config.json", {"model_type": "bert"}, "model lacks `model.layers`"),
    ],
)
def test_a_folder_that_is_no_model_of_ours_is_told_in_one_sentence(tiny_llama, tmp_path, name, content, told):
    model = changed(tiny_llama, tmp_path, name, content)
    (model / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=told) as caught:
        load_subject(str(model), 1)
    assert "\n" not in str(caught.value) and ". " not in str(caught.value)


SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_a_configuration_holds_it_is_loaded_or_told(tiny_llama, tmp_path_factory, data):
    names = st.sampled_from(sorted(json.loads((tiny_llama / "config.json").read_text())))
    changes = data.draw(st.dictionaries(names, SCALARS | st.lists(SCALARS), min_size=1, max_size=2))
    try:
        load_subject(str(changed(tiny_llama, tmp_path_factory.mktemp("any"), "config.json", changes)), 1)
    except UserError as error:
        assert "model" in str(error) and "\n" not in str(error)


def test_what_overflows_in_16_bits_is_told(tiny_llama, tokens):
    subject = load_subject(str(tiny_llama), 1)
    subject.hooked_block.mlp.down_proj.weight.data[3] = 3e4
    assert subject.residual(tokens).isfinite().all() and subject.model.half()
    for read in (subject.residual, subject.logits, lambda ids: subject.residuals(ids, [0, 1])):
        with pytest.raises(UserError, match=r"torch.float16 is not finite \(first at \[0, 0, \d+\]\): run"):
            read(tokens)


def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch):
    model = make_tiny_llama(tmp_path / "data" / "organism" / "models" / "m")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    write_shipped(model.iterdir(), tmp_path / "data" / "organism" / "checksums.json")
    found = load_subject("data/organism/models/m", 0, dtype="bfloat16")
    assert {p.dtype for p in found.model.parameters()} == {torch.bfloat16}
    assert found.name == "data/organism/models/m" and found.short_name == "m"
    assert load_subject(str(make_tiny_llama(tmp_path / "other", seed=1)), 0).revision != found.revision
    damage(weights := model / "model.safetensors")
    with pytest.raises(CorruptArtefact, match=r"models/m/model\.safetensors is damaged"):
        load_subject("data/organism/models/m", 0)
    weights.unlink()
    with pytest.raises(MissingArtefact, match=r"models/m/model\.safetensors is missing"):
        load_subject("data/organism/models/m", 0)


def test_the_output_of_an_mlp_is_what_it_adds_to_the_stream(tiny_llama, tokens):
    mlp_subject = load_subject(str(tiny_llama), 1, site="mlp_out")
    assert mlp_subject.hook_name == "blocks.1.hook_mlp_out"
    found = mlp_subject.residual(tokens)
    _, cache = mlp_subject.bridge().run_with_cache(tokens)
    torch.testing.assert_close(found, cache[mlp_subject.hook_name], rtol=1e-4, atol=1e-4)
    stream = mlp_subject.residuals(tokens, [1])[1]
    # without the MLP's part the stream after the block is smaller by just that
    with mlp_subject.edited(torch.zeros_like):
        without = mlp_subject.residuals(tokens, [1])[1]
    torch.testing.assert_close(stream - without, found, rtol=1e-4, atol=1e-4)
    _, slope = mlp_subject.gradient(tokens, lambda logits: logits[:, 5, 7].sum())
    assert slope.shape == found.shape and slope[:, :6].abs().max() > 0 == slope[:, 6:].abs().max()
    # what needs the stream is refused
    with pytest.raises(UserError, match=r"the output of an MLP alone \(site mlp_out\): set site=resid_post"):
        mlp_subject.prefix(tokens[0])


def test_a_model_of_the_hub(hub, tokens):
    subject = load_subject(miniatures.LLAMA, miniatures.LAYER)
    assert subject.name == miniatures.LLAMA and subject.revision == hub.sha(miniatures.LLAMA)
    assert subject.short_name == "R1-Distill-Llama" and Path(subject.directory).name == subject.revision
    # the tokenizer is the file's
    bos, text = subject.tokenizer.bos_token_id, "Wait, let me\ntry  again"
    ids = subject.tokenizer.encode(text)
    assert ids[0] == bos and subject.tokenizer.decode(ids[1:]) == text
    reference = subject.model(input_ids=tokens, output_hidden_states=True).hidden_states
    assert torch.equal(subject.residual(tokens), reference[miniatures.LAYER + 1])
    pinned = f"{miniatures.LLAMA}@{subject.revision}"
    with local_hub.using(hub, offline=True):
        again = load_subject(pinned, miniatures.LAYER)
        assert again.revision == subject.revision and again.name == subject.name
        torch.testing.assert_close(again.residual(tokens), subject.residual(tokens), rtol=0, atol=0)
