"""A hub on loopback with miniatures of CLEAR and of Qwen2-VL."""

from collections.abc import Iterator

import clear_miniature
import local_hub
import pytest
from local_hub import LocalHub


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A hub with the model and the data set, used by this process."""
    root = tmp_path_factory.mktemp("clear")
    clear_miniature.build(root)
    with local_hub.serve(root, root / "home") as hub, local_hub.using(hub):
        yield hub
