"""HTTP/1.1 over the agent's UNIX socket.

Only processes of the same user get an answer: the socket is 0600 inside a 0700
directory, and the kernel names the peer's uid. Requests are small (1 MiB) and must arrive
within a deadline; replies are JSON or, for streams, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import stat
import struct
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Union
from urllib.parse import parse_qs, unquote

import h11

from .errors import AgentError, BadRequest, MethodNotAllowed, NotFound, StartError, TooLarge

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024
MAX_SOCKET_PATH_BYTES = 100
"""sun_path holds 108; some systems less."""

HEAD_DEADLINE_S = 5.0
BODY_DEADLINE_S = 30.0
IDLE_S = 120.0


class Request:
    """One call, decoded."""

    def __init__(
        self, method: str, target: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        path, _, query = target.partition("?")
        self.method = method
        self.headers = headers or {}
        """By lower-case name."""
        self.path = path
        self.query = {name: values[-1] for name, values in parse_qs(query).items()}
        self._body = body

    def json(self) -> dict[str, Any]:
        """The body as an object; an empty body is an empty object.

        Raises:
            BadRequest: not JSON, or not an object.
        """
        if not self._body.strip():
            return {}
        try:
            data = json.loads(self._body)
        except ValueError as error:
            raise BadRequest(f"the body is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise BadRequest("the body must be a JSON object")
        return data

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A query parameter.

        Raises:
            BadRequest: not a number in the range.
        """
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise BadRequest(f"{name}: expected a number from {low:g} to {high:g}, got {text!r}")
        return value


Stream = AsyncIterator[Dict[str, Any]]
Answer = Union[Dict[str, Any], Stream]
Handler = Callable[..., Awaitable[Answer]]


