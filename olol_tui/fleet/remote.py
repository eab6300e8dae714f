"""The road to a node over SSH, as the controller sees it: link, agent, and what stands open.

Connecting to a node that is provisioned brings its agent to our version and starts it where
it does not run. A machine on which nothing of ours was ever installed is left alone: that
takes a Provision, by a human's word.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import httpx

from olol_tui.config import EnginesConfig, NodeConfig
from olol_tui.errors import NodeError, OlolError
from olol_tui.fleet.agent_client import AgentClient, AgentUnreachable
from olol_tui.fleet.identity import Identity
from olol_tui.fleet.road import Factory, NotProvisioned, RoadFacts
from olol_tui.fleet.snapshot import HostKeyQuestion
from olol_tui.fleet.wire import Hello
from olol_tui.paths import Paths
from olol_tui.provision.errors import ProvisionError
from olol_tui.provision.facts import Facts
from olol_tui.provision.helper import Helper
from olol_tui.provision.jobs import Kit, describe_link, link_transport, ssh_target, where
from olol_tui.provision.plan import ENSURE_STEPS, Plan, newer, survival
from olol_tui.provision.runner import Job, Provisioning, Report
from olol_tui.ssh.connection import Connector
from olol_tui.ssh.errors import HostKeyUnknown, LinkDown, SSHError
from olol_tui.ssh.hostkeys import HostKeys
from olol_tui.ssh.keys import AskPassphrase, KeyRing
from olol_tui.ssh.link import LinkState, NodeLink
from olol_tui.ssh.road import AgentPlace, SshRoad
from olol_tui.ssh.target import route, ssh_command

HELLO_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """A node's sshd as the network knows it."""

    host: str
    port: int
    user: str
    host_key: str
    """`ssh-ed25519 AAAA…`, as it was verified."""
    jumps: int
    """Hosts that stand before it on our way there."""


class Remotes:
    """What all nodes over SSH share: whom we trust, our keys, what we bring along."""

    def __init__(
        self,
        paths: Paths,
        engines: EnginesConfig,
        identity: Identity,
        ask: AskPassphrase | None = None,
    ) -> None:
        self._cache_dir = paths.cache_dir
        self.kit = Kit(paths.cache_dir, engines, identity.id)
        self.hostkeys = HostKeys(paths.state_dir / "known_hosts")
        self.connector = Connector(self.hostkeys, KeyRing(ask))
        self.identity = identity

    def renew(self, engines: EnginesConfig) -> None:
        """Engines come from elsewhere now."""
        self.kit = Kit(self._cache_dir, engines, self.identity.id)


