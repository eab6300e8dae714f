"""Waits for requests to end: of a node that is drained, of an engine that is about to change."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from olol_tui.fleet.crew import Crew
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.operations import Report
from olol_tui.fleet.snapshot import Request

DRAIN_S = 120.0
"""Requests that run longer are cut, with an error that says so."""
CUT_S = 10.0


class Drains:
    def __init__(self, desk: Desk, crew: Crew, cancel: Callable[[str], bool]) -> None:
        self._desk = desk
        self._crew = crew
        self._cancel = cancel

    def node(self, name: str) -> str:
        """Cordon a node and wait for its requests; returns the operation's id.

        Raises:
            PlacementError: there is no such node.
        """
        member = self._crew.member(name)
        self._desk.wishes.set_cordon(name, True)
        member.replan()

        async def work(report: Report) -> str:
            with self._desk.wishes.draining(name):
                left = await self.emptied(report, lambda r: _on(r, name))
            return f"{name} is empty and takes no new work{left}"

        return self._desk.book.start(f"drain {name}", work, key=f"drain {name}")

    async def engines(
        self, report: Report, engine_ids: Iterable[str], timeout_s: float | None = None
    ) -> str:
        """As `emptied`, of these engines; the caller keeps new work away."""
        wanted = frozenset(engine_ids)
        return await self.emptied(report, lambda r: r.engine in wanted, timeout_s)

    async def emptied(
        self, report: Report, which: Callable[[Request], bool], timeout_s: float | None = None
    ) -> str:
        """Wait until no such request is live; what runs longer than the limit is cut.

        Args:
            timeout_s: the limit; None: 120 s.

        Returns:
            What had to be cut, as the end of a sentence; mostly "".
        """

        limit_s = DRAIN_S if timeout_s is None else timeout_s
        # Whoever was given work in this moment is to be known.
        self._desk.publish()

        def check() -> bool | None:
            live = self._live(which)
            if live:
                report.say(f"waits for {_counted(len(live))}")
            return None if live else True

        try:
            await self._desk.until(check, limit_s)
        except TimeoutError:
            late = self._live(which)
            for request in late:
                self._cancel(request.id)
            report.say(f"cuts {_counted(len(late))}")
            try:
                await self._desk.until(check, CUT_S)
            except TimeoutError:
                return f"; {_counted(len(self._live(which)))} would not end"
            return f"; {_counted(len(late))} had to be cut after {limit_s:g} s"
        return ""

    def _live(self, which: Callable[[Request], bool]) -> list[Request]:
        return [r for r in self._desk.running if which(r)]


def _on(request: Request, node: str) -> bool:
    return request.engine.partition("/")[0] == node


def _counted(count: int) -> str:
    return f"{count} request{'' if count == 1 else 's'}"
