"""Polling an engine must not cost what a trust store costs."""

from __future__ import annotations

import ssl

import pytest

from olol_tui.fleet import tcp_transport as module
from olol_tui.fleet.tcp_transport import tcp_transport


async def test_the_trust_store_is_read_once_and_only_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """150 certificates are 20 ms between two tokens, and there is a poll every second or two."""
    read: list[ssl.SSLContext] = []
    loads = ssl.SSLContext.load_verify_locations

    def counted(context: ssl.SSLContext, *args: str | None, **named: str | None) -> None:
        read.append(context)
        loads(context, *args, **named)

    module._trust.cache_clear()
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", counted)
    for _ in range(3):
        await tcp_transport("http://127.0.0.1:11434").aclose()
    assert not read
    for _ in range(3):
        await tcp_transport("https://ollama.example").aclose()
    assert len(read) == 1
    assert read[0].verify_mode == ssl.CERT_REQUIRED
    assert read[0].check_hostname
