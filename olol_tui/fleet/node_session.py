"""One node with an agent: keeps the link, the facts and the desired engines of that node.

Life of a session: make sure that the agent runs, greet it, ask what there is, then three
tasks at once until one fails: follow the telemetry, keep the desired engines applied, look
again now and then. A failure ends the visit, not the session: it comes back with a jittered
back-off, and everything that was known stays known, with its age.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from olol_tui.config import NodeConfig
from olol_tui.errors import NodeError, OlolError
from olol_tui.fleet import desired
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable
from olol_tui.fleet.engine_client import EngineClient
from olol_tui.fleet.node_view import NodeFacts, build_node
from olol_tui.fleet.overlay import Overlay
from olol_tui.fleet.road import Road
from olol_tui.fleet.snapshot import Engine, Node
from olol_tui.fleet.wire import ClockMap, Frame, Inventory, Spec
from olol_tui.fleet.wishes import Wishes

log = logging.getLogger("olol.fleet.node")

SURVEY_EVERY_S = 30.0
"""Models pulled and engines installed behind our back are noticed this late."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
_REFUSED_SHOWN_S = 60.0


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
    ) -> None:
        self._name = name
        self._config = config
        self._road = road
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
            beat_s=beat_s,
            is_simulated=config.simulated is not None,
        )
        self._overlay = Overlay(clock, changed)
        self._clock_map = ClockMap()
        self._client: AgentClient | None = None
        self._replan = asyncio.Event()
        self._surveying = asyncio.Lock()
        """Two at once could end with the older facts."""
        self._failures = 0

    @property
    def name(self) -> str:
        return self._name

    def view(self, now_s: float) -> Node:
        return build_node(
            self._facts,
            now_s,
            clock_offset_s=self._clock_map.offset_s,
            wishes=self._wishes,
            overlay=self._overlay,
            expires_at=self._expires_at,
        )

    def replan(self) -> None:
        self._replan.set()
        self._make_plan()
        self._changed()

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
        if self._client is None:
            raise NodeError(f"{self._name} is not connected", hint="It is retried by itself.")
        await self._survey(self._client)

    async def restart(self, engine_id: str) -> None:
        if self._client is None:
            raise NodeError(f"{self._name} is not connected", hint="It is retried by itself.")
        await self._client.restart(engine_id)

    async def logs(self, engine_id: str, tail: int) -> AsyncIterator[str]:
        async with AgentClient(self._road.agent_transport(), self._name) as client:
            async for line in client.logs(engine_id, tail=tail):
                yield line

    async def shutdown(self) -> None:
        try:
            async with AgentClient(self._road.agent_transport(), self._name) as client:
                await client.shutdown(stop_engines=True)
        except AgentUnreachable:
            # Its engines may live on without it: a new agent adopts and then stops them.
            await self._road.ensure_agent()
            async with AgentClient(self._road.agent_transport(), self._name) as client:
                await client.shutdown(stop_engines=True)
        if not await self._road.gone(timeout_s=20.0):
            log.warning("%s: the agent has not ended after its shutdown", self._name)

    async def run(self) -> None:
        while True:
            try:
                await self._visit()
            except* (OlolError, OSError) as group:
                self._fell(str(_first(group)))
            except* Exception as group:
                log.exception("%s: unexpected failure", self._name)
                self._fell(f"unexpected failure: {_first(group)!r}")
            self._client = None
            self._changed()
            await asyncio.sleep(self._pause_s())

    async def _visit(self) -> None:
        """From greeting the agent to losing it. Ends by an exception only."""
        await self._road.ensure_agent()
        async with AgentClient(self._road.agent_transport(), self._name) as client:
            hello = await client.hello()
            if self._facts.hello is None or self._facts.hello.boot_id != hello.boot_id:
                self._clock_map.forget()
            self._facts.hello = hello
            await self._survey(client)
            self._client = client
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(client), name=f"telemetry {self._name}")
                tasks.create_task(self._steer(client), name=f"engines {self._name}")
                tasks.create_task(self._keep_looking(client), name=f"survey {self._name}")

    def _fell(self, reason: str) -> None:
        known = self._facts.frame is not None
        if self._facts.state not in ("lost", "failed") or self._facts.link_error != reason:
            log.warning("%s: %s", self._name, reason)
        self._facts.state = "lost" if known else "failed"
        self._facts.link_error = reason

    def _pause_s(self) -> float:
        """Before the next visit: at once after a good one, then doubling, always jittered."""
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
        self._facts.frame = frame
        self._facts.frame_at_s = now_s
        self._facts.state = "ready"
        self._facts.link_error = ""
        self._failures = 0
        self._changed()

    async def _keep_looking(self, client: AgentClient) -> None:
        while True:
            await asyncio.sleep(SURVEY_EVERY_S)
            await self._survey(client)

    async def _survey(self, client: AgentClient) -> None:
        """What the node has: devices, engine kinds, models."""
        async with self._surveying:
            await self._survey_now(client)

    async def _survey_now(self, client: AgentClient) -> None:
        inventory = await client.inventory()
        if inventory != self._facts.inventory and not self._shrank(inventory):
            self._facts.inventory = inventory
            self._replan.set()
        for error in inventory.errors:
            log.info("%s: %s", self._name, error)
        files, dirs, store = desired.library_request(
            self._name, self._config, self._library.files, self._library.user_dir
        )
        found = await client.models(files, dirs, store)
        if found.errors != self._facts.model_errors:
            for error in found.errors:
                log.warning("%s: %s", self._name, error)
        self._facts.models = found.models
        self._facts.model_errors = found.errors
        self._make_plan()
        self._changed()

    def _shrank(self, inventory: Inventory) -> bool:
        """True when devices are missing beside an error: a driver that hiccups, not a removal."""
        before = self._facts.inventory
        if before is None or not inventory.errors:
            return False
        return bool({d.uuid for d in before.devices} - {d.uuid for d in inventory.devices})

    def _make_plan(self) -> None:
        if self._facts.inventory is not None:
            self._facts.plan = desired.plan(
                self._name,
                self._config,
                self._facts.inventory,
                self._wishes.launches_on(self._name),
            )

    async def _steer(self, client: AgentClient) -> None:
        """Keep the agent's desired list equal to the plan."""
        generation = (await client.engines()).generation
        applied: tuple[Spec, ...] | None = None
        while True:
            self._replan.clear()
            plan = self._facts.plan
            # A plan with an error (an engine uninstalled just now) stops nothing that runs.
            if not plan.error and plan.specs != applied:
                try:
                    generation = await client.put_engines(generation + 1, plan.specs)
                except AgentUnreachable:
                    raise
                except NodeError as error:
                    self._refused(plan.specs, applied or (), error)
                else:
                    applied = plan.specs
                    self._facts.steer_error = ""
                    log.info("%s: %d engines desired", self._name, len(applied))
            await self._replan.wait()

    def _refused(
        self, specs: tuple[Spec, ...], applied: tuple[Spec, ...], error: NodeError
    ) -> None:
        """The agent took nothing: give up the new launches, so that the others are not held up."""
        log.error("%s: refused the desired engines: %s", self._name, error)
        known = {spec.id for spec in applied}
        culprits = [
            spec
            for spec in specs
            if spec.id not in known and self._wishes.launch_of(spec.id) is not None
        ]
        if not culprits:
            self._facts.steer_error = str(error)
            self._changed()
            return
        until_s = self._clock() + _REFUSED_SHOWN_S
        for spec in culprits:
            self._facts.refused[spec.id] = (spec, str(error), until_s)
            self._wishes.drop_launch(spec.id)
        self.replan()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real exception of nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
