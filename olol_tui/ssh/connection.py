"""One SSH connection, opened by the rules that were measured.

- A session channel first: until then sshd leaves Nagle's algorithm on, and every small
  packet of a stream that is only forwarded waits for the previous one's acknowledgement
  (21.6 ms instead of 0.5 ms a token at five streams).
- aes-gcm before chacha20: a third less CPU a byte.
- Keepalive, which asyncssh leaves off: without it a cut line is never noticed.
- At most three handshakes at once with a host: sshd drops more at random (MaxStartups).
- Public keys only. No password is ever sent, and no agent is ever forwarded.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import asyncssh

from olol_tui.ssh import errors, tcp
from olol_tui.ssh.errors import SSHError
from olol_tui.ssh.first import first_session
from olol_tui.ssh.hostkeys import HostKeys, Known, OfferedKey
from olol_tui.ssh.keys import KeyRing, Offer, PassphraseNeeded
from olol_tui.ssh.target import PROFILES, Hop, Target, config_argument, route
from olol_tui.ssh.text import clean

log = logging.getLogger("olol.ssh")

# It tells of every channel at INFO.
asyncssh.set_log_level("WARNING")

HANDSHAKES_PER_HOST = 3
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
)
_CLOSE_S = 2.0
"""For the goodbye; a dead line does not answer it."""
_BANNER_LIMIT = 400


class Connection:
    """A live SSH connection to a node, and the jump hosts below it.

    Owned by who asked `Connector.connect` for it, and closed by them. When it breaks,
    `lost` is set and every channel of it fails at once.
    """

    def __init__(
        self, name: str, hop: Hop, ssh: asyncssh.SSHClientConnection, client: _Client
    ) -> None:
        self.name = name
        self.hop = hop
        self.ssh = ssh
        self.below: Connection | None = None
        self.key_files: tuple[str, ...] = ()
        """The known_hosts files that have its host key."""
        self.first: asyncssh.SSHClientProcess[bytes] | None = None
        """The command that the first session runs, until somebody takes it over."""
        self.channels = 0
        """Streams open or being opened."""
        self.full_at = 0
        """Number of channels at which the server refused one more…"""
        self.full_until_s = 0.0
        """… as it is remembered until this loop time."""
        self._client = client

    @property
    def lost(self) -> asyncio.Event:
        return self._client.lost

    @property
    def is_lost(self) -> bool:
        return self._client.lost.is_set()

    @property
    def reason(self) -> str:
        """Why it was lost; "" while it lives."""
        return self._client.reason

    @property
    def banner(self) -> str:
        return self._client.banner

    @property
    def host_key(self) -> OfferedKey | None:
        key = self.ssh.get_server_host_key()
        return None if key is None else OfferedKey.of(self.hop.key_name, key)

    @property
    def place(self) -> str:
        """`ops@10.0.4.13 via ops@bastion.lan`."""
        return self.hop.place + ("" if self.below is None else f" via {self.below.place}")

    @property
    def cipher(self) -> str:
        return str(self.ssh.get_extra_info("send_cipher", ""))

    @property
    def server_version(self) -> str:
        return clean(str(self.ssh.get_extra_info("server_version", "")), 80)

    def abort(self) -> None:
        """Drop it without a word; channels fail."""
        self._client.note("closed by us")
        self.ssh.abort()
        if self.below is not None:
            self.below.abort()

    async def close(self) -> None:
        """Say goodbye and wait until it is gone, not longer than two seconds."""
        self._client.note("closed by us")
        self.ssh.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.ssh.wait_closed()
        except TimeoutError:
            self.ssh.abort()
        if self.below is not None:
            await self.below.close()


class Connector:
    """Opens connections; holds what all of them share.

    Args:
        hostkeys: whom we trust.
        keys: our own keys.
        config: the SSH configuration in place of `~/.ssh/config`.
    """

    def __init__(self, hostkeys: HostKeys, keys: KeyRing, config: Path | None = None) -> None:
        self.hostkeys = hostkeys
        self.keys = keys
        self._config = config
        self._handshakes: dict[tuple[str, int], asyncio.Semaphore] = {}

    async def connect(self, name: str, target: Target, first: str = "") -> Connection:
        """Open one connection, over its jump hosts where it has some.

        On return the host is verified, we are let in, and a first session has run. If it
        raises, or is cancelled, nothing is left open.

        Args:
            name: the node, for errors and logs.
            target: where to.
            first: the command that will be wanted first; it is started in the first session.

        Raises:
            SSHError: see `errors`; `error.final` says whether trying again makes sense.
        """
        while True:
            hops = await asyncio.to_thread(route, target, self._config)
            try:
                return await self._through(name, hops, first)
            except PassphraseNeeded as needed:
                await self.keys.unlock(needed.path)

    async def _through(self, name: str, hops: tuple[Hop, ...], first: str) -> Connection:
        connection: Connection | None = None
        try:
            for hop in hops:
                above = await self._open(name, hop, connection)
                above.below = connection
                connection = above
                is_jump = hop is not hops[-1]
                await first_session(connection, "" if is_jump else first, is_jump=is_jump)
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        assert connection is not None
        return connection

    async def _open(self, name: str, hop: Hop, below: Connection | None) -> Connection:
        slots = self._handshakes.setdefault(
            (hop.host, hop.port), asyncio.Semaphore(HANDSHAKES_PER_HOST)
        )
        known = await asyncio.to_thread(self.hostkeys.lookup, hop.key_name, hop.known_hosts)
        profile = PROFILES[hop.target.profile]
        offer = Offer(hop, self.keys)
        client = _Client(lambda key: self._check(hop, known, client, key), offer)
        ssh: asyncssh.SSHClientConnection | None = None
        try:
            async with slots, asyncio.timeout(profile.handshake_s):
                ssh = await asyncssh.connect(
                    hop.target.host,
                    () if hop.target.port is None else hop.target.port,
                    username=() if hop.target.user is None else hop.target.user,
                    config=config_argument(self._config),
                    tunnel=None if below is None else below.ssh,
                    client_factory=lambda: client,
                    known_hosts=(list(known.keys), list(known.cas), list(known.revoked)),
                    x509_trusted_certs=None,
                    server_host_key_algs=() if hop.has_host_key_algorithms else known.algorithms,
                    encryption_algs=() if hop.has_ciphers else CIPHERS,
                    client_keys=None,
                    preferred_auth="publickey",
                    password_auth=False,
                    kbdint_auth=False,
                    host_based_auth=False,
                    gss_kex=False,
                    gss_auth=False,
                    gss_host=None,
                    agent_forwarding=False,
                    command=None,
                    request_pty=False,
                    x11_forwarding=False,
                    connect_timeout=None,
                    login_timeout=profile.handshake_s,
                    keepalive_interval=profile.keepalive_s,
                    keepalive_count_max=profile.keepalive_count,
                    utf8_decode_errors="replace",
                )
        except PassphraseNeeded:
            raise
        except TimeoutError as error:
            raise errors.Unreachable(
                f"{name}: {_via(hop, below)} did not answer within {profile.handshake_s:g} s",
                hint="Is the machine on, and is its SSH port open from here?",
            ) from error
        except (asyncssh.Error, OSError, ValueError) as error:
            raise _explained(name, hop, below, client, error) from error
        finally:
            offer.close()
            # Even if we were not let in: the next time it must be the same machine.
            await self._write_down(client.accepted, ssh)
        tcp.set_user_timeout(ssh, profile.user_timeout_ms)
        connection = Connection(name, hop, ssh, client)
        key = ssh.get_server_host_key()
        connection.key_files = tuple(path for known_key, path in known.named if known_key == key)
        return connection

    async def _write_down(
        self, accepted: OfferedKey | None, ssh: asyncssh.SSHClientConnection | None
    ) -> None:
        if accepted is None:
            return
        try:
            await asyncio.to_thread(self.hostkeys.trust, accepted)
        except BaseException:
            if ssh is not None:
                ssh.abort()
            raise

    def _check(self, hop: Hop, known: Known, client: _Client, key: asyncssh.SSHKey) -> bool:
        """asyncssh asks about a key that is not in the list of trusted ones."""
        offered = OfferedKey.of(hop.key_name, key)
        if client.accepted == offered:
            return True  # It asks again at every rekeying.
        refusal = self.hostkeys.refusal(hop.key_name, key, known)
        if isinstance(refusal, errors.HostKeyUnknown) and self.hostkeys.policy == "accept-new":
            log.info("%s is new: accepting %s", offered.display, offered.fingerprint)
            client.accepted = offered
            return True
        client.refusal = refusal
        return refusal is None


class _Client(asyncssh.SSHClient):
    """What asyncssh asks and tells during a handshake, and when the connection breaks."""

    def __init__(self, check: Callable[[asyncssh.SSHKey], bool], offer: Offer) -> None:
        self.lost = asyncio.Event()
        self.reason = ""
        self.banner = ""
        self.refusal: SSHError | None = None
        self.accepted: OfferedKey | None = None
        self.methods: list[str] = []
        """What the server would accept beside keys, for the error."""
        self._check = check
        self._offer = offer
        self._ssh: asyncssh.SSHClientConnection | None = None

    def note(self, reason: str) -> None:
        self.reason = self.reason or reason

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._ssh = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self.note(clean(str(exc)) if exc is not None else "the host closed the connection")
        self._ssh = None
        self.lost.set()

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        return self._check(key)

    def debug_msg_received(self, msg: str, lang: str, always_display: bool) -> None:
        # sshd sends some between the login and the first session, each in a packet of its own.
        if self._ssh is not None:
            tcp.acknowledge(self._ssh)

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self.banner = clean(f"{self.banner} {msg}", _BANNER_LIMIT)

    async def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | None:
        if self._ssh is not None and not self.methods:
            self.methods = list(self._ssh.get_server_auth_methods())
        return await self._offer.next()

    @property
    def tried(self) -> list[str]:
        return self._offer.tried


def _via(hop: Hop, below: Connection | None) -> str:
    return hop.display if below is None else f"{hop.display} (through {below.hop.display})"


def _explained(
    name: str, hop: Hop, below: Connection | None, client: _Client, error: Exception
) -> SSHError:
    """asyncssh's and the system's errors in our words."""
    where = f"{name}: {_via(hop, below)}"
    text = clean(str(error))
    if client.refusal is not None:
        return client.refusal
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return errors.HostKeyRevoked(
            f"{where}: {text}",
            hint="A certificate of the host, or the authority that signed it, is not valid.",
        )
    if isinstance(error, asyncssh.PermissionDenied) or (
        isinstance(error, asyncssh.DisconnectError) and "authentication fail" in text.lower()
    ):
        others = ", ".join(m for m in client.methods if m != "publickey")
        detail = f"it also takes {others}, which olol-tui never uses" if others else ""
        if not isinstance(error, asyncssh.PermissionDenied):
            detail = "then it hung up: too many keys; set IdentitiesOnly in ~/.ssh/config"
        return errors.AuthFailed(where, hop.user, hop.login, client.tried, detail)
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return errors.NoCommonAlgorithm(
            f"{where}: {text}", hint="The server is very old, or its configuration very narrow."
        )
    if isinstance(error, asyncssh.ProtocolNotSupported | asyncssh.ProtocolError):
        return errors.NotSSH(f"{where}: {text}", hint="Check the port.")
    if isinstance(error, asyncssh.ChannelOpenError):
        return errors.Unreachable(
            f"{where}: the jump host says: {text}",
            hint="Check the name and port as the jump host sees them.",
        )
    if isinstance(error, asyncssh.DisconnectError | ConnectionResetError):
        return errors.Unreachable(
            f"{where}: the connection ended before we were let in ({text})",
            hint="Is it sshd's port? Else it may be busy (MaxStartups), or refuse us for a while.",
        )
    if isinstance(error, asyncssh.ConfigParseError | asyncssh.KeyImportError):
        return errors.SSHConfigError(f"{where}: {text}")
    if isinstance(error, socket.gaierror):
        return errors.NameUnknown(
            f"{where}: the name does not resolve ({clean(error.strerror or text)})",
            hint="Write the host's address, or a Host of ~/.ssh/config.",
        )
    if isinstance(error, ConnectionRefusedError):
        return errors.Unreachable(
            f"{where}: connection refused", hint="Is sshd running there, on this port?"
        )
    if isinstance(error, OSError):
        return errors.Unreachable(f"{where}: {clean(error.strerror or text)}")
    return errors.SSHConfigError(f"{where}: {text}")
