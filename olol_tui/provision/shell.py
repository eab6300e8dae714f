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

    def sftp(self) -> AbstractAsyncContextManager[asyncssh.SFTPClient]:
        """An SFTP session.

        Raises, on entering:
            SftpMissing: the node has no SFTP.
        """
        ...
