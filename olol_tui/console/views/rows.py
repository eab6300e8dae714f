"""Views over rows with a cursor: the moves that lists share."""

from __future__ import annotations

from collections.abc import Sequence

from olol_tui.console.views.base import Host, View
from olol_tui.render.filters import Filter
from olol_tui.render.line import Hit


class RowCursor:
    """A cursor that stays on an id, so that it does not wander when rows come and go."""

    def __init__(self) -> None:
        self.id = ""
        """Of the row with the cursor."""
        self._index = 0
        self._first = 0
        self._ids: Sequence[str] = ()

    def place(self, ids: Sequence[str], rows: int) -> int:
        """Take the ids of this frame; the first visible index."""
        self._ids = ids
        if ids:
            index = self._where()
            self.id, self._index = ids[index], index
            if index < self._first:
                self._first = index
            elif index >= self._first + rows:
                self._first = index - rows + 1
        self._first = max(0, min(self._first, len(ids) - rows))
        return self._first

    def _where(self) -> int:
        """Where the cursor's row is; the row that took its place when it is gone."""
        try:
            return self._ids.index(self.id)
        except ValueError:
            return max(0, min(self._index, len(self._ids) - 1))

    def move(self, by: int) -> None:
        self.pick(max(0, min(len(self._ids) - 1, self._where() + by)))

    def pick(self, index: int) -> bool:
        """Go to a row; False when there is none."""
        if not 0 <= index < len(self._ids):
            return False
        self.id, self._index = self._ids[index], index
        return True

    def to_end(self, *, last: bool) -> None:
        self.pick(len(self._ids) - 1 if last else 0)

    def rewind(self) -> None:
        """Show from the first row on, as far as the cursor allows."""
        self._first = 0


class RowsView(View):
    """A view whose body is one list; `rows` is the cursor that the keys move."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.rows = RowCursor()

    @property
    def cursor(self) -> str:
        """Id of the row with the cursor."""
        return self.rows.id

    def place_cursor(self, ids: Sequence[str], rows: int) -> int:
        """Take the ids of this frame; the first visible index."""
        self.page = max(1, rows)
        return self.rows.place(ids, rows)

    @property
    def moving(self) -> RowCursor:
        """The cursor that the keys move now."""
        return self.rows

    def move(self, by: int) -> None:
        self.moving.move(by)
        self.host.redraw()

    def do_cursor_up(self) -> None:
        self.move(-1)

    def do_cursor_down(self) -> None:
        self.move(1)

    def do_cursor_first(self) -> None:
        self.moving.to_end(last=False)
        self.host.redraw()

    def do_cursor_last(self) -> None:
        self.moving.to_end(last=True)
        self.host.redraw()

    def do_page_up(self) -> None:
        self.move(-self.page)

    def do_page_down(self) -> None:
        self.move(self.page)

    def do_describe(self) -> None:
        """Everything known about the row."""

    def click(self, hit: Hit, *, double: bool) -> None:
        if self.rows.pick(int(hit.value)):
            if double:
                self.do_describe()
            self.host.redraw()

    def scroll(self, rows: int) -> None:
        self.move(rows)

    def _set_filter(self, new: Filter) -> None:
        super()._set_filter(new)
        self.rows.rewind()
