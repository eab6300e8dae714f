"""Streams of numbered tokens from a lab's host through a NodeLink, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from olol_tui.ssh.connection import Connector
from olol_tui.ssh.hostkeys import HostKeys
from olol_tui.ssh.keys import KeyRing
from olol_tui.ssh.link import LinkState, NodeLink
from olol_tui.ssh.target import Target
from tests.lab import Host, Lab

TOKENS_PER_S = 10
TOKEN_BYTES = 50
SERVER = f"""
import asyncio

async def tokens(reader, writer):
    number = 0
    while True:
        writer.write(b"%0{TOKEN_BYTES - 1}d\\n" % number)
        await writer.drain()
        number += 1
        await asyncio.sleep(1 / {TOKENS_PER_S})

async def main():
    server = await asyncio.start_server(tokens, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@contextlib.contextmanager
def token_server(host: Host) -> Iterator[str]:
    """The address, on the host's loopback, of a server that sends each client a token a beat."""
    with host.spawn(["python3", "-c", SERVER], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def connector(lab: Lab, state: Path) -> Connector:
    """Opens connections to the lab's hosts by name."""
    return Connector(HostKeys(state / "known_hosts"), KeyRing(), lab.ssh_config)


class Stream(asyncio.Protocol):
    """One client of the token server: what came, whether in order, and how it ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.ended_s = 0.0
        self.error: Exception | None = None
        self.eof = False
        """It was told that this was all there is: of a broken stream, a lie."""
        self.tokens = 0
        self.last_s = 0.0
        self.longest_gap_s = 0.0
        self.in_order = True
        self._buffer = b""
        self._more = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        if self.last_s:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
        self.last_s = now_s
        self._buffer += data
        while len(self._buffer) >= TOKEN_BYTES:
            self.in_order &= int(self._buffer[:TOKEN_BYTES]) == self.tokens
            self._buffer = self._buffer[TOKEN_BYTES:]
            self.tokens += 1
        self._more.set()

    def eof_received(self) -> None:
        self.eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.ended_s = time.monotonic()
        self.ended.set()
        self._more.set()

    async def more(self, count: int) -> None:
        """Waits for so many tokens from now on."""
        wanted = self.tokens + count
        while self.tokens < wanted and not self.ended.is_set():
            self._more.clear()
            await self._more.wait()
        assert self.tokens >= wanted, f"the stream ended: {self.error!r}"


class Watched:
    """A NodeLink with the history of its states."""

    def __init__(self, lab: Lab, name: str, state: Path) -> None:
        self.history: list[tuple[float, LinkState]] = []
        self._changed = asyncio.Event()
        self.link = NodeLink(name, Target(name), connector(lab, state), on_state=self._note)

    def _note(self, state: LinkState) -> None:
        self.history.append((time.monotonic(), state))
        self._changed.set()

    async def reaches(self, phase: str, since_s: float = 0.0) -> float:
        """The moment, not before `since_s`, at which the link came into a phase."""
        while True:
            for at_s, state in self.history:
                if at_s >= since_s and state.phase == phase:
                    return at_s
            self._changed.clear()
            await self._changed.wait()

    async def stream(self, address: str) -> Stream:
        """A stream that has begun to flow."""
        protocol = await self.link.dial(address, Stream)
        assert isinstance(protocol, Stream)
        await protocol.more(2)
        return protocol
