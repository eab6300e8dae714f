"""How the console runs, as the command line says it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ConsoleOptions:
    """How the console runs."""

    read_only: bool = False
    mouse: bool = True
    theme: str | None = None
    user_themes: Path | None = None
    refresh_hz: float = 2.0
    """Frames a second without keys pressed; 0 draws only when asked (tests)."""
    headless: bool = False
    """No terminal (tests)."""
    ssh_config: Path | None = None
    """Where hosts to add are read from; None: the user's ~/.ssh/config."""
