"""Log files: last lines, following, and rotation that the writer need not know of."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections import deque
from pathlib import Path
from typing import AsyncIterator, NamedTuple

_BLOCK_BYTES = 65536
_MAX_LINE_CHARS = 4000
_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]")


class Limits(NamedTuple):
    """When a log is rotated: engines write for months."""

    max_bytes: int = 20 * 1024 * 1024
    files: int = 3
    """With the current one."""


def rotated(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def rotate(path: Path, limits: Limits) -> bool:
    """Copy the log away and truncate it when it is too long.

    The writer keeps its descriptor (O_APPEND), so the next line lands at the new start; a
    line written between copy and truncation can be lost, which is the price of not
    owning the pipe of a process that must outlive us.
    """
    try:
        if path.stat().st_size <= limits.max_bytes:
            return False
    except OSError:
        return False
    for number in range(limits.files - 2, 0, -1):
        older = rotated(path, number)
        if older.exists():
            older.replace(rotated(path, number + 1))
    if limits.files > 1:
        shutil.copyfile(path, rotated(path, 1))
    os.truncate(path, 0)
    return True


def tail(path: Path, count: int, end: int | None = None) -> list[str]:
    """The last `count` lines before byte `end` (default: all); [] when there is no file."""
    if count <= 0:
        return []
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            if end is not None:
                position = min(position, end)
            blocks: deque[bytes] = deque()
            newlines = 0
            while position > 0 and newlines <= count:
                step = min(_BLOCK_BYTES, position)
                position -= step
                file.seek(position)
                block = file.read(step)
                newlines += block.count(b"\n")
                blocks.appendleft(block)
    except OSError:
        return []
    lines = b"".join(blocks).split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [_clean(line) for line in lines[-count:]]


def follow(path: Path, count: int, *, poll_s: float = 0.25) -> AsyncIterator[str]:
    """The last `count` lines before now, then each new one for as long as the caller listens.

    There is no portable event for a growing file, hence the poll; a file that got
    shorter was rotated and is read from its start.
    """
    return _follow(path, count, _last_line_end(path), poll_s)


async def _follow(path: Path, count: int, position: int, poll_s: float) -> AsyncIterator[str]:
    for line in tail(path, count, position):
        yield line
    pending = b""
    while True:
        size = _size(path)
        if size < position:
            position, pending = 0, b""
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                data = file.read(size - position)
            position += len(data)
            *lines, pending = (pending + data).split(b"\n")
            for raw in lines:
                yield _clean(raw)
            continue
        await asyncio.sleep(poll_s)


def _last_line_end(path: Path) -> int:
    """Where the last complete line ends: a half written one is told when it is whole."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - _BLOCK_BYTES)
            file.seek(start)
            last = file.read(size - start).rfind(b"\n")
    except OSError:
        return 0
    return start + last + 1 if last >= 0 else start


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _clean(raw: bytes) -> str:
    """Text that is safe to draw: engines write colours and carriage returns."""
    plain = _ANSI.sub(b"", raw).rstrip(b"\r\n")
    decoded = plain.rsplit(b"\r", 1)[-1].decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c == "\t" else "�" for c in decoded)[:_MAX_LINE_CHARS]
