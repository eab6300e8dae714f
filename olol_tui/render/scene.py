"""One snapshot with everything that is derived from it once and drawn by many."""

from __future__ import annotations

from dataclasses import dataclass, field

from olol_tui.fleet.snapshot import Fleet
from olol_tui.render.history import DeviceHistory, FleetHistory
from olol_tui.render.palette import Palettes
from olol_tui.render.summary import Notice, notices
from olol_tui.render.tiles import Tile, TileKey, build_tiles


@dataclass(frozen=True, slots=True)
class Scene:
    """What renderers read."""

    fleet: Fleet
    tiles: tuple[Tile, ...]
    notices: tuple[Notice, ...]
    history: FleetHistory
    palettes: Palettes
    by_key: dict[TileKey, Tile] = field(repr=False)

    def histories(self, tiles: tuple[Tile, ...]) -> dict[TileKey, DeviceHistory]:
        return {tile.key: self.history.device(tile.key) for tile in tiles}


def make_scene(fleet: Fleet, history: FleetHistory, palettes: Palettes) -> Scene:
    tiles = build_tiles(fleet)
    return Scene(
        fleet=fleet,
        tiles=tiles,
        notices=notices(fleet, tiles),
        history=history,
        palettes=palettes,
        by_key={tile.key: tile for tile in tiles},
    )
