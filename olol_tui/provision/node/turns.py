"""One console at a time changes this machine; none but by a human's word starts it anew."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import base

WAIT_S = 45.0
"""For another console: longer than an agent takes to end and another one to start."""
_POLL_S = 0.1


@contextmanager
def only_one(layout: base.Layout, *, fresh: bool = True) -> Iterator[None]:
    """Hold this machine's turn; the kernel frees that of a console which died.

    Args:
        fresh: it may be that nothing of ours is here yet. Else whoever waited for its turn, or
            decided by what it had seen before, finds here that it was uninstalled meanwhile.

    Raises:
        Trouble: another console takes too long, or has uninstalled this machine.
    """
    path = layout.state / "provision.lock"
    try:
        descriptor = os.open(str(path), os.O_RDWR | (os.O_CREAT if fresh else 0), 0o600)
    except FileNotFoundError:
        raise _uninstalled() from None
    try:
        _wait(descriptor)
        if not _is_at(descriptor, path) or not (fresh or layout.read_record()):
            raise _uninstalled()
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # A file system without locks: better without than not at all.
        if time.monotonic() > deadline:
            raise base.Trouble("busy", "another console works on this machine", "Try again later.")
        time.sleep(_POLL_S)


def _uninstalled() -> base.Trouble:
    return base.Trouble(
        "uninstalled", "this machine was uninstalled meanwhile", "Provision it again."
    )


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
