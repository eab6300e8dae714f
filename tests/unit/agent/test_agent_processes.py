"""Processes and sockets as /proc tells them, against real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from olol_tui.agent import client, foreign, ports, proc
from olol_tui.agent.process import Process

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@contextmanager
def web(body: bytes) -> Iterator[int]:
    """An HTTP server that answers every GET with this body; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


async def test_a_process_is_followed_to_its_end(tmp_path: Path) -> None:
    ended = asyncio.Event()
    argv = [sys.executable, "-c", "print('hello'); raise SystemExit(3)"]
    process = Process.start(argv, dict(os.environ), tmp_path / "log", tmp_path, ended.set)
    await asyncio.wait_for(ended.wait(), 60)
    assert process.returncode == 3
    assert (tmp_path / "log").read_text() == "hello\n"
    assert proc.describe_exit(process.returncode) == "exited with status 3"


async def test_an_adopted_process_is_followed_and_stopped(tmp_path: Path) -> None:
    child = subprocess.Popen(SLEEP, start_new_session=True)
    try:
        found = proc.stat(child.pid)
        assert found is not None
        assert Process.adopt(child.pid, found.starttime + 1, lambda: None) is None, "another one"
        ended = asyncio.Event()
        process = Process.adopt(child.pid, found.starttime, ended.set)
        assert process is not None
        waiter = asyncio.get_running_loop().run_in_executor(None, child.wait)
        await process.stop(30)
        assert ended.is_set()
        # It is a child of this process too: whoever collects it first hears how it ended.
        assert -signal.SIGTERM in (process.returncode, await waiter)
    finally:
        child.kill()
        child.wait()


async def test_a_kernel_without_pidfd_is_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "pidfd_open", lambda _: None)
    ended = asyncio.Event()
    argv = [sys.executable, "-c", "pass"]
    Process.start(argv, dict(os.environ), tmp_path / "log", tmp_path, ended.set)
    await asyncio.wait_for(ended.wait(), 60)


def test_names_with_spaces_and_parentheses_do_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "a) (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "600"])
    try:
        found = proc.stat(child.pid)
        assert found is not None
        assert found.comm == "a) (b"
        assert found.pgrp == os.getpgid(child.pid)
        assert found.session == os.getsid(child.pid)
        assert proc.is_running(child.pid, found.starttime)
    finally:
        child.kill()
        child.wait()
    assert not proc.is_running(child.pid, found.starttime)
    assert proc.stat(child.pid) is None


def test_who_listens_on_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert proc.session_listens(os.getsid(0), port) is True
        assert proc.session_listens(1 << 22, port) is False
    assert proc.session_listens(os.getsid(0), port) is None


def test_ports_are_outside_the_ephemeral_range_and_free() -> None:
    low, high = ports.ephemeral_range()
    first = ports.choose("seed", set())
    assert not low <= first <= high
    assert ports.choose("seed", {first}) != first
    assert ports.choose("seed", set(), prefer=first) == first
    with socket.create_server(("127.0.0.1", first)):
        assert ports.choose("seed", set(), prefer=first) != first
    starts = {next(ports.candidates(seed)) for seed in "abcdef"}
    assert len(starts) > 3, "agents start looking at different places"


async def test_an_ollama_that_runs_already_is_found_by_its_port() -> None:
    with web(b'{"version": "0.12.3"}') as port:
        found = await foreign.find(set(), ollama_port=port)
        assert {"url": f"http://127.0.0.1:{port}", "version": "0.12.3", "pid": None} in found
        own = await foreign.find({os.getsid(0)}, ollama_port=port)
        assert not [f for f in own if f["url"].endswith(f":{port}")], "our own is not foreign"


async def test_an_ollama_on_any_port_is_found_by_its_name(tmp_path: Path) -> None:
    script = (
        "import http.server, ctypes\n"
        "ctypes.CDLL(None).prctl(15, b'ollama', 0, 0, 0)\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        '        self.wfile.write(b\'{"version": "1.2.3"}\')\n'
        "    def log_message(self, *a): pass\n"
        "s = http.server.HTTPServer(('0.0.0.0', 0), H); print(s.server_port, flush=True)\n"
        "s.serve_forever()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            wanted = {"url": f"http://127.0.0.1:{port}", "version": "1.2.3", "pid": child.pid}
            assert wanted in await foreign.find(set(), ollama_port=1)
        finally:
            child.kill()


async def test_what_listens_on_ollamas_port_but_is_none_is_not_shown() -> None:
    with web(b"<html>") as port:
        assert not [
            f for f in await foreign.find(set(), ollama_port=port) if f["url"].endswith(f":{port}")
        ]


async def test_a_call_to_nobody_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(client.CallError, match=r"within 0\.05 s"):
            await client.call(port, "/", timeout_s=0.05)
    with pytest.raises(client.CallError, match=str(port)):
        await client.call(port, "/", timeout_s=5)


async def test_a_call_to_something_that_is_not_http_says_so() -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp ready\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(client.CallError, match="does not speak HTTP"):
            await client.call(port, "/", timeout_s=30)
