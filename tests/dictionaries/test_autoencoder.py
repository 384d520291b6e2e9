"""Autoencoders are loaded as they were trained, whatever the format, and what does not fit is refused."""

import json
import shutil

import local_hub
import miniatures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import StandardSAE, TopKSAE, TopKSAEConfig
from sae_lens.registry import get_sae_class
from safetensors.torch import load_file, save_file
from tiny import HOOK, signed_identity

from reasoning_features.dictionaries import autoencoder as room
from reasoning_features.dictionaries.autoencoder import check_scaling, load_autoencoder, save_autoencoder
from reasoning_features.dictionaries.evaluation import quality
from reasoning_features.errors import CorruptArtefact, MissingArtefact, UserError

PAPER = f"{miniatures.LLAMA_SAE}:{miniatures.HOOK}"
SPARSIFY = f"{miniatures.QWEN_SAE}:{miniatures.MLP}"
MLP = f"blocks.{miniatures.LAYER}.hook_mlp_out"


@pytest.fixture(scope="module")
def points(miniature_root):
    """Activations that the paper's autoencoder takes."""
    texts = [row["text"] for row in miniatures.thoughts(8)]
    return miniatures.activations(miniature_root / "models" / miniatures.LLAMA, texts, "resid_post")


def test_the_paper_s_autoencoder_as_version_5_left_it(hub, points):
    sae = load_autoencoder(PAPER, miniatures.WIDTH, miniatures.HOOK)
    assert isinstance(sae, StandardSAE) and sae.cfg.normalize_activations == "none"
    assert sae.cfg.d_sae == miniatures.FEATURES and sae.dtype == torch.float32
    check_scaling(sae, points)
    found = quality(sae, points)
    assert found["fraction of variance explained"] > 0.5 and 5 < found["L0"] < 50
    with local_hub.using(hub, offline=True):
        again = load_autoencoder(PAPER, miniatures.WIDTH, miniatures.HOOK)
    assert torch.equal(again.W_dec, sae.W_dec)


def test_a_checkpoint_of_version_5_is_found_out(miniature_root, tmp_path, points):
    shutil.copytree(miniature_root / "models" / miniatures.LLAMA_SAE / miniatures.HOOK, tmp_path / "sae")
    file = tmp_path / "sae" / "sae_weights.safetensors"
    weights, scale = load_file(file), float(points.shape[1] ** 0.5 / points.norm(dim=1).mean())
    inside = weights | {"W_enc": weights["W_enc"] / scale}
    inside |= {name: weights[name] * scale for name in ("W_dec", "b_dec")}
    save_file(inside, file)
    with pytest.raises(UserError, match="it is a checkpoint from within a training"):
        check_scaling(load_autoencoder(str(tmp_path / "sae"), miniatures.WIDTH), points)


@pytest.mark.parametrize("normalized", ["none", "expected_average_only_in"])
def test_as_version_5_uploads_an_autoencoder_that_it_has_loaded(miniature_root, tmp_path, normalized):
    source = miniature_root / "models" / miniatures.LLAMA_SAE / miniatures.HOOK
    shutil.copytree(source, tmp_path / "sae")
    told = json.loads((source / "cfg.json").read_text()) | {"normalize_activations": normalized}
    for key in ("activation_fn", "model_class_name", "model_kwargs", "sae_lens_version", "lr", "seed"):
        del told[key]
    told |= {"activation_fn_str": "relu", "finetuning_scaling_factor": False, "neuronpedia_id": None}
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(told))
    sae = load_autoencoder(str(tmp_path / "sae"), miniatures.WIDTH, miniatures.HOOK)
    assert isinstance(sae, StandardSAE) and sae.cfg.normalize_activations == "none"
    points = torch.randn(5, miniatures.WIDTH, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae(points), load_autoencoder(str(source), miniatures.WIDTH)(points))


