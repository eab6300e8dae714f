"""Keeps one agent's desired engines as planned, while nobody else manages that node.

An agent has one controller at a time. We claim its lease again and again; while another one
holds it the node is read-only for us: nothing is put, and what we wished for waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from olol_tui.config import NodeConfig
from olol_tui.errors import NodeError
from olol_tui.fleet import desired
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable, HeldByOther
from olol_tui.fleet.node_view import NodeFacts
from olol_tui.fleet.snapshot import Role
from olol_tui.fleet.wire import Frame, Holder, Spec
from olol_tui.fleet.wishes import Wishes

log = logging.getLogger("olol.fleet.node")

CLAIM_EVERY_S = 4.0
"""Agents give a lease for 15 s."""
RELEASE_TIMEOUT_S = 1.0
_REFUSED_SHOWN_S = 60.0


class Steering:
    """One per session; `hold` and `steer` run for the length of a visit."""

    def __init__(
        self,
        name: str,
        config: NodeConfig,
        facts: NodeFacts,
        wishes: Wishes,
        *,
        clock: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._name = name
        self._config = config
        self._facts = facts
        self._wishes = wishes
        self._clock = clock
        self._changed = changed
        self._replan = asyncio.Event()
        self._ours = asyncio.Event()
        """Set while the lease is ours."""
        self._claim_now = asyncio.Event()
        self._applied: tuple[Spec, ...] | None = None
        """What the agent was told, on this visit and under this lease."""
        self._is_leaving = False

    def replan(self) -> None:
        """Wishes or facts changed: plan anew, and tell the agent soon."""
        self._replan.set()
        self._facts.plan = self.planned()
        self._facts.show_devices()
        self._changed()

    def reconfigure(self, config: NodeConfig) -> None:
        self._config = config
        self.replan()

    def planned(
        self, roles: Mapping[str, Role] | None = None, config: NodeConfig | None = None
    ) -> desired.Plan:
        """The plan that would be, with other roles or another configuration; empty before the
        node has told what it has."""
        if self._facts.inventory is None:
            return desired.Plan()
        plan = desired.plan(
            self._name,
            config or self._config,
            self._facts.inventory,
            self._wishes.launches_on(self._name),
            self._wishes.roles_on(self._name) if roles is None else roles,
        )
        parts = self._wishes.splits.specs_on(self._name)
        if plan.error or not parts:
            return plan
        return replace(
            plan,
            specs=plan.specs + parts,
            reasons=plan.reasons + ("part of a split",) * len(parts),
        )

    def heard(self, frame: Frame) -> None:
        """A lease that somebody else held has lapsed: no need to wait for the next attempt."""
        if self._facts.holder is not None and frame.controller is None:
            self._claim_now.set()

    def ended(self) -> None:
        """The visit is over: what the agent was told then may not hold at the next one."""
        self._ours.clear()
        self._applied = None

    async def release(self, client: AgentClient | None) -> None:
        """Leave the node to the next controller; ours takes it no more."""
        self._is_leaving = True
        if client is None or not self._ours.is_set():
            return
        try:
            await client.release(RELEASE_TIMEOUT_S)
        except NodeError as error:
            log.info("%s: not released: %s", self._name, error)

    async def hold(self, client: AgentClient) -> None:
        """Keep the lease, or wait until whoever holds it is gone."""
        while not self._is_leaving:
            self._claim_now.clear()
            try:
                await client.claim()
            except HeldByOther as error:
                self._held_by(error.holder)
            else:
                self._held_by(None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLAIM_EVERY_S):
                    await self._claim_now.wait()
        await asyncio.get_running_loop().create_future()

    def _held_by(self, holder: Holder | None) -> None:
        if holder is not None:
            self._ours.clear()
            # Whoever has the node may change everything.
            self._applied = None
        elif not self._ours.is_set():
            self._ours.set()
            self._replan.set()
        if holder != self._facts.holder:
            told = "managed by us now" if holder is None else f"managed by {holder.name}"
            log.info("%s: %s", self._name, told)
            self._facts.holder = holder
            self._changed()

    async def steer(self, client: AgentClient) -> None:
        """Keep the agent's desired list equal to the plan."""
        while True:
            await self._ours.wait()
            self._replan.clear()
            plan = self._facts.plan
            # A plan with an error (an engine uninstalled just now) stops nothing that runs.
            if not plan.error and plan.specs != self._applied:
                try:
                    generation = (await client.engines()).generation
                    await client.put_engines(generation + 1, plan.specs)
                except AgentUnreachable:
                    raise
                except HeldByOther as error:
                    self._held_by(error.holder)
                    continue
                except NodeError as error:
                    self._refused(plan.specs, error)
                else:
                    self._applied = plan.specs
                    self._facts.steer_error = ""
                    log.info("%s: %d engines desired", self._name, len(plan.specs))
            await self._replan.wait()

    def _refused(self, specs: tuple[Spec, ...], error: NodeError) -> None:
        """The agent took nothing: give up the new launches, so that the others are not held up."""
        log.error("%s: refused the desired engines: %s", self._name, error)
        known = {spec.id for spec in self._applied or ()}
        culprits = [
            spec
            for spec in specs
            if spec.id not in known and self._wishes.launch_of(spec.id) is not None
        ]
        parts = [spec for spec in specs if spec.id not in known]
        refused = [self._wishes.splits.refuse_spec(spec.id, str(error)) for spec in parts]
        if not culprits and any(refused):
            self.replan()
            return
        if not culprits:
            self._facts.steer_error = str(error)
            self._changed()
            return
        until_s = self._clock() + _REFUSED_SHOWN_S
        for spec in culprits:
            self._facts.refused[spec.id] = (spec, str(error), until_s)
            self._wishes.drop_launch(spec.id)
        self.replan()
