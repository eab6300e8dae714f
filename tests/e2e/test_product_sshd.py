"""The promises when a host's sshd ends, refuses, forbids or flaps, each with its number.

Each fault befalls a host of its own, all at the same time and under streams; the tests look
at the records. One host forbids every kind of forwarding from the start.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from olol_tui.fleet.commands import Reconnect
from olol_tui.fleet.snapshot import Fleet, Node
from olol_tui.routing.ejection import EJECT_AFTER
from olol_tui.ssh.link import NodeLink
from olol_tui.ssh.target import Target
from tests.e2e.cluster import Operator, is_up
from tests.e2e.product import (
    SUDDEN_S,
    Client,
    Product,
    Stream,
    agent_pids,
    assert_told_broken,
    config,
    counted,
    ends,
    engine_pids,
    pids,
    product,
    told,
)
from tests.e2e.streams import Watched, connector
from tests.lab import Host, Lab

pytestmark = pytest.mark.timeout(300)

RESTARTED, REVOKED, FORBIDDEN, FLAPPING, WELL = "h1", "h2", "h3", "h4", "h5"
REJOIN_S = 20.0
QUIET_S = 5.0
"""Long enough for a console that goes on trying to be seen at it."""
FLAPS = 4
FLAP_S = 3.0
CONNECTIONS_A_FLAP = 8
"""Two are used; the others may be those that the next flap cut while they were made."""
SETTLED_S = 35.0
"""The longest pause between two attempts is thirty."""
PAUSES_AT_MOST_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Of the attempts after each other; those after them as the last."""
EJECTED_S = ((8.0, 12.0), (16.0, 24.0), (24.0, 36.0))
"""Ten seconds more each time, a fifth up or down."""
RETRY_SHARE = 0.2
RETRY_FLOOR = 3
STREAMS = 20
FEEDERS = 4
CONSOLES = 30
LINKS = 10
HANDSHAKES = 3
BOUND_S = 60.0


@dataclass
class Records:
    restarted: list[Stream] = field(default_factory=list)
    restarted_s: float = 0.0
    rejoined_s: float = 0.0
    revoked_state: str = ""
    revoked_error: str = ""
    attempts_while_revoked: int = 0
    """Connections that sshd saw in `QUIET_S` after it had refused the key."""
    readmitted_s: float = 0.0
    forbidden: list[Stream] = field(default_factory=list)
    """All streams on the host without forwarding."""
    flapping: list[Stream] = field(default_factory=list)
    fed: list[Stream] = field(default_factory=list)
    """Chats that clients sent one after the other through all of it."""
    retries: float = 0.0
    requests: float = 0.0
    connections_per_flap: float = 0.0
    settled_s: float = 0.0
    """From the last heal until the flapping host was back."""
    pauses: list[tuple[float, float]] = field(default_factory=list)
    """Before each attempt to reach the flapping host: seconds, and how many they could be."""
    ejections_s: list[float] = field(default_factory=list)
    """Spans for which its engine got no requests."""
    before: dict[str, int | None] = field(default_factory=dict)
    after: dict[str, int | None] = field(default_factory=dict)
    processes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Agents and engines in the end, by the hosts' own account."""
    consoles_s: float = 0.0
    consoles_up: int = 0
    most_handshakes: int = 0
    """Of one console with one host, at the same moment, by that host's account."""


