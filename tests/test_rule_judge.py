"""Rules: a latent that follows one is described by it; shuffled firing is described by none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE
from tiny import make_corpus, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.foundations.rule_judge import (
    ANOTHER,
    AS_IT_IS,
    FIRING,
    MINIMUM,
    SHUFFLED,
    RuleKind,
    _taken,
    detection,
    excess,
    excess_difference,
    judge,
    rule_kinds,
)
from reasoning_features.residual_stream.activations import ActivationBatch
from reasoning_features.statistics import Interval

CORPUS = make_corpus(200)
CORPUS = replace(
    CORPUS,
    tokens=np.where(CORPUS.special, 0, 2 + CORPUS.tokens % 12).astype(np.int32),
    moves=(np.arange(CORPUS.n_tokens) // 2 % 3).astype(np.int8),
    domains=[("a", "b", "c")[i % 3] for i in range(200)],
    styles=["careful" if i % 2 else "hasty" for i in range(200)],
)


class Letters:
    """Writes token 2 as a, 3 as b, and so on."""

    def decode(self, ids: list[int]) -> str:
        return chr(95 + ids[0])


@pytest.fixture(scope="module")
def kinds() -> list[RuleKind]:
    return rule_kinds(CORPUS, Letters())


def reader(columns: list[np.ndarray]) -> tuple[StandardSAE, ActivationBatch]:
    """An autoencoder whose latent i is active exactly where ``columns[i]`` holds."""
    d = len(columns)
    order = np.random.default_rng(0).permutation(np.flatnonzero(~CORPUS.special))
    residual = torch.from_numpy(np.stack(columns, axis=1)[order]).float()
    return signed_identity(d), ActivationBatch(residual, torch.from_numpy(order))


def of_kind(kinds: list[RuleKind], name: str) -> RuleKind:
    return next(kind for kind in kinds if kind.name == name)


def test_a_latent_that_follows_a_rule_is_told_exactly(kinds: list[RuleKind]) -> None:
    pair = of_kind(kinds, "token in move")
    both = int(np.bincount(pair.codes[pair.codes >= 0]).argmax())
    wanted = [
        ("token", "token is 'c'"),
        ("previous token", "previous token is 'd'"),
        ("move", "move is verify"),
        ("next move", "next move is answer"),
        ("family", "family is b"),
        ("style", "style is careful"),
        ("token in move", pair.rules[both]),
    ]
    columns = [of_kind(kinds, kind).codes == of_kind(kinds, kind).rules.index(rule) for kind, rule in wanted]
    sae, batch = reader(columns)
    table = judge(sae, batch, CORPUS, kinds)
    true = table[table["firing"] == AS_IT_IS].reset_index()
    assert true["latent"].tolist() == list(range(7))  # the other signs are never active
    assert list(zip(true["kind"], true["rule"], strict=True)) == wanted
    assert (true["discovery"] == 1).all() and (true["detection"] == 1).all()
    ordinary = ~CORPUS.special
    assert true["density"].tolist() == pytest.approx([column[ordinary].mean() for column in columns])
    shuffled = table[table["firing"] == SHUFFLED]
    assert shuffled["detection"].mean() == pytest.approx(0.5, abs=0.03)
    assert (shuffled["discovery"] > shuffled["detection"]).mean() > 0.5  # the best of many, by chance


def test_noise_is_told_by_no_rule_and_places_survive_in_other_documents(kinds: list[RuleKind]) -> None:
    noise = np.random.default_rng(1).random((CORPUS.n_tokens, 20)) < 0.1
    early = CORPUS.position_of == 1  # what follows BOS
    sae, batch = reader([*noise.T, early])
    table = judge(sae, batch, CORPUS, kinds).set_index(["firing", "latent"])["detection"]
    assert table[AS_IT_IS][:20].mean() == pytest.approx(0.5, abs=0.02)
    assert table[AS_IT_IS, 20] == 1.0 and table[ANOTHER, 20] > 0.7  # of shorter documents places recur
    assert table[SHUFFLED, 20] < 0.6


def test_rules_by_hand(kinds: list[RuleKind]) -> None:
    assert [kind.name for kind in kinds] == [
        *("token", "move", "next move", "family", "style", "previous token", "token in move")
    ]
    first = slice(CORPUS.starts[1], CORPUS.starts[2])
    codes = {kind.name: kind.codes[first] for kind in kinds}
    said = {kind.name: kind.rules for kind in kinds}
    letters = [f"token is {Letters().decode([int(i)])!r}" for i in CORPUS.document(1)]
    assert [said["token"][i] for i in codes["token"]] == letters
    assert codes["previous token"].tolist() == [-1, *codes["token"][:-1]]
    assert codes["move"][0] == -1 and codes["next move"][-1] == codes["token in move"][0] == -1
    assert said["family"][codes["family"][0]] == "family is b"
    assert said["style"][codes["style"][0]] == "style is careful"
    at = codes["token in move"][2]
    assert said["token in move"][at] == f"{letters[2]} and move is {CORPUS.move_names[codes['move'][2]]}"


def test_each_half_keeps_to_itself_and_no_document_to_its_own() -> None:
    document = np.array([3, 3, 3, 5, 5, 8, 8, 8, 8])
    rng = np.random.default_rng(0)
    assert _taken(AS_IT_IS, document, rng).tolist() == list(range(9))
    assert sorted(_taken(SHUFFLED, document, rng)) == list(range(9))
    taken = _taken(ANOTHER, document, rng)
    place, starts = np.array([0, 1, 2, 0, 1, 0, 1, 2, 3]), {3: 0, 5: 3, 8: 5}
    lengths = {3: 3, 5: 2, 8: 4}
    givers = {}
    for row, whose in enumerate(document[taken]):
        assert givers.setdefault(document[row], whose) == whose != document[row]
        assert taken[row] - starts[whose] == place[row] % lengths[whose]
    assert sorted(givers.values()) == [3, 5, 8]


def test_few_latents_are_drawn_by_seed(kinds: list[RuleKind]) -> None:
    noise = np.random.default_rng(2).random((CORPUS.n_tokens, 30)) < 0.1
    noise[:, 0] = CORPUS.position_of == 40  # no document is as long
    noise[:, 1] = True  # always active: nothing to tell
    sae, batch = reader(list(noise.T))
    one, again, other = (judge(sae, batch, CORPUS, kinds, latents=10, seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert not one["latent"].equals(other["latent"])
    assert len(one) == 10 * len(FIRING) and one["latent"].between(2, 29).all()


def test_the_mean_over_latents() -> None:
    table = pd.DataFrame({"firing": ["a", "a", "b", "b"], "detection": [0.5, 1.0, 0.5, 0.5]})
    found = detection({"x": table})
    assert found["detection"].tolist() == [0.75, 0.5]
    assert found[["low", "high"]].to_numpy().tolist() == [[0.5, 1.0], [0.5, 0.5]]
    assert found["latents"].tolist() == [2, 2]


def made(true: list[float], control: list[float]) -> pd.DataFrame:
    """A table of latents' detection; shuffled firing, which no difference asks for, is told perfectly."""
    n = len(true)
    return pd.DataFrame(
        {
            "firing": [AS_IT_IS] * n + [ANOTHER] * n + [SHUFFLED] * n,
            "latent": [*range(n), *reversed(range(n)), *range(n)],
            "detection": [*true, *reversed(control), *[1.0] * n],
        }
    )


