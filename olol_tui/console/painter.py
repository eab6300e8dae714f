"""Puts the whole frame together: header, tabs, the view's body, status line, footer."""

from __future__ import annotations

from collections.abc import Sequence

from olol_tui import actions
from olol_tui.console.views.base import View
from olol_tui.fleet.snapshot import Fleet, Operation
from olol_tui.render.chrome import (
    RESULT_SHOWN_S,
    draw_footer,
    draw_header,
    draw_operation,
    draw_tabs,
    draw_tiny,
    latest_running,
)
from olol_tui.render.line import Frame, Line, blank
from olol_tui.render.scene import Scene

MIN_WIDTH = 60
MIN_HEIGHT = 15
"""Below this only the status is drawn."""

SILENT_AFTER_S = 5.0
"""Without a new snapshot for this long the header says so."""

CHROME_ROWS = 4


class Painter:
    """Draws frames; keeps only what a frame needs of the one before."""

    def __init__(self, tabs: Sequence[tuple[str, str, str]]) -> None:
        """`tabs` are (key, title, view name)."""
        self._tabs = tabs
        self._ended: tuple[str, float] = ("", 0.0)
        """Id of the operation that ended last, and the fleet's clock when it was seen."""
        self._known_ends: set[str] = set()

    def frame(
        self,
        scene: Scene,
        view: View,
        width: int,
        height: int,
        *,
        read_only: bool,
        silent_s: float,
    ) -> Frame:
        """The screen, exactly `height` lines of `width` cells."""
        palettes = scene.palettes
        if width < MIN_WIDTH or height < MIN_HEIGHT:
            tiny = draw_tiny(
                scene.fleet, scene.tiles, scene.notices, width, palettes, read_only=read_only
            )
            return _exactly(Frame(tiny), width, height, scene)
        body_rows = height - CHROME_ROWS
        body = view.draw(width, body_rows)
        header = draw_header(
            scene.fleet,
            scene.tiles,
            scene.notices,
            width,
            palettes,
            read_only=read_only,
            silent_s=silent_s if silent_s >= SILENT_AFTER_S else 0.0,
        )
        frame = Frame([header])
        frame.add(draw_tabs(self._tabs, view.name, view.crumbs(), width, palettes))
        frame.add(_exactly(body, width, body_rows, scene))
        frame.lines.append(self._status(scene, view, width))
        shown, last = actions.footer_actions(view.name, read_only=read_only)
        frame.add(
            draw_footer(
                [(a.shown_key, a.label, a.name) for a in shown if view.can(a.name) or a.footer > 9],
                [(a.shown_key, a.label, a.name) for a in last],
                width,
                palettes,
            )
        )
        return frame

    def _status(self, scene: Scene, view: View, width: int) -> Line:
        """What is being typed, else what is being done, else nothing."""
        prompt = view.prompt(width)
        if prompt is not None:
            return prompt
        operation = latest_running(scene.fleet) or self._latest_ended(scene.fleet)
        if operation is None:
            return blank(width, scene.palettes.base.base)
        return draw_operation(operation, scene.fleet, width, scene.palettes)

    def _latest_ended(self, fleet: Fleet) -> Operation | None:
        """What ended last, for a while; a short operation may end within a long one."""
        ended = {op.id: op for op in fleet.operations if op.state != "running"}
        fresh = [op_id for op_id in ended if op_id not in self._known_ends]
        self._known_ends = set(ended)
        if fresh:
            # Of several at once, a failure is what has to be seen.
            failed = [op_id for op_id in fresh if ended[op_id].state == "failed"]
            self._ended = ((failed or fresh)[-1], fleet.now_s)
        shown_s = fleet.now_s - self._ended[1]
        return ended.get(self._ended[0]) if shown_s <= RESULT_SHOWN_S else None


def _exactly(frame: Frame, width: int, height: int, scene: Scene) -> Frame:
    frame.lines = frame.lines[:height]
    missing = height - len(frame.lines)
    frame.lines.extend(blank(width, scene.palettes.base.base) for _ in range(missing))
    return frame
