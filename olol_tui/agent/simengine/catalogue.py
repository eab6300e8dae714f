"""The models that a simulated store holds.

Shapes, sizes and capabilities are those of well-known models of the Ollama library, so
that memory, load times and rates come out right. Digests are made from the name and say
nothing about the real blobs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # read at run time only from Python 3.9 on
    Shape = tuple[int, int, int, int]
    """Layers, KV heads, head length, embedding length."""
    Row = tuple[str, int, str, str, str, int, Shape, tuple[str, ...], float]

_GENERAL = ("completion", "tools")
_THINKER = ("completion", "tools", "thinking")
_MODIFIED_AT = "2026-09-01T08:00:00Z"

# name, size in bytes, family, parameters, quantization, context, shape, capabilities,
# share of the weights that one token reads (mixtures of experts read a part)
_TABLE: tuple[Row, ...] = (
    ("llama3.2:1b", 1_321_098_329, "llama", "1.2B", "Q8_0", 131072,
     (16, 8, 64, 2048), _GENERAL, 1.0),
    ("llama3.2:3b", 2_019_393_189, "llama", "3.2B", "Q4_K_M", 131072,
     (28, 8, 128, 3072), _GENERAL, 1.0),
    ("gemma3:4b", 3_338_801_804, "gemma3", "4.3B", "Q4_K_M", 131072,
     (34, 4, 256, 2560), ("completion", "vision"), 1.0),
    ("mistral:7b", 4_372_824_384, "llama", "7.2B", "Q4_K_M", 32768,
     (32, 8, 128, 4096), _GENERAL, 1.0),
    ("qwen3:8b", 5_225_388_164, "qwen3", "8.2B", "Q4_K_M", 40960,
     (36, 8, 128, 4096), _THINKER, 1.0),
    ("deepseek-r1:14b", 8_988_112_209, "qwen2", "14.8B", "Q4_K_M", 131072,
     (48, 8, 128, 5120), ("completion", "thinking"), 1.0),
    ("phi4:14b", 9_053_116_391, "phi3", "14.7B", "Q4_K_M", 16384,
     (40, 10, 128, 5120), ("completion",), 1.0),
    ("gpt-oss:20b", 13_793_441_244, "gptoss", "20.9B", "MXFP4", 131072,
     (24, 8, 64, 2880), _THINKER, 0.25),
    ("qwen3:32b", 20_201_253_588, "qwen3", "32.8B", "Q4_K_M", 40960,
     (64, 8, 128, 5120), _THINKER, 1.0),
    ("llama3.3:70b", 42_520_413_916, "llama", "70.6B", "Q4_K_M", 131072,
     (80, 8, 128, 8192), _GENERAL, 1.0),
    ("nomic-embed-text:latest", 274_302_450, "nomic-bert", "137M", "F16", 2048,
     (12, 0, 64, 768), ("embedding",), 1.0),
)  # fmt: skip

# What only the pretended registry has: a store holds it after a pull.
_REGISTRY: tuple[Row, ...] = (
    ("tinyllama:1.1b", 637_700_138, "llama", "1.1B", "Q4_0", 2048,
     (22, 4, 64, 2048), ("completion",), 1.0),
    ("qwen3:0.6b", 522_653_767, "qwen3", "751.63M", "Q4_K_M", 40960,
     (28, 8, 128, 1024), _THINKER, 1.0),
    ("smollm2:360m", 725_566_512, "llama", "361.82M", "F16", 8192,
     (32, 5, 64, 960), _GENERAL, 1.0),
    ("all-minilm:latest", 45_960_996, "bert", "23M", "F16", 512,
     (6, 0, 32, 384), ("embedding",), 1.0),
)  # fmt: skip

_DEFAULT_SHAPE: Shape = (32, 8, 128, 4096)
_LISTED = (
    "name", "digest", "size_bytes", "modified_at", "format", "family", "families",
    "parameter_size", "quantization", "capabilities", "context_length",
)  # fmt: skip


class SimModel:
    """One model of the simulated store, with what its memory and speed are computed from."""

    __slots__ = (
        "active_share",
        "capabilities",
        "context_length",
        "digest",
        "embedding_length",
        "families",
        "family",
        "format",
        "kv_bytes_per_token",
        "layers",
        "modified_at",
        "name",
        "parameter_size",
        "quantization",
        "shape",
        "size_bytes",
        "weights",
    )

    def __init__(self, fields: dict[str, Any], shape: Shape, active_share: float) -> None:
        layers, kv_heads, head_length, embedding_length = shape
        self.shape = shape
        self.name: str = fields["name"]
        self.digest: str = fields["digest"]
        self.weights: str = fields.get("weights") or digest_of("weights:" + fields["name"])
        """Digest of the blob with the weights; models made from one another share it."""
        self.size_bytes: int = fields["size_bytes"]
        self.modified_at: str = fields["modified_at"]
        self.format: str = fields["format"]
        self.family: str = fields["family"]
        self.families: list[str] = list(fields["families"])
        self.parameter_size: str = fields["parameter_size"]
        self.quantization: str = fields["quantization"]
        self.capabilities: list[str] = list(fields["capabilities"])
        self.context_length: int = fields["context_length"]
        self.layers = layers
        self.embedding_length = embedding_length
        self.kv_bytes_per_token = layers * kv_heads * head_length * 2 * 2  # K and V, f16
        self.active_share = active_share

    def vram_bytes(self, num_ctx: int, slots: int) -> int:
        """Weights, KV cache of all slots, and the compute buffers."""
        kv_bytes = self.kv_bytes_per_token * num_ctx * slots
        return self.size_bytes + kv_bytes + self.size_bytes // 16 + (64 << 20)

    def fields(self) -> dict[str, Any]:
        """As `catalogue()` lists a model."""
        listed = {name: getattr(self, name) for name in _LISTED}
        return {**listed, "path": "", "chat_template": ""}

    def to_json(self) -> dict[str, Any]:
        """All there is to know: `from_json` makes the same model of it."""
        shape = list(self.shape)
        more = {"weights": self.weights, "shape": shape, "active_share": self.active_share}
        return {**self.fields(), **more}

    def details(self) -> dict[str, Any]:
        """The `details` object of Ollama's tags, ps and show."""
        return {
            "parent_model": "",
            "format": self.format,
            "family": self.family,
            "families": self.families,
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization,
        }


