"""Bytes from here into a file on the node: with progress, resumed where they stopped.

Over SFTP; where there is none, through `cat` in a session. Nothing is taken on trust: the
node hashes the whole file before it is used.
"""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from olol_tui.provision.errors import NodeTrouble, UploadFailed
from olol_tui.provision.helper import Helper, Progress
from olol_tui.provision.shell import Shell
from olol_tui.ssh.errors import LinkLost, SftpMissing, SSHError
from olol_tui.ssh.text import clean
from olol_tui.units import format_size

SFTP_PIECE_BYTES = 2 * 2**20
"""Written with many requests in flight: one wait for the node a piece."""
CAT_PIECE_BYTES = 4 * 2**20
"""A session each: what is lost when the line is cut."""
PIECE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Source:
    """A file of ours that a node should get."""

    path: Path
    sha256: str
    size: int


async def upload(
    shell: Shell, helper: Helper, source: Source, *, directory: str, progress: Progress
) -> tuple[str, str]:
    """Bring an archive into a part on the node.

    Args:
        helper: of that node; it rests meanwhile.
        directory: of our files there, as configured.

    Returns:
        The path of the part, and the way it took: `sftp` or `cat`.

    Raises:
        ProvisionError, SSHError: it is not there; what arrived is used by the next try.
    """
    ask = {"directory": directory, "sha256": source.sha256, "size": source.size}
    place = await helper.call("place", "prepare", ask)
    part, have = str(place["part"]), int(place["size"])
    progress(have, source.size)
    if have == source.size:
        return part, "there already"
    await helper.close()  # It and SFTP are two sessions; there may be room for one.
    try:
        await _over_sftp(shell, source, part, have, progress)
    except SftpMissing:
        return await _through_cat(shell, source, part, have, progress), "cat"
    except _SftpElsewhere:
        return await _through_cat(shell, source, part, have, progress), "cat"
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
        raise _broke(error) from error
    except asyncssh.SFTPError as error:
        await _explain(helper, directory, error)
    except SSHError:
        raise
    except (asyncssh.Error, OSError) as error:
        raise _broke(error) from error
    return part, "sftp"


def _broke(error: Exception) -> LinkLost:
    return LinkLost(
        f"the connection broke during the upload: {clean(str(error)) or type(error).__name__}",
        hint="Try again: it goes on where it was.",
    )


class _SftpElsewhere(Exception):
    """SFTP shows another tree than the shell: the part that was just made is not in it."""


async def _over_sftp(
    shell: Shell, source: Source, part: str, have: int, progress: Progress
) -> None:
    async with shell.sftp() as sftp:
        try:
            size = (await sftp.stat(part)).size
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath) as error:
            raise _SftpElsewhere from error
        if size != have:
            raise _SftpElsewhere
        async with sftp.open(part, "r+b") as file:
            offset = have
            while data := await asyncio.to_thread(_read, source.path, offset, SFTP_PIECE_BYTES):
                await file.write(data, offset)
                offset += len(data)
                progress(offset, source.size)


async def _through_cat(
    shell: Shell, source: Source, part: str, have: int, progress: Progress
) -> str:
    offset = have
    command = "exec /bin/sh -c 'cat >> \"$0\"' " + shlex.quote(part)
    while data := await asyncio.to_thread(_read, source.path, offset, CAT_PIECE_BYTES):
        done = await shell.run(command, stdin=data, timeout_s=PIECE_TIMEOUT_S)
        if done.status:
            raise UploadFailed(
                f"{part}: {clean(done.stderr) or f'cat ended with status {done.status}'}",
                hint="Free some space there, or put `directory` of this node on another disk."
                if "space" in done.stderr
                else "",
            )
        offset += len(data)
        progress(offset, source.size)
    return part


async def _explain(helper: Helper, directory: str, error: asyncssh.SFTPError) -> None:
    """SFTP says no more than «Failure» to a full disk: the node is asked itself."""
    facts = await helper.call("survey", "survey", {"directory": directory})
    free = facts["disk"].get("free_bytes")
    if isinstance(free, int) and free < 2**20:
        raise NodeTrouble(
            f"{facts['base']}: the disk is full ({format_size(free)} free)",
            hint="Free some space there, or put `directory` of this node on another disk.",
            kind="full",
        ) from error
    raise UploadFailed(
        f"the node's SFTP refused the file: {clean(error.reason)}",
        hint="A quota may be used up: look there with `quota` or `df -h ~`.",
    ) from error


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise UploadFailed(f"{path} cannot be read here: {error.strerror}") from error


def read(source: Source) -> bytes:
    """A file as a whole. Blocking.

    Raises:
        UploadFailed: it is not what it was.
    """
    data = _read(source.path, 0, source.size + 1)
    if len(data) != source.size:
        raise UploadFailed(f"{source.path} changed meanwhile", hint="Try again.")
    return data
