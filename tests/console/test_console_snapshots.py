"""Pictures of the main screens, compared byte by byte; the text is asserted elsewhere.

After a change that is meant: pytest tests/console/test_console_snapshots.py --snapshot-update
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from olol_tui.console.app import ConsoleOptions, OlolApp
from olol_tui.console.sample import hero_fleet, panes_fleet
from olol_tui.console.sample_nodes import nodes_fleet
from olol_tui.fleet.snapshot import Fleet
from olol_tui.screenshots import AT_S, PLAN_KEYS, StillLink, filled_history

Compare = Callable[..., bool]


def app_of(fleet_at: Callable[[float], Fleet]) -> OlolApp:
    options = ConsoleOptions(refresh_hz=0, headless=True)
    link = StillLink(fleet_at(AT_S))
    return OlolApp(link, options, clock=lambda: AT_S, history=filled_history(fleet_at))


@pytest.mark.parametrize(
    ("fleet_at", "size", "keys"),
    [
        (panes_fleet, (120, 36), ["right"]),
        (panes_fleet, (80, 24), ["down"]),
        (hero_fleet, (80, 24), []),
        (panes_fleet, (80, 24), ["3", "down"]),
        (panes_fleet, (80, 24), ["right", "p"]),
        (panes_fleet, (120, 36), [*PLAN_KEYS]),
        (nodes_fleet, (120, 36), ["4", *["down"] * 6]),
        (nodes_fleet, (80, 24), ["4", "down", "down", "enter"]),
    ],
    ids=["panes", "list", "hero", "requests", "picker", "placement", "nodes", "node"],
)
def test_screens(
    snap_compare: Compare,
    fleet_at: Callable[[float], Fleet],
    size: tuple[int, int],
    keys: list[str],
) -> None:
    assert snap_compare(app_of(fleet_at), terminal_size=size, press=keys)
