"""One inference request from its arrival to its last byte.

Callbacks, no task: the client's connection and the engine's connection each call in, and the
queue says when and where to go.
"""

from __future__ import annotations

from bisect import bisect_left

from olol_tui.fleet.snapshot import RUNNERS
from olol_tui.gateway import bodies
from olol_tui.gateway.dialects import errors
from olol_tui.gateway.dialects.errors import BadRequest, TranslationError
from olol_tui.gateway.dialects.llama import load_reply
from olol_tui.gateway.dialects.translation import Translation
from olol_tui.gateway.failover import Failover
from olol_tui.gateway.http import JSON, NDJSON, SSE
from olol_tui.gateway.message import RETRY_AFTER
from olol_tui.gateway.metrics import GAP_BOUNDS_S
from olol_tui.gateway.replay import Broken, Differs, Replay
from olol_tui.gateway.spool import Payload
from olol_tui.gateway.times import rfc3339
from olol_tui.routing.policy import Decision
from olol_tui.routing.roster import Seat

_STREAMS = (NDJSON, SSE)


class Exchange(Failover):
    """Both ends of one request. Implements http.Handler and upstream.Receiver."""

    __slots__ = ()

    def dispatch(self, seat: Seat, decision: Decision) -> None:
        """The queue gave us a slot: send the request there."""
        record, gateway = self.record, self._gateway
        record.state = "prefill"
        record.engine = seat.engine
        record.where = seat.where
        record.why = decision
        record.sent_s = self._touched_s = now = gateway.now()
        if not self._tries:
            gateway.health.sent(now)
        self._gaps = gateway.metrics.series(self.model, seat.engine).gaps.counts
        if seat.kind in RUNNERS and self.is_load:
            # A runner serves its model from its start: there is nothing to send.
            self._answer(load_reply(self.route.path, self.fields.model, "load", rfc3339()))
            return
        try:
            payload = self._payload(seat)
        except BadRequest as error:
            self._give_back()
            self.refuse(error.status, error.message)
            return
        self._send(seat, payload, fresh=False)

    def _send(self, seat: Seat, payload: Payload, *, fresh: bool) -> None:
        self._status = 0
        self._begun = False
        self._parts = []
        self._tail = b""
        if self._replay is not None:
            self._replay.restart()
            self.record.tokens = 0
        pool = self._gateway.pool
        if isinstance(payload, bytes):
            self._call = pool.call(seat.address, payload, self, fresh=fresh)
        else:
            head, pump = payload
            self._call = pump.open(pool, seat.address, head, self, self._moved)

    def _moved(self) -> None:
        """The engine took a piece of the body: it is not silent."""
        self._touched_s = self._gateway.now()

    # -- upstream.Receiver

    def up_head(self, status: int, content_type: bytes) -> None:
        self._status = status
        self._content_type = content_type or JSON
        self._touched_s = self._gateway.now()
        self._streaming = status == 200 and content_type.startswith(_STREAMS)

    def up_data(self, data: bytes, final: bool) -> None:
        before, now = self._touched_s, self._gateway.now()
        self._touched_s = now
        record = self.record
        if not self._streaming:
            self._parts.append(data)
            return
        if not self._begun:
            self._begun = True
            record.first_s = record.first_s or now
            record.state = "decode"
            if (health := self._gateway.health).watches:
                health.answered(self.ticket.seat, record, now)
        else:
            self._gaps[bisect_left(GAP_BOUNDS_S, now - before)] += 1
        translation = self._translation
        if translation is not None:
            try:
                out = translation.feed(data)
            except TranslationError as error:
                self._lost(str(error))
                return
            record.tokens = translation.tokens
            if translation.failure is not None:
                self._engine_said_no(translation, out)
                return
            if not translation.stream:
                self._parts.append(out)
                return
            self._relay(out, NDJSON, final)
            return
        # A token a line: close enough until the engine's own count comes with the last one.
        record.tokens += data.count(b"\n") if self._content_type[0] == 97 else data.count(b"data:")
        tail = self._tail + data if self._tail else data
        cut = tail.rfind(b"\n", 0, len(tail.rstrip(b"\r\n"))) + 1
        self._tail = tail[cut:] if cut else tail
        if self._replay is None:
            self._pass_on(data, self._content_type, final)
        else:
            self._join(self._replay, data, self._content_type, final)

    def _engine_said_no(self, translation: Translation, out: bytes) -> None:
        """The engine reported an error inside its reply."""
        failure, seat = translation.failure, self.ticket.seat
        assert failure is not None and seat is not None
        started = self.connection_started
        if started and self._replay is not None:
            self._lost(f"{seat.where}: {failure.message}", "engine_error")
            return
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        if failure.status >= 500:
            if not started and self._answered_badly(failure.status):
                return
            if started:
                self._gateway.health.failed(seat, self.model, failure.message, "engine_error")
        self._give_back()
        if not started:
            self.refuse(failure.status, failure.message)
            return
        self._end_record("failed", 200, failure.message)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.break_off(out)

    def _relay(self, data: bytes, content_type: bytes, final: bool) -> None:
        if self._replay is not None:
            self._join(self._replay, data, content_type, final)
        else:
            self._pass_on(data, content_type, final)

    def _pass_on(self, data: bytes, content_type: bytes, final: bool) -> None:
        connection = self.connection
        if connection is None or not data:
            return
        if not connection.started:
            connection.begin(200, content_type, self._marks())
        connection.send(data, hold=final)
        if connection.paused and self._call is not None:
            # Its client may not have read what came before this request either.
            self._call.pause()

    def _join(
        self, replay: Replay, data: bytes, content_type: bytes, final: bool, *, rest: bool = False
    ) -> bool:
        """Pass on what the client has not got yet; False when the stream ends here."""
        where = self.record.where
        try:
            self._pass_on(replay.rest() if rest else replay.feed(data), content_type, final)
        except Differs as error:
            self._pass_on(error.before, content_type, False)
            replay.outcome = "differed"
            reason = f"{where} was asked again, but {error} than what was sent before"
            self._broken(reason, "replay_differed", 200)
            return False
        except Broken as error:
            self._pass_on(error.before, content_type, False)
            self._lost(f"{where}: {error}", "engine_error")
            return False
        return True

    def up_end(self) -> None:
        self._call = None
        translation = self._translation
        if self._streaming and translation is None:
            self._stream_ended()
        elif translation is not None and self._status == 200:
            self._translated_ended(translation)
        else:
            self._plain_ended()

    def _flush(self, content_type: bytes) -> bool:
        """The last event of a stream that may be replayed; False when the stream ends otherwise."""
        replay = self._replay
        return replay is None or self._join(replay, b"", content_type, True, rest=True)

    def _stream_ended(self) -> None:
        last, route = self._tail.strip(), self.route
        complete = last.find(route.end_mark) >= 0 or (
            route.other_end != b"" and route.other_end in last
        )
        if not complete and b'"error"' not in last:
            # Some engines space their JSON; look properly before calling it broken.
            parsed = bodies.timings(last)
            if route.dialect != "ollama" or parsed is None or not parsed.done:
                self._lost("the engine ended its reply before it was complete")
                return
            complete = True
        if self._replay is not None and not self._flush(self._content_type):
            return
        self._learn_stream(last)
        connection, self.connection = self.connection, None
        if connection is not None:
            if not connection.started:
                connection.begin(200, self._content_type, self._marks())
            if complete:
                connection.end()
            else:
                # The engine has said that it failed: no client may take this for an end.
                connection.break_off(b"")
        if not complete and (seat := self.ticket.seat) is not None:
            reason = f"{seat.where}: the engine reported an error in mid-stream"
            self._gateway.health.failed(seat, self.ticket.ask.model, reason, "engine_error")
        self._finish(not complete, last)

    def _translated_ended(self, translation: Translation) -> None:
        record = self.record
        try:
            # A plain reply is fed whole; pieces of a streamed one went through as they came.
            fed = b"" if self._streaming else translation.feed(b"".join(self._parts))
            if translation.failure is not None:
                self._engine_said_no(translation, fed)
                return
            out = fed + translation.finish()
        except TranslationError as error:
            self._lost(str(error))
            return
        if not self._streaming:
            self._parts = []
            record.first_s = record.first_s or self._gateway.now()
        record.tokens = translation.tokens
        record.prompt_tokens = translation.prompt_tokens
        connection = self.connection
        if connection is not None:
            if translation.stream:
                ticket = self.ticket
                self._relay(out, NDJSON, True)
                if self._ended or self.ticket is not ticket or not self._flush(NDJSON):
                    return
                connection.end()
            else:
                out = b"".join(self._parts) + out
                connection.reply(200, out, JSON, self._marks())
        self._learn(out.rstrip().rpartition(b"\n")[2])
        self._finish(False, b"")

    def _plain_ended(self) -> None:
        body = b"".join(self._parts)
        status = self._status
        if status >= 500 and (self._busy() if status == 503 else self._answered_badly(status)):
            return
        record = self.record
        if self.connection_started:
            reason = f"{record.where} answered {status} when it was asked to go on"
            self._broken(reason, "engine_error", 200)
            return
        if status == 404 and self._content_type.startswith(b"text/"):
            # Ollama's words for a path that its version does not know: not the model is missing.
            reason = f"{record.where}: its engine is too old to answer {self.route.path}"
            if self._again(reason, "too_old", wait=False):
                return
            status, self._content_type = 501, JSON
            body = errors.error_body(self.route.dialect, status, reason)
        if self._translation is not None:
            status, body = self._translation.error(status, body)
        elif status == 200:
            if record.first_s is None:
                record.first_s = self._gateway.now()
            self._learn(body)
        elif self._seat_is_runner():
            body = errors.error_body(self.route.dialect, status, errors.upstream_message(body))
        connection = self.connection
        if connection is not None:
            marks = self._marks() + RETRY_AFTER if status == 503 else self._marks()
            connection.reply(status, body, self._content_type, marks)
        self._finish(status >= 400, body, status)

    def up_lost(self, reason: str) -> None:
        call, self._call = self._call, None
        seat = self.ticket.seat
        if seat is None or self._ended:
            return
        untouched = not self.connection_started and not self._status
        if call is not None and call.reused and untouched:
            # Keep-alive race: the engine closed an idle connection as we wrote to it.
            self._send(seat, self._payload(seat), fresh=True)
            return
        unreached = call is not None and call.connection is None
        self._lost(f"{seat.where}: {reason}", "connect_failed" if unreached else "engine_lost")
