"""Everything but inference: routes answered here, aggregated over the fleet, or for operators."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from olol_tui.errors import ModelNotFound, OlolError
from olol_tui.fleet.commands import decode_command
from olol_tui.fleet.snapshot import RUNNERS, Fleet, encode
from olol_tui.gateway import bodies, http, upstream
from olol_tui.gateway.access import preflight
from olol_tui.gateway.asking import Task
from olol_tui.gateway.counting import count_tokens
from olol_tui.gateway.dialects import aggregate, errors, show
from olol_tui.gateway.dialects.anthropic import COUNT_TOKENS
from olol_tui.gateway.inspect import ROOT as REQUESTS
from olol_tui.gateway.inspect import Requests
from olol_tui.gateway.library import Library
from olol_tui.gateway.pausing import MODELS, Pausing
from olol_tui.gateway.port import FleetPort
from olol_tui.gateway.routes import BLOBS, NO_ACCOUNT, is_account
from olol_tui.gateway.scrape import Scrape
from olol_tui.gateway.sight import Sight
from olol_tui.models.names import canonical
from olol_tui.routing.roster import way_to

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

log = logging.getLogger("olol.gateway.api")

_TEXT = b"text/plain; charset=utf-8"
_MAX_TAIL = 5000

Handle = Callable[[http.HttpConnection, http.Request], None]


class Api:
    """Routes of one gateway. Owns the tasks of the answers that take time."""

    def __init__(self, gateway: Gateway, fleet: FleetPort) -> None:
        self._gateway = gateway
        self._fleet = fleet
        self._tasks: set[asyncio.Task[None]] = set()
        self._sight = Sight()
        self._library = Library(gateway, fleet)
        self._pausing = Pausing(gateway)
        self._requests = Requests(gateway, self._pausing)
        self._routes: dict[str, dict[bytes, Handle]] = {
            "/": _read(self._root),
            "/health": _read(self._health),
            "/api/version": _read(self._json(aggregate.version)),
            "/api/tags": _read(self._json(aggregate.tags)),
            "/api/ps": {b"GET": self._ps},
            "/api/status": {b"GET": self._json(aggregate.status)},
            "/api/models": {b"GET": self._json(aggregate.olol_models)},
            "/api/servers": {b"GET": self._json(aggregate.olol_servers)},
            "/api/show": {b"POST": self._show},
            "/api/me": {b"POST": self._me},
            "/v1/models": {b"GET": self._json(aggregate.openai_models)},
            "/olol/v1/fleet": {b"GET": self._fleet_route},
            "/metrics": {b"GET": Scrape(gateway, fleet).handle},
            REQUESTS: {b"GET": self._requests.every},
            COUNT_TOKENS: {b"POST": self._count_tokens},
            **self._library.routes,
        }

    @property
    def paths(self) -> frozenset[str]:
        """Every path that is answered by its whole name."""
        return frozenset(self._routes)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._library.close()

    def handle(self, connection: http.HttpConnection, request: http.Request) -> None:
        path = request.path
        if request.method == b"OPTIONS":
            connection.reply_empty(preflight(request))
            return
        methods = self._routes.get(path)
        if methods is None and path.startswith("/v1/models/"):
            methods = {b"GET": self._openai_model}
        if methods is None and path.startswith(REQUESTS + "/"):
            methods = self._requests.methods_of(path)
        if methods is None and path.startswith(MODELS):
            methods = {b"POST": self._pausing.model}
        if methods is None and path.startswith(BLOBS):
            methods = self._library.blob_routes
        if methods is None and is_account(path):
            self._gateway.error(connection, request, 403, NO_ACCOUNT)
            return
        if methods is None:
            self._gateway.error(connection, request, 404, f"{path}: no such path")
            return
        handler = methods.get(request.method)
        if handler is None:
            allow = b"Allow: %s\r\n" % b", ".join(methods)
            self._gateway.error(connection, request, 405, "method not allowed", allow)
            return
        handler(connection, request)

    # -- answered here

    def _root(self, connection: http.HttpConnection, request: http.Request) -> None:
        # Ollama's clients look for exactly this sentence.
        connection.reply(200, b"Ollama is running", _TEXT)

    def _health(self, connection: http.HttpConnection, request: http.Request) -> None:
        ready = [
            engine
            for node in self._fleet.fleet.nodes
            for engine in node.engines
            if engine.state == "ready"
        ]
        launchable = any(n.runner and n.state == "ready" for n in self._fleet.fleet.nodes)
        ok = bool(ready or launchable) and not self._gateway.draining
        body = {"status": "ok" if ok else "unavailable", "engines_ready": len(ready)}
        connection.reply(200 if ok else 503, msgspec.json.encode(body))

    def _json(self, build: Callable[[Fleet], dict[str, Any]]) -> Handle:
        def answer(connection: http.HttpConnection, request: http.Request) -> None:
            fleet = self._sight.of(self._fleet.fleet, request.key)
            connection.reply(200, msgspec.json.encode(build(fleet)))

        return answer

    def _ps(self, connection: http.HttpConnection, request: http.Request) -> None:
        answer = self._json(aggregate.ps)
        residents = self._gateway.residents
        unsettled = residents.unsettled()
        if not unsettled:
            answer(connection, request)
            return

        async def settled() -> None:
            await residents.settle(unsettled)
            answer(connection, request)

        connection.handler = self.work(settled())

    def _openai_model(self, connection: http.HttpConnection, request: http.Request) -> None:
        name = request.path.removeprefix("/v1/models/")
        try:
            fleet = self._sight.of(self._fleet.fleet, request.key)
            found = aggregate.openai_model(fleet, name)
        except ModelNotFound as error:
            self._gateway.error(connection, request, 404, str(error))
            return
        connection.reply(200, msgspec.json.encode(found))

    def _count_tokens(self, connection: http.HttpConnection, request: http.Request) -> None:
        connection.handler = self.work(count_tokens(self._gateway, connection, request))

    def work(self, work: Coroutine[Any, Any, None]) -> Task:
        """A handler whose reply a coroutine works out; it ends when the client leaves."""
        return Task(work, self._tasks)

    def _show(self, connection: http.HttpConnection, request: http.Request) -> None:
        try:
            body = bodies.read(request.body)
        except bodies.BadBody as bad:
            self._gateway.error(connection, request, 400, bad.message)
            return
        model = canonical(body.model)
        holders = [
            (node, entry)
            for node in self._sight.of(self._fleet.fleet, request.key).nodes
            for entry in node.library
            if canonical(entry.name) == model
        ]
        if not holders:
            self._gateway.error(connection, request, 404, errors.model_not_found(body.model))
            return
        for node, _ in holders:
            for engine in node.engines:
                if engine.kind not in RUNNERS and engine.state == "ready" and engine.address:
                    _Relay(self._gateway, connection, request, way_to(node, engine))
                    return
        connection.reply(200, msgspec.json.encode(show.show(holders[0][1])))

    def _me(self, connection: http.HttpConnection, request: http.Request) -> None:
        """Whose account a push would use. The `ollama` command asks before it pushes to
        Ollama's registry: the node that a push goes to answers, with its own key."""
        store = self._library.account
        if store is None:
            self._gateway.error(connection, request, 403, NO_ACCOUNT)
        else:
            _Relay(self._gateway, connection, request, store.address)

    def _fleet_route(self, connection: http.HttpConnection, request: http.Request) -> None:
        if request.param("watch") in ("", "0"):
            connection.reply(200, encode(self._fleet.fleet))
        else:
            FleetWatch(connection, self._fleet)

    # -- the control socket's own

    def control(self, connection: http.HttpConnection, request: http.Request) -> bool:
        """Answer a route of the control socket; False when it is not one."""
        match request.method, request.path:
            case b"POST", "/olol/v1/commands":
                self.spawn(self._command(connection, request))
            case b"GET", "/olol/v1/fit":
                self.spawn(self._fit(connection, request))
            case b"GET", "/olol/v1/logs":
                LogStream(self, connection, self._logs(request))
            case _:
                return False
        return True

    async def _command(self, connection: http.HttpConnection, request: http.Request) -> None:
        try:
            command = decode_command(request.body)
            accepted = await self._fleet.submit(command)
        except msgspec.MsgspecError as error:
            _fail(connection, 400, OlolError(str(error), title="The command is not valid"))
        except ModelNotFound as error:
            _fail(connection, 404, error)
        except OlolError as error:
            _fail(connection, 409, error)
        else:
            connection.reply(200, msgspec.json.encode(accepted))

    async def _fit(self, connection: http.HttpConnection, request: http.Request) -> None:
        ctx, slots = (request.param(name, "0") for name in ("ctx", "slots"))
        if not (ctx.isdigit() and slots.isdigit()):
            _fail(connection, 400, OlolError("ctx and slots: expected whole numbers"))
            return
        how = {"num_ctx": int(ctx), "slots": int(slots), "cache_type": request.param("cache_type")}
        try:
            found = await self._fleet.fit(request.param("model"), **how)
        except ModelNotFound as error:
            _fail(connection, 404, error)
        except OlolError as error:
            _fail(connection, 409, error)
        else:
            connection.reply(200, msgspec.json.encode(found))

    def _logs(self, request: http.Request) -> AsyncIterator[str]:
        tail = request.param("tail", "200")
        lines = min(int(tail), _MAX_TAIL) if tail.isdigit() else 200
        return self._fleet.logs(request.param("node"), request.param("engine"), tail=lines)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of ours: it ends with the gateway at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _read(handler: Handle) -> dict[bytes, Handle]:
    return {b"GET": handler, b"HEAD": handler}


