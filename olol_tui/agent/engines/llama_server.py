"""`llama-server` of llama.cpp: an existing binary that serves one GGUF."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from .. import client, proc
from ..errors import Malformed
from ..gguf import loose_digest, read_header, replica_bytes
from ..spec import Spec
from ..templates import jinja
from . import chain
from .base import (
    Advance,
    Context,
    EngineKind,
    Launch,
    Unsupported,
    device_env,
    find_program,
    health,
    model_file,
    program_version,
    with_libraries,
)

_ALL_LAYERS = "999"
_PROBE_TIMEOUT_S = 60.0


class LlamaServer(EngineKind):
    name = "llama-server"
    runner = True

    def launch(self, spec: Spec, port: int, context: Context, *, plain: bool = False) -> Launch:
        program = find_program("llama-server", spec.binary, context.environ)
        path = model_file(spec)
        # A variable such as LLAMA_ARG_PORT of the operator's shell must not reach it.
        env = device_env(spec, context, hide_vulkan=False)
        env = {k: v for k, v in env.items() if not k.startswith("LLAMA_ARG_")}
        env.update(spec.env)
        on_gpu = context.vendors(spec) & {"nvidia", "amd"}
        argv = [program, "--host", spec.bind, "--port", str(port), "-m", str(path)]
        argv += ["-c", str(spec.num_ctx * spec.slots), "-np", str(spec.slots)]
        argv += ["--no-webui", "--jinja"]
        version = ""
        if spec.chain is not None:
            version = program_version(program)
            chain.check_workers(spec.chain, version)
            argv += chain.arguments(spec.chain)
            # A lost worker aborts the head: at once, not after a second of gdb.
            env.setdefault("GGML_NO_BACKTRACE", "1")
        else:
            argv += ["-ngl", _ALL_LAYERS if on_gpu else "0"]
        if not on_gpu:
            # A head that computes nothing itself must not spin beside those that do.
            argv += ["-t", str(1 if spec.chain is not None else max(1, context.cpus))]
        if spec.model is not None:
            # Else its replies name the file.
            argv += ["--alias", spec.model.name]
        template = jinja(spec.model.chat_template) if spec.model else ""
        if template:
            argv += ["--chat-template", template]
        # With embeddings on, logits of a whole batch lie on the last device: too much for a split.
        argv += embedding_args(path, spec, plain or spec.chain is not None)
        env = with_libraries(env, program)
        return Launch((*argv, *spec.args), env, version=version)

    async def ready(self, spec: Spec, port: int) -> str | None:
        if not await health(port):
            return None
        if spec.model is not None and not is_embedding(Path(spec.model.path)):
            await _completes(port)
        return ""

    async def loaded(self, spec: Spec, port: int, timeout_s: float) -> list[dict[str, Any]]:
        on_gpu = bool(spec.devices) and spec.devices != ("cpu",)
        on_gpu = on_gpu or spec.chain is not None
        return await runner_loaded(spec, await health(port, timeout_s), on_gpu=on_gpu)

    async def advance(self, spec: Spec, port: int, timeout_s: float) -> Advance | None:
        # Each look is a line in the head's log: only where somebody is there to wait.
        loop = asyncio.get_running_loop()
        if spec.chain is None or not await loop.run_in_executor(None, proc.connections, port):
            return None
        return await chain.advance(port, timeout_s)

    def layout(self, spec: Spec, log: Path) -> dict[str, Any] | None:
        return None if spec.chain is None else chain.layout(log)


def is_embedding(path: Path) -> bool:
    """True for models that only embed: their header says how they pool."""
    try:
        return "embedding" in read_header(str(path)).capabilities
    except (OSError, Malformed):
        return False


def embedding_args(path: Path, spec: Spec, plain: bool) -> list[str]:
    """Flags that make one server complete and embed.

    Current builds pool only the requests that ask for embeddings. Older ones refuse every
    completion once embeddings are on; `ready` finds out, and `plain` leaves them off.
    """
    if any(arg in ("--embedding", "--embeddings", "--pooling") for arg in spec.args):
        return []
    batch = ["-ub", str(min(max(512, spec.num_ctx), 2048))]  # an input must fit one batch
    if is_embedding(path):
        return ["--embeddings", *batch]
    return [] if plain else ["--embeddings", "--pooling", "mean", *batch]


async def _completes(port: int) -> None:
    """Raises Unsupported when the server refuses completions altogether."""
    body = {"prompt": "a", "n_predict": 1, "cache_prompt": False}
    reply = await client.call(
        port, "/completion", method="POST", body=body, timeout_s=_PROBE_TIMEOUT_S
    )
    if reply.status == 501 or (reply.status >= 400 and b"embedding" in reply.body):
        raise Unsupported("this llama-server does not complete while embeddings are on")


async def runner_loaded(spec: Spec, healthy: bool, *, on_gpu: bool) -> list[dict[str, Any]]:
    """The one model of a runner that answers; its KV cache is computed from its header."""
    if spec.model is None or not healthy:
        return []
    loop = asyncio.get_running_loop()
    facts = await loop.run_in_executor(None, _facts, spec)
    size_bytes, digest = facts
    return [
        {
            "name": spec.model.name,
            "digest": digest,
            "size_bytes": size_bytes,
            "vram_bytes": size_bytes if on_gpu else 0,
            "context_length": spec.num_ctx,
            "expires_at": "",
        }
    ]


def _facts(spec: Spec) -> tuple[int, str]:
    """(bytes, digest); both are read from disk once and cached while the file is unchanged."""
    path = spec.model.path if spec.model else ""
    try:
        digest = loose_digest(path)
    except OSError:
        digest = ""
    return replica_bytes(path, spec.num_ctx * spec.slots), digest
