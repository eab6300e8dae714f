"""What memory planning needs of a model: sizes by layer and the architecture's own fields.

Plain facts in a compact form; what they mean for an architecture is for the controller to
say. Read on demand, because most models are never split.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import BadRequest, Malformed, NotFound
from .gguf import architecture_of
from .gguf_reader import Raw, read_raw
from .store import default_store, resolve

_MAX_BLOCKS = 4096
_MAX_NAMED = 256
_MAX_TEXT = 64
_MAX_LAYER_BYTES = 1 << 20
_BLOCK = re.compile(r"blk\.(\d{1,9})\.")


def shape(question: dict[str, Any]) -> dict[str, Any]:
    """Reply of POST /v1/shape: `{"path": …}` of a file, or `{"name": …}` in Ollama's store.

    Raises:
        BadRequest: neither is given, or the file is not a usable GGUF.
        NotFound: there is no such file or model.
    """
    path, name, store = (question.get(key) or "" for key in ("path", "name", "store"))
    if not all(isinstance(value, str) for value in (path, name, store)) or not (path or name):
        raise BadRequest("expected the path of a GGUF file or the name of a model in the store")
    layers: dict[str, Any] = {}
    if not path:
        root = Path(store).expanduser() if store else default_store()
        layers = resolve(root, name)
        path = str(layers["path"])
    try:
        facts = file_facts(str(Path(path).expanduser()))
    except Malformed as error:
        raise BadRequest(error.message, hint="Pull the model again.") from error
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror or error}") from error
    texts = _texts(layers)
    if "template" in texts:
        # Beside it: what the file itself would have it be.
        texts["chat_template"] = chat_template(str(facts["path"]))
    return {**facts, "layers": layers, "texts": texts}


def _texts(layers: dict[str, Any]) -> dict[str, Any]:
    """What a store adds to each request of the model: `system` and `template`, and `params` and
    `messages` as values.

    Raises:
        BadRequest: a layer cannot be used.
    """
    found: dict[str, Any] = {}
    try:
        for name in ("system", "template"):
            if name in layers:
                raw = Path(layers[name]).read_bytes()
                found[name] = raw[:_MAX_LAYER_BYTES].decode("utf-8", "replace")
        for name, kind in (("params", dict), ("messages", list)):
            if name in layers:
                value = json.loads(Path(layers[name]).read_bytes()[:_MAX_LAYER_BYTES])
                if isinstance(value, kind):
                    found[name] = value
    except (OSError, ValueError) as error:
        raise BadRequest(f"a layer of the model cannot be read: {error}") from error
    return found


def chat_template(path: str) -> str:
    """Jinja text in the header of a GGUF; empty where there is none.

    Raises:
        Malformed, OSError: as `file_facts`.
    """
    with Path(path).open("rb") as file:
        raw = read_raw(file, path, Path(path).stat().st_size)
    return str(raw.pairs.get("tokenizer.chat_template") or "")


def file_facts(path: str) -> dict[str, Any]:
    """Facts of one GGUF file; cached while the file is unchanged.

    Raises:
        Malformed: it is not a usable GGUF.
        OSError: it cannot be read.
    """
    status = Path(path).stat()
    return _facts_cached(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _facts_cached(path: str, size_bytes: int, _mtime_ns: int) -> dict[str, Any]:
    with Path(path).open("rb") as file:
        return facts_of(read_raw(file, path, size_bytes), path, size_bytes)


def facts_of(raw: Raw, path: str, size_bytes: int) -> dict[str, Any]:
    """The JSON form of a header.

    Raises:
        Malformed: no architecture, or blocks that cannot be.
    """
    architecture = architecture_of(raw, path)
    blocks: Counter[int] = Counter()
    experts: Counter[int] = Counter()
    named: dict[str, int] = {}
    others: Counter[str] = Counter()
    vocabulary = raw.lengths.get("tokenizer.ggml.tokens", 0)
    for tensor in raw.tensors:
        match = _BLOCK.match(tensor.name)
        if match is not None:
            index = int(match.group(1))
            if index >= _MAX_BLOCKS:
                raise Malformed(f"{path}: a block number of {index} cannot be")
            blocks[index] += tensor.size_bytes
            if "_exps" in tensor.name:
                experts[index] += tensor.size_bytes
        elif tensor.name.count(".") == 1 and len(named) < _MAX_NAMED:
            named[tensor.name] = tensor.size_bytes
        else:
            others[tensor.name.partition(".")[0]] += tensor.size_bytes
        if tensor.name == "token_embd.weight" and len(tensor.dimensions) > 1:
            vocabulary = vocabulary or tensor.dimensions[1]
    count = max(blocks, default=-1) + 1
    return {
        "architecture": architecture,
        "path": path,
        "size_bytes": size_bytes,
        "fields": _fields(raw, architecture),
        "blocks": [blocks[index] for index in range(count)],
        "experts": [experts[index] for index in range(count)] if experts else [],
        "tensors": named,
        "others": dict(others.most_common(_MAX_NAMED)),
        "tensor_count": len(raw.tensors),
        "vocabulary": vocabulary,
        "name": str(raw.pairs.get("general.name") or ""),
        "tokenizer": str(raw.pairs.get("tokenizer.ggml.model") or "")[:_MAX_TEXT],
        "pre_tokenizer": str(raw.pairs.get("tokenizer.ggml.pre") or "")[:_MAX_TEXT],
        "has_chat_template": bool(raw.pairs.get("tokenizer.chat_template")),
    }


def _fields(raw: Raw, architecture: str) -> dict[str, Any]:
    """The architecture's own fields, without its name before them."""
    prefix = f"{architecture}."
    found: dict[str, Any] = {}
    for key, value in raw.pairs.items():
        if not key.startswith(prefix) or value is None:
            continue
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            continue
        if isinstance(value, float) and not math.isfinite(value):  # JSON has no NaN
            continue
        if isinstance(value, list) and any(isinstance(item, float) for item in value):
            continue
        found[key[len(prefix) :]] = value
    return found