def test_sparsify_encodes_less_the_bias_and_reads_the_mlp(hub, miniature_root):
    sae = load_autoencoder(SPARSIFY, miniatures.WIDTH, MLP)
    assert isinstance(sae, TopKSAE) and sae.cfg.metadata.model_name == miniatures.QWEN
    texts = [row["text"] for row in miniatures.thoughts(8)]
    points = miniatures.activations(miniature_root / "models" / miniatures.QWEN, texts, "mlp_out")
    folder = miniature_root / "models" / miniatures.QWEN_SAE / miniatures.MLP
    held = load_file(folder / "sae.safetensors")
    before = (points - held["b_dec"]) @ held["encoder.weight"].T + held["encoder.bias"]
    values, places = before.relu().topk(miniatures.QWEN_K, dim=1)
    expected = (held["W_dec"][places] * values[..., None]).sum(1) + held["b_dec"]
    torch.testing.assert_close(sae(points), expected, rtol=1e-4, atol=1e-4)
    check_scaling(sae, points)


def test_where_sparsify_reads_is_told_by_the_folder_and_other_variants_are_refused(miniature_root, tmp_path):
    shutil.copytree(miniature_root / "models" / miniatures.QWEN_SAE, tmp_path / "sae")
    mlp = tmp_path / "sae" / miniatures.MLP
    stream = mlp.rename(mlp.with_name(f"layers.{miniatures.LAYER}"))
    assert load_autoencoder(str(stream), miniatures.WIDTH).cfg.metadata.hook_name == miniatures.HOOK
    told = json.loads((stream / "cfg.json").read_text())
    for other in ({"transcode": True}, {"activation": "groupmax"}):
        (stream / "cfg.json").write_text(json.dumps(told | other))
        with pytest.raises(UserError, match="is a transcoder, or has an activation of its own"):
            load_autoencoder(str(stream), miniatures.WIDTH)
    (stream / "cfg.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"does not tell by its folder where it reads: give layers\.N"):
        load_autoencoder(str(stream.rename(stream.with_name("embed_tokens"))), miniatures.WIDTH)


def test_reloading_gives_the_same_numbers(tmp_path):
    residual = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    sae = signed_identity(4, 0.7, centre=torch.ones(4))
    save_autoencoder(sae, tmp_path / "sae")
    reloaded = load_autoencoder(str(tmp_path / "sae"), 4, HOOK)
    assert quality(reloaded, residual) == quality(sae, residual)
    assert room.compared_with_plain(sae, str(tmp_path / "sae"), residual).startswith("StandardSAE")
    with pytest.raises(AssertionError):
        room.compared_with_plain(signed_identity(4), str(tmp_path / "sae"), residual)


def test_what_does_not_fit_is_refused(tmp_path):
    save_autoencoder(signed_identity(4), tmp_path / "sae")
    cfg, kinds = tmp_path / "sae" / "cfg.json", ("temporal", "skip_transcoder", "batchtopk", "new")
    told, scaled = json.loads(cfg.read_text()), "expected_average_only_in"
    mlp, none = ({"metadata": told["metadata"] | {"hook_name": name}} for name in ("layers.1.mlp", None))
    for changes, asked, said in (
        ({}, (128,), "activations of width 4, but the model's are 128 wide"),
        ({}, (4, "blocks.2.hook_resid_post"), r"reads blocks\.1\.hook_resid_post, not blocks\.2"),
        (none, (4, HOOK), f"tells by no hook_name that it reads {HOOK}: give one that was trained there"),
        (mlp, (4, HOOK), rf"reads layers\.1\.mlp, not {HOOK}: give one"),
        *(({"architecture": kind}, (4,), f"is of the kind '{kind}': give an autoenc") for kind in kinds),
        ({"normalize_activations": scaled}, (4,), rf"expects scaled activations \({scaled}\)"),
    ):
        cfg.write_text(json.dumps(told | changes))
        with pytest.raises(UserError, match=said):
            load_autoencoder(str(cfg.parent), *asked)
    cfg.write_text(json.dumps(told | mlp))
    assert load_autoencoder(str(cfg.parent), 4, "blocks.1.hook_mlp_out").cfg.d_sae == 8


def test_one_place_has_several_names():
    same = "blocks.2.hook_resid_pre", "blocks.1.hook_out", "blocks.2.hook_in", "gpt_neox.layers.1", "layers.1"
    assert {room.place_of(name) for name in same} == {HOOK}
    mlps = "model.layers.1.mlp", "blocks.1.mlp.hook_out"
    assert {room.place_of(name) for name in mlps} == {"blocks.1.hook_mlp_out"}
    others = "blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "model.layers.11", "layers.1.self_attn"
    assert HOOK not in {room.place_of(name) for name in others}


def test_a_kind_is_named():
    for kind, name in {"standard": "ReLU", "jumprelu": "JumpReLU", "gated": "gated"}.items():
        made, config = get_sae_class(kind)
        assert room.name_of(room.architecture_label(made(config(d_in=4, d_sae=8)))) == name


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_weights_that_are_not_finite_are_neither_stored_nor_read(tmp_path, name):
    sae, weights = signed_identity(4), tmp_path / "sae" / "sae_weights.safetensors"
    save_autoencoder(sae, weights.parent)
    before, getattr(sae, name).data.view(-1)[3] = weights.read_bytes(), torch.inf
    told = rf"{name} of the autoencoder .* .*sae is not finite .*3\]\): "
    with pytest.raises(UserError, match=f"{told}train it"):
        save_autoencoder(sae, weights.parent)
    assert weights.read_bytes() == before and [*tmp_path.iterdir()] == [weights.parent]
    save_file(sae.state_dict(), weights)
    with pytest.raises(UserError, match=f"{told}delete"):
        load_autoencoder(str(weights.parent), 4)


SCALARS = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=3)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_lies_in_a_folder_is_loaded_or_told(tmp_path_factory, data):
    save_autoencoder(signed_identity(4), folder := tmp_path_factory.mktemp("any") / "sae")
    cfg = json.loads((folder / "cfg.json").read_text())
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(cfg)), VALUES, max_size=2))
    (folder / "cfg.json").write_text(json.dumps(cfg | changes))
    names = "cfg.json", "sae_weights.safetensors", "made_from.json", "sae.safetensors"
    for file in [folder / name for name in data.draw(st.lists(st.sampled_from(names), max_size=2))]:
        whole = file.read_bytes() if file.is_file() else b""
        cut = st.just(whole[: data.draw(st.integers(0, len(whole)))])
        other = st.binary(max_size=40) | VALUES.map(json.dumps).map(str.encode) | st.none()
        content = data.draw(cut | other)
        file.unlink(missing_ok=True) if content is None else file.write_bytes(content)
    try:
        assert load_autoencoder(str(folder), 4, HOOK)(torch.zeros(1, 4)).isfinite().all()
    except UserError as error:
        assert "\n" not in str(error)


def test_missing_and_unreadable(hub, tmp_path):
    with pytest.raises(MissingArtefact, match=r"no autoencoder in mini/.*: name the folder that has cfg"):
        load_autoencoder(miniatures.LLAMA_SAE, miniatures.WIDTH)
    with pytest.raises(MissingArtefact, match="no autoencoder in nothing: `make organism`"):
        load_autoencoder(str(tmp_path / "nothing"), 4)
    save_autoencoder(signed_identity(4), tmp_path / "sae")
    weights = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    del weights["W_enc"]
    save_file(weights, tmp_path / "sae" / "sae_weights.safetensors")
    with pytest.raises(CorruptArtefact, match="in sae cannot be read"):
        load_autoencoder(str(tmp_path / "sae"), 4)


def test_directions_are_what_the_decoder_adds():
    sae = TopKSAE(TopKSAEConfig(d_in=4, d_sae=4, k=2, rescale_acts_by_decoder_norm=True))
    sae.W_dec.data, sae.b_dec.data = 3 * torch.eye(4), torch.ones(4)
    torch.testing.assert_close(room.added_directions(sae), torch.eye(4))
    standard = signed_identity(4, gain=0.5)
    torch.testing.assert_close(room.added_directions(standard), standard.W_dec)
