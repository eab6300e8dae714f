"""A plain `ollama serve` with a store and a home of its own, where Ollama is installed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

_START_S = 60.0
CONTEXT = 4096
"""As the agent starts its engines."""


@dataclass(frozen=True)
class Ollama:
    url: str
    store: Path
    home: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def create(self, name: str, gguf: Path, **more: Any) -> None:
        create(self.url, name, gguf, **more)


def program() -> str:
    found = shutil.which("ollama")
    if found is None:
        pytest.skip("no ollama on PATH")
    return found


@contextlib.contextmanager
def plain_ollama(directory: Path, **env: str) -> Iterator[Ollama]:
    """Ends with all its runners."""
    home, store = directory / "home", directory / "models"
    home.mkdir(parents=True)
    store.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    settings = {
        "HOME": str(home),
        "OLLAMA_HOST": url,
        "OLLAMA_MODELS": str(store),
        "OLLAMA_NO_CLOUD": "1",
        "OLLAMA_CONTEXT_LENGTH": str(CONTEXT),
        "OLLAMA_NUM_PARALLEL": "1",
    }
    with (directory / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [program(), "serve"],
            env={**os.environ, **settings, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait(url, process, directory / "serve.log")
        yield Ollama(url, store, home, process)
    finally:
        # Its own end takes the runners along; the group is for those that it left behind.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def create(url: str, name: str, gguf: Path, **more: Any) -> None:
    """Put a file into the store behind `url`, and make a model of it."""
    data = gguf.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with httpx.Client(base_url=url, timeout=90, trust_env=False) as client:
        client.post(f"/api/blobs/{digest}", content=data).raise_for_status()
        body = {"model": name, "files": {"model.gguf": digest}, "stream": False, **more}
        client.post("/api/create", json=body).raise_for_status()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail("ollama serve did not start:\n" + log.read_text(errors="replace")[-3000:])
        time.sleep(0.05)
