"""What clients and operators see when an engine, an agent or the console dies.

What breaks an engine comes last: one that did break earns its share again slowly.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from olol_tui.errors import OlolError
from olol_tui.fleet.commands import RestartEngine
from tests.e2e.cluster import Operator, is_up, operator
from tests.e2e.product import (
    BOUND_S,
    ENDLESS,
    FOREVER_TOKENS,
    SUDDEN_S,
    Client,
    Product,
    Stream,
    agent_pids,
    ask_engine,
    assert_told_broken,
    config,
    console,
    counted,
    ends,
    engine_pids,
    kill_on,
    newer_source,
    only_engine,
    own_s,
    pids,
    product,
    told,
    waited_s,
)
from tests.lab import Lab

AGENT_BACK_S = 5.0
STALE_S = 3.0
EXTRA_S = 1.0
ADOPTED_S = 3.0
CANCELLED_S = 1.0
SILENCE_SEEN_S = 20.0
"""Three unanswered questions of the agent, each with five seconds for the answer."""
AT_ONCE_S = 2.0
ADOPTION_TRIES = 3
UPGRADE_STREAMS = 100
MANY_SLOTS = f'gpus = 1, vram = "80GiB", load_bytes_s = 1e11, decode_tps = 5, slots = 40, {ENDLESS}'
NEWER = "9.9.9"


@pytest.fixture(scope="module")
def served(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    text = config(("h1", "h2", "h3"), MANY_SLOTS)
    with Lab(3) as lab, product(lab, tmp_path_factory.mktemp("engines"), text) as one:
        yield one


async def test_f17_clients_that_leave_cost_no_engine_its_turn(served: Product) -> None:
    """A disconnect is no failure of the engine: nothing is ejected, no slot is kept."""
    async with served.opened() as (ops, client):
        client.http.headers["X-Olol-Why"] = "1"
        broke = await failures(client)
        for leave_after_s in (0.0, 0.01, 0.05, 0.2):
            leaving = [asyncio.create_task(client.chat(FOREVER_TOKENS)) for _ in range(24)]
            await asyncio.sleep(leave_after_s)
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
        async with client.streams(12):
            pass
        left_s = time.monotonic()
        cancelled_s = await asyncio.to_thread(all_cancelled, served, ops) - left_s
        told("F17 clients left: last engine idle", cancelled_s, CANCELLED_S)
        assert cancelled_s <= CANCELLED_S
        await ops.until(lambda f: f.gateway.running == f.gateway.queued == 0)
        async with client.streams(12) as streams:
            shares = Counter(stream.engine for stream in streams)
            whys = "\n".join(stream.why for stream in streams)
            assert len(shares) == 3, whys
            assert max(shares.values()) - min(shares.values()) <= 2, f"{shares}\n{whys}"
            assert "ejected" not in whys
            assert "failed" not in whys
            live = await client.http.get("/olol/v1/requests")
            running = next(r for r in live.json()["requests"] if r["state"] == "decode")
            why = await asyncio.to_thread(served.instance.run, "why", running["id"])
            assert why.returncode == 0, why.stderr
            assert f"{running['where']} has qwen3:8b loaded and a free slot" in why.stdout
            assert "ejected" not in why.stdout
        assert await failures(client) == broke


async def failures(client: Client) -> dict[str, float]:
    """Requests that engines broke, as the gateway counts them."""
    text = (await client.http.get("/metrics")).text
    found = re.findall(r'olol_engine_failures_total\{engine="([^"]+)"\} (\S+)', text)
    return {engine: float(count) for engine, count in found}


def all_cancelled(served: Product, ops: Operator) -> float:
    """Waits until no engine computes; the moment of the last cancellation, by their clocks."""
    last_s = 0.0
    for name, host in served.lab.hosts.items():
        engine = only_engine(ops.node(name))
        while (stats := ask_engine(host, engine, "/sim/stats"))["running"]:
            time.sleep(0.05)
        last_s = max(last_s, stats["last_cancel_mono"])
    return last_s


async def test_f8_an_agent_is_upgraded_under_a_hundred_streams(
    served: Product, tmp_path: Path
) -> None:
    newer = await asyncio.to_thread(newer_source, tmp_path, NEWER)
    async with served.opened() as (ops, client):
        engines = pids(ops)
        agents = {name: agent_pids(host) for name, host in served.lab.hosts.items()}
        chats: list[Stream] = []
        stop = asyncio.Event()
        feeders = [asyncio.create_task(feed(client, stop, chats)) for _ in range(UPGRADE_STREAMS)]
        states: set[tuple[str, bool]] = set()
        watching = asyncio.create_task(watch(ops, states))
        calling = asyncio.create_task(call_agents(ops, stop))
        await ops.until(lambda f: f.gateway.running > 0.9 * UPGRADE_STREAMS)
        began_s = time.monotonic()
        said = await asyncio.to_thread(served.run_other, newer, "node", "provision", "--all")
        await ops.until(lambda f: all(node.agent_version == NEWER for node in f.nodes))
        took_s = time.monotonic() - began_s
        # Every stream that ran meanwhile is to end, and as many again after it.
        ended = len(chats)
        while len(chats) < ended + 2 * UPGRADE_STREAMS:
            await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*feeders)
        calls = await calling
        watching.cancel()
        assert said.count("upgraded") >= 3, said
        what = f"{len(chats)} streams all whole, {calls} calls of agents answered"
        told("F8 agents upgraded", took_s, took_s, what)
        assert calls >= len(agents)
        broken = [str(one) for one in chats if not one.is_whole]
        assert not broken, broken[:5]
        assert states == {("ready", False)}
        assert pids(ops) == engines
        for name, host in served.lab.hosts.items():
            assert agent_pids(host) == agents[name], "it became the newer one, as the same process"
            assert engine_pids(host) == [engines[only_engine(ops.node(name)).id]]


async def feed(client: Client, stop: asyncio.Event, chats: list[Stream]) -> None:
    """One chat after the other."""
    while not stop.is_set():
        chats.append(await client.chat(5))


async def call_agents(ops: Operator, stop: asyncio.Event) -> int:
    """Ask all agents for a line of their engines' logs, again and again; how many answered."""
    calls = 0
    while not stop.is_set():
        for node in ops.fleet.nodes:
            async with aclosing(ops.link.logs(node.name, only_engine(node).id, tail=1)) as lines:
                assert await anext(lines)
            calls += 1
    return calls


