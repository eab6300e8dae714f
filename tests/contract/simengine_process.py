"""A simulated engine as a child process, for tests that need one on a real port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parents[2]
FAST = {"load_bytes_s": 1e12, "decode_tps": 400, "prefill_tps": 1e6}


class SimProcess:
    """A running engine: its process, port and an HTTP client."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def stats(self) -> dict[str, Any]:
        return dict(self.http.get("/sim/stats").json())

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def fault(self, fault: str, **more: Any) -> None:
        assert self.post("/sim/faults", fault=fault, **more).status_code == 200

    def until(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 20) -> Any:
        """The statistics as soon as they meet the condition."""
        deadline = time.monotonic() + timeout_s
        while True:
            stats = self.stats()
            if condition(stats):
                return stats
            assert time.monotonic() < deadline, f"never happened; last: {stats}"
            time.sleep(0.02)

    def raw(self, path: str, **body: Any) -> socket.socket:
        """A connection on which this POST was sent; its reply is the caller's to read."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        return connection


@contextmanager
def sim_engine(python: str = sys.executable, **config: Any) -> Iterator[SimProcess]:
    """An engine with this configuration over the fast defaults."""
    process = subprocess.Popen(
        [
            *(python, "-m", "olol_tui.agent.simengine", "--port", "0", "--id", "test/sim"),
            *("--config", json.dumps({**FAST, **config})),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("Listening on "), f"did not start, exit {process.wait(10)}"
        engine = SimProcess(process, int(line.rsplit(":", 1)[1]))
        with engine.http:
            yield engine
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()
