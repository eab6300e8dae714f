"""Hosts read from the SSH configuration, and what an operator types about a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from olol_tui.console.node_wish import Where, name_for, parse_simulated, parse_where, wish
from olol_tui.console.ssh_hosts import SshHost, read_ssh_hosts
from olol_tui.fleet.commands import AddNode


def test_hosts_get_their_first_values_as_ssh_does(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        """
        # a comment
        Host=gpu1 gpu2   # both
            HostName = %h.lan
            Port 2222
        Host gpu* !gpu2
            User ops
        HOST "quoted" *.wild ?x !not
            hostname 10.0.0.9
        Host *
            User me
            Port 22
        """
    )
    assert read_ssh_hosts(config) == (
        SshHost("gpu1", "gpu1.lan", "ops", 2222),
        SshHost("gpu2", "gpu2.lan", "me", 2222),
        SshHost("quoted", "10.0.0.9", "me", 22),
    )
    assert read_ssh_hosts(config)[0].address == "ops@gpu1.lan:2222"


def test_included_files_are_read_and_circles_end(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Include conf.d/*.conf missing\nHost last\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.conf").write_text("Host first\n  HostName 10.0.0.1\nInclude config\n")
    names = [host.name for host in read_ssh_hosts(tmp_path / "config")]
    assert names == ["first", "last"]


def test_what_cannot_be_read_or_decided_is_left_out(tmp_path: Path) -> None:
    assert read_ssh_hosts(tmp_path / "none") == ()
    config = tmp_path / "config"
    config.write_bytes(
        b'Host a\n HostName "unclosed\n Port many\nMatch exec "touch /tmp/never"\n User evil\n'
        b"Host \xff\xfe\x00 b\n"
    )
    found = {host.name: host for host in read_ssh_hosts(config)}
    assert found["a"] == SshHost("a")
    assert found["b"].user == ""


def test_two_thousand_hosts_are_read_at_once(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "".join(f"Host h{n}\n  HostName 10.0.{n // 256}.{n % 256}\n" for n in range(3000))
    )
    assert len(read_ssh_hosts(config)) == 2000


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("h1", Where("h1")),
        (" ssh ops@h1 ", Where("h1", "ops")),
        ("ssh://ops@h1:2222", Where("h1", "ops", 2222)),
        ("[fe80::1]:22", Where("fe80::1", "", 22)),
        ("root@fe80::1", Where("fe80::1", "root")),
        ("a@b@h1", Where("h1", "a@b")),
    ],
)
def test_places_as_typed(text: str, where: Where) -> None:
    if where.user == "a@b":
        with pytest.raises(ValueError, match="not a name"):
            parse_where(text)
    else:
        assert parse_where(text) == where


@pytest.mark.parametrize(
    "text",
    ["", "@h", "h:", "h:0", "h:65536", "h:٣", "-oX", "a b", "h;rm", "[::1", "[::1]x", "$(x)"],
)
def test_places_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_where(text)


def test_names_made_of_hosts() -> None:
    assert name_for("GPU_1.lan") == "gpu_1.lan"
    assert name_for("fe80::1") == "fe80-1"
    assert name_for("..") == ""
    assert len(name_for("x" * 200)) == 64


def test_simulated_gpus() -> None:
    assert parse_simulated("") == (None, None)
    assert parse_simulated("8") == (8, None)
    assert parse_simulated("2 x 80GiB") == (2, 80 * 2**30)
    for wrong in ("0", "1025", "two", "2x", "2x5", "2x-1GiB"):
        with pytest.raises(ValueError, match=r"\S"):
            parse_simulated(wrong)


def test_a_known_host_leaves_user_and_port_to_the_configuration() -> None:
    known = {"gpu1", "Big.Box"}
    assert wish("gpu1", "", "", known=known, taken=()) == AddNode(name="gpu1")
    assert wish("Big.Box", "", "", known=known, taken=()) == AddNode(name="big.box", host="Big.Box")
    assert wish("ops@10.0.0.1", "n1", "", known=known, taken=()) == AddNode(
        name="n1", host="10.0.0.1", user="ops"
    )
