"""What engines have shown they can do: tokens per second, service time, load bandwidth.

Pure: fed with the timing fields of finished replies, read by the policy. Averages are
exponential so that a throttled GPU is seen within a few requests.
"""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.25
"""Of the newest sample."""
_USUAL_WEIGHT = 0.05
PRIOR_PREFILL_TPS = 1000.0
PRIOR_DECODE_TPS = 40.0
PRIOR_SERVICE_S = 5.0
PRIOR_REPLY_TOKENS = 200.0
PRIOR_DECODE_BYTES_S = 400e9
"""Each token reads all the weights: memory bandwidth of a middling GPU."""
PRIOR_PREFILL_BYTES_S = 12e12
PRIOR_LOAD_BYTES_S = 1.5e9
_LOAD_FIXED_S = 1.0
MOST_TPS = 50_000.0
"""Above it a prompt was in the engine's cache, and says nothing about prefills."""
LEAST_PROMPT = 32
"""Tokens: a shorter prompt's time is mostly noise."""


@dataclass(slots=True)
class Speed:
    """Of one model on one engine."""

    prefill_tps: float = PRIOR_PREFILL_TPS
    decode_tps: float = PRIOR_DECODE_TPS
    service_s: float = PRIOR_SERVICE_S
    samples: int = 0
    usual_s: float = PRIOR_SERVICE_S
    """As `service_s`, over more requests: replies differ in length by tens of times, and where
    a model should be must not follow the last few of them."""

    def times(self, pace: float) -> Speed:
        """The same on an engine that is so many times as fast."""
        return Speed(
            self.prefill_tps * pace,
            self.decode_tps * pace,
            self.service_s / pace,
            self.samples,
            self.usual_s / pace,
        )


_PACED_AFTER = 4
"""Samples of a model before it says how engines compare."""
_PACE_WEIGHT = 0.1
_PACE_SPAN = 8.0


def _prior(size_bytes: int) -> Speed:
    """Of a model that nobody has served yet, by its size."""
    if not size_bytes:
        return _PRIOR
    decode_tps = min(120.0, max(4.0, PRIOR_DECODE_BYTES_S / size_bytes))
    return Speed(
        prefill_tps=min(6000.0, max(200.0, PRIOR_PREFILL_BYTES_S / size_bytes)),
        decode_tps=decode_tps,
        service_s=PRIOR_REPLY_TOKENS / decode_tps,
        usual_s=PRIOR_REPLY_TOKENS / decode_tps,
    )


_PRIOR = Speed()


class Speeds:
    """Learned speeds by (engine, model), load bandwidth by node."""

    __slots__ = ("_bandwidth", "_by_model", "_speeds", "pace")

    def __init__(self) -> None:
        self._by_model: dict[str, Speed] = {}
        self._speeds: dict[tuple[str, str], Speed] = {}
        self._bandwidth: dict[str, float] = {}
        self.pace: dict[str, float] = {}
        """Engine → its decode rate over the average of the same models elsewhere. To be read."""

    def of(self, engine: str, model: str, size_bytes: int = 0) -> Speed:
        """What is known of a model on an engine. One that never served it is taken for as fast
        as the others, corrected by how it compares with them on other models: a prior alone
        would keep it idle beside engines with a sample.

        Args:
            size_bytes: of the model, for a prior where nobody served it yet.
        """
        found = self._speeds.get((engine, model))
        if found is not None:
            return found
        known = self._by_model.get(model)
        if known is None:
            return _prior(size_bytes)
        pace = self.pace.get(engine)
        return known if pace is None else known.times(pace)

    def known(self, model: str) -> bool:
        """Whether anybody has served it yet."""
        return model in self._by_model

    def faster(self, engine: str) -> float:
        """How an engine's decoding compares with the others', 1.0 for an average or unknown
        one."""
        return self.pace.get(engine, 1.0)

    def knows(self, engine: str, model: str) -> bool:
        """Whether this engine has ever served that model."""
        return (engine, model) in self._speeds

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
        if prefill_tps and prefill_tps > MOST_TPS:
            prefill_tps = None
        all_ = self._by_model.get(model)
        if decode_tps and all_ is not None and all_.samples >= _PACED_AFTER:
            ratio = min(_PACE_SPAN, max(1 / _PACE_SPAN, decode_tps / all_.decode_tps))
            pace = self.pace.get(engine, 1.0)
            self.pace[engine] = pace + _PACE_WEIGHT * (ratio - pace)
        here = self._speeds.get((engine, model))
        if here is None:
            here = self._speeds[engine, model] = Speed()
        if all_ is None:
            all_ = self._by_model[model] = Speed()
        for speed in (here, all_):
            weight = _WEIGHT if speed.samples else 1.0
            speed.samples += 1
            speed.service_s += weight * (service_s - speed.service_s)
            speed.usual_s += max(_USUAL_WEIGHT, 1 / speed.samples) * (service_s - speed.usual_s)
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
