"""The agent's HTTP routes, each a few lines over the part that does the work."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable

from . import PROTOCOL, __version__, foreign, inventory, logs, proc, roundtrip, shape, store
from .devices import DeviceSource
from .engines.forward import public_key
from .engines.simulated import store_path
from .errors import BadRequest, EngineError, NotFound
from .lease import HEADER, Controller, Lease
from .records import State
from .routes import Request, Router
from .spec import parse_specs
from .supervisor import Supervisor
from .telemetry import Telemetry

_MAX_TAIL = 10000
_MAX_HZ = 20.0


class Api:
    """Answers requests; owns nothing but the foreign servers last seen."""

    def __init__(
        self,
        state: State,
        supervisor: Supervisor,
        telemetry: Telemetry,
        facts: Facts,
        lease: Lease,
        stop: Callable[[bool], None],
        upgrade: Callable[[Path, str], Awaitable[dict[str, Any]]],
    ) -> None:
        self._state = state
        self._supervisor = supervisor
        self._telemetry = telemetry
        self._facts = facts
        self._lease = lease
        self._stop = stop
        self._replace = upgrade

    def router(self) -> Router:
        router = Router()
        router.add("GET", "/v1/hello", self._hello)
        router.add("GET", "/v1/inventory", self._inventory)
        router.add("POST", "/v1/models", self._models)
        router.add("POST", "/v1/shape", self._shape)
        router.add("GET", "/v1/engines", self._engines)
        router.add("PUT", "/v1/engines", self._put_engines)
        router.add("POST", "/v1/engines/{identity}/restart", self._restart)
        router.add("POST", "/v1/engines/{identity}/refresh", self._refresh)
        router.add("GET", "/v1/engines/{identity}/logs", self._engine_logs)
        router.add("GET", "/v1/logs", self._agent_logs)
        router.add("GET", "/v1/telemetry/stream", self._stream)
        router.add("POST", "/v1/mesh/key", self._mesh_key)
        router.add("POST", "/v1/mesh/rtt", self._mesh_rtt)
        router.add("POST", "/v1/claim", self._claim)
        router.add("POST", "/v1/release", self._release)
        router.add("POST", "/v1/upgrade", self._upgrade)
        router.add("POST", "/v1/shutdown", self._shutdown)
        return router

    async def _hello(self, _request: Request) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "version": __version__,
            "sha256": self._facts.sha256,
            "pid": os.getpid(),
            "boot_id": self._facts.boot_id,
            "machine_id": self._state.machine_id,
            "hostname": socket.gethostname(),
            "python": sys.version.split()[0],
            "started_wall": self._facts.started_wall,
            "controller": self._lease.shown(),
        }

    async def _inventory(self, _request: Request) -> dict[str, Any]:
        await self._facts.look_for_foreign(self._supervisor.sessions())
        return await inventory.collect(
            self._facts.source,
            self._facts.foreign,
            [
                *self._facts.sampler_errors(),
                *self._supervisor.errors,
                *filter(None, [self._supervisor.door_problem()]),
            ],
            simulated=self._facts.simulated,
            machine_id=self._state.machine_id,
        )

    async def _models(self, request: Request) -> dict[str, Any]:
        wanted = request.json()
        loop = asyncio.get_running_loop()
        shelf = store_path(str(self._state.path))
        return await loop.run_in_executor(None, store.models, wanted, self._facts.simulated, shelf)

    async def _shape(self, request: Request) -> dict[str, Any]:
        wanted = request.json()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, shape.shape, wanted)

    async def _engines(self, _request: Request) -> dict[str, Any]:
        return {
            "generation": self._supervisor.generation,
            "engines": self._supervisor.statuses(),
        }

    async def _put_engines(self, request: Request) -> dict[str, Any]:
        data = request.json()
        generation = data.get("generation")
        if isinstance(generation, bool) or not isinstance(generation, int) or generation < 0:
            raise BadRequest("generation: expected a whole number")
        self._lease.claim(_controller(request))
        self._supervisor.put(generation, parse_specs(data.get("engines")))
        return {"generation": generation}

    async def _restart(self, request: Request, identity: str) -> dict[str, Any]:
        self._lease.check(_controller(request))
        self._supervisor.restart(identity)
        return {}

    async def _refresh(self, _request: Request, identity: str) -> dict[str, Any]:
        self._supervisor.refresh(identity)
        return {}

    async def _engine_logs(self, request: Request, identity: str) -> AsyncIterator[dict[str, Any]]:
        path = self._state.log_path(identity)
        if not self._supervisor.knows(identity) and not path.is_file():
            raise NotFound(f"there is no engine {identity!r} here")
        return self._lines(request, identity)

    async def _agent_logs(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        return self._lines(request, "")

    def _lines(self, request: Request, identity: str) -> AsyncIterator[dict[str, Any]]:
        count = int(request.number("tail", 200, 0, _MAX_TAIL))
        path = self._state.log_path(identity)
        if request.query.get("follow", "0") not in ("", "0", "false"):
            return _as_lines(logs.follow(path, count))
        return _as_lines(_once(logs.tail(path, count)))

    async def _stream(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        return self._telemetry.stream(request.number("hz", 1.0, 0.01, _MAX_HZ))

    async def _shutdown(self, request: Request) -> dict[str, Any]:
        engines = request.json().get("engines", "keep")
        if engines not in ("keep", "stop"):
            raise BadRequest(f"engines: expected keep or stop, got {engines!r}")
        who = _controller(request)
        if who is not None:
            # Without a name it is somebody on this machine who means it.
            self._lease.check(who)
        if engines == "stop":
            self._lease.release(who)
        self._stop(engines == "stop")
        return {}

    async def _upgrade(self, request: Request) -> dict[str, Any]:
        body = request.json()
        path, sha256 = body.get("path"), body.get("sha256", "")
        if not isinstance(path, str) or not path.startswith("/"):
            raise BadRequest("path: expected the absolute path of an agent's zipapp")
        if not isinstance(sha256, str):
            raise BadRequest("sha256: expected a string")
        return await self._replace(Path(path), sha256)

    async def _mesh_key(self, _request: Request) -> dict[str, Any]:
        """The key with which this node's heads reach workers elsewhere; made when asked for."""
        loop = asyncio.get_running_loop()
        try:
            key = await loop.run_in_executor(None, public_key, str(self._state.path))
        except EngineError as error:
            raise BadRequest(error.message, error.hint) from error
        return {"public_key": key}

    async def _mesh_rtt(self, request: Request) -> dict[str, Any]:
        return await roundtrip.measure(request.json())

    async def _claim(self, request: Request) -> dict[str, Any]:
        self._lease.claim(_controller(request))
        return {"controller": self._lease.shown()}

    async def _release(self, request: Request) -> dict[str, Any]:
        self._lease.release(_controller(request))
        return {}


class Facts:
    """What is known of this process and node, and looked up again now and then."""

    def __init__(
        self,
        source: DeviceSource,
        sampler_errors: Callable[[], list[str]],
        sha256: str,
        *,
        simulated: bool,
    ) -> None:
        self.source = source
        self.sampler_errors = sampler_errors
        self.sha256 = sha256
        self.simulated = simulated
        self.boot_id = proc.boot_id()
        self.started_wall = time.time()
        self.foreign: list[dict[str, Any]] = []

    async def look_for_foreign(self, own_sessions: set[int]) -> bool:
        """Returns whether the list changed."""
        found = await foreign.find(own_sessions)
        changed = found != self.foreign
        self.foreign = found
        return changed

    def foreign_urls(self) -> list[str]:
        return [str(item["url"]) for item in self.foreign]


def _controller(request: Request) -> Controller | None:
    return Controller.parse(request.headers.get(HEADER, ""))


async def _as_lines(source: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    async for line in source:
        yield {"line": line}


async def _once(lines: list[str]) -> AsyncIterator[str]:
    for line in lines:
        yield line
