"""Simulated cards follow what the engines on them do."""

from __future__ import annotations

from typing import Any

import pytest

from olol_tui.agent.devices import open_devices
from olol_tui.agent.devices.simulated import SimulatedSource

GB = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def work(uuids: list[str], used_bytes: int = 10 * GB, util_percent: float = 90) -> dict[str, Any]:
    return {"devices": uuids, "used_bytes": used_bytes, "util_percent": util_percent}


def test_idle_cards_are_cool_and_nearly_empty(clock: Clock) -> None:
    source = SimulatedSource({"gpus": 2, "vram_bytes": 24 * GB, "name": "SIM 24G"}, clock)
    first, second = source.sample()
    assert first["name"] == "SIM 24G" and first["vendor"] == "simulated"
    assert first["uuid"] != second["uuid"] and [first["index"], second["index"]] == [0, 1]
    assert first["util_percent"] == 0 and first["used_bytes"] < GB
    assert first["power_w"] < 40 and first["temp_c"] < 45 and first["clock_mhz"] < 500


def test_power_follows_at_once_and_temperature_with_a_lag(clock: Clock) -> None:
    source = SimulatedSource({"gpus": 1}, clock)
    uuid = source.inventory()[0]["uuid"]
    cool = source.sample()[0]
    source.set_engine_stats([work([uuid])])
    clock.now = 5
    soon = source.sample()[0]
    assert soon["util_percent"] == 90 and soon["used_bytes"] > 10 * GB
    assert soon["power_w"] > 250 and soon["clock_mhz"] > 1500
    assert cool["temp_c"] < soon["temp_c"] < 60
    clock.now = 120
    hot = source.sample()[0]
    assert 70 < hot["temp_c"] < hot["temp_limit_c"]
    source.set_engine_stats([])
    clock.now = 125
    after = source.sample()[0]
    assert after["util_percent"] == 0 and after["power_w"] < 60 and after["temp_c"] > 60
    clock.now = 400
    assert source.sample()[0]["temp_c"] < 45


def test_an_engine_over_two_cards_lies_on_both_and_two_engines_add_up(clock: Clock) -> None:
    source = SimulatedSource({"gpus": 2}, clock)
    left, right = (device["uuid"] for device in source.inventory())
    empty = source.sample()[0]["used_bytes"]
    source.set_engine_stats([work([left, right], 8 * GB, 50), work([left], 2 * GB, 50)])
    first, second = source.sample()
    assert first["used_bytes"] == empty + 6 * GB and first["util_percent"] == 75
    assert second["used_bytes"] == empty + 4 * GB and second["util_percent"] == 50


def test_reading_often_or_seldom_gives_the_same_temperature() -> None:
    results = []
    for steps in (1, 50):
        clock = Clock()
        source = SimulatedSource({"gpus": 1}, clock)
        source.set_engine_stats([work([source.inventory()[0]["uuid"]])])
        for step in range(steps):
            clock.now = 100 * (step + 1) / steps
            device = source.sample()[0]
        results.append(device["temp_c"])
    assert results[0] == pytest.approx(results[1], abs=1.0)


def test_cards_keep_their_uuid_and_nodes_with_seeds_have_different_ones() -> None:
    def uuids(**config: Any) -> list[str]:
        return [d["uuid"] for d in SimulatedSource({"gpus": 2, **config}).inventory()]

    assert uuids() == uuids()
    assert not set(uuids(seed="n1")) & set(uuids(seed="n2"))


def test_cards_may_differ() -> None:
    source = open_devices({"gpus": [{"name": "big", "vram_bytes": 80 * GB}, {}], "name": "small"})
    assert [d["name"] for d in source.inventory()] == ["big", "small"]
    assert source.inventory()[0]["vram_bytes"] == 80 * GB
    assert source.errors() == []


@pytest.mark.parametrize(
    "config", [{"gpus": 0}, {"gpus": "two"}, {"gpus": [3]}, {"gpus": 1, "vram_bytes": -1}]
)
def test_nonsense_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="simulated: "):
        open_devices(config)
