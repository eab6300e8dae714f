"""The console on a real pseudo terminal: restored after a crash, never waited for."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console.pty_program import SECRET

ROOT = Path(__file__).parents[2]
ALT_SCREEN, MAIN_SCREEN = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """A terminal of 120x36 that reads only when told."""

    def __init__(self, what: str, directory: Path) -> None:
        self.result_file = directory / "result.json"
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
        self.modes = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.console.pty_program", what, str(self.result_file)],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        self.seen = ""

    def read(self, seconds: float, until: str = "") -> None:
        """Read for so long, or until the text was seen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (until and until in self.seen):
            ready, _, _ = select.select([self.master], [], [], 0.1)
            if ready:
                self.seen += os.read(self.master, 1 << 20).decode(errors="replace")
            elif self.process.poll() is not None:
                return
        assert not until or until in self.seen, self.seen[-2000:]

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def result(self) -> dict[str, Any]:
        """Read until the program has ended; what it wrote down."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read(0.2)
        assert self.process.poll() == 0, self.seen[-2000:]
        found: dict[str, Any] = json.loads(self.result_file.read_text())
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self.master, self.slave):
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(request.param, tmp_path)
    yield opened
    opened.close()


@pytest.mark.parametrize("terminal", ["crash"], indirect=True)
def test_a_crash_restores_the_terminal_and_prints_no_locals(terminal: Terminal) -> None:
    terminal.read(60, until="n01/gpu0")
    terminal.type("v")
    result = terminal.result()
    assert result["outcome"] == "crashed"
    assert result["beats"] > 0
    assert terminal.seen.index(ALT_SCREEN) < terminal.seen.rindex(MAIN_SCREEN)
    assert "\x1b[?25h" in terminal.seen[terminal.seen.rindex(MAIN_SCREEN) :]
    assert termios.tcgetattr(terminal.slave)[3] == terminal.modes[3]
    assert SECRET not in terminal.seen
    log = Path(f"{terminal.result_file}.log").read_text()
    assert "boom" in log
    assert SECRET not in log


@pytest.mark.parametrize("terminal", ["attached"], indirect=True)
def test_a_terminal_that_does_not_read_never_stalls_the_loop(terminal: Terminal) -> None:
    """Textual's own driver blocked the loop for 6.5 s here once 30 frames were waiting."""
    terminal.read(60, until="n01/gpu0")
    time.sleep(6)
    terminal.seen = ""
    # What was queued before, then a whole new screen.
    terminal.read(30, until="olol ")
    terminal.read(2)
    assert "n01/gpu0" in terminal.seen
    terminal.type("q")
    result = terminal.result()
    assert result["outcome"] == "quit"
    # One frame is 10 ms here; a shared machine adds its own lateness, a blocked write adds
    # the whole silence.
    assert result["worst_late_s"] < 3.0
    assert MAIN_SCREEN in terminal.seen


@pytest.mark.parametrize("terminal", ["embedded"], indirect=True)
def test_a_terminal_that_is_gone_leaves_the_rest_serving(terminal: Terminal) -> None:
    terminal.read(60, until="n01/gpu0")
    os.close(terminal.slave)
    os.close(terminal.master)
    terminal.master = terminal.slave = -1
    terminal.process.wait(60)
    result = json.loads(terminal.result_file.read_text())
    assert result["outcome"] == "keep-serving"
    assert result["beats"] > 0


@pytest.mark.parametrize("terminal", ["embedded"], indirect=True)
def test_resize_and_quit_by_hand(terminal: Terminal) -> None:
    terminal.read(60, until="n01/gpu0")
    fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.kill(terminal.process.pid, 28)
    terminal.seen = ""
    terminal.read(30, until="last 12s")
    terminal.type("q")
    terminal.read(30, until="keep serving")
    terminal.type("\t\r")
    assert terminal.result()["outcome"] == "quit"
