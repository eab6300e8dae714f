"""What the README shows can be typed as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from olol_tui.config import load

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```toml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("\n")[0] for block in BLOCKS])
def test_every_configuration_it_shows_is_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(block)
    load(tmp_path / "cluster.toml")


def test_it_shows_some() -> None:
    assert len(BLOCKS) > 3