async def watch(ops: Operator, seen: set[tuple[str, bool]]) -> None:
    async for fleet in ops.link.changes():
        seen.update((node.state, node.stale) for node in fleet.nodes)


async def test_f9_a_killed_console_is_followed_by_one_that_adopts(served: Product) -> None:
    async with served.opened() as (ops, _):
        before = pids(ops)
    took_s = []
    while not took_s or (min(took_s) > ADOPTED_S and len(took_s) < ADOPTION_TRIES):
        await asyncio.to_thread(served.instance.end, signal.SIGKILL)
        began_s = time.monotonic()
        await asyncio.to_thread(served.start)
        async with operator(served.state_dir) as ops:
            await ops.all_up()
            wall_s = time.monotonic() - began_s
            assert pids(ops) == before
        took_s.append(wall_s - waited_s(served.instance.process.pid))
        told("F9 console killed: adopted", took_s[-1], ADOPTED_S, f"{wall_s:.2f} s by the clock")
    for name, host in served.lab.hosts.items():
        assert len(agent_pids(host)) == 1, name
        assert len(engine_pids(host)) == 1, name
    assert min(took_s) <= ADOPTED_S


async def test_f25_a_second_console_only_looks(served: Product, tmp_path: Path) -> None:
    with console(served.lab, tmp_path / "second") as second:
        second.instance.env |= {"USER": "other"}
        async with served.opened() as (ops, _):
            before = pids(ops)
            await asyncio.to_thread(second.start)
            async with operator(second.state_dir) as other:
                await other.until(
                    lambda f: all(node.managed_by and node.engines for node in f.nodes), 30
                )
                assert pids(other) == before
                with pytest.raises(OlolError, match="is managed by"):
                    await other.link.submit(RestartEngine(only_engine(ops.node("h1")).id))
                    raise AssertionError("it was accepted")
            async with second.opened(warm=False) as (_, client):
                looked = await client.chats(6, 2)
                assert all(one.is_whole for one in looked), [str(one) for one in looked]
            assert pids(ops) == before
            assert not any(node.managed_by for node in ops.fleet.nodes)
        second.instance.end()
    for name, host in served.lab.hosts.items():
        assert len(agent_pids(host)) == 1, name
        assert len(engine_pids(host)) == 1, name


