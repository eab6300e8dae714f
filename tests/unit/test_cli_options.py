"""Options and their refusals; no core is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from olol_tui import __version__
from olol_tui.cli import _command, _config, _parser, main
from olol_tui.demo_fleet import demo_config, demo_paths
from olol_tui.fleet.commands import (
    AnyCommand,
    CancelRequest,
    Move,
    PauseModel,
    Place,
    RerouteRequest,
    RetrySplit,
    SetPin,
    Unload,
)
from olol_tui.paths import Paths


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("place qwen3:8b n1/gpu0", Place("qwen3:8b", "n1", "gpu0")),
        ("place qwen3:8b n1/GPU-1234-ab", Place("qwen3:8b", "n1", "GPU-1234-ab")),
        ("unload qwen3:8b n1/0", Unload("qwen3:8b", "n1", "0")),
        ("move m n1/gpu0 n2/gpu1", Move("m", "n1", "gpu0", "n2", "gpu1")),
        ("pin m n1/cpu", SetPin("m", "n1", "cpu", pinned=True)),
        ("unpin m n1/cpu", SetPin("m", "n1", "cpu", pinned=False)),
        ("cancel r17", CancelRequest("r17")),
        ("pause qwen3:8b", PauseModel("qwen3:8b")),
        ("retry qwen3:8b", RetrySplit("qwen3:8b")),
        ("resume qwen3:8b", PauseModel("qwen3:8b", paused=False)),
        ("reroute r17 --to n2", RerouteRequest("r17", to="n2")),
        ("reroute r17 --away n2/ollama-gpu0", RerouteRequest("r17", away="n2/ollama-gpu0")),
    ],
)
def test_a_line_becomes_a_command(line: str, command: AnyCommand) -> None:
    assert _command(_parser().parse_args(line.split())) == command


def test_bounds_of_the_command_line_go_before_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text("[gateway]\nmax_queue = 5\nport = 1234\n")
    line = f"--config {path} --state-dir {tmp_path} --max-queue 9000 --max-body 1MiB"
    args = _parser().parse_args(line.split())
    config = _config(args, Paths.resolve(args.state_dir, args.config))
    gateway = config.gateway
    assert (gateway.max_queue, gateway.max_body_bytes, gateway.port) == (9000, 2**20, 1234)
    # So that a file that changes later does not take them back.
    assert config.given == {"max_queue": 9000, "max_body_bytes": 2**20}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("place m", "NODE/GPU"),
        ("place m n1", "expected NODE/GPU such as local/gpu0, got 'n1'"),
        ("place m /gpu0", "expected NODE/GPU"),
        ("move m n1/gpu0", "TO-NODE/GPU"),
        ("--port 65536", "expected a port from 0 to 65535, got '65536'"),
        ("--port -1", "--port"),
        ("demo --gpus 0", "expected a number from 1 to 1024, got '0'"),
        ("demo --nodes many", "expected a number from 1 to 1024"),
        ("--json", "--json needs --once"),
        ("--serve --once", "either --serve or --once"),
        ("no-such-command", "no-such-command"),
        ("reroute r17", "one of the arguments --to --away is required"),
        ("--max-queue many", "expected a number from 0 to 1000000, got 'many'"),
        ("--max-body 3 quarts", "--max-body"),
        ("--max-body 3G", "expected a size such as"),
    ],
)
def test_a_wrong_line_ends_with_2_and_says_what_was_expected(
    line: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"olol-tui {__version__}\n"


@pytest.mark.parametrize("line", ["--state-dir {} status", "status --state-dir {}"])
def test_the_state_directory_may_stand_on_either_side_of_the_command(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.format(tmp_path / "mine").split()) == 1
    assert "no olol-tui answers" in capsys.readouterr().err
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("line", ["--read-only demo", "demo --read-only"])
def test_console_options_may_stand_on_either_side_of_demo(line: str) -> None:
    args = _parser().parse_args(line.split())
    assert (args.read_only, args.no_mouse, args.theme) == (True, False, None)


def test_a_state_directory_that_cannot_be_is_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["status", "--state-dir", str(tmp_path / "file" / "state")]) == 2
    assert "cannot be made: Not a directory" in capsys.readouterr().err


def test_a_demo_has_the_nodes_it_was_asked_for_and_a_state_of_its_own(tmp_path: Path) -> None:
    config = demo_config(nodes=3, gpus=8, host=None, port=0)
    assert list(config.nodes) == ["n1", "n2", "n3"]
    simulated = config.nodes["n3"].simulated
    assert simulated is not None
    assert simulated.gpus == 8
    assert demo_paths(tmp_path).state_dir == tmp_path