def _fail(connection: http.HttpConnection, status: int, error: OlolError) -> None:
    body = {"error": {"title": error.title, "message": error.message, "hint": error.hint}}
    connection.reply(status, msgspec.json.encode(body))


class _Relay:
    """One plain request passed to an engine and its reply passed back."""

    def __init__(
        self,
        gateway: Gateway,
        connection: http.HttpConnection,
        request: http.Request,
        address: str,
    ) -> None:
        self._gateway = gateway
        self._connection = connection
        self._request = request
        self._status = 502
        self._content_type = http.JSON
        self._parts: list[bytes] = []
        body = request.body
        head = upstream.head("POST", address, request.path, len(body), "application/json")
        connection.handler = self
        self._call = gateway.pool.call(address, head + body, self)

    def up_head(self, status: int, content_type: bytes) -> None:
        self._status = status
        self._content_type = content_type or http.JSON

    def up_data(self, data: bytes, final: bool) -> None:
        self._parts.append(data)

    def up_end(self) -> None:
        self._connection.reply(self._status, b"".join(self._parts), self._content_type)

    def up_lost(self, reason: str) -> None:
        self._gateway.error(self._connection, self._request, 500, f"upstream lost: {reason}")

    def client_gone(self) -> None:
        self._call.cancel()

    def client_paused(self) -> None:
        self._call.pause()

    def client_resumed(self) -> None:
        self._call.resume()


