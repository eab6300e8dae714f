"""What engines really took, so that the next estimate is better.

Pure: a frozen value that every observation replaces by a new one. Weights and KV cache are
computed exactly and never learned; compute buffers and what a process takes by itself are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

MIB = 2**20
_USUAL_OVERHEAD_BYTES: dict[str, int] = {"cpu": 32 * MIB, "simulated": 0}
_GPU_OVERHEAD_BYTES = 450 * MIB
"""Of one process on a GPU beside its buffers: context, kernels, cuBLAS; 300 to 600 MiB."""
_LOWEST, _HIGHEST = 0.5, 8.0
"""Factors beyond these come from a log that was read wrongly."""
_FORGET = 0.2
"""Share of a lower observation that is believed at once; a higher one is believed wholly."""
_MOST_OVERHEAD_BYTES = 4 * 2**30
_MOST_LOADS = 512
"""Models with their settings that are remembered each by itself, the latest."""


@dataclass(frozen=True, slots=True)
class Learned:
    """Corrections of the estimates. Encoded as JSON by whoever keeps it."""

    compute: Mapping[str, float] = field(default_factory=dict)
    """Logged by estimated compute buffers, by architecture; `*` for all others."""
    overhead: Mapping[str, int] = field(default_factory=dict)
    """Bytes of a process beside its buffers, by the device's vendor."""
    loads: Mapping[str, float] = field(default_factory=dict)
    """As `compute`, of one model with one setting of an engine, as it was loaded last."""

    def knows(self, load: str) -> bool:
        """Whether exactly this was loaded before."""
        return load in self.loads

    def compute_factor(self, architecture: str, load: str = "") -> float:
        known = self.loads.get(load)
        if known is not None:
            return known
        return self.compute.get(architecture, self.compute.get("*", 1.0))

    def overhead_bytes(self, vendor: str) -> int:
        usual = _USUAL_OVERHEAD_BYTES.get(vendor, _GPU_OVERHEAD_BYTES)
        return self.overhead.get(vendor, usual)


@dataclass(frozen=True, slots=True)
class Observed:
    """One device of a loaded model: estimated with no correction, and as it turned out."""

    architecture: str
    vendor: str
    estimated_compute_bytes: int
    logged_compute_bytes: int
    overhead_bytes: int | None = None
    """Memory of the process on the device less all buffers that it logged; None if not measured."""


def learn(before: Learned, observed: Observed) -> Learned:
    """The corrections after one more observation: quick to ask for more, slow to ask for less."""
    compute, overhead = dict(before.compute), dict(before.overhead)
    if observed.estimated_compute_bytes > 0 and observed.logged_compute_bytes > 0:
        factor = observed.logged_compute_bytes / observed.estimated_compute_bytes
        if _LOWEST <= factor <= _HIGHEST:
            for key in (observed.architecture, "*"):
                compute[key] = _towards(compute.get(key), factor)
    given = observed.overhead_bytes
    if given is not None and 0 <= given <= _MOST_OVERHEAD_BYTES:
        overhead[observed.vendor] = int(_towards(overhead.get(observed.vendor), given))
    return replace(before, compute=compute, overhead=overhead)


def learn_load(before: Learned, load: str, observed: Sequence[Observed]) -> Learned:
    """The corrections after a model was loaded, from all its devices.

    What it takes with the same settings is believed as it is, also when it is less: the same
    build of the engine logs the same again, and another one replaces it.
    """
    after = before
    for one in observed:
        after = learn(after, one)
    factors = [
        min(max(one.logged_compute_bytes / one.estimated_compute_bytes, _LOWEST), _HIGHEST)
        for one in observed
        if one.estimated_compute_bytes > 0 and one.logged_compute_bytes > 0
    ]
    if not factors:
        return after
    others = [(key, factor) for key, factor in before.loads.items() if key != load]
    return replace(after, loads=dict([*others, (load, max(factors))][-_MOST_LOADS:]))


def _towards(known: float | None, seen: float) -> float:
    if known is None or seen >= known:
        return seen
    return known + (seen - known) * _FORGET