def canonical(name: str) -> str:
    """The spelling by which names are compared: lower case, defaults dropped, tag added."""
    short = name.strip().lower()
    for prefix in ("registry.ollama.ai/library/", "registry.ollama.ai/", "library/"):
        if short.startswith(prefix):
            short = short[len(prefix) :]
            break
    return short if ":" in short.rsplit("/", 1)[-1] else short + ":latest"


def catalogue() -> list[dict[str, Any]]:
    """What a simulated store holds, as the agent's `/v1/models` lists it."""
    return [_fields(row) for row in _TABLE]


def from_json(value: Any) -> SimModel:
    """
    Raises:
        ValueError: it was not made by `to_json`.
    """
    try:
        layers, kv_heads, head_length, embedding_length = value["shape"]
        shape = (int(layers), int(kv_heads), int(head_length), int(embedding_length))
        return SimModel(value, shape, float(value["active_share"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a simulated model: {error!r}") from error


def registry(name: str) -> SimModel | None:
    """What a pull of this name brings; None when the pretended registry does not have it."""
    row = next((row for row in (*_TABLE, *_REGISTRY) if row[0] == canonical(name)), None)
    return None if row is None else SimModel(_fields(row), row[6], row[8])


def open_catalogue(entries: list[Any] | None) -> dict[str, SimModel]:
    """The models of an engine by canonical name.

    Args:
        entries: model names of the catalogue, or objects with the fields of `catalogue()`;
            absent fields come from the catalogue's entry of that name, else from defaults.
            None is the whole catalogue.

    Raises:
        ValueError: an entry is not a name or an object with a name.
    """
    rows = {row[0]: row for row in _TABLE}
    models: dict[str, SimModel] = {}
    for entry in rows if entries is None else entries:
        if isinstance(entry, str):
            given: dict[str, Any] = {"name": entry}
        elif isinstance(entry, dict) and isinstance(entry.get("name"), str):
            given = entry
        else:
            raise ValueError(f"models: expected a name or an object with a name, got {entry!r}")
        name = canonical(given["name"])
        row = rows.get(name)
        if row is None:
            if isinstance(entry, str):
                raise ValueError(f"models: {entry!r} is not in the simulated catalogue")
            fields, shape, active_share = _unknown(name), _DEFAULT_SHAPE, 1.0
        else:
            fields, shape, active_share = _fields(row), row[6], row[8]
        fields.update({k: v for k, v in given.items() if k in fields and v not in (None, "")})
        fields["name"] = name
        models[name] = SimModel(fields, shape, active_share)
    return models


def digest_of(name: str) -> str:
    """A digest made from a name."""
    return "sha256:" + hashlib.sha256(b"simulated:" + name.encode()).hexdigest()


def _fields(
    row: Row,
) -> dict[str, Any]:
    name, size_bytes, family, parameters, quantization, context, _, capabilities, _ = row
    return {
        "name": name,
        "digest": digest_of(name),
        "size_bytes": size_bytes,
        "modified_at": _MODIFIED_AT,
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": parameters,
        "quantization": quantization,
        "capabilities": list(capabilities),
        "context_length": context,
        "path": "",
        "chat_template": "",
    }


def _unknown(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "digest": digest_of(name),
        "size_bytes": 4_000_000_000,
        "modified_at": _MODIFIED_AT,
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "",
        "quantization": "Q4_K_M",
        "capabilities": list(_GENERAL),
        "context_length": 32768,
        "path": "",
        "chat_template": "",
    }
