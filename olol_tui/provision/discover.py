"""Machines that could be nodes, in a network, on request only.

A scan is small and slow on purpose: at most `MOST_HOSTS` addresses, so many connections a
second, nothing sent but a greeting's answer and one request for a version.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from olol_tui.errors import OlolError
from olol_tui.ssh.text import clean

SSH_PORT = 22
OLLAMA_PORT = 11434
MOST_HOSTS = 4096
RATE_PER_S = 200.0
"""Connections begun a second."""
AT_ONCE = 128
CONNECT_S = 1.0
ANSWER_S = 2.0

Progress = Callable[[int, int], None]
"""(addresses done, addresses in all)."""


class ScanError(OlolError):
    title = "The network cannot be scanned"


@dataclass(frozen=True, slots=True)
class Found:
    """A host on which something of interest answers."""

    address: str
    ssh: str = ""
    """The server's greeting, without `SSH-2.0-`; empty when port 22 is shut."""
    ollama: str = ""
    """Version of an Ollama that everybody can reach; empty without one."""


def hosts_of(cidr: str) -> list[str]:
    """The addresses of a network such as `192.168.1.0/24`.

    Raises:
        ScanError: it is not one, or too large.
    """
    try:
        network = ipaddress.ip_network(cidr, strict=False)
    except ValueError as error:
        raise ScanError(f"expected a network such as 192.168.1.0/24, got {cidr!r}") from error
    if network.num_addresses > MOST_HOSTS:
        raise ScanError(
            f"{network} has {network.num_addresses} addresses, at most {MOST_HOSTS} are scanned",
            hint="Scan a smaller part of it, such as a /24.",
        )
    return [str(address) for address in network.hosts()] or [str(network.network_address)]


async def scan(
    addresses: list[str],
    *,
    progress: Progress = lambda done, total: None,
    rate_per_s: float = RATE_PER_S,
    ssh_port: int = SSH_PORT,
    ollama_port: int = OLLAMA_PORT,
) -> AsyncGenerator[Found, None]:
    """Hosts that answer, as they do. Closing the iterator ends the scan."""
    found: asyncio.Queue[Found | None] = asyncio.Queue()
    slots = asyncio.Semaphore(AT_ONCE)
    done = 0

    async def look(address: str) -> None:
        nonlocal done
        async with slots:
            ssh, ollama = await asyncio.gather(
                _greeting(address, ssh_port), _version(address, ollama_port)
            )
        done += 1
        progress(done, len(addresses))
        if ssh or ollama:
            found.put_nowait(Found(address, ssh, ollama))

    async def all_of_them() -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number, address in enumerate(addresses):
                # Two connections each.
                await asyncio.sleep(began_s + 2 * number / rate_per_s - loop.time())
                tasks.create_task(look(address))
        found.put_nowait(None)

    scanning = asyncio.create_task(all_of_them())
    try:
        while (one := await found.get()) is not None:
            yield one
        await scanning
    finally:
        scanning.cancel()
        await asyncio.gather(scanning, return_exceptions=True)


async def _greeting(address: str, port: int) -> str:
    """What an SSH server says first; empty when there is none."""
    raw = await _exchange(address, port, b"", b"\n")
    match = re.search(rb"^SSH-[0-9.]+-([^\r\n]{1,100})", raw, re.MULTILINE)
    return clean(match[1], 60) or "SSH" if match else ""


async def _version(address: str, port: int) -> str:
    ask = f"GET /api/version HTTP/1.0\r\nHost: {address}\r\n\r\n".encode()
    raw = await _exchange(address, port, ask, b"}")
    match = re.search(rb'"version"\s*:\s*"([^"]{1,40})"', raw)
    return clean(match[1], 40) if match else ""


async def _exchange(address: str, port: int, ask: bytes, until: bytes) -> bytes:
    """The first bytes of an answer; nothing where nobody answers."""
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return b""
    try:
        async with asyncio.timeout(ANSWER_S):
            writer.write(ask)
            return await reader.readuntil(until)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, TimeoutError):
        return b""
    finally:
        writer.close()