class FleetWatch:
    """Every new snapshot as a line; a slow reader skips to the latest."""

    def __init__(self, connection: http.HttpConnection, fleet: FleetPort) -> None:
        self._connection = connection
        self._missed: Fleet | None = None
        self._unsubscribe = fleet.on_change(self._changed)
        connection.handler = self
        connection.begin(200, http.NDJSON)
        self._changed(fleet.fleet)

    def _changed(self, fleet: Fleet) -> None:
        if self._connection.paused:
            self._missed = fleet
        else:
            self._connection.send(encode(fleet) + b"\n")

    def client_gone(self) -> None:
        self._unsubscribe()

    def client_paused(self) -> None:
        pass

    def client_resumed(self) -> None:
        missed, self._missed = self._missed, None
        if missed is not None:
            self._changed(missed)


class LogStream:
    """Log lines as NDJSON until the client leaves."""

    def __init__(
        self, api: Api, connection: http.HttpConnection, lines: AsyncIterator[str]
    ) -> None:
        self._connection = connection
        self._writable = asyncio.Event()
        self._writable.set()
        connection.handler = self
        self._task = api.spawn(self._run(lines))

    async def _run(self, lines: AsyncIterator[str]) -> None:
        connection = self._connection
        try:
            connection.begin(200, http.NDJSON)
            async for line in lines:
                await self._writable.wait()
                connection.send(msgspec.json.encode({"line": line}) + b"\n")
            connection.end()
        except OlolError as error:
            if connection.started:
                connection.break_off(msgspec.json.encode({"error": str(error)}) + b"\n")
            else:
                _fail(connection, 404, error)

    def client_gone(self) -> None:
        self._task.cancel()

    def client_paused(self) -> None:
        self._writable.clear()

    def client_resumed(self) -> None:
        self._writable.set()
