"""Probes find a latent that is a class; exact rules describe one that follows them; neither tells noise."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, TopKSAE, TopKSAEConfig
from tiny import make_corpus, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.sae_checks import interpretability as checks
from reasoning_features.sae_checks.interpretability import ANOTHER, AS_IT_IS, CEILING, FLOOR, SHUFFLED

WIDTH = 6
CORPUS = make_corpus(60)
WRITTEN = make_corpus(200)
WRITTEN = replace(
    WRITTEN,
    tokens=np.where(WRITTEN.special, 0, 2 + WRITTEN.tokens % 12).astype(np.int32),
    moves=(np.arange(WRITTEN.n_tokens) // 2 % 3).astype(np.int8),
    domains=[("a", "b", "c")[i % 3] for i in range(200)],
    styles=["careful" if i % 2 else "hasty" for i in range(200)],
)


def activations() -> ActivationBatch:
    """Noise, but coordinates 0 to 2 say which of the three moves a token has; ordinary tokens, shuffled."""
    rng = np.random.default_rng(0)
    residual = rng.normal(size=(CORPUS.n_tokens, WIDTH))
    residual[:, :3] = 3 * np.eye(3)[checks.labellings(CORPUS)[0].codes] + 0.1 * residual[:, :3]
    positions = rng.permutation(np.flatnonzero(~CORPUS.special))
    return ActivationBatch(torch.from_numpy(residual[positions]).float(), torch.from_numpy(positions))


@pytest.fixture(scope="module")
def probes():
    blind = signed_identity(WIDTH)
    blind.W_enc.data[:3] = 0  # reads nothing but noise
    return checks.sparse_probes({"knows": signed_identity(WIDTH), "blind": blind}, activations(), CORPUS)


def test_a_latent_that_is_a_class_tells_it_and_a_constant_tells_nothing(probes):
    table = probes.table().set_index(["dictionary", "labelling", "k"])
    columns = ["balanced accuracy", "low", "high", "documents"]
    for name, k in (("knows", 1), (CEILING, 1), (CEILING, WIDTH)):
        assert table.loc[(name, "move", k), columns].tolist() == [1, 1, 1, 24]
    for k in (1, 5):
        assert table.loc[(FLOOR, "move", k), columns].tolist() == [0.5, 0.5, 0.5, 24]
        blind = table.loc[("blind", "move", k)]
        assert blind["low"] < 0.52 and abs(blind["balanced accuracy"] - 0.5) < 0.05
        # no coordinate knows the family, which is even or odd
        assert abs(table.loc[("knows", "family", k), "balanced accuracy"] - 0.5) < 0.06


def test_what_documents_alone_tell_is_not_learnt():
    """A point a document, and labels by document: other documents' labels cannot be known."""
    rng = np.random.default_rng(0)
    corpus = replace(CORPUS, domains=[str(side) for side in rng.permutation([0, 1] * 30)])
    residual = torch.from_numpy(rng.normal(size=(60, WIDTH))[corpus.document_of]).float()
    batch = ActivationBatch(residual, torch.arange(corpus.n_tokens))
    found = checks.sparse_probes({}, batch, corpus)
    assert found.accuracy[CEILING, "family", WIDTH][0] < 0.7


def test_how_the_decoder_is_scaled_changes_nothing():
    plain, loud = signed_identity(WIDTH), signed_identity(WIDTH)
    loud.W_enc.data[:, 0], loud.W_dec.data[0] = 50 * loud.W_enc.data[:, 0], loud.W_dec.data[0] / 50
    residual = activations().residual
    np.testing.assert_allclose(
        checks.scaled_latents(loud, residual), checks.scaled_latents(plain, residual), atol=1e-5
    )
    rescaled = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=8, k=2, rescale_acts_by_decoder_norm=True))
    rescaled.W_dec.data *= torch.arange(1, 9)[:, None]  # which divides by the length itself
    values = rescaled.encode(residual).detach().numpy()
    np.testing.assert_allclose(checks.scaled_latents(rescaled, residual), values, rtol=1e-5)


class Letters:
    """Writes token 2 as a, 3 as b, and so on."""

    def decode(self, ids: list[int]) -> str:
        return chr(95 + ids[0])


@pytest.fixture(scope="module")
def kinds():
    return {kind.name: kind for kind in checks.rule_kinds(WRITTEN, Letters())}


