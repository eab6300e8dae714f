"""What is fuzzed: functions of bytes that raise when a promise is broken.

Each reads like an attacker's hand on one part of the glue between a parser and the gateway. The
first byte of an input chooses (a size of pieces, a route); the rest is what comes over the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import cast
from urllib.parse import unquote

import h11
import msgspec

from olol_tui.fleet.snapshot import Model
from olol_tui.gateway import bodies, upstream
from olol_tui.gateway.dialects import fields, keepalive, llama, responses
from olol_tui.gateway.dialects.errors import BadRequest, TranslationError
from olol_tui.gateway.inflate import _inflate
from olol_tui.gateway.message import Request
from olol_tui.gateway.routes import BLOBS, INFERENCE
from olol_tui.models.names import canonical, is_cloud
from olol_tui.routing.policy import Ask
from tests.fuzz.wire import LIMITS, Wire, cut, listen

_ROUTES = [route for route in INFERENCE.values() if route.reader is None or route.events]
_MODEL = Model("fuzz:1b", capabilities=("completion", "tools", "vision", "thinking", "embedding"))


def http(data: bytes) -> None:
    """Bytes from a client: the same requests however they are cut, and as another parser has it."""
    size, stream = 1 + data[0] % 64, data[1:]
    listener, wire = listen([stream])
    for request in listener.requests:
        assert request.path.startswith("/")
        length = request.headers.get(b"content-length")
        assert length is None or b"transfer-encoding" not in request.headers
        if not request.path.startswith(BLOBS):
            assert len(request.body) <= LIMITS.body_bytes
            assert length is None or int(length) == len(request.body)
    assert len(listener.refused) <= 1
    has_blob = any(BLOBS in request.path for request in listener.requests)
    if has_blob or b"blobs" in stream or b"%" in stream or wire.is_aborted:
        return  # A streamed body may not follow another request: then it matters how it is cut.
    whole = [_seen(request) for request in listener.requests]
    other, _ = listen(cut(stream, size))
    pieces = [_seen(request) for request in other.requests]
    # What follows a request may be nonsense: then the connection ends, before or after it.
    assert pieces[: len(whole)] == whole, (whole, pieces)
    assert len(whole) == len(pieces) or listener.refused
    for ours, theirs in zip(pieces, _h11(stream), strict=False):
        assert ours == theirs, (ours, theirs)


def _seen(request: Request) -> tuple[bytes, str, bytes]:
    target = request.path + (f"?{request.query}" if request.query else "")
    return request.method, target, request.body


def _h11(stream: bytes) -> list[tuple[bytes, str, bytes]]:
    """The requests as a strict parser of another make sees them, up to its first complaint."""
    found: list[tuple[bytes, str, bytes]] = []
    server = h11.Connection(h11.SERVER)
    server.receive_data(stream)
    head: h11.Request | None = None
    body = b""
    with contextlib.suppress(h11.RemoteProtocolError, h11.LocalProtocolError):
        while True:
            event = server.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                target = head.target.decode("latin-1")
                path, mark, query = target.partition("?")
                found.append((head.method, unquote(path) + (mark if query else "") + query, body))
                server.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                server.send(h11.EndOfMessage())
                if server.our_state is not h11.DONE:
                    break
                server.start_next_cycle()
            else:
                break
    return found


def body(data: bytes) -> None:
    """A body on an inference route, as admission reads it and a single-model engine gets it."""
    route, raw = _ROUTES[data[0] % len(_ROUTES)], data[1:]
    with contextlib.suppress(bodies.BadBody, BadRequest, msgspec.DecodeError, UnicodeDecodeError):
        found = bodies.read(raw)
        if found.keep_alive:
            keepalive.parse(msgspec.json.decode(found.keep_alive))
        model = canonical(found.model)
        is_cloud(model)
        if route.check is not None:
            route.check(route.path, raw)
        Ask(model, len(raw) // 4, found.wishes.num_ctx)
        assert found.has_input in (True, False) and found.has_messages in (True, False)
        if route.dialect == "ollama":
            asked = llama.translate(
                route.path,
                fields.decode_body(raw, route.path),
                _MODEL,
                created=lambda: "",
                clock_ns=lambda: 0,
            )
            msgspec.json.decode(asked.body)


def form(data: bytes) -> None:
    """A multipart form: its content type up to the first line end, then the form."""
    kind, _, raw = data.partition(b"\n")
    with contextlib.suppress(BadRequest):
        assert responses.model_of_form(kind, raw).strip()


def zstd(data: bytes) -> None:
    """A compressed body: never more than the limit comes out."""
    with contextlib.suppress(BadRequest):
        assert len(_inflate(data, LIMITS.body_bytes)) <= LIMITS.body_bytes


class _Reply:
    """An upstream.Receiver that checks its own contract."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.ended = ""

    def up_head(self, status: int, content_type: bytes) -> None:
        assert not self.ended and not self.status
        self.status = status

    def up_data(self, data: bytes, final: bool) -> None:
        assert not self.ended and self.status and data
        self.body += data

    def up_end(self) -> None:
        assert not self.ended
        self.ended = "end"

    def up_lost(self, reason: str) -> None:
        assert not self.ended
        self.ended = "lost"


class _Pool:
    def release(self, connection: upstream.UpstreamConnection) -> None:
        pass

    def forget(self, connection: upstream.UpstreamConnection) -> None:
        pass


def reply(data: bytes) -> None:
    """Bytes from an engine: one end, the same however they are cut, and nothing after it."""
    size, stream = 1 + data[0] % 64, data[1:]
    whole, pieces = _reply([stream]), _reply(cut(stream, size))
    assert whole.ended and pieces.ended
    if whole.ended == "end":
        assert (whole.status, whole.body) == (pieces.status, pieces.body)
        assert pieces.ended == "end"


def _reply(pieces: list[bytes]) -> _Reply:
    receiver, wire = _Reply(), Wire()
    connection = upstream.UpstreamConnection(cast(upstream.UpstreamPool, _Pool()), "a:1")
    connection.connection_made(cast(asyncio.BaseTransport, wire))
    connection.send(b"", receiver)
    for piece in pieces:
        if not wire.is_closed:
            connection.data_received(piece)
    connection.connection_lost(None)
    return receiver


def events(data: bytes) -> None:
    """A llama-server's stream on its way to a native client."""
    size, stream = 1 + data[0] % 64, data[1:]
    route = "/api/chat" if data[0] & 64 else "/api/generate"
    asked = {"model": "fuzz", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    translation = llama.translate(route, asked, _MODEL, created=lambda: "", clock_ns=lambda: 0)
    out = b""
    with contextlib.suppress(TranslationError):
        for piece in cut(stream, size):
            out += translation.feed(piece)
            if translation.failure is not None:
                break
        else:
            out += translation.finish()
    for line in out.splitlines():
        msgspec.json.decode(line)


TARGETS = {one.__name__: one for one in (http, body, form, zstd, reply, events)}
