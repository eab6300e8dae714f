"""The tensors that workers of splits keep on disk, so that a restart need not send them again.

llama.cpp writes a tensor under the hash of what it was sent, removes none, and reads it back
without looking: one that was cut short, by the death of its worker or by a full disk, would
be served as half a tensor for ever. So every worker has a directory of its own, made anew at
each start from links into a pool, and what it has written comes into the pool once it is
known to be whole. Of the pool the least lately used go, so that the disk keeps room for
everything else; a worker whose share would not fit keeps none.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path

from .pulse import holds_open

RESERVE_SHARE = 0.1
RESERVE_BYTES = 1 << 30
"""Left free on the disk, or a tenth of it if that is more."""
_FULL_BYTES = 64 << 20
"""With less than this free, what was just written may have been cut."""
_TURN_S = 0.5
"""For one round of bringing files into the pool; the next round goes on."""
_LEFT_S = 600.0
"""What a worker wrote so long ago and is not in the pool was cut by its death."""
_POOL = "pool"
_BEFORE = "rpc"
"""Where all workers of earlier versions wrote: nobody knows what in it is whole."""


def directory_of(cache: Path, worker: str) -> Path:
    """What LLAMA_CACHE is to be for this worker; it writes into `rpc` in it."""
    return cache / f"worker-{zlib.crc32(worker.encode()):08x}"


def prepare(cache: Path, worker: str, wanted_bytes: int) -> bool:
    """Make room for so many bytes, and give the worker what is in the pool; whether there is
    room. Blocks.

    Raises:
        OSError: the directories cannot be made or looked at.
    """
    own, pool = directory_of(cache, worker), cache / _POOL
    for stale in (own, cache / _BEFORE):
        shutil.rmtree(str(stale), ignore_errors=True)
    for directory in (pool, own / "rpc"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _clear(cache)
    found = []
    for path in pool.iterdir():
        status = path.stat()
        found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    disk = shutil.disk_usage(str(cache))
    reserve = max(RESERVE_BYTES, int(disk.total * RESERVE_SHARE))
    # What is kept already may be just what is wanted: it counts as room.
    kept = sum(size for _, size, _ in found)
    free = disk.free
    for _, size, path in sorted(found):
        if free + kept >= wanted_bytes + reserve and free >= reserve:
            break
        for link in (path, *cache.glob(f"*/rpc/{path.name}")):
            with suppress(FileNotFoundError):
                link.unlink()
        free, kept = free + size, kept - size
    if free + kept < wanted_bytes + reserve:
        return False
    for path in pool.iterdir():
        os.link(str(path), str(own / "rpc" / path.name))
    return True


def keep(cache: Path, worker: str, pid: int) -> None:
    """Bring into the pool what this worker has written and closed. Blocks for a moment.

    Raises:
        OSError: the disk does not take it.
    """
    own, pool = directory_of(cache, worker) / "rpc", cache / _POOL
    try:
        written = [path for path in own.iterdir() if path.stat().st_nlink == 1]
    except FileNotFoundError:
        return  # it was started without
    if not written or shutil.disk_usage(str(cache)).free < _FULL_BYTES:
        return
    busy = holds_open(pid)
    if busy is None:
        return  # it died over one of them, and nobody knows which
    until_s = time.monotonic() + _TURN_S
    for path in written:
        if str(path) in busy or time.monotonic() > until_s:
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a machine that loses power must not cut it either
        try:
            os.link(str(path), str(pool / path.name))
        except FileExistsError:
            # Another worker was sent the same: once is enough.
            path.unlink()
            os.link(str(pool / path.name), str(path))


def _clear(cache: Path) -> None:
    """Remove what workers that never came back have left half written."""
    for path in cache.glob("*/rpc/*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if status.st_nlink == 1 and time.time() - status.st_mtime > _LEFT_S:
                path.unlink()
