"""The default policy beside plain routers, over a fleet of events: same code, no clock, no socket.

Bounds are looser than those of tests/bench/routing.py, which is run by hand over real HTTP.
"""

from __future__ import annotations

from statistics import geometric_mean

import pytest

from olol_tui.routing.decision import Policy
from olol_tui.routing.policy import POLICIES, expected
from tests.bench.fleet_model import FleetModel, Outcome
from tests.bench.references import REFERENCES, reference
from tests.bench.workload import arrivals

DRAWS = range(1, 7)
"""Which model each request asks for: one draw may be lucky."""


def passes(policy: Policy | None, seed: int, count: int, rate: float) -> list[Outcome]:
    """From cold, and again on the fleet as it is then."""
    model = FleetModel(policy or expected, load_bytes_s=1.5e9)
    return [model.run(arrivals(count, rate, seed=seed)) for _ in range(2)]


def beside_the_best(seed: int, count: int, rate: float) -> tuple[float, ...]:
    """Ours over the best of the plain routers': p95 TTFT and makespan, cold and then warmed."""
    ours = passes(None, seed, count, rate)
    theirs = [passes(reference(name), seed, count, rate) for name in REFERENCES]
    ratios = []
    for turn, one in enumerate(ours):
        ratios.append(one.p(0.95) / min(each[turn].p(0.95) for each in theirs))
        ratios.append(one.makespan_s / min(each[turn].makespan_s for each in theirs))
    return tuple(ratios)


def test_at_saturation_waits_are_shorter_and_the_work_is_done_sooner() -> None:
    drawn = [beside_the_best(seed, 300, 2.0) for seed in DRAWS]
    cold_ttft, cold_span, warm_ttft, warm_span = (
        geometric_mean(one) for one in zip(*drawn, strict=True)
    )
    assert cold_ttft <= 0.5
    assert cold_span <= 0.8
    assert warm_ttft <= 0.35
    assert warm_span <= 0.72


def test_below_saturation_nobody_waits_longer_than_by_a_plain_router() -> None:
    for seed in DRAWS:
        _, _, warm_ttft, warm_span = beside_the_best(seed, 120, 0.3)
        assert warm_ttft <= 1.05, seed
        assert warm_span <= 1.05, seed


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_serves_everybody(name: str) -> None:
    outcome = FleetModel(POLICIES[name]).run(arrivals(120, 2.0))
    assert len(outcome.ttft_s) == 120
