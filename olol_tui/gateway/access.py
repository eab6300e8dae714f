"""Who may speak to a gateway bound to this machine: no page of a browser that was tricked.

A DNS name that an attacker points at 127.0.0.1 arrives with that name in Host; a script on
somebody's page arrives with its Origin. Both are refused, as Ollama does.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from olol_tui.gateway.http import Request

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_APP_SCHEMES = {"app", "file", "tauri", "vscode-webview", "vscode-file"}
_CACHED = 1024
_CORS = (
    b"Access-Control-Allow-Origin: %s\r\nVary: Origin\r\n"
    b"Access-Control-Expose-Headers: X-Olol-Request, X-Olol-Engine, X-Olol-Queue-Wait, "
    b"X-Olol-Why, Retry-After\r\n"
)
_METHODS = b"GET, POST, DELETE, HEAD, OPTIONS"
_PREFLIGHT_S = 43200
_HEADER_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:\s*,\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")


class Access:
    """Host and Origin checks for one bound address.

    Args:
        origins: whose pages may ask beside this machine's; `*`: all.
    """

    def __init__(self, bound_host: str, origins: Sequence[str] = ()) -> None:
        self._guarded = is_loopback(bound_host)
        self._origins = frozenset(origins)
        self._hostname = socket.gethostname().lower()
        self._known: dict[bytes, bool] = {}

    def admit(self, request: Request) -> str:
        """Why a request is refused; empty when it is welcome.

        For a welcome page of another origin the reply's CORS headers are noted on the request.
        """
        headers, known = request.headers, self._known
        host = headers.get(b"host")
        # The usual one is known; only others cost a call.
        if (
            self._guarded
            and host
            and not (known.get(host) or self._cached(host, self._host_allowed))
        ):
            return f"the host {host.decode('latin-1')!r} is not one of this machine"
        origin = headers.get(b"origin")
        if origin:
            if not self._cached(origin, self._origin_allowed):
                return f"requests from the origin {origin.decode('latin-1')!r} are not allowed"
            request.cors = _CORS % origin
        return ""

    def _cached(self, value: bytes, check: object) -> bool:
        known = self._known.get(value)
        if known is None:
            if len(self._known) > _CACHED:
                self._known.clear()
            assert callable(check)
            known = self._known[value] = bool(check(value.decode("latin-1").lower()))
        return known

    def _host_allowed(self, host: str) -> bool:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        name = name.strip("[]")
        if name in ("localhost", self._hostname) or name.endswith(_LOCAL_SUFFIXES):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or address.is_private or address.is_unspecified

    def _origin_allowed(self, origin: str) -> bool:
        if origin in self._origins or "*" in self._origins:
            return True
        parts = urlsplit(origin)
        if parts.scheme in _APP_SCHEMES:
            return True
        return parts.hostname in ("localhost", "127.0.0.1", "0.0.0.0", "::1")


def preflight(request: Request) -> bytes:
    """Header lines that answer OPTIONS: what a page of a welcome origin may send."""
    allow = b"Allow: %s\r\n" % _METHODS
    if not request.cors:
        return allow
    asked = request.headers.get(b"access-control-request-headers", b"")
    # The origin is trusted already, so its libraries may send what headers they like.
    if _HEADER_NAMES.fullmatch(asked):
        allow += b"Access-Control-Allow-Headers: %s\r\n" % asked
    return allow + b"Access-Control-Allow-Methods: %s\r\nAccess-Control-Max-Age: %d\r\n" % (
        _METHODS,
        _PREFLIGHT_S,
    )


def is_loopback(host: str) -> bool:
    """Only this machine can reach an address bound here."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
