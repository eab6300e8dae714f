"""The promises when the network or a whole host fails, each with its number.

A silent line takes six seconds to be found out. Therefore the faults happen at the same
time, each on a host of its own under streams, while two hosts stay well and one has a bad
line; the tests look at the records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from olol_tui.fleet.snapshot import Fleet
from tests.e2e.cluster import Operator, is_up
from tests.e2e.product import (
    DECODE_TPS,
    SILENT_S,
    SUDDEN_S,
    Client,
    Product,
    Stream,
    agent_pids,
    assert_told_broken,
    counted,
    ends,
    engine_pids,
    lossy_s,
    only_engine,
    own_s,
    pids,
    product,
    told,
    waited_s,
)
from tests.lab import Host, Lab

pytestmark = pytest.mark.timeout(420)

REJOIN_S = 35.0
"""The longest pause between two attempts is thirty."""
AT_ONCE_S = 2.0
STREAMS = 45
FEEDERS = 4
LOSSY = {"delay_ms": 20.0, "jitter_ms": 5.0, "loss_pct": 1.0}

Do = Callable[[Host], object]
FAULTS: dict[str, tuple[str, Do, Do]] = {
    "F3 cut drop": ("h1", lambda h: h.cut("drop"), Host.heal),
    "F4 cut rst": ("h2", lambda h: h.cut("rst"), Host.heal),
    "F4 cut link": ("h3", lambda h: h.cut("link"), Host.heal),
    "F5 one way: in": ("h4", lambda h: h.cut("in"), Host.heal),
    "F5 one way: out": ("h5", lambda h: h.cut("out"), Host.heal),
    "F6 host frozen": ("h6", Host.freeze, Host.thaw),
    "F10 power cut": ("h7", Host.kill, Host.boot),
}
LOSSY_HOST, WELL_HOST = "h8", "h9"
SUDDEN = ("F4 cut rst",)
SILENT = tuple(fault for fault in FAULTS if fault not in SUDDEN)


@dataclass
class Record:
    """What a fault did."""

    streams: list[Stream] = field(default_factory=list)
    at_s: float = 0.0
    """When it was begun, a moment before it was in force."""
    waited_s: float = 0.0
    """From then until all streams had ended: what the kernel kept the core from a CPU."""
    lost_s: float = 0.0
    """From then until the console said so."""
    rejoined_s: float = 0.0
    """From the end of the fault until it was ready by itself."""

    @property
    def last_end_s(self) -> float:
        return max(stream.ended_s for stream in self.streams) - self.at_s


@dataclass
class Records:
    faults: dict[str, Record] = field(default_factory=dict)
    before: dict[str, int | None] = field(default_factory=dict)
    after: dict[str, int | None] = field(default_factory=dict)
    engines_there: dict[str, list[int]] = field(default_factory=dict)
    """In the end, by the hosts' own account."""
    agents_there: dict[str, list[int]] = field(default_factory=dict)
    elsewhere: list[Stream] = field(default_factory=list)
    """Sent once the faults were known."""
    again: list[Stream] = field(default_factory=list)
    """Sent when all was mended."""
    unhurt: list[Stream] = field(default_factory=list)
    """Streams on the hosts without a fault."""
    lossy_states: list[str] = field(default_factory=list)
    lossy_for_s: float = 0.0
    lossy_failures: float = 0.0
    """Times that the gateway held something against the engine behind the bad line."""


async def watch_states(ops: Operator, name: str, seen: list[str]) -> None:
    async for fleet in ops.link.changes():
        node = fleet.node(name)
        assert node is not None
        state = f"{node.state}, {','.join(engine.state for engine in node.engines)}"
        state += ", stale" if node.stale else ""
        if not seen or seen[-1] != state:
            seen.append(state)


async def feed(client: Client, stop: asyncio.Event) -> list[Stream]:
    """One chat after the other."""
    chats = []
    while not stop.is_set():
        chats.append(await client.chat(3 * DECODE_TPS))
    return chats


async def break_all(served: Product) -> Records:
    records = Records()
    hosts, core = served.lab.hosts, served.instance.process.pid
    async with served.opened() as (ops, client):
        await asyncio.to_thread(hosts[LOSSY_HOST].netem, **LOSSY)
        lossy_since_s = time.monotonic()
        watch = asyncio.create_task(watch_states(ops, LOSSY_HOST, records.lossy_states))
        async with client.streams(STREAMS) as streams:
            stop = asyncio.Event()
            feeders = [asyncio.create_task(feed(client, stop)) for _ in range(FEEDERS)]
            records.before = pids(ops)
            lost = {}
            for fault, (name, begin, _) in FAULTS.items():
                record = records.faults[fault] = Record()
                record.streams = [stream for stream in streams if stream.host == name]
                record.at_s, record.waited_s = time.monotonic(), -waited_s(core)
                await asyncio.to_thread(begin, hosts[name])
                lost[fault] = asyncio.create_task(when(ops, is_lost(name)))
            broken = [stream for record in records.faults.values() for stream in record.streams]
            await ends(broken)
            for record in records.faults.values():
                record.waited_s += waited_s(core)
            for fault, task in lost.items():
                records.faults[fault].lost_s = await task - records.faults[fault].at_s
            records.elsewhere = await client.chats(9, 2)
            await mend_all(ops, hosts, records)
            await asyncio.sleep(max(0.0, lossy_since_s + lossy_s() - time.monotonic()))
            records.lossy_for_s = time.monotonic() - lossy_since_s
            records.unhurt = [one for one in streams if one.host in (LOSSY_HOST, WELL_HOST)]
            stop.set()
            fed = [one for chats in await asyncio.gather(*feeders) for one in chats]
            records.unhurt += [one for one in fed if one.host in (LOSSY_HOST, WELL_HOST)]
            metrics = (await client.http.get("/metrics")).text
            engine = only_engine(ops.node(LOSSY_HOST)).id
            records.lossy_failures = counted(metrics, "olol_engine_failures_total", engine)
            records.lossy_failures += counted(metrics, "olol_ejections_total", engine)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await asyncio.to_thread(hosts[LOSSY_HOST].heal)
        records.after = pids(ops)
        await ops.warm()  # memory did not outlive the power cut
        records.again = await all_serve(client, set(hosts))
        for name, host in hosts.items():
            records.engines_there[name] = engine_pids(host)
            records.agents_there[name] = agent_pids(host)
    return records


