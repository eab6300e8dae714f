"""`olol-tui` on a terminal: what becomes of the core when its console ends, by whatever way."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from olol_tui import serving
from olol_tui.config import load
from olol_tui.console.app import ConsoleOptions
from olol_tui.paths import Paths
from tests.contract.serve_rig import COMMAND, SIMULATED, Instance, processes_with


class Terminal:
    """A console in a pseudo terminal of 120x36."""

    def __init__(self, instance: Instance, *args: str, prefix: tuple[str, ...] = ()) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, *args, "--state-dir", str(instance.state_dir)],
            env={**instance.env, "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Its controlling terminal: ctrl+c and hang-ups become signals.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._open = True
        self.seen = ""

    def wait_for(self, text: str, within_s: float = 60.0) -> None:
        """Read until the text has been on the screen."""
        deadline = time.monotonic() + within_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} never came: {self.seen[-3000:]!r}"
            ready, _, _ = select.select([self._master], [], [], 0.5)
            if ready:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    assert text in self.seen, f"ended without {text!r}: {self.seen[-3000:]!r}"

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait(self, within_s: float = 60.0) -> int:
        """The exit code; what it still writes is read meanwhile."""
        deadline = time.monotonic() + within_s
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, f"it does not end: {self.seen[-2000:]!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    continue
        return code

    def hang_up(self) -> None:
        """Close the terminal, as a broken SSH connection does: the kernel sends SIGHUP."""
        os.close(self._master)
        self._open = False

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._open:
            os.close(self._master)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    one = Instance(tmp_path / "state", f"{SIMULATED}[gateway]\nport = 0\n")
    yield one
    one.close()


@pytest.fixture
def terminal(instance: Instance) -> Iterator[Terminal]:
    one = Terminal(instance)
    one.wait_for("sim/gpu0")
    yield one
    one.close()


def answers(instance: Instance) -> bool:
    address = instance.fleet()["gateway"]["address"]
    with urllib.request.urlopen(f"{address}/api/version", timeout=30) as reply:
        return "version" in json.load(reply)


def test_stop_everything_stops_everything(instance: Instance, terminal: Terminal) -> None:
    assert answers(instance)
    terminal.type("q")
    terminal.wait_for("Stop everything")
    terminal.type("\t\r")
    assert terminal.wait() == 0
    assert processes_with(str(instance.state_dir)) == []


def test_a_console_that_goes_leaves_the_gateway_serving(
    instance: Instance, terminal: Terminal
) -> None:
    terminal.type("q")
    terminal.wait_for("keep serving")
    terminal.type("\r")
    terminal.wait_for("Serving at http://127.0.0.1:")
    assert answers(instance)
    terminal.type("\x03")
    assert terminal.wait() == 0


def test_a_lost_terminal_leaves_the_gateway_serving(instance: Instance, terminal: Terminal) -> None:
    terminal.hang_up()
    for _ in range(3):
        assert answers(instance)
        time.sleep(1)
    assert terminal.process.poll() is None
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(60) in (0, 120), "120: Python could not flush to the terminal"


def test_a_demonstration_ends_with_its_terminal_unless_told_otherwise(
    instance: Instance,
) -> None:
    """It once went on for ever, with a fleet of simulated engines and their traffic."""
    demo = ("demo", "--nodes", "1", "--gpus", "1", "--no-traffic", "--port", "0")
    one = Terminal(instance, *demo)
    try:
        one.wait_for("gpu0")
        one.hang_up()
        assert one.process.wait(60) in (0, 120), "120: Python could not flush to the terminal"
        assert processes_with(str(instance.state_dir)) == []
    finally:
        one.close()
    # As nohup does, which would take its output away as well.
    prefix = ("/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    kept = Terminal(instance, *demo, prefix=prefix)
    try:
        kept.wait_for("gpu0")
        kept.hang_up()
        for _ in range(3):
            assert answers(instance)
            time.sleep(1)
        kept.process.send_signal(signal.SIGTERM)
        kept.process.wait(60)
        assert processes_with(str(instance.state_dir)) == []
    finally:
        kept.close()


def test_sigterm_closes_the_console_and_drains(instance: Instance, terminal: Terminal) -> None:
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.wait() == 0
    assert "\x1b[?1049l" in terminal.seen, "the terminal is as it was"


def test_a_second_console_attaches_to_the_first_ones_core(
    instance: Instance, terminal: Terminal
) -> None:
    second = Terminal(instance, "--read-only")
    try:
        second.wait_for("sim/gpu0")
        second.type("q")
        assert second.wait() == 0
        assert answers(instance)
    finally:
        second.close()


def test_a_console_attaches_to_serve_and_leaves_it_alone(instance: Instance) -> None:
    instance.serve()
    console = Terminal(instance)
    try:
        console.wait_for("sim/gpu0")
        console.type("q")
        assert console.wait() == 0
    finally:
        console.close()
    assert answers(instance)
    assert instance.end() == 0


def test_options_that_attaching_would_ignore_are_refused(instance: Instance) -> None:
    instance.serve()
    console = Terminal(instance, "--port", "1234")
    try:
        assert console.wait() == 2
        assert "--port would have no effect" in console.seen
    finally:
        console.close()


async def test_a_console_that_fails_leaves_the_gateway_serving(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, so that a fault can be put into the drawing."""

    async def broken(link: object, options: object) -> str:
        raise ZeroDivisionError("a fault in the drawing")

    monkeypatch.setattr("olol_tui.console.app.run_console", broken)
    paths = Paths.resolve(instance.state_dir)
    running = asyncio.create_task(
        serving.embed(load(paths.config_file), paths, ConsoleOptions(headless=True))
    )
    told = ""
    async with asyncio.timeout(60):
        while "without a console" not in told:
            await asyncio.sleep(0.05)
            told += capsys.readouterr().err
    assert f"The console failed; see {paths.log_file}" in told
    assert "a fault in the drawing" in paths.log_file.read_text()
    assert await asyncio.to_thread(answers, instance)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 60) == 1
