"""Every renderer fills its space exactly, whatever the fleet and its strings."""

from __future__ import annotations

import unicodedata
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from olol_tui.actions import ACTIONS, actions_on, footer_actions
from olol_tui.console.sample import cpu_fleet, hero_fleet, list_fleet, panes_fleet
from olol_tui.console.sample_nodes import nodes_fleet
from olol_tui.console.themes import load_themes
from olol_tui.fleet.snapshot import Fleet, Node
from olol_tui.render.box import facts
from olol_tui.render.chrome import draw_footer, draw_header, draw_operation, draw_tabs, draw_tiny
from olol_tui.render.dense import draw_dense
from olol_tui.render.fleet import MODES, Mode, draw_fleet, plan
from olol_tui.render.help import draw_help
from olol_tui.render.history import FleetHistory
from olol_tui.render.line import Line, text_of
from olol_tui.render.logs import draw_log
from olol_tui.render.node_detail import draw_node, parts, title_line
from olol_tui.render.node_facts import part_facts
from olol_tui.render.nodes import draw_nodes
from olol_tui.render.panes import layout
from olol_tui.render.requests import draw_head, draw_rows, ordered
from olol_tui.render.scene import Scene, make_scene

PALETTES = load_themes().get(None).palettes
FLEETS = {
    "panes": panes_fleet(300.0),
    "list": list_fleet(300.0),
    "hero": hero_fleet(300.0),
    "cpu": cpu_fleet(300.0),
    "nodes": nodes_fleet(300.0),
    "empty": Fleet(),
}
SIZES = [(60, 11), (80, 20), (99, 30), (120, 32), (200, 60)]


def scene_of(fleet: Fleet) -> Scene:
    history = FleetHistory()
    history.feed(fleet)
    return make_scene(fleet, history, PALETTES)


def check(lines: list[Line], width: int) -> None:
    for line in lines:
        text = text_of(line)
        assert cell_len(text) == width, text
        assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def draw_details(scene: Scene, node: Node, width: int) -> list[Line]:
    """A node with the cursor outside and on its last part, and all its windows."""
    there = parts(node)
    lines = [title_line(scene, node, width, inside=True)]
    for cursor in ("", there[-1].id if there else ""):
        lines += [detail.line for detail in draw_node(scene, node, width, cursor=cursor)]
    for part in (None, *there[:12]):
        lines += facts(part_facts(scene.fleet, node, part), width, PALETTES.panel)
    return lines


def draw_everything(scene: Scene, width: int, height: int, mode: Mode | None) -> list[Line]:
    """All screens of the console, one below the other."""
    tiles = scene.tiles
    cursor = tiles[0].key if tiles else None
    drawn = plan(scene, len(tiles), width, height, mode)
    fleet = draw_fleet(scene, tiles, drawn, 0, width, height, cursor=cursor, target=cursor).lines
    requests = ordered(scene.fleet.requests)
    head = draw_head(scene, requests, width, height)
    rows = draw_rows(scene, requests, 0, height, width, cursor="r9410").lines
    found = scene.fleet.nodes
    nodes = draw_nodes(scene, found, 0, height, width, cursor=found[0].name if found else "").lines
    details = [line for node in found[:10] for line in draw_details(scene, node, width)]
    dense = draw_dense(
        tiles, 0, 40, scene.histories(tiles), scene.palettes, width, cursor=cursor
    ).lines
    header = draw_header(
        scene.fleet, tiles, scene.notices, width, PALETTES, read_only=False, silent_s=0
    )
    silent = draw_header(
        scene.fleet, tiles, scene.notices, width, PALETTES, read_only=True, silent_s=9
    )
    operations = [draw_operation(op, scene.fleet, width, PALETTES) for op in scene.fleet.operations]
    tabs = draw_tabs([("1", "Fleet", "fleet")], "fleet", scene.fleet.name, width, PALETTES).lines
    return [*fleet, *head, *rows, *nodes, *details, *dense, header, silent, *operations, *tabs]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("name", FLEETS)
@pytest.mark.parametrize("mode", [None, *MODES])
def test_lines_are_as_wide_as_the_screen(
    name: str, size: tuple[int, int], mode: Mode | None
) -> None:
    scene = scene_of(FLEETS[name])
    check(draw_everything(scene, *size, mode), size[0])


HOSTILE = st.text(
    alphabet=st.one_of(
        st.characters(),
        st.sampled_from("\x1b[31m\x9b\x9d;\x07\x90\r\n\t\x7f\u202e\u200d\ufe0f漢😀é/:"),
    ),
    max_size=40,
)
_ENUMS = frozenset(
    {"state", "kind", "vendor", "severity", "dialect", "runner", "uuid", "where", "role"}
)


