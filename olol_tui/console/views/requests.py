"""Screen 3: queues, and requests queued, running and recent."""

from __future__ import annotations

from textual.events import Key

from olol_tui.console.dialogs.ask import Answer, Ask
from olol_tui.console.dialogs.sheet import Sheet
from olol_tui.console.views.base import Host
from olol_tui.console.views.request_actions import RequestActions
from olol_tui.console.views.rows import RowsView
from olol_tui.fleet.commands import CancelRequest
from olol_tui.fleet.snapshot import Request
from olol_tui.render.box import facts
from olol_tui.render.details import request_facts
from olol_tui.render.filters import Fields
from olol_tui.render.line import Frame, Line, Row
from olol_tui.render.palette import Palette
from olol_tui.render.requests import draw_head, draw_rows, is_live, ordered
from olol_tui.render.text import clean

SORTS: dict[str, tuple[str, str]] = {
    "q": ("queue", "queue order"),
    "a": ("age", "age"),
    "m": ("model", "model"),
    "s": ("state", "state"),
    "c": ("client", "client"),
    "w": ("wait", "wait"),
    "f": ("ttft", "first token"),
    "t": ("tokens", "tokens"),
}
"""Letter after `o`: field of `fields_of` and how it is called."""

_WORDS = frozenset({"model", "state", "client"})


def fields_of(request: Request) -> Fields:
    """A request as filter and sort see it."""
    return {
        "id": request.id,
        "state": request.state,
        "model": request.model,
        "client": request.client,
        "class": request.priority,
        "where": request.where,
        "engine": request.engine,
        "path": request.path,
        "error": request.error,
        "age": request.age_s,
        "wait": request.wait_s,
        "ttft": request.ttft_s,
        "tokens": request.tokens,
        "speed": request.tokens_per_s,
        "status": request.status,
    }


class RequestsView(RowsView):
    name = "requests"
    key = "3"
    title = "Requests"

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._sort = "q"
        self._reverse = False
        self._choosing_sort = False
        self._held: tuple[Request, ...] | None = None
        """The requests as they were when the view was paused."""
        self._shown: list[Request] = []
        self._actions = RequestActions(host)

    def _everything(self) -> tuple[Request, ...]:
        return self.scene.fleet.requests if self._held is None else self._held

    def _select(self) -> list[Request]:
        found = ordered(self._everything())
        if self.filter:
            found = [r for r in found if self.filter.passes(fields_of(r))]
        if self._sort != "q":
            field = SORTS[self._sort][0]
            if field in _WORDS:
                found.sort(key=lambda r: str(fields_of(r)[field]), reverse=self._reverse)
            else:
                found.sort(key=lambda r: _figure(r, field), reverse=not self._reverse)
        elif self._reverse:
            found.reverse()
        return found

    def current(self) -> Request | None:
        """The request under the cursor, as it is now; as it was when it is gone."""
        now = (r for r in self.scene.fleet.requests if r.id == self.cursor)
        return next(now, None) or next((r for r in self._shown if r.id == self.cursor), None)

    def draw(self, width: int, height: int) -> Frame:
        self._shown = self._select()
        frame = Frame(draw_head(self.scene, self._everything(), width, height))
        rows = max(1, height - len(frame.lines))
        first = self.place_cursor([r.id for r in self._shown], rows)
        frame.add(draw_rows(self.scene, self._shown, first, rows, width, cursor=self.cursor))
        if not self._shown:
            p = self.scene.palettes.base
            empty = "nothing passes the filter: esc clears it" if self.filter else "no request yet"
            frame.lines.append(Row(width, p.base).gap(2).put(empty, p.muted).end())
        return frame

    def crumbs(self) -> str:
        words = [f"/{self.filter.text}" if self.filter else "all"]
        words.append("▮▮ paused, u resumes" if self._held is not None else "live")
        total = len(self._everything())
        words.append(f"{len(self._shown)} of {total}" if self.filter else f"{total}")
        if self._sort != "q" or self._reverse:
            words.append(f"by {SORTS[self._sort][1]}{'↑' if self._reverse else '↓'}")
        return " · ".join(words)

    def prompt(self, width: int) -> Line | None:
        if self._choosing_sort:
            p = self.scene.palettes.base
            row = Row(width, p.base).gap().put("sort by ", p.muted)
            for letter, (_, words) in SORTS.items():
                row.put(f" {letter} ", p.strong).put(words, p.base)
            return row.put("  again reverses", p.faint).end()
        return super().prompt(width)

    def intercept(self, key: Key) -> bool:
        if self._choosing_sort:
            self._choosing_sort = False
            letter = key.character or ""
            if letter in SORTS:
                self._reverse = not self._reverse if letter == self._sort else False
                self._sort = letter
            self.host.redraw()
            return True
        return super().intercept(key)

    def can(self, action: str) -> bool:
        request = self.current()
        if action == "cancel_request":
            return request is not None and is_live(request)
        if action == "reroute_request":
            return request is not None and request.state == "queued"
        if action == "pause_model":
            return request is not None
        return super().can(action)

    def do_sort_rows(self) -> None:
        self._choosing_sort = True
        self.host.redraw()

    def do_pause_view(self) -> None:
        self._held = self.scene.fleet.requests if self._held is None else None
        self.host.redraw()

    def back(self) -> None:
        self._held = None
        self.host.redraw()

    def do_describe(self) -> None:
        request = self.current()
        if request is None:
            return
        known = [request]

        def content(width: int, p: Palette) -> list[Line]:
            now = (r for r in self.scene.fleet.requests if r.id == known[0].id)
            known[0] = next(now, known[0])
            return facts(request_facts(known[0]), width, p)

        self.host.ask(Sheet(self.host, f"Request {clean(request.id)}", content), lambda _: None)

    def do_open_log(self) -> None:
        request = self.current()
        if request is None or not request.engine:
            self.host.say("this request has no engine yet", severity="warning")
            return
        self.host.open_log(request.engine.split("/", 1)[0], request.engine)

    def do_pause_model(self) -> None:
        if (request := self.current()) is not None:
            self._actions.pause(request)

    def do_reroute_request(self) -> None:
        request = self.current()
        if request is None or request.state != "queued":
            self.host.say("only a request that waits can be sent elsewhere", severity="warning")
            return
        self._actions.reroute(request)

    def do_cancel_request(self) -> None:
        request = self.current()
        if request is None or not is_live(request):
            self.host.say("this request has ended", severity="warning")
            return
        where = f" on {request.where}" if request.where else ""
        text = [
            ("bright", f"Cancel {clean(request.id)}?"),
            ("base", f"{clean(request.model)} for {clean(request.client)}, {request.state}{where}"),
        ]
        if request.tokens:
            text.append(("warn", f"▲ {request.tokens} tokens were sent already"))
        command = CancelRequest(request=request.id)
        dialog = Ask(
            self.host,
            "Cancel a request",
            text,
            [Answer("yes", "Cancel the request")],
            danger=True,
            cancel="Keep it",
        )
        self.host.ask(dialog, lambda _: self.host.submit(command))


def _figure(request: Request, field: str) -> float:
    found = fields_of(request)[field]
    return found if isinstance(found, int | float) else -1.0
