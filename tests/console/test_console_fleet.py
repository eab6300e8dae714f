"""The Fleet screen by keyboard: what is shown, and which Command a key ends in."""

from __future__ import annotations

from dataclasses import replace

from olol_tui.console.sample import hero_fleet, list_fleet, panes_fleet
from olol_tui.errors import PlacementError
from olol_tui.fleet.commands import Move, Place, SetPin, Unload
from olol_tui.fleet.snapshot import Operation
from tests.console.fake_link import NOW_S, FakeLink, running, shown


def uuid(link: FakeLink, node: str, label: str) -> str:
    device = link.fleet.device(node, label)
    assert device is not None
    return device.uuid


async def test_panes_show_models_pins_loading_and_faults() -> None:
    async with running() as (_, app, _link):
        text = shown(app)
        assert "n01/gpu0" in text
        assert "llama3.3:70b P" in text
        assert "▒ qwen3:32b" in text
        assert "41%" in text
        assert "exited, retry in 4s" in text
        assert "CUDA error: out of memory" in text
        assert "127.0.0.1:8000" in text


async def test_place_filters_shows_memory_and_submits_after_confirmation() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("right", "right", "right", "p")
        assert "Place a model on n01/gpu3" in shown(app)
        await pilot.press(*"phi4")
        text = shown(app)
        assert "phi4:14b" in text
        assert "llama3.3:70b" not in text
        assert "after" in text
        await pilot.press("enter")
        assert "Load phi4:14b on n01/gpu3?" in shown(app)
        assert link.commands == []
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == [
            Place(model="phi4:14b", node="n01", device=uuid(link, "n01", "gpu3"))
        ]


async def test_placing_that_evicts_says_so_and_starts_on_cancel() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("right", "p", *"mixtral")
        assert "evicts gemma3:27b" in shown(app)
        await pilot.press("enter")
        assert "▲ evicts gemma3:27b" in shown(app)
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == []
        await pilot.press("p", *"mixtral", "enter", "tab", "enter")
        await pilot.pause()
        assert [c.model for c in link.commands if isinstance(c, Place)] == ["mixtral:8x22b"]


async def test_what_does_not_fit_cannot_be_chosen() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("p", *"405b")
        assert "too big" in shown(app)
        await pilot.press("enter")
        assert "llama3.1:405b needs about" in shown(app)
        assert len(app.screen_stack) == 2
        await pilot.press("escape")
        assert link.commands == []


async def test_move_asks_which_model_then_arrows_choose_the_target() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("m")
        assert "Move which model?" in shown(app)
        await pilot.press("down", "enter")
        assert "arrows choose the device" in shown(app)
        await pilot.press("right", "right", "right")
        assert "→ n01/gpu3" in shown(app)
        assert "fits" in shown(app)
        await pilot.press("enter")
        assert "Move qwen3:8b from n01/gpu0 to n01/gpu3?" in shown(app)
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == [
            Move(
                model="qwen3:8b",
                node="n01",
                device=uuid(link, "n01", "gpu0"),
                to_node="n01",
                to_device=uuid(link, "n01", "gpu3"),
            )
        ]


async def test_escape_ends_a_move_without_a_command() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("m", "enter", "right", "escape")
        assert "arrows choose" not in shown(app)
        assert link.commands == []


async def test_unload_starts_on_cancel() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("down", "ctrl+d")
        assert "Unload gpt-oss:120b from n02/gpu0?" in shown(app)
        assert "2 of its requests run there now" in shown(app)
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == []
        await pilot.press("u", "tab", "enter")
        await pilot.pause()
        assert link.commands == [
            Unload(model="gpt-oss:120b", node="n02", device=uuid(link, "n02", "gpu0"))
        ]


async def test_unloading_what_is_pinned_wants_its_name_typed() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("u", "enter")
        assert "type llama3.3:70b to go on" in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands == []
        await pilot.press(*"llama3.3:70b", "enter")
        await pilot.pause()
        assert [type(c) for c in link.commands] == [Unload]


async def test_pin_and_unpin() -> None:
    async with running() as (pilot, _app, link):
        await pilot.press("P", "enter")
        await pilot.pause()
        await pilot.press("P", "down", "enter")
        await pilot.pause()
        device = uuid(link, "n01", "gpu0")
        assert link.commands == [
            SetPin(model="llama3.3:70b", node="n01", device=device, pinned=False),
            SetPin(model="qwen3:8b", node="n01", device=device, pinned=True),
        ]


async def test_a_refusal_is_shown_with_its_hint() -> None:
    async with running() as (pilot, app, link):
        link.refusal = PlacementError("n01/gpu3 is cordoned", hint="uncordon n01 first")
        await pilot.press("right", "right", "right", "p", *"phi4", "enter", "enter")
        await pilot.pause()
        toasts = [n.message for n in app._notifications]
        assert toasts == ["The model cannot be placed: n01/gpu3 is cordoned\nuncordon n01 first"]


