"""Memory before and after a placement, as the picker shows it."""

from __future__ import annotations

from dataclasses import replace

from olol_tui.console.sample import cpu_fleet, panes_fleet
from olol_tui.fleet.snapshot import Fleet
from olol_tui.render.fit import judge_on
from olol_tui.render.tiles import Tile, build_tiles

FLEET = panes_fleet(300.0)


def on(label: str, fleet: Fleet = FLEET) -> Tile:
    return next(t for t in build_tiles(fleet) if t.label == label)


def test_what_fits_adds_up() -> None:
    fit = judge_on("phi4:14b", on("n01/gpu3"), FLEET)
    assert fit.verdict == "fits"
    assert fit.before_bytes is not None
    assert fit.after_bytes == fit.before_bytes + fit.need_bytes


def test_an_idle_model_is_evicted_and_a_pinned_one_never() -> None:
    fit = judge_on("mixtral:8x22b", on("n01/gpu1"), FLEET)
    assert (fit.verdict, fit.goes) == ("evicts", ("gemma3:27b",))
    assert fit.total_bytes is not None
    assert fit.after_bytes is not None
    assert fit.after_bytes <= fit.total_bytes


def test_a_busy_model_is_waited_for() -> None:
    fit = judge_on("mixtral:8x22b", on("n02/gpu1"), FLEET)
    assert fit.verdict == "waits"
    assert "gpt-oss:120b" in fit.words


def test_too_big_already_here_and_unknown_cannot_be_chosen() -> None:
    assert judge_on("llama3.1:405b", on("n01/gpu3"), FLEET).verdict == "never"
    assert judge_on("qwen3:8b", on("n01/gpu0"), FLEET).verdict == "loaded"
    absent = judge_on("nobody:1b", on("n01/gpu0"), FLEET)
    assert absent.verdict == "absent"
    assert not absent.possible


def test_a_replica_seen_elsewhere_is_better_than_a_guess() -> None:
    seen = judge_on("gpt-oss:120b", on("n01/gpu3"), FLEET)
    loaded = FLEET.nodes[1].engines[0].loaded[0]
    assert seen.need_bytes == loaded.size_bytes


def test_a_device_that_does_not_tell_its_memory() -> None:
    node = FLEET.nodes[0]
    silent = replace(node.devices[3], vram_bytes=None, used_bytes=None)
    fleet = replace(FLEET, nodes=(replace(node, devices=(*node.devices[:3], silent)),))
    fit = judge_on("phi4:14b", on("n01/gpu3", fleet), fleet)
    assert (fit.verdict, fit.after_bytes, fit.possible) == ("unknown", None, True)


def test_a_runner_node_places_on_its_cpu() -> None:
    fleet = cpu_fleet(300.0)
    empty = replace(fleet, nodes=(replace(fleet.nodes[0], engines=()),))
    fit = judge_on("smollm2:135m", on("local/cpu", empty), empty)
    assert fit.verdict == "fits"
