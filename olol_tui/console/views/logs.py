"""Screen 5: the log of one engine or of a node's agent, live."""

from __future__ import annotations

import asyncio
from collections import deque

from olol_tui.console.views.base import Host, View
from olol_tui.errors import OlolError
from olol_tui.render.filters import Filter
from olol_tui.render.line import Frame, Line, Row
from olol_tui.render.logs import draw_log
from olol_tui.render.nodes import engine_state
from olol_tui.render.text import clean
from olol_tui.render.tiles import GLYPHS

KEPT_LINES = 5000
TAIL_LINES = 400
"""Lines asked for when a log is opened."""


class LogsView(View):
    name = "logs"
    key = "5"
    title = "Logs"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.node = ""
        self.engine = ""
        """Empty for the node's agent."""
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._follow = True
        self._wrap = False
        self._up = 0
        """Lines between the last visible one and the newest."""
        self._reader: asyncio.Task[None] | None = None
        self._ended = ""
        self._opener = ""
        """The screen that the log was opened from."""

    def show(self, node: str, engine: str, opener: str = "") -> None:
        """Read this log from now on; escape leads back to the screen `opener`."""
        if opener != self.name:
            self._opener = opener or self._opener
        if (node, engine) != (self.node, self.engine):
            self._lines.clear()
            self.node, self.engine = node, engine
        self._follow, self._up = True, 0
        self._stop()
        self._start()

    def opened(self) -> None:
        if not self.node:
            self.do_next_log()
        elif self._reader is None:
            self._start()

    def closed(self) -> None:
        self._stop()

    def _start(self) -> None:
        self._lines.clear()
        self._ended = ""
        self._reader = self.host.chore(self._read(self.node, self.engine))

    def _stop(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    async def _read(self, node: str, engine: str) -> None:
        try:
            async for line in self.host.logs(node, engine, tail=TAIL_LINES):
                self._lines.append(line)
                if not self._follow:
                    self._up = min(self._up + 1, KEPT_LINES)
        except OlolError as error:
            self._ended = str(error)
        else:
            self._ended = "the log has ended"

    def _passing(self) -> list[str]:
        if not self.filter:
            return list(self._lines)
        return [x for x in self._lines if self.filter.passes({"line": x})]

    def draw(self, width: int, height: int) -> Frame:
        p = self.scene.palettes.base
        self.page = max(1, height - 3)
        lines = self._passing()
        self._up = max(0, min(self._up, len(lines) - self.page))
        if self._up == 0 and not self._follow and not lines:
            self._follow = True
        shown = lines[: len(lines) - self._up] if self._up else lines
        frame = Frame([self._title_line(width, len(lines)), self._rule(width)])
        drawn = draw_log(shown, width, self.page, p, wrap=self._wrap)
        if not drawn:
            words = self._ended or "no line yet" if self.node else "no engine to show"
            drawn = [Row(width, p.base).gap(2).put(words, p.muted).end()]
        frame.lines.extend(drawn)
        if self._ended and lines and not self._up:
            row = Row(width, p.base).gap().put(f"── {self._ended}", p.faint, max(0, width - 2))
            frame.lines.append(row.end())
        return frame

    def _rule(self, width: int) -> Line:
        p = self.scene.palettes.base
        return Row(width, p.faint).raw("─" * width, width, p.faint).end()

    def _title_line(self, width: int, total: int) -> Line:
        p = self.scene.palettes.base
        row = Row(width, p.base).gap()
        engine = self.scene.fleet.engine(self.engine)
        if engine is not None:
            state = engine_state(engine)
            row.put(GLYPHS[state] + " ", p.state(state)).put(engine.id, p.bright).gap(2)
            row.put(engine.state, p.state(state)).gap(2)
            if engine.error:
                row.put(engine.error, p.state(state), max(0, min(60, row.left - 34))).gap(2)
        else:
            row.put(f"agent of {self.node}" if self.node else "-", p.bright).gap(2)
        follow = "follow ●" if self._follow else f"follow ○ {self._up} below"
        tail = f"{follow}  wrap {'on' if self._wrap else 'off'}  {total} lines"
        return row.right(tail, p.muted, margin=1).end()

    def crumbs(self) -> str:
        words = f"/{self.filter.text} · " if self.filter else ""
        return f"{words}{clean(self.engine or self.node) or '-'}"

    # -- keys --

    def _scroll_up(self, by: int) -> None:
        total = len(self._passing())
        self._up = max(0, min(total - self.page, self._up + by))
        self._follow = self._up == 0
        self.host.redraw()

    def do_cursor_up(self) -> None:
        self._scroll_up(1)

    def do_cursor_down(self) -> None:
        self._scroll_up(-1)

    def do_page_up(self) -> None:
        self._scroll_up(self.page)

    def do_page_down(self) -> None:
        self._scroll_up(-self.page)

    def do_cursor_first(self) -> None:
        self._scroll_up(KEPT_LINES)

    def do_cursor_last(self) -> None:
        self._scroll_up(-KEPT_LINES)

    def scroll(self, rows: int) -> None:
        self._scroll_up(-rows)

    def do_follow_log(self) -> None:
        self._follow = not self._follow
        if self._follow:
            self._up = 0
        self.host.redraw()

    def do_wrap_log(self) -> None:
        self._wrap = not self._wrap
        self.host.redraw()

    def do_next_log(self) -> None:
        """The next engine's log; the first one that fails when none was shown."""
        engines = [e for n in self.scene.fleet.nodes for e in (*n.engines, *n.helpers)]
        if not engines:
            nodes = self.scene.fleet.nodes
            if nodes:
                self.show(nodes[0].name, "")
            return
        ids = [e.id for e in engines]
        if self.engine in ids:
            index = (ids.index(self.engine) + 1) % len(ids)
        else:
            index = next((i for i, e in enumerate(engines) if e.state in ("backoff", "failed")), 0)
        self.show(engines[index].node, engines[index].id)
        self.host.redraw()

    def back(self) -> None:
        if self._up:
            self._scroll_up(-KEPT_LINES)
        elif self._opener:
            self.host.show_view(self._opener)

    def _set_filter(self, new: Filter) -> None:
        super()._set_filter(new)
        self._up = 0
