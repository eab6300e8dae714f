"""What is known of one inference request, and the ways it ends.

Whatever ends it, three things happen once: its slot goes back to the queue, its record is
closed, and its client has an answer or a broken connection.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from olol_tui.fleet.snapshot import RUNNERS
from olol_tui.gateway import bodies, context, replay, upstream
from olol_tui.gateway.dialects import errors
from olol_tui.gateway.dialects.translation import Translation
from olol_tui.gateway.http import JSON, NDJSON, HttpConnection, Request
from olol_tui.gateway.inspect import wants_why, why_header
from olol_tui.gateway.prompts import measure
from olol_tui.gateway.routes import Inference
from olol_tui.gateway.spool import Payload, Pump
from olol_tui.routing.policy import Ask
from olol_tui.routing.roster import Seat
from olol_tui.routing.speeds import LEAST_PROMPT
from olol_tui.routing.ticket import Terms, Ticket

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

_WAITED = b"X-Olol-Queue-Wait: %.3f\r\n"
_AT_ONCE = _WAITED % 0.0
_BYTES_PER_TOKEN = 4
"""Of an English prompt; only for the estimate of a prefill."""


class Lifecycle:
    """The state that an exchange works on, from `open` in the ledger to `close`."""

    __slots__ = (
        "_begun",
        "_blamed",
        "_body",
        "_call",
        "_content_type",
        "_ended",
        "_gaps",
        "_gateway",
        "_parts",
        "_replay",
        "_request",
        "_status",
        "_streaming",
        "_tail",
        "_touched_s",
        "_translation",
        "_tries",
        "connection",
        "fields",
        "keep_alive_s",
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
        keep_alive_s: float | None,
        terms: Terms,
    ) -> None:
        self._gateway = gateway
        self.connection: HttpConnection | None = connection
        self._request = request
        self._body = request.body
        self.route = route
        self.fields = fields
        self.model = model
        self.keep_alive_s = keep_alive_s
        """As dialects.keepalive.parse gives it."""
        self.key = key = request.key
        stream = route.stream_default if fields.stream is None else fields.stream
        # Before the record is opened: this may refuse the body.
        self._replay = (
            replay.wanted(request, route, stream) if replay.HEADER in request.headers else None
        )
        wishes = fields.wishes
        prompt = measure(fields, len(self._body), request.spool)
        ask = Ask(
            model,
            prompt.weight // _BYTES_PER_TOKEN,
            wishes.num_ctx,
            prefix=prompt.marks,
            client=terms.flow,
            distributed=wishes.distributed,
        )
        self.record = gateway.ledger.open(
            model,
            route.dialect,
            route.path,
            connection.peer if key is None else key.name,
            stream and route.task != "embed",
            "" if key is None else key.id,
            terms,
        )
        self.ticket = Ticket(ask, self, self.record.arrived_s, terms)
        self._call: upstream.Call | None = None
        self._translation: Translation | None = None
        self._status = 0
        self._content_type = b""
        self._streaming = False
        self._begun = False
        """The engine has sent the first piece of its reply."""
        self._gaps: list[int] = []
        self._parts: list[bytes] = []
        self._tail = b""
        self._tries = 0
        self._blamed: list[Seat] = []
        """Engines that answered this request with an error of theirs."""
        self._ended = False
        self._touched_s = self.record.arrived_s

    @property
    def connection_started(self) -> bool:
        return self.connection is not None and self.connection.started

    @property
    def is_load(self) -> bool:
        """No prompt, messages or input: the client only wants the model loaded."""
        fields, route = self.fields, self.route
        if route.dialect != "ollama":
            return False
        if route.path == "/api/embed":
            return not fields.has_input
        return not (fields.has_messages if route.task == "chat" else fields.has_prompt)

    def _payload(self, seat: Seat) -> Payload:
        path, body, changed = self.route.path, self._body, False
        self._translation = None
        if seat.kind in RUNNERS and self.route.dialect == "ollama":
            self._translation = self._gateway.translate(self.route.path, body, self.model, seat)
            waited_s = self._gateway.now() - self.record.arrived_s
            self._translation.started_at(time.monotonic_ns() - int(waited_s * 1e9))
            if (began_s := self.ticket.load_began_s) is not None:
                self._translation.load_ns = int((self._gateway.now() - began_s) * 1e9)
            path, body, changed = self._translation.path, self._translation.body, True
        elif seat.kind in RUNNERS:
            whole, body = body, self._gateway.with_store(path, body, seat)
            changed = body is not whole
        elif self.route.dialect == "ollama" and self._request.spool is None:
            body = context.kept(body, self.fields, self.ticket.ask.num_ctx, seat)
        kind = "application/json"
        if self.route.reader is not None:
            # A form's boundary is in its type.
            kind = self._request.headers.get(b"content-type", b"").decode("latin-1") or kind
        if (spool := self._request.spool) is not None:
            pump = Pump(spool, spool.filled(body) if changed else spool.whole())
            return upstream.head("POST", seat.address, path, pump.size, kind), pump
        return upstream.head("POST", seat.address, path, len(body), kind) + body

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
        """The request cannot be served, or not to its end."""
        self._end_record("failed", status, message)
        connection, self.connection = self.connection, None
        if connection is not None and connection.started:
            connection.break_off(self._frame(message))
        elif connection is not None:
            body = errors.error_body(self.route.dialect, status, message)
            connection.reply(status, body, JSON, extra + self._waited())

    def _finish(self, failed: bool, last: bytes, status: int = 200) -> None:
        seat = self.ticket.seat
        if seat is not None and (not failed or 400 <= status < 500):
            if (health := self._gateway.health).watches:
                health.succeeded(seat, self.record)
            if self._blamed and not failed:
                self._confirm()
        self._give_back()
        self.connection = None
        text = self._failure(last) if failed else ""
        self._end_record("failed" if failed else "done", status, text)

    def _give_back(self) -> None:
        ticket = self.ticket
        if ticket.seat is not None:
            self._gateway.dispatcher.release(self)

    def _end_record(self, state: Any, status: int, error: str) -> None:
        self._ended = True
        # They hold each other, and with them the body: the collector comes rarely.
        self.ticket.owner = None
        if self._request.spool is not None:
            self._request.spool.close()
        if self._replay is not None and self.record.replays:
            outcome = "done" if state == "done" else self._replay.outcome
            self._gateway.metrics.replayed("cancelled" if state == "cancelled" else outcome)
        self._gateway.ledger.close(self.record, state, status, error)
        self._gateway.ended(self)

    def _confirm(self) -> None:
        """It was answered: what went wrong before was not its own fault."""

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
            long = parsed.prompt_eval_count >= LEAST_PROMPT and not self._was_cached(seat)
            if parsed.prompt_eval_duration and long:
                prefill = parsed.prompt_eval_count / parsed.prompt_eval_duration * 1e9
        if parsed.eval_count is not None:
            record.tokens = parsed.eval_count
            if parsed.eval_duration:
                decode = record.decode_tps = parsed.eval_count / parsed.eval_duration * 1e9
        self._served(prefill, decode)

    def _was_cached(self, seat: Seat) -> bool:
        """Part of the prompt was in the engine's cache: its time says nothing about others'."""
        why = self.ticket.decision
        if why is None or not self.ticket.ask.prefix:
            return False
        return any(one.note for one in why.candidates if one.seat is seat)

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
        marks += _AT_ONCE if record.sent_s == record.arrived_s else self._waited()
        if b"x-olol-why" in self._request.headers and wants_why(self._request):
            marks += why_header(record.why, record.tried)
        return marks

    def _waited(self) -> bytes:
        """How long it was in the queue, seconds."""
        record = self.record
        until_s = self._gateway.now() if record.sent_s is None else record.sent_s
        return _WAITED % (until_s - record.arrived_s)

    def _frame(self, message: str) -> bytes:
        frame = errors.error_frame(self.route.dialect, 500, message)
        if self._replay is None and self._tail and not self._tail.endswith(b"\n"):
            # The engine broke off within a line: the error gets one of its own.
            return (b"\n" if self.route.dialect == "ollama" else b"\n\n") + frame
        return frame
