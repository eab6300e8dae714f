"""The pictures in screenshots/ show the console as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from olol_tui.screenshots import SHOTS, Shot, take, tidy

DIRECTORY = Path(__file__).parents[2] / "screenshots"


@pytest.mark.parametrize("shot", SHOTS, ids=lambda shot: shot.name)
async def test_pictures_are_not_stale(shot: Shot) -> None:
    drawn = await take(shot)
    kept = (DIRECTORY / f"{shot.name}.svg").read_text(encoding="utf-8")
    assert drawn == kept, "run: python -m olol_tui.screenshots"


def test_leading_blanks_become_a_shift() -> None:
    svg = '<text x="12.2" y="20" textLength="61">&#160;&#160;66%</text>'
    assert tidy(svg) == '<text x="36.6" y="20" textLength="36.6">66%</text>'
