"""A simulated engine as a real process, for tests that need an Ollama that behaves or misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx


class SimEngine:
    """One running engine."""

    def __init__(self, port: int, process: asyncio.subprocess.Process) -> None:
        self.address = f"127.0.0.1:{port}"
        self.process = process
        self._http = httpx.AsyncClient(
            base_url=f"http://{self.address}", timeout=30, trust_env=False
        )

    async def stats(self) -> dict[str, Any]:
        return dict((await self._http.get("/sim/stats")).json())

    async def fault(self, **fault: Any) -> None:
        reply = await self._http.post("/sim/faults", json=fault)
        reply.raise_for_status()

    async def load(self, model: str) -> None:
        reply = await self._http.post("/api/generate", json={"model": model, "keep_alive": -1})
        reply.raise_for_status()

    async def until(self, **wanted: Any) -> dict[str, Any]:
        """Wait until its statistics show these values."""
        async with asyncio.timeout(10):
            while True:
                stats = await self.stats()
                if all(stats[key] == value for key, value in wanted.items()):
                    return stats
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self._http.aclose()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@contextlib.asynccontextmanager
async def sim_engine(**config: Any) -> AsyncIterator[SimEngine]:
    """A simulated engine that answers; killed at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "olol_tui.agent.simengine",
        "--port", str(port), "--id", "test", "--config", json.dumps(config),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    engine = SimEngine(port, process)
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    await engine.stats()
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
        yield engine
    finally:
        await engine.close()
