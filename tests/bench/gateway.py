"""CPU of the gateway per request beside nginx, and what it adds between two tokens.

    python tests/bench/gateway.py            # both
    python tests/bench/gateway.py cpu        # CPU per request, ratio to nginx proxy_pass
    python tests/bench/gateway.py streams    # 500 streams of 20 tokens/s

Starts its own engine (tests/bench/upstream.py), nginx (one worker, keep-alive upstream) and
`olol-tui --serve` with that engine as an endpoint: routing, queue, request records and rates
are on. CPU is the process's own user+system time from /proc, rounds are interleaved, the
median of each is reported. Needs nginx on PATH for the ratio.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

HERE = Path(__file__).parent
CLIENTS = 32
REQUESTS = 8000
ROUNDS = 5
STREAMS = 500
STREAM_TOKENS = 200
PROMPT = "x" * 320
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def request(port: int, **options: Any) -> bytes:
    """About 400 bytes, as a chat front-end would send."""
    body = json.dumps({"model": "bench:1b", "prompt": PROMPT, "options": options}).encode()
    head = (
        f"POST /api/generate HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """Sends the same request again and again, counting ends of replies."""

    def __init__(self, payload: bytes, left: list[int], done: asyncio.Event) -> None:
        self.payload, self.left, self.done = payload, left, done
        self.tail = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        if self.left[0] <= 0:
            self.transport.close()
            return
        self.left[0] -= 1
        self.transport.write(self.payload)

    def data_received(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-5:] if len(data) < 5 else data[-5:]
        if self.tail == b"0\r\n\r\n":
            self.tail = b""
            self.left[1] += 1
            if self.left[1] >= self.left[2]:
                self.done.set()
            self.next()


async def load(port: int, count: int) -> float:
    """Seconds for `count` requests over CLIENTS connections."""
    loop = asyncio.get_running_loop()
    left, done = [count, 0, count], asyncio.Event()
    started = time.perf_counter()
    payload = request(port)
    for _ in range(CLIENTS):
        await loop.create_connection(lambda: Client(payload, left, done), "127.0.0.1", port)
    await asyncio.wait_for(done.wait(), 120)
    return time.perf_counter() - started


class StreamClient(asyncio.Protocol):
    """One paced stream; notes how late each token came after the engine sent it."""

    def __init__(self, payload: bytes, late: list[float], ended: asyncio.Future[int]) -> None:
        self.payload, self.late, self.ended = payload, late, ended
        self.rest = b""
        self.tokens = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.payload)

    def data_received(self, data: bytes) -> None:
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b'{"response"'):
                self.tokens += 1
                self.late.append(now - json.loads(line)["sent"])
            elif b'"done":true' in line:
                self.ended.set_result(self.tokens)
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(-1)


async def streams(port: int) -> tuple[list[float], int]:
    """(lateness of every token in seconds, tokens lost)."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    payload = request(port, num_predict=STREAM_TOKENS)
    ends = []
    for index in range(STREAMS):
        ended: asyncio.Future[int] = loop.create_future()
        ends.append(ended)
        await loop.create_connection(
            lambda e=ended: StreamClient(payload, late, e), "127.0.0.1", port
        )
        if index % 10 == 9:
            await asyncio.sleep(1 / 20 / (STREAMS / 10) * 2)
    counts = await asyncio.gather(*ends)
    return late, sum(STREAM_TOKENS - max(0, count) for count in counts)


def cpu_s(pid: int) -> float:
    """User and system time of a process and its children so far."""
    total = 0.0
    for process in (pid, *children(pid)):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) * TICK_S
    return total


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@contextlib.contextmanager
def process(*command: str, ready: str) -> Iterator[subprocess.Popen[str]]:
    """A process that printed its ready line; ended at the end."""
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        for line in running.stdout:
            if line.startswith(ready):
                break
        else:
            raise SystemExit(f"{command[0]} did not start")
        yield running
    finally:
        running.terminate()
        running.wait(30)


@contextlib.contextmanager
def nginx(directory: Path, upstream: int) -> Iterator[tuple[int, int]]:
    """(port, pid) of a one-worker nginx in front of the engine."""
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(
        f"""
        worker_processes 1; daemon off; pid {directory}/nginx.pid; error_log stderr crit;
        events {{ worker_connections 4096; }}
        http {{
          access_log off; keepalive_requests 10000000;
          client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
          fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
          upstream engine {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 10000000; }}
          server {{ listen 127.0.0.1:{port} backlog=1024;
            location / {{ proxy_pass http://engine; proxy_http_version 1.1;
              proxy_set_header Connection ""; proxy_buffering off; }} }}
        }}
        """
    )
    running = subprocess.Popen(["nginx", "-c", str(config), "-p", str(directory)])
    try:
        wait_for(port)
        yield port, running.pid
    finally:
        running.terminate()
        running.wait(30)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on {port}")


