"""Sizes in bytes as people write and read them.

Standard library only: the CLI prints with it before anything heavy is imported.
"""

from __future__ import annotations

import re

_UNITS = {
    "": 1,
    "b": 1,
    "bytes": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_BINARY = ("bytes", "KiB", "MiB", "GiB", "TiB")


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `24GiB`, `1.5 GB`, `512MiB` or `1048576`.

    `24G` is refused: it means one thing to `ls` and another to a disk's label.

    Raises:
        ValueError: with what was expected.
    """
    if isinstance(text, bool):
        raise ValueError("expected a size such as 24GiB or 512MB")
    if isinstance(text, int):
        if text < 0:
            raise ValueError(f"expected a size of 0 or more, got {text}")
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"expected a size such as 24GiB or 512MB, got {text!r}")
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_size(size_bytes: float) -> str:
    """`24 GiB`, `1.5 GiB`, `270 MiB`: one decimal below 100 where it says something.

    >>> format_size(25_769_803_776), format_size(94_000_000), format_size(0)
    ('24 GiB', '89.6 MiB', '0 bytes')
    """
    value, unit = float(size_bytes), 0
    # 1023.95 would round to 1024.0: the next unit says it better.
    while abs(value) >= 1023.95 and unit < len(_BINARY) - 1:
        value /= 1024
        unit += 1
    digits = f"{value:.1f}" if abs(value) < 100 and unit else f"{value:.0f}"
    return f"{digits.removesuffix('.0')} {_BINARY[unit]}"


def format_speed(bytes_s: float) -> str:
    """As networks are measured: `112 MB/s`, `0.4 MB/s`.

    >>> format_speed(1.124e8), format_speed(4e5)
    ('112 MB/s', '0.4 MB/s')
    """
    value = bytes_s / 1e6
    return f"{value:.0f} MB/s" if value >= 10 else f"{value:.1f} MB/s"


def link_words(rtt_s: float | None, bytes_s: float | None) -> str:
    """What is known of the way between two nodes: `0.31 ms, 112 MB/s`; empty for nothing."""
    trip = "" if rtt_s is None else f"{rtt_s * 1000:.2g} ms"
    speed = "" if bytes_s is None else format_speed(bytes_s)
    return ", ".join(filter(None, (trip, speed)))


_DURATION_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `1h30m` or `7d`.

    Raises:
        ValueError: with what was expected.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f"expected a duration such as 30m, 24h or 7d, got {text!r}")
    return sum(float(n) * _DURATION_S[unit] for n, unit in _DURATION_PART.findall(text))
