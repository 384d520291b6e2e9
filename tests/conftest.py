"""What tests share: a tiny model and corpus, and a repository of its own for tests of the house."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import local_hub
import matplotlib.pyplot as plt
import miniatures
import pytest
import torch
from local_hub import LocalHub
from stub_notebooks import write_notebook
from tiny import make_corpus, make_tiny_llama
from transformers import AutoTokenizer

from reasoning_features import paths
from reasoning_features.models.subject import Subject, load_subject
from reasoning_features.organism.language import base_documents
from reasoning_features.organism.training import train_tokenizer
from reasoning_features.runs.provenance import Run, begin
from reasoning_features.settings import Settings, load_settings
from reasoning_features.text import real_text
from reasoning_features.text.corpus import Corpus
from reasoning_features.unlearning.persons import add_words

SHARED = paths.root().parent / "shared" / "real-text"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers share the cores: threads of one would wait for those of another


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, those of no room before: no worker ends alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, len(item.path.parts)))


@pytest.fixture(autouse=True)
def _closed_figures() -> Iterator[None]:
    """Figures are closed after every test."""
    yield
    plt.close("all")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository, taken for this one's root."""
    (tmp_path / "requirements.lock").write_text("numpy==1\n")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def pinned_files(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned files of real text, where this machine has them."""
    if not os.environ.get(real_text.CACHE):
        if not SHARED.is_dir():
            pytest.skip(f"{real_text.CACHE} names no folder with the pinned files")
        monkeypatch.setenv(real_text.CACHE, str(SHARED))


@pytest.fixture
def run(repository: Path) -> Run:
    """A notebook's run in an empty repository."""
    write_notebook(repository, "01_one")
    return begin("01_one", load_settings("organism"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny random Llama with its tokenizer."""
    return make_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="session")
def tiny_subject(tiny_llama: Path) -> Subject:
    """The tiny Llama read after its second block."""
    return load_subject(str(tiny_llama), 1)


@pytest.fixture
def tiny_corpus() -> Corpus:
    """Twelve random documents."""
    return make_corpus()


@pytest.fixture(scope="session")
def organism_tokenizer() -> Any:
    """A tokenizer of the organism's language, trained on few documents."""
    return train_tokenizer(document.text for document in base_documents(500, 0))


@pytest.fixture(scope="session")
def organism_subject() -> tuple[Settings, Subject]:
    """The organism's settings, and its coupled model."""
    settings = load_settings("organism")
    return settings, load_subject(settings.subject, settings.layer)


@pytest.fixture(scope="session")
def persons_tokenizer() -> Any:
    """The organism's tokenizer with the words of the persons'; not to be changed."""
    tokenizer = AutoTokenizer.from_pretrained(paths.root() / "data/organism/models/coupled-0")
    add_words(tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def miniature_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with miniatures of the published models, autoencoders and data sets; not to be changed."""
    return miniatures.build(tmp_path_factory.mktemp("miniatures"))


@pytest.fixture(scope="session")
def tokenizer(miniature_root: Path) -> Any:
    """The tokenizer of the miniature Llama; not to be changed."""
    return AutoTokenizer.from_pretrained(miniature_root / "models" / miniatures.LLAMA)


@pytest.fixture
def hub(miniature_root: Path, tmp_path: Path) -> Iterator[LocalHub]:
    """A hub of the miniatures, used by this process with an empty cache."""
    with local_hub.serve(miniature_root, tmp_path / "hub-home") as served, local_hub.using(served):
        yield served
