"""Pictures of the console: `python -m olol_tui.screenshots` writes screenshots/*.svg.

Drawn from made-up fleets on a stopped clock, so that the files change only when the
console does.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from olol_tui.console import sample, sample_nodes, sample_parts
from olol_tui.console.app import ConsoleOptions, OlolApp
from olol_tui.fleet.commands import Accepted, AnyCommand
from olol_tui.fleet.snapshot import Fleet
from olol_tui.render.history import FleetHistory

AT_S = 300.0
HISTORY_S = 240


class StillLink:
    """A Link that holds one snapshot and takes no wishes."""

    embedded = True

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    async def changes(self) -> AsyncIterator[Fleet]:
        yield self.fleet

    async def submit(self, command: AnyCommand) -> Accepted:
        return Accepted("op-0")

    async def logs(self, node: str, engine: str, *, tail: int = 200) -> AsyncIterator[str]:
        for line in sample_parts.LOG:
            yield line


def filled_history(fleet_at: Callable[[float], Fleet], until_s: float = AT_S) -> FleetHistory:
    """The graphs as they would be after HISTORY_S seconds of watching."""
    history = FleetHistory()
    for second in range(HISTORY_S, -1, -1):
        history.feed(fleet_at(until_s - second))
    return history


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture."""

    name: str
    fleet_at: Callable[[float], Fleet]
    size: tuple[int, int]
    keys: tuple[str, ...] = ()
    theme: str | None = None


PLAN_KEYS = (
    "2",
    "p",
    "right",
    "right",
    "u",
    "down",
    "down",
    "right",
    "right",
    "m",
    "right",
    "right",
    "right",
    "enter",
    *["down"] * 3,
)
"""On the Placement screen: a plan of three edits."""

SHOTS: tuple[Shot, ...] = (
    Shot("fleet-panes", sample.panes_fleet, (120, 36), ("right",)),
    Shot("fleet-list", sample.list_fleet, (120, 36), ("down", "down", "down")),
    Shot("fleet-hero", sample.hero_fleet, (80, 24)),
    Shot("fleet-cpu", sample.cpu_fleet, (80, 24)),
    Shot(
        "placement-picker",
        sample.panes_fleet,
        (120, 36),
        ("right", "p", "down", "down", "down", "down", "down"),
    ),
    Shot("placement", sample.panes_fleet, (120, 36), PLAN_KEYS),
    Shot("placement-small", sample.panes_fleet, (80, 24), PLAN_KEYS),
    Shot("split", sample.split_fleet, (120, 36), ("2", *["down"] * 3, "right", "right")),
    Shot("help", sample.panes_fleet, (120, 36), ("question_mark",)),
    Shot("fleet-light", sample.panes_fleet, (120, 36), ("right",), "olol-light"),
    Shot("fleet-small", sample.panes_fleet, (80, 24), ("down",)),
    Shot("nodes", sample_nodes.nodes_fleet, (120, 36), ("4", "down", "down", "down", "right")),
    Shot("provisioning", sample_nodes.nodes_fleet, (120, 36), ("4", "down", "down")),
    Shot("host-key", sample_nodes.nodes_fleet, (120, 36), ("4", *["down"] * 7, "P")),
    Shot("requests", sample.panes_fleet, (120, 36), ("3", "down", "down")),
)


_TEXT = re.compile(
    r'x="([\d.]+)" (y="[\d.]+") textLength="[\d.]+"([^>]*)>'
    r"((?:&#160;)*)([^<]*?)((?:&#160;)*)</text>"
)
_ENTITY = re.compile(r"&#?\w+;")
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
CELL = 12.2
"""Width of a character in the pictures that Textual exports."""


def tidy(svg: str) -> str:
    """The same picture without leading blanks in its texts and without fonts from the net.

    Some renderers (librsvg) drop blanks at the start of a text and shift what follows.
    """

    def shifted(match: re.Match[str]) -> str:
        x, y, rest, lead, text, _ = match.groups()
        if not text:
            return match.group(0).replace(lead, "") if lead else match.group(0)
        at = float(x) + CELL * lead.count("&#160;")
        length = CELL * len(_ENTITY.sub("x", text))
        return f'x="{at:g}" {y} textLength="{length:g}"{rest}>{text}</text>'

    return _TEXT.sub(shifted, _FONT_FACE.sub("", svg))


async def take(shot: Shot) -> str:
    """Draw one picture as SVG."""
    options = ConsoleOptions(refresh_hz=0, headless=True, theme=shot.theme)
    history = filled_history(shot.fleet_at)
    link = StillLink(shot.fleet_at(AT_S))
    app = OlolApp(link, options, clock=lambda: AT_S, history=history)
    async with app.run_test(size=shot.size) as pilot:
        await pilot.pause()
        for key in shot.keys:
            await pilot.press(key)
        await pilot.pause()
        return tidy(app.export_screenshot(title="olol-tui"))


def main(directory: Path, only: list[str]) -> None:
    """Draw all pictures, or those whose names are given."""
    directory.mkdir(parents=True, exist_ok=True)
    for shot in SHOTS:
        if not only or shot.name in only:
            path = directory / f"{shot.name}.svg"
            path.write_text(asyncio.run(take(shot)), encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main(Path(__file__).parents[1] / "screenshots", sys.argv[1:])