async def test_f7_engines_outlive_their_agent(served: Product) -> None:
    async with served.opened() as (ops, client), client.streams(6) as streams:
        before, host = pids(ops), served.lab.hosts["h1"]
        agents = agent_pids(host)
        assert len(agents) == 1
        kill_on(host, agents)
        killed_s = time.monotonic()

        async def back() -> float:
            while not (found := agent_pids(host)) or found == agents:
                await asyncio.sleep(0.05)
            await ops.until(lambda f: is_up(f.nodes[0]) and not f.nodes[0].stale)
            return time.monotonic() - killed_s

        async with asyncio.timeout(30):
            took_s = await back()
        told("F7 agent killed: back", took_s, AGENT_BACK_S)
        assert pids(ops) == before
        assert engine_pids(host) == [before[only_engine(ops.node("h1")).id]]
        assert not any(stream.ended.is_set() for stream in streams), [str(s) for s in streams]
        async with asyncio.timeout(AGENT_BACK_S):
            while any(stream.last_s < killed_s for stream in streams):
                await asyncio.sleep(0.05)  # A token comes every fifth of a second.
        assert took_s <= AGENT_BACK_S


async def test_f6_a_frozen_agent_is_stale_and_costs_nothing(served: Product) -> None:
    host = served.lab.hosts["h2"]
    async with served.opened() as (ops, client), client.streams(6) as streams:
        agents, core = agent_pids(host), served.instance.process.pid
        # At any moment between two of its beats.
        for wait_s in (0.0, 0.45):
            await asyncio.sleep(wait_s)
            waited_before_s = waited_s(core)
            frozen_s = time.monotonic()
            kill_on(host, agents, "STOP")
            try:
                await ops.until(lambda f: f.nodes[1].stale or f.nodes[1].state != "ready", 30)
                took_s = time.monotonic() - frozen_s
                told("F6 agent frozen: stale", took_s, STALE_S)
                api = (await client.http.get("/api/status")).json()
                assert [node["stale"] for node in api["nodes"]] == [False, True, False], api
                assert not any(stream.ended.is_set() for stream in streams)
                new = await client.chats(6, 2)
                assert all(one.is_whole for one in new), [str(one) for one in new]
            finally:
                kill_on(host, agents, "CONT")
            await ops.until(lambda f: is_up(f.nodes[1]) and not f.nodes[1].stale)
            assert not any(stream.ended.is_set() for stream in streams), [str(s) for s in streams]
            assert own_s(took_s, STALE_S, waited_s(core) - waited_before_s) <= STALE_S


