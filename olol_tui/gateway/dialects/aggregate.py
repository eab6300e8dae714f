"""Answers that speak for the whole fleet: the union of what its engines would say.

Pure: a Fleet in, an object ready for JSON out, in the shapes of Ollama, OpenAI and OLOL with
additions that their clients ignore (`node`, `gpu`, `nodes`, `queue`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from olol_tui.errors import ModelNotFound
from olol_tui.fleet.snapshot import Device, Engine, Fleet, Loaded, Model, Node
from olol_tui.gateway.dialects.errors import model_not_found
from olol_tui.models.names import canonical

API_VERSION = "0.33.0"
"""Of the Ollama whose API the gateway answers by itself when the fleet has no Ollama."""

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero time: what Ollama writes for a time it does not know."""

NEVER = "2318-06-15T00:00:00Z"
"""`expires_at` of a model that stays: Ollama, too, shows a date some 292 years ahead."""


_RUNNING = frozenset({"dispatched", "prefill", "decode"})


def library(fleet: Fleet) -> dict[str, Model]:
    """Every model that some node can serve, by canonical name.

    Where stores hold different versions of a name, the one modified last speaks for it. A
    model that is loaded but in nobody's library (on an endpoint) is listed by what its
    engine says of it.
    """
    found: dict[str, Model] = {}
    for node in fleet.nodes:
        for model in node.library:
            key = canonical(model.name)
            if key not in found or model.modified_at > found[key].modified_at:
                found[key] = model
    for _, engine in _engines(fleet):
        if engine.kind != "endpoint":
            # What a store of ours no longer has was deleted, and only waits to be unloaded.
            continue
        for loaded in engine.loaded:
            key = canonical(loaded.name)
            if key not in found:
                found[key] = Model(loaded.name, loaded.digest, loaded.size_bytes)
    return found


def details(model: Model) -> dict[str, Any]:
    """Ollama's `details` object."""
    families = list(model.families) or ([model.family] if model.family else [])
    return {
        "parent_model": "",
        "format": model.format,
        "family": model.family,
        "families": families,
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
    }


def tags(fleet: Fleet) -> dict[str, Any]:
    """`GET /api/tags`: newest first, as Ollama lists them."""
    models = sorted(library(fleet).values(), key=lambda model: model.name)
    models.sort(key=lambda model: model.modified_at, reverse=True)
    return {"models": [_tag(model) for model in models]}


def ps(fleet: Fleet) -> dict[str, Any]:
    """`GET /api/ps`: one row a replica; `node`, `gpu` and `engine` tell them apart."""
    known = library(fleet)
    rows = [
        _process(node, engine, loaded, known)
        for node, engine in _engines(fleet)
        for loaded in engine.loaded
    ]
    rows.sort(key=lambda row: str(row["expires_at"]), reverse=True)
    return {"models": rows}


def version(fleet: Fleet) -> dict[str, Any]:
    """`GET /api/version`: the lowest version of the Ollama engines, which all of them speak."""
    versions = [
        engine.version
        for _, engine in _engines(fleet)
        if engine.kind in ("ollama", "endpoint") and engine.version
    ]
    return {"version": min(versions, key=_version_key, default=API_VERSION)}


def openai_models(fleet: Fleet) -> dict[str, Any]:
    """`GET /v1/models`."""
    models = sorted(library(fleet).values(), key=lambda model: model.name)
    return {"object": "list", "data": [_openai_model(model) for model in models]}


def openai_model(fleet: Fleet, name: str) -> dict[str, Any]:
    """`GET /v1/models/{id}`.

    Raises:
        ModelNotFound: nobody has it.
    """
    model = library(fleet).get(canonical(name))
    if model is None:
        raise ModelNotFound(model_not_found(name))
    return _openai_model(model)


def status(fleet: Fleet) -> dict[str, Any]:
    """`GET /api/status`: OLOL's shape, Ollama's `cloud`, and what both lack."""
    servers = _servers(fleet)
    models = _models_by_server(fleet)
    gateway = fleet.gateway
    return {
        "cloud": {"disabled": True, "source": "config"},
        "version": fleet.version,
        "servers": servers,
        "models": {
            name: {"servers": holders, "details": details(model)}
            for name, (model, holders) in models.items()
        },
        "model_count": len(models),
        "server_count": len(servers),
        "healthy_server_count": sum(server["healthy"] for server in servers.values()),
        "sessions": gateway.running,
        "distributed_inference": {
            "available": False,
            "enabled": False,
            "active": False,
            "server_count": 0,
            "partitioned_models": [],
        },
        "nodes": [_node(node) for node in fleet.nodes],
        "gpus": [_gpu(node, device) for node in fleet.nodes for device in node.devices],
        "queue": {
            "queued": gateway.queued,
            "running": gateway.running,
            "requests_total": gateway.requests_total,
            "errors_total": gateway.errors_total,
            "tokens_per_s": gateway.tokens_per_s,
            "draining": gateway.draining,
        },
    }


def olol_models(fleet: Fleet) -> dict[str, Any]:
    """`GET /api/models` as OLOL answers it."""
    contexts: dict[str, int] = {}
    for _, engine in _engines(fleet):
        for loaded in engine.loaded:
            key = canonical(loaded.name)
            contexts[key] = max(contexts.get(key, 0), loaded.context_length or 0)
    models = {
        name: {
            "servers": holders,
            "details": details(model),
            "context": {
                "current": contexts.get(canonical(name)) or None,
                "max": model.context_length,
            },
        }
        for name, (model, holders) in _models_by_server(fleet).items()
    }
    return {"count": len(models), "models": models}


