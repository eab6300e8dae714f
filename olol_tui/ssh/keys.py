"""Our own keys: from the agent and from files, encrypted ones unlocked once for all nodes.

There is no password anywhere. A passphrase is asked for outside of a handshake, which would
time out while somebody looks for it, and only when the host has said that it would accept
the key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncssh

from olol_tui.ssh.target import Hop
from olol_tui.ssh.text import clean

log = logging.getLogger("olol.ssh.keys")

AskPassphrase = Callable[[Path, str], Awaitable[str | None]]
"""(key file, what was wrong with the last answer or "") → passphrase; None: not now."""

_ATTEMPTS = 3


class PassphraseNeeded(Exception):
    """Not for users: the handshake stopped at a key that is to be unlocked first.

    No ValueError, which asyncssh would take for a key that cannot sign.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class KeyRing:
    """Unlocked keys, shared by all connections of the program."""

    def __init__(self, ask: AskPassphrase | None = None) -> None:
        self._ask = ask
        self._unlocked: dict[Path, asyncssh.SSHKey] = {}
        self._declined: dict[Path, str] = {}
        """Not asked again until `reset`: key → why it stays locked."""
        self._asking: dict[Path, asyncio.Lock] = {}

    def reset(self) -> None:
        """Ask again for keys that stayed locked."""
        self._declined.clear()

    def key(self, path: Path) -> asyncssh.SSHKey | None:
        return self._unlocked.get(path)

    def declined(self, path: Path) -> str:
        """Why a key stays locked; "" when it was not asked for."""
        if self._ask is None:
            return "locked, and nobody to ask for its passphrase"
        return self._declined.get(path, "")

    async def unlock(self, path: Path) -> None:
        """Ask for the passphrase until it fits, three times at most. Together, not each."""
        async with self._asking.setdefault(path, asyncio.Lock()):
            if path in self._unlocked or self.declined(path):
                return
            assert self._ask is not None
            complaint = ""
            for _ in range(_ATTEMPTS):
                passphrase = await self._ask(path, complaint)
                if passphrase is None:
                    self._declined[path] = "locked, no passphrase given"
                    return
                try:
                    self._unlocked[path] = await asyncio.to_thread(
                        asyncssh.read_private_key, str(path), passphrase
                    )
                except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
                    complaint = "That passphrase does not open the key."
                except OSError as error:
                    self._declined[path] = error.strerror or str(error)
                    return
                else:
                    return
            self._declined[path] = "locked, wrong passphrase"


class Offer:
    """The keys for one handshake, in order, and the record of what was tried.

    First the keys that were named for the host, then the agent's others: a server hangs up
    after six keys, and an agent may hold more.
    """

    def __init__(self, hop: Hop, ring: KeyRing) -> None:
        self.tried: list[str] = []
        self._hop = hop
        self._ring = ring
        self._agent: asyncssh.SSHAgentClient | None = None
        self._queue: list[tuple[asyncssh.SSHKeyPair, Path | None]] | None = None
        self._locked: list[Path] = []
        """Not even their public half is known, so the host cannot be asked about them."""

    async def next(self) -> asyncssh.SSHKeyPair | None:
        """The next key to offer; None when there is no more.

        Raises:
            PassphraseNeeded: only locked keys are left.
        """
        if self._queue is None:
            self._queue = await self._all()
        if self._queue:
            return self._offered(*self._queue.pop(0))
        if self._locked:
            raise PassphraseNeeded(self._locked[0])
        return None

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()

    async def _all(self) -> list[tuple[asyncssh.SSHKeyPair, Path | None]]:
        held = {key.public_data: key for key in await self._agent_keys()}
        # A key that the agent holds needs no passphrase: it stands in for its file.
        named: list[tuple[asyncssh.SSHKeyPair, Path | None]] = [
            (held.pop(pair.public_data, pair), path)
            for path in self._hop.identities
            for pair in await self._from_file(path, held)
        ]
        rest: list[tuple[asyncssh.SSHKeyPair, Path | None]] = [
            (key, None) for key in held.values() if not self._hop.identities_only
        ]
        return named + rest if self._hop.explicit_identities else rest + named

    def _offered(self, pair: asyncssh.SSHKeyPair, path: Path | None) -> asyncssh.SSHKeyPair:
        if isinstance(pair, asyncssh.SSHAgentKeyPair):
            comment = clean(pair.get_comment_bytes() or b"", 60)
            self.tried.append(f"agent key {comment or pair.get_algorithm()}")
        elif path is not None:
            self.tried.append(_short(path))
        return pair

    async def _agent_keys(self) -> list[asyncssh.SSHKeyPair]:
        if not self._hop.agent_path:
            return []
        self._agent = asyncssh.SSHAgentClient(self._hop.agent_path)
        try:
            return list(await self._agent.get_keys())
        except (ValueError, OSError) as error:
            self.tried.append(f"agent {self._hop.agent_path}: {clean(str(error))}")
            return []

    async def _from_file(
        self, path: Path, held: dict[bytes, asyncssh.SSHKeyPair]
    ) -> list[asyncssh.SSHKeyPair]:
        try:
            return await asyncio.to_thread(self._load, path, held)
        except PassphraseNeeded:
            self._locked.append(path)
        except FileNotFoundError:
            if self._hop.explicit_identities:
                self.tried.append(f"{_short(path)}: not there")
        except OSError as error:
            self.tried.append(f"{_short(path)}: {error.strerror or error}")
        except ValueError as error:  # KeyImportError is one.
            self.tried.append(f"{_short(path)}: {clean(str(error))}")
        return []

    def _load(
        self, path: Path, held: dict[bytes, asyncssh.SSHKeyPair]
    ) -> list[asyncssh.SSHKeyPair]:
        """The key pairs of a file; with a certificate beside it, that first. Blocking.

        A public key stands for the agent's key: that is how IdentitiesOnly picks one of many.
        """
        why_locked = self._ring.declined(path)

        def passphrase(_: str) -> str:
            # Called when the host would accept the key, or when even its public half is locked.
            if why_locked:
                if _short(path) in self.tried:
                    self.tried[self.tried.index(_short(path))] = f"{_short(path)}: {why_locked}"
                raise asyncssh.KeyImportError(why_locked)
            raise PassphraseNeeded(path)

        unlocked = self._ring.key(path)
        if unlocked is not None:
            certificate = path.with_name(path.name + "-cert.pub")
            arg: object = (unlocked, str(certificate)) if certificate.is_file() else unlocked
            return list(asyncssh.load_keypairs([arg]))  # type: ignore[list-item]
        try:
            return list(asyncssh.load_keypairs(str(path), passphrase=passphrase))  # type: ignore[arg-type]
        except asyncssh.KeyImportError as error:
            try:
                public = asyncssh.read_public_key(str(path))
            except asyncssh.KeyImportError:
                raise error from None
            if public.public_data in held and b"PRIVATE" not in path.read_bytes():
                return [held[public.public_data]]
            raise


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)
