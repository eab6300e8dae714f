"""What becomes of a request when its engine or its client does not keep up.

Until the first byte of a reply went out, a lost engine means another try; afterwards it means
one error frame and no proper end.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from olol_tui.gateway.lifecycle import Lifecycle
from olol_tui.routing.queue import Ticket

log = logging.getLogger("olol.gateway")

MAX_RETRIES = 2


class Failover(Lifecycle):
    """Retries, silence, and clients that leave or do not read."""

    __slots__ = ()

    def client_gone(self) -> None:
        self.connection = None
        self.record.cause = "client_left"
        self.cancel("the client left")

    def client_paused(self) -> None:
        if self._call is not None:
            self._call.pause()

    def client_resumed(self) -> None:
        self._touched_s = self._gateway.now()
        if self._call is not None:
            self._call.resume()

    def check(self, now_s: float, first_byte_s: float, idle_s: float) -> None:
        """Called by the sweeper: has the engine fallen silent?"""
        if self._call is None or self._ended:
            return
        connection = self.connection
        if connection is not None and connection.paused:
            # The engine is held back by us: its silence is the client's.
            if now_s - self._touched_s > idle_s:
                self.record.cause = "client_stalled"
                self.cancel(f"the client read nothing for {idle_s:.0f} s")
            return
        limit = first_byte_s if self.record.first_s is None else idle_s
        if now_s - self._touched_s > limit:
            call, self._call = self._call, None
            call.cancel()
            self.record.cause = "engine_silent"
            self._lost(f"{self.record.where}: no byte from the engine for {limit:.0f} s")

    def _lost(self, reason: str) -> None:
        """The engine broke off: try elsewhere, or end with an error that says so."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self.record.cause = self.record.cause or "engine_lost"
        connection = self.connection
        if connection is not None and connection.started:
            self._gateway.engine_failed(self.ticket, reason)
            self._give_back()
            self._end_record("failed", 200, reason)
            self.connection = None
            connection.break_off(self._frame(f"upstream lost: {reason}"))
            return
        if not self._retry(reason, ejects=True, wait=True):
            self._give_back()
            self.refuse(500, f"upstream lost: {reason}")

    def _retry(self, reason: str, *, ejects: bool, wait: bool = False) -> bool:
        """Queue again for another engine; False when there is none or enough was tried.

        Args:
            wait: also when no other engine is there now: ours may come back.
        """
        seat = self.ticket.seat
        if seat is None or self._tries >= MAX_RETRIES:
            return False
        gateway = self._gateway
        if ejects:
            gateway.engine_failed(self.ticket, reason)
        ask = self.ticket.ask
        exclude = ask.exclude | {seat.incarnation}
        if not wait and not gateway.has_other(ask.model, exclude):
            return False
        self._tries += 1
        self._give_back()
        record = self.record
        record.retries += 1
        record.state = "queued"
        record.error = reason
        record.cause = ""
        record.first_s = None
        log.warning("retry", extra={"request": record.id, "model": ask.model, "reason": reason})
        self.ticket = Ticket(
            replace(ask, exclude=exclude),
            self,
            gateway.now(),
        )
        gateway.enqueue(self)
        return True
