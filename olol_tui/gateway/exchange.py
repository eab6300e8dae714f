"""One inference request from its arrival to its last byte.

Callbacks, no task: the client's connection and the engine's connection each call in, and the
queue says when and where to go. Until the first byte of a reply went out, a lost engine means
another try; afterwards it means one error frame and no proper end.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from olol_tui.fleet.snapshot import RUNNERS
from olol_tui.gateway import bodies, upstream
from olol_tui.gateway.dialects import errors
from olol_tui.gateway.dialects.errors import BadRequest, TranslationError
from olol_tui.gateway.dialects.llama import load_reply
from olol_tui.gateway.dialects.translation import Translation
from olol_tui.gateway.http import JSON, NDJSON, SSE, HttpConnection, Request
from olol_tui.gateway.inspect import wants_why, why_header
from olol_tui.gateway.metrics import GAP_BOUNDS_S
from olol_tui.gateway.routes import Inference
from olol_tui.gateway.times import rfc3339
from olol_tui.routing.policy import Ask, Decision
from olol_tui.routing.queue import Ticket
from olol_tui.routing.roster import Seat

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

log = logging.getLogger("olol.gateway")

MAX_RETRIES = 2
_BYTES_PER_TOKEN = 4
"""Of an English prompt; only for the estimate of a prefill."""
_STREAMS = (NDJSON, SSE)


class Exchange:
    """Both ends of one request. Implements http.Handler and upstream.Receiver."""

    __slots__ = (
        "_body",
        "_call",
        "_content_type",
        "_ended",
        "_gaps",
        "_gateway",
        "_parts",
        "_request",
        "_status",
        "_streaming",
        "_tail",
        "_touched_s",
        "_translation",
        "_tries",
        "connection",
        "fields",
        "key",
        "model",
        "record",
        "route",
        "ticket",
    )  # fmt: skip

    def __init__(
        self,
        gateway: Gateway,
        connection: HttpConnection,
        request: Request,
        route: Inference,
        fields: bodies.RouteBody,
        model: str,
    ) -> None:
        self._gateway = gateway
        self.connection: HttpConnection | None = connection
        self._request = request
        self._body = request.body
        self.route = route
        self.fields = fields
        self.model = model
        self.key = key = request.key
        stream = route.stream_default if fields.stream is None else fields.stream
        # Before the record is opened: this may refuse the body.
        ask = Ask(model, len(self._body) // _BYTES_PER_TOKEN, fields.num_ctx)
        self.record = gateway.ledger.open(
            model,
            route.dialect,
            route.path,
            connection.peer if key is None else key.name,
            stream and route.task != "embed",
            "" if key is None else key.id,
        )
        self.ticket = Ticket(ask, self, self.record.arrived_s)
        self._call: upstream.Call | None = None
        self._translation: Translation | None = None
        self._status = 0
        self._content_type = b""
        self._streaming = False
        self._gaps: list[int] = []
        self._parts: list[bytes] = []
        self._tail = b""
        self._tries = 0
        self._ended = False
        self._touched_s = self.record.arrived_s

    # -- steps of the queue

    def dispatch(self, seat: Seat, decision: Decision) -> None:
        """The queue gave us a slot: send the request there."""
        record = self.record
        record.state = "prefill"
        record.engine = seat.engine
        record.where = seat.where
        record.why = decision
        record.sent_s = self._touched_s = self._gateway.now()
        self._gaps = self._gateway.metrics.series(self.model, seat.engine).gaps.counts
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

    def _send(self, seat: Seat, payload: bytes, *, fresh: bool) -> None:
        self._status = 0
        self._parts = []
        self._tail = b""
        self._call = self._gateway.pool.call(seat.address, payload, self, fresh=fresh)

    def _payload(self, seat: Seat) -> bytes:
        path, body = self.route.path, self._body
        self._translation = None
        if seat.kind in RUNNERS and self.route.dialect == "ollama":
            self._translation = self._gateway.translate(self.route.path, body, self.model, seat)
            waited_s = self._gateway.now() - self.record.arrived_s
            self._translation.started_at(time.monotonic_ns() - int(waited_s * 1e9))
            if (began_s := self.ticket.load_began_s) is not None:
                self._translation.load_ns = int((self._gateway.now() - began_s) * 1e9)
            path, body = self._translation.path, self._translation.body
        kind = "application/json"
        if self.route.reader is not None:
            # A form's boundary is in its type.
            kind = self._request.headers.get(b"content-type", b"").decode("latin-1") or kind
        head = upstream.head("POST", seat.address, path, len(body), kind)
        return head + body

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
        if record.first_s is None:
            record.first_s = now
            record.state = "decode"
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
        self._relay(data, self._content_type, final)

    def _engine_said_no(self, translation: Translation, out: bytes) -> None:
        """The engine reported an error inside its reply."""
        failure = translation.failure
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._give_back()
        assert failure is not None
        connection = self.connection
        if connection is None or not connection.started:
            self.refuse(failure.status, failure.message)
            return
        self._end_record("failed", 200, failure.message)
        self.connection = None
        connection.break_off(out)

    def _relay(self, data: bytes, content_type: bytes, final: bool) -> None:
        connection = self.connection
        if connection is None or not data:
            return
        if not connection.started:
            connection.begin(200, content_type, self._marks())
        connection.send(data, hold=final)

    def up_end(self) -> None:
        self._call = None
        translation = self._translation
        if self._streaming and translation is None:
            self._stream_ended()
        elif translation is not None and self._status == 200:
            self._translated_ended(translation)
        else:
            self._plain_ended()

    def _stream_ended(self) -> None:
        last, route = self._tail.strip(), self.route
        complete = route.end_mark in last or (route.other_end != b"" and route.other_end in last)
        if not complete and b'"error"' not in last:
            # Some engines space their JSON; look properly before calling it broken.
            parsed = bodies.timings(last)
            if route.dialect != "ollama" or parsed is None or not parsed.done:
                self._lost("the engine ended its reply before it was complete")
                return
            complete = True
        self._learn_stream(last)
        connection = self.connection
        if connection is not None:
            if not connection.started:
                connection.begin(200, self._content_type, self._marks())
            connection.end()
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
                self._relay(out, NDJSON, True)
                connection.end()
            else:
                out = b"".join(self._parts) + out
                connection.reply(200, out, JSON, self._marks())
        self._learn(out.rstrip().rpartition(b"\n")[2])
        self._finish(False, b"")

    def _plain_ended(self) -> None:
        body = b"".join(self._parts)
        status = self._status
        if status >= 500 and self._retry(f"the engine answered {status}", ejects=status != 503):
            return
        record = self.record
        if status == 404 and self._content_type.startswith(b"text/"):
            # Ollama's words for a path that its version does not know: not the model is missing.
            reason = f"{record.where}: its engine is too old to answer {self.route.path}"
            if self._retry(reason, ejects=False):
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
            connection.reply(status, body, self._content_type, self._marks())
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
        self._lost(f"{seat.where}: {reason}")

    @property
    def connection_started(self) -> bool:
        return self.connection is not None and self.connection.started

    # -- http.Handler

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

    # -- ends

    @property
    def is_load(self) -> bool:
        """No prompt, messages or input: the client only wants the model loaded."""
        fields, route = self.fields, self.route
        if route.dialect != "ollama":
            return False
        if route.path == "/api/embed":
            return not fields.has_input
        return not (fields.has_messages if route.task == "chat" else fields.has_prompt)

    def _answer(self, body: bytes) -> None:
        connection = self.connection
        if connection is not None:
            content_type = NDJSON if self.record.stream else JSON
            connection.reply(200, body, content_type, self._marks())
        self._finish(False, b"")

    def cancel(self, reason: str) -> None:
        """Stop the work: in the queue, or in the engine by closing its connection."""
        if self._ended:
            return
        if self.ticket.seat is None:
            self._gateway.queue.withdraw(self.ticket)
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._give_back()
        self._end_record("cancelled", 499, reason)
        connection, self.connection = self.connection, None
        if connection is None:
            return
        if connection.started:
            connection.break_off(self._frame(reason))
        else:
            body = errors.error_body(self.route.dialect, 499, reason)
            connection.reply(499, body)

    def refuse(self, status: int, message: str, extra: bytes = b"") -> None:
        """The request cannot be served; nothing was sent yet."""
        self._end_record("failed", status, message)
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.reply(
                status, errors.error_body(self.route.dialect, status, message), JSON, extra
            )

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

    def _finish(self, failed: bool, last: bytes, status: int = 200) -> None:
        gateway = self._gateway
        seat = self.ticket.seat
        if seat is not None and status < 500:
            gateway.queue.succeeded(seat.key)
        self._give_back()
        self.connection = None
        text = self._failure(last) if failed else ""
        self._end_record("failed" if failed else "done", status, text)

    def _give_back(self) -> None:
        ticket = self.ticket
        if ticket.seat is not None:
            self._gateway.release(self)

    def _end_record(self, state: Any, status: int, error: str) -> None:
        self._ended = True
        self._gateway.ledger.close(self.record, state, status, error)
        self._gateway.ended(self)

    def _failure(self, last: bytes) -> str:
        """The engine's sentence in the last piece of a failed reply."""
        return errors.upstream_message(last.removeprefix(b"data:"))

    def _learn_stream(self, last: bytes) -> None:
        """Counts and speeds of a stream that ended, by its last line."""
        if self.route.dialect == "ollama":
            self._learn(last)

    def _learn(self, line: bytes) -> None:
        """Counts and speeds from the reply's own fields."""
        parsed = bodies.timings(line)
        record, seat = self.record, self.ticket.seat
        if parsed is None or seat is None:
            return
        prefill = decode = None
        if parsed.usage is not None:
            record.prompt_tokens = parsed.usage.prompt
            record.tokens = parsed.usage.reply or record.tokens
        if parsed.prompt_eval_count is not None:
            record.prompt_tokens = parsed.prompt_eval_count
            if parsed.prompt_eval_duration:
                prefill = parsed.prompt_eval_count / parsed.prompt_eval_duration * 1e9
        if parsed.eval_count is not None:
            record.tokens = parsed.eval_count
            if parsed.eval_duration:
                decode = record.decode_tps = parsed.eval_count / parsed.eval_duration * 1e9
        self._served(prefill, decode)

    def _served(self, prefill: float | None, decode: float | None) -> None:
        """The queue learns how long a request of this model takes here."""
        record, seat = self.record, self.ticket.seat
        if record.sent_s is not None and seat is not None:
            self._gateway.queue.speeds.served(
                seat.key,
                self.ticket.ask.model,
                service_s=self._gateway.now() - record.sent_s,
                prefill_tps=prefill,
                decode_tps=decode,
            )

    def _seat_is_runner(self) -> bool:
        return self.ticket.seat is not None and self.ticket.seat.kind in RUNNERS

    def _marks(self) -> bytes:
        record = self.record
        marks = f"X-Olol-Request: {record.id}\r\nX-Olol-Engine: {record.engine}\r\n".encode()
        if b"x-olol-why" in self._request.headers and wants_why(self._request):
            marks += why_header(record.why)
        return marks

    def _frame(self, message: str) -> bytes:
        return errors.error_frame(self.route.dialect, 500, message)
