"""What becomes of a request when its engine or its client does not keep up.

Until the first byte of a reply went out, a lost engine means another try; afterwards it means
one error frame and no proper end. A client that leaves says nothing about its engine.
"""

from __future__ import annotations

import logging

from msgspec import structs

from olol_tui.gateway.lifecycle import Lifecycle
from olol_tui.routing.patience import Patience
from olol_tui.routing.roster import Seat

log = logging.getLogger("olol.gateway")

MAX_RETRIES = 2
STALLED_S = 60.0
"""A client that reads nothing for so long has left its slot to others."""
BUSY_S = 30.0
"""How long a request goes round engines that all say they are busy, from its arrival."""
MAX_TRIED = 7
"""Sentences kept of earlier tries, the newest ones: a busy engine may be asked often."""


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

    def excuse(self, held_s: float, now_s: float) -> None:
        """The gateway itself stood still for so long: what came meanwhile is still unread."""
        self._touched_s = min(now_s, self._touched_s + held_s)

    def check(self, now_s: float, patience: Patience) -> None:
        """Called by the sweeper: has the engine fallen silent, or the client?"""
        seat = self.ticket.seat
        silent_s = now_s - self._touched_s
        if self._call is None or self._ended or seat is None:
            return
        connection = self.connection
        if connection is not None and connection.paused:
            # The engine is held back by us: its silence is the client's.
            if silent_s > STALLED_S:
                self.record.cause = "client_stalled"
                self.cancel(f"the client read nothing for {STALLED_S:.0f} s")
            return
        if silent_s < patience.probe_after_s:
            return
        pulse, since_s = self._gateway.pulse, self._touched_s
        if pulse.is_dead(seat, since_s, now_s, patience.probe_after_s):
            self._lost(f"{seat.where}: the engine does not answer at all", "engine_frozen")
            return
        limit_s = patience.token_s if self._begun else self._first_byte_s(seat, patience)
        if silent_s > limit_s:
            cause = "token_timeout" if self._begun else "first_byte_timeout"
            self._lost(f"{seat.where}: no byte from the engine for {limit_s:.0f} s", cause)

    def _first_byte_s(self, seat: Seat, patience: Patience) -> float:
        """How long the first byte may take: long for a cold model, else by what was learned."""
        gateway, ask = self._gateway, self.ticket.ask
        speeds = gateway.queue.speeds
        now = next((x for x in gateway.roster.seats(ask.model) if x.key == seat.key), seat)
        # Not resident any more: it was dropped as we came, and is loaded again for us.
        cold = now.loading or not now.warm or not speeds.knows(seat.key, ask.model)
        if not self.record.stream:
            return patience.whole_s(ask.prompt_tokens, speeds.of(seat.key, ask.model))
        if cold:
            return patience.load_s
        return patience.first_token_s(ask.prompt_tokens, speeds.of(seat.key, ask.model))

    def _lost(self, reason: str, cause: str = "engine_lost") -> None:
        """The engine broke off: try elsewhere, or end with an error that says so."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if (seat := self.ticket.seat) is not None:
            self._gateway.health.failed(seat, self.ticket.ask.model, reason, cause)
        # Once the client has a part of the reply, only a replay can give it the rest.
        started, replay = self.connection_started, self._replay
        may = not started or (replay is not None and replay.possible)
        if may and self._again(reason, cause, wait=True):
            return
        self._broken(reason, cause, 200 if started else 500)

    def _broken(self, reason: str, cause: str, status: int) -> None:
        """The client gets an error, and no proper end where it has a part of the reply."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self.record.cause = cause
        self._give_back()
        self.refuse(status, f"upstream lost: {reason}")

    def _answered_badly(self, status: int) -> bool:
        """The engine answered with an error of its own; True when another one is asked now."""
        seat, health = self.ticket.seat, self._gateway.health
        if seat is None:
            return False
        reason = f"{seat.where}: the engine answered {status}"
        if self._blamed:
            # Two engines say the same of one request: it may be the request.
            for one in self._blamed:
                health.forgiven(one)
        else:
            health.failed(seat, self.ticket.ask.model, reason, "engine_error")
        self._blamed.append(seat)
        return self._again(reason, "engine_error", wait=False)

    def _confirm(self) -> None:
        """Another engine answered what these could not: it was not the request."""
        blamed, self._blamed = self._blamed, []
        if len(blamed) > 1:
            for seat in blamed:
                reason = f"{seat.where}: another engine could answer what it could not"
                self._gateway.health.failed(seat, self.ticket.ask.model, reason, "engine_error")

    def _busy(self) -> bool:
        """The engine said 503: it is well but full. Wait for it or for another; False when the
        request has been going round for too long."""
        seat, gateway = self.ticket.seat, self._gateway
        if seat is None or gateway.now() - self.record.arrived_s > BUSY_S:
            return False
        gateway.health.busy(seat, self.ticket.ask.model)
        self._requeue(f"{seat.where} is busy", frozenset())
        return True

    def _again(self, reason: str, cause: str, *, wait: bool) -> bool:
        """Queue again for another engine; False when there is none or enough was tried.

        Args:
            wait: also when no other engine is there now: ours may come back.
        """
        seat, health = self.ticket.seat, self._gateway.health
        if seat is None or self._tries >= MAX_RETRIES:
            return False
        ask = self.ticket.ask
        exclude = ask.exclude | {seat.incarnation}
        if not wait and not health.has_other(ask.model, exclude):
            return False
        if not health.may_retry(cause):
            return False
        self._tries += 1
        self.record.retries += 1
        self.record.replays += self.connection_started
        self._requeue(reason, frozenset({seat.incarnation}))
        return True

    def _requeue(self, reason: str, exclude: frozenset[str]) -> None:
        record, ask, gateway = self.record, self.ticket.ask, self._gateway
        record.state = "queued"
        record.error = reason
        record.tried = (*record.tried[-MAX_TRIED:], reason)
        record.cause = ""
        if not self.connection_started:
            record.first_s = None
        log.warning("retry", extra={"request": record.id, "model": ask.model, "reason": reason})
        self._give_back()
        again = structs.replace(ask, exclude=ask.exclude | exclude)
        self.ticket = self.ticket.retried(again, gateway.now())
        gateway.dispatcher.enqueue(self)
        if self.ticket.waits:
            gateway.comebacks.look()
