"""The agent replaced by another image of itself: pid, engines, connections and streams stay."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.agent_rig import Agent, agent, alive, fake_ollama, spec
from tests.contract.test_agent_pythons import MODERN

HELLO_NEW = "9.9.9"
SIMULATED = {"gpus": 2, "vram_bytes": 2**30, "name": "SIM"}


def variant(original: Path, target: Path, **changes: str) -> tuple[Path, str]:
    """A copy of a zipapp with text replaced in `olol_agent/NAME.py`; (path, sha256)."""
    with zipfile.ZipFile(original) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            for name, code in changes.items():
                if item.filename == f"olol_agent/{name}.py":
                    data = data.replace(b"from __future__ import annotations\n", b"", 1)
                    data = b"from __future__ import annotations\n" + code.encode() + data
            if item.filename == "olol_agent/__init__.py":
                data += f'\n__version__ = "{HELLO_NEW}"\n'.encode()
            new.writestr(item, data)
    target.chmod(0o500)
    return target, hashlib.sha256(target.read_bytes()).hexdigest()


def upgrade(running: Agent, path: Path, sha256: str = "") -> httpx.Response:
    return running.http.post("/v1/upgrade", json={"path": str(path), "sha256": sha256})


def hello(running: Agent) -> dict[str, Any]:
    return running.http.get("/v1/hello").json()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Agent]:
    with agent(tmp_path, simulated=SIMULATED) as running:
        yield running


def with_engines(running: Agent) -> set[int]:
    """Two simulated engines that are ready; their pids."""
    devices = running.http.get("/v1/inventory").json()["devices"]
    specs = [
        {"id": f"n/{i}", "kind": "simulated", "devices": [d["uuid"]]} for i, d in enumerate(devices)
    ]
    assert running.put(*specs).is_success
    return {running.until_state(s["id"], "ready")["pid"] for s in specs}


class Callers:
    """Threads that call the agent without pause, over connections that they keep."""

    def __init__(self, running: Agent, count: int = 4) -> None:
        self.errors: list[str] = []
        self.slowest_s = 0.0
        self.calls = 0
        self._socket = str(running.socket)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def _call(self) -> None:
        transport = httpx.HTTPTransport(uds=self._socket)
        with httpx.Client(transport=transport, base_url="http://agent", timeout=30) as http:
            while not self._stop.is_set():
                began_s = time.monotonic()
                try:
                    http.get("/v1/engines").raise_for_status()
                except httpx.HTTPError as error:
                    self.errors.append(repr(error))
                self.calls += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
                time.sleep(0.005)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Follower:
    """Reads the telemetry in a thread, from one connection."""

    def __init__(self, running: Agent) -> None:
        self.frames: list[dict[str, Any]] = []
        self.ended = ""
        self._socket = str(running.socket)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        transport = httpx.HTTPTransport(uds=self._socket)
        with (
            httpx.Client(transport=transport, base_url="http://agent", timeout=30) as http,
            http.stream("GET", "/v1/telemetry/stream?hz=20") as reply,
        ):
            try:
                for line in reply.iter_lines():
                    self.frames.append(json.loads(line))
                    if self._stop.is_set():
                        return
            except httpx.HTTPError as error:
                self.ended = repr(error)
        self.ended = self.ended or "a clean end"

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("version", MODERN)
def test_an_upgrade_under_load_keeps_pid_engines_connections_and_telemetry(
    version: str, tmp_path: Path
) -> None:
    with agent(tmp_path, python=MODERN[version], simulated=SIMULATED) as running:
        upgrade_under_load(running, tmp_path)


def upgrade_under_load(running: Agent, tmp_path: Path) -> None:
    before, engines = hello(running), with_engines(running)
    path, digest = variant(running.pyz, tmp_path / "new.pyz")
    with Callers(running) as callers, Follower(running) as follower:
        running.until(lambda: callers.calls > 20 and follower.frames, "load")
        reply = upgrade(running, path, digest)
        assert reply.is_success, reply.text
        after = running.until(
            lambda: (found := hello(running))["version"] == HELLO_NEW and found, "the new agent"
        )
        count, calls = len(follower.frames), callers.calls
        running.until(
            lambda: len(follower.frames) > count + 10 and callers.calls > calls + 20, "more load"
        )
    assert callers.errors == []
    assert follower.ended == ""
    assert callers.slowest_s < 5, callers.slowest_s
    assert (after["pid"], after["sha256"]) == (before["pid"], digest)
    assert {engine["pid"] for engine in running.engines()} == engines
    # Nobody saw an engine that was not ready, or a node without devices.
    for frame in follower.frames:
        assert [engine["state"] for engine in frame["engines"]] == ["ready", "ready"]
        assert len(frame["devices"]) == 2
        assert {engine["pid"] for engine in frame["engines"]} == engines
    assert running.process is not None
    assert running.process.poll() is None


def test_an_engine_that_dies_after_an_upgrade_is_reaped_and_its_status_known(
    tmp_path: Path,
) -> None:
    with agent(tmp_path) as running:
        assert running.put(spec("n/o", fake_ollama(tmp_path / "bin"))).is_success
        pid = running.until_state("n/o", "ready")["pid"]
        path, digest = variant(running.pyz, tmp_path / "new.pyz")
        assert upgrade(running, path, digest).is_success
        running.until(lambda: hello(running)["version"] == HELLO_NEW, "the new agent")
        os.kill(pid, signal.SIGKILL)
        running.until(lambda: running.engine("n/o")["restarts"] == 1, "the restart")
        running.until(lambda: not Path(f"/proc/{pid}").exists(), "it is reaped")
        assert running.until_state("n/o", "ready")["pid"] != pid
        log = (running.root / "agent.err").read_text()
        assert "was killed by SIGKILL" in log


def test_a_second_upgrade_and_a_stop_work_as_after_the_first_start(
    running: Agent, tmp_path: Path
) -> None:
    engines = with_engines(running)
    one, _ = variant(running.pyz, tmp_path / "one.pyz")
    for path in (one, running.pyz, one):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert upgrade(running, path, digest).is_success
        running.until(lambda want=digest: hello(running)["sha256"] == want, "the other image")
    assert {engine["pid"] for engine in running.engines()} == engines
    assert running.http.post("/v1/shutdown", json={"engines": "stop"}).is_success
    assert running.process is not None
    assert running.process.wait(30) == 0
    assert not any(alive(pid) for pid in engines)
    assert not running.socket.exists()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"__main__": "import sys; sys.exit('cannot run here')\n"}, "cannot run here"),
        ({"serve": "import no_such_module\n"}, "no_such_module"),
    ],
)
def test_an_image_that_fails_its_check_is_not_taken(
    running: Agent, tmp_path: Path, changes: dict[str, str], why: str
) -> None:
    before = hello(running)
    path, digest = variant(running.pyz, tmp_path / "bad.pyz", **changes)
    reply = upgrade(running, path, digest)
    assert reply.status_code == 409
    assert why in reply.json()["error"]["message"]
    assert hello(running) == before


@pytest.mark.parametrize(
    ("code", "fate"),
    [
        (
            "import sys\nif 'serve' in sys.argv: sys.exit(5)\n",
            "ended at once",
        ),
        (
            "import sys, time\nif 'serve' in sys.argv: time.sleep(60)\n",
            "did not answer within 5 s",
        ),
    ],
)
def test_an_image_that_starts_and_does_not_answer_is_rolled_back(
    tmp_path: Path, code: str, fate: str
) -> None:
    with agent(tmp_path, simulated=SIMULATED) as running:
        before, engines = hello(running), with_engines(running)
        path, digest = variant(running.pyz, tmp_path / "bad.pyz", __main__=code)
        assert upgrade(running, path, digest).is_success
        assert running.process is not None
        running.process.wait(60)
        after = hello(running)  # waits in the listener's queue until somebody serves it
        try:
            assert after["sha256"] == before["sha256"]
            assert {engine["pid"] for engine in running.engines()} == engines
            errors = running.http.get("/v1/inventory").json()["errors"]
            assert any("rolled back" in error and fate in error for error in errors)
        finally:
            running.http.post("/v1/shutdown", json={"engines": "stop"})
            running.until(lambda: not alive(after["pid"]), "the old image ends")


def test_what_cannot_be_an_image_is_refused(running: Agent, tmp_path: Path) -> None:
    missing = upgrade(running, tmp_path / "none.pyz")
    assert (missing.status_code, "No such file" in missing.text) == (400, True)
    path, _ = variant(running.pyz, tmp_path / "new.pyz")
    other = upgrade(running, path, "0" * 64)
    assert (other.status_code, "not what was meant" in other.text) == (400, True)
    path.chmod(0o777)
    assert "can be changed by others" in upgrade(running, path).text
    assert running.http.post("/v1/upgrade", json={"path": "relative.pyz"}).status_code == 400
    assert "version" in hello(running)
