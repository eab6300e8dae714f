"""An Ollama that somebody else runs: asked what it has, used, never managed.

No agent there, so its one engine is described by polling its own API. It is shown as a node
with one device, whose memory is what the configuration says (an Ollama does not tell).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from urllib.parse import urlsplit

import httpx

from olol_tui.config import EndpointConfig
from olol_tui.errors import EngineError, NodeError
from olol_tui.fleet.engine_client import EngineClient
from olol_tui.fleet.overlay import Overlay
from olol_tui.fleet.road import Factory, Road
from olol_tui.fleet.snapshot import (
    Device,
    Engine,
    EngineState,
    Loaded,
    Model,
    Node,
    NodeState,
)
from olol_tui.fleet.tcp_transport import tcp_transport
from olol_tui.fleet.wishes import Wishes
from olol_tui.routing.roster import ROAD_MARK

log = logging.getLogger("olol.fleet.endpoint")

BEAT_S = 2.0
TAGS_EVERY_S = 15.0
BACKOFF_MAX_S = 15.0
STALE_AFTER_POLLS = 3
"""A poll takes its own time, and a server that loads a big model takes long for one."""
_TIMEOUTS_TOLERATED = 1
"""A server that loads a big model may answer late once; one that refuses is down at once."""


class EndpointSession:
    """The controller's eye on one endpoint; see `Member`.

    Args:
        road: of the node on which it runs, where it is reached through one; None: by TCP.
        host: of that node, for people.
    """

    def __init__(
        self,
        name: str,
        config: EndpointConfig,
        *,
        wishes: Wishes,
        clock: Callable[[], float],
        changed: Callable[[], None],
        beat_s: float = BEAT_S,
        road: Road | None = None,
        host: str = "",
    ) -> None:
        self._name = name
        self._road = road
        self._host = host
        self._try_now = asyncio.Event()
        self._config = config
        self._wishes = wishes
        self._clock = clock
        self._changed = changed
        self._beat_s = beat_s
        self._overlay = Overlay(clock, changed)
        self._state: NodeState = "connecting"
        self._error = ""
        self._version = ""
        self._loaded: tuple[Loaded, ...] = ()
        self._library: tuple[Model, ...] = ()
        self._seen_s: float | None = None
        self._tags_s: float | None = None
        self._since_s = clock()
        self._failures = 0
        self._retry_s: float | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def engine_id(self) -> str:
        return f"{self._name}/endpoint"

    async def run(self) -> None:
        while True:
            try:
                await self._poll()
            except EngineError as error:
                self._failed(error)
            except Exception as error:
                log.exception("%s: unexpected failure", self._name)
                self._failed(EngineError(f"unexpected failure: {error!r}"))
            pause_s = self._beat_s
            if self._state == "lost" or self._state == "failed":
                ceiling = min(BACKOFF_MAX_S, self._beat_s * 2.0 ** min(self._failures - 1, 8))
                pause_s = ceiling * random.uniform(0.5, 1.0)
                self._retry_s = self._clock() + pause_s
            self._changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._try_now.wait()
            self._try_now.clear()

    async def _poll(self) -> None:
        async with self._client() as client:
            if self._state != "ready" or not self._version:
                self._version = await client.version()
            self._loaded = await client.ps()
            now_s = self._clock()
            if self._tags_s is None or now_s - self._tags_s >= TAGS_EVERY_S:
                self._library = await client.tags()
                self._tags_s = now_s
        if self._state != "ready":
            log.info("%s: %s answers, version %s", self._name, self._config.url, self._version)
            self._since_s = now_s
        self._state, self._error, self._retry_s = "ready", "", None
        self._seen_s, self._failures = now_s, 0

    def _failed(self, error: EngineError) -> None:
        self._failures += 1
        is_late = isinstance(error.__cause__, httpx.TimeoutException)
        if is_late and self._state == "ready" and self._failures <= _TIMEOUTS_TOLERATED:
            return
        if self._state not in ("lost", "failed"):
            log.warning("%s: %s", self._name, error)
            self._since_s = self._clock()
        self._state = "failed" if self._seen_s is None else "lost"
        self._error = str(error)
        # Whoever comes back may have another store.
        self._tags_s = None

    def view(self, now_s: float) -> Node:
        cordoned = self._wishes.is_cordoned(self._name)
        age_s = 0.0 if self._seen_s is None else max(0.0, now_s - self._seen_s)
        used = sum(one.vram_bytes or one.size_bytes for one in self._loaded)
        device = Device(
            uuid=f"endpoint-{self._name}",
            index=0,
            name=f"Ollama at {self._address}",
            vram_bytes=self._config.vram,
            used_bytes=used if self._config.vram is not None else None,
        )
        state, error = self._state, self._error
        if self._road is not None and (problem := self._road.problem) is not None:
            # In the same moment as its node, not when the next look fails.
            state = "lost" if self._seen_s is not None else "failed"
            error = str(problem)
        states: dict[NodeState, EngineState] = {"connecting": "starting", "ready": "ready"}
        engine = Engine(
            id=self.engine_id,
            node=self._name,
            kind="endpoint",
            state=states.get(state, "backoff"),
            devices=(device.uuid,),
            address=self._way,
            version=self._version,
            slots=self._config.slots,
            loaded=tuple(
                replace(one, pinned=self._wishes.is_pinned(one.name, self._name, (device.uuid,)))
                for one in self._loaded
            ),
            since_s=self._since_s,
            retry_in_s=None if self._retry_s is None else max(0.0, self._retry_s - now_s),
            error=error,
            cordoned=cordoned or self._wishes.is_paused(self.engine_id),
        )
        return Node(
            name=self._name,
            state=state,
            kind="endpoint",
            devices=(device,),
            engines=(self._overlay.apply(engine, now_s),),
            library=self._library,
            age_s=age_s,
            stale=self._seen_s is not None and age_s > STALE_AFTER_POLLS * self._beat_s,
            cordoned=cordoned,
            error=error,
            host=self._host,
            draining=self._wishes.is_draining(self._name),
            last_contact_s=self._seen_s,
        )

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """Only those behind a node's road are asked: the others are reached by TCP."""
        if self._road is None:
            raise ConnectionError(f"{self._name} is not behind a node")
        return await self._road.dial(address, factory)

    def try_now(self) -> None:
        self._try_now.set()

    def replan(self) -> None:
        self._changed()

    def engine_client(self, engine: Engine) -> EngineClient:
        return self._client()

    def loading(
        self, engine_id: str, model: str, expected_s: float
    ) -> AbstractContextManager[None]:
        return self._overlay.loading(engine_id, model, expected_s)

    async def refresh(self, engine: Engine) -> None:
        async with self._client() as client:
            self._loaded = await client.ps()
        self._changed()

    async def survey(self) -> None:
        async with self._client() as client:
            self._library = await client.tags()
        self._tags_s = self._clock()
        self._changed()

    async def restart(self, engine_id: str) -> None:
        raise NodeError(
            f"{self._name} is run by somebody else: it is used and never managed",
            hint=f"Restart it where it runs ({self._config.url}).",
        )

    async def logs(self, engine_id: str, tail: int) -> AsyncIterator[str]:
        raise NodeError(
            f"{self._name} is run by somebody else: its log is not ours to read",
            hint=f"Read it where it runs ({self._config.url}).",
        )
        yield ""  # makes this an async generator, like the logs of a node

    async def shutdown(self) -> None:
        """Nothing: it is not ours."""

    async def release(self) -> None:
        """Nothing: nobody manages it."""

    async def aclose(self) -> None:
        """Nothing stays open; the road is its node's."""

    @property
    def _address(self) -> str:
        return urlsplit(self._config.url).netloc

    @property
    def _way(self) -> str:
        """As the gateway dials it: with this member's name where it lies behind a road."""
        is_behind = self._road is not None and self._road.kind != "local"
        return f"{self._name}{ROAD_MARK}{self._address}" if is_behind else self._address

    def _client(self) -> EngineClient:
        url = self._config.url
        transport = tcp_transport(url) if self._road is None else self._road.engine_transport()
        return EngineClient(transport, url, self._name)
