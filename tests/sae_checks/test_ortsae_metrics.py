"""Neighbours, composition, clusters, uniqueness and absorption of dictionaries whose answers are known."""

import numpy as np
import pytest
import torch
from sae_lens import StandardSAE
from scipy.stats import norm
from tiny import relu_sae, signed_identity

from reasoning_features import paths
from reasoning_features.dictionaries.autoencoder import added_directions
from reasoning_features.errors import UserError
from reasoning_features.models.subject import load_tokenizer
from reasoning_features.organism.language import MATCHED_CONTROLS, OPENERS
from reasoning_features.organism.training import LARGEST_NUMBER
from reasoning_features.sae_checks import ortsae_metrics as ortsae
from reasoning_features.sae_checks.ortsae_metrics import LabelledTokens, Probe

SCALES = torch.tensor([0.5, 3.0, 1.0, 20.0])[:, None]


def test_neighbours_are_signed_and_by_hand():
    # an opposite direction is no neighbour: the nearest of (1, 0) is (0.6, 0.8) at cosine 0.6
    decoder = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.6, 0.8]])
    np.testing.assert_allclose(ortsae.nearest_cosines(decoder), [0.6, -0.6, 0.6])
    assert ortsae.nearest_cosines(SCALES * torch.eye(4)).tolist() == [0.0] * 4
    np.testing.assert_allclose(ortsae.nearest_cosines(torch.cat([torch.eye(4), SCALES * torch.eye(4)])), 1.0)
    assert ortsae.nearest_cosines(torch.tensor([[0.0, 0.0], [1.0, 0.0]])).tolist() == [0, 0]  # a dead one


def test_rows_of_few_atoms_are_explained_and_random_ones_are_not(monkeypatch):
    monkeypatch.setattr(ortsae, "STEPS", 100)  # enough for rows of few atoms
    monkeypatch.setattr(ortsae, "LEARNING_RATE", 1e-2)
    # each the sum of two of 16 orthogonal atoms
    pairs = torch.rand(128, 16, generator=torch.Generator().manual_seed(0)).topk(2).indices
    rows = torch.eye(64)[pairs].sum(1) / 2**0.5
    composed = ortsae.composition(8 * rows, seeds=(0, 1))
    assert composed.low > 0.9 and composed.low <= composed.estimate <= composed.high and composed.n == 128
    random = ortsae.composition(ortsae.isotropic_directions(128, 64, seed=0), seeds=(0,))
    assert random.high < composed.low
    one, again = ortsae.meta_errors(rows, 1), ortsae.meta_errors(rows, 1)
    assert np.array_equal(one, again) and not np.array_equal(one, ortsae.meta_errors(rows, 0))


def test_explained_variance_and_its_interval_by_hand():
    # deviations 1 and 3; errors 0.5 and 0.3 in one seed, nothing in the other: 0.8 and 1
    found = ortsae.explained(np.array([[0.5, 0.3], [0.0, 0.0]]), np.array([1.0, 3.0]))
    assert found.estimate == pytest.approx(0.9)
    # the worst resample has the bad seed and the first row alone, the best the good seed
    assert found.low == pytest.approx(0.5) and found.high == pytest.approx(1.0)


def test_clustering_by_hand(monkeypatch):
    monkeypatch.setattr(ortsae, "THRESHOLDS", (0.4, 0.9))
    # three directions at 60° of one another, and a fourth at 60° of one of them alone
    corner = [[1.0, 0, 0, 0], [0.5, 0.75**0.5, 0, 0], [0.5, 12**-0.5, (2 / 3) ** 0.5, 0]]
    decoder = torch.tensor([*corner, [0.5, -(12**-0.5), -(6**-0.5), 0.5**0.5]])
    found = ortsae.clustering(decoder).set_index("threshold")["estimate"]
    # the first has three neighbours of which one pair is joined, the second and third a closed triangle
    assert found.tolist() == pytest.approx([(1 / 3 + 1 + 1 + 0) / 4, 0])


