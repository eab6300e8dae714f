"""How far other nodes are: the time that a TCP handshake with their sshd takes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .errors import BadRequest

TRIES = 3
TIMEOUT_S = 2.0
MAX_TARGETS = 1024
_AT_ONCE = 16


async def measure(question: dict[str, Any]) -> dict[str, Any]:
    """Reply of POST /v1/mesh/rtt: `{"targets": [{"host", "port"}]}` → `{"seconds": […]}`.

    The least of some tries, None where nobody answers.

    Raises:
        BadRequest: the question is malformed.
    """
    targets = question.get("targets")
    if not isinstance(targets, list) or len(targets) > MAX_TARGETS:
        raise BadRequest(f"targets: expected a list of at most {MAX_TARGETS}")
    pairs = [_target(item, index) for index, item in enumerate(targets)]
    gate = asyncio.Semaphore(_AT_ONCE)
    found = await asyncio.gather(*(_least(host, port, gate) for host, port in pairs))
    return {"seconds": list(found)}


def _target(item: Any, index: int) -> tuple[str, int]:
    host = item.get("host") if isinstance(item, dict) else None
    port = item.get("port") if isinstance(item, dict) else None
    if not isinstance(host, str) or not isinstance(port, int) or not 0 < port < 65536:
        raise BadRequest(f"targets[{index}]: expected host and port")
    return host, port


async def _least(host: str, port: int, gate: asyncio.Semaphore) -> float | None:
    best: float | None = None
    async with gate:
        for _ in range(TRIES):
            began_s = time.monotonic()
            try:
                _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), TIMEOUT_S)
            except (OSError, asyncio.TimeoutError):
                return best
            took_s = time.monotonic() - began_s
            writer.close()
            best = took_s if best is None else min(best, took_s)
    return best