class Scenario:
    """Everything that happens, some of it side by side; one change of the lab at a time."""

    def __init__(self, served: Product, ops: Operator, client: Client) -> None:
        self.records = Records()
        self._served = served
        self._hosts = served.lab.hosts
        self._ops = ops
        self._client = client
        self._lab = asyncio.Lock()

    async def run(self) -> Records:
        records = self.records
        records.before = pids(self._ops)
        stop = asyncio.Event()
        async with self._client.streams(STREAMS) as streams:
            feeders = [asyncio.create_task(self._feed(stop)) for _ in range(FEEDERS)]
            by_host = {name: [s for s in streams if s.host == name] for name in self._hosts}
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._restart_sshd(by_host[RESTARTED]))
                tasks.create_task(self._revoke())
                tasks.create_task(self._flap(by_host[FLAPPING]))
            stop.set()
            await asyncio.gather(*feeders)
            records.forbidden = by_host[FORBIDDEN]
            records.forbidden += [one for one in records.fed if one.host == FORBIDDEN]
        metrics = (await self._client.http.get("/metrics")).text
        records.retries = counted(metrics, "olol_retries_total")
        records.requests = counted(metrics, "olol_requests_total")
        records.after = pids(self._ops)
        for name, host in self._hosts.items():
            records.processes[name] = (len(agent_pids(host)), len(engine_pids(host)))
        return records

    async def _feed(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.records.fed.append(await self._client.chat(5))

    async def _on(self, name: str, command: str) -> str:
        async with self._lab:
            done = await asyncio.to_thread(self._hosts[name].exec, command, "root", check=False)
        return done.stdout

    async def _back(self, name: str, since_s: float) -> float:
        """The moment at which it was ready again, with news from after `since_s`."""
        await self._ops.until(is_back(name, since_s))
        return time.monotonic()

    async def _restart_sshd(self, streams: list[Stream]) -> None:
        """The listening sshd and that of every session; the lab's init starts the former again."""
        self.records.restarted = streams
        at_s = time.monotonic()
        await self._on(RESTARTED, "kill -9 $(pgrep -x sshd)")
        await ends(streams)
        last_s = max(stream.ended_s for stream in streams)
        self.records.restarted_s = last_s - at_s
        self.records.rejoined_s = await self._back(RESTARTED, last_s) - at_s

    async def _revoke(self) -> None:
        keys = "/home/ops/.ssh/authorized_keys"
        await self._on(REVOKED, f"mv {keys} {keys}.away; pkill -KILL -f 'sshd: [o]ps'")
        fleet = await self._ops.until(lambda f: "accepted no key" in node_of(f, REVOKED).error)
        self.records.revoked_state = node_of(fleet, REVOKED).state
        self.records.revoked_error = node_of(fleet, REVOKED).error
        seen = await self._connections(REVOKED)
        await asyncio.sleep(QUIET_S)
        self.records.attempts_while_revoked = await self._connections(REVOKED) - seen
        await self._on(REVOKED, f"mv {keys}.away {keys}")
        at_s = time.monotonic()
        await self._ops.link.submit(Reconnect(REVOKED))
        self.records.readmitted_s = await self._back(REVOKED, at_s) - at_s

    async def _flap(self, streams: list[Stream]) -> None:
        host = self._hosts[FLAPPING]
        self.records.flapping = streams
        seen = await self._connections(FLAPPING)
        for flap in range(FLAPS):
            if flap:
                await asyncio.sleep(FLAP_S)
            async with self._lab:
                await asyncio.to_thread(host.cut, "rst")
            await asyncio.sleep(FLAP_S)
            async with self._lab:
                await asyncio.to_thread(host.heal)
            healed_s = time.monotonic()
        self.records.settled_s = await self._back(FLAPPING, healed_s) - healed_s
        made = await self._connections(FLAPPING) - seen
        self.records.connections_per_flap = made / FLAPS
        self.records.pauses = [
            (entry["pause_s"], entry["at_most_s"])
            for entry in self._log("olol.ssh.link")
            if entry.get("node") == FLAPPING
        ]
        if len(self._ejections()) < 2:
            await self._fall_once_more(host)
        self.records.ejections_s = self._ejections()

    async def _fall_once_more(self, host: Host) -> None:
        """As soon as it is trusted with streams again."""
        async with asyncio.timeout(BOUND_S):
            while len(self._ejections()) < 2:
                async with self._client.streams(STREAMS) as streams:
                    on_it = [stream for stream in streams if stream.host == FLAPPING]
                    if len(on_it) < EJECT_AFTER:
                        continue
                    async with self._lab:
                        await asyncio.to_thread(host.cut, "rst")
                    await ends(on_it)
                    self.records.flapping += on_it
                async with self._lab:
                    await asyncio.to_thread(host.heal)
        await self._back(FLAPPING, time.monotonic())

    def _log(self, logger: str) -> list[dict[str, Any]]:
        """What the core has logged, as anybody can read it."""
        lines = self._served.instance.log.splitlines()
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if entry["logger"] == logger]

    def _ejections(self) -> list[float]:
        return [
            entry["ejected_s"]
            for entry in self._log("olol.gateway")
            if entry.get("ejected_s") and entry["engine"].startswith(f"{FLAPPING}/")
        ]

    async def _connections(self, name: str) -> int:
        """How many connections the host's sshd has seen."""
        return int(await self._on(name, "grep -c '^Connection from' /var/log/sshd.log"))


def node_of(fleet: Fleet, name: str) -> Node:
    node = fleet.node(name)
    assert node is not None
    return node


def is_back(name: str, since_s: float) -> Callable[[Fleet], bool]:
    def check(fleet: Fleet) -> bool:
        # The fleet's clock is this machine's.
        node = node_of(fleet, name)
        return is_up(node) and not node.stale and (node.last_contact_s or 0.0) > since_s

    return check


async def storm(lab: Lab, place: Path, records: Records) -> None:
    """Thirty consoles come to one host at the same moment; sshd drops at random beyond ten."""
    began_s = time.monotonic()
    consoles = [Watched(lab, WELL, place / str(n)) for n in range(CONSOLES)]

    async def come(one: Watched) -> None:
        async with one.link, asyncio.timeout(BOUND_S):
            one.link.start()
            await one.reaches("up")
            records.consoles_up += 1

    await asyncio.gather(*(come(one) for one in consoles))
    records.consoles_s = time.monotonic() - began_s


