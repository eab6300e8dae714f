"""Hosts without llama.cpp get it from the operator's archive, split over it, and say what fails.

Real llama.cpp, real sshd, real agents. The faults come last: each is told by its name and
leaves nothing running.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from olol_tui.fleet.commands import Provision
from olol_tui.fleet.snapshot import Fleet
from tests.e2e.cluster import Operator, operator
from tests.e2e.product import BOUND_S, Product, console, kill_on
from tests.e2e.split_cluster import (
    LLAMA_SERVER,
    MODEL,
    ask,
    gguf,
    helper,
    is_ready,
    needs_llama,
    question,
    split_operator,
    the_split,
    unsplit_reply,
)
from tests.lab import Host, Lab

pytestmark = [needs_llama, pytest.mark.llama_server, pytest.mark.timeout(300)]

LIMIT = "150MiB"
"""Of each host: both together hold the model."""
NODE = f"""
engine = "llama-server"
num_ctx = 512
models_dir = "/opt/models"
vram_limit = "{LIMIT}"
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model by several names: a split that failed is not tried again for a while."""
    models = tmp_path_factory.mktemp("models")
    for name in (gguf().name, "other.gguf", "gone.gguf", "left.gguf"):
        shutil.copy(gguf(), models / name)
    models.chmod(0o755)  # another user reads it there
    return models


@pytest.fixture(scope="module")
def product(
    lab_machine: None, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Product]:
    """Two hosts with the model and without any llama.cpp, provisioned, serving."""
    share = {"/opt/models": models}
    with Lab(2, share=share, disk="192m") as lab:
        text = "\n".join(f"[nodes.{name}]{NODE}" for name in lab.hosts)
        with console(lab, tmp_path_factory.mktemp("brought"), text) as one:
            said = one.provision()
            assert said.count("– llama    no llama.cpp there, which splits need") == 2, said
            one.start()
            yield one


def packed(folder: Path) -> str:
    """An archive of the real programs, as an operator packs them."""
    folder.mkdir()
    path = folder / "llama.tar.gz"
    programs = Path(LLAMA_SERVER).parent
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name in ("llama-server", "ggml-rpc-server"):
            tar.add(programs / name, f"build/bin/{name}")
        for library in programs.glob("*.so*"):
            tar.add(library, f"build/bin/{library.name}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "sha256sum.txt").write_text(f"{digest}  {path.name}\n")
    return str(path)


def llama_processes(host: Host) -> list[str]:
    words = ("llama-server", "rpc-server")
    return [p.command for p in host.processes() if any(word in p.command for word in words)]


async def given_back(product: Product, ops: Operator) -> None:
    """Nothing of a split is shown, and nothing of it runs."""
    await ops.until(lambda f: not any(n.helpers or n.engines for n in f.nodes))
    for host in product.lab.hosts.values():
        deadline_s = time.monotonic() + BOUND_S
        while (left := llama_processes(host)) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.1)
        assert not left, left


@asynccontextmanager
async def without_a_split(product: Product) -> AsyncIterator[tuple[Operator, httpx.AsyncClient]]:
    async with split_operator(product) as (ops, http):
        await http.post("/api/generate", json={"model": MODEL, "keep_alive": 0})
        await ops.until(lambda f: all(split.state == "failed" for split in f.splits))
        await given_back(product, ops)
        yield ops, http


async def ask_for(http: httpx.AsyncClient, model: str) -> httpx.Response:
    return await http.post("/api/chat", json={**question(2), "model": model})


async def test_bare_hosts_say_what_they_lack_get_it_and_split(
    product: Product, tmp_path: Path
) -> None:
    async with operator(product.state_dir) as ops:
        fleet = await ops.until(
            lambda f: all("llama-server was not found" in n.error for n in f.nodes)
        )
        assert all("llama_archive" in node.error for node in fleet.nodes)
        file = product.state_dir / "cluster.toml"
        archive = await asyncio.to_thread(packed, tmp_path / "dist")
        file.write_text(f'{file.read_text()}\n[engines]\nllama_archive = "{archive}"\n')
        os.kill(product.instance.process.pid, signal.SIGHUP)
        while "is taken up" not in product.instance.log:
            await asyncio.sleep(0.05)
        done = await asyncio.gather(*(ops.do(Provision(name)) for name in product.lab.hosts))
        assert all("changed: llama" in one.message for one in done), done
        await ops.until(lambda f: all(n.heads and n.lends and not n.error for n in f.nodes))
        again = await asyncio.gather(*(ops.do(Provision(name)) for name in product.lab.hosts))
        assert all("nothing had to be changed" in one.message for one in again), again
    async with split_operator(product) as (ops, http):
        reply = await ask(http)
        assert reply.status_code == 200, reply.text
        assert reply.json()["message"]["content"] == await asyncio.to_thread(unsplit_reply)
        split = the_split(await ops.until(is_ready))
        assert split is not None and {part.node for part in split.parts} == set(product.lab.hosts)
        # All of it runs from the user's own directory.
        for host in product.lab.hosts.values():
            found = llama_processes(host)
            assert found and all(".local/share/olol-agent/state/" in one for one in found), found
        versions = {helper(ops, part.engine).version for part in split.parts}
        assert len(versions) == 1, versions


async def test_a_port_that_is_taken_meanwhile_is_left_to_who_has_it(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        split = the_split(await ops.until(is_ready))
        assert split is not None
        part = next(p for p in split.parts if p.road == "ssh")
        worker, host = helper(ops, part.engine), product.lab.hosts[part.node]
        port = int(worker.address.rpartition(":")[2])
        code = (
            "import socket, time\n"
            "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
            "while True:\n"
            f"  try: s.bind(('127.0.0.1', {port})); break\n"
            "  except OSError: time.sleep(0.002)\n"
            "s.listen(); print('taken', flush=True); s.accept(); print('spoken to', flush=True)\n"
        )
        squatter = await asyncio.to_thread(
            host.spawn, ["python3", "-c", code], stdout=subprocess.PIPE
        )
        try:
            kill_on(host, [worker.pid])
            assert squatter.stdout is not None
            assert await asyncio.to_thread(squatter.stdout.readline) == b"taken\n"
            fleet = await ops.until(
                lambda f: is_ready(f) and helper(ops, part.engine).address != worker.address
            )
            split = the_split(fleet)
            assert split is not None and split.restarts == 1
            assert (await ask(http, 2)).status_code == 200
            assert squatter.poll() is None
        finally:
            squatter.kill()
            rest, _ = await asyncio.to_thread(squatter.communicate)
        assert not rest, "it was spoken to"


async def test_a_worker_of_another_build_is_refused_by_both_their_names(product: Product) -> None:
    host = product.lab.hosts["h2"]
    program = "~/.local/share/olol-agent/state/*/llama/bin/llama-server"
    other = "0.6.0-dev (build 4711, commit other)"
    wrapper = (
        f'#!/bin/sh\\n[ "$1" != --version ] || exec echo "version: {other}"\\n'
        'exec "$(dirname "$0")/llama-server.real" "$@"\\n'
    )
    swap = f"""cd $(dirname {program}) && mv llama-server llama-server.real &&
        printf '{wrapper}' > llama-server && chmod +x llama-server"""
    host.exec(swap)
    try:
        async with without_a_split(product) as (ops, http):
            reply = await ask_for(http, "other")
            assert reply.status_code == 500, reply.text
            assert "different builds of llama.cpp" in reply.json()["error"]
            assert "h1/" in reply.json()["error"] and f"{other}" in reply.json()["error"]
            await given_back(product, ops)
    finally:
        host.exec(f"cd $(dirname {program}) && mv llama-server.real llama-server")


async def test_a_model_whose_file_is_gone_from_the_head_is_named(
    product: Product, models: Path
) -> None:
    async with without_a_split(product) as (ops, http):
        await asyncio.to_thread((models / "gone.gguf").unlink)
        reply = await ask_for(http, "gone")
        assert reply.status_code in (404, 500), reply.text
        assert "gone" in reply.json()["error"], reply.text
        await given_back(product, ops)


async def test_a_node_that_leaves_while_it_loads_is_named_and_nothing_stays(
    product: Product,
) -> None:
    def starts(fleet: Fleet) -> bool:
        return any(node.helpers for node in fleet.nodes)

    async with without_a_split(product) as (ops, http):
        asking = asyncio.create_task(ask_for(http, "left"))
        await ops.until(starts)
        split = ops.fleet.split("split/left:latest")
        assert split is not None and split.state in ("starting", "loading", "planning"), split
        lost = next(part.node for part in split.parts if part.node != split.node)
        left = next(name for name in product.lab.hosts if name != lost)
        await asyncio.to_thread(product.lab.hosts[lost].kill)
        try:
            reply = await asyncio.wait_for(asking, 2 * BOUND_S)
            assert reply.status_code in (500, 503), reply.text
            assert f"{lost} is lost while it was loading" in reply.json()["error"], reply.text
            assert "fits nowhere" in reply.json()["error"]
            await ops.until(lambda _: not ops.node(left).helpers and not ops.node(left).engines)
            assert not llama_processes(product.lab.hosts[left])
        finally:
            await asyncio.to_thread(product.lab.hosts[lost].boot)
        await ops.until(lambda f: all(node.state == "ready" for node in f.nodes))
        assert (await ask(http, 2)).status_code == 200


async def test_an_uninstall_takes_it_along(product: Product) -> None:
    await asyncio.to_thread(product.instance.end)
    done = await asyncio.to_thread(product.instance.run, "node", "uninstall", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    for host in product.lab.hosts.values():
        assert not llama_processes(host)
        assert host.exec("ls -d ~/.local/share/olol-agent", check=False).returncode != 0
