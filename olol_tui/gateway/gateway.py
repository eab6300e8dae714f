"""The endpoint: accepts connections, knows the routes, carries out what the queue decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from datetime import UTC, date, datetime

import msgspec

from olol_tui.config import GatewayConfig
from olol_tui.fleet.snapshot import Fleet, GatewayState, Model, Request
from olol_tui.gateway import http, tls, upstream, view
from olol_tui.gateway.admission import Admission
from olol_tui.gateway.api import Api
from olol_tui.gateway.archive import Archive, Refused
from olol_tui.gateway.comeback import Comebacks
from olol_tui.gateway.control import ControlApp
from olol_tui.gateway.dialects import errors, fields, llama
from olol_tui.gateway.dialects.finished import finished_prompt, with_prompt
from olol_tui.gateway.dialects.modelfile import TOKEN_ROUTES, with_layers
from olol_tui.gateway.dialects.translation import Translation
from olol_tui.gateway.dispatcher import Dispatcher
from olol_tui.gateway.gate import Gate, Refusal
from olol_tui.gateway.health import Health
from olol_tui.gateway.keys import KeyStore
from olol_tui.gateway.lifecycle import Lifecycle
from olol_tui.gateway.loader import Loader
from olol_tui.gateway.metrics import LagClock, Metrics
from olol_tui.gateway.port import FleetPort
from olol_tui.gateway.pulse import Pulse
from olol_tui.gateway.records import Ledger, Record
from olol_tui.gateway.residents import Residents
from olol_tui.gateway.routes import BLOBS, INFERENCE, dialect_of
from olol_tui.gateway.settings import Settings
from olol_tui.gateway.times import rfc3339
from olol_tui.models.store_layers import StoreLayers
from olol_tui.routing.policy import policies
from olol_tui.routing.queue import Queue
from olol_tui.routing.room import WaitingRoom
from olol_tui.routing.roster import Roster, Seat

log = logging.getLogger("olol.gateway")

_SWEEP_S = 1.0
_HELD_S = 0.25
"""A sweep that is later than this tells that the process stood still, or its machine."""
_POKE_S = 0.25


class Gateway:
    """One per process. Implements http.App."""

    def __init__(
        self,
        config: GatewayConfig,
        fleet: FleetPort,
        *,
        dial: upstream.Dial = upstream.dial_tcp,
        keys: KeyStore | None = None,
        archive: Archive | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.now: Callable[[], float] = self._loop.time
        """The clock of everything here, seconds."""
        self.settings = Settings(config)
        self.fleet = fleet
        self.streamed, self.spooled = BLOBS, INFERENCE
        self.pool = upstream.UpstreamPool(dial)
        self.gate = Gate(keys, self._loop.time, connections_per_key=config.max_connections_per_key)
        self.archive = archive
        self.metrics = Metrics()
        self._lag = LagClock(self._loop, self.metrics.lag.observe)
        self.ledger = Ledger(self._loop.time, self._recorded)
        self.queue = Queue(
            WaitingRoom(config.max_queue, config.max_queue_per_key),
            policy_of=policies(config.policy, config.model_policies),
        )
        self.dispatcher = Dispatcher(self)
        self.health = Health(
            fleet, self.queue, self.metrics, lambda: self.roster, self.dispatcher.pump
        )
        self.loader = Loader(
            fleet,
            self.pool,
            self.queue,
            self._loop.time,
            self._model_changed,
            self.dispatcher.load_failed,
            self.health.failed,
            self.metrics,
        )
        self.residents = Residents(self)
        self.roster: Roster = self.loader.roster(fleet.fleet)
        """Where each model can run, by the latest snapshot."""
        self.dispatcher.set_paused(fleet.fleet.paused)
        self._connections: set[http.HttpConnection] = set()
        self._servers: list[asyncio.Server] = []
        self._unsubscribe = fleet.on_change(self._fleet_changed)
        self._poke_timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._admission = Admission(self)
        self.pulse = Pulse(self.pool)
        self.comebacks = Comebacks(self)
        self.api = Api(self, fleet)
        self.address = ""
        self.draining = False
        self._idle = asyncio.Event()
        self.started_wall = datetime.now(UTC)
        fleet.attach_gateway(self.view, self.dispatcher.cancel, self.dispatcher.reroute)

    # -- life

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be had.
        """
        host, files = self.settings.config.host, self.settings.tls
        server = await self._loop.create_server(
            http.serve_factory(self, self._loop),
            host,
            self.settings.config.port,
            backlog=1024,
            ssl=None if files is None else files.context,
            ssl_handshake_timeout=None if files is None else tls.HANDSHAKE_S,
        )
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        scheme = "http" if files is None else "https"
        self.address = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        self._sweeper = self._loop.create_task(self._sweep())
        self._lag.start()

    async def serve_control(self, listener: socket.socket) -> None:
        """Answer on the control socket too, with the routes that change things."""
        server = await self._loop.create_unix_server(
            http.serve_factory(ControlApp(self), self._loop), sock=listener
        )
        self._servers.append(server)

    async def drain(self, timeout_s: float = 30.0) -> None:
        """Take no new requests, let the live ones finish."""
        self.draining = True
        self.poke()
        if self.ledger.live:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def close(self) -> None:
        """Cut what still runs, close everything."""
        self._unsubscribe()
        self._lag.stop()
        for server in self._servers:
            server.close()
        self.dispatcher.close()
        self.health.close()
        if self._poke_timer is not None:
            self._poke_timer.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        await self.api.close()
        for connection in list(self._connections):
            connection.abort()
        await self.pulse.close()
        await self.comebacks.close()
        await self.pool.close()

    async def _sweep(self) -> None:
        """Once a second: silent engines, silent clients, requests nobody can take."""
        swept_s = self.now()
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = self.now()
            held_s, swept_s = now - swept_s - _SWEEP_S, now
            if held_s > _HELD_S:
                self._excuse(held_s, now)
            for connection in list(self._connections):
                waits = connection.active is None or connection.receiving
                if waits and now > connection.deadline:
                    connection.abort()
            if self.settings.tls is not None:
                self.settings.tls.refresh()
            ended_keys = self.gate.refresh()
            for exchange in list(self.dispatcher.exchanges.values()):
                if ended_keys and exchange.record.key_id in ended_keys:
                    exchange.cancel("the API key is not valid any more")
                exchange.check(now, self.settings.patience)
            self.dispatcher.refuse_stuck()
            self.dispatcher.pump_all()
            self.comebacks.look()
            self.metrics.look(self.fleet.fleet)

    def _excuse(self, held_s: float, now_s: float) -> None:
        """We stood still ourselves: nobody else was silent for that time, as far as we know."""
        for connection in self._connections:
            connection.deadline += held_s
        for exchange in self.dispatcher.exchanges.values():
            exchange.excuse(held_s, now_s)

    # -- http.App

    @property
    def limits(self) -> http.Limits:
        return self.settings.limits

    @property
    def connections(self) -> int:
        return len(self._connections)

    def opened(self, connection: http.HttpConnection) -> bool:
        self._connections.add(connection)
        return len(self._connections) <= self.limits.connections

    def closed(self, connection: http.HttpConnection) -> None:
        self._connections.discard(connection)
        self.gate.closed(connection)

    def refusal(
        self, connection: http.HttpConnection, request: http.Request
    ) -> tuple[int, str, bytes] | None:
        """Asks for a key as soon as the head of a request is there."""
        if not self.gate.required or request.method == b"OPTIONS":
            # A page's question whether it may ask carries no key, and gets nothing else.
            return None
        found = self.gate.admit(connection, request.path, request.headers)
        if isinstance(found, Refusal):
            return found
        request.key = found
        return None

    def refuse(
        self, connection: http.HttpConnection, status: int, message: str, extra: bytes = b""
    ) -> None:
        request = connection.active
        assert request is not None
        # A page that may ask may also read why it was refused.
        self.settings.access.admit(request)
        self.error(connection, request, status, message, extra)

    def handle(self, connection: http.HttpConnection, request: http.Request) -> None:
        path = request.path
        if reason := self.settings.access.admit(request):
            self.error(connection, request, 403, reason)
            return
        route = INFERENCE.get(path)
        if route is None:
            self.api.handle(connection, request)
        elif request.method == b"POST":
            self._admission.infer(connection, request, route)
        elif request.method == b"OPTIONS":
            self.api.handle(connection, request)
        else:
            self.error(connection, request, 405, "method not allowed", b"Allow: POST\r\n")

    def error(
        self,
        connection: http.HttpConnection,
        request: http.Request,
        status: int,
        message: str,
        extra: bytes = b"",
    ) -> None:
        dialect = dialect_of(request.path)
        self.metrics.refused(dialect, status)
        if self.archive is not None and self.archive.logs:
            client = connection.peer if request.key is None else request.key.name
            method = request.method.decode("latin-1")
            self.archive.put(Refused(time.time(), client, method, request.path, status))
        connection.reply(status, errors.error_body(dialect, status, message), http.JSON, extra)

    # -- inference

    def ended(self, exchange: Lifecycle) -> None:
        self.dispatcher.exchanges.pop(exchange.record.id, None)
        if self.draining and not self.ledger.live:
            self._idle.set()
        self.poke()

    def translate(self, path: str, body: bytes, name: str, seat: Seat) -> Translation:
        """A native request for an engine that speaks llama-server's dialect.

        Raises:
            BadRequest: a field of the body has the wrong type or asks for what it cannot do.
        """
        entries = self.roster.models(name)
        model = next((m for n, m in entries if n.name == seat.node), Model(name))
        asked = fields.decode_body(body, path)
        prompt = None
        if (own := self._layers(seat)) is not None:
            asked = with_layers(path, asked, own)
            prompt = finished_prompt(path, asked, own, date.today())
        return llama.translate(
            path, asked, model, prompt=prompt, created=rfc3339, clock_ns=time.monotonic_ns
        )

    def with_store(self, path: str, body: bytes, seat: Seat) -> bytes:
        """A request of `/v1/*` with what the store of a split's model adds to it.

        Raises:
            BadRequest: as `translate`.
        """
        own = self._layers(seat)
        if own is None or path not in TOKEN_ROUTES:
            return body
        asked = with_layers(path, fields.decode_body(body, path), own)
        prompt = finished_prompt(path, asked, own, date.today())
        if prompt is not None:
            asked = with_prompt(path, asked, prompt)
        return msgspec.json.encode(asked)

    def _layers(self, seat: Seat) -> StoreLayers | None:
        return self.fleet.split_layers(seat.engine) if self.fleet.fleet.splits else None

    # -- what changes around us

    def _fleet_changed(self, fleet: Fleet) -> None:
        now = self.now()
        self.loader.observe(fleet, now)
        self.queue.ejection.observe(fleet, now)
        self.roster = self.loader.roster(fleet)
        self.dispatcher.set_paused(fleet.paused)
        self.dispatcher.pump_all()

    def _model_changed(self, model: str) -> None:
        """A load ended well."""
        self.roster = self.loader.roster(self.fleet.fleet)
        self.dispatcher.pump(model)
        self.poke()

    def _recorded(self, record: Record) -> None:
        """A request ended: count it and keep its record."""
        self.metrics.ended(record)
        if self.archive is not None:
            self.archive.put(record)
        if record.key_id:
            self.gate.ended(record.key_id, record.tokens + (record.prompt_tokens or 0))

    # -- the console's view

    def poke(self) -> None:
        """Our part of the snapshot changed: publish soon, a few times a second at most."""
        if self._poke_timer is None:
            self._poke_timer = self._loop.call_later(_POKE_S, self._poke_now)

    def _poke_now(self) -> None:
        self._poke_timer = None
        self.fleet.poke()

    @property
    def unrecorded(self) -> int:
        return 0 if self.archive is None else self.archive.unrecorded

    def view(self) -> tuple[tuple[Request, ...], GatewayState]:
        """Requests and totals for the snapshot."""
        return view.view(self)
