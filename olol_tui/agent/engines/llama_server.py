"""`llama-server` of llama.cpp: an existing binary that serves one GGUF."""

from __future__ import annotations

from typing import Any

from ..gguf import replica_bytes
from ..spec import Spec
from ..templates import jinja
from .base import Context, EngineKind, Launch, device_env, find_program, health, model_file


class LlamaServer(EngineKind):
    name = "llama-server"
    runner = True

    def launch(self, spec: Spec, port: int, context: Context) -> Launch:
        program = find_program("llama-server", spec.binary, context.environ)
        path = model_file(spec)
        env = device_env(spec, context, hide_vulkan=False)
        # A variable such as LLAMA_ARG_PORT of the operator's shell must not reach it.
        env = {k: v for k, v in env.items() if not k.startswith("LLAMA_ARG_")}
        env.update(spec.env)
        on_gpu = context.vendors(spec) & {"nvidia", "amd"}
        argv = [program, "--host", "127.0.0.1", "--port", str(port), "-m", str(path)]
        argv += ["-c", str(spec.num_ctx * spec.slots), "-np", str(spec.slots)]
        argv += ["--no-webui", "--jinja", "-ngl", "999" if on_gpu else "0"]
        if not on_gpu:
            argv += ["-t", str(max(1, context.cpus))]
        template = jinja(spec.model.chat_template) if spec.model else ""
        if template:
            argv += ["--chat-template", template]
        return Launch((*argv, *spec.args), env)

    async def ready(self, port: int) -> str | None:
        return "" if await health(port) else None

    async def loaded(self, spec: Spec, port: int) -> list[dict[str, Any]]:
        return runner_loaded(spec, await health(port))


def runner_loaded(spec: Spec, healthy: bool, *, on_gpu: bool = True) -> list[dict[str, Any]]:
    """The one model of a runner that answers; its KV cache is computed from its header."""
    if spec.model is None or not healthy:
        return []
    size = replica_bytes(spec.model.path, spec.num_ctx * spec.slots)
    return [
        {
            "name": spec.model.name,
            "digest": "",
            "size_bytes": size,
            "vram_bytes": size if on_gpu and spec.devices and spec.devices != ("cpu",) else 0,
            "context_length": spec.num_ctx,
            "expires_at": "",
        }
    ]