def olol_servers(fleet: Fleet) -> dict[str, Any]:
    """`GET /api/servers` as OLOL answers it."""
    servers = _servers(fleet)
    return {"count": len(servers), "servers": servers}


def _engines(fleet: Fleet) -> Iterator[tuple[Node, Engine]]:
    """Engines that answer clients: not the workers that only lend a GPU to a split."""
    for node in fleet.nodes:
        for engine in node.engines:
            if engine.kind != "rpc-server":
                yield node, engine


def _tag(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": model.modified_at or ZERO_TIME,
        "size": model.size_bytes,
        "digest": bare_digest(model.digest),
        "details": details(model),
        "capabilities": list(model.capabilities),
    }


def bare_digest(digest: str) -> str:
    """Listings carry the 64 hexadecimal digits without `sha256:`; clients cut them to show."""
    return digest.removeprefix("sha256:")


def _process(node: Node, engine: Engine, loaded: Loaded, known: dict[str, Model]) -> dict[str, Any]:
    model = known.get(canonical(loaded.name), Model(loaded.name))
    return {
        "name": loaded.name,
        "model": loaded.name,
        "size": loaded.size_bytes,
        "digest": bare_digest(loaded.digest or model.digest),
        "details": details(model),
        "expires_at": NEVER if loaded.pinned or not loaded.expires_at else loaded.expires_at,
        "size_vram": loaded.vram_bytes,
        "context_length": loaded.context_length or 0,
        "node": node.name,
        "gpu": ",".join(_labels(node, engine)),
        "engine": engine.id,
    }


def _labels(node: Node, engine: Engine) -> list[str]:
    return [device.label for device in node.devices if device.uuid in engine.devices]


def _openai_model(model: Model) -> dict[str, Any]:
    namespace = model.name.rsplit("/", 1)[0] if "/" in model.name else "library"
    return {
        "id": model.name,
        "object": "model",
        "created": unix_seconds(model.modified_at),
        "owned_by": namespace,
    }


def unix_seconds(stamp: str) -> int:
    """Seconds since 1970 of an RFC 3339 time; 0 when it is unknown or unreadable."""
    seconds, _, fraction = stamp.partition(".")
    if fraction:  # datetime reads microseconds at most, Go writes nanoseconds
        zone = fraction.lstrip("0123456789")
        seconds += zone
    try:
        moment = datetime.fromisoformat(seconds)
    except ValueError:
        return 0
    return int(moment.timestamp()) if moment.tzinfo is not None and moment.year > 1 else 0


def _version_key(text: str) -> tuple[int, ...]:
    numbers = text.lstrip("v").split("-", 1)[0].split(".")
    return tuple(int(number) if number.isdigit() else 0 for number in numbers)


def _models_by_server(fleet: Fleet) -> dict[str, tuple[Model, list[str]]]:
    """Each model with the engines that have it loaded or can load it from their node's store."""
    held: dict[str, tuple[Model, list[str]]] = {}
    for key, model in sorted(library(fleet).items()):
        holders = [engine.id for node, engine in _engines(fleet) if _holds(node, engine, key)]
        held[model.name] = (model, holders)
    return held


def _holds(node: Node, engine: Engine, key: str) -> bool:
    if any(canonical(loaded.name) == key for loaded in engine.loaded):
        return True
    if engine.model:  # a runner serves this one model only
        return canonical(engine.model) == key
    return any(canonical(model.name) == key for model in node.library)


def _servers(fleet: Fleet) -> dict[str, dict[str, Any]]:
    busy = Counter(request.engine for request in fleet.requests if request.state in _RUNNING)
    return {engine.id: _server(node, engine, busy[engine.id]) for node, engine in _engines(fleet)}


def _server(node: Node, engine: Engine, running: int) -> dict[str, Any]:
    devices = [device for device in node.devices if device.uuid in engine.devices]
    kinds = {"nvidia": "cuda", "amd": "rocm"}
    vendor = devices[0].vendor if devices else "unknown"
    return {
        "load": running,
        "healthy": engine.state == "ready" and node.state == "ready" and not node.stale,
        "device_type": kinds.get(vendor, vendor),
        "device_info": {device.label: device.name for device in devices},
        "model_count": len(engine.loaded) if engine.model else len(node.library),
        "address": engine.address,
        "node": node.name,
        "kind": engine.kind,
        "state": engine.state,
        "slots": engine.slots,
        "loaded": [loaded.name for loaded in engine.loaded],
        "version": engine.version,
    }


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "kind": node.kind,
        "state": node.state,
        "stale": node.stale,
        "cordoned": node.cordoned,
        "gpus": sum(device.vendor != "cpu" for device in node.devices),
        "engines": len(node.engines),
        "models": len(node.library),
        "error": node.error,
    }


def _gpu(node: Node, device: Device) -> dict[str, Any]:
    return {
        "node": node.name,
        "gpu": device.label,
        "uuid": device.uuid,
        "name": device.name,
        "vram_bytes": device.vram_bytes,
        "used_bytes": device.used_bytes,
        "util_percent": device.util_percent,
        "temp_c": device.temp_c,
        "power_w": device.power_w,
        "error": device.error,
    }
