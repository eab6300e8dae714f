"""A greeting to a llama.cpp RPC worker: is it alive, and which protocol does it speak?

For idle workers only. A worker serves one client at a time; whoever comes second waits
unanswered until the first has left.
"""

from __future__ import annotations

import socket
import struct

HELLO = 14
_CAPS_BYTES = 24
_LIMIT_BYTES = 4096


class NoAnswer(Exception):
    """Nobody is there, or nobody who speaks RPC, or a worker that is frozen or busy."""


def greet(host: str, port: int, timeout_s: float) -> str:
    """The worker's protocol version, `7.0.0`. Blocks.

    Raises:
        NoAnswer
    """
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as connection:
            connection.settimeout(timeout_s)
            connection.sendall(struct.pack("<BQ", HELLO, _CAPS_BYTES) + bytes(_CAPS_BYTES))
            (size,) = struct.unpack("<Q", _exactly(connection, 8))
            if not 3 <= size <= _LIMIT_BYTES:
                raise NoAnswer(f"{host}:{port} does not speak RPC")
            major, minor, patch = _exactly(connection, size)[:3]
    except OSError as error:
        raise NoAnswer(f"{host}:{port}: {error}") from error
    return f"{major}.{minor}.{patch}"


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise NoAnswer("it closed the connection instead of greeting back")
        data += part
    return data