async def test_an_operation_shows_progress_then_its_result_once() -> None:
    async with running() as (pilot, app, link):
        fleet = replace(
            link.fleet,
            operations=(Operation("op-1", "load phi4 on n01/gpu3", "running", 290, 0.3),),
        )
        link.publish(fleet)
        app.tick()
        await pilot.pause()
        assert "load phi4 on n01/gpu3" in shown(app)
        assert "30%" in shown(app)
        ended = Operation(
            "op-1", "load phi4 on n01/gpu3", "failed", 290, None, "no memory", "unload"
        )
        link.publish(replace(fleet, operations=(ended,)))
        app.tick()
        link.publish(replace(fleet, operations=(ended,), now_s=NOW_S + 1))
        app.tick()
        await pilot.pause()
        assert "no memory. unload" in shown(app)
        assert [n.message for n in app._notifications] == [
            "load phi4 on n01/gpu3: no memory\nunload"
        ]
        link.publish(replace(fleet, operations=(ended,), now_s=NOW_S + 60))
        app.tick()
        assert "no memory" not in shown(app)


async def test_filter_keeps_matching_devices_and_escape_clears() -> None:
    async with running(list_fleet(NOW_S)) as (pilot, app, _):
        await pilot.press("slash", *"n03 !gpu0", "enter")
        text = shown(app)
        assert "7 of 64" in text
        assert "n03/gpu1" in text
        assert "n01/gpu0" not in text
        await pilot.press("escape")
        assert "n01/gpu0" in shown(app)


async def test_filter_by_figure_and_by_model() -> None:
    async with running(list_fleet(NOW_S)) as (pilot, app, _):
        await pilot.press("slash", *"model:mixtral", "enter")
        rows = [x for x in shown(app).splitlines() if "/gpu" in x and "mixtral" not in x]
        assert [x for x in rows if "Alerts" not in x and "limit" not in x] == []


async def test_sort_by_letter_and_again_reverses() -> None:
    async with running(list_fleet(NOW_S)) as (pilot, app, _):
        await pilot.press("o")
        assert "sort by" in shown(app)
        await pilot.press("t", "g")
        assert "by temp↓" in shown(app)
        first = next(x for x in shown(app).splitlines() if "/gpu" in x)
        assert "n01/gpu1" in first
        await pilot.press("o", "t")
        assert "by temp↑" in shown(app)


async def test_view_cycles_and_the_cursor_stays_on_its_device() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("right", "v")
        assert "· hero" in shown(app)
        assert "n01/gpu1" in shown(app)
        await pilot.press("v", "v")
        assert "· list" in shown(app)
        row = next(x for x in shown(app).splitlines() if x.startswith("▶"))
        assert "n01/gpu1" in row


async def test_faults_only() -> None:
    async with running() as (pilot, app, _):
        await pilot.press("ctrl+z")
        text = shown(app)
        assert "faults only" in text
        assert "2 of 8" in text
        await pilot.press("escape")
        assert "faults only" not in shown(app)


async def test_describe_and_log_of_the_engine_under_the_cursor() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("down", "right", "right", "right", "enter")
        assert "CUDA error: out of memory" in shown(app)
        assert "restarts" in shown(app)
        await pilot.press("escape", "l")
        await pilot.pause()
        app.tick()
        assert link.logs_asked == [("n02", "n02/ollama-gpu3")]
        assert "ERROR third" in shown(app)
        assert "backoff" in shown(app)


async def test_one_gpu_shows_graphs_and_what_else_fits() -> None:
    async with running(hero_fleet(NOW_S), (80, 24)) as (_, app, _link):
        text = shown(app)
        assert "RTX 4090" in text
        assert "power" in text
        assert "pin" in text
        assert "FREE 7.8G" in text


async def test_stale_node_is_dimmed_with_its_age_and_keeps_its_figures() -> None:
    fleet = panes_fleet(NOW_S)
    stale = replace(fleet.nodes[0], stale=True, age_s=14.0)
    async with running(replace(fleet, nodes=(stale, fleet.nodes[1]))) as (_, app, _link):
        text = shown(app)
        assert "◌ n01/gpu0" in text
        assert "◌ 14s" in text
        assert "no telemetry for 14s" in text
        assert "52/141G" in text


async def test_a_click_moves_the_cursor() -> None:
    async with running() as (pilot, app, _):
        await pilot.click("Canvas", offset=(65, 6))
        await pilot.press("p")
        assert "Place a model on n01/gpu2" in shown(app)


async def test_read_only_takes_placement_away() -> None:
    async with running(read_only=True) as (pilot, app, link):
        await pilot.press("p", "u", "m", "P", "ctrl+d")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert link.commands == []
        assert "p Place" not in shown(app)
        assert " RO" in shown(app)
