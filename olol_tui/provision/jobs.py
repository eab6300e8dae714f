"""From `cluster.toml` to jobs: where each node is, what it should become, what we bring."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx

from olol_tui import agent_zip
from olol_tui.agent import PROTOCOL
from olol_tui.agent import __version__ as agent_version
from olol_tui.config import ClusterConfig, EnginesConfig, NodeConfig
from olol_tui.errors import NodeError
from olol_tui.fleet import split_binaries
from olol_tui.provision.archive import Archives
from olol_tui.provision.facts import Facts
from olol_tui.provision.llama import INDEX, LlamaWanted
from olol_tui.provision.plan import Wanted, wanted_simulation
from olol_tui.provision.runner import Job
from olol_tui.provision.shell import Shell
from olol_tui.provision.steps import Wishes
from olol_tui.provision.upload import Source
from olol_tui.ssh.connection import Connector
from olol_tui.ssh.errors import HostKeyUnknown, SSHError
from olol_tui.ssh.hostkeys import OfferedKey
from olol_tui.ssh.link import NodeLink
from olol_tui.ssh.target import Target, describe, route


def ssh_target(config: NodeConfig) -> Target:
    """Where a node of the configuration is reached."""
    return Target(
        host=config.host,
        port=config.port,
        user=config.user or None,
        identities=(Path(config.identity),) if config.identity else (),
        known_hosts=(Path(config.known_hosts),) if config.known_hosts else (),
        profile=config.profile,
    )


def where(config: NodeConfig) -> str:
    """The node's address for people: `ops@gpu1.lan:2222`."""
    user = f"{config.user}@" if config.user else ""
    return f"{user}{config.host}{f':{config.port}' if config.port else ''}"


def resolved(config: NodeConfig) -> str:
    """The same as `~/.ssh/config` completes it; as configured where that cannot be read.

    Blocking.
    """
    try:
        return describe(route(ssh_target(config)))
    except SSHError:
        return where(config)


class Kit:
    """What this console brings to every node: the agent's zipapp, the engines' archives.

    Blocking at first use: it builds the zipapp.
    """

    def __init__(
        self, cache_dir: Path, engines: EnginesConfig | None = None, controller_id: str = ""
    ) -> None:
        self._cache_dir = cache_dir
        self._controller_id = controller_id
        self._engines = engines or EnginesConfig()
        self._agent: Source | None = None
        self.archives = Archives(cache_dir)

    def agent(self) -> Source:
        """The zipapp as a file.

        Raises:
            NodeError: it cannot be built or written.
        """
        if self._agent is None or not self._agent.path.exists():
            path = agent_zip.cached(self._cache_dir)
            data = path.read_bytes()
            self._agent = Source(path, hashlib.sha256(data).hexdigest(), len(data))
        return self._agent

    def wishes(self, node: NodeConfig) -> Wishes:
        agent = self.agent()
        return Wishes(
            Wanted(
                agent_sha256=agent.sha256,
                agent_size=agent.size,
                agent_version=agent_version,
                protocol=PROTOCOL,
                controller_id=self._controller_id,
                simulated=wanted_simulation(node),
                engine=node.engine,
                binary=node.binary,
                archive=self._engines.ollama_archive,
                llama=wanted_llama(node, self._engines),
            ),
            agent,
            node.directory,
        )


def wanted_llama(node: NodeConfig, engines: EnginesConfig) -> LlamaWanted | None:
    """What a node should have of llama.cpp; None where nobody has asked for any of it."""
    if node.simulated is not None or split_binaries.head(node, engines):
        return None
    build = INDEX if engines.llama_build is True else engines.llama_build or ""
    if not engines.llama_archive and not build and not split_binaries.is_needed(node):
        return None
    return LlamaWanted(engines.llama_archive, build, engines.llama_sha256)


Trusts = Callable[[str, OfferedKey], Awaitable[bool]]
"""(node, host key never seen) → whether to trust it from now on."""


def build_jobs(
    config: ClusterConfig,
    names: list[str],
    kit: Kit,
    connector: Connector,
    trusts: Trusts | None = None,
) -> list[Job]:
    """Jobs that open a connection of their own, for nodes of the configuration.

    Args:
        trusts: asks a human about a new host key; None: it is an error.

    Raises:
        NodeError: a name is not that of a node over SSH.
    """
    jobs = []
    for name in names:
        node = config.nodes.get(name)
        if node is None:
            known = ", ".join(n for n, c in config.nodes.items() if not c.local) or "none"
            raise NodeError(
                f"there is no node {name}; over SSH there are: {known}",
                hint=f"Add it first: olol-tui node add {name}",
            )
        if node.local:
            raise NodeError(f"{name} is this machine: it needs no provisioning")
        opener = partial(_opened, name, node, connector, trusts)
        jobs.append(Job(name, where(node), opener, kit.wishes(node), link_transport, describe_link))
    return jobs


@asynccontextmanager
async def _opened(
    name: str, node: NodeConfig, connector: Connector, trusts: Trusts | None
) -> AsyncIterator[Shell]:
    while True:
        async with NodeLink(name, ssh_target(node), connector, data_connections=0) as link:
            try:
                await link.wait_up()
            except HostKeyUnknown as unknown:
                # Jump hosts have keys of their own: there may be several questions.
                if trusts is None:
                    unknown.hint += ". If it is: do this on a terminal, or with --accept-new."
                    raise
                if not await trusts(name, unknown.offered):
                    raise
                await asyncio.to_thread(connector.hostkeys.trust, unknown.offered)
            else:
                yield link
                return


def link_transport(shell: Shell, facts: Facts, socket: str) -> httpx.AsyncBaseTransport:
    """The road that telemetry and commands take."""
    link = _link(shell)
    if facts.python is not None:
        # Where forwarding is forbidden, streams go through a program of this interpreter.
        link.python = facts.python.path
    return link.http_transport_agent(socket)


def describe_link(shell: Shell) -> str:
    """Where it is, which server, and how streams will travel."""
    state = _link(shell).state
    said = [state.place, state.server_version.removeprefix("SSH-2.0-")]
    if state.road != "channels":
        said.append("forwarding is forbidden there: streams go over stdio")
    return ", ".join(filter(None, said))


def _link(shell: Shell) -> NodeLink:
    if not isinstance(shell, NodeLink):
        raise AssertionError("a job over SSH runs on a NodeLink")
    return shell