async def mend_all(ops: Operator, hosts: Mapping[str, Host], records: Records) -> None:
    back = {}
    for fault, (name, _, end) in FAULTS.items():
        await asyncio.to_thread(end, hosts[name])
        mended_s = time.monotonic()
        back[fault] = (mended_s, asyncio.create_task(when(ops, is_back(name))))
    for fault, (mended_s, task) in back.items():
        records.faults[fault].rejoined_s = await task - mended_s


def is_lost(name: str) -> Callable[[Fleet], bool]:
    return lambda fleet: fleet.node(name).state in ("lost", "connecting")  # type: ignore[union-attr]


def is_back(name: str) -> Callable[[Fleet], bool]:
    def check(fleet: Fleet) -> bool:
        node = fleet.node(name)
        return node is not None and is_up(node) and not node.stale

    return check


async def when(ops: Operator, condition: Callable[[Fleet], object]) -> float:
    await ops.until(condition)
    return time.monotonic()


async def all_serve(client: Client, wanted: set[str]) -> list[Stream]:
    """Chats until every host has answered one."""
    answers: list[Stream] = []
    until_s = time.monotonic() + 30
    while {one.host for one in answers if one.is_whole} != wanted:
        assert time.monotonic() < until_s, [str(one) for one in answers[-2 * len(wanted) :]]
        answers += await client.chats(len(wanted) * 2, 3)
    return answers


@pytest.fixture(scope="module")
def records(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Records]:
    with Lab(9, disk="48m") as lab, product(lab, tmp_path_factory.mktemp("net")) as served:
        yield asyncio.run(break_all(served))


@pytest.mark.parametrize("fault", SILENT)
def test_silence_ends_streams_with_an_error_in_seven_seconds(records: Records, fault: str) -> None:
    seen = records.faults[fault]
    told(f"{fault}: last stream", seen.last_end_s, SILENT_S, f"{len(seen.streams)} streams")
    told(f"{fault}: node lost", seen.lost_s, SILENT_S)
    assert_told_broken(seen.streams, fault)
    assert own_s(seen.last_end_s, SILENT_S, seen.waited_s) <= SILENT_S
    assert own_s(seen.lost_s, SILENT_S, seen.waited_s) <= SILENT_S


@pytest.mark.parametrize("fault", SUDDEN)
def test_a_reset_ends_streams_with_an_error_in_a_second(records: Records, fault: str) -> None:
    seen = records.faults[fault]
    told(f"{fault}: last stream", seen.last_end_s, SUDDEN_S, f"{len(seen.streams)} streams")
    assert_told_broken(seen.streams, fault)
    assert seen.last_end_s <= SUDDEN_S


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mended_host_rejoins_by_itself(records: Records, fault: str) -> None:
    seen = records.faults[fault]
    told(f"{fault}: rejoined", seen.rejoined_s, REJOIN_S)
    assert seen.rejoined_s <= REJOIN_S
    name = FAULTS[fault][0]
    assert len(records.agents_there[name]) == 1
    assert len(records.engines_there[name]) == 1, "no engine twice"


def test_new_requests_go_elsewhere_at_once(records: Records) -> None:
    slowest_s = max(one.first_s - one.began_s for one in records.elsewhere)
    told("F3 new requests: slowest first byte", slowest_s, AT_ONCE_S)
    for one in records.elsewhere:
        assert one.is_whole, str(one)
        assert one.host in (LOSSY_HOST, WELL_HOST)
    assert slowest_s <= AT_ONCE_S
    assert all(one.is_whole for one in records.again), [str(one) for one in records.again]


def test_engines_outlive_every_fault_but_the_power_cut(records: Records) -> None:
    power = FAULTS["F10 power cut"][0]
    lived = {i: pid for i, pid in records.before.items() if not i.startswith(f"{power}/")}
    assert {i: records.after[i] for i in lived} == lived


def test_f10_what_runs_after_a_power_cut_was_started_after_it(records: Records) -> None:
    power = FAULTS["F10 power cut"][0]
    shown = [pid for i, pid in records.after.items() if i.startswith(f"{power}/")]
    assert shown == records.engines_there[power], "the record of before the cut was not believed"


def test_f21_a_bad_line_is_not_a_lost_one(records: Records) -> None:
    told("F21 20 ms ± 5 ms, 1 % loss", records.lossy_for_s, records.lossy_for_s, "no false alarm")
    assert records.lossy_states == ["ready, ready"]
    assert records.lossy_failures == 0
    for one in records.unhurt:
        assert one.is_whole or not (one.ended.is_set() or one.broken or one.error), str(one)
    on_lossy = [one for one in records.unhurt if one.host == LOSSY_HOST]
    flowed_s = max(one.last_s for one in on_lossy) - min(one.began_s for one in on_lossy)
    assert flowed_s > records.lossy_for_s - 5, "it had work for as long as the line was bad"
