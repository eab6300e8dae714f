"""What this node is: system, devices, engines that could run, Ollamas that already do."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from pathlib import Path
from typing import Any

from .devices import DeviceSource
from .engines import embedded
from .engines.base import find_program, program_version
from .engines.rpc_server import find_worker
from .errors import EngineError


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


async def collect(
    source: DeviceSource,
    foreign: list[dict[str, Any]],
    errors: list[str],
    *,
    simulated: bool,
    machine_id: str,
) -> dict[str, Any]:
    """INVENTORY of the contract."""
    loop = asyncio.get_running_loop()
    devices = await loop.run_in_executor(None, source.inventory)
    return {
        "hostname": socket.gethostname(),
        "os": _os_name(),
        "arch": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": memory_bytes(),
        "machine_id": machine_id,
        "devices": devices,
        "engines": await _engines(simulated),
        "foreign": foreign,
        "errors": errors,
    }


async def _engines(simulated: bool) -> dict[str, Any]:
    """Which kinds can run here; on a simulated node only the simulated one is offered."""
    if simulated:
        none = {"ollama": None, "llama-server": None, "rpc-server": None, "embedded": None}
        return {**none, "simulated": {}}
    installed = embedded.installed_version()
    return {
        "ollama": await _program("ollama"),
        "llama-server": await _program("llama-server"),
        "rpc-server": _worker(),
        "embedded": None if installed is None else {"version": installed},
        "simulated": None,
    }


async def _program(name: str) -> dict[str, str] | None:
    try:
        path = find_program(name, "", os.environ)
    except EngineError:
        return None
    loop = asyncio.get_running_loop()
    return {"path": path, "version": await loop.run_in_executor(None, program_version, path)}


def _worker() -> dict[str, str] | None:
    try:
        return {"path": find_worker("", os.environ), "version": ""}
    except EngineError:
        return None


def _os_name() -> str:
    """`Debian GNU/Linux 12 (bookworm)`, else the kernel's name."""
    try:
        with Path("/etc/os-release").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("PRETTY_NAME="):
                    return line.partition("=")[2].strip().strip('"')
    except OSError:
        return platform.system()
    return platform.system()