async def test_f6_a_frozen_engine_is_left_alone_until_it_answers(served: Product) -> None:
    host = served.lab.hosts["h3"]
    async with served.opened() as (ops, client), client.streams(6) as streams:
        client.http.headers["X-Olol-Why"] = "1"
        engine = only_engine(ops.node("h3"))
        frozen_s = time.monotonic()
        kill_on(host, [engine.pid], "STOP")
        try:
            # Those that meet it before anybody knows get their first byte from another one.
            caught = asyncio.create_task(client.chats(12, 2))
            await ops.until(lambda f: "does not answer" in only_engine(f.nodes[2]).error)
            took_s = time.monotonic() - frozen_s
            told("F6 engine frozen: shown", took_s, SILENCE_SEEN_S)
            moved = await caught
            moved_s = max(one.first_s for one in moved) - frozen_s
            told("F6 engine frozen: last first byte", moved_s, SILENCE_SEEN_S)
            assert all(one.is_whole and one.host != "h3" for one in moved), [str(s) for s in moved]
            assert moved_s <= SILENCE_SEEN_S
            metrics = (await client.http.get("/metrics")).text
            assert counted(metrics, "olol_ejections_total", engine.id) == 1
            new = await client.chats(6, 2)
            slowest_s = max(one.first_s - one.began_s for one in new)
            assert "h3" not in {one.host for one in new}
            assert all(one.is_whole for one in new), [str(one) for one in new]
            assert slowest_s <= AT_ONCE_S
        finally:
            kill_on(host, [engine.pid], "CONT")
        await ops.until(lambda f: not only_engine(f.nodes[2]).error)
        assert only_engine(ops.node("h3")).pid == engine.pid
        for stream in streams:
            # Those on it were told so, unless it woke up before.
            told_of_it = stream.host == "h3" and stream.is_told_broken
            assert stream.is_unhurt or told_of_it, str(stream)
        async with asyncio.timeout(BOUND_S):
            while "h3" not in {one.host for one in await client.chats(6, 2) if one.is_whole}:
                pass
        assert took_s <= SILENCE_SEEN_S


async def test_f2_an_engine_that_dies_ends_its_streams_with_an_error(served: Product) -> None:
    async with served.opened() as (ops, client), client.streams(9) as streams:
        engine = only_engine(ops.node("h1"))
        on_it = [stream for stream in streams if stream.host == "h1"]
        others = [stream for stream in streams if stream.host != "h1"]
        kill_on(served.lab.hosts["h1"], [engine.pid])
        killed_s = time.monotonic()
        await ends(on_it)
        took_s = max(stream.ended_s for stream in on_it) - killed_s
        told("F2 engine killed mid-stream", took_s, SUDDEN_S, f"{len(on_it)} streams")
        assert_told_broken(on_it, "F2")
        assert took_s <= SUDDEN_S
        assert not any(stream.ended.is_set() for stream in others)
        await ops.until(lambda f: is_up(f.nodes[0]) and only_engine(f.nodes[0]).pid != engine.pid)
        assert not any(stream.ended.is_set() for stream in others)


async def test_f1_a_crash_before_the_first_byte_is_not_the_clients_business(
    served: Product,
) -> None:
    async with served.opened() as (ops, client):
        # Every request that h1's engine would answer finds it closing the connection.
        host, engine = served.lab.hosts["h1"], only_engine(ops.node("h1"))
        ask_engine(host, engine, "/sim/faults", {"fault": "refuse"})
        usual = [await client.chat(2) for _ in range(3)]
        answers = await client.chats(12, 2)
        ask_engine(host, engine, "/sim/faults", {"fault": "none"})
        for answer in (*usual, *answers):
            assert answer.is_whole, str(answer)
            assert answer.host != "h1"
        slowest_s = max(answer.first_s - answer.began_s for answer in answers)
        told("F1 refused before the first byte", slowest_s, EXTRA_S, "slowest first byte")
        assert slowest_s <= EXTRA_S
        # And an engine killed at the moment at which requests arrive.
        pid = only_engine(ops.node("h2")).pid
        racing = asyncio.create_task(client.chats(12, 2))
        await asyncio.to_thread(kill_on, served.lab.hosts["h2"], [pid])
        raced = await racing
        slowest_s = max(answer.first_s - answer.began_s for answer in raced)
        told("F1 killed before the first byte", slowest_s, EXTRA_S, "slowest first byte")
        assert slowest_s <= EXTRA_S
        for answer in raced:
            # One that had its first byte may tell of the crash; no other may.
            assert answer.is_whole or (answer.is_told_broken and answer.status == 200), str(answer)
        assert (await client.chat(2)).is_whole
        await ops.all_up()
