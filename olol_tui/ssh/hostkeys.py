"""Whom we trust: the user's known_hosts, the system's, and a file of our own.

asyncssh says the same for an unknown and for a changed key, so the verdict is made here.
There is no way to connect past a changed key: it must be forgotten first, by name.

A host is found by the name that OpenSSH would use (`HostKeyAlias` or the host name, and
`[name]:port` beside port 22), never by its address: machines change addresses.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import asyncssh

from olol_tui.files import write_atomic
from olol_tui.ssh.errors import HostKeyChanged, HostKeyRevoked, HostKeysUnusable, HostKeyUnknown

log = logging.getLogger("olol.ssh.hostkeys")

Policy = Literal["ask", "accept-new"]
"""What to do with a key that was never seen: refuse until trusted, or write it down."""

DEFAULT_PORT = 22
SYSTEM_FILES = (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))

_HOST_KEY_ALGS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)


@dataclass(frozen=True, slots=True)
class OfferedKey:
    """A host key as a server showed it."""

    name: str
    """As known_hosts writes it: `gpu1.lan`, `[10.0.0.2]:2222`, or the HostKeyAlias."""
    key_type: str
    """`ED25519`, `ECDSA`, `RSA`."""
    fingerprint: str
    """`SHA256:…` as `ssh-keygen -l` prints it."""
    line: str
    """The public key: type and base64."""
    bits: int = 0

    @classmethod
    def of(cls, name: str, key: asyncssh.SSHKey) -> OfferedKey:
        line = " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])
        return cls(name, _type_name(line), key.get_fingerprint("sha256"), line, _bits(line))

    @property
    def display(self) -> str:
        """The name for people."""
        host, port = parse_name(self.name)
        return host if port == DEFAULT_PORT else f"{host} port {port}"

    @property
    def forget_as(self) -> str:
        """The name without what a shell would take for a pattern."""
        host, port = parse_name(self.name)
        return host if port == DEFAULT_PORT else f"{host}:{port}"

    @property
    def randomart(self) -> str:
        """The picture that `ssh-keygen -lv` draws."""
        return _randomart(self.line, f"{self.key_type} {self.bits}")


@dataclass(frozen=True, slots=True)
class Known:
    """What the files say about one host."""

    keys: tuple[asyncssh.SSHKey, ...] = ()
    """Trusted."""
    named: tuple[tuple[asyncssh.SSHKey, str], ...] = ()
    """Keys on record for exactly this name, with the file each is in: another key is a change."""
    cas: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[asyncssh.SSHKey, ...] = ()

    @property
    def algorithms(self) -> list[str]:
        """Host key algorithms in order of preference: those of keys that we know first.

        The others follow, so that a server that lost its old key shows the new one and is
        refused as changed, instead of failing to agree on an algorithm.
        """
        known = {alg.decode() for key in self.keys for alg in key.sig_algorithms}
        plain = sorted(_HOST_KEY_ALGS, key=lambda alg: alg not in known)
        # A certificate is offered in place of a key: only where we could check it.
        return [f"{a}-cert-v01@openssh.com" for a in _HOST_KEY_ALGS if self.cas] + plain


@dataclass(slots=True)
class _File:
    stamp: tuple[int, int, int] = (0, 0, 0)
    entries: asyncssh.SSHKnownHosts = field(default_factory=asyncssh.SSHKnownHosts)


class HostKeys:
    """The known hosts of this user. Reads files again when they change; blocking, all of it."""

    def __init__(
        self,
        own_file: Path,
        *,
        user_files: Sequence[Path] | None = None,
        system_files: Sequence[Path] = SYSTEM_FILES,
        policy: Policy = "ask",
    ) -> None:
        self.own_file = own_file
        self.policy = policy
        if user_files is None:
            home = Path("~/.ssh").expanduser()
            user_files = (home / "known_hosts", home / "known_hosts2")
        self._user_files = tuple(user_files)
        self._system_files = tuple(system_files)
        self._cache: dict[Path, _File] = {}

    def lookup(self, name: str, more_files: Sequence[Path] = ()) -> Known:
        """What is on record for a host.

        Args:
            name: see `known_hosts_name`.
            more_files: `UserKnownHostsFile` of the host, in place of the usual ones.

        Raises:
            HostKeysUnusable: our own file cannot be read.
        """
        user_files = tuple(more_files) or self._user_files
        keys: list[asyncssh.SSHKey] = []
        named: list[tuple[asyncssh.SSHKey, str]] = []
        cas: list[asyncssh.SSHKey] = []
        revoked: list[asyncssh.SSHKey] = []
        host, port = parse_name(name)
        bare: list[asyncssh.SSHKey] = []
        for path in (self.own_file, *user_files, *self._system_files):
            entries = self._read(path)
            found = entries.match(name, "", None)
            keys += found[0]
            named += [(key, str(path)) for key in found[0]]
            cas += found[1]
            revoked += found[2]
            if port != DEFAULT_PORT:
                # As OpenSSH does: a key known for the host holds on another port of it too,
                # but a different key there is no change.
                without_port = entries.match(host, "", None)
                bare += without_port[0]
                cas += without_port[1]
                revoked += without_port[2]
        return Known(tuple(keys) or tuple(bare), tuple(named), tuple(cas), tuple(revoked))

    def refusal(
        self, name: str, key: asyncssh.SSHKey, known: Known
    ) -> HostKeyUnknown | HostKeyChanged | HostKeyRevoked | None:
        """Why this key is not to be trusted; None when it is."""
        offered = OfferedKey.of(name, key)
        if key in known.revoked:
            return HostKeyRevoked(
                f"{offered.display}: {offered.key_type} {offered.fingerprint} is marked "
                "@revoked in known_hosts",
                hint="Somebody has declared this key stolen. Ask who runs the machine.",
            )
        if key in known.keys:
            return None
        if known.named:
            return HostKeyChanged(offered, [_on_record(key, path) for key, path in known.named])
        return HostKeyUnknown(offered)

    def trust(self, offered: OfferedKey) -> None:
        """Write a key down in our own file, the name hashed.

        Raises:
            HostKeysUnusable: the file cannot be written.
            HostKeyChanged: our file has another key for this host; it is to be forgotten first.
        """
        with self._changing(self.own_file) as old:
            there = self._read(self.own_file).match(offered.name, "", None)[0]
            if asyncssh.import_public_key(offered.line) in there:
                return
            if there:
                raise HostKeyChanged(
                    offered, [_on_record(key, str(self.own_file)) for key in there]
                )
            end = b"" if not old or old.endswith(b"\n") else b"\n"
            entry = f"{_hashed(offered.name)} {offered.line}\n".encode("ascii")
            write_atomic(self.own_file, old + end + entry, 0o600)
        log.info("trusted the host key of %s: %s", offered.display, offered.fingerprint)

    def forget(self, host: str, more_files: Sequence[Path] = ()) -> list[str]:
        """Remove a host from our file and from the user's, as `ssh-keygen -R` does.

        Keeps the user's old file as `known_hosts.old`. Lines that mark authorities and
        revocations stay.

        Args:
            host: `gpu1`, `gpu1:2222` or `[gpu1]:2222`.
            more_files: as for `lookup`; here beside the usual ones.

        Returns:
            «FILE:LINE: type fingerprint» of every line removed.

        Raises:
            HostKeysUnusable: a file cannot be changed.
        """
        name = known_hosts_name(*parse_name(host))
        removed: list[str] = []
        for path in dict.fromkeys((self.own_file, *self._user_files, *more_files)):
            if not path.exists():
                continue
            with self._changing(path) as old:
                kept: list[bytes] = []
                gone: list[str] = []
                for number, line in enumerate(old.splitlines(keepends=True), start=1):
                    if _is_for(line, name):
                        gone.append(f"{path}:{number}: {_describe(line)}")
                    else:
                        kept.append(line)
                if not gone:
                    continue
                # The file may be a link into somebody's collection of dotfiles.
                real = path.resolve()
                mode = stat.S_IMODE(real.stat().st_mode)
                if path != self.own_file:
                    write_atomic(real.with_name(real.name + ".old"), old, mode)
                write_atomic(real, b"".join(kept), mode)
                removed += gone
        return removed

    def _read(self, path: Path) -> asyncssh.SSHKnownHosts:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            cached = self._cache.get(path)
            if cached is not None and cached.stamp == stamp:
                return cached.entries
            text = path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return asyncssh.SSHKnownHosts()
        except OSError as error:
            if path == self.own_file:
                raise _unusable(path, error) from error
            log.warning("%s cannot be read: %s", path, error.strerror)
            return asyncssh.SSHKnownHosts()
        entries = _parse(text, path)
        self._cache[path] = _File(stamp, entries)
        return entries

    @contextmanager
    def _changing(self, path: Path) -> Iterator[bytes]:
        """The file's content, while no other console changes it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = self.own_file.with_name(self.own_file.name + ".lock")
            lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield path.read_bytes() if path.exists() else b""
            finally:
                os.close(fd)
        except OSError as error:
            raise _unusable(path, error) from error


