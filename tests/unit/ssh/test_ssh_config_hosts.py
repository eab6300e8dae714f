"""Hosts read from the SSH configuration."""

from __future__ import annotations

from pathlib import Path

from olol_tui.ssh.config_hosts import SshHost, read_ssh_hosts


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
