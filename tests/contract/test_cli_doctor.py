"""`olol-tui doctor`: every line a fact, and what to do about it."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olol_tui.doctor import Finding, report_lines
from tests.contract.serve_rig import Instance, processes_with


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    one = Instance(tmp_path / "state", "[gateway]\nport = 0\n")
    # Only what the test puts there is on PATH.
    (tmp_path / "bin").mkdir()
    one.env |= {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "OLLAMA_MODELS": str(tmp_path)}
    yield one
    one.close()


def findings(instance: Instance) -> dict[str, dict[str, Any]]:
    done = instance.run("doctor", "--json")
    assert done.returncode in (0, 1), done.stderr
    return {finding["topic"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_every_part_of_the_machine_has_its_line(instance: Instance) -> None:
    found = findings(instance)
    for topic in ("olol-tui", "config", "core", "machine", "ollama", "embedded", "gateway"):
        assert found[topic]["fact"]
    assert found["core"]["todo"].startswith("Start it")
    assert "CPUs" in found["machine"]["fact"]
    assert "free" in found["store"]["fact"]
    assert processes_with(str(instance.state_dir)) == [], "it leaves nothing running"
    text = instance.run("doctor")
    assert f"→ {found['core']['todo']}" in text.stdout
    assert "\x1b" not in text.stdout


def test_an_engine_on_path_is_shown_with_its_version(instance: Instance, tmp_path: Path) -> None:
    ollama = tmp_path / "bin" / "ollama"
    ollama.write_text("#!/bin/sh\necho 'ollama version is 9.8.7'\n")
    ollama.chmod(ollama.stat().st_mode | stat.S_IXUSR)
    found = findings(instance)["ollama"]
    assert found["state"] == "good"
    assert found["fact"] == f"version 9.8.7 at {ollama}"


def test_an_engine_that_is_wanted_and_missing_is_a_fault(instance: Instance) -> None:
    (instance.state_dir / "cluster.toml").write_text(
        '[nodes.local]\nlocal = true\nengine = "llama-server"\nbinary = "/nowhere/llama-server"\n'
    )
    done = instance.run("doctor")
    assert done.returncode == 1
    assert "✖ llama-server" in done.stdout
    assert "/nowhere/llama-server is not an executable" in done.stdout


def test_a_taken_port_names_its_holder(instance: Instance) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        (instance.state_dir / "cluster.toml").write_text(f"[gateway]\nport = {port}\n")
        found = findings(instance)["gateway"]
    assert found["state"] == "bad"
    assert f"127.0.0.1:{port} is taken by pid" in found["fact"]


def test_a_broken_configuration_is_one_of_its_findings(instance: Instance) -> None:
    (instance.state_dir / "cluster.toml").write_text("[gateway]\nprot = 1\n")
    done = instance.run("doctor")
    assert done.returncode == 1
    assert 'line 2, gateway.prot: unknown field; did you mean "port"?' in done.stdout
    assert "● machine" in done.stdout, "the rest is examined all the same"


def test_a_running_core_is_reported_and_not_disturbed(instance: Instance) -> None:
    url = instance.serve()
    found = findings(instance)
    assert found["core"]["state"] == "good"
    assert found["gateway"]["fact"].startswith(url)
    assert instance.process.poll() is None


def test_what_to_do_stands_below_the_fact() -> None:
    lines = report_lines(
        [Finding("gpu", "good", "there"), Finding("engine", "bad", "none\nat all", "get\none")],
        colour=False,
    )
    assert lines == [
        "● gpu     there",
        "✖ engine  none",
        "          at all",
        "          → get",
        "          → one",
    ]