def known_hosts_name(host: str, port: int) -> str:
    return host if port == DEFAULT_PORT else f"[{host}]:{port}"


def parse_name(text: str) -> tuple[str, int]:
    """`[host]:port`, `host:port` or `host` (an IPv6 address too) as host and port."""
    if match := re.fullmatch(r"\[(.+)\](?::(\d+))?", text):
        return match[1], int(match[2] or DEFAULT_PORT)
    if match := re.fullmatch(r"([^:]+):(\d+)", text):
        return match[1], int(match[2])
    return text, DEFAULT_PORT


def _unusable(path: Path, error: OSError) -> HostKeysUnusable:
    return HostKeysUnusable(
        f"{error.filename or path}: {error.strerror or error}",
        hint="Host keys must be kept somewhere: make it writable, or use --state-dir.",
    )


def _parse(text: str, path: Path) -> asyncssh.SSHKnownHosts:
    """Like OpenSSH, a line that cannot be read costs that line, not the file."""
    try:
        return asyncssh.import_known_hosts(text)
    except ValueError:
        entries = asyncssh.SSHKnownHosts()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entries.load(line)
        except ValueError:
            log.warning("%s:%d is not understood and ignored", path, number)
    return entries


def _hashed(name: str) -> str:
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def _is_for(line: bytes, name: str) -> bool:
    """Whether a line is about this very name: wildcards and marked lines are not."""
    parts = line.split(None, 1)
    if len(parts) < 2 or parts[0].startswith((b"#", b"@")):
        return False
    if not parts[0].startswith(b"|"):
        return name.lower().encode() in parts[0].lower().split(b",")
    try:
        return bool(asyncssh.import_known_hosts(line.decode("ascii")).match(name, "", None)[0])
    except (ValueError, UnicodeDecodeError):
        return False


