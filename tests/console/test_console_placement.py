"""The Placement screen by keyboard: the matrix, the plan, and the commands it ends in."""

from __future__ import annotations

from dataclasses import replace

from olol_tui.console.sample import list_fleet, panes_fleet, split_fleet
from olol_tui.fleet.commands import Move, Place, RetrySplit, SetPin, Unload
from olol_tui.fleet.snapshot import Fleet
from tests.console.fake_link import NOW_S, FakeLink, running, shown


def uuid(link: FakeLink, node: str, label: str) -> str:
    device = link.fleet.device(node, label)
    assert device is not None
    return device.uuid


def row_of(text: str, model: str) -> str:
    """The first line that names the model."""
    return next(line for line in text.splitlines() if model in line)


async def test_the_matrix_shows_where_every_model_is() -> None:
    async with running() as (pilot, app, _link):
        await pilot.press("2")
        text = shown(app)
        assert "─ n01 ─" in text
        assert "─ n02 ─" in text
        assert row_of(text, "llama3.3:70b").count("■P") == 2
        assert "▒41" in row_of(text, "qwen3:32b")
        assert row_of(text, "llama3.1:405b").count("×") == 8
        assert "FREE" in text
        assert "nothing is planned" in text


async def test_a_plan_is_shown_with_memory_and_applied_in_an_order_that_frees_first() -> None:
    async with running() as (pilot, app, link):
        # deepseek-r1:32b is on n01/gpu2: place it on gpu0 as well, then unload it from gpu2.
        await pilot.press("2", "p", "right", "right", "u")
        text = shown(app)
        assert "[+]" in row_of(text, "deepseek-r1:32b")
        assert "[-]" in row_of(text, "deepseek-r1:32b")
        assert "Plan: 2 changes, not applied" in text
        assert "1 request running" in text
        assert link.commands == []
        await pilot.press("a")
        assert "Apply 2 changes?" in shown(app)
        # A running request would be ended: Cancel has focus.
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == []
        await pilot.press("a", "tab", "enter")
        await pilot.pause()
        assert link.commands == [
            Unload(model="deepseek-r1:32b", node="n01", device=uuid(link, "n01", "gpu2")),
            Place(model="deepseek-r1:32b", node="n01", device=uuid(link, "n01", "gpu0")),
        ]
        assert "nothing is planned" in shown(app)


async def test_the_same_key_again_takes_an_edit_back_and_undo_brings_it_again() -> None:
    async with running() as (pilot, app, _link):
        await pilot.press("2", "p")
        assert "Plan: 1 change" in shown(app)
        await pilot.press("p")
        assert "nothing is planned" in shown(app)
        await pilot.press("z")
        assert "Plan: 1 change" in shown(app)
        await pilot.press("Z")
        assert "nothing is planned" in shown(app)
        await pilot.press("z")
        assert "Plan: 1 change" in shown(app)


async def test_move_follows_the_arrows_and_becomes_one_command() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("2", "right", "right", "m")
        assert "move" in shown(app)
        await pilot.press("right")
        assert "→ n01/gpu3" in shown(app)
        await pilot.press("enter", "a", "tab", "enter")
        await pilot.pause()
        assert link.commands == [
            Move(
                model="deepseek-r1:32b",
                node="n01",
                device=uuid(link, "n01", "gpu2"),
                to_node="n01",
                to_device=uuid(link, "n01", "gpu3"),
            )
        ]


async def test_unloading_what_is_pinned_wants_its_name_and_pins_toggle() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("2", "slash", *"llama3.3", "enter", "u", "a")
        assert "is pinned: the pin goes" in shown(app)
        assert "type llama3.3:70b to go on" in shown(app)
        await pilot.press("escape", "Z", "P", "a", "enter")
        await pilot.pause()
        assert link.commands == [
            SetPin(model="llama3.3:70b", node="n01", device=uuid(link, "n01", "gpu0"), pinned=False)
        ]