def test_as_rare_against_closed_forms():
    # on the sphere a cosine is uniform, P(cos ≥ ½) = ¼; on the circle P(cos ≥ c) = arccos(c) / π
    assert ortsae.as_rare(0.5, 2, 3) == pytest.approx(np.cos(np.pi / 4))
    assert ortsae.as_rare(0.2, 2304, 2304) == pytest.approx(0.2)
    # in many dimensions cosines are nearly normal with variance 1/d
    many = ortsae.as_rare(0.02, 40_000, 10_000)
    assert many == pytest.approx(norm.isf(norm.sf(0.02 * 100)) / 200, rel=1e-3)


def test_unique_latents_are_those_that_the_other_lacks():
    axes = torch.eye(64)
    table = ortsae.uniqueness({"all": axes, "half": axes[:32]})
    paper = table[table["threshold"] == "paper"].set_index(["dictionary", "other"])["estimate"]
    assert paper["all", "half"] == 0.5 and paper["half", "all"] == 0
    random = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    found = ortsae.uniqueness({"axes": axes, "random": random}).set_index(["dictionary", "threshold"])
    # what is unique in the paper's width is found beside anything here, and the other way round
    assert found.loc[("axes", "paper"), ["estimate", "random directions"]].max() < 0.1
    assert found.loc[("axes", "as rare"), ["estimate", "random directions"]].min() > 0.99


def test_features_are_chosen_alike_where_they_fire_alike():
    saes = {"one": signed_identity(3), "other": signed_identity(3)}
    residual = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    chosen = {"one": np.array([0, 1]), "other": np.array([1, 2])}
    (row,) = ortsae.chosen_overlap(saes, chosen, residual).to_dict("records")
    assert row["share"] == 0.5 and row["n"] == 2 and row["in the other at all"] == 1


WIDTH, CHILDREN = 16, 4
PARENT = Probe(np.eye(WIDTH)[0], bias=-2.5)


