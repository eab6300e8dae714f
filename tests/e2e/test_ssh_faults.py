"""The promises of a node's link when the network, the host or its sshd fails, each with its number.

A link that is silent takes six seconds to be found out. Therefore all faults happen at the
same time, each on a host of its own with streams running, and the tests look at the records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from olol_tui.ssh.errors import LinkDown, LinkLost
from tests.e2e.streams import Stream, Watched, token_server
from tests.lab import Host, Lab

SILENT_S = 7.0
"""Keepalive 2 s × 2 notices after six seconds; one for a slow machine."""
RESET_S = 1.0
REJOIN_S = 20.0
LOSSY_S = 30.0
LOSSY = {"delay_ms": 20.0, "jitter_ms": 5.0, "loss_pct": 1.0}
BOUND_S = 60.0
"""A record that takes longer is broken itself."""

SILENT = ("drop", "link", "in", "out", "freeze", "power", "stdio drop")
SUDDEN = ("rst", "sshd", "stdio rst")
STREAMS = {"drop": 20}
FEW_STREAMS = 5


@dataclass
class Record:
    """What a fault did to the link of its host."""

    streams: list[Stream]
    road: str
    at_s: float = 0.0
    """When the fault was in force."""
    link_lost_s: float = 0.0
    """From then until the link knew."""
    dial_error: Exception | None = None
    dial_s: float = 0.0
    """How long a dial took to fail once the streams had."""
    rejoined_s: float = 0.0
    """From the end of the fault until the link was up by itself."""
    tokens_after: int = 0
    phases: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    """Of streams that should have lived."""

    @property
    def last_stream_s(self) -> float:
        """From the fault until the last stream had ended."""
        return max(stream.ended_s for stream in self.streams) - self.at_s


class Faults:
    """Breaks hosts and mends them. The lab is not made for several threads: one thing at a time."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def begin(self, host: Host, fault: str) -> None:
        async with self._one:
            await asyncio.to_thread(self._begin, host, fault.removeprefix("stdio "))

    async def end(self, host: Host, fault: str) -> None:
        async with self._one:
            await asyncio.to_thread(self._end, host, fault.removeprefix("stdio "))

    @staticmethod
    def _begin(host: Host, fault: str) -> None:
        if fault == "freeze":
            host.freeze()
        elif fault == "power":
            host.kill()
        elif fault == "sshd":
            # The master and every connection's process: the kernel ends these with a FIN.
            host.exec("kill -9 $(pgrep -x sshd)", "root")
        elif fault == "lossy":
            host.netem(**LOSSY)
        else:
            host.cut(fault)  # type: ignore[arg-type]

    @staticmethod
    def _end(host: Host, fault: str) -> None:
        if fault == "freeze":
            host.thaw()
        elif fault == "power":
            host.boot()
        elif fault != "sshd":
            host.heal()


async def record(lab: Lab, name: str, fault: str, faults: Faults, state: Path) -> Record:
    """One link and its streams through one fault and after it."""
    host = lab.hosts[name]
    watched = Watched(lab, name, state)
    async with watched.link:
        with token_server(host) as address:
            await watched.link.wait_up(BOUND_S)
            count = STREAMS.get(fault, FEW_STREAMS)
            streams = await asyncio.gather(*(watched.stream(address) for _ in range(count)))
            seen = Record(streams, watched.link.state.road)
            asked_s = time.monotonic()
            await faults.begin(host, fault)
            seen.at_s = time.monotonic()
            lost_s = await watched.reaches("lost", asked_s)
            seen.link_lost_s = lost_s - seen.at_s
            await asyncio.gather(*(stream.ended.wait() for stream in streams))
            began_s = time.monotonic()
            try:
                await watched.link.dial(address, Stream)
            except OSError as error:
                seen.dial_error = error
            seen.dial_s = time.monotonic() - began_s
            await faults.end(host, fault)
            mended_s = time.monotonic()
            seen.rejoined_s = await watched.reaches("up", lost_s) - mended_s
        with token_server(host) as address:
            after = await watched.stream(address)
            seen.tokens_after = after.tokens
        seen.phases = [state.phase for _, state in watched.history]
    return seen


