"""A hub on loopback, for tests: repositories in a folder, and failures on purpose.

The folder holds ``models/<owner>/<name>/...`` and ``datasets/<owner>/<name>/...``. Each repository has one
commit, whose sha is a digest of its files; it is known as ``main`` and by its sha.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets.config
import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest

KINDS = ("models", "datasets")


@dataclass
class LocalHub:
    """What a hub serves and how it fails; ``requests`` counts them by method and path."""

    root: Path
    home: Path  # the private HF_HOME
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    gated: set[str] = field(default_factory=set)  # "owner/name", which no token may read
    refused: set[str] = field(default_factory=set)  # tokens that are not valid

    def sha(self, repo: str, kind: str = "models") -> str:
        """The repository's commit."""
        digest = hashlib.sha1()
        for path in _files(self.root / kind / repo):
            digest.update(path.as_posix().encode() + (self.root / kind / repo / path).read_bytes())
        return digest.hexdigest()

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a process that uses this hub and no other."""
        unset = {"HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
        inherited = {name: value for name, value in os.environ.items() if name not in unset}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_XET": "1"}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return inherited | own | quiet | more

    def asked(self, part: str) -> int:
        """How many requests had this in their method and path."""
        return sum(n for request, n in self.requests.items() if part in request)


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _oid(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests[f"{self.command} {path}"] += 1
        parts = path.strip("/").removeprefix("api/").split("/")
        kind = parts.pop(0) if parts[0] in KINDS else "models"
        if len(parts) < 2:
            return self._fail(404, "EntryNotFound")
        repo = "/".join(parts[:2])
        verb, wanted, *rest = [*parts[2:], *("revision", "main")[len(parts) - 2 :]]
        folder = self.hub.root / kind / repo
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token in self.hub.refused:
            return self._fail(401, "", "Invalid credentials in Authorization header")
        if not folder.is_dir():
            return self._fail(404 if token else 401, "RepoNotFound")
        sha = self.hub.sha(repo, kind)
        if wanted not in {"main", sha}:
            return self._fail(404, "RevisionNotFound")
        if verb in {"resolve", "auth-check"} and repo in self.hub.gated:
            return self._fail(403 if token else 401, "GatedRepo")
        if verb == "resolve":
            file = folder.joinpath(*rest)
            if not file.is_file():
                return self._fail(404, "EntryNotFound")
            return self._send(200, file.read_bytes(), {"ETag": f'"{_oid(file)}"', "X-Repo-Commit": sha})
        value: Any = {"id": repo, "sha": sha, "private": False, "gated": repo in self.hub.gated}
        if verb == "tree":
            about = [(path.as_posix(), (folder / path).stat().st_size) for path in _files(folder)]
            value = [{"type": "file", "path": p, "size": n, "oid": _oid(folder / p)} for p, n in about]
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_GET

    def _fail(self, status: int, code: str, message: str = "") -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message or code})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def serve(root: Path, home: Path) -> Iterator[LocalHub]:
    """A hub of the repositories under ``root``; processes given its environment cache in ``home``."""
    hub = LocalHub(root, home)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def using(hub: LocalHub, offline: bool = False) -> Iterator[LocalHub]:
    """Within this context this process uses the hub and a cache of its own, or that cache alone."""
    own: dict[str, Any] = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(hub.home),
        "HF_HUB_CACHE": str(hub.home / "hub"),
        "HF_TOKEN_PATH": str(hub.home / "token"),
        "HF_STORED_TOKENS_PATH": str(hub.home / "stored_tokens"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": offline,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment(HF_HUB_OFFLINE=str(int(offline))).items():
            patch.setenv(name, value)
        patch.delenv("HF_TOKEN", raising=False)
        for name, value in own.items():
            patch.setattr(huggingface_hub.constants, name, value)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        patch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", hub.home / "datasets")
        yield hub