def _describe(line: bytes) -> str:
    try:
        key = asyncssh.import_public_key(line.split(None, 1)[1])
    except asyncssh.KeyImportError:
        return "a key that is not understood"
    return _labelled(key)


def _labelled(key: asyncssh.SSHKey) -> str:
    return f"{_type_name(key.get_algorithm())} {key.get_fingerprint('sha256')}"


def _on_record(key: asyncssh.SSHKey, path: str) -> str:
    return f"{_labelled(key)} in {path}"


def _type_name(line: str) -> str:
    algorithm = line.split()[0]
    if algorithm.startswith("sk-"):
        return "ED25519-SK" if "ed25519" in algorithm else "ECDSA-SK"
    for name in ("ed25519", "ecdsa", "rsa", "dss", "ed448"):
        if name in algorithm:
            return {"dss": "DSA"}.get(name, name.upper())
    return algorithm


def _bits(line: str) -> int:
    algorithm, data = line.split()[:2]
    if match := re.search(r"nistp(\d+)", algorithm):
        return int(match[1])
    if algorithm != "ssh-rsa":
        return 256
    fields = base64.b64decode(data)
    # string "ssh-rsa", mpint e, mpint n
    at = 0
    length = 0
    for _ in range(3):
        length = int.from_bytes(fields[at : at + 4], "big")
        at += 4 + length
    return int.from_bytes(fields[at - length : at], "big").bit_length()


def _randomart(line: str, title: str) -> str:
    """The drunken bishop of OpenSSH over the SHA-256 of the key."""
    width, height = 17, 9
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    board = [[0] * width for _ in range(height)]
    x, y = width // 2, height // 2
    for byte in digest:
        for _ in range(4):
            x = min(max(x + (1 if byte & 1 else -1), 0), width - 1)
            y = min(max(y + (1 if byte & 2 else -1), 0), height - 1)
            board[y][x] += 1
            byte >>= 2
    coins = " .o+=*BOX@%&#/^"
    rows = [[coins[min(count, len(coins) - 1)] for count in row] for row in board]
    rows[height // 2][width // 2] = "S"
    rows[y][x] = "E"
    art = [f"|{''.join(row)}|" for row in rows]
    return "\n".join([_edge(f"[{title}]", width), *art, _edge("[SHA256]", width)])


def _edge(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return f"+{('-' * left + text).ljust(width, '-')}+"
