"""The simulated engine as one object: settings, memory, calls, counters and routes."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from typing import TYPE_CHECKING, Any

from . import anthropic, library, native, openai, replies, responses
from .catalogue import SimModel, open_catalogue
from .faults import Faults
from .host import Host
from .httpd import JSON, STREAMED, TEXT, Connection, Exchange
from .jsonbody import BadRequest, parse_json
from .metronome import Metronome
from .settings import Settings
from .shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable

    Route = Callable[["SimServer", Exchange], None]

_LOAD_UTIL_PERCENT = 9.0
"""Copying weights keeps a device nearly idle."""
_UTIL_WINDOW_S = 1.0


class SimServer:
    """One engine. Needs a running event loop."""

    def __init__(self, engine_id: str, settings: Settings) -> None:
        """
        Raises:
            ValueError: the catalogue in the settings is not valid.
        """
        self.engine_id = engine_id
        self.settings = settings
        self.shelf = Shelf(open_catalogue(settings.models), settings.store)
        self.partial: dict[str, int] = {}
        """Bytes of layers whose transfer was broken off: it goes on from there."""
        self.blob_bytes = 0
        """Taken in by uploads so far."""
        self.loop = asyncio.get_running_loop()
        self.metronome = Metronome(self.loop)
        self.host = Host(settings, self.log, self.touched)
        self.faults = Faults()
        self.decoding = 0
        """Requests that decode now, over all models."""
        self.requests = self.completed = self.failed = self.cancelled = self.tokens = 0
        self.last_cancel_mono: float | None = None
        self._unseeded = 0
        self._util_percent = 0.0
        self._util_level = 0.0
        self._util_mono = time.monotonic()
        self._routes: dict[str, dict[str, Route]] = {
            **native.ROUTES,
            **library.ROUTES,
            **openai.ROUTES,
            **responses.ROUTES,
            **anthropic.ROUTES,
            "/sim/stats": {"GET": SimServer._stats},
            "/sim/faults": {"POST": SimServer._set_fault, "GET": SimServer._stats},
        }

    def log(self, line: str) -> None:
        """One line of the engine's log (standard error, which the supervisor keeps)."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        print(f"{stamp} {self.engine_id} {line}", file=sys.stderr, flush=True)

    def protocol(self) -> Connection:
        return Connection(self.handle)

    def find(self, name: str) -> SimModel | None:
        return self.shelf.find(name)

    def seed(self) -> int:
        """For a request that brings no seed."""
        self._unseeded += 1
        if self.settings.seed is None:
            return time.time_ns() + self._unseeded
        return self.settings.seed + self._unseeded

    # -- dispatch --------------------------------------------------------------------

    def handle(self, exchange: Exchange) -> None:
        """Answers one request."""
        methods = self._routes.get(exchange.path)
        if methods is None and exchange.path.startswith("/v1/models/"):
            methods = openai.MODEL_ROUTE
        if methods is None and exchange.path.startswith(STREAMED):
            methods = library.BLOB_ROUTE
        if methods is None:
            exchange.reply(404, b"404 page not found", TEXT)
            return
        if not exchange.path.startswith("/sim/") and exchange.method != "POST":
            fault = self.faults.take(computes=False)
            if fault is not None and self._hit(exchange, fault.kind):
                return
        route = methods.get(exchange.method)
        if route is None and exchange.method == "HEAD" and exchange.path in native.HEAD_TOO:
            route = methods.get("GET")
        if route is None:
            allowed = ", ".join(sorted(methods))
            exchange.reply(405, b"405 method not allowed", TEXT, f"Allow: {allowed}\r\n")
            return
        try:
            route(self, exchange)
        except BadRequest as bad:
            exchange.reply(bad.status, _error_body(exchange.path, bad.status, str(bad)), JSON)

    def _hit(self, exchange: Exchange, kind: str) -> bool:
        """A fault of scope "all" on a request that computes nothing; True when it struck."""
        if kind in ("refuse", "cut"):
            exchange.reset()
        elif kind in ("500", "503"):
            exchange.reply(int(kind), replies.error_body(int(kind), "simulated fault"), JSON)
        elif kind != "hang":
            return False
        return True

    # -- calls report here -----------------------------------------------------------

    def call_began(self) -> None:
        self.requests += 1

    def call_cancelled(self) -> None:
        self.cancelled += 1
        self.last_cancel_mono = time.monotonic()

    # -- utilisation and statistics ----------------------------------------------------

    def touched(self) -> None:
        """Something changed that utilisation depends on: account for the time until now."""
        now = time.monotonic()
        fade = math.exp((self._util_mono - now) / _UTIL_WINDOW_S)
        self._util_percent = self._util_level + (self._util_percent - self._util_level) * fade
        self._util_mono = now
        active = self.host.active
        if active:
            # One stream leaves gaps between its kernels, a full batch hardly any.
            self._util_level = 99.0 - 22.0 / active
        elif self.host.loading is not None:
            self._util_level = _LOAD_UTIL_PERCENT
        else:
            self._util_level = 0.0

    def _stats(self, exchange: Exchange) -> None:
        self.touched()
        loading = self.host.loading
        entries: list[dict[str, Any]] = []
        if loading is not None:
            entries.append(
                {
                    "name": loading.model.name,
                    "started_mono": loading.started_mono,
                    "progress": round(loading.progress(), 4),
                }
            )
        exchange.reply_json(
            200,
            {
                "id": self.engine_id,
                "requests": self.requests,
                "running": self.host.active,
                "queued": self.host.waiting,
                "cancelled": self.cancelled,
                "completed": self.completed,
                "failed": self.failed,
                "tokens": self.tokens,
                "blob_bytes": self.blob_bytes,
                "loads": self.host.loads,
                "evictions": self.host.evictions,
                "used_bytes": self.host.used_bytes(),
                "vram_bytes": self.settings.vram_bytes,
                "util_percent": round(self._util_percent, 2),
                "last_cancel_mono": self.last_cancel_mono,
                "loading": entries,
                "fault": self.faults.describe(),
            },
        )

    def _set_fault(self, exchange: Exchange) -> None:
        try:
            self.faults.set(parse_json(exchange.body))
        except ValueError as error:
            raise BadRequest(str(error)) from error
        self.log(f"fault set: {self.faults.describe() or 'none'}")
        exchange.reply_json(200, {})


def _error_body(path: str, status: int, message: str) -> bytes:
    """In the shape of the path's dialect."""
    if path.startswith("/v1/messages"):
        return anthropic.error_body(status, message)
    if path.startswith("/v1/"):
        return openai.error_body(status, message)
    return replies.error_body(status, message)
