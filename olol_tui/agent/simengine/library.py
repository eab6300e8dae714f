"""Routes that change what the store holds: pull, push, create, copy, delete, blobs.

As Ollama's: the same sentences, states and codes, but no bytes are kept and nothing is
fetched; the registry is the catalogue of this package.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import TYPE_CHECKING, Any

from .catalogue import SimModel, canonical, digest_of, from_json, registry
from .httpd import JSON, STREAMED, TEXT, Exchange, dumps
from .jsonbody import BadRequest, parse_object
from .replies import rfc3339
from .shelf import digest_of_path
from .transfer import Progress, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from .server import SimServer

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-/]*(?::[A-Za-z0-9_][A-Za-z0-9_.\-]*)?")
_DRAINED_BYTES = 256 << 10
"""Of a body that nobody needs; as Go's server, which then closes."""
_WIDE = {"F16": 2.0, "BF16": 2.0, "F32": 4.0}
"""Bytes a weight of the types that may be quantized."""
_NARROW = {"Q4_K_S": 0.58, "Q4_K_M": 0.61, "Q8_0": 1.06}
_PULL = {"model": "str", "name": "str", "stream": "bool", "insecure": "bool"}
_CREATE = {"model": "str", "name": "str", "stream": "bool", "from": "str", "files": "map",
           "adapters": "map", "quantize": "str", "template": "str", "system": "str",
           "parameters": "map", "messages": "messages"}  # fmt: skip


def _pull(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "PullRequest", _PULL)
    name = _name(body, "invalid model name")
    progress = Progress(exchange, body.get("stream", True))
    progress.say(status="pulling manifest")
    model = server.find(name) or registry(name)
    if model is None:
        progress.fail("pull model manifest: file does not exist")
        return

    def finish(progress: Progress) -> None:
        progress.say(status="verifying sha256 digest")
        progress.say(status="writing manifest")
        server.shelf.put(model)
        server.partial.clear()
        server.log(f"pulled {model.name}")
        progress.end()

    fault = server.faults.take_store()
    Transfer(server, exchange, progress, "pulling", _layers(model), finish, fault).begin()


def _push(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "PushRequest", _PULL)
    name = _name(body, "model is required")
    progress = Progress(exchange, body.get("stream", True))
    progress.say(status="retrieving manifest")
    model = server.find(name)
    if model is None:
        progress.say(status="couldn't retrieve manifest")
        progress.fail(f"model '{name}' not found")
        return

    def finish(progress: Progress) -> None:
        progress.say(status="pushing manifest")
        server.partial.clear()
        progress.end()

    fault = server.faults.take_store()
    Transfer(server, exchange, progress, "pushing", _layers(model), finish, fault).begin()


def _layers(model: SimModel) -> list[tuple[str, int]]:
    """The weights, and the small ones that every model has."""
    small = [(digest_of(f"template:{model.family}"), 1481), (digest_of("license"), 11_356)]
    return [(model.weights, model.size_bytes), *small, (digest_of(f"config:{model.name}"), 485)]


def _create(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "CreateRequest", _CREATE)
    name = _name(body, "invalid model name")
    files: dict[str, Any] = {**body.get("files", {}), **body.get("adapters", {})}
    for path, digest in files.items():
        if path.startswith("/") or ".." in path.split("/"):
            raise BadRequest("file path must be relative")
        if not isinstance(digest, str) or digest_of_path(digest) is None:
            raise BadRequest("invalid digest format")
    progress = Progress(exchange, body.get("stream", True))
    try:
        base = _base(server, body, progress)
        made = _made(base, canonical(name), body, progress)
    except BadRequest as bad:
        progress.fail(str(bad), bad.status)
        return
    progress.say(status=f"using existing layer {made.weights}")
    for field in ("template", "system", "parameters", "messages"):
        if body.get(field):
            digest = digest_of(json.dumps(body[field], sort_keys=True))
            progress.say(status=f"creating new layer {digest}")
    progress.say(status="writing manifest")
    server.shelf.put(made)
    progress.end()


def _base(server: SimServer, body: dict[str, Any], progress: Progress) -> SimModel:
    if body.get("from"):
        base = server.find(body["from"])
        if base is None:
            progress.say(status="pulling manifest")
            raise BadRequest("pull model manifest: file does not exist", 500)
        return base
    if "files" not in body:
        raise BadRequest("neither 'from' or 'files' was specified")
    if not body["files"]:
        raise BadRequest("no files provided to convert")
    progress.say(status="parsing GGUF")
    size_bytes = 0
    weights = ""
    for digest in (digest_of_path(text) or "" for text in body["files"].values()):
        found = server.shelf.blob_bytes(digest)
        if found is None:
            path = f"blobs/{digest.replace(':', '-')}"
            raise BadRequest(f"open {path}: no such file or directory", 500)
        if found >= size_bytes:
            size_bytes, weights = found, digest
    fresh = registry("tinyllama:1.1b")
    assert fresh is not None
    changes = {"size_bytes": size_bytes, "weights": weights, "quantization": "F16"}
    return from_json({**fresh.to_json(), **changes})


