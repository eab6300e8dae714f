"""An agent as a real process, driven over its UNIX socket, and a tiny engine for it to keep.

The engine is a script called `ollama` that answers the two routes which supervision
needs; what it should do wrong is told through its environment.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from olol_tui import agent_zip

REPOSITORY = Path(__file__).resolve().parents[2]

QUICK = {
    "backoff_first_s": 0.1,
    "backoff_max_s": 0.4,
    "healthy_after_s": 60,
    "stop_grace_s": 5,
    "ready_probe_s": 0.05,
    "poll_s": 0.1,
    "start_timeout_s": 30,
}
"""Supervision at the pace of a test."""

FAKE_OLLAMA = """#!{python}
import http.server, json, os, signal, subprocess, sys, time

if os.environ.get("FAKE_CRASH"):
    print("cannot find my cards", file=sys.stderr)
    sys.exit(7)
if os.environ.get("FAKE_IGNORE_TERM"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if os.environ.get("FAKE_DUMP"):
    with open(os.environ["FAKE_DUMP"], "w") as file:
        json.dump({{"env": dict(os.environ), "argv": sys.argv}}, file)
if os.environ.get("FAKE_CHILD"):
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(os.environ["FAKE_CHILD"], "w") as file:
        file.write(str(helper.pid))

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if os.environ.get("FAKE_MUTE"):
            time.sleep(600)
        if self.path == "/api/version":
            body = {{"version": "0.99.1"}}
        else:
            path = os.environ.get("FAKE_PS", "")
            body = json.load(open(path)) if path else {{"models": []}}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *args):
        pass

host, port = os.environ["OLLAMA_HOST"].split(":")
server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
print("listening", flush=True)
server.serve_forever()
"""


class Agent:
    """A running agent. `kill` and `start` again to see what it remembers."""

    def __init__(
        self,
        root: Path,
        *,
        python: str = sys.executable,
        policy: dict[str, Any] | None = None,
        simulated: dict[str, Any] | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.root = root
        self.socket = root / "run" / "a.sock"
        self.state = root / "state"
        self.pyz = agent_zip.cached(root / "cache")
        self.argv = [python, "-I", str(self.pyz), "serve", "--socket", str(self.socket)]
        self.argv += ["--state-dir", str(self.state), "--policy", json.dumps(policy or QUICK)]
        if simulated is not None:
            self.argv += ["--simulated", json.dumps(simulated)]
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)),
            base_url="http://agent",
            timeout=60,
        )

    def start(self) -> Agent:
        with (self.root / "agent.err").open("ab") as err:
            self.process = subprocess.Popen(
                self.argv, env=self.env, stdin=subprocess.DEVNULL, stdout=err, stderr=err
            )
        self.until(self._answers, "the agent answers")
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.root / "agent.err").read_text()
        # httpx leaks its socket when it cannot connect: look first.
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(self.socket)):
                return False
        with suppress(httpx.TransportError):  # of the agent that was just killed
            return self.http.get("/v1/hello").json()["pid"] == self.process.pid
        return False

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it and return its exit status; its engines are left alone."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(30)

    def put(self, *specs: dict[str, Any], generation: int = 1) -> httpx.Response:
        body = {"generation": generation, "engines": list(specs)}
        return self.http.put("/v1/engines", json=body)

    def engines(self) -> list[dict[str, Any]]:
        return self.http.get("/v1/engines").json()["engines"]

    def engine(self, identity: str) -> dict[str, Any]:
        return next(e for e in self.engines() if e["id"] == identity)

    def until_state(self, identity: str, state: str, timeout_s: float = 60) -> dict[str, Any]:
        """The engine's status as soon as it is in this state."""
        deadline = time.monotonic() + timeout_s
        last: dict[str, Any] = {}
        while time.monotonic() < deadline:
            last = self.engine(identity)
            if last["state"] == state:
                return last
            time.sleep(0.03)
        raise AssertionError(f"{identity} never became {state}; last: {last}")

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.03)
        raise AssertionError(f"never happened: {what}")

    def restart_engine(self, identity: str) -> httpx.Response:
        return self.http.post(f"/v1/engines/{quote(identity, safe='')}/restart")

    def close(self) -> None:
        """End the agent and every process it ever started."""
        process = self.process
        if process is not None and process.poll() is None:
            with suppress(httpx.TransportError):
                self.http.post("/v1/shutdown", json={"engines": "stop"})
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(30)
        self.http.close()
        for pid in left_behind(self.state):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def agent(root: Path, **options: Any) -> Iterator[Agent]:
    running = Agent(root, **options)
    try:
        yield running.start()
    finally:
        running.close()


def left_behind(state: Path) -> list[int]:
    """Living processes that carry the mark of an agent with this state directory."""
    found = []
    mark = f"OLOL_AGENT_STATE={state}".encode()
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                if mark in (path / "environ").read_bytes() and alive(int(path.name)):
                    found.append(int(path.name))
    return found


def alive(pid: int) -> bool:
    """True for a process that runs; a zombie does not."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def fake_ollama(directory: Path) -> str:
    """A directory that holds the tiny engine, for `binary`."""
    directory.mkdir(exist_ok=True)
    program = directory / "ollama"
    program.write_text(FAKE_OLLAMA.format(python=sys.executable))
    program.chmod(0o755)
    return str(directory)


def spec(identity: str, binary: str, **more: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "kind": "ollama",
        "devices": ["cpu"],
        "binary": binary,
        **more,
    }
