"""One node with an agent: keeps the link, the facts and the desired engines of that node.

Life of a session: make sure that the agent runs, greet it, ask what there is, then several
tasks at once until one fails: watch the road, follow the telemetry, hold the lease, keep the
desired engines applied, look again now and then. A failure ends the visit, not the session: it
comes back with a jittered back-off, and everything that was known stays known, with its age.

A road that breaks makes the node `lost` in the same moment. An agent that does not answer
over a road that works does not: engines run without it, and requests reach them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import msgspec

from olol_tui.config import NodeConfig
from olol_tui.errors import NodeError, OlolError, first_error
from olol_tui.fleet import desired, limits, walls
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable
from olol_tui.fleet.engine_client import EngineClient
from olol_tui.fleet.footprints import Footprints
from olol_tui.fleet.identity import Identity
from olol_tui.fleet.node_view import NodeFacts, build_node
from olol_tui.fleet.overlay import Overlay
from olol_tui.fleet.road import Factory, NotProvisioned, Road
from olol_tui.fleet.silence import Silence
from olol_tui.fleet.snapshot import (
    RUNNERS,
    STALE_AFTER_BEATS,
    Engine,
    Model,
    Node,
    NodeState,
    ProvisionStep,
    Role,
)
from olol_tui.fleet.steering import Steering
from olol_tui.fleet.wire import ClockMap, Frame, Inventory
from olol_tui.fleet.wishes import Wishes

log = logging.getLogger("olol.fleet.node")

SURVEY_EVERY_S = 30.0
"""Models pulled and engines installed behind our back are noticed this late."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
NOT_PROVISIONED_PAUSE_S = 30.0
"""Looking costs a command there; somebody else may provision it meanwhile."""


@dataclass(frozen=True, slots=True)
class Library:
    """What to ask a node's agent for beside its stores."""

    files: tuple[tuple[str, str, str], ...] = ()
    """(name, path, chat template) of the models that the configuration names."""
    user_dir: str = ""