def _poison(value: Any, draw: Any, name: str = "") -> Any:
    """The same snapshot with every free string replaced."""
    if isinstance(value, str):
        return value if name in _ENUMS else draw(HOSTILE)
    if isinstance(value, tuple):
        return tuple(_poison(item, draw, name) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        new = {f.name: _poison(getattr(value, f.name), draw, f.name) for f in fields(value)}
        return replace(value, **new)
    return value


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
@given(data=st.data())
def test_hostile_strings_neither_steer_nor_break_the_layout(data: st.DataObject) -> None:
    fleet = FLEETS[data.draw(st.sampled_from(["hero", "cpu", "nodes"]))]
    short = replace(fleet, requests=fleet.requests[:2] + fleet.requests[-2:])
    # Of nine nodes, the ones in trouble: their strings come from hosts that are not ours yet.
    nodes = [replace(node, library=node.library[:1]) for node in short.nodes]
    short = replace(short, nodes=tuple(nodes[:1]))
    if len(nodes) > 1:
        short = replace(short, nodes=tuple(nodes[i] for i in (2, 6, 7)))
    scene = scene_of(_poison(short, data.draw))
    width = data.draw(st.sampled_from([60, 80, 120]))
    for mode in (None, *MODES):
        check(draw_everything(scene, width, 24, mode), width)


@pytest.mark.parametrize("count", range(1, 17))
@pytest.mark.parametrize("size", [(80, 20), (120, 32), (200, 56), (240, 63)])
def test_a_grid_shows_all_panes_or_there_is_none(count: int, size: tuple[int, int]) -> None:
    grid = layout(count, size[0], size[1], 5)
    if grid is not None:
        assert grid.columns * grid.rows >= count
        assert grid.columns * (grid.rows - 1) < count
        assert grid.columns * grid.width <= size[0]
        assert grid.tall() + 5 <= size[1]


def test_the_cascade_by_size_of_fleet_and_terminal() -> None:
    def mode(name: str, width: int, height: int) -> str:
        scene = scene_of(FLEETS[name])
        return plan(scene, len(scene.tiles), width, height, None).mode

    assert mode("hero", 80, 20) == "hero"
    assert mode("cpu", 120, 32) == "hero"
    assert mode("panes", 120, 32) == "panes"
    assert mode("panes", 80, 20) == "list"
    assert mode("list", 240, 63) == "list"


def test_the_header_drops_the_least_important_first() -> None:
    scene = scene_of(FLEETS["panes"])
    for width in range(20, 200):
        line = draw_header(scene.fleet, scene.tiles, scene.notices, width, PALETTES, read_only=True)
        assert cell_len(text_of(line)) == width
        if width >= 60:
            assert "RO" in text_of(line)
            assert "q7" in text_of(line) or "queue 7" in text_of(line)
            assert "▲" in text_of(line)


def test_the_header_counts_no_ram_as_vram() -> None:
    """A console on a machine without a GPU, and GPUs elsewhere."""

    def told(fleet: Fleet) -> str:
        scene = scene_of(fleet)
        line = draw_header(scene.fleet, scene.tiles, scene.notices, 200, PALETTES, read_only=True)
        return next(part for part in text_of(line).split("  ") if part.startswith("vram"))

    gpus, cpus = panes_fleet(300.0), cpu_fleet(300.0)
    local = tuple(replace(node, name=f"x-{node.name}") for node in cpus.nodes)
    assert told(gpus) == told(replace(gpus, nodes=(*gpus.nodes, *local)))


def test_tiny_terminals_get_a_line() -> None:
    scene = scene_of(FLEETS["panes"])
    for width in range(1, 60):
        check(
            draw_tiny(scene.fleet, scene.tiles, scene.notices, width, PALETTES, read_only=False),
            width,
        )


@pytest.mark.parametrize("screen", ["fleet", "requests", "nodes", "logs"])
@pytest.mark.parametrize("read_only", [False, True])
def test_help_and_footer_come_from_the_table(screen: str, read_only: bool) -> None:
    lines = draw_help(screen, 82, PALETTES.panel, read_only=read_only)
    check(lines, 82)
    text = "\n".join(text_of(line) for line in lines)
    assert all(a.help.split(",")[0][:24] in text for a in actions_on(screen))
    shown, last = footer_actions(screen, read_only=read_only)
    assert not (read_only and any(a.dangerous for a in shown))
    for width in (60, 80, 120):
        footer = draw_footer(
            [(a.shown_key, a.label, a.name) for a in shown],
            [(a.shown_key, a.label, a.name) for a in last],
            width,
            PALETTES,
        )
        check(footer.lines, width)
        assert "? Help" in text_of(footer.lines[0])
        assert "q Quit" in text_of(footer.lines[0])


def test_no_key_means_two_things_on_one_screen() -> None:
    for screen in ("fleet", "requests", "nodes", "logs"):
        keys = [key for a in actions_on(screen) for key in a.keys]
        assert len(keys) == len(set(keys)), screen
    assert len({a.name for a in ACTIONS}) == len(ACTIONS)


@given(st.lists(HOSTILE, max_size=8), st.integers(12, 100), st.integers(1, 12), st.booleans())
def test_log_lines_are_cut_or_wrapped_but_never_wider(
    lines: list[str], width: int, rows: int, wrap: bool
) -> None:
    drawn = draw_log(lines, width, rows, PALETTES.base, wrap=wrap)
    check(drawn, width)
    assert len(drawn) <= rows
