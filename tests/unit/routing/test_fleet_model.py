"""The default policy beside plain routers, over a fleet of events: same code, no clock, no socket.

Bounds are looser than those of tests/bench/routing.py, which is run by hand over real HTTP.
"""

from __future__ import annotations

import pytest

from olol_tui.routing.policy import POLICIES
from tests.bench.fleet_model import FleetModel, Outcome
from tests.bench.references import REFERENCES, reference
from tests.bench.workload import arrivals


def passes(model: FleetModel, count: int, rate: float) -> list[Outcome]:
    """From cold, and again on the fleet as it is then."""
    return [model.run(arrivals(count, rate)) for _ in range(2)]


def test_at_saturation_waits_are_shorter_and_the_work_is_done_sooner() -> None:
    ours = passes(FleetModel(load_bytes_s=1.5e9), 300, 2.0)
    theirs = [passes(FleetModel(reference(n), load_bytes_s=1.5e9), 300, 2.0) for n in REFERENCES]
    for round_, (ttft, makespan) in enumerate(((0.7, 0.8), (0.4, 0.75))):
        assert ours[round_].p(0.95) <= ttft * min(one[round_].p(0.95) for one in theirs)
        best_s = min(one[round_].makespan_s for one in theirs)
        assert ours[round_].makespan_s <= makespan * best_s


def test_below_saturation_nobody_waits_longer_than_by_a_plain_router() -> None:
    ours = passes(FleetModel(), 120, 0.3)
    for name in REFERENCES:
        theirs = passes(FleetModel(reference(name)), 120, 0.3)
        assert ours[1].p(0.95) <= 1.05 * theirs[1].p(0.95), name


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_policy_serves_everybody(name: str) -> None:
    outcome = FleetModel(POLICIES[name]).run(arrivals(120, 2.0))
    assert len(outcome.ttft_s) == 120