class NodeSession:
    """The controller's hand on one node; see `Member`."""

    def __init__(
        self,
        name: str,
        config: NodeConfig,
        road: Road,
        *,
        wishes: Wishes,
        library: Library,
        clock: Callable[[], float],
        changed: Callable[[], None],
        expires_at: Callable[[str], str],
        beat_s: float = 1.0,
        identity: Identity | None = None,
        binaries: frozenset[str] = frozenset(),
    ) -> None:
        self._name = name
        self._config = config
        self._road = road
        self._identity = identity
        self._wishes = wishes
        self._library = library
        self._clock = clock
        self._changed = changed
        self._expires_at = expires_at
        self._beat_s = beat_s
        self._facts = NodeFacts(
            name=name,
            kind=road.kind,
            pool=config.pool,
            is_simulated=config.simulated is not None,
            vram_limit=limits.configured(config),
            binaries=binaries,
        )
        self._silence = Silence(STALE_AFTER_BEATS * beat_s, changed)
        self._overlay = Overlay(clock, changed)
        self._clock_map = ClockMap()
        self._client: AgentClient | None = None
        self._steering = Steering(name, config, self._facts, wishes, clock=clock, changed=changed)
        self._footprints = Footprints(self._facts, changed)
        self._surveying = asyncio.Lock()
        """Two at once could end with the older facts."""
        self._try_now = asyncio.Event()
        self._look_now = asyncio.Event()
        self._had_problem = road.problem is not None
        self._failures = 0
        road.watch(self._road_changed)

    @property
    def name(self) -> str:
        return self._name

    @property
    def config(self) -> NodeConfig:
        return self._config

    @property
    def road(self) -> Road:
        return self._road

    def view(self, now_s: float) -> Node:
        return build_node(
            self._facts,
            now_s,
            road=self._road.facts,
            clock_offset_s=self._clock_map.offset_s,
            wishes=self._wishes,
            overlay=self._overlay,
            expires_at=self._expires_at,
            is_silent=bool(self._silence),
        )

    def replan(self) -> None:
        self._steering.replan()

    def planned(
        self, roles: Mapping[str, Role] | None = None, config: NodeConfig | None = None
    ) -> desired.Plan:
        """The engines that are desired, or would be with other roles or configuration."""
        return self._steering.planned(roles, config)

    def reconfigure(self, config: NodeConfig, library: Library) -> None:
        """Follow another configuration of the same node, over the same road."""
        self._config = config
        self._library = library
        self._facts.pool = config.pool
        self._road.reconfigure(config)
        self._steering.reconfigure(config)
        self._look_now.set()

    def name_binaries(self, kinds: frozenset[str]) -> None:
        """The configuration names these kinds' programs, as of now."""
        self._facts.binaries = kinds

    def try_now(self) -> None:
        """Do not wait for the next attempt; what the last one said may not hold any more."""
        if self._facts.state == "failed":
            self._facts.state = "connecting"
            self._facts.link_error = ""
        self._try_now.set()
        self._look_now.set()
        self._changed()

    def show_steps(self, steps: tuple[ProvisionStep, ...]) -> None:
        self._facts.steps = steps
        self._changed()

    def forget(self) -> None:
        """Everything of ours was taken off the node."""
        self._facts.forget()
        self._facts.state = "failed"
        self.try_now()

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        return await self._road.dial(address, factory)

    def engine_client(self, engine: Engine) -> EngineClient:
        return EngineClient(
            self._road.engine_transport(), f"http://{engine.address}", f"engine {engine.id}"
        )

    def loading(
        self, engine_id: str, model: str, expected_s: float
    ) -> AbstractContextManager[None]:
        return self._overlay.loading(engine_id, model, expected_s)

    async def refresh(self, engine: Engine) -> None:
        async with self.engine_client(engine) as client:
            self._overlay.learned(engine.id, await client.ps())

    async def survey(self) -> None:
        await self._survey(self._agent_now())

    async def shape(self, model: Model) -> dict[str, Any]:
        """What memory planning needs of a model of this node's library.

        Raises:
            NodeError: the node does not say.
        """
        store = "" if self._config.engine in RUNNERS else self._config.models_dir
        return await self._agent_now().shape(path=model.path, name=model.name, store=store)

    async def round_trips(self, targets: list[tuple[str, int]]) -> list[float | None]:
        """Seconds from this node to each host and port; None where it gets no answer."""
        return await self._agent_now().round_trips(targets)

    async def mesh_key(self) -> str:
        """Raises NodeError: there is none, and none can be made."""
        return await self._agent_now().mesh_key()

    def _agent_now(self) -> AgentClient:
        if self._client is None:
            raise NodeError(f"{self._name} is not connected", hint="It is retried by itself.")
        return self._client

    async def restart(self, engine_id: str) -> None:
        await self._agent_now().restart(engine_id)

    async def logs(self, engine_id: str, tail: int) -> AsyncIterator[str]:
        async with self._agent() as client:
            async for line in client.logs(engine_id, tail=tail):
                yield line

    async def shutdown(self) -> None:
        if self._facts.holder is not None:
            return  # Somebody else's.
        try:
            async with self._agent() as client:
                await client.shutdown(stop_engines=True)
        except AgentUnreachable:
            # Its engines may live on without it: a new agent adopts and then stops them.
            await self._road.ensure_agent()
            async with self._agent() as client:
                await client.shutdown(stop_engines=True)
        if not await self._road.gone(timeout_s=20.0):
            log.warning("%s: the agent has not ended after its shutdown", self._name)

    async def release(self) -> None:
        """Manage the node no more: another console may, at once."""
        await self._steering.release(self._client)

    async def aclose(self) -> None:
        # That it is closed is no news.
        self._road.watch(lambda: None)
        self._silence.close()
        await self._road.aclose()

    def _agent(self) -> AgentClient:
        headers = None if self._identity is None else self._identity.headers
        return AgentClient(self._road.agent_transport(), self._name, headers)

    async def run(self) -> None:
        while True:
            self._try_now.clear()
            error: BaseException = NodeError("the visit ended by itself")
            try:
                await self._visit()
            except* (OlolError, OSError) as group:
                error = first_error(group)
            except* Exception as group:
                log.exception("%s: unexpected failure", self._name)
                error = NodeError(f"unexpected failure: {first_error(group)!r}")
            self._client = None
            self._steering.ended()
            self._fell(error)
            self._changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s(error)):
                    await self._try_now.wait()

    async def _visit(self) -> None:
        """From greeting the agent to losing it. Ends by an exception only."""
        await self._road.ensure_agent()
        async with self._agent() as client:
            hello = await client.hello()
            if self._facts.hello is None or self._facts.hello.boot_id != hello.boot_id:
                self._clock_map.forget()
            self._facts.hello = hello
            self._facts.contact_s = self._clock()
            await self._survey(client)
            self._client = client
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_road(), name=f"road {self._name}")
                tasks.create_task(self._follow(client), name=f"telemetry {self._name}")
                tasks.create_task(self._steering.hold(client), name=f"lease {self._name}")
                tasks.create_task(self._steering.steer(client), name=f"engines {self._name}")
                tasks.create_task(self._keep_looking(client), name=f"survey {self._name}")
                tasks.create_task(self._footprints.learn(self.shape), name=f"sizes {self._name}")

    async def _watch_road(self) -> None:
        problem = await self._road.lost()
        raise AgentUnreachable(str(problem), hint=problem.hint)

    def _road_changed(self) -> None:
        problem = self._road.problem
        if problem is not None and self._facts.state == "ready":
            # Not when the visit has noticed: no request may be sent into the void meanwhile.
            self._fell(problem)
        if self._had_problem and problem is None:
            self._try_now.set()
        self._had_problem = problem is not None
        self._changed()

    def _fell(self, error: BaseException) -> None:
        facts, reason = self._facts, str(error)
        if isinstance(error, NotProvisioned) and facts.hello is not None:
            facts.forget()
            facts.steps = ()  # Somebody else took it off: what we did there is no more.
        if facts.frame is None:
            state: NodeState = "failed"
        elif self._road.problem is not None or facts.state != "ready":
            state = "lost"
        else:
            state = "ready"
        if facts.state != state or facts.link_error != reason:
            log.warning("%s: %s", self._name, reason)
        facts.state = state
        facts.link_error = reason
        facts.link_hint = error.hint if isinstance(error, OlolError) else ""

    def _pause_s(self, error: BaseException) -> float:
        """Before the next visit: at once after a good one, then doubling, always jittered."""
        if isinstance(error, NotProvisioned):
            return NOT_PROVISIONED_PAUSE_S
        self._failures += 1
        doubled_s: float = BACKOFF_FIRST_S * 2.0 ** min(self._failures - 1, 16)
        return min(BACKOFF_MAX_S, doubled_s) * random.uniform(0.5, 1.0)

    async def _follow(self, client: AgentClient) -> None:
        async for frame in client.telemetry(hz=1 / self._beat_s):
            self._take(frame)
        raise AgentUnreachable(f"the agent of {self._name} ended its telemetry")

    def _take(self, frame: Frame) -> None:
        now_s = self._clock()
        self._clock_map.observe(frame.t_mono, now_s)
        if self._facts.state != "ready":
            log.info("%s: connected", self._name)
        hello = self._facts.hello
        if hello is not None and frame.version not in ("", hello.version):
            log.info("%s: its agent is version %s now", self._name, frame.version)
            self._facts.hello = msgspec.structs.replace(hello, version=frame.version)
        self._silence.heard()
        self._facts.frame = frame
        self._facts.frame_at_s = self._facts.contact_s = now_s
        self._facts.clock_ahead_s = walls.ahead_s(frame.t_wall, time.time())
        self._facts.state = "ready"
        self._facts.link_error = ""
        self._facts.show_devices()
        self._failures = 0
        self._steering.heard(frame)
        self._changed()

    async def _keep_looking(self, client: AgentClient) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SURVEY_EVERY_S):
                    await self._look_now.wait()
            self._look_now.clear()
            await self._survey(client)

    async def _survey(self, client: AgentClient) -> None:
        """What the node has: devices, engine kinds, models."""
        async with self._surveying:
            await self._survey_now(client)

    async def _survey_now(self, client: AgentClient) -> None:
        inventory = await client.inventory()
        if inventory != self._facts.inventory and not self._shrank(inventory):
            self._facts.inventory = inventory
        for error in inventory.errors:
            log.info("%s: %s", self._name, error)
        files, dirs, store = desired.library_request(
            self._name, self._config, self._library.files, self._library.user_dir
        )
        found = await client.models(files, dirs, store)
        if found.errors != self._facts.model_errors:
            for error in found.errors:
                log.warning("%s: %s", self._name, error)
        self._footprints.list(found.models)
        self._facts.model_errors = found.errors
        self._steering.replan()

    def _shrank(self, inventory: Inventory) -> bool:
        """True when devices are missing beside an error: a driver that hiccups, not a removal."""
        before = self._facts.inventory
        if before is None or not inventory.errors:
            return False
        return bool({d.uuid for d in before.devices} - {d.uuid for d in inventory.devices})
