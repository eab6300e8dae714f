"""Configuration of one simulated engine, from the JSON of its command line."""

from __future__ import annotations

import math
from typing import Any

from .keep_alive import DurationError, parse_keep_alive

_BANDWIDTH_BYTES_S = 560e9
"""Of a 24 GB class card, as far as decoding reaches it: sets the rate of models by size."""


class Settings:
    """What an engine simulates. Every attribute is a key of the configuration."""

    __slots__ = (
        "blob_bytes_s",
        "decode_tps",
        "keep_alive_s",
        "load_bytes_s",
        "max_queue",
        "models",
        "num_ctx",
        "prefill_tps",
        "pull_bytes_s",
        "reply_tokens",
        "seed",
        "slots",
        "slowdown",
        "speedup",
        "store",
        "tokens_per_piece",
        "vram_bytes",
    )

    def __init__(self, config: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: a value has the wrong type or range; names the key.
        """
        self.vram_bytes = int(_number(config, "vram_bytes", 24 << 30, 1))
        """Memory of all its devices together."""
        self.slots = int(_number(config, "slots", 1, 1))
        """Requests of one model it runs at once."""
        self.num_ctx = int(_number(config, "num_ctx", 4096, 1))
        """Context of requests that do not ask for one."""
        self.speedup = _number(config, "speedup", 1.0, 0.001)
        """How much faster than real everything here happens: for benchmarks."""
        self.tokens_per_piece = _number(config, "tokens_per_piece", 1.0, 1)
        """How many tokens each one that is written stands for: long replies, short streams."""
        self.load_bytes_s = _number(config, "load_bytes_s", 2e9, 1) * self.speedup
        self.prefill_tps = _rate(config, "prefill_tps")
        """Prompt tokens a second; None: by the size of the model."""
        self.decode_tps = _rate(config, "decode_tps")
        """Reply tokens a second of a request that is alone; None: by the size of the model."""
        self.slowdown = _number(config, "slowdown", 0.07, 0)
        """Each further request that decodes makes all of them slower by this share."""
        self.max_queue = int(_number(config, "max_queue", 512, 1))
        """Requests that may wait for a load, as OLLAMA_MAX_QUEUE."""
        self.pull_bytes_s = _number(config, "pull_bytes_s", 250e6, 1)
        """Speed of the pretended link to the registry."""
        self.blob_bytes_s = _rate(config, "blob_bytes_s")
        """How fast an uploaded blob is taken in; None: as fast as it comes."""
        store = config.get("store") or ""
        if not isinstance(store, str):
            raise ValueError(f"store: expected a path, got {store!r}")
        self.store = store
        """Directory of a store that several engines share; empty: in memory, of this one."""
        self.reply_tokens = _span(config)
        """Least and most tokens of a reply that ends by itself."""
        self.models: list[Any] | None = config.get("models")
        if self.models is not None and not isinstance(self.models, list):
            raise ValueError("models: expected a list or null")
        seed = config.get("seed")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise ValueError("seed: expected an integer or null")
        self.seed: int | None = seed
        """Makes requests without a seed of their own repeatable; None: they differ."""
        try:
            keep_alive = parse_keep_alive(config.get("keep_alive"))
        except DurationError as error:
            raise ValueError(f"keep_alive: {error}") from error
        self.keep_alive_s = 300.0 if keep_alive is None else keep_alive

    def decode_rate(self, size_bytes: int, active_share: float) -> float:
        """Tokens a second of one request alone."""
        rate = self.decode_tps
        if rate is None:
            rate = min(120.0, max(4.0, _BANDWIDTH_BYTES_S / (size_bytes * active_share)))
        return rate * self.speedup / self.tokens_per_piece

    def prefill_rate(self, size_bytes: int, active_share: float) -> float:
        """Prompt tokens a second."""
        rate = self.prefill_tps
        if rate is None:
            rate = min(9000.0, max(250.0, 16e12 / (size_bytes * active_share)))
        return rate * self.speedup


def _number(config: dict[str, Any], key: str, default: float, least: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key}: expected a number, got {value!r}")
    if value < least:
        raise ValueError(f"{key}: expected at least {least:g}, got {value:g}")
    return value


def _rate(config: dict[str, Any], key: str) -> float | None:
    if config.get(key) is None:
        return None
    return _number(config, key, 0, 0.001)


def _span(config: dict[str, Any]) -> list[int]:
    value = config.get("reply_tokens", [60, 220])
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value, value]
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        or not 1 <= value[0] <= value[1] <= 100_000
    ):
        raise ValueError("reply_tokens: expected a number or [least, most] of 1..100000")
    return [value[0], value[1]]
