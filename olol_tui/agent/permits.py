"""Lines in authorized_keys that let heads on other nodes reach this node's workers.

Each line holds one key, allows one port on loopback and one harmless command, and ends with
a mark that says whose it is: lines of other agents that share the home directory, and
everything a human wrote, stay byte for byte as they are.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterable, Iterator

from .errors import EngineError
from .records import atomic_write

MARK = "olol-mesh"
_HEARTBEAT = "exec sh -c 'while echo; do sleep 5; done'"
"""A session that ends by itself once nobody reads it: sshd turns Nagle off for it."""


def line(public_key: str, port: int, owner: str) -> str:
    """Args: owner: who may remove it again, without spaces."""
    limits = f'restrict,port-forwarding,permitopen="127.0.0.1:{port}",command="{_HEARTBEAT}"'
    return f"{limits} {public_key} {MARK} {owner}"


def default_path() -> Path:
    return Path("~/.ssh/authorized_keys").expanduser()


def apply(wanted: Iterable[str], owner: str, path: Path | None = None) -> bool:
    """Make these the only lines of this owner. Blocks.

    Returns:
        Whether the file changed.

    Raises:
        EngineError: it cannot be written.
    """
    path = path or default_path()
    lines = sorted(wanted)
    try:
        if not lines and not path.is_file():
            return False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            before = path.read_bytes() if path.exists() else b""
            kept = [one for one in before.splitlines(keepends=True) if not _is_of(one, owner)]
            if lines and kept and not kept[-1].endswith(b"\n"):
                kept[-1] += b"\n"
            after = b"".join(kept) + "".join(f"{one}\n" for one in lines).encode("ascii")
            if after == before:
                return False
            if not after:
                path.unlink()  # it held nothing but ours
                return True
            # A link to the file stays a link.
            real = path.resolve()
            mode = real.stat().st_mode & 0o7777 if real.exists() else 0o600
            atomic_write(real, after)
            real.chmod(mode)
    except OSError as error:
        raise EngineError(
            f"{path} cannot be written: {error.strerror or error}",
            'heads on other nodes are not let in; mesh = "relay" needs no key',
        ) from error
    return True


def _is_of(raw: bytes, owner: str) -> bool:
    return raw.split()[-2:] == [MARK.encode(), owner.encode()]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two agents of one home directory change the file one after the other."""
    directory = os.open(str(path.parent), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
