"""A TCP port for an engine on 127.0.0.1.

Asking the kernel for a free port and handing the number on is a race with every outgoing
connection of the node. Ports outside the ephemeral range are free of that race; what
remains (another program taking the same one) is found after the start, because the
listener is checked to be the engine's own, and answered with another port.
"""

from __future__ import annotations

import os
import socket
import zlib
from pathlib import Path
from typing import Iterator

from .errors import EngineError

_LOWEST = 10240
_HIGHEST = 65535


def ephemeral_range() -> tuple[int, int]:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32768, 60999


def candidates(seed: str) -> Iterator[int]:
    """Every port outside the ephemeral range once, from a place that depends on `seed`.

    Agents of different users or state directories start at different places, so that
    they rarely meet.
    """
    low, high = ephemeral_range()
    ports = [p for p in range(_LOWEST, _HIGHEST + 1) if not low <= p <= high]
    if not ports:
        ports = list(range(low, high + 1))
    start = zlib.crc32(f"{os.getuid()}:{seed}".encode()) % len(ports)
    yield from ports[start:]
    yield from ports[:start]


def is_free(port: int) -> bool:
    """Whether an engine could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without SO_REUSEADDR a port would look taken for a minute after its engine ended.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose(seed: str, avoid: set[int], prefer: int = 0) -> int:
    """A port that is free now and not in `avoid`; `prefer` keeps an engine's address stable.

    Raises:
        EngineError: every port of the range is taken.
    """
    if prefer and prefer not in avoid and is_free(prefer):
        return prefer
    for port in candidates(seed):
        if port not in avoid and is_free(port):
            return port
    raise EngineError("no free TCP port outside the ephemeral range")
