"""Whether a model fits a device, and what would have to go."""

from __future__ import annotations

import pytest

from olol_tui.fleet.snapshot import Model
from olol_tui.placement.fit import Estimate, Resident, Room, estimate, judge, parameters_billions

GIB = 2**30


def need(gib: float) -> Estimate:
    return Estimate(int(gib * GIB), 0, 0)


def room(free_gib: float, *residents: Resident, total_gib: float = 24) -> Room:
    return Room("n1/gpu0", int(total_gib * GIB), int(free_gib * GIB), residents)


def resident(name: str, gib: float, **more: object) -> Resident:
    return Resident(name, int(gib * GIB), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "size_bytes", "billions"),
    [("8.2B", 0, 8.2), ("135M", 0, 0.135), ("8x7B", 0, 56), ("", 4_900_000_000, 8.0)],
)
def test_parameters_are_read_or_guessed(parameters: str, size_bytes: int, billions: float) -> None:
    model = Model("m", parameter_size=parameters, size_bytes=size_bytes)
    assert parameters_billions(model) == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    ("parameters", "kv_bytes_per_token"),
    [("135M", 23_040), ("8B", 131_072), ("8.2B", 147_456), ("32.8B", 262_144), ("70.6B", 327_680)],
)
def test_the_cache_is_guessed_within_a_fifth(parameters: str, kv_bytes_per_token: int) -> None:
    model = Model("m", parameter_size=parameters, size_bytes=GIB)
    assert estimate(model, num_ctx=1000).kv_bytes / 1000 == pytest.approx(
        kv_bytes_per_token, rel=0.2
    )


def test_context_is_bounded_by_training_and_multiplied_by_slots() -> None:
    model = Model("m", parameter_size="8B", size_bytes=GIB, context_length=2048)
    assert estimate(model, num_ctx=8192) == estimate(model, num_ctx=2048)
    one, four = estimate(model, num_ctx=1024), estimate(model, num_ctx=1024, slots=4)
    assert four.kv_bytes == pytest.approx(4 * one.kv_bytes, abs=4)
    embeds = Model("m", parameter_size="137M", size_bytes=GIB, capabilities=("embedding",))
    assert estimate(embeds, num_ctx=2048).kv_bytes == 0


def test_a_measured_size_beats_every_estimate() -> None:
    model = Model("m", parameter_size="8B", size_bytes=GIB)
    measured = estimate(model, num_ctx=1024, measured_bytes=7 * GIB)
    assert measured.total_bytes == 7 * GIB and "measured" in measured.sentence()


def test_what_is_too_big_for_the_empty_device_is_refused_with_numbers() -> None:
    fit = judge("llama3.3:70b", need(43), room(24))
    assert fit.is_refused
    assert fit.reason.startswith("llama3.3:70b needs about 43 GiB")
    assert fit.reason.endswith("n1/gpu0 has 24 GiB when empty")


def test_enough_free_memory_asks_nobody_to_go() -> None:
    fit = judge("a:1", need(5), room(10, resident("b:1", 14)))
    assert (fit.verdict, fit.goes) == ("fits", ())


def test_idle_models_go_soonest_expiry_first_and_only_as_many_as_needed() -> None:
    late = resident("late:1", 6, expires_at="2026-01-01T00:09:00Z")
    soon = resident("soon:1", 6, expires_at="2026-01-01T00:01:00Z")
    never = resident("never:1", 6)
    fit = judge("a:1", need(10), room(5, late, never, soon))
    assert (fit.verdict, fit.goes) == ("evicts", ("soon:1",))
    assert "soon:1 (6 GiB) will go" in fit.reason
    fit = judge("a:1", need(16), room(5, late, never, soon))
    assert fit.goes == ("soon:1", "late:1")


def test_a_busy_model_is_waited_for_after_the_idle_ones_went() -> None:
    busy, idle = resident("busy:1", 12, busy=True), resident("idle:1", 4)
    fit = judge("a:1", need(18), room(8, busy, idle))
    assert fit.verdict == "waits"
    assert "waits until busy:1 (12 GiB) is idle, idle:1 (4 GiB) will go" in fit.reason


def test_a_pinned_model_is_never_asked_to_go() -> None:
    fit = judge("a:1", need(18), room(8, resident("pin:1", 12, pinned=True), resident("b:1", 4)))
    assert fit.is_refused
    assert "at most 12 GiB can be freed" in fit.reason and "pin:1 (12 GiB) stays" in fit.reason


def test_what_a_split_holds_is_not_for_others() -> None:
    here = Room("n1/gpu0", 24 * GIB, 8 * GIB, (resident("b:1", 4),), lent_bytes=12 * GIB)
    fit = judge("a:1", need(18), here)
    assert fit.is_refused
    assert "at most 12 GiB can be freed on n1/gpu0: a split holds 12 GiB" in fit.reason


def test_memory_of_other_programs_warns_and_does_not_refuse() -> None:
    fit = judge("a:1", need(18), room(8))
    assert not fit.is_refused
    assert "other programs hold 16 GiB" in fit.reason


def test_what_is_there_already_and_what_tells_no_memory() -> None:
    assert judge("a:1", need(99), room(0, resident("a:1", 5))).verdict == "loaded"
    assert judge("a:1", need(99), Room("old/gpu0", None, None)).verdict == "unknown"