async def lossy_record(lab: Lab, name: str, faults: Faults, state: Path) -> Record:
    """A link over a bad line, for as long as the line is bad."""
    host = lab.hosts[name]
    watched = Watched(lab, name, state)
    async with watched.link:
        with token_server(host) as address:
            await watched.link.wait_up(BOUND_S)
            few = range(FEW_STREAMS)
            streams = await asyncio.gather(*(watched.stream(address) for _ in few))
            seen = Record(streams, watched.link.state.road)
            await faults.begin(host, "lossy")
            seen.at_s = time.monotonic()
            await asyncio.gather(*(stream.more(int(LOSSY_S * 10)) for stream in streams))
            seen.phases = [state.phase for _, state in watched.history]
            seen.tokens_after = min(stream.tokens for stream in streams)
            seen.errors = [stream.error for stream in streams if stream.error]
    return seen


async def all_records(lab: Lab, state: Path) -> dict[str, Record | BaseException]:
    faults = Faults()
    names = iter(lab.hosts)
    runs = {}
    for fault in (*SILENT, *SUDDEN):
        name = next(names)
        if fault.startswith("stdio"):
            lab.hosts[name].sshd_config("DisableForwarding yes")
        runs[fault] = record(lab, name, fault, faults, state)
    runs["lossy"] = lossy_record(lab, next(names), faults, state)
    bounded = [asyncio.wait_for(run, BOUND_S) for run in runs.values()]
    done = await asyncio.gather(*bounded, return_exceptions=True)
    return dict(zip(runs, done, strict=True))


@pytest.fixture(scope="module")
def records(
    lab_machine: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Record | BaseException]]:
    with Lab(len(SILENT) + len(SUDDEN) + 1, disk="32m") as lab:
        yield asyncio.run(all_records(lab, tmp_path_factory.mktemp("ssh")))


def of(records: Mapping[str, Record | BaseException], fault: str) -> Record:
    seen = records[fault]
    if isinstance(seen, BaseException):
        raise seen
    return seen


@pytest.mark.parametrize("fault", SILENT)
def test_silence_is_found_out_in_seven_seconds(
    records: Mapping[str, Record | BaseException], fault: str
) -> None:
    seen = of(records, fault)
    assert seen.link_lost_s < SILENT_S
    assert seen.last_stream_s < SILENT_S


@pytest.mark.parametrize("fault", SUDDEN)
def test_a_reset_is_found_out_in_a_second(
    records: Mapping[str, Record | BaseException], fault: str
) -> None:
    seen = of(records, fault)
    assert seen.link_lost_s < RESET_S
    assert seen.last_stream_s < RESET_S


@pytest.mark.parametrize("fault", [*SILENT, *SUDDEN])
def test_a_broken_stream_never_looks_complete(
    records: Mapping[str, Record | BaseException], fault: str
) -> None:
    seen = of(records, fault)
    assert seen.road == ("stdio" if fault.startswith("stdio") else "channels")
    for stream in seen.streams:
        assert isinstance(stream.error, LinkLost)
        assert not stream.eof
        assert stream.in_order


@pytest.mark.parametrize("fault", [*SILENT, *SUDDEN])
def test_a_lost_node_refuses_work_at_once_and_rejoins_by_itself(
    records: Mapping[str, Record | BaseException], fault: str
) -> None:
    seen = of(records, fault)
    assert isinstance(seen.dial_error, LinkDown)
    assert seen.dial_s < 0.5
    assert seen.rejoined_s < REJOIN_S
    assert seen.tokens_after >= 2


def test_a_bad_line_is_not_a_lost_one(records: Mapping[str, Record | BaseException]) -> None:
    """20 ms ± 5 ms and 1 % loss each way, for half a minute: not a single false alarm."""
    seen = of(records, "lossy")
    assert seen.phases == ["connecting", "up"]
    assert seen.errors == []
    for stream in seen.streams:
        assert stream.in_order
        assert stream.longest_gap_s < 5
    assert seen.tokens_after >= LOSSY_S * 10
