"""Lines that our agent wrote into authorized_keys, for heads of splits on other nodes.

The agent takes them out itself when it stops its engines; this is for one that could not.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from . import base

MARK = b"olol-mesh"


def lines_of(layout: base.Layout) -> int:
    """How many there are."""
    try:
        raw = _path().read_bytes()
    except OSError:
        return 0
    return sum(_is_ours(line, layout) for line in raw.splitlines())


def remove(layout: base.Layout) -> int:
    """Take ours out, every other byte stays; returns how many there were."""
    count = lines_of(layout)
    if not count:
        return 0
    path = _path().resolve()
    directory = os.open(str(path.parent), os.O_RDONLY | os.O_DIRECTORY)
    try:
        # As agents do that share the home directory.
        fcntl.flock(directory, fcntl.LOCK_EX)
        lines = path.read_bytes().splitlines(keepends=True)
        kept = b"".join(line for line in lines if not _is_ours(line, layout))
        descriptor, name = tempfile.mkstemp(dir=str(path.parent), prefix=".authorized_keys.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(kept)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(path.stat().st_mode & 0o7777)
            Path(name).replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                Path(name).unlink()
            raise
    finally:
        os.close(directory)
    return count


def _path() -> Path:
    return Path(os.environ.get("HOME") or "/") / ".ssh" / "authorized_keys"


def _is_ours(line: bytes, layout: base.Layout) -> bool:
    owner = hashlib.sha256(os.fsencode(layout.state)).hexdigest()[:16]
    return line.split()[-2:] == [MARK, owner.encode("ascii")]
