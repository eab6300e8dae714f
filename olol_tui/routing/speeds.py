"""What engines have shown they can do: tokens per second, service time, load bandwidth.

Pure: fed with the timing fields of finished replies, read by the policy. Averages are
exponential so that a throttled GPU is seen within a few requests.
"""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.25
"""Of the newest sample."""
PRIOR_PREFILL_TPS = 1000.0
PRIOR_DECODE_TPS = 40.0
PRIOR_SERVICE_S = 5.0
PRIOR_LOAD_BYTES_S = 1.5e9
_LOAD_FIXED_S = 1.0


@dataclass(slots=True)
class Speed:
    """Of one model on one engine."""

    prefill_tps: float = PRIOR_PREFILL_TPS
    decode_tps: float = PRIOR_DECODE_TPS
    service_s: float = PRIOR_SERVICE_S
    samples: int = 0


_PRIOR = Speed()


class Speeds:
    """Learned speeds by (engine, model), load bandwidth by node."""

    __slots__ = ("_bandwidth", "_by_model", "_speeds")

    def __init__(self) -> None:
        self._by_model: dict[str, Speed] = {}
        self._speeds: dict[tuple[str, str], Speed] = {}
        self._bandwidth: dict[str, float] = {}

    def of(self, engine: str, model: str) -> Speed:
        """What is known of a model on an engine. One that never served it is taken for as fast
        as the others: a prior alone would keep it idle beside engines with a sample."""
        found = self._speeds.get((engine, model))
        return found or self._by_model.get(model) or _PRIOR

    def served(
        self,
        engine: str,
        model: str,
        *,
        service_s: float,
        prefill_tps: float | None = None,
        decode_tps: float | None = None,
    ) -> None:
        """Learn from one finished request; a value the reply did not give stays as it was."""
        for speed in (
            self._speeds.setdefault((engine, model), Speed()),
            self._by_model.setdefault(model, Speed()),
        ):
            weight = _WEIGHT if speed.samples else 1.0
            speed.samples += 1
            speed.service_s += weight * (service_s - speed.service_s)
            if prefill_tps:
                speed.prefill_tps += weight * (prefill_tps - speed.prefill_tps)
            if decode_tps:
                speed.decode_tps += weight * (decode_tps - speed.decode_tps)

    def loaded(self, node: str, size_bytes: int, took_s: float) -> None:
        """Learn a node's load bandwidth from one finished load."""
        if size_bytes <= 0 or took_s <= 0:
            return
        sample = size_bytes / took_s
        known = self._bandwidth.get(node)
        self._bandwidth[node] = sample if known is None else known + _WEIGHT * (sample - known)

    def load_s(self, node: str, size_bytes: int) -> float:
        """Expected time to load a model of this size on a node; one that never loaded is taken
        for an average one."""
        known = self._bandwidth
        bandwidth = known.get(node)
        if bandwidth is None and known:
            bandwidth = sum(known.values()) / len(known)
        if bandwidth is None:
            return _LOAD_FIXED_S + size_bytes / PRIOR_LOAD_BYTES_S
        return size_bytes / bandwidth
