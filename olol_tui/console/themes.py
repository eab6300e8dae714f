"""Theme files: read, checked, and turned into palettes and Textual themes.

Shipped themes lie in `olol_tui/_themes` of a wheel or `themes/` of a source tree; the
user's directory comes second and wins. A file that is wrong is left out and named, it
never stops the console.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator
from textual.color import Color, ColorParseError
from textual.theme import Theme

from olol_tui.render.palette import COLOR_NAMES, Palettes, make_palettes

DEFAULT = "olol-dark"


def _rrggbb(value: str) -> str:
    try:
        return Color.parse(value).hex6
    except ColorParseError:
        raise ValueError(f"{value!r} is not a colour, write #rrggbb") from None


_Color = Annotated[str, AfterValidator(_rrggbb)]


class ThemeFile(BaseModel):
    """One `*.toml` of a themes directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    dark: bool = True
    colors: dict[str, _Color]
    """Every name in COLOR_NAMES, nothing else."""

    @field_validator("colors")
    @classmethod
    def _complete(cls, colors: dict[str, str]) -> dict[str, str]:
        if missing := [name for name in COLOR_NAMES if name not in colors]:
            raise ValueError(f"missing: {', '.join(missing)}")
        if unknown := [name for name in colors if name not in COLOR_NAMES]:
            raise ValueError(f"unknown: {', '.join(unknown)}")
        return colors


@dataclass(frozen=True, slots=True)
class ConsoleTheme:
    """A theme, as the canvas and as Textual need it."""

    name: str
    dark: bool
    palettes: Palettes

    def textual(self) -> Theme:
        c = self.palettes.colors
        return Theme(
            name=self.name,
            primary=c["accent"],
            secondary=c["vram"],
            warning=c["warn"],
            error=c["crit"],
            success=c["ok"],
            accent=c["accent"],
            foreground=c["text"],
            background=c["background"],
            surface=c["panel"],
            panel=c["surface"],
            dark=self.dark,
        )


@dataclass(slots=True)
class ThemeSet:
    """All themes by name, and why some files were left out."""

    themes: dict[str, ConsoleTheme] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def get(self, name: str | None) -> ConsoleTheme:
        """The named theme; an unknown name falls back to the default and is a failure."""
        if name is not None and name not in self.themes:
            known = ", ".join(self.themes)
            self.failures.append(f"no theme {name!r}, there are: {known}")
        return self.themes.get(name or DEFAULT) or self.themes[DEFAULT]

    def after(self, name: str) -> ConsoleTheme:
        """The next theme in order, round and round."""
        names = list(self.themes)
        return self.themes[names[(names.index(name) + 1) % len(names)]]


def shipped_directory() -> Path:
    """Where the themes of this installation lie."""
    package = Path(__file__).parents[1]
    packed = package / "_themes"
    return packed if packed.is_dir() else package.parent / "themes"


def _read(path: Path) -> ConsoleTheme:
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    theme = ThemeFile.model_validate(raw)
    return ConsoleTheme(theme.name, theme.dark, make_palettes(theme.colors))


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (+{error.error_count() - 1} more)" if error.error_count() > 1 else ""
        return f"{where}: {first['msg'].removeprefix('Value error, ')}{more}"
    return str(error)


def load_themes(user: Path | None = None) -> ThemeSet:
    """Shipped themes, then the user's; the default comes first."""
    found = ThemeSet()
    for directory in (shipped_directory(), user):
        if directory is None or not directory.is_dir():
            continue
        for path in sorted(directory.glob("*.toml")):
            try:
                theme = _read(path)
            except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
                found.failures.append(f"{path.name}: {_reason(error)}")
            else:
                found.themes[theme.name] = theme
    if DEFAULT not in found.themes:
        raise FileNotFoundError(f"theme {DEFAULT} is missing in {shipped_directory()}")
    found.themes = {DEFAULT: found.themes.pop(DEFAULT), **found.themes}
    return found
