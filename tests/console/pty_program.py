"""A console on a real terminal for the tests beside this file: `python -m … WHAT RESULT_FILE`.

Publishes a changing fleet, measures how late the event loop gets, and writes what came of
it as JSON: {"outcome", "worst_late_s", "beats"}.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
from pathlib import Path

from olol_tui.console.app import ConsoleOptions, run_console
from olol_tui.console.sample import list_fleet
from olol_tui.console.views.fleet import FleetView
from tests.console.fake_link import FakeLink

SECRET = "sk-that-no-one-may-see"
BEAT_S = 0.02


async def main(what: str, result_file: Path) -> None:
    link = FakeLink(list_fleet(0.0), embedded=what != "attached")
    late: list[float] = []

    async def publish() -> None:
        second = 0.0
        while True:
            second += 1.0
            link.publish(list_fleet(second))
            await asyncio.sleep(0.05)

    async def beat() -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(BEAT_S)
            late.append(loop.time() - before - BEAT_S)

    def explode(self: FleetView, name: str = SECRET) -> None:
        secret = name
        raise RuntimeError("boom", len(secret))

    if what == "crash":
        FleetView.do_cycle_view = explode  # type: ignore[method-assign,assignment]
    tasks = [asyncio.create_task(publish()), asyncio.create_task(beat())]
    signals = [signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH]
    handlers = [signal.getsignal(number) for number in signals]
    outcome = await run_console(link, ConsoleOptions(refresh_hz=20))
    assert [signal.getsignal(number) for number in signals] == handlers
    assert asyncio.get_running_loop().get_task_factory() is None
    assert gc.get_freeze_count() == 0
    before = len(late)
    await asyncio.sleep(0.5)
    for task in tasks:
        task.cancel()
    result = {"outcome": outcome, "worst_late_s": max(late), "beats": len(late) - before}
    result_file.write_text(json.dumps(result))


if __name__ == "__main__":
    logging.basicConfig(filename=sys.argv[2] + ".log", level=logging.INFO)
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
