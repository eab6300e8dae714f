"""The body of the Fleet screen: the layout cascade, and alerts and models below it.

One device: graphs. Up to 16 that fit: panes. More, or a small terminal: a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from olol_tui.render import panes
from olol_tui.render.dense import draw_dense
from olol_tui.render.hero import draw_hero
from olol_tui.render.line import Frame, Line, Row, blank
from olol_tui.render.scene import Scene
from olol_tui.render.summary import draw_summary, wanted_rows
from olol_tui.render.tiles import Tile, TileKey

Mode = Literal["hero", "panes", "list"]
MODES: tuple[Mode, ...] = ("hero", "panes", "list")
PANES_UP_TO = 16
SUMMARY_MIN = 5
SUMMARY_MAX = 14


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the devices stand on the body."""

    mode: Mode
    columns: int
    """Devices side by side: how far «down» moves the cursor."""
    rows: int
    """Rows of devices seen at once."""
    grid: panes.Grid | None
    above: int
    """Terminal rows that devices take."""


def choose_mode(count: int, width: int, height: int, wanted: Mode | None, below: int) -> Mode:
    """The mode by size of fleet and terminal, unless the operator chose one."""
    if wanted is not None:
        return wanted
    if count == 1:
        return "hero"
    fits = panes.layout(count, width, height, below) is not None
    return "panes" if count <= PANES_UP_TO and fits else "list"


def plan(scene: Scene, count: int, width: int, height: int, wanted: Mode | None) -> Layout:
    """The layout for `count` devices on a body of this size."""
    summary = max(
        SUMMARY_MIN,
        min(SUMMARY_MAX, height // 2, wanted_rows(scene.fleet, scene.notices, width)),
    )
    mode = choose_mode(count, width, height, wanted, SUMMARY_MIN)
    if mode == "hero":
        return Layout("hero", 1, 1, None, height)
    if mode == "panes":
        grid = (
            panes.layout(count, width, height, summary)
            or panes.layout(count, width, height, SUMMARY_MIN)
            or panes.scrolled_layout(count, width, height)
        )
        return Layout("panes", grid.columns, grid.visible_rows, grid, grid.tall())
    if count + 1 + summary <= height:
        return Layout("list", 1, count, None, count + 1)
    kept = summary if height < 2 * summary else max(SUMMARY_MIN, min(summary, height // 4))
    rows = max(3, height - kept) if height >= 16 else height
    return Layout("list", 1, max(1, rows - 1), None, rows)


def draw_fleet(
    scene: Scene,
    tiles: tuple[Tile, ...],
    layout: Layout,
    first: int,
    width: int,
    height: int,
    *,
    cursor: TileKey | None,
    target: TileKey | None = None,
    empty: str = "no devices yet",
) -> Frame:
    """The body.

    Args:
        tiles: what the filter lets through, in the order to show.
        first: first visible row of devices.
        cursor: the tile with the cursor.
        target: where a model that is being moved would go.
        empty: said when there is nothing to show.
    """
    palettes = scene.palettes
    if not tiles:
        frame = Frame([blank(width, palettes.base.base)])
        words = Row(width, palettes.base.base).gap(2).put(empty, palettes.base.muted)
        frame.lines.append(words.end())
        frame.lines.append(blank(width, palettes.base.base))
        frame.lines.extend(_summary(scene, width, height - 3))
        return frame
    if layout.mode == "hero":
        tile = scene.by_key.get(cursor, tiles[0]) if cursor else tiles[0]
        history = scene.history.device(tile.key)
        others = bool(scene.notices) or len(scene.fleet.gateway.models) > len(tile.residents)
        lines = draw_hero(scene.fleet, tile, history, width, height, palettes, others=others)
        frame = Frame(lines)
        left = height - len(lines)
        if left >= 3 and others:
            frame.lines.append(blank(width, palettes.base.base))
            frame.lines.extend(_summary(scene, width, left - 1))
        return frame
    histories = scene.histories(tiles)
    if layout.grid is not None:
        frame = panes.draw_panes(
            tiles, layout.grid, first, histories, palettes, width, cursor=cursor, target=target
        )
    else:
        frame = draw_dense(
            tiles, first, layout.above, histories, palettes, width, cursor=cursor, target=target
        )
    frame.lines.extend(_summary(scene, width, height - len(frame.lines)))
    return frame


def _summary(scene: Scene, width: int, height: int) -> list[Line]:
    return draw_summary(
        scene.fleet, scene.tiles, scene.notices, scene.history, width, height, scene.palettes
    )
