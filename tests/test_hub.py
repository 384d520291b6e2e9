"""What is fetched from the hub, how often, and what a user is told when it cannot be."""

from pathlib import Path

import local_hub
import miniatures
import pytest
from local_hub import LocalHub

from reasoning_features import hub as room
from reasoning_features.errors import MissingArtefact, UserError
from reasoning_features.hub import Reference, is_local, known_sha, local_copy, parse, sizes


@pytest.fixture(autouse=True)
def unannounced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_announced", set())


def test_references(repository: Path) -> None:
    assert parse("a/b") == Reference("a/b")
    assert parse("a/b.c-1@v1:blocks.2.hook") == Reference("a/b.c-1", "v1", "blocks.2.hook")
    assert parse("a/b:x/y") == Reference("a/b", None, "x/y")
    assert parse(f"a/b@{'0' * 40}").pinned and not parse("a/b@main").pinned
    for wrong in ("b", "a/b/c", "a/b@", "a/b:", "https://huggingface.co/a/b"):
        with pytest.raises(UserError, match="is no reference to the hub: write owner/name"):
            parse(wrong)
    # a folder is not looked for on the hub
    assert not is_local("owner/name") and not is_local("owner/name@v1:folder")
    assert all(map(is_local, ("data/mine", "./a/b", "/somewhere", "nothing", "a/b/c")))
    (repository / "owner" / "name").mkdir(parents=True)
    assert is_local("owner/name")


def test_a_model_is_fetched_once_and_its_commit_told(hub, capsys):
    sha = hub.sha(miniatures.LLAMA)
    assert known_sha(miniatures.LLAMA) is None
    size, missing = sizes(miniatures.LLAMA)
    assert size == missing > 0 and not list(hub.home.rglob("*.safetensors"))
    copy = local_copy(miniatures.LLAMA)
    assert sha == known_sha(miniatures.LLAMA) and sizes(miniatures.LLAMA) == (size, 0)
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*")}
    assert {"config.json", "tokenizer.json", "model-00001-of-00003.safetensors"} <= names
    assert not {"pytorch_model.bin", "original", "README.md"} & names
    assert f"main is now {sha}; pin it as {miniatures.LLAMA}@{sha}" in capsys.readouterr().err
    fetched = hub.asked(f"GET /{miniatures.LLAMA}/resolve")
    assert local_copy(miniatures.LLAMA) == copy
    assert hub.asked(f"GET /{miniatures.LLAMA}/resolve") == fetched
    assert "pin it" not in capsys.readouterr().err


def test_a_pinned_commit_that_is_held_asks_no_network(hub: LocalHub) -> None:
    reference = f"{miniatures.LLAMA_SAE}@{hub.sha(miniatures.LLAMA_SAE)}:{miniatures.HOOK}"
    copy = local_copy(reference)
    assert sorted(path.name for path in copy.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    asked = hub.asked("")
    assert local_copy(reference) == copy and sizes(reference)[1] == 0
    with local_hub.using(hub, offline=True):
        assert local_copy(reference) == copy
    assert hub.asked("") == asked


GATED = r"is gated: accept its terms at http.*/mini/R1.*, and log in with `hf auth"
REFUSED = r"The hub refuses the token .*: log in with `hf auth login`, or set HF_TOKEN"


@pytest.mark.parametrize(
    ("reference", "trouble", "message"),
    [(miniatures.LLAMA, "gated", GATED), (miniatures.LLAMA, "a wrong token", REFUSED),
     (f"{miniatures.LLAMA}@v9", "", r"has no revision v9: see http"),
     ("mini/nothing", "", r"There is no model mini/nothing on the hub, or it is private"),
     (f"{miniatures.LLAMA_SAE}:blocks.99", "", r"lacks the folder blocks\.99, here or on the hub")],
)  # fmt: skip
def test_one_sentence_each(hub: LocalHub, reference: str, trouble: str, message: str) -> None:
    if trouble == "gated":
        hub.gated.add(miniatures.LLAMA)
    elif trouble:
        hub.home.mkdir(parents=True, exist_ok=True)
        (hub.home / "token").write_text("hf_old")
        hub.refused.add("hf_old")
    with pytest.raises(UserError, match=message) as raised:
        local_copy(reference)
    assert "\n" not in str(raised.value)
    assert not list(hub.home.rglob("*.safetensors"))


def test_without_network(hub: LocalHub) -> None:
    copy = local_copy(miniatures.QWEN)
    nowhere = LocalHub(hub.root, hub.home, url="http://127.0.0.1:9")
    for offline, why in ((True, "HF_HUB_OFFLINE is set: run"), (False, "and the hub cannot be reached: run")):
        with local_hub.using(nowhere, offline):
            assert local_copy(miniatures.QWEN) == copy
            with pytest.raises(MissingArtefact, match=why):
                local_copy(miniatures.LLAMA)