async def test_what_cannot_be_is_refused_with_numbers() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("2", "slash", *"405b", "enter", "p")
        await pilot.pause()
        assert "nothing is planned" in shown(app)
        assert "llama3.1:405b needs about" in shown(app)
        assert link.commands == []


async def test_a_change_that_came_true_leaves_the_plan() -> None:
    async with running() as (pilot, app, link):
        await pilot.press("2", "right", "right", "u")
        assert "Plan: 1 change" in shown(app)
        link.publish(_without(panes_fleet(NOW_S + 1), "deepseek-r1:32b"))
        app.tick()
        await pilot.pause()
        assert "nothing is planned" in shown(app)


def _without(fleet: Fleet, model: str) -> Fleet:
    """The fleet after somebody unloaded the model everywhere."""
    nodes = tuple(
        replace(
            node,
            engines=tuple(
                replace(e, loaded=tuple(x for x in e.loaded if x.name != model))
                for e in node.engines
            ),
        )
        for node in fleet.nodes
    )
    return replace(fleet, nodes=nodes)


async def test_columns_scroll_with_the_cursor_in_a_wide_fleet() -> None:
    fleet = list_fleet(NOW_S)
    devices = sum(len(node.devices) for node in fleet.nodes)
    async with running(fleet, size=(80, 24)) as (pilot, app, _link):
        await pilot.press("2", *["right"] * (devices - 1))
        last = fleet.nodes[-1]
        assert last.name in shown(app)
        assert f"× {last.name}/{last.devices[-1].label}" in shown(app)
        await pilot.press(*["left"] * (devices - 1))
        assert f"× {fleet.nodes[0].name}/{fleet.nodes[0].devices[0].label}" in shown(app)


async def test_read_only_looks_but_plans_nothing() -> None:
    async with running(read_only=True) as (pilot, app, link):
        await pilot.press("2", "p", "a")
        assert "Plan: 1" not in shown(app)
        assert link.commands == []


async def test_a_split_is_one_model_over_its_devices_and_goes_as_a_whole() -> None:
    async with running(split_fleet(NOW_S)) as (pilot, app, link):
        await pilot.press("2", *["down"] * 3, "right", "right")
        text = shown(app)
        assert "llama3.1:405b: ready, 3 devices, head n01" in text
        assert "42 layers + output: 92G of 93G planned" in text
        assert row_of(text, "▶ llama3.1:405b").split()[3] == "1", "one replica"
        await pilot.press("m", "P")
        await pilot.pause()
        assert "nothing is planned" in shown(app)
        await pilot.press("u", "a", "enter")
        await pilot.pause()
        assert link.commands == [
            Unload(model="llama3.1:405b", node="n01", device=uuid(link, "n01", "gpu2"))
        ]


async def test_a_split_that_was_given_up_is_tried_again_by_key() -> None:
    base = split_fleet(NOW_S)
    split = base.splits[0]
    failed = replace(
        split,
        state="failed",
        parts=(),
        error="worker: crashed 5 times",
        log_tail=("out of memory",),
    )
    async with running(base) as (pilot, app, link):
        await pilot.press("r")
        assert "crashed 5 times" not in shown(app), "there is nothing to try again"
        link.publish(replace(base, splits=(failed,)))
        app.tick()
        await pilot.pause()
        for screen in ("1", "2"):
            await pilot.press(screen, "r")
            text = shown(app)
            assert f"Split {split.model} again?" in text, text
            assert "crashed 5 times" in text and "out of memory" in text
            await pilot.press("escape")
        other = replace(failed, id="split/other:1b", model="other:1b")
        link.publish(replace(base, splits=(failed, other)))
        app.tick()
        await pilot.pause()
        await pilot.press("r", "o", "t", "h", "enter")
        assert "Split other:1b again?" in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands == [RetrySplit("other:1b")]
