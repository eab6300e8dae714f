"""A model that no host of a lab can hold runs anyway: split by itself, over SSH, and mended.

Real llama.cpp, real sshd, real agents; hosts that lend their CPU and may give 104 MiB each.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from olol_tui.fleet.snapshot import Fleet, Split
from tests.e2e.cluster import Operator
from tests.e2e.product import Product, kill_on, told
from tests.e2e.split_cluster import (
    MODEL,
    ask,
    helper,
    is_ready,
    needs_llama,
    question,
    split_lab,
    split_operator,
    split_product,
    the_split,
    unsplit_reply,
)
from tests.lab import Host

pytestmark = [needs_llama, pytest.mark.llama_server, pytest.mark.timeout(300)]

BACK_S = 60.0
"""The model's weights are read and sent again within it, on two cores for everything."""


@pytest.fixture(scope="module")
def product(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with split_lab() as lab, split_product(lab, tmp_path_factory.mktemp("split")) as one:
        yield one


def parts(fleet: Fleet) -> Split:
    split = the_split(fleet)
    assert split is not None
    return split


async def test_a_model_too_big_for_any_host_is_split_by_itself(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert not ops.fleet.splits
        began_s = time.monotonic()
        reply = await ask(http)
        assert reply.status_code == 200, reply.text
        told("first answer of a split", time.monotonic() - began_s, BACK_S)
        # The same tokens as one process with all layers gives.
        whole = await asyncio.to_thread(unsplit_reply)
        assert reply.json()["message"]["content"] == whole
        split = parts(ops.fleet)
        assert split.state == "ready" and len(split.parts) == 3
        assert {part.node for part in split.parts} == set(product.lab.hosts)
        assert reply.headers["x-olol-engine"] == split.engine
        # What is shown is what the head's own log says.
        for part in split.parts:
            assert part.real_layers == part.layers, part
            assert part.weights_bytes == pytest.approx(part.planned_weights_bytes, rel=0.01)
            assert part.kv_bytes == pytest.approx(part.planned_kv_bytes, rel=0.01)
        assert sum(part.layers for part in split.parts) == 30
        # What it logged of its buffers is what the next plan counts with.
        fit = await asyncio.to_thread(product.instance.run, "model", "fit", MODEL)
        assert "as its engine logged them" in fit.stdout, fit.stdout + fit.stderr
        status = await asyncio.to_thread(product.instance.run, "status")
        for part in split.parts:
            line = next(x for x in status.stdout.splitlines() if x.startswith(f"  {part.where} "))
            assert f" {part.layers} layers" in line, status.stdout
            assert (" ms" in line) == (part.road == "ssh"), "how far it is, as measured"


class Broken:
    """One streamed chat through which a fault goes."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []
        self.began = asyncio.Event()
        self.ended_s = 0.0
        self.clean_end = False

    async def run(self, http: httpx.AsyncClient) -> None:
        try:
            async with http.stream("POST", "/api/chat", json=question(400, stream=True)) as reply:
                assert reply.status_code == 200
                async for line in reply.aiter_lines():
                    self.lines.append(json.loads(line))
                    self.began.set()
            self.clean_end = True
        except httpx.HTTPError:
            self.clean_end = False
        finally:
            self.ended_s = time.monotonic()
            self.began.set()

    @property
    def is_told_broken(self) -> bool:
        errors = [line for line in self.lines if "error" in line]
        return len(errors) == 1 and self.lines[-1] is errors[0] and not self.clean_end


async def breaks(
    ops: Operator, http: httpx.AsyncClient, fault: Callable[[], object], name: str, heard_s: float
) -> Split:
    """A fault in the middle of a stream: one error, and the split back by itself."""
    await ops.until(is_ready)
    before = parts(ops.fleet)
    stream = Broken()
    task = asyncio.create_task(stream.run(http))
    await asyncio.wait_for(stream.began.wait(), BACK_S)
    began_s = time.monotonic()
    await asyncio.to_thread(fault)
    await asyncio.wait_for(task, heard_s + BACK_S)
    assert stream.is_told_broken, stream.lines[-3:]
    told(f"{name}: the client hears", stream.ended_s - began_s, heard_s)
    # Whoever asks now waits for it, and is answered.
    reply = await ask(http, 4)
    told(f"{name}: answers again", time.monotonic() - began_s, BACK_S)
    assert reply.status_code == 200, reply.text
    await ops.until(is_ready)
    after = parts(ops.fleet)
    assert after.restarts > before.restarts and after.restart_s is not None
    assert stream.ended_s - began_s <= heard_s
    return after


async def test_a_killed_worker_ends_streams_with_an_error_and_comes_back(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        worker = next(p for p in parts(ops.fleet).parts if p.road == "ssh")
        pid = helper(ops, worker.engine).pid
        host = product.lab.hosts[worker.node]
        await breaks(ops, http, lambda: kill_on(host, [pid]), "worker killed", 5.0)


async def test_a_frozen_worker_is_noticed_by_tokens_that_do_not_come(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        worker = next(p for p in parts(ops.fleet).parts if p.road == "ssh")
        pid = helper(ops, worker.engine).pid
        host = product.lab.hosts[worker.node]
        await breaks(ops, http, lambda: kill_on(host, [pid], "STOP"), "worker frozen", 20.0)
        assert helper(ops, worker.engine).pid != pid


STANDSTILL_S = 15.0
LIMP = "while :; do kill -STOP {0}; sleep 1; kill -CONT {0}; sleep 0.1; done"
"""A worker that computes a tenth of the time."""


async def test_a_worker_that_stands_still_over_a_prompt_is_told_from_a_slow_one(
    product: Product,
) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        await ops.until(is_ready)
        before = parts(ops.fleet)
        worker = next(p for p in before.parts if p.road == "ssh")
        host = product.lab.hosts[worker.node]
        pid = helper(ops, worker.engine).pid
        long = question(1)
        long["messages"] = [{"role": "user", "content": "Tell me of the sea. " * 40}]
        limping = host.spawn(["sh", "-c", LIMP.format(pid)], "root")
        try:
            began_s = time.monotonic()
            reply = await http.post("/api/chat", json=long)
            took_s = time.monotonic() - began_s
        finally:
            limping.kill()
            limping.wait()
            kill_on(host, [pid], "CONT")
        assert reply.status_code == 200, reply.text
        print(f"\n  a prompt that took {took_s:.1f} s, and no alarm", flush=True)
        assert (
            parts(ops.fleet).restarts == before.restarts and helper(ops, worker.engine).pid == pid
        )
        # Stopped for good, before a prompt reaches it: the head waits, and says nothing.
        long["messages"] = [{"role": "user", "content": "And of the sky. " * 70}]
        kill_on(host, [pid], "STOP")
        began_s = time.monotonic()
        asking = asyncio.create_task(http.post("/api/chat", json=long))
        await ops.until(lambda f: not is_ready(f))
        noticed_s = time.monotonic() - began_s
        told("worker frozen in prefill: noticed", noticed_s, STANDSTILL_S)
        assert noticed_s <= STANDSTILL_S
        reply = await asking
        told("worker frozen in prefill: answered", time.monotonic() - began_s, BACK_S)
        assert reply.status_code == 200, reply.text


async def test_no_tensor_travels_outside_ssh(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        for part in parts(ops.fleet).parts:
            host = product.lab.hosts[part.node]
            worker = helper(ops, part.engine)
            port = int(worker.address.rpartition(":")[2])
            listeners = [one for one in host.listening() if one.port == port]
            assert [one.address for one in listeners] == ["127.0.0.1"], listeners
            # Whoever is connected to it, or to anything else across the network, is on loopback
            # or sshd.
            rows = host.exec(["ss", "-Htnp", "state", "established"], "root").stdout.splitlines()
            assert any(f"127.0.0.1:{port} " in row for row in rows), rows
            for row in rows:
                local, peer = row.split()[2:4]
                if not (local.startswith("127.") and peer.startswith("127.")):
                    assert '"sshd"' in row or '"ssh"' in row, row


async def test_a_node_that_is_cut_off_ends_streams_and_the_split_is_back_with_it(
    product: Product,
) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        split = parts(ops.fleet)
        worker = next(p for p in split.parts if p.road == "ssh")
        host = product.lab.hosts[worker.node]
        stream = Broken()
        task = asyncio.create_task(stream.run(http))
        await asyncio.wait_for(stream.began.wait(), BACK_S)
        host.cut("drop")
        began_s = time.monotonic()
        try:
            await asyncio.wait_for(task, BACK_S)
            assert stream.is_told_broken, stream.lines[-3:]
            told("node cut: the client hears", stream.ended_s - began_s, 15.0)
            assert stream.ended_s - began_s <= 15.0
            # The two that are left cannot hold it, which is said with numbers.
            fleet = await ops.until(
                lambda f: any(
                    o.state == "failed" and "fits nowhere" in o.message for o in f.operations
                )
            )
            assert parts(fleet).state == "backoff" and worker.node in parts(fleet).error
        finally:
            host.heal()
        healed_s = time.monotonic()
        await ops.until(is_ready)
        told("node healed: ready again", time.monotonic() - healed_s, BACK_S)
        assert (await ask(http, 4)).status_code == 200


async def test_a_worker_that_dies_at_each_load_is_given_up_until_somebody_asks(
    product: Product,
) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        worker = next(p for p in parts(ops.fleet).parts if p.road == "ssh")
        host = product.lab.hosts[worker.node]
        enough = asyncio.Event()

        async def keep_killing() -> None:
            while not enough.is_set():
                found = await asyncio.to_thread(workers_on, host)
                if found:
                    await asyncio.to_thread(host.exec, ["kill", "-9", *found], "root", check=False)
                await asyncio.sleep(0.2)

        killing = asyncio.create_task(keep_killing())
        began_s = time.monotonic()
        try:
            fleet = await ops.until(lambda f: bool(f.splits) and f.splits[0].state == "failed")
            told("crash loop: given up", time.monotonic() - began_s, BACK_S)
            failed = parts(fleet)
            assert "crashed 5 times" in failed.error and "SIGKILL" in failed.error
            assert failed.log_tail, "what it said last"
            # Nothing of it is left running, nor started by whoever asks.
            await ops.until(lambda f: not any(n.helpers for n in f.nodes))
        finally:
            enough.set()
            await killing
        reply = await ask(http, 2)
        assert reply.status_code >= 500 and "crashed 5 times" in reply.text, reply.text
        assert not any(workers_on(one) for one in product.lab.hosts.values())
        status = (await asyncio.to_thread(product.instance.run, "status")).stdout
        assert "crashed 5 times" in status and failed.log_tail[-1].strip() in status, status
        assert f"olol-tui retry {MODEL}" in status
        again = await asyncio.to_thread(product.instance.run, "retry", MODEL, timeout_s=120)
        assert again.returncode == 0, again.stdout + again.stderr
        assert (await ask(http, 2)).status_code == 200
        again = await asyncio.to_thread(product.instance.run, "retry", MODEL)
        assert again.returncode == 1 and "no split that failed" in again.stdout + again.stderr


def workers_on(host: Host) -> list[str]:
    """Pids there of the workers that run."""
    return [str(one.pid) for one in host.processes() if "ggml-rpc-server" in one.command]


async def test_an_idle_split_gives_its_devices_back(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        body = {**question(2), "keep_alive": 1}
        assert (await http.post("/api/chat", json=body)).status_code == 200
        assert parts(ops.fleet).state == "ready"
        await ops.until(lambda f: not f.splits and not any(n.helpers for n in f.nodes))
        for host in product.lab.hosts.values():
            assert not [p for p in host.processes() if "rpc-server" in p.command]
            keys = host.exec("cat ~/.ssh/authorized_keys").stdout
            assert "olol-mesh" not in keys and "olol-lab" in keys


async def test_a_console_that_is_killed_leaves_the_split_to_the_next_one(product: Product) -> None:
    async with split_operator(product) as (ops, http):
        assert (await ask(http, 2)).status_code == 200
        await ops.until(is_ready)
        before = all_pids(ops.fleet)
    await asyncio.to_thread(product.instance.end, signal.SIGKILL)
    await asyncio.to_thread(product.start)
    async with split_operator(product) as (ops, http):
        await ops.until(is_ready)
        assert (await ask(http, 4)).status_code == 200
        assert all_pids(ops.fleet) == before
        fit = await asyncio.to_thread(product.instance.run, "model", "fit", MODEL)
        assert "as its engine logged them" in fit.stdout, "kept over the restart"


def all_pids(fleet: Fleet) -> dict[str, int | None]:
    engines = [engine for node in fleet.nodes for engine in (*node.engines, *node.helpers)]
    return {engine.id: engine.pid for engine in engines}
