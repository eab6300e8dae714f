"""`cluster.toml` changes under a core that serves: followed as a whole, and no request is cut."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import termios
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.serve_rig import COMMAND, Instance

MODEL = "llama3.2:1b"
NODE = """
[nodes.{name}]
local = true
engine = "simulated"
slots = {slots}
simulated = {{ gpus = 1, vram = "8GiB", load_bytes_s = 2e10, decode_tps = 20, name = "{name}" }}
"""


def file_of(*nodes: tuple[str, int], gateway: str = "port = 0") -> str:
    tables = "".join(NODE.format(name=name, slots=slots) for name, slots in nodes)
    return f"# The fleet.\n[gateway]\n{gateway}\n{tables}"


class Stream(threading.Thread):
    """One chat that takes some seconds."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.lines: list[dict[str, Any]] = []
        self.engine = ""
        self.failure = ""
        self.began = threading.Event()
        self.start()

    def run(self) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "count"}],
        }
        request = urllib.request.Request(f"{self._address}/api/chat", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                self.engine = reply.headers["X-Olol-Engine"]
                for line in reply:
                    self.lines.append(json.loads(line))
                    self.began.set()
        except OSError as error:
            self.failure = str(error)
        finally:
            self.began.set()

    @property
    def is_whole(self) -> bool:
        self.join(120)
        assert not self.failure, self.failure
        last = self.lines[-1]
        return last.get("done") is True and last["eval_count"] == len(self.lines) - 1


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    one = Instance(tmp_path / "state", file_of(("a", 2), ("b", 2)))
    yield one
    one.close()


def write(instance: Instance, text: str) -> None:
    (instance.state_dir / "cluster.toml").write_text(text)


def fleet_of(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/olol/v1/fleet", timeout=30) as reply:
        fleet: dict[str, Any] = json.load(reply)
    return fleet


def until(
    address: str, condition: Callable[[dict[str, Any]], object], within_s: float = 60.0
) -> dict[str, Any]:
    """The first fleet that meets the condition."""
    deadline = time.monotonic() + within_s
    while True:
        fleet = fleet_of(address)
        if condition(fleet):
            return fleet
        shown = json.dumps({key: fleet[key] for key in ("alerts", "operations")})
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def names(fleet: dict[str, Any]) -> list[str]:
    return [node["name"] for node in fleet["nodes"]]


def told(fleet: dict[str, Any]) -> str:
    return "\n".join(alert["message"] for alert in fleet["alerts"])


def status_of(address: str, size: int, **headers: str) -> int:
    request = urllib.request.Request(f"{address}/api/show", b" " * size, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_core_in_a_terminal_ends_with_its_terminal(instance: Instance) -> None:
    """SIGHUP is also what the kernel sends then; it must not be taken for «read the file»."""
    master, slave = pty.openpty()
    command = [*COMMAND, "--serve", "--port", "0", "--state-dir", str(instance.state_dir)]
    with (instance.state_dir / "stderr.log").open("a") as log:
        process = subprocess.Popen(
            command,
            env=instance.env,
            stdin=slave,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
    instance.served.append(process)
    os.close(slave)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready "), instance.log
    process.send_signal(signal.SIGHUP)
    until_log(instance, "is taken up")
    assert process.poll() is None, "the terminal is still there"
    os.close(master)
    assert process.wait(60) == 0


def until_log(instance: Instance, text: str, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while text not in instance.log:
        assert time.monotonic() < deadline, instance.log
        time.sleep(0.05)


def test_a_file_that_changes_is_followed_and_no_stream_is_cut(instance: Instance) -> None:
    address = instance.serve("--serve")
    until(address, lambda f: all(e["state"] == "ready" for n in f["nodes"] for e in n["engines"]))
    pids = {name: engine["pid"] for name, engine in instance.engines().items()}
    streams = [Stream(address) for _ in range(4)]
    for stream in streams:
        assert stream.began.wait(60)
    assert {stream.engine for stream in streams} == set(pids), "both engines compute"

    # Not valid: nothing of it is followed, not even what is right.
    write(instance, file_of(("a", 2), gateway="max_body_bytes = 10\nmax_queue = -1\nprot = 1"))
    wrong = until(address, lambda f: "not followed" in told(f))
    for part in ("cluster.toml has 2 problems", "line 4, gateway.max_queue: expected 0 or more"):
        assert part in told(wrong)
    assert "line 5, gateway.prot: unknown field" in told(wrong)
    assert names(wrong) == ["a", "b"] and status_of(address, 100) == 400
    assert "line 4, gateway.max_queue" in instance.log
    assert "gateway.max_queue" in instance.run("status").stdout

    # Valid: c joins and the gateway's part holds at once; b's engine must stop for another
    # number of slots, and a leaves, as soon as their streams have ended.
    gateway = 'max_body_bytes = 10\nport = 1\ncors_origins = ["https://chat.example.org"]'
    write(instance, file_of(("b", 3), ("c", 1), gateway=gateway))
    followed = until(address, lambda f: "c" in names(f) and "not followed" not in told(f))
    assert any(stream.is_alive() for stream in streams)
    assert {"a", "b"} <= set(names(followed)), "their streams still run"
    assert "gateway.port = 1 holds from the next start" in told(followed)
    assert status_of(address, 100) == 413
    assert status_of(address, 5, Origin="https://chat.example.org") == 400
    assert status_of(address, 5, Origin="https://evil.example.org") == 403
    assert all(stream.is_whole for stream in streams), [stream.lines[-1] for stream in streams]
    until(address, lambda f: names(f) == ["b", "c"])
    changed = until(
        address,
        lambda f: (
            all(e["state"] == "ready" and e["slots"] for n in f["nodes"] for e in n["engines"])
            and f["nodes"][0]["engines"][0]["slots"] == 3
        ),
    )
    assert changed["nodes"][0]["engines"][0]["pid"] != pids["b/simulated-gpu0"]

    # SIGHUP reads it too, at once; a line that does not concern b leaves its engine alone.
    pid = changed["nodes"][0]["engines"][0]["pid"]
    write(instance, file_of(("b", 3), ("c", 1), gateway="port = 0\nmax_body_bytes = 100"))
    os.kill(instance.process.pid, signal.SIGHUP)
    until(address, lambda f: status_of(address, 50) == 400)
    assert instance.engines()["b/simulated-gpu0"]["pid"] == pid
    assert not told(until(address, lambda f: not told(f))), "the port is as it was started"

    # Whoever moves the file away by accident loses nothing.
    (instance.state_dir / "cluster.toml").rename(instance.state_dir / "aside.toml")
    gone = until(address, lambda f: "is gone" in told(f))
    assert names(gone) == ["b", "c"]
    (instance.state_dir / "aside.toml").rename(instance.state_dir / "cluster.toml")
    until(address, lambda f: not told(f))
    assert instance.end() == 0
