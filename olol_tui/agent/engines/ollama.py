"""`ollama serve`: many models, loaded on request; one process per GPU, bound by UUID."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from .. import client
from ..spec import Spec
from .base import Context, EngineKind, Launch, device_env, find_program

_NEVER_AFTER = timedelta(days=365 * 50)
"""Ollama writes "never expires" as a date some 290 years ahead."""


class Ollama(EngineKind):
    name = "ollama"

    def launch(self, spec: Spec, port: int, context: Context, *, plain: bool = False) -> Launch:
        program = find_program("ollama", spec.binary, context.environ)
        env = device_env(spec, context, hide_vulkan=True)
        env.update(
            OLLAMA_HOST=f"{spec.bind}:{port}",
            OLLAMA_NO_CLOUD="1",
            # Left alone, Ollama derives it from VRAM: engines of one fleet would differ.
            OLLAMA_CONTEXT_LENGTH=str(spec.num_ctx),
            OLLAMA_NUM_PARALLEL=str(spec.slots),
        )
        env.pop("OLLAMA_ORIGINS", None)
        if spec.prune:
            env.pop("OLLAMA_NOPRUNE", None)
        else:
            # Two processes that prune one store delete each other's partial downloads.
            env["OLLAMA_NOPRUNE"] = "1"
        if spec.models_dir:
            env["OLLAMA_MODELS"] = str(Path(spec.models_dir).expanduser())
        env.setdefault("HOME", str(Path("~").expanduser()))
        env.update(spec.env)
        return Launch((program, "serve", *spec.args), env)

    async def ready(self, spec: Spec, port: int) -> str | None:
        return await version(port)

    async def loaded(self, spec: Spec, port: int, timeout_s: float) -> list[dict[str, Any]]:
        return await ps(port, timeout_s)


async def version(port: int, timeout_s: float = 5.0) -> str | None:
    """What `/api/version` says; None when the reply is not Ollama's.

    Raises:
        client.CallError: nothing answers.
    """
    reply = await client.call(port, "/api/version", timeout_s=timeout_s)
    data = reply.json()
    if reply.status != 200 or not isinstance(data, dict):
        return None
    found = data.get("version")
    return found if isinstance(found, str) else None


async def ps(port: int, timeout_s: float) -> list[dict[str, Any]]:
    """LOADED facts from `/api/ps`.

    Raises:
        client.CallError: no usable answer.
    """
    reply = await client.call(port, "/api/ps", timeout_s=timeout_s)
    data = reply.json()
    if reply.status != 200 or not isinstance(data, dict):
        raise client.CallError(f"/api/ps answered {reply.status}")
    rows = data.get("models") or []
    if not isinstance(rows, list):
        raise client.CallError("/api/ps answered without a list of models")
    return [_loaded(row) for row in rows if isinstance(row, dict)]


def _loaded(row: dict[str, Any]) -> dict[str, Any]:
    digest = str(row.get("digest") or "")
    context_length = row.get("context_length")
    return {
        "name": str(row.get("name") or row.get("model") or ""),
        "digest": f"sha256:{digest}" if digest and ":" not in digest else digest,
        "size_bytes": int(row.get("size") or 0),
        "vram_bytes": int(row.get("size_vram") or 0),
        "context_length": context_length if isinstance(context_length, int) else None,
        "expires_at": _expiry(str(row.get("expires_at") or "")),
    }


def _expiry(text: str) -> str:
    """The time as given, empty for never.

    Go writes nanoseconds, which Python's parser refuses before 3.11: only the date
    decides here.
    """
    try:
        day = datetime.strptime(text[:10], "%Y-%m-%d").replace(tzinfo=timezone.utc)
    except ValueError:
        return ""
    return "" if day - datetime.now(timezone.utc) > _NEVER_AFTER else text
