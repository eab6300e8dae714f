"""The first session of a connection: no stream may be opened before it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import asyncssh

from olol_tui.ssh import errors
from olol_tui.ssh.target import PROFILES
from olol_tui.ssh.text import clean

if TYPE_CHECKING:
    from olol_tui.ssh.connection import Connection

log = logging.getLogger("olol.ssh")


async def first_session(connection: Connection, command: str, *, is_jump: bool) -> None:
    """Run a command: it makes sshd send small packets at once, on this connection for good.

    A jump host may allow nothing but forwarding; then streams over it are slower.

    Args:
        command: goes on running, for who takes it over; without one it is `true`.
    """
    profile = PROFILES[connection.hop.target.profile]
    try:
        async with asyncio.timeout(profile.handshake_s):
            if command:
                connection.first = await connection.ssh.create_process(
                    command, encoding=None, request_pty=False
                )
            else:
                await connection.ssh.run("true", stdin=asyncssh.DEVNULL, encoding=None)
    except asyncssh.ChannelOpenError as error:
        if is_jump:
            log.info("%s allows no session: %s", connection.hop.display, clean(error.reason))
            return
        raise errors.SessionsForbidden(
            f"{connection.name}: {connection.hop.display} lets {connection.hop.user} in but runs "
            f"no command ({clean(error.reason)})",
            hint="Its sshd_config needs MaxSessions of 1 or more for this user.",
        ) from error
    except TimeoutError as error:
        raise errors.Unreachable(
            f"{connection.name}: {connection.hop.display} lets {connection.hop.user} in but "
            + ("starts no command" if command else "the command `true` does not end")
            + f" within {profile.handshake_s:g} s",
            hint="Something in the user's shell start-up files may wait for input.",
        ) from error
    except (asyncssh.Error, OSError) as error:
        raise errors.Unreachable(
            f"{connection.name}: {connection.hop.display} hung up: {clean(str(error))}"
        ) from error
