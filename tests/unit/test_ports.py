"""Who holds a port."""

from __future__ import annotations

import os
import socket

import pytest

from olol_tui.ports import command_of, listener_on, port_taken


@pytest.mark.parametrize(
    ("family", "bound", "wanted"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", "0.0.0.0"),
        (socket.AF_INET, "127.0.0.1", "localhost"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_the_holder_is_found_by_process_and_command(
    family: socket.AddressFamily, bound: str, wanted: str
) -> None:
    if family == socket.AF_INET6 and not _has_ipv6():
        pytest.skip("no IPv6 on this machine")
    with socket.socket(family) as server:
        server.bind((bound, 0))
        server.listen()
        port = server.getsockname()[1]
        holder = listener_on(wanted, port)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert str(holder).startswith(f"pid {os.getpid()} (")
        error = port_taken(wanted, port)
        assert error.message == f"{wanted}:{port} is in use by {holder}"
        assert "pytest" in error.message


def test_another_address_of_the_same_port_is_not_a_holder() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert listener_on("127.0.0.2", port) is None


def test_a_free_port_has_no_holder() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        assert listener_on("127.0.0.1", probe.getsockname()[1]) is None, (
            "bound, but it does not listen"
        )


def test_a_process_that_is_gone_has_no_command() -> None:
    assert command_of(2**22 + 1) == ""


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
