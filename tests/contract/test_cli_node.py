"""`olol-tui node`, `hosts` and `discover` as a user types them."""

from __future__ import annotations

import getpass
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from olol_tui.cli import main
from tests.contract.sshd_host import needs_sshd, sshd_host

ROOT = Path(__file__).parents[2]
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs one command line: (exit code, stdout, stderr)."""
    home = tmp_path / "me"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(["--state-dir", str(tmp_path / "state"), *words])
        except SystemExit as exit_:
            code = int(str(exit_.code))
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cluster.toml"


def test_nodes_are_added_listed_and_removed(cli: Cli, config: Path, tmp_path: Path) -> None:
    (tmp_path / "me/.ssh").mkdir()
    (tmp_path / "me/.ssh/config").write_text("Host gpu2.lan\n HostName 10.0.0.2\n Port 2200\n")
    code, out, _ = cli("node", "add", "ops@gpu1.lan:2222", "gpu2.lan", "10.0.0.12")
    assert code == 0
    assert "olol-tui node provision gpu1 gpu2 10.0.0.12" in out
    assert "[nodes.local]\nlocal = true" in out
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    nodes = json.loads(cli("node", "list", "--json")[1])
    assert nodes["core"] is False
    assert [(node["name"], node["where"]) for node in nodes["nodes"]] == [
        ("gpu1", "ops@gpu1.lan:2222"),
        ("gpu2", f"{getpass.getuser()}@10.0.0.2:2200"),
        ("10.0.0.12", f"{getpass.getuser()}@10.0.0.12"),
    ]
    assert "no core runs" in cli("node", "list")[1]
    assert cli("node", "remove", "--force", "gpu1", "gpu2")[0] == 0
    assert [n["name"] for n in json.loads(cli("node", "list", "--json")[1])["nodes"]] == [
        "10.0.0.12"
    ]


def test_names_that_are_taken_give_way_to_longer_ones(cli: Cli) -> None:
    assert cli("node", "add", "gpu1.a", "gpu1.b")[0] == 0
    nodes = json.loads(cli("node", "list", "--json")[1])["nodes"]
    assert [node["name"] for node in nodes] == ["gpu1", "gpu1.b"]


def test_all_that_can_be_said_of_a_node(cli: Cli, config: Path, tmp_path: Path) -> None:
    words = ["--name", "big", "--identity", "~/.ssh/lab", "--profile", "wan", "--pool", "batch"]
    words += ["--known-hosts", "/etc/hosts.lab", "--directory", "~/olol"]
    code, _, err = cli("node", "add", "gpu1", *words, "--simulated", "gpus=8,vram=24GiB")
    assert code == 0, err
    text = config.read_text()
    for line in (
        "[nodes.big]",
        'host = "gpu1"',
        'identity = "~/.ssh/lab"',
        'profile = "wan"',
        'pool = "batch"',
        'known_hosts = "/etc/hosts.lab"',
        'directory = "~/olol"',
        'simulated = {gpus = 8, vram = "24GiB"}',
    ):
        assert line in text


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("node", "add", "a b"), 2, "expected [USER@]HOST[:PORT]"),
        (("node", "add", "h:99999"), 2, "expected [USER@]HOST[:PORT]"),
        (("node", "add", "h1", "h2", "--name", "x"), 1, "--name is for one host"),
        (("node", "add", "h1", "--name", "Big Name"), 2, "expected a name of lower-case"),
        (("node", "add", "h1", "--simulated", "gpus"), 2, "expected KEY=VALUE"),
        (("node", "add", "h1", "--simulated", "gpus=0"), 2, "expected 1 or more, got 0"),
        (("node", "add", "h1", "--directory", "olol"), 2, "expected a path such as"),
        (("node", "remove", "h9"), 2, "has no node h9"),
        (("node", "provision"), 1, "expected the names of nodes, or --all"),
        (("node", "provision", "h9"), 1, "there is no node h9"),
        (("node", "provision", "local"), 1, "this machine: it needs no provisioning"),
        (("node", "provision", "--all"), 1, "olol-tui node add HOST"),
        (("discover", "10.0.0.0/8"), 1, "at most 4096"),
        (("discover", "gpu1.lan"), 1, "expected a network"),
        (("hosts", "forget", "gpu1.lan"), 1, "no key of gpu1.lan was known"),
        (("node",), 2, "required: COMMAND"),
    ],
)
def test_what_is_wrong_is_said(
    cli: Cli, config: Path, words: tuple[str, ...], code: int, why: str
) -> None:
    found, out, err = cli(*words)
    assert (found, why in out + err) == (code, True), out + err
    assert "Traceback" not in err
    assert not config.exists() or "h1" not in config.read_text()


def test_a_name_twice_changes_nothing(cli: Cli, config: Path) -> None:
    cli("node", "add", "h1")
    before = config.read_text()
    code, _, err = cli("node", "add", "h2", "h1", "--pool", "x")
    assert code == 2
    assert "already has the node h1" in err
    assert config.read_text() == before


def test_a_host_that_nobody_answers_for(cli: Cli) -> None:
    cli("node", "add", "127.0.0.1:1", "--name", "dead")
    code, out, _ = cli("node", "provision", "dead")
    assert code == 1
    assert "✖ connect" in out
    assert "Is sshd running there" in out
    assert "1 node: 1 failed" in out
    report = json.loads(cli("node", "provision", "dead", "--json")[1])["nodes"][0]
    assert report["ok"] is False
    assert report["steps"][0]["state"] == "failed"
    # Whether something is installed there, nobody knows: it is not forgotten by accident.
    code, _, err = cli("node", "remove", "dead")
    assert code == 1
    assert "node remove --force dead" in err


@needs_sshd
def test_a_node_from_the_shell(cli: Cli, tmp_path: Path) -> None:
    with sshd_host(tmp_path / "h1") as host:
        target = host.target
        where = f"{target.user}@127.0.0.1:{target.port}"
        identity = ["--identity", str(target.identities[0])]
        assert cli("node", "add", where, "--name", "h1", *identity, "--simulated", "gpus=1")[0] == 0
        code, out, _ = cli("node", "provision", "h1")
        assert code == 1
        assert "never seen: SHA256:" in out
        code, out, err = cli("node", "provision", "h1", "--accept-new")
        assert code == 0, out + err
        assert "1 node: 1 provisioned" in out
        assert "1 node: 1 unchanged" in cli("node", "provision", "--all")[1]
        code, out, _ = cli("node", "uninstall", "h1", "--dry-run", "--json")
        removal = json.loads(out)["nodes"][0]["steps"][2]
        assert removal["message"].startswith("would remove agent (pid ")
        assert "1 node: 1 uninstalled" in cli("node", "uninstall", "h1")[1]
        assert cli("node", "remove", "h1")[0] == 0
        assert "● forgot" in cli("hosts", "forget", f"127.0.0.1:{target.port}")[1]


@needs_sshd
@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("", 1)])
def test_a_new_host_key_is_asked_for_on_a_terminal(tmp_path: Path, answer: str, code: int) -> None:
    with sshd_host(tmp_path / "h1") as host:
        target = host.target
        state = tmp_path / "state"
        state.mkdir()
        (state / "cluster.toml").write_text(
            f'[nodes.h1]\nhost = "127.0.0.1"\nport = {target.port}\nuser = "{target.user}"\n'
            f'identity = "{target.identities[0]}"\nsimulated = {{ gpus = 1 }}\n'
        )
        terminal, theirs = os.openpty()
        command = [sys.executable, "-m", "olol_tui", "--state-dir", str(state)]
        env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [*command, "node", "provision", "h1", "--dry-run"],
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            env=env,
        ) as process:
            os.close(theirs)
            said = b""
            while b"[y/N]" not in said:
                said += os.read(terminal, 4096)
            assert b"ED25519 SHA256:" in said
            assert b"[SHA256]" in said
            os.write(terminal, answer.encode() + b"\n")
            out, _ = process.communicate(timeout=60)
            os.close(terminal)
        assert process.returncode == code, out
        assert (state / "known_hosts").exists() is (code == 0)
