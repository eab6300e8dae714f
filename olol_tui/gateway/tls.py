"""TLS of the gateway from PEM files, read again when they change.

Whoever renews a certificate replaces two files, one after the other: a pair that does not fit
together is left alone until it does. Connections that are open keep what they have.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from olol_tui.errors import ConfigError

log = logging.getLogger("olol.gateway.tls")

HANDSHAKE_S = 10.0


class TlsFiles:
    """A certificate chain and its key.

    Raises:
        ConfigError: they cannot be read, or do not belong together.
    """

    def __init__(self, cert: str, key: str) -> None:
        self._cert = Path(cert)
        self._key = Path(key)
        self._seen: tuple[tuple[int, int, int] | None, ...] = self._marks()
        self._complained = ""
        try:
            self.context = self._load()
        except OSError as error:
            raise ConfigError(
                f"{cert} and {key} cannot be used: {_reason(error)}",
                title="The TLS files are not valid",
                hint="Expected a PEM certificate chain, and its key without a passphrase.",
            ) from error

    def prepare(self, cert: str, key: str) -> Callable[[], None]:
        """Read other files; returns what makes handshakes use them.

        Raises:
            ConfigError: as at the start.
        """
        other = TlsFiles(cert, key)

        def use() -> None:
            changed = (other._cert, other._key) != (self._cert, self._key)
            self._cert, self._key = other._cert, other._key
            if changed:
                self._seen = ()
                self.refresh()

        return use

    def refresh(self) -> bool:
        """Use the files as they are now, if they have changed and are good."""
        marks = self._marks()
        if marks == self._seen or None in marks:
            return False
        try:
            self._load()
            # Handshakes from now on; the context of the listener itself cannot be exchanged.
            self.context.load_cert_chain(self._cert, self._key, password=_no_passphrase)
        except OSError as error:
            reason = _reason(error)
            if reason != self._complained:
                self._complained = reason
                log.error("the old TLS files stay in use", extra={"reason": reason})
            return False
        self._seen = marks
        self._complained = ""
        log.info("TLS files read again", extra={"certificate": str(self._cert)})
        return True

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._cert, self._key, password=_no_passphrase)
        return context

    def _marks(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_mark(path) for path in (self._cert, self._key))


def _mark(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _no_passphrase() -> bytes:
    """OpenSSL would ask the terminal."""
    return b""


def _reason(error: OSError) -> str:
    """OpenSSL's words without its place in C code; the system's otherwise."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return error.strerror or str(error)
