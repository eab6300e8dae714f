"""Named styles of a theme: renderers say what a text is, never which colour it has.

A Palette holds one background; `Palettes` holds the same styles on every background the
console draws on. Built once a theme change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.style import Style

COLOR_NAMES = (
    "background",
    "surface",
    "panel",
    "cursor",
    "text",
    "muted",
    "faint",
    "accent",
    "ok",
    "idle",
    "warn",
    "crit",
    "stale",
    "loading",
    "pinned",
    "util",
    "vram",
    "temp",
    "power",
)
"""Every colour that a theme file gives."""


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def blend(under: str, over: str, share: float) -> str:
    """The colour `share` of the way from one `#rrggbb` to another."""
    mixed = (round(a + (b - a) * share) for a, b in zip(_rgb(under), _rgb(over), strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


@dataclass(frozen=True, slots=True)
class Palette:
    """Styles on one background."""

    base: Style
    bright: Style
    muted: Style
    faint: Style
    accent: Style
    strong: Style
    """Accent, bold: keys, titles of what has the cursor."""
    chip: Style
    """Reversed accent: the active tab, the focused button."""
    ok: Style
    idle: Style
    warn: Style
    crit: Style
    stale: Style
    loading: Style
    pinned: Style
    util: Style
    vram: Style
    temp: Style
    power: Style
    empty: Style
    """The unfilled part of a bar."""
    empty_button: Style
    """A button without focus."""
    colors: Mapping[str, str] = field(repr=False)
    background: str
    _ramps: dict[tuple[str, int], tuple[Style, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def ramp(self, name: str, rows: int) -> tuple[Style, ...]:
        """Styles of a graph `rows` high, top first: the higher, the fuller the colour."""
        found = self._ramps.get((name, rows))
        if found is None:
            color = self.colors[name]
            shares = [1.0 - 0.55 * row / max(1, rows - 1) for row in range(rows)]
            found = self._ramps[name, rows] = tuple(
                Style(color=blend(self.background, color, share), bgcolor=self.background)
                for share in shares
            )
        return found

    def state(self, state: str) -> Style:
        """The style of a state's glyph, by the names in `tiles.GLYPHS`."""
        return {
            "ok": self.ok,
            "idle": self.idle,
            "warn": self.warn,
            "crit": self.crit,
            "stale": self.stale,
            "lost": self.crit,
            "cordoned": self.muted,
            "loading": self.loading,
        }[state]


def _palette(colors: Mapping[str, str], background: str, *, dimmed: bool = False) -> Palette:
    def style(name: str, *, bold: bool = False) -> Style:
        color = colors["stale"] if dimmed else colors[name]
        return Style(color=color, bgcolor=background, bold=bold or None)

    def softer(name: str) -> Style:
        # Of four graphs in a pane only utilisation should catch the eye.
        color = blend(background, colors["stale" if dimmed else name], 0.7)
        return Style(color=color, bgcolor=background)

    return Palette(
        base=style("text"),
        muted=style("muted"),
        faint=style("faint"),
        accent=style("accent"),
        bright=style("text", bold=True),
        strong=style("accent", bold=True),
        chip=Style(color=colors["background"], bgcolor=colors["accent"], bold=True),
        empty=Style(color=blend(background, colors["faint"], 0.75), bgcolor=background),
        empty_button=Style(color=colors["text"], bgcolor=blend(background, colors["faint"], 0.5)),
        colors=dict.fromkeys(COLOR_NAMES, colors["stale"]) if dimmed else colors,
        background=background,
        ok=style("ok"),
        idle=style("idle"),
        warn=style("warn"),
        crit=style("crit"),
        stale=style("stale"),
        loading=style("loading"),
        pinned=style("pinned"),
        util=style("util"),
        vram=style("vram"),
        temp=softer("temp"),
        power=softer("power"),
    )


@dataclass(frozen=True, slots=True)
class Palettes:
    """One theme on every background."""

    base: Palette
    dim: Palette
    """All in the colour of stale data, on the base background."""
    cursor: Palette
    """The row or pane under the cursor."""
    head: Palette
    """Header and footer."""
    panel: Palette
    """Dialogs."""
    panel_cursor: Palette
    """A chosen row in a dialog."""
    colors: Mapping[str, str]


def make_palettes(colors: Mapping[str, str]) -> Palettes:
    """All palettes of a theme from its colours, `#rrggbb` by the names in COLOR_NAMES."""
    return Palettes(
        base=_palette(colors, colors["background"]),
        dim=_palette(colors, colors["background"], dimmed=True),
        cursor=_palette(colors, colors["cursor"]),
        head=_palette(colors, colors["surface"]),
        panel=_palette(colors, colors["panel"]),
        panel_cursor=_palette(colors, colors["cursor"]),
        colors=colors,
    )
