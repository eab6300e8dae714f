"""`options` of an Ollama request as llama-server's sampling fields.

llama-server's own defaults differ (top_p 0.95, min_p 0.05), so Ollama's are always sent: a
client that moves between the two kinds of engine must get the same sampling. Ollama's
current defaults (`api.DefaultOptions`): temperature 0.8, top_k 40, top_p 0.9, min_p 0,
typical_p 1, repeat_last_n 64, repeat_penalty 1.0 (1.1 in old releases), num_keep 4,
num_predict -1, seed -1. `num_ctx` and the other load-time options belong to the engine's
command line and are checked for type only; unknown options are ignored, as there.
"""

from __future__ import annotations

import math
from typing import Any

from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.dialects.fields import Fields

_DEFAULTS: dict[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_last_n": 64,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "n_keep": 4,
    "n_predict": -1,
}

_FLOATS = {
    name: name
    for name in (
        "temperature",
        "top_p",
        "min_p",
        "typical_p",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
        "mirostat_tau",
        "mirostat_eta",
    )
}
_WHOLES = {
    "top_k": "top_k",
    "seed": "seed",
    "repeat_last_n": "repeat_last_n",
    "num_predict": "n_predict",
    "num_keep": "n_keep",
    "mirostat": "mirostat",
}
_LOAD_TIME_WHOLES = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict"}
)
_LOAD_TIME_FLAGS = frozenset({"use_mmap"})

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1
_FLOAT32_MAX = 3.4028234663852886e38
_REPEAT_WINDOW_MAX = 131_072
"""The engine allocates its repeat window up front: 512 KiB here, 8 GiB if a client could say."""


def sampling(fields: Fields, *, context_length: int | None) -> dict[str, Any]:
    """llama-server's fields for a request's `options`, Ollama's defaults filled in.

    Args:
        context_length: of the model, tokens; what `repeat_last_n: -1` looks back over.

    Raises:
        BadRequest: an option has the wrong type.
    """
    wanted = dict(_DEFAULTS)
    for name, value in fields.table("options").items():
        if value is None:
            continue
        if name in _FLOATS:
            wanted[_FLOATS[name]] = _float(name, value)
        elif name in _WHOLES:
            wanted[_WHOLES[name]] = _whole(name, value)
        elif name == "stop":
            stops = [text for text in _strings(name, value) if text]
            if stops:
                wanted["stop"] = stops
        elif name in _LOAD_TIME_WHOLES:
            _whole(name, value)
        elif name in _LOAD_TIME_FLAGS and not isinstance(value, bool):
            raise BadRequest(f'option "{name}" must be of type boolean')
    # Ollama's -1 (until it stops) and -2 (until the context is full) are one here: an engine
    # without context shift ends at the end of its context, and refuses any other negative.
    wanted["n_predict"] = max(-1, min(wanted["n_predict"], _INT32_MAX))
    window = wanted["repeat_last_n"]
    if window < 0:
        window = context_length or 4096
    wanted["repeat_last_n"] = min(window, _REPEAT_WINDOW_MAX)
    return wanted


def _float(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f'option "{name}" must be of type float32')
    if not math.isfinite(value):
        raise BadRequest(f'option "{name}" must be of type float32')
    return max(-_FLOAT32_MAX, min(float(value), _FLOAT32_MAX))


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f'option "{name}" must be of type integer')
    if not math.isfinite(value):
        raise BadRequest(f'option "{name}" must be of type integer')
    # A fraction is cut off, as Ollama does; out of range, the nearest number it could hold.
    return max(-_INT64_MAX, min(int(value), _INT64_MAX))


def _strings(name: str, value: object) -> list[str]:
    if not isinstance(value, list):
        raise BadRequest(f'option "{name}" must be of type array')
    if not all(isinstance(item, str) for item in value):
        raise BadRequest(f'option "{name}" must be of an array of strings')
    return value
