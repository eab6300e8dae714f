"""The members of the fleet: one session for each node and endpoint, coming and going.

They follow the configuration, which may change while everything runs: what is new is
connected to, what is gone is let go, what is as before is not touched. Servers of others
that were adopted on a node come with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from olol_tui.config import ClusterConfig, EndpointConfig, NodeConfig
from olol_tui.errors import OlolError, PlacementError
from olol_tui.fleet import split_binaries
from olol_tui.fleet.endpoints import EndpointSession
from olol_tui.fleet.identity import Identity
from olol_tui.fleet.local import LocalRoad
from olol_tui.fleet.member import Member
from olol_tui.fleet.node_session import Library, NodeSession
from olol_tui.fleet.questions import Questions
from olol_tui.fleet.road import Factory, Road
from olol_tui.fleet.wishes import Wishes
from olol_tui.paths import Paths
from olol_tui.routing.roster import ROAD_MARK

if TYPE_CHECKING:
    from olol_tui.fleet.remote import RemoteRoad, Remotes

log = logging.getLogger("olol.fleet.crew")

_CLOSE_S = 5.0


class Crew:
    """All members by name, in the order of the configuration, endpoints last.

    Life: `open` gives it the TaskGroup that its members run in; `apply` follows a new
    configuration; after the group has ended, `aclose` closes what stands open.
    """

    def __init__(
        self,
        config: ClusterConfig,
        paths: Paths,
        *,
        wishes: Wishes,
        identity: Identity,
        questions: Questions,
        clock: Callable[[], float],
        changed: Callable[[], None],
        expires_at: Callable[[str], str],
        beat_s: float,
    ) -> None:
        self._paths = paths
        self._wishes = wishes
        self._identity = identity
        self._questions = questions
        self._clock = clock
        self._changed = changed
        self._expires_at = expires_at
        self._beat_s = beat_s
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._remotes: Remotes | None = None
        self._applying = asyncio.Lock()
        self._behind: dict[str, str] = {}
        """Adopted server → its node."""
        self.config = config
        self._members: dict[str, Member] = dict(self._wanted(config))

    # -- reading

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def member(self, name: str) -> Member:
        """Raises PlacementError naming who there is."""
        try:
            return self._members[name]
        except KeyError:
            raise PlacementError(
                f"there is no node {name}", hint=f"Nodes: {', '.join(self._members)}"
            ) from None

    def session(self, name: str) -> NodeSession:
        """A node with an agent.

        Raises:
            PlacementError: there is none of that name, or it is somebody else's server.
        """
        member = self.member(name)
        if not isinstance(member, NodeSession):
            raise PlacementError(f"{name} is run by somebody else: it is used and never managed")
        return member

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        """As `Member.dial`, of the member that the address begins with."""
        name, _, there = address.partition(ROAD_MARK)
        try:
            member = self.member(name)
        except OlolError as error:
            raise ConnectionError(str(error)) from error
        return await member.dial(there, factory)

    @property
    def sessions(self) -> list[NodeSession]:
        return [member for member in self if isinstance(member, NodeSession)]

    def adopted_behind(self, node: str) -> list[str]:
        """Members that are servers of others, adopted on that node."""
        return [name for name, behind in self._behind.items() if behind == node]

    def remote_roads(self) -> list[RemoteRoad]:
        """The roads over SSH."""
        if self._remotes is None:
            return []
        from olol_tui.fleet.remote import RemoteRoad

        return [one.road for one in self.sessions if isinstance(one.road, RemoteRoad)]

    def remote_road(self, name: str) -> RemoteRoad:
        """Raises PlacementError: there is no node over SSH of that name."""
        self.member(name)
        for road in self.remote_roads():
            if road.name == name:
                return road
        raise PlacementError(f"{name} is not reached over SSH")

    # -- life

    def open(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        for name, member in self._members.items():
            self._start(name, member)

    async def apply(self, config: ClusterConfig) -> None:
        """Follow a new configuration, or new wishes to adopt."""
        async with self._applying:
            before = self.config
            kept = {
                name: member
                for name, member in self._members.items()
                if self._may_stay(before, config, name)
            }
            self.config = config
            if self._remotes is not None and before.engines != config.engines:
                self._remotes.renew(config.engines)
            self._adjust(before, kept)
            leaving = {n: m for n, m in self._members.items() if n not in kept}
            # A member that is replaced first lets go of what its successor needs.
            for name, member in leaving.items():
                await self._stop(name, member)
            self._members = dict(self._wanted(config, kept))
            for name, member in self._members.items():
                if name not in self._running:
                    log.info("%s joins", name)
                    self._start(name, member)
            self._changed()

    async def release(self, *, keep_local: bool = False) -> None:
        """Leave the nodes to the next controller.

        Args:
            keep_local: not those of this machine: they are about to be shut down.
        """
        kept = self._local() if keep_local else []
        await asyncio.gather(*(member.release() for member in self if member not in kept))

    async def shut_down_local(self) -> None:
        """Stop agents and engines of this machine; those of others are there for more than us."""
        await asyncio.gather(*(_shut_down(member) for member in self._local()))

    async def aclose(self) -> None:
        await asyncio.gather(*(_close(member) for member in self))

    # -- inside

    def _local(self) -> list[NodeSession]:
        return [session for session in self.sessions if session.config.local]

    def _may_stay(self, before: ClusterConfig, now: ClusterConfig, name: str) -> bool:
        """Whether the member of that name may stay as it is."""
        if (node := self._behind.get(name)) is not None:
            urls = self._wishes.adopted_on(node)
            return _stays(before, now, node) and any(adopted_name(node, u) == name for u in urls)
        return _stays(before, now, name)

    def _adjust(self, before: ClusterConfig, kept: dict[str, Member]) -> None:
        """Tell the nodes that stay what is wanted of them now."""
        same_files = before.models == self.config.models
        for name, member in kept.items():
            if isinstance(member, NodeSession):
                node = self.config.nodes[name]
                member.name_binaries(split_binaries.named(node, self.config.engines))
                # The files of [models] lie on this machine.
                if node != member.config or not (same_files or not node.local):
                    log.info("%s is wanted otherwise", name)
                    member.reconfigure(node, self._library(node))

    def _start(self, name: str, member: Member) -> None:
        if self._tasks is not None:
            self._running[name] = self._tasks.create_task(member.run(), name=f"member {name}")

    async def _stop(self, name: str, member: Member) -> None:
        log.info("%s leaves", name)
        await member.release()
        task = self._running.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await _close(member)
        del self._members[name]
        self._behind.pop(name, None)

    def _wanted(
        self, config: ClusterConfig, kept: dict[str, Member] | None = None
    ) -> Iterator[tuple[str, Member]]:
        kept = kept or {}
        sessions: list[NodeSession] = []
        for name, node in config.nodes.items():
            member = kept.get(name)
            session = member if isinstance(member, NodeSession) else self._node(name, node)
            sessions.append(session)
            yield name, session
        for name, endpoint in config.endpoints.items():
            yield name, kept.get(name) or self._endpoint(name, endpoint)
        for session in sessions:
            for url in self._wishes.adopted_on(session.name):
                name = adopted_name(session.name, url)
                if name not in config.nodes and name not in config.endpoints:
                    self._behind[name] = session.name
                    yield name, kept.get(name) or self._adopted(name, url, session)

    def _library(self, node: NodeConfig) -> Library:
        models = self.config.models.items()
        files = tuple((name, one.path, one.chat_template) for name, one in models if one.path)
        is_real_local = node.local and node.simulated is None
        return Library(
            files=files if is_real_local else (),
            user_dir=str(self._paths.models_dir) if is_real_local else "",
        )

    def _node(self, name: str, node: NodeConfig) -> NodeSession:
        return NodeSession(
            name,
            node,
            self._road(name, node),
            wishes=self._wishes,
            library=self._library(node),
            clock=self._clock,
            changed=self._changed,
            expires_at=self._expires_at,
            beat_s=self._beat_s,
            identity=self._identity,
            binaries=split_binaries.named(node, self.config.engines),
        )

    def _road(self, name: str, node: NodeConfig) -> Road:
        if not node.local:
            # Cryptography and SSH are only loaded where a node needs them.
            from olol_tui.fleet.remote import RemoteRoad

            return RemoteRoad(name, node, self.remotes())
        simulated: dict[str, str | int | float] | None = None
        if node.simulated is not None:
            simulated = {
                "gpus": node.simulated.gpus,
                "vram_bytes": node.simulated.vram,
                "name": node.simulated.name,
            }
        return LocalRoad(name, self._paths, simulated)

    def remotes(self) -> Remotes:
        """What all nodes over SSH share."""
        from olol_tui.fleet.remote import Remotes

        if self._remotes is None:
            self._remotes = Remotes(
                self._paths, self.config.engines, self._identity, self._questions.ask
            )
        return self._remotes

    def _endpoint(
        self, name: str, endpoint: EndpointConfig, road: Road | None = None, host: str = ""
    ) -> EndpointSession:
        return EndpointSession(
            name,
            endpoint,
            wishes=self._wishes,
            clock=self._clock,
            changed=self._changed,
            road=road,
            host=host,
        )

    def _adopted(self, name: str, url: str, session: NodeSession) -> EndpointSession:
        host = session.road.facts.host or session.name
        return self._endpoint(name, EndpointConfig(url=url), session.road, host)


def adopted_name(node: str, url: str) -> str:
    """`h1-11434`: how the fleet calls a server that was adopted on a node."""
    return f"{node}-{urlsplit(url).port or 80}"


def same_road(before: NodeConfig, now: NodeConfig) -> bool:
    """Whether a node is reached, and its agent started, as before; then the rest of what is
    said of it can change while it stays."""
    return _road(before) == _road(now)


def _road(node: NodeConfig) -> tuple[object, ...]:
    pretends = node.simulated
    devices = None if pretends is None else (pretends.gpus, pretends.vram, pretends.name)
    return (
        node.local,
        node.host,
        node.user,
        node.port,
        node.identity,
        node.known_hosts,
        node.profile,
        node.transport,
        node.directory,
        devices,
    )


def _stays(before: ClusterConfig, now: ClusterConfig, name: str) -> bool:
    """Whether the member of that name can be what the configuration says now."""
    node, was = now.nodes.get(name), before.nodes.get(name)
    if node is not None:
        return was is not None and same_road(was, node)
    return name in now.endpoints and before.endpoints.get(name) == now.endpoints[name]


async def _shut_down(member: Member) -> None:
    try:
        await member.shutdown()
    except OlolError as error:
        log.warning("%s: %s", member.name, error)


async def _close(member: Member) -> None:
    try:
        async with asyncio.timeout(_CLOSE_S):
            await member.aclose()
    except (OlolError, OSError, TimeoutError) as error:
        log.warning("%s: not closed orderly: %s", member.name, error or "it takes too long")