@contextlib.contextmanager
def gateway(
    directory: Path,
    upstream: int,
    program: tuple[str, ...] = ("-m", "olol_tui"),
    *,
    settings: str = "max_queue = 2000",
    slots: int = 1000,
) -> Iterator[tuple[int, int]]:
    """(port, pid) of `olol-tui --serve` with the engine as its endpoint.

    Args:
        settings: lines of the table `gateway`.
        slots: of the endpoint.
    """
    config = directory / "cluster.toml"
    config.write_text(
        f"""
        [gateway]
        port = 0
        {settings}
        [nodes.local]
        local = true
        engine = "simulated"
        simulated = {{ gpus = 1, vram = "1GiB" }}
        [endpoints.bench]
        url = "http://127.0.0.1:{upstream}"
        slots = {slots}
        """
    )
    command = [sys.executable, *program, "--serve", "--config", str(config)]
    command += ["--state-dir", str(directory / "state")]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert running.stdout is not None
    try:
        address = running.stdout.readline().split()[-1]
        port = int(address.rpartition(":")[2])
        wait_until_routed(port)
        yield port, running.pid
    finally:
        running.terminate()
        running.wait(60)
        stop = [sys.executable, "-m", "olol_tui", "stop", "--state-dir", str(directory / "state")]
        subprocess.run(stop, check=True, stdout=subprocess.DEVNULL)


def wait_until_routed(port: int) -> None:
    """Until the endpoint was polled and answers through the gateway."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.create_connection(("127.0.0.1", port), 5) as probe:
            probe.sendall(request(port))
            if probe.recv(65536).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.2)
    raise SystemExit("the gateway does not route to the engine")


async def bench_cpu(upstream: int, directory: Path) -> None:
    have_nginx = shutil.which("nginx") is not None
    with contextlib.ExitStack() as stack:
        targets = {"gateway": stack.enter_context(gateway(directory, upstream))}
        if have_nginx:
            targets["nginx"] = stack.enter_context(nginx(directory, upstream))
        await asyncio.sleep(3)
        print(f"gateway RSS idle: {rss_mib(targets['gateway'][1]):.0f} MiB")
        figures: dict[str, list[float]] = {name: [] for name in targets}
        rates: dict[str, list[float]] = {name: [] for name in targets}
        for _ in range(ROUNDS):
            for name, (port, pid) in targets.items():
                before = cpu_s(pid)
                took = await load(port, REQUESTS)
                figures[name].append((cpu_s(pid) - before) / REQUESTS * 1e6)
                rates[name].append(REQUESTS / took)
        for name in targets:
            each = ", ".join(f"{value:.0f}" for value in figures[name])
            print(
                f"{name:8} {statistics.median(figures[name]):6.1f} µs CPU a request "
                f"({each}), {statistics.median(rates[name]):,.0f} requests/s"
            )
        if have_nginx:
            ratio = statistics.median(figures["gateway"]) / statistics.median(figures["nginx"])
            print(f"ratio to nginx: {ratio:.2f} (wanted: at most 3.5)")


async def bench_streams(upstream: int, directory: Path) -> None:
    with gateway(directory, upstream) as (port, pid):
        results = {}
        for name, target in (("direct", upstream), ("gateway", port)):
            before = cpu_s(pid)
            late, lost = await streams(target)
            late.sort()
            results[name] = late[int(len(late) * 0.99)]
            print(
                f"{name:8} {STREAMS} streams × {STREAM_TOKENS} tokens: lateness p50 "
                f"{late[len(late) // 2] * 1e3:.2f} ms, p99 {results[name] * 1e3:.2f} ms, "
                f"max {late[-1] * 1e3:.1f} ms, lost {lost}, "
                f"gateway CPU {cpu_s(pid) - before:.1f} s, RSS {rss_mib(pid):.0f} MiB"
            )
        added = (results["gateway"] - results["direct"]) * 1e3
        print(f"added p99: {added:.2f} ms (wanted: under 10)")


async def main(which: str) -> None:
    port = free_port()
    engine = process(sys.executable, str(HERE / "upstream.py"), str(port), ready="ready")
    with tempfile.TemporaryDirectory() as name, engine:
        if which in ("", "cpu"):
            await bench_cpu(port, Path(name))
        if which in ("", "streams"):
            (Path(name) / "streams").mkdir()
            await bench_streams(port, Path(name) / "streams")


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1] if len(sys.argv) > 1 else ""))
