"""Requests as their owners and operators see them: the list, one with its reasons, cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from olol_tui.gateway import http
from olol_tui.gateway.keys import Key
from olol_tui.gateway.records import Record
from olol_tui.routing.policy import Decision

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway
    from olol_tui.gateway.pausing import Pausing

ROOT = "/olol/v1/requests"
_REROUTE = "/reroute"
_HEADER_CHARS = 1000

Handle = Callable[[http.HttpConnection, http.Request], None]


class Requests:
    """Routes under `/olol/v1/requests`. A key sees its own requests, an admin's all."""

    def __init__(self, gateway: Gateway, pausing: Pausing) -> None:
        self._gateway = gateway
        self._pausing = pausing

    def methods_of(self, path: str) -> dict[bytes, Handle]:
        """What can be done with one request, by its path."""
        if path.endswith(_REROUTE):
            return {b"POST": self.reroute}
        return {b"GET": self.one, b"DELETE": self.cancel}

    def every(self, connection: http.HttpConnection, request: http.Request) -> None:
        ledger = self._gateway.ledger
        views = ledger.views(self._gateway.dispatcher.places())
        if not _sees_all(request.key):
            shown = {r.id for r in (*ledger.finished, *ledger.live.values()) if _owns(request, r)}
            views = tuple(view for view in views if view.id in shown)
        connection.reply(200, msgspec.json.encode({"requests": views}))

    def one(self, connection: http.HttpConnection, request: http.Request) -> None:
        record = self._find(request)
        if record is None:
            self._unknown(connection, request)
            return
        place = self._gateway.dispatcher.place(record.id)
        shown: dict[str, Any] = msgspec.to_builtins(record.view(self._gateway.now(), place))
        shown["cause"] = record.cause
        shown["retries"] = record.retries
        shown["replays"] = record.replays
        shown["tried"] = record.tried
        shown["decision"] = None if record.why is None else explain(record.why)
        connection.reply(200, msgspec.json.encode(shown))

    def cancel(self, connection: http.HttpConnection, request: http.Request) -> None:
        record = self._find(request)
        if record is None:
            self._unknown(connection, request)
        elif self._gateway.dispatcher.cancel(record.id):
            connection.reply(200, msgspec.json.encode({"id": record.id, "state": "cancelled"}))
        else:
            message = f"the request {record.id} has ended: {record.state}"
            self._gateway.error(connection, request, 409, message)

    def reroute(self, connection: http.HttpConnection, request: http.Request) -> None:
        record = self._find(request)
        if record is None:
            self._unknown(connection, request)
        elif not _sees_all(request.key):
            message = "only a key with the scope 'admin' may choose where requests go"
            self._gateway.error(connection, request, 403, message)
        else:
            self._pausing.reroute(connection, request, record.id)

    def _find(self, request: http.Request) -> Record | None:
        request_id = _id(request)
        ledger = self._gateway.ledger
        record = ledger.live.get(request_id) or next(
            (one for one in ledger.finished if one.id == request_id), None
        )
        if record is None or not (_sees_all(request.key) or _owns(request, record)):
            return None
        return record

    def _unknown(self, connection: http.HttpConnection, request: http.Request) -> None:
        # The same words for one that is somebody else's: ids are easy to guess.
        request_id = _id(request)
        message = f"no request {request_id[:40]!r} runs or ended lately"
        self._gateway.error(connection, request, 404, message)


def _id(request: http.Request) -> str:
    return request.path.removeprefix(ROOT + "/").removesuffix(_REROUTE)


def _sees_all(key: Key | None) -> bool:
    """Without keys everybody is the operator, as of Ollama."""
    return key is None or key.may("admin")


def _owns(request: http.Request, record: Record) -> bool:
    return request.key is not None and request.key.id == record.key_id


def explain(why: Decision) -> dict[str, Any]:
    """A decision with its costs, seconds."""
    return {
        "action": why.action,
        "reason": why.reason,
        "chosen": "" if why.seat is None else why.seat.where,
        "candidates": [
            {
                "where": one.seat.where,
                "wait_s": one.wait_s,
                "load_s": one.load_s,
                "prefill_s": one.prefill_s,
                "ttft_s": one.ttft_s,
            }
            for one in why.candidates
        ],
        "rejected": [{"where": one.where, "reason": one.reason} for one in why.rejected],
    }


def wants_why(request: http.Request) -> bool:
    return request.headers.get(b"x-olol-why", b"0") not in (b"", b"0")


def why_header(why: Decision | None, tried: tuple[str, ...]) -> bytes:
    """`X-Olol-Why`, one line of printable ASCII whatever a model or node is called."""
    text = "" if why is None else why.text
    text = "; ".join((text, *(f"tried before: {one}" for one in tried)))
    plain = "".join(c if " " <= c <= "~" else "?" for c in text[:_HEADER_CHARS])
    return f"X-Olol-Why: {plain}\r\n".encode("ascii")
