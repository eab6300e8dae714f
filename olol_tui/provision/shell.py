"""What provisioning asks of a connection: `ssh.link.NodeLink` has it, and so has a local shell."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

import asyncssh


class Done(Protocol):
    """A command that ended. The texts are as the node sent them: `clean` before showing."""

    @property
    def status(self) -> int: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


class Talk(Protocol):
    """A command that runs on, talked with over its standard input and output."""

    async def write(self, data: bytes) -> None:
        """Give it input; what it does not want any more is dropped.

        Raises:
            SSHError: the connection failed.
        """
        ...

    async def read(self) -> bytes:
        """What it printed next; empty at its end.

        Raises:
            SSHError: the connection failed.
        """
        ...

    async def end(self) -> Done:
        """Close its input and wait for its end, not for ever; what was not read is dropped."""
        ...

    def abandon(self) -> None:
        """It is in the middle of something that nobody waits for: end it by force."""
        ...


class Shell(Protocol):
    """A way to run commands on one node and to send it files.

    Sessions may be scarce (`MaxSessions 1`): never start a command while SFTP is open.
    """

    async def run(self, command: str, *, stdin: bytes = b"", timeout_s: float = 30.0) -> Done:
        """Run to the end. A command that fails is no error here: `status` tells.

        Raises:
            SSHError: the connection failed, or the command took too long.
        """
        ...

    def talk(self, command: str) -> AbstractAsyncContextManager[Talk]:
        """Start a command and talk with it; on leaving it is ended.

        Raises, on entering:
            SSHError: the connection failed, or opens no session.
        """
        ...

    def sftp(self) -> AbstractAsyncContextManager[asyncssh.SFTPClient]:
        """An SFTP session.

        Raises, on entering:
            SftpMissing: the node has no SFTP.
        """
        ...
