"""A real single-model engine as a child process: the embedded one, or a llama-server binary."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from olol_tui.fleet.snapshot import Device, Engine, EngineKind, Loaded, Model, Node
from tests.at_hand import LLAMA_SERVER, NO_LLAMA_SERVER, has, smollm2

MODEL = "smollm2:135m"
CONTEXT = 2048
_TEMPLATE = Path(__file__).parents[1] / "unit/gateway_dialects/recorded/tools.jinja"
"""The model's own knows no tools."""
_START_S = 90.0
_EMBEDDED = "import sys; from olol_tui.agent.engines.embedded import main; main(sys.argv[1:])"


def _command(kind: EngineKind, port: int) -> list[str]:
    model = str(smollm2())
    if kind == "embedded":
        if not has("xllamacpp"):
            pytest.skip("xllamacpp is not installed")
        argv = [sys.executable, "-c", _EMBEDDED, "--model", model, "--port", str(port)]
        argv += ["--ctx", str(CONTEXT), "--alias", MODEL]
        return [*argv, "--chat-template", _TEMPLATE.read_text()]
    if not LLAMA_SERVER:
        pytest.skip(NO_LLAMA_SERVER)
    argv = [
        LLAMA_SERVER,
        "-m",
        model,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "-c",
        str(CONTEXT),
    ]
    argv += ["-np", "1", "--jinja", "--embeddings", "--pooling", "mean", "-ub", str(CONTEXT)]
    argv += ["--alias", MODEL, "--no-webui", "-ngl", "0"]
    return [*argv, "--chat-template-file", str(_TEMPLATE)]


@contextlib.contextmanager
def runner(kind: EngineKind) -> Iterator[Node]:
    """A node with one such engine that answers; the engine is killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        _command(kind, port),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_S
        with httpx.Client(trust_env=False) as client:
            while not _healthy(client, address):
                assert process.poll() is None, "the engine did not start"
                assert time.monotonic() < deadline, "the engine does not get ready"
                time.sleep(0.1)
        yield _node(kind, address)
    finally:
        process.kill()
        process.wait()


def _healthy(client: httpx.Client, address: str) -> bool:
    try:
        return client.get(f"http://{address}/health").status_code == 200
    except httpx.TransportError:
        return False


def _node(kind: EngineKind, address: str) -> Node:
    return Node(
        name="real",
        state="ready",
        devices=(Device("cpu", 0, "CPU", "cpu"),),
        engines=(
            Engine(
                id=f"real/{kind}-cpu-smollm2-135m",
                node="real",
                kind=kind,
                state="ready",
                devices=("cpu",),
                address=address,
                pid=1,
                model=MODEL,
                loaded=(Loaded(MODEL, size_bytes=98_362_432, context_length=CONTEXT),),
            ),
        ),
        library=(
            Model(MODEL, digest="sha256:" + "0" * 64, size_bytes=98_362_432, path=str(smollm2())),
        ),
        runner="embedded" if kind == "embedded" else "llama-server",
    )
