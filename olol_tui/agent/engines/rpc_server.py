"""`ggml-rpc-server` of llama.cpp: lends one device to the head of a split model.

It has no authentication and trusts its client with everything, so it only ever listens on
loopback; other nodes reach it through SSH. It serves one client at a time: nobody may greet
it while a head uses it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, Mapping

from .. import client, proc, pulse, rpcprobe, tensorcache
from ..errors import EngineError
from ..spec import Policy, Spec
from .base import (
    Context,
    EngineKind,
    Launch,
    device_env,
    find_program,
    program_version,
    with_libraries,
)

log = logging.getLogger(__name__)

PROGRAM = "ggml-rpc-server"
_GREET_S = 2.0
_STOP_GRACE_S = 1.0
"""It has nothing to save, and one that is frozen would take its SIGTERM much later."""


class RpcServer(EngineKind):
    name = "rpc-server"
    ends_when_silent = True
    is_inspected = True

    def launch(self, spec: Spec, port: int, context: Context, *, plain: bool = False) -> Launch:
        program = find_worker(spec.binary, context.environ)
        env = device_env(spec, context, hide_vulkan=False)
        env = {k: v for k, v in env.items() if not k.startswith("LLAMA_ARG_")}
        cache = _cache(context.state_dir)
        env["LLAMA_CACHE"] = str(tensorcache.directory_of(cache, spec.id))
        env.update(spec.env)
        argv = [program, "-H", spec.bind, "-p", str(port)]
        try:
            argv += ["-c"] if tensorcache.prepare(cache, spec.id, spec.cache_bytes) else []
        except OSError as error:
            log.warning("%s: no cache of tensors in %s: %s", spec.id, cache, error)
        env = with_libraries(env, program)
        return Launch((*argv, *spec.args), env, ignores_sigpipe=True)

    async def ready(self, spec: Spec, port: int) -> str | None:
        loop = asyncio.get_running_loop()
        if "open" in await loop.run_in_executor(None, proc.connections, port):
            # An adopted one that works: that is proof enough, and it must not be greeted.
            return ""
        try:
            protocol = await loop.run_in_executor(None, rpcprobe.greet, spec.bind, port, _GREET_S)
        except rpcprobe.NoAnswer as error:
            raise client.CallError(str(error)) from error
        build = await loop.run_in_executor(None, _build, spec.binary)
        return f"RPC {protocol}{', ' if build else ''}{build}"

    async def loaded(self, spec: Spec, port: int, timeout_s: float) -> list[dict[str, Any]]:
        """Nothing of its own.

        One that has not noticed that its client left is frozen, or about to notice: greeted, it
        shows which. Others are left alone: a greeting could stand in the way of a head.
        """
        loop = asyncio.get_running_loop()
        if "left" in await loop.run_in_executor(None, proc.connections, port):
            try:
                await loop.run_in_executor(None, rpcprobe.greet, spec.bind, port, _GREET_S)
            except rpcprobe.NoAnswer as error:
                raise client.CallError(str(error)) from error
        return []

    def inspect(self, spec: Spec, pid: int, state_dir: str) -> pulse.Pulse | None:
        try:
            tensorcache.keep(_cache(state_dir), spec.id, pid)
        except OSError as error:
            log.warning("%s: tensors are not kept: %s", spec.id, error)
        return pulse.take(pid)

    def tells(self, pid: int | None) -> dict[str, Any]:
        return {} if pid is None else {"resident_bytes": proc.resident_bytes(pid)}

    def stop_grace_s(self, policy: Policy) -> float:
        return min(policy.stop_grace_s, _STOP_GRACE_S)


def _cache(state_dir: str) -> Path:
    """Of all workers of this agent; removed with its state."""
    return Path(state_dir or ".", "cache")


def find_worker(given: str, environ: Mapping[str, str]) -> str:
    """The program; `given` may also name the llama-server that lies beside it.

    Raises:
        EngineError: there is none.
    """
    path = Path(given).expanduser() if given else None
    if path is not None and path.is_file() and path.name != PROGRAM:
        beside = path.parent / PROGRAM
        if not beside.is_file():
            raise EngineError(
                f"there is no {PROGRAM} beside {path}",
                "build llama.cpp with -DGGML_RPC=ON, or name it as `rpc_server`",
            )
        return find_program(PROGRAM, str(beside), environ)
    return find_program(PROGRAM, given, environ)


def _build(binary: str) -> str:
    """Of the llama-server beside it: the worker itself does not say what it was built from."""
    try:
        worker = Path(find_worker(binary, os.environ))
    except EngineError:
        return ""
    head = worker.resolve().parent / "llama-server"
    return program_version(str(head)) if head.is_file() else ""