class Router:
    """Paths to handlers. `{name}` takes one segment, still quoted: an id may hold `/`."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def add(self, method: str, path: str, handler: Handler) -> None:
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
        self._routes.append((method, re.compile(f"^{pattern}$"), handler))

    async def answer(self, request: Request) -> Answer:
        """Raises NotFound, MethodNotAllowed, or what the handler raises."""
        allowed = []
        for method, pattern, handler in self._routes:
            match = pattern.match(request.path)
            if match is None:
                continue
            if method == request.method:
                given = {name: unquote(value) for name, value in match.groupdict().items()}
                return await handler(request, **given)
            allowed.append(method)
        if allowed:
            raise MethodNotAllowed(f"{request.path} takes {', '.join(allowed)}")
        raise NotFound(f"there is no {request.path}")


class Server:
    """Listens from `start()` to `close()`; open streams end when it closes."""

    def __init__(self, path: Path, router: Router) -> None:
        self._path = path
        self._router = router
        self._server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._inode = 0

    async def start(self) -> None:
        """Bind the socket; the caller holds the state lock, so an old file is stale.

        Raises:
            StartError: the path is too long, taken by a living listener, or not ours.
        """
        listener = _bind(self._path)
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._accept, sock=listener)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            # Another agent may have taken the path over: its socket is not ours to remove.
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            return

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            if _peer_uid(writer) != os.getuid():
                log.warning("refused a connection of another user")
                return
            await _Exchange(reader, writer, self._router).run()
        except (ConnectionError, asyncio.TimeoutError, EOFError) as error:
            log.debug("connection ended: %s", error or type(error).__name__)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()
            if task is not None:
                self._tasks.discard(task)


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise StartError(
            f"the socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes",
            "give a shorter one with --socket",
        )
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.stat()
    except OSError as error:
        raise StartError(f"{directory}: {error.strerror}") from error
    if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StartError(
            f"{directory} is open to other users", f"chmod 700 {directory}, or choose another"
        )
    if path.exists() or path.is_symlink():
        _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    return listener


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        raise StartError(f"{path} exists and is not a socket", "choose another with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink()
            return
        except OSError as error:
            raise StartError(f"{path}: {error}") from error
    raise StartError(f"another agent listens on {path}", "stop it, or choose another --socket")


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])


class _Exchange:
    """One connection: requests one after the other."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, router: Router
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._router = router
        self._http = h11.Connection(h11.SERVER)

    async def run(self) -> None:
        while True:
            try:
                request = await self._read()
            except AgentError as error:
                await self._send_json(error.status, error.body(), close=True)
                return
            except h11.RemoteProtocolError as error:
                bad = BadRequest(f"not HTTP: {error}")
                if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._send_json(error.error_status_hint, bad.body(), close=True)
                return
            if request is None:
                return
            await self._reply(request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _read(self) -> Request | None:
        """One request; None when the peer closed between requests."""
        trailing, _ = self._http.trailing_data
        if not trailing:
            first = await asyncio.wait_for(self._reader.read(65536), IDLE_S)
            self._http.receive_data(first)
            if not first:
                return None
        head = await asyncio.wait_for(self._event(), HEAD_DEADLINE_S)
        if not isinstance(head, h11.Request):
            return None
        body = await asyncio.wait_for(self._body(head), BODY_DEADLINE_S)
        headers = {
            name.decode("ascii"): value.decode("utf-8", "replace") for name, value in head.headers
        }
        return Request(head.method.decode("ascii"), head.target.decode("ascii"), body, headers)

    async def _event(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._http.they_are_waiting_for_100_continue:
                go = h11.InformationalResponse(status_code=100, headers=[])
                self._writer.write(self._http.send(go) or b"")
            self._http.receive_data(await self._reader.read(65536))

    async def _body(self, head: h11.Request) -> bytes:
        for name, value in head.headers:
            if name == b"content-length" and int(value) > MAX_BODY_BYTES:
                raise TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
        received = bytearray()
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                received += event.data
                if len(received) > MAX_BODY_BYTES:
                    raise TooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return bytes(received)
            else:
                raise EOFError("the peer left in the middle of a request")

    async def _reply(self, request: Request) -> None:
        try:
            answer = await self._router.answer(request)
        except AgentError as error:
            await self._send_json(error.status, error.body())
            return
        except Exception as error:  # one bad request must not end the agent
            log.exception("%s %s failed", request.method, request.path)
            await self._send_json(500, AgentError(f"{type(error).__name__}: {error}").body())
            return
        if isinstance(answer, dict):
            await self._send_json(200, answer)
        else:
            await self._send_stream(answer)

    async def _send_json(self, status: int, body: dict[str, Any], *, close: bool = False) -> None:
        data = json.dumps(body).encode() + b"\n"
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
        if close:
            headers.append(("Connection", "close"))
        head = self._http.send(h11.Response(status_code=status, headers=headers)) or b""
        rest = self._http.send(h11.Data(data=data)) or b""
        self._writer.write(head + rest + (self._http.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()

    async def _send_stream(self, stream: Stream) -> None:
        """Lines until the source ends or the peer leaves, whichever is first."""
        # Listening for the peer to leave may eat a byte of its next request: no reuse.
        headers = [("Content-Type", "application/x-ndjson"), ("Connection", "close")]
        head = self._http.send(h11.Response(status_code=200, headers=headers)) or b""
        self._writer.write(head)
        pump = asyncio.ensure_future(self._pump(stream))
        gone = asyncio.ensure_future(self._reader.read(1))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                return
            pump.result()
            self._writer.write(self._http.send(h11.EndOfMessage()) or b"")
            await self._writer.drain()
        finally:
            for task in (pump, gone):
                task.cancel()
            await asyncio.gather(pump, gone, return_exceptions=True)
            self._writer.close()

    async def _pump(self, stream: Stream) -> None:
        try:
            async for item in stream:
                data = json.dumps(item).encode() + b"\n"
                self._writer.write(self._http.send(h11.Data(data=data)) or b"")
                await self._writer.drain()
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
