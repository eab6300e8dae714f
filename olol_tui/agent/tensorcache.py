"""The tensors that workers of splits keep on disk, so that a restart need not send them again.

llama.cpp never removes any; here the least lately used go, so that the disk keeps room for
everything else, and a worker whose share would not fit keeps none.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

RESERVE_SHARE = 0.1
RESERVE_BYTES = 1 << 30
"""Left free on the disk, or a tenth of it if that is more."""


def prepare(directory: Path, wanted_bytes: int) -> bool:
    """Make room for so many bytes; whether there is. Blocks.

    Raises:
        OSError: the directory cannot be made or looked at.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = []
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.is_file():
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    disk = shutil.disk_usage(str(directory))
    reserve = max(RESERVE_BYTES, int(disk.total * RESERVE_SHARE))
    # What is kept already may be just what is wanted: it counts as room.
    kept = sum(size for _, size, _ in found)
    free = disk.free
    for _, size, path in sorted(found):
        if free + kept >= wanted_bytes + reserve and free >= reserve:
            break
        with suppress(FileNotFoundError):
            path.unlink()
        free, kept = free + size, kept - size
    return free + kept >= wanted_bytes + reserve
