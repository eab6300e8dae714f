"""CPU of the console per tick, and how long it holds the event loop.

    python tests/bench/console.py            # figures and ratios
    python tests/bench/console.py --check    # exit 1 above 1.5 x the reference

64 GPUs, every one of them different on every tick, 2 Hz, on a real pseudo terminal of
120x36 that is read all the time. The figures are thread CPU of the event loop (the best of
four windows) and the longest single callback of those windows. The reference is one canvas
that overrides render_lines, measured on a box on which a loop of 200,000 `x += i * i` takes
17 ms; both are scaled by what that loop takes here.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GPUS, HZ, WIDTH, HEIGHT = 64, 2.0, 120, 36
WINDOWS, TICKS = 4, 12
REFERENCE_LOOP_MS, REFERENCE_TICK_MS, REFERENCE_CALLBACK_MS = 17.0, 5.8, 4.7
LIMIT = 1.5
VIEWS = {"list": "", "panes": "vv"}
"""What is measured, and the keys that lead there."""


def calibrate() -> float:
    """Milliseconds of CPU for the reference loop, best of five."""
    best = float("inf")
    for _ in range(5):
        before, x = time.thread_time(), 0
        for i in range(200_000):
            x += i * i
        best = min(best, time.thread_time() - before)
    return best * 1000


async def console(result_file: Path) -> None:
    """The measured process: a console on its terminal, and one snapshot a tick."""
    from olol_tui.console.app import ConsoleOptions, run_console
    from olol_tui.console.sample import list_fleet
    from olol_tui.fleet.snapshot import Fleet
    from olol_tui.screenshots import StillLink

    fleets = [list_fleet(float(second), GPUS // 8, 8) for second in range(120)]
    longest = 0.0
    ticks = 0

    class MovingLink(StillLink):
        """A new snapshot whenever the console looks: once a tick."""

        @property
        def fleet(self) -> Fleet:
            nonlocal ticks
            ticks += 1
            return fleets[ticks % len(fleets)]

        @fleet.setter
        def fleet(self, value: Fleet) -> None:
            pass

    link = MovingLink(fleets[0])
    run = asyncio.events.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        nonlocal longest
        before = time.thread_time()
        run(handle)
        longest = max(longest, time.thread_time() - before)

    asyncio.events.Handle._run = timed  # type: ignore[method-assign]
    windows: list[tuple[float, float]] = []

    async def measure() -> None:
        nonlocal longest
        while ticks < 6:
            await asyncio.sleep(0.1)
        for _ in range(WINDOWS):
            longest, first, before = 0.0, ticks, time.thread_time()
            await asyncio.sleep(TICKS / HZ)
            spent = time.thread_time() - before
            windows.append((1000 * spent / (ticks - first), 1000 * longest))
        console_task.cancel()

    console_task = asyncio.create_task(run_console(link, ConsoleOptions(refresh_hz=HZ)))
    measuring = asyncio.create_task(measure())
    await asyncio.wait([console_task])
    await measuring
    result = {
        "tick_ms": min(tick_ms for tick_ms, _ in windows),
        "callback_ms": min(callback_ms for _, callback_ms in windows),
        "windows": windows,
        "loop_ms": calibrate(),
    }
    result_file.write_text(json.dumps(result))


def measure_view(keys: str) -> dict[str, Any]:
    """Run the measured process on a pseudo terminal and read all it writes."""
    with tempfile.TemporaryDirectory() as directory:
        result_file = Path(directory) / "result.json"
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(result_file)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TERM": "xterm-256color",
                "COLORTERM": "truecolor",
            },
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        seen, written, typed = b"", 0, False
        try:
            while process.poll() is None:
                ready, _, _ = select.select([master], [], [], 0.2)
                if not ready:
                    continue
                try:
                    chunk = os.read(master, 1 << 20)
                except OSError:
                    break
                written += len(chunk)
                if not typed:
                    seen += chunk
                    if b"n01/gpu0" in seen:
                        os.write(master, keys.encode())
                        typed = True
            if process.wait(30):
                raise SystemExit(f"the console failed: {seen[-2000:]!r}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(master)
        found: dict[str, Any] = json.loads(result_file.read_text())
        found["kib_per_tick"] = written / 1024 / (WINDOWS * TICKS + 6)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help=f"fail above {LIMIT} x reference")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        asyncio.run(console(args.child))
        return 0
    worst = 0.0
    print(f"{GPUS} GPUs, {HZ:g} Hz, {WIDTH}x{HEIGHT}, every GPU new on every tick")
    print("view   loop ms  ms/tick  callback ms  ratio tick  ratio callback  KiB/tick")
    for name, keys in VIEWS.items():
        found = measure_view(keys)
        scale = found["loop_ms"] / REFERENCE_LOOP_MS
        tick = found["tick_ms"] / (REFERENCE_TICK_MS * scale)
        callback = found["callback_ms"] / (REFERENCE_CALLBACK_MS * scale)
        worst = max(worst, tick, callback)
        print(
            f"{name:<6} {found['loop_ms']:7.1f}  {found['tick_ms']:7.2f}  "
            f"{found['callback_ms']:11.2f}  {tick:10.2f}  {callback:14.2f}  "
            f"{found['kib_per_tick']:8.1f}"
        )
    print(f"limit {LIMIT} x: {'kept' if worst <= LIMIT else 'broken'}")
    return 1 if args.check and worst > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
