"""Work in shards: made once, whole or absent, merged in order; a Ray cluster gives the same bytes."""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import WIDTH, signed_identity

from reasoning_features.errors import UserError
from reasoning_features.models.conditions import Condition
from reasoning_features.models.subject import Subject
from reasoning_features.residual_stream.activations import stream
from reasoning_features.runs import shards
from reasoning_features.runs.shards import ENGINE, Work, drop_others, map_shards, shard_file
from reasoning_features.scoring import feature_statistics as passes
from reasoning_features.scoring.feature_statistics import SetSums, accumulate
from reasoning_features.steering import answering
from reasoning_features.steering.questions import Questions
from reasoning_features.steering.token_rules import ban
from reasoning_features.text.corpus import Corpus
from reasoning_features.text.words import ALL, TokenSets


def squares(made, shard):
    made.append(shard)
    return {"square": np.array([shard**2]), "text": np.arange(shard, dtype=np.float32)}


@pytest.fixture
def made():
    return []


@pytest.fixture
def work(made):
    return Work("squares", partial(squares, made), 5, {"seed": 1})


def values(work, folder):
    return [int(arrays["square"][0]) for arrays in map_shards(work, folder)]


def test_shards_are_made_once_and_given_in_their_order(work, made, tmp_path, monkeypatch):
    assert values(work, tmp_path) == [0, 1, 4, 9, 16] == values(work, tmp_path)
    assert made == [0, 1, 2, 3, 4]
    other = Work("squares", work.compute, 5, {"seed": 2})
    assert other.digest != work.digest and values(other, tmp_path)[-1] == 16
    assert len(made) == 10
    drop_others(other, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [other.folder(tmp_path).name]
    monkeypatch.setattr(shards, "imported_files", lambda code: {"changed": "x"})
    assert Work("squares", work.compute, 5, {"seed": 2}).digest != other.digest  # the code counts


def test_an_interrupted_map_goes_on_and_gives_the_same_bytes(work, made, tmp_path):
    def broken(shard):
        if shard == 3:
            raise KeyboardInterrupt
        return work.compute(shard)

    cut = Work("squares", broken, 5, work.key)
    with pytest.raises(KeyboardInterrupt):
        values(cut, tmp_path)
    assert values(work, tmp_path) == [0, 1, 4, 9, 16] and made == [0, 1, 2, 3, 4]
    values(work, tmp_path / "whole")
    assert contents(work.folder(tmp_path)) == contents(work.folder(tmp_path / "whole"))


def test_a_damaged_shard_is_named_and_made_again(work, made, tmp_path, capsys):
    other = Work("squares", work.compute, 5, {"seed": 2})
    for each in (work, other):
        values(each, tmp_path)
    file, another = (shard_file(each, tmp_path, 2) for each in (work, other))
    content = file.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for damaged in (content[:-3], flipped, b"", another.read_bytes()):  # the last is of other work
        file.write_bytes(damaged)
        made.clear()
        assert values(work, tmp_path) == [0, 1, 4, 9, 16] and made == [2]
        assert "00002.safetensors is damaged: it is made again." in capsys.readouterr().err


@pytest.mark.parametrize("blocks", [None, 3])
def test_a_pass_in_shards_sums_what_one_pass_does(tiny_subject, tiny_corpus, tmp_path, blocks):
    sets = TokenSets.of({ALL: ~tiny_corpus.special, "odd": np.arange(tiny_corpus.n_tokens) % 2 == 1})
    sae = signed_identity(tiny_subject.d_model)
    groups = tiny_corpus.document_of % (blocks or 1)
    found = {}
    for kept in (None, tmp_path):
        sums = SetSums(sets, groups, blocks or 1)
        given = tiny_subject, sae, tiny_corpus, {"sums": sums}, 64, {"sets": sets.digest}
        passes.one_pass_in_shards("test", *given, kept, blocks, tokens=50)
        found[kept] = sums.result()
    assert len(list(tmp_path.glob("test-*/*.safetensors"))) >= 2
    np.testing.assert_array_equal(found[None].sums, found[tmp_path].sums)
    whole = accumulate(stream(tiny_subject, tiny_corpus, 64), sae, sets)
    total = found[None].total()
    np.testing.assert_allclose(total.sums, whole.sums, rtol=1e-6)
    np.testing.assert_array_equal(total.counts, whole.counts)


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one thread, which Ray does not end where memory is short."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112 (as Ray spells it)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    places = os.pathsep.join(str(Path(__file__).parents[n]) for n in (0, 1))  # of the functions below
    started = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 * 2**20}
    ray.init(num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": places}}, **started)
    yield ray
    ray.shutdown()
    torch.set_num_threads(threads)


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*.*") if path.suffix in (".safetensors", ".npz")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def score(subject: Subject, corpus: Corpus, folder: Path) -> None:
    sets = TokenSets.of({ALL: ~corpus.special})
    sums = SetSums(sets, corpus.document_of % 6, 6)
    given = subject, signed_identity(WIDTH), corpus, {"sums": sums}, 64, {"sets": sets.digest}
    passes.one_pass_in_shards("scores", *given, folder / "shards", 6, tokens=60)
    np.save(folder / "sums.npy", sums.result().sums)


def grade(numbers, written):
    return pd.DataFrame({"asked": numbers})


def answer(subject: Subject, corpus: Corpus, folder: Path) -> None:
    torch.manual_seed(0)
    conditions = [Condition(f"c{i}", i, 1.0, vector=20 * torch.randn(WIDTH)) for i in range(3)]
    conditions += [Condition("clamped", 3, 0.5, clamp=30.0)]
    conditions += [Condition("ban", rule=ban(subject.tokenizer, ["wait"], corpus))]
    questions = Questions([[0, 5, 6], [0, 9], [0, 7, 7]], ["a"] * 3, 1, 8, (), grade)
    given = {"sae": signed_identity(WIDTH), "progress": None, "kept": folder / "answers"}
    written = answering.answers(subject, questions, conditions, 3, **given)["tokens"]
    assert len(written) == 18 and len(set(written)) > 5
    np.savez(folder / "answers.npz", *map(np.array, written))


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("work", [score, answer])
def test_a_cluster_gives_the_same_bytes_as_one_process(
    cluster, tiny_subject, tiny_corpus, tmp_path, monkeypatch, work
):
    monkeypatch.setattr(answering, "ROWS_A_PART", 3)
    for engine in ("", "ray"):
        monkeypatch.setenv(ENGINE, engine)
        folder = tmp_path / (engine or "one process")
        folder.mkdir()
        work(tiny_subject, tiny_corpus, folder)
    one, many = (contents(tmp_path / name) for name in ("one process", "ray"))
    assert one == many and len(one) >= 1


def killed_once(log: Path, shard: int) -> dict[str, np.ndarray]:
    """A shard that writes down its begin; number 2 kills its worker the first time."""
    with log.open("a") as file:
        file.write(f"{shard} ")
    if shard == 2 and log.read_text().split().count("2") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": np.array([shard * 3.5])}


@pytest.mark.slow
@pytest.mark.cluster
def test_a_worker_that_is_killed_costs_its_own_shard_and_no_other(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv(ENGINE, "ray")
    work = Work("killed", partial(killed_once, tmp_path / "log"), 6, {})
    found = [float(arrays["value"][0]) for arrays in map_shards(work, tmp_path)]
    assert found == [3.5 * shard for shard in range(6)]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2", "2", "3", "4", "5"]


def fail(shard: int) -> dict[str, np.ndarray]:
    raise UserError("Alpha is too large: give less.")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    ("device", "told"),
    [
        ("cpu", r"^Alpha is too large: give less\.$"),
        ("cuda", "A shard takes 1 GPU and the largest node of the Ray cluster has 0"),  # is not waited for
    ],
)
def test_an_error_is_told_as_it_is(cluster, tmp_path, monkeypatch, device, told):
    monkeypatch.setenv(ENGINE, "ray")
    with pytest.raises(UserError, match=told):
        list(map_shards(Work("fails", fail, 2, {}, device), tmp_path))
