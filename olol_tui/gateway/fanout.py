"""Long work in one or several stores at once, told to the client as one progress stream."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from olol_tui.fleet.snapshot import Fleet
from olol_tui.gateway import upstream
from olol_tui.gateway.dialects import errors
from olol_tui.gateway.dialects.progress import SUCCESS, Merge
from olol_tui.gateway.errands import GONE, Errand
from olol_tui.gateway.http import JSON, NDJSON, HttpConnection
from olol_tui.gateway.stores import Store, stores_of

if TYPE_CHECKING:
    from olol_tui.gateway.library import Library

log = logging.getLogger("olol.gateway.library")

LOST_AFTER_S = 60.0
"""A store that cannot be reached for this long has lost its work. Shorter, and a control link
that comes back would cost a download that never stopped."""
_MAX_LINE_BYTES = 1024 * 1024


class _Leg:
    """The part of one store. An upstream.Receiver."""

    def __init__(self, fanout: Fanout, store: Store) -> None:
        self._fanout = fanout
        self._status = 0
        self._rest = b""
        self.store = store
        self.call: upstream.Call | None = None
        self.unreachable_s: float | None = None
        """Since when the fleet shows it as unreachable."""

    def up_head(self, status: int, content_type: bytes) -> None:
        self._status = status

    def up_data(self, data: bytes, final: bool) -> None:
        if self._status != 200:
            self._rest += data
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            self.fail(f"a line of more than {_MAX_LINE_BYTES} bytes")
            return
        for line in lines:
            self._take(line)

    def up_end(self) -> None:
        self.call = None
        if self._status == 200:
            self._take(self._rest)
            self._fanout.ended(self)
        else:
            self._fanout.lost(self, self._status, errors.upstream_message(self._rest))

    def up_lost(self, reason: str) -> None:
        self.call = None
        self._fanout.lost(self, 500, f"upstream lost: {reason}")

    def fail(self, reason: str) -> None:
        call, self.call = self.call, None
        if call is not None:
            call.cancel()
            self._fanout.lost(self, 500, reason)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            told = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            told = None
        if isinstance(told, dict):
            self._fanout.heard(self, told)
        else:
            self.fail("a line of its progress makes no sense")


class Fanout:
    """One request over several stores. Implements http.Handler.

    Ends when every store has ended: in success only if all succeeded, else in an error that
    names who failed. The client leaving ends the work in all of them.
    """

    def __init__(
        self,
        library: Library,
        connection: HttpConnection,
        verb: str,
        path: str,
        stores: Sequence[Store],
        body: dict[str, Any],
        errand: Errand,
        notes: Sequence[str] = (),
    ) -> None:
        """`notes`: told before the first line of the progress, if there is one."""
        self._library = library
        self._errand = errand
        self._connection: HttpConnection | None = connection
        self._verb = verb
        self._stream = body.get("stream") is not False
        self._notes = [{"status": note} for note in notes]
        self._last: dict[str, Any] = {}
        self._over = False
        self._merge = Merge(verb, [store.node for store in stores])
        self._legs = [_Leg(self, store) for store in stores]
        self._unwatch: Callable[[], None] = library.fleet.on_change(self._fleet_changed)
        connection.handler = self
        raw = msgspec.json.encode(body | {"stream": True})
        for leg in self._legs:
            address = leg.store.address
            head = upstream.head("POST", address, path, len(raw), "application/json")
            leg.call = library.pool.call(address, head + raw, leg, fresh=True)

    def _tell(self, lines: list[dict[str, Any]]) -> None:
        connection = self._connection
        if connection is None or not lines:
            return
        lines, self._notes = self._notes + lines, []
        self._last = lines[-1]
        if self._stream:
            if not connection.started:
                connection.begin(200, NDJSON)
            connection.send(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    # -- from the legs

    def heard(self, leg: _Leg, line: dict[str, Any]) -> None:
        self._go_on(self._merge.line(leg.store.node, line))

    def ended(self, leg: _Leg) -> None:
        self._go_on(self._merge.ended(leg.store.node))

    def lost(self, leg: _Leg, status: int, message: str) -> None:
        where = leg.store.node
        log.warning("failed", extra={"verb": self._verb, "where": where, "reason": message})
        self._go_on(self._merge.lost(where, status, message))

    def _go_on(self, lines: list[dict[str, Any]]) -> None:
        self._tell(lines)
        if self._merge.finished and not self._over:
            self._over = True
            self._unwatch()
            self._unwatch = _nothing
            connection = self._connection
            if connection is not None:
                connection.handler = self._library.work(self._finish())

    async def _finish(self) -> None:
        # Whoever hears of the success may ask for the model in the next moment.
        await self._library.survey(self._merge.succeeded)
        connection, self._connection = self._connection, None
        failed = self._merge.error
        self._errand.end(*(failed or (200,)))
        if connection is None:
            return
        if failed is None:
            self._connection = connection
            self._tell([SUCCESS])
            if self._stream:
                connection.end()
            else:
                connection.reply(200, msgspec.json.encode(self._last))
            return
        status, message = failed
        body = errors.error_body("ollama", status, message)
        if connection.started:
            connection.send(body + b"\n")
            connection.end()
        else:
            connection.reply(status, body, JSON)

    # -- http.Handler

    def client_gone(self) -> None:
        log.info("client left", extra={"verb": self._verb})
        self._errand.end(GONE, "the client left")
        self._connection = None
        self._unwatch()
        self._unwatch = _nothing
        for leg in self._legs:
            if leg.call is not None:
                leg.call.cancel()

    def client_paused(self) -> None:
        for leg in self._legs:
            if leg.call is not None:
                leg.call.pause()

    def client_resumed(self) -> None:
        for leg in self._legs:
            if leg.call is not None:
                leg.call.resume()

    # -- the fleet around

    def _fleet_changed(self, fleet: Fleet) -> None:
        """A store behind a link that died silently would never end."""
        stores = stores_of(fleet)
        now_s = self._library.now()
        for leg in self._legs:
            if leg.call is None or stores.on(leg.store.node) is not None:
                leg.unreachable_s = None
            elif leg.unreachable_s is None:
                leg.unreachable_s = now_s
            elif now_s - leg.unreachable_s > LOST_AFTER_S:
                leg.fail(f"it could not be reached for {LOST_AFTER_S:.0f} s")


def _nothing() -> None:
    pass
