"""A split drawn as one model over its devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rich.cells import cell_len

from olol_tui.console.sample import panes_fleet
from olol_tui.console.themes import load_themes
from olol_tui.fleet.snapshot import Fleet, Split, SplitPart
from olol_tui.render.details import split_facts
from olol_tui.render.history import FleetHistory
from olol_tui.render.line import text_of
from olol_tui.render.matrix import draw_matrix, grid, model_rows
from olol_tui.render.panes import resident_row
from olol_tui.render.scene import make_scene
from olol_tui.render.tiles import build_tiles
from olol_tui.status import status_lines

PALETTES = load_themes().get(None).palettes
GIB = 2**30
WIDTH = 120


def fleet_with(state: Any = "ready", **more: Any) -> Fleet:
    """The sample fleet with one of its models over the first, second and fourth device."""
    fleet = panes_fleet(300.0)
    tiles = build_tiles(fleet)
    model = fleet.nodes[0].library[0].name
    parts = tuple(
        SplitPart(
            node=tiles[index].node.name,
            device=tiles[index].key[1],
            label=tiles[index].label.rpartition("/")[2],
            layers=layers,
            has_output=has_output,
            planned_bytes=20 * GIB,
            engine="" if has_output else "worker",
            road="" if has_output else "ssh",
            state="ready",
            **more,
        )
        for index, layers, has_output in ((1, 40, False), (3, 30, False), (0, 10, True))
    )
    split = Split(
        f"split/{model}",
        model,
        state,
        node=tiles[0].node.name,
        engine="nobody",
        parts=parts,
        tokens_factor=0.8,
        restarts=1,
        restart_s=4.2,
        error="h2 is lost" if state == "backoff" else "",
    )
    return replace(fleet, splits=(split,))


def matrix_row(fleet: Fleet) -> str:
    tiles, models = build_tiles(fleet), model_rows(fleet)
    history = FleetHistory()
    history.feed(fleet)
    scene = make_scene(fleet, history, PALETTES)
    layout = grid(models, tiles, 0, 0, WIDTH)
    frame = draw_matrix(scene, models, 0, 30, tiles, layout, WIDTH, cursor=None, marks={})
    for line in frame.lines:
        assert cell_len(text_of(line)) == WIDTH
    at = [model.name for model in models].index(fleet.splits[0].model)
    return text_of(frame.lines[2 + at])


REAL = {"real_layers": 40, "weights_bytes": 15 * GIB, "kv_bytes": GIB, "compute_bytes": GIB}


def test_cells_of_a_split_are_joined_and_say_their_layers_and_the_head() -> None:
    row = matrix_row(fleet_with())
    assert "◆10" in row and "40" in row and "30" in row
    joined = row[row.index("◆10") : row.index("30") + 2]
    assert " " not in joined, "one line from the first device to the last"
    assert "▒10" in matrix_row(fleet_with("loading"))


def test_a_pane_tells_its_share() -> None:
    tiles = build_tiles(fleet_with(**REAL))
    shares = [r for r in tiles[1].residents if r.of_layers]
    assert [(r.layers, r.of_layers, r.size_bytes) for r in shares] == [(40, 80, 17 * GIB)]
    row = text_of(resident_row(shares[0], 40, PALETTES.base))
    assert "40/80L" in row and cell_len(row) == 40
    loading = build_tiles(fleet_with("loading", progress=0.5))[1].residents
    assert any(r.loading and r.progress == 0.5 for r in loading)


def test_details_and_status_say_planned_and_real() -> None:
    fleet = fleet_with("backoff", **REAL)
    told = [f"{label}|{words}" for label, words in split_facts(fleet.splits[0])]
    assert any("3 devices, head" in line for line in told)
    assert any("40 layers: 17G of 20G planned, ssh" in line for line in told), told
    measured = fleet_with(**REAL, rtt_s=0.00031, bytes_s=1.124e8)
    told_then = [words for _, words in split_facts(measured.splits[0])]
    assert any("planned, ssh 0.31 ms, 112 MB/s" in words for words in told_then), told_then
    assert "ssh 0.31 ms, 112 MB/s" in "\n".join(status_lines(measured, colour=False))
    assert "restarts|1, the last in 4.20s" in told, told
    assert "error|h2 is lost" in told
    lines = "\n".join(status_lines(fleet, colour=False))
    assert "80% of one's speed; restarted once, the last in 4 s" in lines
    assert "40 layers and the output, 17 GiB of 20 GiB planned" in lines