def test_differences_between_dictionaries() -> None:
    judged = {
        "perfect": made([1.0] * 3, [0.5] * 3),
        "floor": made([0.5] * 2, [0.5] * 2),
        "places": made([0.6, 0.8, 1.0, 0.7], [0.6, 0.8, 1.0, 0.7]),
        "lifted": made([0.75, 0.9, 1.0], [0.5, 0.65, 0.75]),
    }
    assert excess_difference(judged, "perfect", "perfect") == Interval(0.0, 0.0, 0.0, 6)
    assert excess_difference(judged, "perfect", "floor") == Interval(0.5, 0.5, 0.5, 5)
    assert excess_difference(judged, "floor", "perfect") == Interval(-0.5, -0.5, -0.5, 5)
    # all that "places" detects, another document's firing has too; "lifted" has 1/4 more, latent by latent
    assert excess_difference(judged, "places", "floor") == Interval(0.0, 0.0, 0.0, 6)
    found = excess_difference(judged, "lifted", "places")
    assert (found.estimate, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    for names in (("nobody", "floor"), ("floor", "nobody")):
        with pytest.raises(UserError, match="'nobody' was not judged: choose among perfect, floor"):
            excess_difference(judged, *names)


def test_differences_of_latents_that_are_judged(kinds: list[RuleKind]) -> None:
    rules = [of_kind(kinds, "move").codes == i for i in range(3)]
    noise = np.random.default_rng(1).random((CORPUS.n_tokens, 20)) < 0.1
    judged = {
        name: judge(*reader(list(columns)), CORPUS, kinds) for name, columns in (("r", rules), ("n", noise.T))
    }
    means = detection(judged).set_index(["dictionary", "firing"])["detection"]
    found = excess_difference(judged, "r", "n")
    own, control = (means["r", firing] - means["n", firing] for firing in (AS_IT_IS, ANOTHER))
    assert found.estimate == pytest.approx(own - control)
    assert len(excess(judged, "n")) == 20 and found.n == 23
    # latents of either are drawn on their own, so those that vary are not sure to be like themselves
    itself = excess_difference(judged, "n", "n")
    assert itself.estimate == 0 and itself.low < 0 < itself.high


def test_what_cannot_be_judged_is_said(kinds: list[RuleKind]) -> None:
    sae, batch = reader([np.zeros(CORPUS.n_tokens, dtype=bool)])
    with pytest.raises(UserError, match=f"No latent is active on {MINIMUM} tokens"):
        judge(sae, batch, CORPUS, kinds)
    one = ActivationBatch(torch.ones(3, 1), torch.arange(1, 4))
    with pytest.raises(UserError, match="give two"):
        judge(sae, one, CORPUS, kinds)
    with pytest.raises(UserError, match="no styles"):
        rule_kinds(replace(CORPUS, styles=None), Letters())
