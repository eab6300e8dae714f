"""When a crashed engine is started again; the clock is an argument."""

from __future__ import annotations

from olol_tui.agent.backoff import Backoff
from olol_tui.agent.spec import Policy

PATIENT = Policy(crash_limit=100)


def test_it_doubles_to_a_minute() -> None:
    backoff = Backoff(PATIENT)
    assert [backoff.crashed(float(n), None) for n in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_healthy_minute_starts_it_anew() -> None:
    backoff = Backoff(PATIENT)
    assert [backoff.crashed(t, None) for t in (0.0, 1.0, 3.0)] == [1, 2, 4]
    assert backoff.crashed(50.0, 10.0) == 8, "ready for 40 s only"
    assert backoff.crashed(200.0, 100.0) == 1


def test_five_crashes_in_five_minutes_are_enough() -> None:
    backoff = Backoff(Policy())
    assert all(backoff.crashed(t, None) for t in (0.0, 10.0, 20.0, 30.0))
    assert backoff.crashed(299.0, None) is None
    assert backoff.crashes == 5


def test_slow_crashes_never_end_it() -> None:
    backoff = Backoff(Policy())
    assert all(backoff.crashed(n * 80.0, None) is not None for n in range(50))


def test_forgiven_is_forgotten() -> None:
    backoff = Backoff(Policy())
    for n in range(5):
        backoff.crashed(float(n), None)
    backoff.forgive()
    assert backoff.crashed(10.0, None) == 1
