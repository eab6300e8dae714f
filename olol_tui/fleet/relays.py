"""Ports on a head's node that lead to workers elsewhere, through this console's own SSH.

For nodes that cannot reach each other. A listener on the head's loopback, which no other
machine sees; each connection to it becomes a channel to the worker's loopback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from olol_tui.errors import OlolError
from olol_tui.fleet.crew import Crew
from olol_tui.fleet.road import open_stream

log = logging.getLogger("olol.fleet.relays")

RETRY_S = 2.0
_CHUNK_BYTES = 256 * 1024

Reader = Any
"""asyncio's stream or asyncssh's, which have the same methods and no type in common."""
Writer = Any
Serve = Callable[[Reader, Writer], Awaitable[None]]


@dataclass(slots=True)
class _Relay:
    """One worker as the head's node reaches it."""

    head: str
    node: str
    worker_port: int
    task: asyncio.Task[None]
    port: int | None = None
    """On the head's node; None while there is no listener."""


class Relays:
    """By split and worker; each is kept by a task until it is wanted no more.

    `changed` is called when a port came or went.
    """

    def __init__(self, crew: Crew, changed: Callable[[], None]) -> None:
        self._crew = crew
        self._changed = changed
        self._relays: dict[tuple[str, str], _Relay] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def ports(self, split: str) -> dict[str, int]:
        """Ports on the head's node by worker id."""
        return {
            worker: relay.port
            for (owner, worker), relay in self._relays.items()
            if owner == split and relay.port is not None
        }

    def want(self, split: str, head: str, workers: Mapping[str, tuple[str, int]]) -> None:
        """Lead from the head's node to these workers: id → (node, port there)."""
        for key in [key for key in self._relays if key[0] == split]:
            relay = self._relays[key]
            if workers.get(key[1]) != (relay.node, relay.worker_port) or relay.head != head:
                self._end(key)
        for worker, (node, port) in workers.items():
            if (split, worker) not in self._relays:
                task = asyncio.get_running_loop().create_task(
                    self._keep((split, worker)), name=f"relay to {worker}"
                )
                self._relays[split, worker] = _Relay(head, node, port, task)

    def drop(self, split: str) -> None:
        self.want(split, "", {})

    async def aclose(self) -> None:
        for key in list(self._relays):
            self._end(key)
        if self._ending:
            await asyncio.wait(self._ending)

    def _end(self, key: tuple[str, str]) -> None:
        task = self._relays.pop(key).task
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _keep(self, key: tuple[str, str]) -> None:
        """Have a listener for as long as the head's node is there; again when it is back."""
        await asyncio.sleep(0)  # until the entry is made
        relay = self._relays[key]

        async def serve(reader: Reader, writer: Writer) -> None:
            await self._carry(relay, reader, writer)

        while True:
            try:
                await self._listen(relay, serve)
            except (OlolError, OSError) as error:
                log.warning("%s: no relay on %s: %s", key[1], relay.head, error)
            finally:
                relay.port = None
                self._changed()
            await asyncio.sleep(RETRY_S)

    async def _listen(self, relay: _Relay, serve: Serve) -> None:
        """Returns when the listener is lost."""
        if self._crew.session(relay.head).road.kind == "local":
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                relay.port = int(server.sockets[0].getsockname()[1])
                self._changed()
                await asyncio.get_running_loop().create_future()
        async with self._crew.remote_road(relay.head).link.listening(serve) as (port, lost):
            relay.port = port
            self._changed()
            await lost.wait()

    async def _carry(self, relay: _Relay, reader: Reader, writer: Writer) -> None:
        """One connection of a head, until either end is done with it."""
        try:
            dial = self._crew.session(relay.node).dial
            there = await open_stream(dial, f"127.0.0.1:{relay.worker_port}")
        except (OlolError, OSError) as error:
            log.warning("the worker on %s is not reached: %s", relay.node, error)
            writer.close()
            return
        try:
            ways = [_pump(reader, there[1]), _pump(there[0], writer)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            writer.close()
            there[1].close()


async def _pump(reader: Reader, writer: Writer) -> None:
    """Bytes as they come. An end or a failure on one side ends the whole connection."""
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError as error:
        log.info("a relayed connection broke: %s", error)
