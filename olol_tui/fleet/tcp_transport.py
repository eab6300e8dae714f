"""HTTP to an engine's own API over TCP, without reading the trust store for each poll.

httpx reads some 150 certificates for every transport it makes, also for plain HTTP: 20 ms in
which no token of any stream moves, and engines are polled every second or two.
"""

from __future__ import annotations

import functools
import ssl

import httpx


def tcp_transport(url: str) -> httpx.AsyncHTTPTransport:
    """A transport to the engine of this URL. New at every call, and its caller's to close."""
    return httpx.AsyncHTTPTransport(verify=_trust() if url.startswith("https:") else _no_trust())


@functools.cache
def _trust() -> ssl.SSLContext:
    return httpx.create_ssl_context()


@functools.cache
def _no_trust() -> ssl.SSLContext:
    """Trusts nobody: for connections that are never encrypted."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
