"""What a token loses on its way through SSH, beside direct TCP in the same run.

    python -m tests.bench.ssh_streams [--streams 50] [--rate 20] [--seconds 5] [--uvloop]

A sender writes 50-byte messages that carry the time; streams to it go directly, by SSH
channel and over a session's stdio, one after the other through the same event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from olol_tui.gateway.upstream import Dial, dial_tcp
from olol_tui.ssh.link import NodeLink
from tests.contract.ssh_rig import TIMEOUT_S, connector, service, sshd

MESSAGE_BYTES = 50
_STAMP = struct.Struct("!d")


@dataclass(frozen=True, slots=True)
class Delay:
    """One road's delays, one way, senders and receivers included."""

    messages: int
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Of this process, sender and receiver together, for each message."""


class _Reader(asyncio.Protocol):
    def __init__(self, delays_s: list[float]) -> None:
        self._delays_s = delays_s
        self._rest = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter()
        data = self._rest + data
        whole = len(data) - len(data) % MESSAGE_BYTES
        for at in range(0, whole, MESSAGE_BYTES):
            self._delays_s.append(now_s - _STAMP.unpack_from(data, at)[0])
        self._rest = data[whole:]


async def delay(dial: Dial, address: str, streams: int, seconds: float) -> Delay:
    """Open the streams, listen for a while, and close them."""
    delays_s: list[float] = []
    readers = [await dial(address, lambda: _Reader(delays_s)) for _ in range(streams)]
    await asyncio.sleep(0.3)
    delays_s.clear()
    cpu_s = time.process_time()
    await asyncio.sleep(seconds)
    cpu_s = time.process_time() - cpu_s
    taken = sorted(delays_s)
    for reader in readers:
        assert isinstance(reader, _Reader) and reader.transport is not None
        reader.transport.abort()
    await asyncio.sleep(0.1)
    return Delay(
        len(taken),
        statistics.median(taken) * 1e3,
        taken[len(taken) * 99 // 100] * 1e3,
        cpu_s / len(taken) * 1e6,
    )


def sender(rate: float) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Writes `rate` messages a second, not in step with other streams."""

    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due_s = time.perf_counter() + os.urandom(1)[0] / 256 / rate
        while True:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            if writer.transport.is_closing():
                return
            due_s += 1 / rate
            writer.write(_STAMP.pack(time.perf_counter()).ljust(MESSAGE_BYTES, b"."))

    return send


async def compare(streams: int, rate: float, seconds: float) -> dict[str, Delay]:
    """Delays by road: `direct`, `channels`, `stdio`."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        found: dict[str, Delay] = {}
        async with service(directory / "s", sender(rate)) as node:
            found["direct"] = await delay(dial_tcp, node.tcp, streams, seconds)
            for road, config in (("channels", ""), ("stdio", "DisableForwarding yes")):
                with sshd(directory / road, config) as server:
                    by = connector(directory / road)
                    up = NodeLink("n1", server.target(), by, python=sys.executable)
                    async with up:
                        await up.wait_up(TIMEOUT_S)
                        found[road] = await delay(up.dial, node.tcp, streams, seconds)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--uvloop", action="store_true")
    args = parser.parse_args()
    factory = None
    if args.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        found = runner.run(compare(args.streams, args.rate, args.seconds))
    base = found["direct"]
    print(f"{'road':10} {'msg':>7} {'p50 ms':>8} {'added':>7} {'p99 ms':>8} {'CPU µs':>7}")
    for road, one in found.items():
        print(
            f"{road:10} {one.messages:7} {one.p50_ms:8.2f} {one.p50_ms - base.p50_ms:7.2f} "
            f"{one.p99_ms:8.2f} {one.cpu_us:7.0f}"
        )


if __name__ == "__main__":
    main()
