"""Splits where nodes cannot reach each other, and where one that is lost can be replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.cluster import Operator
from tests.e2e.product import Product, told
from tests.e2e.split_cluster import (
    MODEL,
    ask,
    is_ready,
    needs_llama,
    question,
    split_lab,
    split_operator,
    split_product,
    the_split,
    unsplit_reply,
)

pytestmark = [needs_llama, pytest.mark.llama_server, pytest.mark.timeout(300)]

ROOMY = "150MiB"
"""Of each host: two of three hold the model."""


@pytest.fixture(scope="module")
def product(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    place = tmp_path_factory.mktemp("roads")
    with split_lab() as lab, split_product(lab, place, limit=ROOMY) as one:
        yield one


async def test_a_lost_node_is_replaced_by_one_that_is_left(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        fleet = await ops.until(is_ready)
        before = the_split(fleet)
        assert before is not None and len({part.node for part in before.parts}) == 2
        lost = next(part.node for part in before.parts if part.road == "ssh")
        host = product.lab.hosts[lost]
        host.cut("drop")
        began_s = time.monotonic()
        try:
            reply = await ask(http, 4)
            told("node lost: answers from others", time.monotonic() - began_s, 60.0)
            assert reply.status_code == 200, reply.text
            after = the_split(ops.fleet)
            assert after is not None and lost not in {part.node for part in after.parts}
            assert after.restarts == before.restarts + 1
        finally:
            host.heal()
        # The node that is back has nothing of it left to run.
        await ops.until(
            lambda f: (
                all(n.state == "ready" for n in f.nodes)
                and not any(n.helpers for n in f.nodes if n.name == lost)
            )
        )


async def test_nodes_that_cannot_reach_each_other_are_led_through_the_console(
    product: Product,
) -> None:
    async with split_operator(product) as (ops, http):
        await give_back(ops, http)
        hosts = list(product.lab.hosts.values())
        pairs = [(one, other.address) for one in hosts for other in hosts if one is not other]
        for one, address in pairs:
            one.exec(["ip", "route", "add", "unreachable", f"{address}/32"], "root")
        try:
            reply = await ask(http)
            assert reply.status_code == 200, reply.text
            fleet = await ops.until(is_ready)
            split = the_split(fleet)
            assert split is not None and "relay" in {part.road for part in split.parts}
            assert reply.json()["message"]["content"] == await asyncio.to_thread(unsplit_reply)
        finally:
            for one, address in pairs:
                one.exec(["ip", "route", "del", "unreachable", f"{address}/32"], "root")
            await give_back(ops, http)


async def test_a_client_gets_the_context_that_fits(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        for num_ctx in (1024, 8192):
            body = question(4)
            body["options"] = {**body["options"], "num_ctx": num_ctx}  # type: ignore[dict-item]
            reply = await http.post("/api/chat", json=body)
            assert reply.status_code == 200, reply.text
            split = the_split(ops.fleet)
            assert split is not None
            assert split.num_ctx == num_ctx or split.largest_ctx is not None, split
            assert split.num_ctx >= 1024


async def test_an_uninstall_takes_keys_and_caches_along(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        await ops.until(is_ready)
    await asyncio.to_thread(product.instance.end)
    done = await asyncio.to_thread(product.instance.run, "node", "uninstall", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    for host in product.lab.hosts.values():
        assert "olol-mesh" not in host.exec("cat ~/.ssh/authorized_keys").stdout
        assert not [p for p in host.processes() if "rpc-server" in p.command]
        assert host.exec("ls -d ~/.local/share/olol-agent", check=False).returncode != 0


async def give_back(ops: Operator, http: httpx.AsyncClient) -> None:
    """Unload it as any client may; returns when nothing of it runs."""
    await http.post("/api/generate", json={"model": MODEL, "keep_alive": 0})
    await ops.until(lambda f: not f.splits and not any(n.helpers for n in f.nodes))
