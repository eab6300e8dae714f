"""A Link whose snapshots a test publishes by hand, and that remembers what was wished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from textual.pilot import Pilot

from olol_tui.console.app import ConsoleOptions, OlolApp
from olol_tui.console.canvas import Canvas
from olol_tui.console.sample import panes_fleet
from olol_tui.errors import OlolError
from olol_tui.fleet.commands import Accepted, AnyCommand
from olol_tui.fleet.snapshot import Fleet

NOW_S = 300.0


class FakeLink:
    """Holds the latest published Fleet."""

    def __init__(self, fleet: Fleet | None = None, *, embedded: bool = True) -> None:
        self.fleet = fleet or panes_fleet(NOW_S)
        self.embedded = embedded
        self.commands: list[AnyCommand] = []
        self.refusal: OlolError | None = None
        self.log_lines: list[str] = ["first line", "level=WARN second", "ERROR third"]
        self.logs_asked: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def publish(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._changed.set()

    async def changes(self) -> AsyncIterator[Fleet]:
        while True:
            yield self.fleet
            await self._changed.wait()
            self._changed.clear()

    async def submit(self, command: AnyCommand) -> Accepted:
        if self.refusal is not None:
            raise self.refusal
        self.commands.append(command)
        return Accepted(f"op-{len(self.commands)}")

    async def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]:
        self.logs_asked.append((node, engine))
        for line in self.log_lines[-tail:]:
            yield line
        await asyncio.Event().wait()


class Clock:
    """Time that stands until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_app(
    link: FakeLink, *, read_only: bool = False, theme: str | None = None, clock: Clock | None = None
) -> OlolApp:
    """The console without terminal and without timers."""
    options = ConsoleOptions(read_only=read_only, theme=theme, refresh_hz=0, headless=True)
    return OlolApp(link, options, clock=clock or Clock())


@asynccontextmanager
async def running(
    fleet: Fleet | None = None,
    size: tuple[int, int] = (120, 36),
    *,
    read_only: bool = False,
    embedded: bool = True,
    clock: Clock | None = None,
) -> AsyncIterator[tuple[Pilot[str], OlolApp, FakeLink]]:
    """The console on a screen of this size."""
    link = FakeLink(fleet, embedded=embedded)
    app = make_app(link, read_only=read_only, clock=clock)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield pilot, app, link


def shown(app: OlolApp) -> str:
    """The text of the topmost window, or of the screen when there is none."""
    return app.screen.query_one(Canvas).text
