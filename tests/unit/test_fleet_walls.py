"""A node's clock that goes wrong, read in our time."""

from __future__ import annotations

import pytest

from olol_tui.fleet.walls import ahead_s, in_our_time
from olol_tui.render.node_facts import clock_words

DAY_S = 86400.0


@pytest.mark.parametrize(
    ("told", "ahead"),
    [
        (1000.0 + DAY_S, DAY_S),
        (1000.4 - DAY_S, -DAY_S),
        (1004.0, 0.0),
        (0.0, 0.0),
        ("2026-01-01", 0.0),
    ],
)
def test_how_far_a_clock_is_ahead(told: float | str, ahead: float) -> None:
    assert ahead_s(told, 1000.0) == ahead


@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ("2026-03-02T12:00:05.123456789+00:00", "2026-03-01T12:00:05.123456+00:00"),
        ("2026-03-02T12:00:05Z", "2026-03-01T12:00:05+00:00"),
        ("", ""),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("soon", "soon"),
    ],
)
def test_its_moments_in_our_time(told: str, ours: str) -> None:
    assert in_our_time(told, DAY_S) == ours
    assert in_our_time(told, 0.0) == told


def test_it_is_told_in_words() -> None:
    assert clock_words(0.0) == ""
    assert clock_words(DAY_S) == "24.0 h ahead of ours; times are shown in ours"
    assert clock_words(-300.0) == "5 min behind ours; times are shown in ours"
    assert clock_words(30.0) == "30 s ahead of ours; times are shown in ours"
