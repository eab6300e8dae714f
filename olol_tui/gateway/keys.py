"""API keys: `olol_<id>_<secret>`, of which only a digest is kept.

The file is written by `olol-tui keys` and read by a running core, which looks at it once a
second: no restart, no message between the two. A secret has 190 random bits, so one SHA-256
is enough; a slow hash would only slow us down.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import hmac
import logging
import os
import secrets
import stat
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from olol_tui.errors import ConfigError, OlolError
from olol_tui.files import write_atomic

log = logging.getLogger("olol.gateway.keys")

Scope = Literal["infer", "read", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "read", "admin")
PREFIX = "olol_"
FILE_NAME = "keys.json"
_BASE62 = string.digits + string.ascii_letters
_ID_CHARS = string.digits + string.ascii_lowercase
_ID_LENGTH = 8
_SECRET_LENGTH = 32
_GIVEN = Annotated[int, msgspec.Meta(ge=1)]


class KeyFileError(ConfigError):
    title = "The keys cannot be used"


class NoSuchKey(OlolError):
    title = "There is no such key"


class Key(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the holder of one secret may do."""

    id: str
    name: str
    """Shown as the client of its requests."""
    digest: str
    """SHA-256 of the whole key, hexadecimal."""
    scopes: tuple[Scope, ...] = ("infer", "read")
    models: tuple[str, ...] = ()
    """Patterns of canonical model names such as `llama3*`; none: all models."""
    requests_per_min: _GIVEN | None = None
    tokens_per_min: _GIVEN | None = None
    """Of prompts and replies together."""
    concurrency: _GIVEN | None = None
    """Requests at once, those that wait included."""
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Share of the slots beside other keys."""
    priority: Literal["interactive", "batch"] = msgspec.field(default="interactive", name="class")
    created_wall_s: float = 0.0
    expires_wall_s: float | None = None
    revoked_wall_s: float | None = None
    previous: str = ""
    """Digest of the secret before the last rotation."""
    previous_until_wall_s: float = 0.0

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes

    def may_use(self, model: str) -> bool:
        return not self.models or any(fnmatch.fnmatchcase(model, one) for one in self.models)

    def refusal(self, now_wall_s: float) -> str:
        """Why it is not valid any more; empty while it is."""
        if self.revoked_wall_s is not None:
            return "the API key was revoked"
        if self.expires_wall_s is not None and now_wall_s >= self.expires_wall_s:
            return "the API key has expired"
        return ""

    def is_secret(self, token: bytes, now_wall_s: float) -> bool:
        digest = hashlib.sha256(token).hexdigest()
        if hmac.compare_digest(digest, self.digest):
            return True
        return (
            now_wall_s < self.previous_until_wall_s
            and hmac.compare_digest(digest, self.previous)
        )  # fmt: skip


class _File(msgspec.Struct):
    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


class KeyStore:
    """The keys of one state directory, as of the last look at their file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_id: dict[str, Key] = {}
        self._seen: tuple[int, int, int] | None = None
        self._complained = ""

    @property
    def required(self) -> bool:
        """True as soon as a key was ever made: revoking the last one must not open the door."""
        return bool(self._by_id)

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(self._by_id.values())

    def get(self, key_id: str) -> Key | None:
        return self._by_id.get(key_id)

    def load(self) -> None:
        """Read the file; none is no keys.

        Raises:
            KeyFileError: it cannot be read, is not ours alone, or is damaged.
        """
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                raw = file.read()
        except FileNotFoundError:
            self._by_id, self._seen = {}, None
            return
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be read: {error.strerror}") from error
        if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.getuid():
            raise KeyFileError(
                f"{self.path} can be read or written by others",
                hint=f"Make it yours alone: chmod 600 {self.path}",
            )
        try:
            keys = msgspec.json.decode(raw, type=_File).keys
        except msgspec.MsgspecError as error:
            raise KeyFileError(
                f"{self.path} is damaged: {error}",
                hint="Restore it from a backup, or remove it and make new keys.",
            ) from error
        self._by_id = {key.id: key for key in keys}
        self._seen = _mark(found)

    def refresh(self) -> bool:
        """Read the file again if it has changed; True when the keys are others now.

        A file that is gone or damaged changes nothing: whoever was kept out stays out.
        """
        try:
            mark = _mark(self.path.stat())
        except OSError as error:
            if self._by_id:
                self._complain(f"{self.path}: {error.strerror}")
            return False
        if mark == self._seen:
            return False
        before = self._by_id
        try:
            self.load()
        except KeyFileError as error:
            self._by_id = before
            self._complain(str(error))
            return False
        self._complained = ""
        return True

    def _complain(self, reason: str) -> None:
        """Once for each reason, not once a second."""
        if reason != self._complained:
            self._complained = reason
            log.error("keys stay as they were", extra={"reason": reason})

    # -- what `olol-tui keys` does

    def create(self, key: Key) -> str:
        """Add a key (its id and digest are set here); the secret, which is told only now.

        Raises:
            KeyFileError: the name is taken, or the file cannot be used.
        """
        with self._changing():
            if any(one.name == key.name and one.revoked_wall_s is None for one in self.keys):
                raise KeyFileError(
                    f"a key named {key.name} exists",
                    title="The name is taken",
                    hint=f"A new secret for it: olol-tui keys rotate {key.name}",
                )
            key_id = _random(_ID_CHARS, _ID_LENGTH)
            while key_id in self._by_id:
                key_id = _random(_ID_CHARS, _ID_LENGTH)
            token, digest = _secret(key_id)
            self._by_id[key_id] = msgspec.structs.replace(
                key, id=key_id, digest=digest, created_wall_s=time.time()
            )
        return token

    def revoke(self, named: str) -> Key:
        """End a key at once. Its entry stays, so that the gateway keeps asking for keys."""
        with self._changing():
            key = msgspec.structs.replace(self.find(named), revoked_wall_s=time.time(), previous="")
            self._by_id[key.id] = key
        return key

    def rotate(self, named: str, grace_s: float = 0.0) -> tuple[Key, str]:
        """Give a key a new secret; the old one works for `grace_s` more."""
        with self._changing():
            old = self.find(named)
            token, digest = _secret(old.id)
            until = time.time() + grace_s
            key = msgspec.structs.replace(
                old,
                digest=digest,
                previous=old.digest if grace_s > 0 else "",
                previous_until_wall_s=until if grace_s > 0 else 0.0,
            )
            self._by_id[key.id] = key
        return key, token

    def find(self, named: str) -> Key:
        """A key that is not revoked, by id or name.

        Raises:
            NoSuchKey
        """
        for key in self.keys:
            if named in (key.id, key.name) and key.revoked_wall_s is None:
                return key
        raise NoSuchKey(f"no key has the id or name {named}", hint="See: olol-tui keys list")

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Read, change, write, alone: two commands at once must not lose a key."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.load()
            yield
            raw = msgspec.json.format(msgspec.json.encode(_File(keys=self.keys)), indent=1)
            try:
                write_atomic(self.path, raw + b"\n")
            except OSError as error:
                raise KeyFileError(f"{self.path} cannot be written: {error.strerror}") from error
            self.load()


def _mark(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _secret(key_id: str) -> tuple[str, str]:
    """(key, digest)."""
    token = f"{PREFIX}{key_id}_{_random(_BASE62, _SECRET_LENGTH)}"
    return token, hashlib.sha256(token.encode()).hexdigest()
