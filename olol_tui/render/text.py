"""Text as the screen may carry it: cleaned, measured, cut to width, numbers with units.

Every string that came from a host, a model store or a client passes `clean` before it
reaches a segment: an escape sequence in a model's name must not move the cursor.
Pure; imports nothing of the rest.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import Literal

from rich.cells import cell_len, set_cell_size

Align = Literal["<", ">", "^"]

MISSING = "-"
"""Shown where a device or engine gives no figure: absent is never 0."""

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"  # OSC, DCS…
    r"|\x1b[ -/]*[0-~]?"
)
_BLANKS = re.compile(r"[\t\n\r\v\f\x85\u2028\u2029]+")
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""C0, C1, bidi and zero-width controls, variation selectors, lone surrogates, tags."""


@lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """The text without anything that could steer a terminal; line breaks become blanks.

    >>> clean("\\x1b[31mred\\x1b[0m\\nname")
    'red name'
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub("", _BLANKS.sub(" ", _ESCAPES.sub("", text)))


def cells(text: str) -> int:
    """Terminal cells that the text takes; wide characters take two."""
    return len(text) if text.isascii() else cell_len(text)


@lru_cache(maxsize=16384)
def fit(text: str, width: int, align: Align = "<") -> str:
    """The cleaned text in exactly `width` cells, cut with `…` when it is longer."""
    if width <= 0:
        return ""
    text = clean(text)
    size = cells(text)
    if size > width:
        cut = set_cell_size(text, width - 1)
        # A wide character on the edge leaves one cell too few: pad before the ellipsis.
        return f"{cut}…" if width > 1 else "…"
    pad = " " * (width - size)
    if align == ">":
        return pad + text
    if align == "^":
        half = (width - size) // 2
        return " " * half + text + " " * (width - size - half)
    return text + pad


def size(count_bytes: float | None) -> str:
    """Bytes in at most five cells, binary units: `94M`, `9.8G`, `141G`, `5.1T`."""
    if count_bytes is None:
        return MISSING
    value = count_bytes / 2**20
    if value < 1000:
        return f"{value:.0f}M"
    for unit in "GT":
        value /= 1024
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < 1000:
            return f"{value:.0f}{unit}"
    return f"{value / 1024:.1f}P"


def size_pair(used_bytes: float | None, total_bytes: float | None) -> str:
    """`18.2/24G`, `99/141G`, `3.2/5.1T`: both in the unit of the total."""
    if total_bytes is None or used_bytes is None:
        return size(used_bytes)
    unit, scale = next(
        ((u, s) for u, s in (("M", 2**20), ("G", 2**30)) if total_bytes / s < 1000), ("T", 2**40)
    )
    used, total = used_bytes / scale, total_bytes / scale
    digits = 0 if total >= 99.5 or unit == "M" else 1
    whole = f"{total:.{digits}f}".removesuffix(".0")
    return f"{used:.{digits}f}/{whole}{unit}"


def percent(value: float | None) -> str:
    """`83%`; a value above 0 never reads as 0."""
    if value is None:
        return MISSING
    return f"{max(1, round(value)) if value > 0 else 0}%"


def watts(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.0f}W" if value < 10_000 else f"{value / 1000:.1f}kW"


def celsius(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0f}C"


def age(duration_s: float | None) -> str:
    """A duration in at most four cells: `0.5s`, `14s`, `7m`, `5h`, `3d`."""
    if duration_s is None:
        return MISSING
    duration_s = max(0.0, duration_s)
    if duration_s < 9.95:
        return f"{duration_s:.1f}s"
    for unit, scale, limit in (("s", 1, 100), ("m", 60, 6000), ("h", 3600, 172_800)):
        if duration_s < limit:
            return f"{duration_s / scale:.0f}{unit}"
    return f"{duration_s / 86400:.0f}d"


def seconds(duration_s: float | None) -> str:
    """A latency in at most six cells: `0.41s`, `17.5s`, `4m12s`, `2h05m`."""
    if duration_s is None:
        return MISSING
    if duration_s < 9.995:
        return f"{duration_s:.2f}s"
    if duration_s < 99.95:
        return f"{duration_s:.1f}s"
    minutes, rest = divmod(int(duration_s), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def tenths(duration_s: float | None) -> str:
    """A duration that grows while it is watched: `9.9s`, `17.5s`, `4m12s`."""
    if duration_s is None:
        return MISSING
    return f"{duration_s:.1f}s" if duration_s < 99.95 else seconds(duration_s)


def rate(per_s: float | None) -> str:
    """A rate in at most five cells: `3.1`, `88.1`, `412`, `12.4k`."""
    if per_s is None:
        return MISSING
    if per_s < 99.95:
        return f"{per_s:.1f}"
    return f"{per_s:.0f}" if per_s < 9999.5 else f"{per_s / 1000:.1f}k"


def short_model(name: str) -> str:
    """A model's name for a narrow column: without the tag that says nothing."""
    return name.removesuffix(":latest")


def count(number: int, noun: str) -> str:
    """`1 node`, `3 nodes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@lru_cache(maxsize=1024)
def _instant_s(rfc3339: str) -> float | None:
    try:
        return datetime.fromisoformat(rfc3339).timestamp()
    except ValueError:
        return None


def remaining(expires_at: str, wall: str) -> str:
    """Time from the snapshot's wall clock to an expiry: `4m12s`, `forever` when there is none."""
    if not expires_at:
        return "forever"
    end, now = _instant_s(expires_at), _instant_s(wall)
    if end is None or now is None:
        return MISSING
    left_s = end - now
    # Ollama writes «never» as a date some 290 years ahead.
    return "forever" if left_s > 10 * 365 * 86400 else seconds(max(0.0, left_s))