def reader(columns: list[np.ndarray]) -> tuple[StandardSAE, ActivationBatch]:
    """An autoencoder whose latent i is active exactly where ``columns[i]`` holds."""
    order = np.random.default_rng(0).permutation(np.flatnonzero(~WRITTEN.special))
    residual = torch.from_numpy(np.stack(columns, axis=1)[order]).float()
    return signed_identity(len(columns)), ActivationBatch(residual, torch.from_numpy(order))


def judged(columns: list[np.ndarray], kinds: dict[str, checks.Labelling], **options: int) -> pd.DataFrame:
    sae, batch = reader(columns)
    return checks.judge({"x": sae}, batch, WRITTEN, list(kinds.values()), **options)


def test_a_latent_that_follows_a_rule_is_told_exactly(kinds):
    pair = kinds["token in move"]
    both = int(np.bincount(pair.codes[pair.codes >= 0]).argmax())
    wanted = [
        ("token", "token is 'c'"), ("previous token", "previous token is 'd'"), ("move", "move is verify"),
        ("next move", "next move is answer"), ("family", "family is b"), ("style", "style is careful"),
        ("token in move", pair.classes[both]),
    ]  # fmt: skip
    columns = [kinds[kind].codes == kinds[kind].classes.index(rule) for kind, rule in wanted]
    table = judged(columns, kinds).set_index("firing")
    true = table.loc[AS_IT_IS]
    assert true["latent"].tolist() == list(range(7))  # the other signs are never active
    assert list(zip(true["kind"], true["rule"], strict=True)) == wanted
    assert (true["discovery"] == 1).all() and (true["detection"] == 1).all()
    ordinary = ~WRITTEN.special
    assert true["density"].tolist() == pytest.approx([column[ordinary].mean() for column in columns])
    shuffled = table.loc[SHUFFLED]
    assert shuffled["detection"].mean() == pytest.approx(0.5, abs=0.03)
    assert (shuffled["discovery"] > shuffled["detection"]).mean() > 0.5  # the best of many, by chance


def test_noise_is_told_by_no_rule_and_places_survive_in_other_documents(kinds):
    noise = np.random.default_rng(1).random((WRITTEN.n_tokens, 20)) < 0.1
    early = WRITTEN.position_of == 1  # what follows BOS
    table = judged([*noise.T, early], kinds).set_index(["firing", "latent"])["detection"]
    assert table[AS_IT_IS][:20].mean() == pytest.approx(0.5, abs=0.02)
    assert table[AS_IT_IS, 20] == 1.0 and table[ANOTHER, 20] > 0.7  # of shorter documents places recur
    assert table[SHUFFLED, 20] < 0.6


def test_rules_by_hand(kinds):
    names = ["token", "move", "next move", "family", "style", "previous token", "token in move"]
    assert list(kinds) == names
    first = slice(WRITTEN.starts[1], WRITTEN.starts[2])
    codes = {name: kind.codes[first] for name, kind in kinds.items()}
    letters = [f"token is {Letters().decode([int(i)])!r}" for i in WRITTEN.document(1)]
    assert [kinds["token"].classes[i] for i in codes["token"]] == letters
    assert codes["previous token"].tolist() == [-1, *codes["token"][:-1]]
    assert codes["move"][0] == -1 and codes["next move"][-1] == codes["token in move"][0] == -1
    assert kinds["family"].classes[codes["family"][0]] == "family is b"
    assert kinds["style"].classes[codes["style"][0]] == "style is careful"
    said = kinds["token in move"].classes[codes["token in move"][2]]
    assert said == f"{letters[2]} and move is {WRITTEN.move_names[codes['move'][2]]}"


def test_what_cannot_be_probed_or_judged_is_said(kinds):
    rare = np.where(CORPUS.moves == 2, 0, CORPUS.moves).astype(np.int8)
    rare[int(np.flatnonzero(~CORPUS.special)[0])] = 2
    for moves in (rare, np.zeros_like(rare)):
        with pytest.raises(UserError, match="Probes for move need two classes or more"):
            checks.sparse_probes({}, activations(), replace(CORPUS, moves=moves))
    with pytest.raises(UserError, match=f"No latent of x is active on {checks.MINIMUM} tokens"):
        judged([np.zeros(WRITTEN.n_tokens, dtype=bool)], kinds)
    with pytest.raises(UserError, match="no styles"):
        checks.rule_kinds(replace(WRITTEN, styles=None), Letters())
