"""The agent's UNIX socket.

Only processes of the same user get an answer: the socket is 0600 inside a 0700
directory, and the kernel names the peer's uid.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Any

from .errors import AgentError, StartError
from .exchange import Exchange, Leaving
from .routes import Router

log = logging.getLogger(__name__)

MAX_SOCKET_PATH_BYTES = 100
"""sun_path holds 108; some systems less."""
_ACCEPT_TURNS = 10


class Server:
    """Listens from `start()` to `close()`; open streams end when it closes."""

    def __init__(self, path: Path, router: Router) -> None:
        self._path = path
        self._router = router
        self._server: asyncio.AbstractServer | None = None
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._inode = 0
        self._leaving = Leaving()

    async def start(self, taken: int | None = None) -> None:
        """Bind the socket; the caller holds the state lock, so an old file is stale.

        Args:
            taken: the descriptor of a listening socket that an earlier image left us.

        Raises:
            StartError: the path is too long, taken by a living listener, or not ours.
        """
        listener = _bind(self._path) if taken is None else socket.socket(fileno=taken)
        self._inode = self._path.stat().st_ino
        self._listener = listener
        # From 3.13 on asyncio would remove the path that the next image answers on.
        options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, **options)

    async def resume(self, connections: list[tuple[int, str]]) -> None:
        """Go on with connections that an earlier image left us."""
        for descriptor, target in connections:
            peer = socket.socket(fileno=descriptor)
            reader, writer = await asyncio.open_unix_connection(sock=peer)
            # Held by `_tasks` from its first step on; until then the loop holds it.
            self._tasks.add(asyncio.ensure_future(self._accept(reader, writer, target)))

    def listener(self) -> int:
        """The listening socket's descriptor once more: it stays when the server is closed."""
        if self._listener is None:
            raise AgentError("the agent does not listen")
        return os.dup(self._listener.fileno())

    async def hand_over(self, grace_s: float) -> list[tuple[int, str]]:
        """Stop without closing: calls are finished, idle connections and telemetry stay open.

        The path stays too. What is not done in time is cut.
        """
        if self._server is not None:
            self._server.close()
        # What the kernel gave us just now takes some turns of the loop to become an exchange.
        for _ in range(_ACCEPT_TURNS):
            await asyncio.sleep(0)
        self._leaving.asked.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        await self._end_tasks()
        return self._leaving.handed

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._end_tasks()
        try:
            # Another agent may have taken the path over: its socket is not ours to remove.
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            return

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str = ""
    ) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            if _peer_uid(writer) != os.getuid():
                log.warning("refused a connection of another user")
                return
            await Exchange(reader, writer, self._router, self._leaving).run(target)
        except (ConnectionError, asyncio.TimeoutError, EOFError) as error:
            log.debug("connection ended: %s", error or type(error).__name__)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()
            if task is not None:
                self._tasks.discard(task)


def _bind(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise StartError(
            f"the socket path {path} is longer than {MAX_SOCKET_PATH_BYTES} bytes",
            "give a shorter one with --socket",
        )
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.stat()
    except OSError as error:
        raise StartError(f"{directory}: {error.strerror}") from error
    if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StartError(
            f"{directory} is open to other users", f"chmod 700 {directory}, or choose another"
        )
    if path.exists() or path.is_symlink():
        _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise StartError(f"cannot listen on {path}: {error.strerror}") from error
    finally:
        os.umask(mask)
    return listener


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        raise StartError(f"{path} exists and is not a socket", "choose another with --socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink()
            return
        except OSError as error:
            raise StartError(f"{path}: {error}") from error
    raise StartError(f"another agent listens on {path}", "stop it, or choose another --socket")


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])
