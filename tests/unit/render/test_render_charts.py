"""Bars, graphs and the histories behind them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from olol_tui.console.sample import panes_fleet
from olol_tui.render.charts import bar, graph, level, spark
from olol_tui.render.history import CAPACITY, FleetHistory, Ring

LEVELS = st.binary(max_size=80)


@given(LEVELS, st.integers(0, 60))
def test_a_sparkline_is_as_wide_as_asked(levels: bytes, width: int) -> None:
    assert len(spark(levels, width)) == width


@given(LEVELS, st.integers(0, 60), st.integers(1, 8))
def test_a_graph_has_its_rows_and_width(levels: bytes, width: int, rows: int) -> None:
    drawn = graph(levels, width, rows)
    assert len(drawn) == rows
    assert {len(line) for line in drawn} == {width}


def test_no_sample_is_blank_and_zero_is_not() -> None:
    assert spark(bytes((0, level(0.0), level(0.5), level(1.0))), 5) == "  ▁▄█"
    assert level(None) == 0


def test_a_full_graph_is_full_and_a_half_one_half() -> None:
    assert graph(bytes((255,)), 1, 3) == ["█", "█", "█"]
    assert graph(bytes((level(0.5),)), 1, 2) == [" ", "█"]
    assert graph(bytes((level(0.0),)), 1, 2) == [" ", "▁"]


@given(st.one_of(st.none(), st.floats(-1, 3)), st.integers(0, 50))
def test_a_bar_is_as_wide_as_asked(fraction: float | None, width: int) -> None:
    full, empty = bar(fraction, width)
    assert len(full) + len(empty) == width


def test_a_bar_shows_that_something_is_there() -> None:
    assert bar(0.001, 10) == ("╸", "─" * 9)
    assert bar(0.0, 4) == ("", "────")
    assert bar(0.5, 4) == ("━━", "──")
    assert bar(1.0, 4) == ("━━━━", "")


def test_a_ring_keeps_the_newest_samples() -> None:
    ring = Ring()
    for n in range(3 * CAPACITY):
        ring.append(n % 256)
    newest = [n % 256 for n in range(3 * CAPACITY)][-CAPACITY:]
    assert list(ring.tail(CAPACITY)) == newest
    assert ring.tail(0) == b""


def test_history_takes_one_sample_a_second_of_the_fleets_clock() -> None:
    history = FleetHistory()
    fleet = panes_fleet(300.0)
    key = ("n01", fleet.nodes[0].devices[0].uuid)
    assert history.feed(fleet)
    assert not history.feed(replace(fleet, seq=1, now_s=300.4))
    assert history.feed(replace(fleet, now_s=301.0))
    assert len(history.device(key).util.tail(10)) == 2


def test_stale_telemetry_leaves_a_gap_not_a_zero() -> None:
    history = FleetHistory()
    fleet = panes_fleet(300.0)
    stale = replace(fleet.nodes[0], stale=True)
    history.feed(replace(fleet, nodes=(stale, fleet.nodes[1])))
    key = ("n01", fleet.nodes[0].devices[0].uuid)
    assert history.device(key).util.tail(1) == b"\0"


def test_devices_that_left_are_forgotten() -> None:
    history = FleetHistory()
    fleet = panes_fleet(300.0)
    history.feed(fleet)
    history.feed(replace(fleet, now_s=301.0, nodes=fleet.nodes[:1]))
    assert history.device(("n02", fleet.nodes[1].devices[0].uuid)).util.tail(5) == b""


def test_a_clock_that_starts_again_is_sampled() -> None:
    """An attached console sees the core restart: its clock may run backwards."""
    history = FleetHistory()
    history.feed(panes_fleet(300.0))
    assert history.feed(replace(panes_fleet(300.0), now_s=2.0))
