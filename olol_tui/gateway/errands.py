"""Calls that change what the stores hold, remembered as requests are: who, which model, how long.

They queue for no engine and count in no speed: only the archive and the access log hear of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from olol_tui.fleet.snapshot import RequestState
from olol_tui.gateway.http import HttpConnection, Request
from olol_tui.gateway.records import Record

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

GONE = 499
"""The client left: nobody saw a status."""


class Errand:
    """One such call. `end` it once; what comes later is not heard."""

    def __init__(
        self,
        gateway: Gateway,
        connection: HttpConnection,
        request: Request,
        model: str,
        where: str = "",
    ) -> None:
        key = request.key
        self._gateway = gateway
        self._record = Record(
            gateway.ledger.new_id(),
            model,
            "ollama",
            request.path,
            connection.peer if key is None else key.name,
            gateway.now(),
            stream=False,
            key_id="" if key is None else key.id,
            where=where,
            method=request.method.decode("latin-1"),
        )

    def end(self, status: int, error: str = "") -> None:
        record = self._record
        if record.ended_s is not None:
            return
        state: RequestState = "done" if status < 400 else "failed"
        record.state = "cancelled" if status == GONE else state
        record.cause = "client_left" if status == GONE else ""
        record.status, record.error = status, error
        record.ended_s = self._gateway.now()
        if self._gateway.archive is not None:
            self._gateway.archive.put(record)
