"""The node's end of a stdio session, on every Python that it promises to run on."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from olol_tui.ssh import stdio_node as wire

SOURCE = Path(wire.__file__).read_text()
TIMEOUT_S = 30.0


def pythons() -> dict[str, str]:
    places = [Path(sys.executable)]
    places += [Path(p) for n in range(8, 20) if (p := shutil.which(f"python3.{n}"))]
    places += sorted(Path("~/.pyenv/versions").expanduser().glob("3.*/bin/python"))
    found: dict[str, str] = {}
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in places:
        done = subprocess.run([str(path), "-I", "-c", ask], capture_output=True, text=True)
        version = done.stdout.strip()
        if done.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 8):
            found.setdefault(version, str(path))
    return found


class Node:
    """The process, and frames to and from it."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self.process = process
        self._to = to
        self._back = back
        self._inbox = b""

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        data = wire.HEAD.pack(kind, number, len(payload)) + payload
        while data:
            data = data[os.write(self._to, data) :]

    def _more(self) -> None:
        ready, _, _ = select.select([self._back], [], [], TIMEOUT_S)
        assert ready, "silent"
        data = os.read(self._back, 65536)
        assert data, "ended"
        self._inbox += data

    def greeting(self) -> None:
        while len(self._inbox) < len(wire.GREETING):
            self._more()
        assert self._inbox.startswith(wire.GREETING)
        self._inbox = self._inbox[len(wire.GREETING) :]

    def frame(self) -> tuple[int, int, bytes]:
        while len(self._inbox) < wire.HEAD.size:
            self._more()
        kind, number, length = wire.HEAD.unpack_from(self._inbox)
        end = wire.HEAD.size + length
        while len(self._inbox) < end:
            self._more()
        payload, self._inbox = self._inbox[wire.HEAD.size : end], self._inbox[end:]
        return kind, number, payload

    def silent(self, seconds: float) -> bool:
        return not self._inbox and not select.select([self._back], [], [], seconds)[0]


@contextmanager
def node(python: str = sys.executable, *, pipes: bool = False) -> Iterator[Node]:
    """With one socket for both directions, as OpenSSH does on Linux, or two pipes."""
    argv = [python, "-I", "-c", SOURCE]
    if pipes:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None
        ours = [process.stdin, process.stdout]
        made = Node(process, process.stdin.fileno(), process.stdout.fileno())
    else:
        here, there = socket.socketpair()
        process = subprocess.Popen(argv, stdin=there, stdout=there)
        there.close()
        ours = [here]  # type: ignore[list-item]
        made = Node(process, here.fileno(), here.fileno())
    try:
        made.greeting()
        yield made
    finally:
        for end in ours:
            end.close()
        # Whatever state it is in, it ends when the console is gone.
        assert process.wait(TIMEOUT_S) == 0


@pytest.fixture
def target() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(TIMEOUT_S)
        yield server


def address(server: socket.socket) -> bytes:
    return "{}:{}".format(*server.getsockname()).encode()


@pytest.mark.parametrize("pipes", [False, True], ids=["socket", "pipes"])
@pytest.mark.parametrize("version", pythons())
def test_it_carries(version: str, pipes: bool, target: socket.socket) -> None:
    with node(pythons()[version], pipes=pipes) as mux:
        mux.send(wire.OPEN, 7, address(target))
        assert mux.frame() == (wire.OPENED, 7, b"")
        served, _ = target.accept()
        with served:
            served.settimeout(TIMEOUT_S)
            mux.send(wire.DATA, 7, b"ask")
            assert served.recv(3) == b"ask"
            served.sendall(b"answer")
            assert mux.frame() == (wire.DATA, 7, b"answer")
            mux.send(wire.EOF, 7)
            assert served.recv(1) == b""
        assert mux.frame() == (wire.EOF, 7, b"")
        assert mux.frame() == (wire.CLOSE, 7, b"")
        mux.send(wire.DATA, 7, b"too late")
        mux.send(wire.OPEN, 8, b"127.0.0.1:1")
        kind, number, payload = mux.frame()
        assert (kind, number) == (wire.FAILED, 8)
        assert b"refused" in payload


@pytest.mark.parametrize(
    "where", [b"unix:/nowhere", b"unix:" + b"x" * 300, b"name.invalid:80", b"::", b"127.0.0.1:x"]
)
def test_what_cannot_be_opened(where: bytes) -> None:
    with node() as mux:
        mux.send(wire.OPEN, 1, where)
        assert mux.frame()[:2] == (wire.FAILED, 1)


def test_no_more_than_the_credit(target: socket.socket) -> None:
    with node() as mux:
        mux.send(wire.OPEN, 1, address(target))
        mux.frame()
        served, _ = target.accept()
        with served:
            served.setblocking(False)
            deadline_s = time.monotonic() + 1
            while time.monotonic() < deadline_s:
                try:
                    served.send(b"x" * 65536)
                except BlockingIOError:
                    time.sleep(0.01)
            received = 0
            while received < wire.WINDOW:
                received += len(mux.frame()[2])
            assert received == wire.WINDOW
            assert mux.silent(0.2)
            mux.send(wire.CREDIT, 1, (1000).to_bytes(4, "big"))
            assert len(mux.frame()[2]) == 1000
            assert mux.silent(0.2)


def test_credit_is_given_back_for_what_was_taken(target: socket.socket) -> None:
    with node() as mux:
        mux.send(wire.OPEN, 1, address(target))
        mux.frame()
        served, _ = target.accept()
        with served:
            served.settimeout(TIMEOUT_S)
            for _ in range(4):
                mux.send(wire.DATA, 1, b"y" * 32768)
            taken = 0
            while taken < 4 * 32768:
                taken += len(served.recv(65536))
            kind, number, payload = mux.frame()
            assert (kind, number) == (wire.CREDIT, 1)
            assert int.from_bytes(payload, "big") == wire.WINDOW // 2


def test_a_closed_stream_is_closed_there(target: socket.socket) -> None:
    with node() as mux:
        for number in range(100):
            mux.send(wire.OPEN, number, address(target))
            assert mux.frame()[0] == wire.OPENED
            served, _ = target.accept()
            with served:
                mux.send(wire.CLOSE, number)
                served.settimeout(TIMEOUT_S)
                assert served.recv(1) == b""
        files = len(os.listdir(f"/proc/{mux.process.pid}/fd"))
        assert files < 12
