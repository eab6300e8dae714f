"""How streams travel to one node: by channel where sshd allows that, else over stdio.

What sshd says does not always tell: for a UNIX socket, «missing», «nobody listens» and
«forbidden» are the same answer. Then the node itself is asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from olol_tui.ssh.channels import PROBE, Dial, Discard, Factory, open_channel, split_address
from olol_tui.ssh.connection import Connection
from olol_tui.ssh.errors import ChannelRefused, ForwardingForbidden, NoCapacity
from olol_tui.ssh.stdio import StdioMux

log = logging.getLogger("olol.ssh.streams")


class Streams:
    """The verdicts about one node's sshd, and the stdio session where one is needed.

    Args:
        name: the node.
        carrier: the connection whose session may carry streams; raises when there is none.
        is_socket: whether the node has a socket at a path.
        python: the node's interpreter.
    """

    def __init__(
        self,
        name: str,
        carrier: Callable[[], Awaitable[Connection]],
        is_socket: Callable[[str], Awaitable[bool]],
        python: str,
    ) -> None:
        self.python = python
        self.tcp_forbidden = False
        self._name = name
        self._carrier = carrier
        self._is_socket = is_socket
        self._unix_works: bool | None = None
        self._mux: StdioMux | None = None
        self._starting: asyncio.Task[StdioMux] | None = None

    @property
    def count(self) -> int:
        """Streams over stdio."""
        return 0 if self._mux is None else self._mux.streams

    async def probe(self, connection: Connection) -> None:
        """Find out whether sshd forwards; start the way around if it does not.

        Args:
            connection: any one to that sshd.

        Raises:
            ForwardingForbidden: neither works.
        """
        self._unix_works = None
        self.tcp_forbidden = False
        try:
            protocol = await open_channel(connection, PROBE, Discard)
        except (ChannelRefused, NoCapacity):
            return
        except ForwardingForbidden:
            self.tcp_forbidden = True
            await self._need_mux()
        else:
            assert isinstance(protocol, Discard)
            protocol.discard()

    async def dial(self, channels: Dial, address: str, factory: Factory) -> asyncio.Protocol:
        """A stream, by `channels` if that is possible.

        Raises:
            OSError: see `NodeLink.dial`.
        """
        where = split_address(address)
        is_unix = isinstance(where, str)
        if self.tcp_forbidden or (is_unix and self._unix_works is False):
            return await self._by_stdio(address, factory)
        try:
            protocol = await channels(address, factory)
        except ForwardingForbidden:
            # Of this port only, or somebody changed sshd_config: it is not asked every time.
            return await self._by_stdio(address, factory)
        except ChannelRefused:
            if not is_unix or self._unix_works or not await self._is_socket(str(where)):
                raise
        else:
            if is_unix:
                self._unix_works = True
            return protocol
        return await self._past_refusal(address, factory)

    async def close(self) -> None:
        """End the stdio session, if there is one; its streams fail."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        mux, self._mux = self._mux, None
        if mux is not None:
            await mux.close()

    async def _past_refusal(self, address: str, factory: Factory) -> asyncio.Protocol:
        """The socket is there and sshd does not open it. Does the node itself?"""
        had_mux = self._mux is not None
        protocol = None
        try:
            protocol = await self._by_stdio(address, factory)
        finally:
            if protocol is None and not had_mux:
                await self.close()
        log.info("%s: sshd forwards no sockets: through stdio instead", self._name)
        self._unix_works = False
        return protocol

    async def _by_stdio(self, address: str, factory: Factory) -> asyncio.Protocol:
        return await (await self._need_mux()).dial(address, factory)

    async def _need_mux(self) -> StdioMux:
        """The session; started once for all who wait, also when the first of them gives up."""
        if self._mux is not None and not self._mux.is_ended:
            return self._mux
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start_mux())
            self._starting.add_done_callback(self._started)
        return await asyncio.shield(self._starting)

    async def _start_mux(self) -> StdioMux:
        return await StdioMux.start(await self._carrier(), self.python)

    def _started(self, starting: asyncio.Task[StdioMux]) -> None:
        self._starting = None
        if not starting.cancelled() and starting.exception() is None:
            self._mux = starting.result()
