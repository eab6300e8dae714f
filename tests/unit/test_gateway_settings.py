"""What the file of the cluster means for a gateway: origins, and files that are not valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from olol_tui.config import FieldProblem, at_field, parse
from olol_tui.errors import ConfigError
from olol_tui.gateway.access import Access
from olol_tui.gateway.message import Request


def asked_from(access: Access, origin: bytes) -> str:
    headers = {b"host": b"127.0.0.1", b"origin": origin}
    return access.admit(Request(b"GET", "/", "", headers))


def test_pages_of_the_listed_origins_may_ask() -> None:
    file = b'[gateway]\ncors_origins = ["https://Chat.example.org/", "http://lan:3000"]\n'
    access = Access("127.0.0.1", parse(file, Path("cluster.toml")).gateway.cors_origins)
    for origin in (b"https://chat.example.org", b"http://lan:3000", b"http://localhost:5173"):
        assert asked_from(access, origin) == ""
    for origin in (b"http://chat.example.org", b"http://lan", b"https://chat.example.org.evil"):
        assert "not allowed" in asked_from(access, origin)
    assert asked_from(Access("127.0.0.1", ["*"]), b"https://anybody.example") == ""


@pytest.mark.parametrize(
    "origin", ["chat.example.org", "https://chat.example.org/page", "https://", ""]
)
def test_what_is_no_origin_is_refused_with_its_line(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"line 2, gateway\.cors_origins\.0: expected an origin"):
        parse(f'[gateway]\ncors_origins = ["{origin}"]\n'.encode(), Path("cluster.toml"))


def test_a_field_that_cannot_be_had_is_told_with_its_line() -> None:
    raw = b'# mine\n[gateway]\ntls_cert = "a.pem"\ntls_key = "b.pem"\n'
    problem = FieldProblem(("gateway", "tls_cert"), "a.pem cannot be used")
    told = str(at_field(Path("cluster.toml"), raw, problem))
    assert told == "cluster.toml, line 3, gateway.tls_cert: a.pem cannot be used"
