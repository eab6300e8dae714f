"""Applies another configuration to the fleet while requests run, and cuts none of them.

What is new joins and what can change in place changes at once. An engine that must stop for it,
and a member that leaves, take no new work first and finish what they compute, however long that
takes; until then that node, and only that one, stays as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from olol_tui.config import ClusterConfig, EndpointConfig, NodeConfig
from olol_tui.fleet.changeover import pids_of, settled
from olol_tui.fleet.crew import Crew, same_road
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.node_session import NodeSession
from olol_tui.fleet.operations import Report

log = logging.getLogger("olol.fleet.config")

_NEVER_S = 10 * 365 * 86400.0
"""Silent engines and clients are cut by the gateway long before; nobody waits for a reload."""
Entry = NodeConfig | EndpointConfig | None


class Reload:
    def __init__(self, desk: Desk, crew: Crew) -> None:
        self._desk = desk
        self._crew = crew
        self._target = crew.config
        self._held: set[str] = set()
        """Members whose requests must end before they may change."""
        self._when_gone: dict[str, Callable[[], None]] = {}

    async def apply(self, config: ClusterConfig) -> None:
        """Follow a configuration; returns when all is done that need not wait for a request."""
        self._target = config
        going = {name: ids for name in _names(self._crew.config) if (ids := self._going(name))}
        with self._desk.wishes.paused({one for ids in going.values() for one in ids}):
            # From now on none of them gets new work, and what they got before is known.
            self._desk.publish()
            self._held |= {name for name, ids in going.items() if self._must_wait(name, ids)}
            await self._follow()
        for name in going:
            if name in self._held:
                self._start(name)

    def when_gone(self, name: str, done: Callable[[], None]) -> None:
        """Call once that member has left: now if it has."""
        if name in _names(self._crew.config):
            self._when_gone[name] = done
        else:
            done()

    # -- inside

    def _must_wait(self, name: str, engine_ids: frozenset[str]) -> bool:
        if self._is_in_place(name):
            return True  # Not for requests, maybe, but for its engines to have changed.
        return bool(self._live(engine_ids))

    async def _follow(self) -> None:
        """Carry out everything that nobody is waited for."""
        await self._crew.apply(self._effective())
        present = _names(self._crew.config)
        for name in [one for one in self._when_gone if one not in present]:
            self._when_gone.pop(name)()

    def _effective(self) -> ClusterConfig:
        """The wanted configuration, with those who must wait as they were."""
        now, target = self._crew.config, self._target
        nodes, endpoints = dict(target.nodes), dict(target.endpoints)
        for name in self._held:
            if name in now.nodes:
                nodes[name] = now.nodes[name]
                endpoints.pop(name, None)
            elif name in now.endpoints:
                endpoints[name] = now.endpoints[name]
                nodes.pop(name, None)
        return target.model_copy(update={"nodes": nodes, "endpoints": endpoints})

    def _start(self, name: str) -> None:
        async def work(report: Report) -> str:
            return await self._change(name, report)

        self._desk.book.start(f"{name} as in the file", work, key=f"reload {name}")

    async def _change(self, name: str, report: Report) -> str:
        """Wait for the last request of a member, then let it change or leave."""
        try:
            while going := self._going(name):
                in_place = self._is_in_place(name)
                with self._desk.wishes.paused(going):
                    if not await self._emptied(name, going, report):
                        continue  # The file says something else by now.
                    pids = pids_of(self._desk, going)
                    coming = self._coming(name) if in_place else ()
                    self._held.discard(name)
                    await self._follow()
                    if in_place:
                        await settled(
                            self._desk, report, name, going=going, coming=coming, pids=pids
                        )
                return _outcome(name, in_place, self._target)
            self._held.discard(name)
            await self._follow()
            return _outcome(name, True, self._target)
        finally:
            self._held.discard(name)

    async def _emptied(self, name: str, going: frozenset[str], report: Report) -> bool:
        """Whether nothing computes there any more; False when the file changed meanwhile."""
        self._desk.publish()

        def check() -> bool | None:
            if self._going(name) != going:
                return False
            live = self._live(going)
            if not live:
                return True
            report.say(f"waits for {live} request{'' if live == 1 else 's'}")
            return None

        return await self._desk.until(check, _NEVER_S)

    def _live(self, engine_ids: frozenset[str]) -> int:
        return sum(request.engine in engine_ids for request in self._desk.running)

    def _going(self, name: str) -> frozenset[str]:
        """Engines of a member that cannot go on under the wanted configuration."""
        now, wanted = _entry(self._crew.config, name), _entry(self._target, name)
        if now == wanted:
            return frozenset()
        names = {name, *self._crew.adopted_behind(name)}
        nodes = [node for node in self._desk.nodes if node.name in names]
        if any(node.managed_by for node in nodes):
            return frozenset()  # Nothing of it is ours to change.
        if self._is_in_place(name):
            session = self._crew.session(name)
            assert isinstance(wanted, NodeConfig)
            after = session.planned(config=wanted).specs
            return frozenset(spec.id for spec in session.planned().specs if spec not in after)
        return frozenset(engine.id for node in nodes for engine in node.engines)

    def _coming(self, name: str) -> frozenset[str]:
        session, wanted = self._crew.session(name), _entry(self._target, name)
        assert isinstance(wanted, NodeConfig)
        before = session.planned().specs
        return frozenset(
            spec.id for spec in session.planned(config=wanted).specs if spec not in before
        )

    def _is_in_place(self, name: str) -> bool:
        """Whether the member can follow without leaving."""
        now, wanted = _entry(self._crew.config, name), _entry(self._target, name)
        return (
            isinstance(now, NodeConfig)
            and isinstance(wanted, NodeConfig)
            and same_road(now, wanted)
            and isinstance(self._crew.member(name), NodeSession)
        )


def _outcome(name: str, in_place: bool, target: ClusterConfig) -> str:
    if in_place:
        return f"{name} is as the file says"
    return f"{name} is reached anew" if name in _names(target) else f"{name} has left"


def _names(config: ClusterConfig) -> set[str]:
    return {*config.nodes, *config.endpoints}


def _entry(config: ClusterConfig, name: str) -> Entry:
    return config.nodes.get(name) or config.endpoints.get(name)
