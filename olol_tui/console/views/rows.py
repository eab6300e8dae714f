"""A view over rows with a cursor: the moves that lists share."""

from __future__ import annotations

from olol_tui.console.views.base import Host, View
from olol_tui.render.filters import Filter
from olol_tui.render.line import Hit


class RowsView(View):
    """Keeps the cursor on an id, so that it does not wander when rows come and go."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.cursor = ""
        """Id of the row with the cursor."""
        self._last_index = 0
        self._first = 0
        self._ids: list[str] = []

    def place_cursor(self, ids: list[str], rows: int) -> int:
        """Take the ids of this frame; the first visible index."""
        self._ids = ids
        self.page = max(1, rows)
        if ids:
            index = self._index()
            self.cursor, self._last_index = ids[index], index
            if index < self._first:
                self._first = index
            elif index >= self._first + rows:
                self._first = index - rows + 1
        self._first = max(0, min(self._first, len(ids) - rows))
        return self._first

    def _index(self) -> int:
        """Where the cursor's row is; the row that took its place when it is gone."""
        try:
            return self._ids.index(self.cursor)
        except ValueError:
            return max(0, min(self._last_index, len(self._ids) - 1))

    def move(self, by: int) -> None:
        if self._ids:
            index = max(0, min(len(self._ids) - 1, self._index() + by))
            self.cursor, self._last_index = self._ids[index], index
        self.host.redraw()

    def do_cursor_up(self) -> None:
        self.move(-1)

    def do_cursor_down(self) -> None:
        self.move(1)

    def do_cursor_first(self) -> None:
        self.move(-len(self._ids))

    def do_cursor_last(self) -> None:
        self.move(len(self._ids))

    def do_page_up(self) -> None:
        self.move(-self.page)

    def do_page_down(self) -> None:
        self.move(self.page)

    def do_describe(self) -> None:
        """Everything known about the row."""

    def click(self, hit: Hit, *, double: bool) -> None:
        index = int(hit.value)
        if index < len(self._ids):
            self.cursor, self._last_index = self._ids[index], index
            if double:
                self.do_describe()
            self.host.redraw()

    def scroll(self, rows: int) -> None:
        self.move(rows)

    def _set_filter(self, new: Filter) -> None:
        super()._set_filter(new)
        self._first = 0