class RemoteRoad:
    """Road to an agent on another machine; see `Road`. Owns its link.

    `busy` is held while the agent is brought up, installed or taken off: one at a time.
    """

    def __init__(self, name: str, config: NodeConfig, remotes: Remotes) -> None:
        self.name = name
        self._config = config
        self._remotes = remotes
        self._changed: Callable[[], None] = lambda: None
        self._news = asyncio.Event()
        self._place: AgentPlace | None = None
        self._provisioned: bool | None = None
        self._survives_reboot: bool | None = None
        self._direct_host = ""
        self._place_told = where(config)
        self.target = ssh_target(config)
        self._ssh_command = ssh_command(self.target)
        self.busy = asyncio.Lock()
        self.link = NodeLink(name, self.target, remotes.connector, on_state=self._link_changed)
        self._road = SshRoad(self.link, _Bringer(self))

    @property
    def kind(self) -> Literal["local", "ssh"]:
        return "ssh"

    @property
    def facts(self) -> RoadFacts:
        return RoadFacts(
            host=self._place_told,
            ssh_command=self._ssh_command,
            provisioned=self._provisioned,
            survives_reboot=self._survives_reboot,
            question=_question(self.link.state.error),
        )

    @property
    def problem(self) -> OlolError | None:
        state = self.link.state
        if state.phase == "up":
            return state.error
        return state.error or LinkDown(f"{self.name}: connecting")

    def watch(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def reconfigure(self, config: NodeConfig) -> None:
        self._config = config  # What the next provisioning installs.

    async def lost(self) -> OlolError:
        while (problem := self.problem) is None:
            self._news.clear()
            await self._news.wait()
        return problem

    async def ensure_agent(self) -> None:
        # Whoever provisions needs the link, too: it is not to wait for us.
        self.link.start()
        await self.link.wait_up()
        async with self.busy:
            await self._road.ensure_agent()

    def agent_transport(self) -> httpx.AsyncBaseTransport:
        return self._road.agent_transport()

    def engine_transport(self) -> httpx.AsyncBaseTransport:
        return self._road.engine_transport()

    async def dial(self, address: str, factory: Factory) -> asyncio.Protocol:
        if self._config.transport == "ssh":
            return await self._road.dial(address, factory)
        if (problem := self.problem) is not None:
            # Without control nobody knows what runs there.
            raise ConnectionError(str(problem))
        port = int(address.rpartition(":")[2])
        host = await self._host()
        return (await asyncio.get_running_loop().create_connection(factory, host, port))[1]

    async def gone(self, timeout_s: float) -> bool:
        return await self._road.gone(timeout_s)

    async def aclose(self) -> None:
        await self._road.aclose()

    async def trust(self, fingerprint: str) -> str:
        """Trust the key that the host shows now, and connect; returns the host's name.

        Raises:
            NodeError: nobody asked, or the host shows another key by now.
            SSHError: it cannot be written down.
        """
        error = self.link.state.error
        if not isinstance(error, HostKeyUnknown):
            raise NodeError(f"{self.name}: there is no host key to decide on")
        if error.offered.fingerprint != fingerprint:
            raise NodeError(
                f"{self.name} shows another key by now: {error.offered.fingerprint}",
                hint="Compare that one.",
            )
        await asyncio.to_thread(self._remotes.hostkeys.trust, error.offered)
        self.link.retry()
        return error.offered.display

    def learned(self, report: Report) -> None:
        """What a run found out. Its facts are those of its beginning."""
        if report.facts is not None:
            self._learn(report.facts, report.plan)
        done = {step.name: step for step in report.steps}
        if (service := done.get("service")) and service.state in ("done", "unchanged"):
            self._provisioned = True
            lasting = survival(unit="a unit", linger=True, kill_user_processes=False)
            self._survives_reboot = lasting in service.message
        if (removed := done.get("remove")) and removed.state in ("done", "unchanged"):
            self._provisioned, self._survives_reboot, self._place = False, None, None
        self._changed()

    async def tidy(self, report: Report) -> None:
        """Remove what the node's engines do not run from any more.

        Raises:
            ProvisionError, SSHError: it was not done.
        """
        helper = Helper(self.link)
        try:
            if report.facts is not None and report.facts.python is not None:
                helper.python = report.facts.python.path
                await helper.call("place", "tidy", {"directory": self._config.directory})
        finally:
            await helper.close()

    def job(self, name: str, link: NodeLink | None = None) -> Job:
        """Provisioning over this very link. Blocking at first: it builds the zipapp."""
        return Job(
            name,
            where(self._config),
            (lambda: nullcontext(link)) if link is not None else self._opened,
            self._remotes.kit.wishes(self._config),
            link_transport,
            describe_link,
        )

    # -- inside

    async def bring(self) -> AgentPlace:
        """An agent that answers and may be used as it is; brought up where it must be.

        Raises:
            NotProvisioned: nothing of ours is there.
            ProvisionError: a step failed.
        """
        if (place := await self._as_it_is(self._place)) is not None:
            self._place = place
            return place
        # Asked before anything is changed, and only if something has to be.
        may = _May(self)
        job = await asyncio.to_thread(self.job, self.name, self.link)
        run = Provisioning(job, self._remotes.kit.archives, approve=may.decide, order=ENSURE_STEPS)
        report = await run.run()
        self.learned(report)
        if may.place is not None:
            self._place = may.place
        elif may.refused is not None:
            raise may.refused
        elif (failure := report.failure) is not None:
            raise ProvisionError(f"{failure.name}: {failure.message}", hint=failure.hint)
        else:
            self._place = AgentPlace(report.socket, report.pid)
        return self._place

    async def _as_it_is(self, place: AgentPlace | None) -> AgentPlace | None:
        """The agent, if it answers and is neither to be replaced nor anybody else's."""
        if place is None:
            return None
        hello = await self.hello(place.socket)
        if hello is None:
            return None
        agent = await asyncio.to_thread(self._remotes.kit.agent)
        wanted = (await asyncio.to_thread(self._remotes.kit.wishes, self._config)).wanted
        is_ours = hello.sha256 == agent.sha256 or newer(hello.version, wanted.agent_version)
        if is_ours or self.is_elsewhere(hello):
            return AgentPlace(place.socket, hello.pid or None)
        return None

    async def hello(self, socket: str) -> Hello | None:
        """What an agent on that socket says; None when there is none that answers."""
        try:
            async with AgentClient(self.link.http_transport_agent(socket), self.name) as client:
                return await client.hello(HELLO_TIMEOUT_S)
        except AgentUnreachable:
            return None

    def is_elsewhere(self, hello: Hello) -> bool:
        """Whether another console manages it: then it is not ours to replace."""
        return hello.controller is not None and hello.controller.id != self._remotes.identity.id

    def _learn(self, facts: Facts, plan: Plan | None) -> None:
        self._provisioned = bool(facts.record)
        if not facts.record:
            self._survives_reboot = None
        if facts.python is not None:
            self.link.python = facts.python.path
        if facts.record and plan is not None and plan["service"].action == "keep":
            self._survives_reboot = bool(facts.record.get("unit")) and facts.linger

    async def address(self) -> Address:
        """Where its sshd is and how to know it, for whoever goes there without us.

        Raises:
            NodeError: it is not connected, so nobody knows its key.
        """
        hops = await asyncio.to_thread(route, self.target)
        key = self.link.host_key
        if not key:
            raise NodeError(f"{self.name} is not connected", hint="It is retried by itself.")
        hop = hops[-1]
        return Address(hop.host, hop.port, hop.user, key, len(hops) - 1)

    async def _host(self) -> str:
        """The name of `~/.ssh/config` as the network knows it."""
        if not self._direct_host:
            hops = await asyncio.to_thread(route, self.target)
            self._direct_host = hops[-1].host
        return self._direct_host

    def _opened(self) -> _Opened:
        return _Opened(self)

    def _link_changed(self, state: LinkState) -> None:
        if state.phase == "up":
            self._place_told = state.place
            # A key that was accepted here is news to `ssh`, unless it is told of our file.
            own = str(self._remotes.hostkeys.own_file)
            is_ours = not state.key_files or set(state.key_files) == {own}
            self._ssh_command = ssh_command(self.target, own if is_ours else "")
        self._news.set()
        self._changed()

    async def changed(self) -> None:
        """Return at the next change of the link's state."""
        self._news.clear()
        await self._news.wait()


class _Bringer:
    """`ssh.road.Provisioner`."""

    def __init__(self, road: RemoteRoad) -> None:
        self._road = road

    async def ensure_agent(self, link: NodeLink) -> AgentPlace:
        return await self._road.bring()


class _May:
    """Decides whether a node may be changed when it is only connected to."""

    def __init__(self, road: RemoteRoad) -> None:
        self._road = road
        self.refused: NotProvisioned | None = None
        self.place: AgentPlace | None = None
        """Of an agent that is taken as it is."""

    async def decide(self, node: str, facts: Facts, plan: Plan) -> bool:
        if not facts.record:
            self.refused = NotProvisioned(
                f"nothing of olol-tui is installed on {node} yet",
                hint="P provisions it, or: olol-tui node provision " + shlex.quote(node),
            )
            return False
        socket = str(facts.record.get("socket") or facts.socket)
        hello = await self._road.hello(socket)
        if hello is not None and self._road.is_elsewhere(hello):
            self.place = AgentPlace(socket, hello.pid or None)
            return False
        return True


class _Opened:
    """A road's link for a run that a human has asked for: it waits for the human's answers."""

    def __init__(self, road: RemoteRoad) -> None:
        self._road = road

    async def __aenter__(self) -> NodeLink:
        link = self._road.link
        link.start()
        if link.state.phase in ("refused", "lost"):
            link.retry()
            await self._road.changed()
        while True:
            try:
                await link.wait_up()
            except HostKeyUnknown:
                # The question is on the screen; cancelling the run is the other answer.
                await self._road.changed()
            else:
                return link

    async def __aexit__(self, *_: object) -> None:
        """The link goes on: it is the node's."""


def _question(error: SSHError | None) -> HostKeyQuestion | None:
    if not isinstance(error, HostKeyUnknown):
        return None
    offered = error.offered
    return HostKeyQuestion(
        host=offered.display,
        key_type=offered.key_type,
        fingerprint=offered.fingerprint,
        randomart=offered.randomart,
    )
