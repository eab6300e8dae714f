"""Everything but the screen: controller, gateway and control socket in one event loop.

`--serve` is a Core alone; the console embeds one or attaches to its control socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from olol_tui.config import ClusterConfig, FieldProblem, GatewayConfig
from olol_tui.demo import DemoOptions, Traffic
from olol_tui.errors import ConfigError, PortTaken
from olol_tui.fleet.commands import Accepted, AnyCommand
from olol_tui.fleet.controller import Controller
from olol_tui.fleet.snapshot import Fleet, Node
from olol_tui.gateway.access import is_loopback
from olol_tui.gateway.archive import FILE_NAME as RECORDS_FILE
from olol_tui.gateway.archive import Archive
from olol_tui.gateway.gateway import Gateway
from olol_tui.gateway.keys import FILE_NAME as KEYS_FILE
from olol_tui.gateway.keys import KeyStore
from olol_tui.gateway.upstream import dial_tcp
from olol_tui.link import Link
from olol_tui.paths import Paths
from olol_tui.ports import port_taken
from olol_tui.routing.roster import ROAD_MARK

log = logging.getLogger("olol.core")

SETTLE_S = 20.0
"""Longest wait at the start for the local agents; a slow one joins later."""


class Core:
    """The running product without a screen. An async context manager; is its own Link.

    Args:
        stop_engines: on exit, stop engines and agents instead of leaving them for the next
            start to adopt. May be set until the exit.

    Raises (on enter):
        ConfigError: the address is routable and nobody said that it may be, or the file of
            keys cannot be used.
        PortTaken: the gateway's address is in use.
    """

    embedded = True

    def __init__(
        self,
        config: ClusterConfig,
        paths: Paths,
        *,
        demo: DemoOptions | None = None,
        stop_engines: bool = False,
    ) -> None:
        self._config = config
        self._paths = paths
        self._demo = demo
        self._stack = AsyncExitStack()
        self.stop_engines = stop_engines
        self._traffic: Traffic | None = None
        self._keys: KeyStore
        self._controller: Controller
        self._gateway: Gateway

    async def __aenter__(self) -> Core:
        keys = self._keys = KeyStore(self._paths.state_dir / KEYS_FILE)
        keys.load()
        _check_exposure(self._config.gateway, keys)
        async with AsyncExitStack() as stack:
            self._controller = await stack.enter_async_context(
                Controller(self._config, self._paths)
            )
            stack.push_async_callback(self._stop_engines)
            archive = _archive(self._config.gateway, self._paths)
            archive.start()
            stack.callback(archive.close)
            self._gateway = Gateway(
                self._config.gateway,
                self._controller,
                dial=self._dial,
                keys=keys,
                archive=archive,
            )
            stack.push_async_callback(self._gateway.close)
            self._controller.file.attach(self._prepare)
            try:
                await self._gateway.start()
            except OSError as error:
                raise _port_error(self._config, error) from error
            listener = _control_listener(self._paths.control_socket)
            stack.callback(_remove, self._paths.control_socket)
            await self._gateway.serve_control(listener)
            await self._settle()
            if self._demo is not None and self._demo.traffic:
                traffic = Traffic(self._gateway.address, self._demo, self._controller)
                self._traffic = await stack.enter_async_context(traffic)
            self._stack = stack.pop_all()
        # What lives from here to the end need not be walked by every full collection: one of
        # those is tens of milliseconds between two tokens.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _dial(
        self, address: str, factory: Callable[[], asyncio.Protocol]
    ) -> asyncio.Protocol:
        """Engines on other machines by their node's road, everything else by TCP."""
        if ROAD_MARK in address:
            return await self._controller.dial(address, factory)
        return await dial_tcp(address, factory)

    async def _settle(self) -> None:
        """Wait until the nodes of this machine have told what they are, or failed to."""

        def known() -> bool | None:
            nodes = [node for node in self._controller.fleet.nodes if node.kind == "local"]
            return True if all(_is_known(node) for node in nodes) else None

        with contextlib.suppress(TimeoutError):
            await self._controller.until(known, SETTLE_S)

    async def _stop_engines(self) -> None:
        if self.stop_engines:
            await self._controller.close(stop_engines=True)

    @property
    def address(self) -> str:
        """URL of the gateway."""
        return self._gateway.address

    @property
    def link(self) -> Link:
        return self

    def reload(self) -> None:
        """Read `cluster.toml` again, now; what came of it shows in the fleet's alerts."""
        self._controller.file.reread()

    def _prepare(self, gateway: GatewayConfig) -> Callable[[], tuple[str, ...]]:
        """See `fleet.cluster_file.Prepare`."""
        if _is_exposed(gateway.model_copy(update={"host": self._config.gateway.host}), self._keys):
            raise FieldProblem(
                ("gateway", "insecure_no_keys"),
                "without it the gateway would be open to the network: it asks for no key",
            )
        return self._gateway.settings.prepare(gateway, self._gateway)

    async def drain(self, timeout_s: float = 30.0) -> None:
        """Take no new requests; return when the live ones ended or the time is up."""
        if self._traffic is not None:
            # Our own clients leave first: they would keep a drain from ever ending.
            await self._traffic.stop()
        await self._gateway.drain(timeout_s)

    # -- Link

    @property
    def fleet(self) -> Fleet:
        return self._controller.fleet

    def changes(self) -> AsyncIterator[Fleet]:
        return self._controller.changes()

    async def submit(self, command: AnyCommand) -> Accepted:
        return await self._controller.submit(command)

    def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]:
        return self._controller.logs(node, engine, tail=tail)


def _archive(gateway: GatewayConfig, paths: Paths) -> Archive:
    return Archive(
        paths.state_dir / RECORDS_FILE,
        max_rows=gateway.records_max,
        max_age_s=gateway.records_days * 86400,
        access_log=gateway.access_log,
    )


def _check_exposure(gateway: GatewayConfig, keys: KeyStore) -> None:
    """Without keys, whoever can reach the gateway can use every model: that must be somebody's
    decision."""
    if _is_exposed(gateway, keys):
        raise ConfigError(
            f"{gateway.host} can be reached from other machines, and the gateway asks for no key",
            hint="Make a key: olol-tui keys create NAME. Or accept it with --insecure-no-keys "
            "(insecure_no_keys = true under [gateway]).",
            title="The gateway would be open to the network",
        )


def _is_exposed(gateway: GatewayConfig, keys: KeyStore) -> bool:
    return not (is_loopback(gateway.host) or keys.required or gateway.insecure_no_keys)


def _is_known(node: Node) -> bool:
    if node.state == "ready":
        is_empty = bool(node.runner) or not node.engines
        return is_empty or any(engine.state == "ready" for engine in node.engines)
    return node.state == "failed"


def _control_listener(path: Path) -> socket.socket:
    """A UNIX listener with mode 0600 in a directory that is ours."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _port_error(config: ClusterConfig, error: OSError) -> PortTaken:
    gateway = config.gateway
    if error.errno != errno.EADDRINUSE:
        return PortTaken(
            f"cannot listen on {gateway.host}:{gateway.port}: {error.strerror or error}",
            title="The gateway cannot listen",
            hint="Choose another address with --host and --port.",
        )
    return port_taken(gateway.host, gateway.port)