def _made(base: SimModel, name: str, body: dict[str, Any], progress: Progress) -> SimModel:
    fields = {**base.to_json(), "name": name, "modified_at": rfc3339(time.time())}
    wanted = body.get("quantize", "").upper()
    if wanted:
        if wanted not in _NARROW:
            raise BadRequest(f"unsupported quantization type {wanted}")
        if base.quantization not in _WIDE:
            raise BadRequest("quantization is only supported for F16, BF16 and F32 models")
        progress.say(status=f"quantizing {base.quantization} model to {wanted}")
        share = _NARROW[wanted] / _WIDE[base.quantization]
        fields["size_bytes"] = int(base.size_bytes * share)
        fields["quantization"] = wanted
        fields["weights"] = digest_of(f"{base.weights}:{wanted}")
    made = [name, fields["weights"], body.get("system"), body.get("template")]
    fields["digest"] = digest_of(json.dumps(made))
    return from_json(fields)


def _copy(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "CopyRequest", {"source": "str", "destination": "str"})
    for field in ("source", "destination"):
        if not _NAME.fullmatch(body.get(field, "")):
            raise BadRequest(f"{field} {json.dumps(body.get(field, ''))} is invalid")
    model = server.find(body["source"])
    if model is None:
        raise BadRequest(f"model {json.dumps(body['source'])} not found", 404)
    stamp = rfc3339(time.time())
    fields = {**model.to_json(), "name": canonical(body["destination"]), "modified_at": stamp}
    server.shelf.put(from_json(fields))
    exchange.reply(200, b"", TEXT)


def _delete(server: SimServer, exchange: Exchange) -> None:
    body = parse_object(exchange.body, "DeleteRequest", {"model": "str", "name": "str"})
    name = body.get("model") or body.get("name") or ""
    if not _NAME.fullmatch(name):
        raise BadRequest(f"name {json.dumps(name)} is invalid")
    fault = server.faults.take_store()
    if fault is not None and fault.kind in ("500", "503"):
        raise BadRequest("simulated fault", int(fault.kind))
    model = server.find(name)
    if model is None:
        raise BadRequest(f"model '{name}' not found", 404)
    server.shelf.remove(model)
    exchange.reply(200, b"", TEXT)


def _head_blob(server: SimServer, exchange: Exchange) -> None:
    digest = _digest(exchange)
    if server.shelf.blob_bytes(digest) is None:
        raise BadRequest(f'blob "{digest}" not found', 404)
    exchange.reply(200, b"", TEXT)


def _take_blob(server: SimServer, exchange: Exchange) -> None:
    digest = _digest(exchange)
    if server.shelf.blob_bytes(digest) is not None:
        exchange.body_sink = _Drain(exchange)
        return
    exchange.when_gone(server.call_cancelled)
    exchange.body_sink = _Blob(server, exchange, digest)


class _Drain:
    """The body of a blob that is here already: what comes soon is let in, then it ends."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._bytes = 0

    def __call__(self, data: bytes, last: bool) -> None:
        self._bytes += len(data)
        if last or self._bytes > _DRAINED_BYTES:
            self._exchange.reply(200, b"", TEXT)


class _Blob:
    """A blob on its way in: counted and digested, not kept."""

    def __init__(self, server: SimServer, exchange: Exchange, digest: str) -> None:
        self._server = server
        self._exchange = exchange
        self._digest = digest
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._fault = server.faults.take_store()

    def __call__(self, data: bytes, last: bool) -> None:
        self._hash.update(data)
        self._bytes += len(data)
        self._server.blob_bytes += len(data)
        fault = self._fault
        if fault is not None and fault.kind in ("500", "503"):
            body = dumps({"error": "simulated fault"})
            self._exchange.reply(int(fault.kind), body, JSON)
            return
        if fault is not None and fault.kind == "cut":
            self._exchange.reset()
            return
        rate = self._server.settings.blob_bytes_s
        if rate is not None and data:
            self._exchange.hold_body(len(data) / rate)
        if not last:
            return
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._digest:
            message = f'digest mismatch, expected "{self._digest}", got "{found}"'
            self._exchange.reply(400, dumps({"error": message}), JSON)
            return
        self._server.shelf.add_blob(self._digest, self._bytes)
        self._exchange.reply(201, b"", TEXT)


def _digest(exchange: Exchange) -> str:
    digest = digest_of_path(exchange.path[len(STREAMED) :])
    if digest is None:
        raise BadRequest("invalid digest format")
    return digest


def _name(body: dict[str, Any], complaint: str) -> str:
    name = str(body.get("model") or body.get("name") or "")
    if not _NAME.fullmatch(name):
        raise BadRequest(complaint)
    return name


BLOB_ROUTE: dict[str, Callable[[SimServer, Exchange], None]] = {
    "HEAD": _head_blob,
    "POST": _take_blob,
}

ROUTES: dict[str, dict[str, Callable[[SimServer, Exchange], None]]] = {
    "/api/pull": {"POST": _pull},
    "/api/push": {"POST": _push},
    "/api/create": {"POST": _create},
    "/api/copy": {"POST": _copy},
    "/api/delete": {"DELETE": _delete},
}
