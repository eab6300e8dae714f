"""From what an operator types to a node to be added. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from olol_tui.config.schema import NAME_PATTERN
from olol_tui.fleet.commands import AddNode
from olol_tui.units import parse_size

LONGEST_NAME = 64
MOST_GPUS = 1024

_UNSAID = re.compile(r"[^a-z0-9._-]+")
_HOST = re.compile(r"[^\s@/\\'\"`$;&|<>(){}*?!\x00-\x1f\x7f]+")
_SIMULATED = re.compile(r"(\d{1,4})(?:\s*[x×*]\s*(.+))?")


@dataclass(frozen=True, slots=True)
class Where:
    """A host as typed."""

    host: str
    user: str = ""
    port: int | None = None

    @property
    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}{f':{self.port}' if self.port else ''}"


def parse_where(text: str) -> Where:
    """`host`, `user@host`, `host:port`, `user@[fe80::1]:22`.

    Raises:
        ValueError: what is wrong with it.

    >>> parse_where("ops@gpu1:2222")
    Where(host='gpu1', user='ops', port=2222)
    """
    text = text.strip().removeprefix("ssh://").removeprefix("ssh ").strip()
    user, at, place = text.rpartition("@")
    if at and not user:
        raise ValueError("there is no user before the @")
    port = ""
    if place.startswith("["):
        host, closed, rest = place[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError("an IPv6 address with a port is written [fe80::1]:22")
        port = rest.removeprefix(":")
        colon = bool(rest)
    elif place.count(":") == 1:
        host, _, port = place.partition(":")
        colon = True
    else:
        host, colon = place, False
    if not host:
        raise ValueError("type a host, or choose one")
    for word in (host, user):
        if word and (word.startswith("-") or not _HOST.fullmatch(word)):
            raise ValueError(f"{word!r} is not a name that ssh takes")
    if not colon:
        return Where(host, user)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{port!r} is no port")
    return Where(host, user, int(port))


def name_for(host: str) -> str:
    """A node's name made of a host's: what a name may not hold becomes a dash."""
    return _UNSAID.sub("-", host.lower()).strip("-._")[:LONGEST_NAME]


def name_trouble(name: str, taken: Collection[str]) -> str:
    """Why a node cannot have this name; empty when it can."""
    if not name:
        return "a node needs a name"
    if not re.match(NAME_PATTERN, name) or len(name) > LONGEST_NAME:
        return "a name is made of a-z, 0-9 and . _ -, and starts with a letter or digit"
    return f"there is a node {name} already" if name in taken else ""


def parse_simulated(text: str) -> tuple[int | None, int | None]:
    """GPUs and bytes of each: nothing, `4` or `4x24GiB`.

    Raises:
        ValueError: what is wrong with it.
    """
    if not text.strip():
        return None, None
    found = _SIMULATED.fullmatch(text.strip())
    if found is None or not 1 <= int(found[1]) <= MOST_GPUS:
        raise ValueError(f"simulated GPUs: 1 to {MOST_GPUS}, such as 4 or 4x24GiB")
    vram_bytes = None if found[2] is None else parse_size(found[2])
    if vram_bytes is not None and vram_bytes < 2**20:
        raise ValueError("simulated GPUs: below 1 MiB a unit was forgotten, such as 4x24GiB")
    return int(found[1]), vram_bytes


def wish(
    where: str, name: str, simulated: str, *, known: Collection[str], taken: Collection[str]
) -> AddNode:
    """The command.

    Args:
        known: hosts of the SSH configuration: their user and port are left to it.
        taken: names of nodes that are there.

    Raises:
        ValueError: what is wrong, in a sentence.
    """
    place = Where(where.strip()) if where.strip() in known else parse_where(where)
    wanted = name.strip() or name_for(place.host)
    if trouble := name_trouble(wanted, taken):
        raise ValueError(trouble)
    gpus, vram_bytes = parse_simulated(simulated)
    return AddNode(
        name=wanted,
        host="" if place.host == wanted else place.host,
        user=place.user,
        port=place.port,
        simulated_gpus=gpus,
        simulated_vram_bytes=vram_bytes,
    )
