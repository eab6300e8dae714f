"""`olol-tui` as a user starts it: real processes, one state directory each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

READY_WITHIN_S = 60.0
COMMAND = [sys.executable, "-m", "olol_tui"]
SIMULATED = """
[nodes.sim]
local = true
engine = "simulated"
simulated = { gpus = 2, vram = "8GiB", load_bytes_s = 2e10, decode_tps = 50 }
"""


class Instance:
    """A state directory, and what runs in it."""

    def __init__(self, state_dir: Path, config: str = SIMULATED) -> None:
        self.state_dir = state_dir
        state_dir.mkdir(parents=True, exist_ok=True)
        (state_dir / "cluster.toml").write_text(config)
        self.env = {**os.environ, "NO_COLOR": "1"}
        self.served: list[subprocess.Popen[str]] = []

    def run(self, *args: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        return subprocess.run(
            [*COMMAND, *args, "--state-dir", str(self.state_dir)],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def serve(self, *args: str) -> str:
        """Start `--serve` (or `args`) and return its URL once it says that it is ready."""
        arguments = args or ("--serve", "--port", "0")
        with (self.state_dir / "stderr.log").open("a") as log:
            process = subprocess.Popen(
                [*COMMAND, *arguments, "--state-dir", str(self.state_dir)],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.served.append(process)
        assert process.stdout is not None
        # readline has no time limit of its own.
        guard = threading.Timer(READY_WITHIN_S, process.kill)
        guard.start()
        line = process.stdout.readline()
        guard.cancel()
        assert line.startswith("ready http://"), self.log
        return line.removeprefix("ready ").strip()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal the latest `serve`, wait for it, return its exit code."""
        process = self.served[-1]
        process.send_signal(number)
        code = process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
        return code

    @property
    def process(self) -> subprocess.Popen[str]:
        return self.served[-1]

    @property
    def log(self) -> str:
        """What the served processes wrote on stderr."""
        return (self.state_dir / "stderr.log").read_text()

    def fleet(self) -> dict[str, Any]:
        done = self.run("status", "--json")
        assert done.returncode == 0, done.stderr
        fleet: dict[str, Any] = json.loads(done.stdout)
        return fleet

    def engines(self) -> dict[str, dict[str, Any]]:
        """Engine id → engine, of the running core."""
        return {
            engine["id"]: engine for node in self.fleet()["nodes"] for engine in node["engines"]
        }

    def close(self) -> None:
        """Leave no process behind."""
        for process in self.served:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        done = self.run("stop")
        assert done.returncode == 0, done.stderr


def processes_with(text: str) -> list[int]:
    """Pids of processes whose command line holds the text (a state directory, say)."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            command = (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(int(path.name))
    return found