async def crowd(lab: Lab, place: Path, records: Records) -> None:
    """Many links of one console to one host, all at the same moment."""
    host = lab.hosts[WELL]
    path = host.root / "var/log/sshd.log"
    seen = len(path.read_text().splitlines())
    shared = connector(lab, place)
    async with AsyncExitStack() as stack, asyncio.timeout(BOUND_S):
        links = [NodeLink(str(n), Target(WELL), shared) for n in range(LINKS)]
        for link in links:
            await stack.enter_async_context(link)
        await asyncio.gather(*(link.wait_up() for link in links))
    under_way = 0
    for line in path.read_text().splitlines()[seen:]:
        under_way += line.startswith("Connection from ") - line.startswith("Accepted publickey ")
        records.most_handshakes = max(records.most_handshakes, under_way)


@pytest.fixture(scope="module")
def records(lab_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Records]:
    place = tmp_path_factory.mktemp("sshd")

    async def all_of_it(served: Product) -> Records:
        async with served.opened() as (ops, client):
            records = await Scenario(served, ops, client).run()
            await storm(served.lab, place / "consoles", records)
            await crowd(served.lab, place / "crowd", records)
            return records

    with Lab(5, disk="48m") as lab:
        lab.hosts[FORBIDDEN].sshd_config("DisableForwarding yes")
        with product(lab, place, config(lab.hosts)) as served:
            yield asyncio.run(all_of_it(served))


def test_f18_a_killed_sshd_costs_its_streams_and_is_back(records: Records) -> None:
    told("F18 sshd killed: last stream", records.restarted_s, SUDDEN_S)
    told("F18 sshd killed: rejoined", records.rejoined_s, REJOIN_S)
    assert_told_broken(records.restarted, "F18")
    assert records.restarted_s <= SUDDEN_S
    assert records.rejoined_s <= REJOIN_S


def test_f18_a_refused_key_is_not_offered_again_until_somebody_says_so(records: Records) -> None:
    told("F18 key taken away: no attempt in", QUIET_S, QUIET_S, records.revoked_state)
    assert "ops" in records.revoked_error
    assert records.revoked_state != "ready"
    assert records.attempts_while_revoked == 0
    told("F18 key given back: rejoined", records.readmitted_s, REJOIN_S)
    assert records.readmitted_s <= REJOIN_S


def test_f18_thirty_consoles_at_once_get_in(records: Records) -> None:
    told(f"F18 {CONSOLES} consoles at once", records.consoles_s, BOUND_S)
    assert records.consoles_up == CONSOLES


def test_f18_one_console_shakes_no_more_than_three_hands_at_once(records: Records) -> None:
    print(f"  {records.most_handshakes} handshakes at once for {LINKS} links (≤ {HANDSHAKES})")
    assert 1 <= records.most_handshakes <= HANDSHAKES


def test_f19_without_forwarding_everything_goes_through_sessions(records: Records) -> None:
    whole = [one for one in records.forbidden if one.is_whole]
    assert whole
    for one in records.forbidden:
        assert one.is_unhurt, str(one)


def test_f22_a_flapping_host_starts_no_storm(records: Records) -> None:
    told("F22 flapping: settled", records.settled_s, SETTLED_S)
    print(f"  {records.retries:.0f} retries, {records.requests:.0f} requests")
    print(f"  {records.connections_per_flap:.1f} connections a flap")
    assert records.settled_s <= SETTLED_S
    assert records.retries <= max(RETRY_FLOOR, RETRY_SHARE * records.requests)
    assert records.connections_per_flap <= CONNECTIONS_A_FLAP
    assert_told_broken(records.flapping, "F22")
    assert len(records.fed) > FLAPS * FEEDERS, "the others served all the while"
    for one in records.fed:
        told_of_it = one.is_told_broken and one.host in (RESTARTED, REVOKED, FLAPPING)
        assert one.is_whole or told_of_it, str(one)


def test_f22_a_flapping_host_is_left_alone_longer_each_time(records: Records) -> None:
    for span_s, (_, most_s) in zip(records.ejections_s, EJECTED_S, strict=False):
        told("F22 its engine ejected for", span_s, most_s)
    print(f"  attempts after {', '.join(f'{s:g} of {most:g}' for s, most in records.pauses)} s")
    assert len(records.ejections_s) >= 2
    assert all(one < after for one, after in pairwise(records.ejections_s[: len(EJECTED_S)]))
    for span_s, (least_s, most_s) in zip(records.ejections_s, EJECTED_S, strict=False):
        assert least_s <= span_s <= most_s
    # A line that held for three seconds is no reason to begin anew.
    bounds = [most_s for _, most_s in records.pauses]
    longest = PAUSES_AT_MOST_S[-1]
    expected = [*PAUSES_AT_MOST_S, *[longest] * len(bounds)]
    assert bounds == expected[: len(bounds)]
    assert len(bounds) >= 3, "even with the longest pauses that chance allows"
    assert all(pause_s <= most_s for pause_s, most_s in records.pauses)


def test_engines_never_notice(records: Records) -> None:
    assert records.after == records.before
    assert set(records.processes.values()) == {(1, 1)}
