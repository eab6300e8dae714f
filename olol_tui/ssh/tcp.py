"""Options of the TCP socket below an SSH connection, where there is one and it has them."""

from __future__ import annotations

import contextlib
import socket

import asyncssh


def set_user_timeout(ssh: asyncssh.SSHClientConnection, user_timeout_ms: int) -> None:
    """Give up on what is not acknowledged for so long; without it the keepalive notices, later."""
    _set(ssh, "TCP_USER_TIMEOUT", user_timeout_ms)


def acknowledge(ssh: asyncssh.SSHClientConnection) -> None:
    """Acknowledge now what has come.

    Until its first session sshd sends no small packet before the one ahead is acknowledged, for
    which our kernel takes 40 ms when it has nothing to say.
    """
    _set(ssh, "TCP_QUICKACK", 1)


def _set(ssh: asyncssh.SSHClientConnection, name: str, value: int) -> None:
    sock = ssh.get_extra_info("socket")
    option = getattr(socket, name, None)
    if sock is None or option is None:
        return  # Over a proxy command or a jump host, or not on Linux.
    with contextlib.suppress(OSError):  # Not a TCP socket.
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
