"""The hosts that `~/.ssh/config` names, to choose nodes from.

Reads only what is shown: the name, HostName, User and Port. `Match` blocks are left out,
because deciding them may run programs; whoever dials resolves the name properly. Blocking.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

MAX_HOSTS = 2000
MAX_DEPTH = 8
"""Of files that include files."""

_LINE = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*)")
"""Keyword and the rest; blank lines and comments do not match."""

_SHOWN = ("hostname", "user", "port")


@dataclass(frozen=True, slots=True)
class SshHost:
    """One `Host` without wildcards."""

    name: str
    hostname: str = ""
    user: str = ""
    port: int | None = None

    @property
    def address(self) -> str:
        """`ops@10.0.4.13:2222`, as far as the configuration says it."""
        user = f"{self.user}@" if self.user else ""
        return f"{user}{self.hostname or self.name}{f':{self.port}' if self.port else ''}"


@dataclass(slots=True)
class _Block:
    """A `Host` line and what stands below it."""

    patterns: tuple[str, ...]
    values: dict[str, str] = field(default_factory=dict)

    def applies(self, name: str) -> bool:
        if any(fnmatchcase(name, p[1:]) for p in self.patterns if p.startswith("!")):
            return False
        return any(fnmatchcase(name, p) for p in self.patterns if not p.startswith("!"))


def user_config() -> Path:
    return Path("~/.ssh/config").expanduser()


def read_ssh_hosts(config: Path | None = None) -> tuple[SshHost, ...]:
    """Hosts in the order of the file; none when it cannot be read.

    Args:
        config: the file; None: the user's.
    """
    path = user_config() if config is None else config
    blocks = _blocks(path, path.parent)
    names = dict.fromkeys(
        pattern
        for block in blocks
        for pattern in block.patterns
        if pattern and not any(c in pattern for c in "*?!%")
    )
    # Most files are long lists of plain hosts: only the others are tried for every name.
    plain: dict[str, list[int]] = {}
    wild: list[int] = []
    for index, block in enumerate(blocks):
        if any(c in pattern for pattern in block.patterns for c in "*?!"):
            wild.append(index)
        for pattern in block.patterns:
            plain.setdefault(pattern, []).append(index)
    found = []
    for name in list(names)[:MAX_HOSTS]:
        matching = sorted({*plain[name], *(i for i in wild if blocks[i].applies(name))})
        found.append(_host(name, [blocks[i] for i in matching if blocks[i].applies(name)]))
    return tuple(found)


def _host(name: str, blocks: Sequence[_Block]) -> SshHost:
    """As ssh does it: the first value of each key stands."""
    values: dict[str, str] = {}
    for block in blocks:
        for key, value in block.values.items():
            values.setdefault(key, value)
    port = values.get("port", "")
    return SshHost(
        name,
        values.get("hostname", "").replace("%h", name).replace("%%", "%"),
        values.get("user", ""),
        int(port) if port.isascii() and port.isdigit() else None,
    )


def _blocks(path: Path, base: Path) -> list[_Block]:
    blocks = [_Block(("*",))]
    for key, words in _lines(path, base, 0):
        if key == "host":
            blocks.append(_Block(tuple(words)))
        elif key == "match":
            blocks.append(_Block(()))
        elif key in _SHOWN and words:
            blocks[-1].values.setdefault(key, words[0])
    return blocks


def _lines(path: Path, base: Path, depth: int) -> Iterator[tuple[str, list[str]]]:
    """Keywords in lower case with their arguments, included files in place."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        try:
            words = shlex.split(found[2], comments=True)
        except ValueError:
            continue
        if (key := found[1].lower()) != "include":
            yield key, words
        elif depth < MAX_DEPTH:
            for pattern in words:
                yield from _included(pattern, base, depth)


def _included(pattern: str, base: Path, depth: int) -> Iterator[tuple[str, list[str]]]:
    wanted = Path(pattern).expanduser()
    root = Path(wanted.anchor) if wanted.is_absolute() else base
    try:
        paths = sorted(root.glob(str(wanted.relative_to(wanted.anchor))))
    except (OSError, ValueError):
        return
    for path in paths:
        yield from _lines(path, base, depth + 1)
