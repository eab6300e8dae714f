"""Bodies with an image of 20 MB: what they cost in memory, and what other streams feel of them.

    python tests/bench/bodies.py

Starts an engine (tests/bench/upstream.py) and `olol-tui --serve` with it as an endpoint. While
STREAMS streams of 20 tokens/s pass, SENDERS clients of a process of their own send bodies of
20 MB, each as fast as it is taken. Rounds with and without them are interleaved. Reported: the
gateway's resident memory (largest ever, VmHWM) against a run without bodies, how late tokens come
beside those bodies, and the longest steps of the gateway's event loop: the CPU time of a single
callback, during which no token of another stream can pass. The lateness also holds what the
machine is busy with beside the gateway (sender and engine move the same bytes); the steps do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.gateway import HERE, StreamClient, free_port, gateway, process, request

BODY_BYTES = 20 * 10**6
SENDERS = 2
STREAMS = 50
TOKENS = 100
ROUNDS = 3


async def send_bodies(port: int) -> None:
    """For ever; a line for each that was answered. Runs as a process of its own."""
    image = b"A" * BODY_BYTES
    body = b'{"model":"bench:1b","prompt":"what?","images":["%s"]}' % image
    head = (
        b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )

    async def one() -> None:
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head)
            for at in range(0, len(body), 2**18):
                writer.write(body[at : at + 2**18])
                await writer.drain()
            reply = await reader.read()
            assert reply.startswith(b"HTTP/1.1 200"), reply[:200]
            print("sent", flush=True)
            writer.close()

    await asyncio.gather(*(one() for _ in range(SENDERS)))


async def lateness(port: int) -> list[float]:
    """Seconds that each token was late, sorted."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    payload = request(port, num_predict=TOKENS)
    ends: list[asyncio.Future[int]] = []
    for _ in range(STREAMS):
        ended: asyncio.Future[int] = loop.create_future()
        ends.append(ended)
        await loop.create_connection(
            lambda e=ended: StreamClient(payload, late, e), "127.0.0.1", port
        )
        await asyncio.sleep(1 / 20 / STREAMS)
    counts = await asyncio.gather(*ends)
    assert set(counts) == {TOKENS}, "a stream was cut"
    return sorted(late)


def memory_mib(pid: int, field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def serve(arguments: list[str]) -> int:
    """olol-tui, which also writes down how long the steps of its event loop took."""
    from olol_tui import cli
    from olol_tui.gateway.http import HttpConnection
    from olol_tui.gateway.spool import Pump
    from olol_tui.gateway.upstream import UpstreamConnection

    steps: dict[str, list[float]] = {}

    def measured(owner: type, name: str) -> None:
        step = getattr(owner, name)
        taken = steps[f"{owner.__name__}.{name}"] = []

        def run(*given: Any) -> None:
            began = time.thread_time()
            step(*given)
            taken.append(time.thread_time() - began)

        setattr(owner, name, run)

    measured(HttpConnection, "data_received")
    measured(UpstreamConnection, "data_received")
    measured(Pump, "_send")
    try:
        return cli.main(arguments)
    finally:
        Path(os.environ["OLOL_BENCH_STEPS"]).write_text(json.dumps(steps))


def told(late: list[float]) -> str:
    return (
        f"p50 {late[len(late) // 2] * 1e3:5.2f}, p99 {late[int(len(late) * 0.99)] * 1e3:6.2f}, "
        f"p99.9 {late[int(len(late) * 0.999)] * 1e3:6.2f}, max {late[-1] * 1e3:6.1f} ms"
    )


async def rounds(port: int, pid: int) -> None:
    await lateness(port)
    before = memory_mib(pid, "VmHWM")
    quiet: list[float] = []
    loaded: list[float] = []
    sent = 0
    seconds = 0.0
    for _ in range(ROUNDS):
        quiet += await lateness(port)
        began = time.monotonic()
        command = [sys.executable, str(Path(__file__).resolve()), "send", str(port)]
        with process(*command, ready="sent") as sender:
            loaded += await lateness(port)
            sender.terminate()
            assert sender.stdout is not None
            sent += 1 + sum(1 for _ in sender.stdout)
        seconds += time.monotonic() - began
    moved = sent * BODY_BYTES / 1e6
    print(f"{sent} bodies of {BODY_BYTES / 1e6:.0f} MB, {moved / seconds:.0f} MB/s")
    after = memory_mib(pid, "VmHWM")
    print(f"largest RSS of the gateway: {before:.0f} MiB without bodies, {after:.0f} MiB with them")
    print(f"lateness without bodies: {told(sorted(quiet))}")
    print(f"lateness beside them:    {told(sorted(loaded))}")


async def main() -> None:
    upstream = free_port()
    engine = process(sys.executable, str(HERE / "upstream.py"), str(upstream), ready="ready")
    program = (str(Path(__file__).resolve()), "serve")
    with tempfile.TemporaryDirectory() as name, engine:
        file = Path(name) / "steps.json"
        os.environ["OLOL_BENCH_STEPS"] = str(file)
        with gateway(Path(name), upstream, program) as (port, pid):
            await rounds(port, pid)
        for step, taken in json.loads(file.read_text()).items():
            taken.sort()
            p99 = taken[int(len(taken) * 0.99)] if taken else 0.0
            print(
                f"{step:32} {len(taken):6} times, CPU p99 {p99 * 1e3:.2f}, "
                f"max {max(taken, default=0.0) * 1e3:.2f} ms"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["send"]:
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(send_bodies(int(sys.argv[2])))
    elif sys.argv[1:2] == ["serve"]:
        sys.exit(serve(sys.argv[2:]))
    else:
        uvloop.run(main())
