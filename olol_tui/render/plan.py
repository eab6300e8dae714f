"""The two boxes under the Placement matrix: what is planned, and the cell under the cursor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from olol_tui.models.names import canonical
from olol_tui.render.box import boxed, facts, memory_change, paragraph
from olol_tui.render.details import split_facts
from olol_tui.render.fit import Fit, judge_on
from olol_tui.render.line import Frame, Line, Row, beside, blank
from olol_tui.render.matrix import ModelRow
from olol_tui.render.palette import Palette
from olol_tui.render.scene import Scene
from olol_tui.render.text import cells, clean, count, short_model, size, size_pair
from olol_tui.render.tiles import RUNNING, Resident, Tile, TileKey

Sign = Literal["+", "-", "P", "p"]


@dataclass(frozen=True, slots=True)
class Edit:
    """One end of a planned change: a model that comes to, leaves or is pinned on a device."""

    sign: Sign
    model: str
    key: TileKey


def resident_at(scene: Scene, model: str, key: TileKey) -> Resident | None:
    tile = scene.by_key.get(key)
    residents = () if tile is None else tile.residents
    return next((r for r in residents if canonical(r.name) == model), None)


def held_bytes(resident: Resident | None) -> int:
    return 0 if resident is None else resident.vram_bytes or resident.size_bytes


def running_on(scene: Scene, model: str, tile: Tile) -> int:
    """Requests of the model that run on the device now."""
    return sum(
        1
        for r in scene.fleet.requests
        if r.where == tile.label and r.state in RUNNING and canonical(r.model) == model
    )


def after_plan(scene: Scene, edits: Sequence[Edit], key: TileKey) -> int | None:
    """Bytes in use on a device once the plan is applied; None where it does not tell."""
    tile = scene.by_key.get(key)
    if tile is None or tile.device is None or tile.device.used_bytes is None:
        return None
    used = tile.device.used_bytes
    for edit in edits:
        if edit.key != key:
            continue
        if edit.sign == "-":
            used -= held_bytes(resident_at(scene, edit.model, key))
        elif edit.sign == "+" and resident_at(scene, edit.model, key) is None:
            used += judge_on(edit.model, tile, scene.fleet).need_bytes
    return max(0, used)


def draw_plan(scene: Scene, edits: Sequence[Edit], width: int, rows: int, p: Palette) -> list[Line]:
    """A line per edit, then memory before and after of every device that it touches."""
    if not edits:
        words = "nothing is planned: p places, m moves, u unloads, P pins; a applies the plan"
        return paragraph(words, width, p, "muted")[:rows]
    touched = list(dict.fromkeys(edit.key for edit in edits if edit.sign in "+-"))
    # In a small box what will be done comes before what memory it leaves.
    room = rows if rows < len(edits) + len(touched) else len(edits)
    shown = edits[: room if len(edits) <= room else room - 1]
    lines = [_edit_line(scene, edit, width, p) for edit in shown]
    if len(lines) < len(edits):
        more = f"and {count(len(edits) - len(lines), 'more change')}"
        lines.append(Row(width, p.base).put(more, p.muted).end())
    for key in touched:
        tile = scene.by_key.get(key)
        after = after_plan(scene, edits, key)
        if tile is None or tile.device is None or after is None:
            continue
        total = tile.device.vram_bytes
        over = total is not None and after > total
        row = Row(width, p.base).put(tile.label, p.muted, min(22, width // 2)).gap()
        row.put(f"{size(tile.device.used_bytes)} → ", p.base)
        row.put(size_pair(after, total), p.crit if over else p.ok)
        lines.append(row.put("  over its memory" if over else "", p.crit).end())
    return lines[:rows]


def _edit_line(scene: Scene, edit: Edit, width: int, p: Palette) -> Line:
    tile = scene.by_key.get(edit.key)
    label = edit.key[0] if tile is None else tile.label
    style = p.warn if edit.sign == "-" else p.pinned if edit.sign in "Pp" else p.accent
    row = Row(width, p.base).put(f"{edit.sign} ", style)
    row.put(edit.model, p.bright, min(cells(clean(edit.model)), max(10, width - 24))).gap()
    resident = resident_at(scene, edit.model, edit.key)
    if edit.sign == "+":
        need = "" if tile is None else size(judge_on(edit.model, tile, scene.fleet).need_bytes)
        return row.put(f"→ {label} ", p.base).put(need, p.muted).end()
    if edit.sign in "Pp":
        verb = "pin on" if edit.sign == "P" else "unpin on"
        return row.put(f"{verb} {label}", p.base).end()
    row.put(f"✕ {label} ", p.base).put(f"frees {size(held_bytes(resident))}", p.muted)
    running = 0 if tile is None else running_on(scene, edit.model, tile)
    return row.put(f", {count(running, 'request')} running" if running else "", p.warn).end()


def draw_cell(
    scene: Scene, model: ModelRow, tile: Tile, width: int, rows: int, p: Palette
) -> list[Line]:
    """What is, or would be, if the model were on the device."""
    resident = resident_at(scene, model.name, tile.key)
    split = next((s for s in scene.fleet.splits if canonical(s.model) == model.name), None)
    if split is not None and resident is not None and resident.of_layers:
        return facts(split_facts(split), width, p)[:rows]
    fit = judge_on(model.name, tile, scene.fleet)
    lines = [_memory_line(fit, tile, width, p)]
    if resident is not None and not resident.loading:
        running = running_on(scene, model.name, tile)
        row = Row(width, p.base).put("■ resident", p.ok)
        row.put(" pinned" if resident.pinned else "", p.pinned)
        row.put(f", {size(held_bytes(resident))}", p.base)
        context = resident.context_length
        row.put("" if context is None else f", context {context}", p.base)
        row.put(f", {count(running, 'request')} running" if running else ", idle", p.base)
        lines.append(row.end())
        if resident.spilled:
            lines.extend(paragraph(tile.note, width, p, "warn"))
    else:
        lines.extend(paragraph(fit.reason, width, p, "muted"))
        if fit.possible:
            lines.append(_verdict(fit, width, p))
            lines.extend(memory_change(fit, tile.memory_word, width, p))
    if tile.note:
        lines.extend(paragraph(f"{tile.label}: {tile.note}", width, p, "warn"))
    elsewhere = [t.label for t in scene.tiles if t.key != tile.key and _is_at(scene, model.name, t)]
    if elsewhere:
        lines.extend(paragraph(f"also on {', '.join(elsewhere[:6])}", width, p, "muted"))
    return lines[:rows]


def draw_cell_line(scene: Scene, model: ModelRow, tile: Tile, width: int, p: Palette) -> list[Line]:
    """The cell in two lines, for small terminals."""
    fit = judge_on(model.name, tile, scene.fleet)
    row = Row(width, p.base).put(f"{short_model(model.name)} × {tile.label}  ", p.bright)
    resident = resident_at(scene, model.name, tile.key)
    if resident is not None and not resident.loading:
        running = running_on(scene, model.name, tile)
        row.put(f"■ {size(held_bytes(resident))}", p.ok).put(
            " pinned" if resident.pinned else "", p.pinned
        )
        row.put(f", {count(running, 'request')} running" if running else ", idle", p.base)
        return [row.end(), *paragraph(tile.note, width, p, "warn")[: 1 if tile.note else 0]]
    style = p.ok if fit.verdict == "fits" else p.warn if fit.possible else p.muted
    row.put(f"{fit.words} ", style)
    if fit.possible and fit.after_bytes is not None:
        row.put(f"→ {size_pair(fit.after_bytes, fit.total_bytes)}", p.base)
    return [row.end(), *paragraph(fit.reason, width, p, "muted")[:2]]


def _is_at(scene: Scene, model: str, tile: Tile) -> bool:
    return resident_at(scene, model, tile.key) is not None


def _memory_line(fit: Fit, tile: Tile, width: int, p: Palette) -> Line:
    row = Row(width, p.base).put("needs about ", p.muted).put(size(fit.need_bytes or None), p.base)
    device = tile.device
    if device is not None:
        row.put(f", {tile.memory_word} free ", p.muted).put(size(device.free_bytes), p.base)
        row.put(f" of {size(device.vram_bytes)}", p.muted)
    return row.end()


def _verdict(fit: Fit, width: int, p: Palette) -> Line:
    good = fit.verdict == "fits"
    return (
        Row(width, p.base)
        .put("● " if good else "▲ ", p.ok if good else p.warn)
        .put(fit.words, p.ok if good else p.warn)
        .end()
    )


def draw_boxes(
    plan: tuple[str, list[Line]], cell: tuple[str, list[Line]], width: int, height: int, p: Palette
) -> Frame:
    """Both boxes side by side in exactly `height` lines; each comes with its title."""
    left = width // 2

    def box(part: tuple[str, list[Line]], box_width: int) -> list[Line]:
        title, lines = part
        inner = box_width - 4
        filled = [*lines, *(blank(inner, p.base) for _ in range(height - 2 - len(lines)))]
        return boxed(Frame(filled[: height - 2]), box_width, p, title=title).lines

    return Frame(
        beside([(box(plan, left), left), (box(cell, width - left), width - left)], height, p.base)
    )
