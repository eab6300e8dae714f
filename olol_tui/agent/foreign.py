"""Ollama servers on this node that we did not start: shown, never touched.

Found as listening sockets of a process called `ollama`, or as whoever answers
`/api/version` on Ollama's own port (a service of another user hides its sockets).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from . import client, proc
from .engines.ollama import version

OLLAMA_PORT = 11434
_TIMEOUT_S = 1.5


def candidates(own_sessions: set[int], ollama_port: int = OLLAMA_PORT) -> list[dict[str, Any]]:
    """`{"url", "port", "pid"}` of what may be an Ollama; reads /proc, blocks for milliseconds."""
    sockets = proc.listening()
    found: dict[int, dict[str, Any]] = {}
    for pid in proc.pids():
        status = proc.stat(pid)
        if status is None or status.comm != "ollama" or status.session in own_sessions:
            continue
        for inode in proc.socket_inodes(pid) & sockets.keys():
            address, port = sockets[inode]
            found[port] = {"url": _url(address, port), "port": port, "pid": pid}
    if ollama_port not in found and not _ours(sockets, own_sessions, ollama_port):
        for address, port in sockets.values():
            if port == ollama_port:
                found[port] = {"url": _url(address, port), "port": port, "pid": None}
    return [found[port] for port in sorted(found)]


async def find(own_sessions: set[int], ollama_port: int = OLLAMA_PORT) -> list[dict[str, Any]]:
    """`{"url", "version", "pid"}` of those that do answer as Ollama does."""
    loop = asyncio.get_running_loop()
    some = await loop.run_in_executor(None, candidates, own_sessions, ollama_port)
    versions = await asyncio.gather(*(_version(item["port"]) for item in some))
    return [
        {"url": item["url"], "version": answer, "pid": item["pid"]}
        for item, answer in zip(some, versions)
        if answer is not None
    ]


async def _version(port: int) -> str | None:
    try:
        return await version(port, timeout_s=_TIMEOUT_S)
    except client.CallError:
        return None


def _ours(sockets: dict[int, tuple[str, int]], own_sessions: set[int], port: int) -> bool:
    if port not in {found for _, found in sockets.values()}:
        return False
    return any(proc.session_listens(session, port) for session in own_sessions)


def _url(address: str, port: int) -> str:
    """A URL that works from this node; an address that means "all" becomes loopback."""
    if len(address) == 8:
        host = socket.inet_ntoa(struct.pack("=I", int(address, 16)))
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    return f"http://127.0.0.1:{port}"
