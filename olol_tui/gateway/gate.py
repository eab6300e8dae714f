"""Lets keyed requests in, and counts what each key uses.

Asked when the head of a request is there, before its body is read: whoever has no key cannot
make us hold 128 MiB for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from olol_tui.gateway.keys import PREFIX, Key, KeyStore
from olol_tui.gateway.scopes import need_of

_PREFIX = PREFIX.encode()
_ASK = b'WWW-Authenticate: Bearer realm="olol-tui"\r\n'
_SOON_S = 1.0

OPERATOR = Key(id="", name="operator", digest="", scopes=("admin",))
"""Whoever can open the control socket owns the state directory."""


class Refusal(NamedTuple):
    status: int
    message: str
    extra: bytes = b""


@dataclass(slots=True)
class Bucket:
    """A minute's worth that refills all the time. May go below zero: replies cost afterwards."""

    per_min: int
    level: float
    at_s: float

    def refill(self, now_s: float) -> None:
        self.level = min(
            float(self.per_min), self.level + (now_s - self.at_s) * self.per_min / 60.0
        )
        self.at_s = now_s

    def until_s(self, level: float) -> float:
        """Seconds until so much is in it."""
        return max(0.0, (level - self.level) * 60.0 / self.per_min)


@dataclass(slots=True)
class Usage:
    """What one key uses now."""

    live: int = 0
    requests: Bucket | None = None
    tokens: Bucket | None = None
    connections: set[object] = field(default_factory=set)


class Gate:
    """Keys at the door of one gateway.

    Args:
        connections_per_key: open connections that one key may have.
    """

    def __init__(
        self,
        store: KeyStore | None,
        clock: Callable[[], float],
        *,
        connections_per_key: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self.connections_per_key = connections_per_key
        self._usage: dict[str, Usage] = {}
        self._holders: dict[object, str] = {}
        """Connection → id of the key it showed last."""
        self.required = store is not None and store.required

    def refresh(self) -> frozenset[str]:
        """Look at the keys' file; the ids of keys whose requests must end now."""
        if self._store is None:
            return frozenset()
        if self._store.refresh():
            self.required = self._store.required
        now = time.time()
        return frozenset(
            key_id
            for key_id, usage in self._usage.items()
            if usage.live and ((key := self._store.get(key_id)) is None or key.refusal(now))
        )

    def admit(
        self, connection: object, path: str, headers: dict[bytes, bytes]
    ) -> Key | Refusal | None:
        """The key that a request shows, None where no key is asked for, or why it may not."""
        need = need_of(path)
        if not self.required or need == "open":
            return None
        assert self._store is not None
        token = _presented(headers)
        if not token:
            message = "an API key is required: send it as Authorization: Bearer olol_…"
            return Refusal(401, message, _ASK)
        now = time.time()
        key_id = token[len(_PREFIX) :].partition(b"_")[0].decode("latin-1")
        key = self._store.get(key_id) if token.startswith(_PREFIX) else None
        if key is None or not key.is_secret(token, now):
            return Refusal(401, "the API key is not valid", _ASK)
        if reason := key.refusal(now):
            return Refusal(401, reason, _ASK)
        if need != "own" and not key.may(need):
            return Refusal(403, f"the API key {key.name} lacks the scope {need!r} for {path}")
        return self._connect(connection, key) or key

    def _connect(self, connection: object, key: Key) -> Refusal | None:
        held = self._holders.get(connection)
        if held == key.id:
            return None
        if held is not None:
            self._usage[held].connections.discard(connection)
        connections = self._of(key).connections
        if len(connections) >= self.connections_per_key:
            self._holders.pop(connection, None)
            return _later(
                f"the API key {key.name} has {len(connections)} connections open, "
                "which is its limit",
                _SOON_S,
            )
        connections.add(connection)
        self._holders[connection] = key.id
        return None

    def closed(self, connection: object) -> None:
        held = self._holders.pop(connection, None)
        if held is not None:
            self._usage[held].connections.discard(connection)

    def refusal(self, key: Key) -> Refusal | None:
        """Why a key may not start a request now; one of its rate is spent when it may."""
        usage = self._of(key)
        now = self._clock()
        if key.concurrency is not None and usage.live >= key.concurrency:
            return _later(
                f"the API key {key.name} has {usage.live} requests under way, which is its limit",
                _SOON_S,
            )
        tokens = usage.tokens = _bucket(usage.tokens, key.tokens_per_min, now)
        if tokens is not None and tokens.level <= 0:
            return _later(
                f"the API key {key.name} has used its {key.tokens_per_min} tokens a minute",
                tokens.until_s(1.0),
            )
        requests = usage.requests = _bucket(usage.requests, key.requests_per_min, now)
        if requests is not None:
            if requests.level < 1.0:
                return _later(
                    f"the API key {key.name} has used its {key.requests_per_min} requests a minute",
                    requests.until_s(1.0),
                )
            requests.level -= 1.0
        return None

    def began(self, key: Key) -> None:
        self._of(key).live += 1

    def ended(self, key_id: str, tokens: int) -> None:
        usage = self._usage.get(key_id)
        if usage is None:
            return
        usage.live -= 1
        if usage.tokens is not None:
            usage.tokens.level -= tokens

    def _of(self, key: Key) -> Usage:
        found = self._usage.get(key.id)
        if found is None:
            found = self._usage[key.id] = Usage()
        return found


def _presented(headers: dict[bytes, bytes]) -> bytes:
    """The key in a request's head, as OpenAI's clients or as Anthropic's send it."""
    value = headers.get(b"authorization", b"")
    if value[:7].lower() == b"bearer ":
        return value[7:].strip()
    return headers.get(b"x-api-key", b"").strip()


def _bucket(bucket: Bucket | None, per_min: int | None, now_s: float) -> Bucket | None:
    """Refilled; a new one, full, when the limit is new or was changed."""
    if per_min is None:
        return None
    if bucket is None or bucket.per_min != per_min:
        return Bucket(per_min, float(per_min), now_s)
    bucket.refill(now_s)
    return bucket


def _later(message: str, wait_s: float) -> Refusal:
    return Refusal(429, message, b"Retry-After: %d\r\n" % max(1, math.ceil(wait_s)))