def tokens(seed: int, chances: tuple[float, ...] = (0.25,) * CHILDREN, n: int = 4000) -> LabelledTokens:
    """Half of the tokens are the parent's: 5 along axis 0 and 5 along their child's, axes 1–4. The others are
    5 along one of axes 5–15. Ten tokens make a document.
    """
    rng = np.random.default_rng(seed)
    children = np.where(rng.random(n) < 0.5, rng.choice(CHILDREN, n, p=chances), -1)
    axis = np.where(children >= 0, children + 1, rng.integers(1 + CHILDREN, WIDTH, n))
    residual = rng.normal(0, 0.05, (n, WIDTH))
    residual[np.arange(n), axis] += 5
    residual[children >= 0, 0] += 5
    return LabelledTokens(torch.from_numpy(residual).float(), children, np.arange(n) // 10)


def dictionary(absorbed: tuple[int, ...], off: tuple[int, ...] = ()) -> StandardSAE:
    """A latent an axis; the parent's is silent on absorbed children, whose own latents hold its direction.
    Latents in ``off`` never fire.
    """
    encoder, decoder = torch.eye(WIDTH), torch.eye(WIDTH)
    for child in absorbed:
        encoder[child + 1, 0] = -2.0  # column 0 is the parent's latent
        decoder[child + 1, 0] = 1.0
    encoder[:, list(off)] = 0.0
    return relu_sae(encoder, decoder, torch.full((WIDTH,), -0.5), torch.zeros(WIDTH))


@pytest.mark.parametrize(
    ("children", "off", "share"), [((0, 1, 2, 3), (), 1.0), ((), (), 0.0), ((), (0,), 0.0)]
)
def test_absorbed_children_a_pure_parent_and_a_silent_one_that_nobody_takes_over(children, off, share):
    held, sae = tokens(0), dictionary(children, off)
    held = held.at(held.parent)
    given = sae.encode(held.residual), held.residual, PARENT, added_directions(sae), np.array([0])
    assert ortsae.carried(*given).mean(0).tolist() == [share, share]


def test_rates_are_of_each_child_and_averaged_and_rotation_is_a_floor():
    # the one absorbed child is rare, so that its own latent does not become a main one
    training, test = (tokens(seed, chances=(0.04, 0.32, 0.32, 0.32)) for seed in (1, 2))
    probe, sae = ortsae.parent_probe(training), dictionary(absorbed=(0,))
    assert ortsae.main_latents(sae, training)[0].tolist() == [0]
    found = ortsae.absorption(sae, probe, training, test).set_index("measure")
    np.testing.assert_allclose(found["estimate"], 0.25, atol=0.01)
    assert ((found["low"] <= found["estimate"]) & (found["estimate"] <= found["high"])).all()
    assert (found["rotated"] < 0.2).all() and (found["F1"] > 0.95).all()
    assert (found["children"] == 4).all() and (found["main latents"] == 1).all()
    assert found.loc["absorbed", "tokens"] == test.parent.sum()
    # a parent split among its children has them for main latents
    latents, reached = ortsae.main_latents(dictionary(absorbed=(0, 1, 2, 3)), tokens(3))
    assert sorted(latents.tolist()) == [1, 2, 3, 4] and reached > 0.99


def test_fractions_by_hand():
    # the projection is 5: main latent 0 adds 2 and latent 1 adds 3, then 4 and 1, then 0 and 1 five times
    directions = torch.eye(8)[[0] * 7 + [1]]
    features = torch.tensor([[2.0, 3, 0, 0, 0, 0, 0, 9], [4, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0, 0]])
    residual = 5 * torch.eye(8)[[0] * 3]
    probe = Probe(np.eye(8)[0], bias=0.0)
    found = ortsae.carried(features, residual, probe, directions, np.array([0]))
    # three latents at most; 1 is less than 0.4 of 5
    np.testing.assert_allclose(found, [[0.6, 1], [0, 0], [1, 1]])


def test_the_probe_finds_the_parent_on_other_documents():
    training, test = tokens(4), tokens(5)
    shifted = LabelledTokens(training.residual * 3 + 7, training.children, training.documents)
    for learnt, fresh in ((training, test.residual), (shifted, test.residual * 3 + 7)):
        probe = ortsae.parent_probe(learnt)
        assert np.linalg.norm(probe.direction) == pytest.approx(1) and probe.direction.argmax() == 0
        assert ((probe.score(fresh) > 0) == test.parent).all()


def test_a_child_needs_tokens_and_a_parent_a_latent_that_tells_it():
    with pytest.raises(UserError, match="No child has 20 tokens"):
        ortsae.absorption(dictionary(absorbed=()), PARENT, tokens(7), tokens(8, n=40))
    silent = dictionary(absorbed=(), off=tuple(range(WIDTH)))
    latents, reached = ortsae.main_latents(silent, tokens(9))
    assert len(latents) == 0 and reached == 0
    table = ortsae.absorption(silent, PARENT, tokens(9), tokens(10, n=2000))
    assert (table["main latents"] == 0).all() and (table["estimate"] == 0).all()


def test_macro_mean_counts_children_alike_and_resamples_ways():
    values, children = np.array([[1.0, 1, 1, 0]]), np.array([3, 3, 3, 8])
    assert ortsae.macro_mean(values, children, np.arange(4)).estimate == 0.5
    one = ortsae.macro_mean(values, children, np.zeros(4, dtype=np.int64))
    assert (one.low, one.high, one.n) == (0.5, 0.5, 1)
    # a second way that finds all absorbed: the interval spans both, although there is one document alone
    ways = ortsae.macro_mean(np.concatenate([values, np.ones((1, 4))]), children, np.zeros(4, dtype=np.int64))
    assert (ways.estimate, ways.low, ways.high) == (0.75, 0.5, 1.0)


def test_hierarchies_of_the_organism_give_each_token_one_child():
    tokenizer = load_tokenizer(paths.root() / "data/organism/models/base")
    found = ortsae.organism_hierarchies(tokenizer)
    sizes = {"a number": LARGEST_NUMBER + 1, "an opener": len(OPENERS), "a prefix": 2 * len(MATCHED_CONTROLS)}
    assert {name: len(children) for name, children in found.items()} == sizes
    for children in found.values():
        ids = [token for group in children.values() for token in group]
        assert len(ids) == len(set(ids))
    assert tokenizer.decode(found["a number"]["17"]) == " 17"
    assert tokenizer.decode(found["a prefix"]["hmm"]) == "Hmm"
    assert sorted(tokenizer.decode([i]) for i in found["an opener"]["backtrack"]) == [" return", " undo"]
