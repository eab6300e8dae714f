"""What a node's shell printed, read into facts; and the script itself in a local shell."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from olol_tui.provision.errors import NodeMute, NodeTrouble
from olol_tui.provision.facts import Interpreter, parse, survey
from olol_tui.provision.helper import Helper
from olol_tui.provision.helper import answer as read_answer

MARK = "OLOL-0123456789abcdef "
ESCAPES = "\x1b]0;owned\x07\x1b[2J"


def printed(answer: dict[str, Any] | None, *pythons: str) -> str:
    lines = ["", "OLOL-SYSTEM Linux h1 x86_64"]
    lines += [f"OLOL-PYTHON {python}" for python in pythons]
    if answer is not None:
        lines.append(MARK + json.dumps({"ok": answer}))
    return "\n".join(lines) + "\n"


def test_facts_between_what_a_shell_prints_by_itself() -> None:
    noise = f"Welcome to h1!{ESCAPES}\r\nYou have mail.\n"
    answer = {"arch": "x86_64", "wall_s": 1060.0, "uid": 1500, "executable": "/opt/py/bin/python3"}
    text = noise + printed(answer, "/usr/bin/python3.9 3.9.2 usable") + noise
    facts = parse(text, MARK, now_s=1000.0)
    assert facts is not None
    assert facts.python == Interpreter("/opt/py/bin/python3", "3.9.2")
    assert (facts.uid, facts.clock_ahead_s) == (1500, 60.0)


def test_pythons_that_do_not_do_are_remembered() -> None:
    text = printed(None, "/usr/bin/python3 3.6.8 old", "/opt/p broken", "/q 3.9.1 without zlib")
    facts = parse(text, MARK, 0.0)
    assert facts is not None
    assert facts.python is None
    assert facts.pythons == (
        Interpreter("/usr/bin/python3", "3.6.8", "old"),
        Interpreter("/opt/p", "", "broken"),
        Interpreter("/q", "3.9.1", "without zlib"),
    )


def test_no_text_of_a_node_steers_the_terminal() -> None:
    hostile = f"{ESCAPES}evil\nline\x9b31m"
    answer = {
        "os": hostile,
        "hostname": hostile,
        "user": hostile,
        "gpus": [hostile],
        "driver": {"error": hostile},
        "disk": {"path": hostile, "error": hostile},
        "ollama": {"path": hostile, "version": hostile},
        "agent": {"pid": 1, "version": hostile, "error": hostile},
        "machine_id": hostile,
    }
    facts = parse(printed(answer, f"{ESCAPES}/p 3.9.1 usable"), MARK, 0.0)
    assert facts is not None
    shown = [
        *(facts.os, facts.hostname, facts.user, *facts.gpus, facts.driver_error, facts.disk.path),
        *(facts.disk.error, facts.machine_id, facts.pythons[0].path),
    ]
    assert facts.ollama is not None
    assert facts.agent is not None
    shown += [facts.ollama.path, facts.agent.version, facts.agent.error]
    for text in shown:
        assert text.isprintable(), repr(text)


@pytest.mark.parametrize("text", ["", "This account is currently not available.\n", MARK + "{"])
def test_a_shell_that_ran_nothing_gives_no_facts(text: str) -> None:
    assert parse(text, MARK, 0.0) is None


def test_a_forged_answer_has_no_mark() -> None:
    forged = "OLOL-feedfeedfeedfeed " + json.dumps({"ok": {"arch": "forged"}})
    facts = parse(printed(None) + forged, MARK, 0.0)
    assert facts is not None
    assert facts.arch == "x86_64"


def test_trouble_on_the_node_is_told_in_its_words() -> None:
    text = MARK + json.dumps({"trouble": ["full", f"{ESCAPES}the disk is full", "Free some."]})
    with pytest.raises(NodeTrouble, match=r"^the disk is full$") as caught:
        read_answer(text, MARK)
    assert (caught.value.kind, caught.value.hint) == ("full", "Free some.")


# -- in a local shell


@dataclass
class Ended:
    status: int
    stdout: str
    stderr: str


class LocalTalk:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout

    async def write(self, data: bytes) -> None:
        self._stdin.write(data)

    async def read(self) -> bytes:
        return await self._stdout.read(65536)

    async def end(self) -> Ended:
        self._stdin.close()
        out, err = await self._process.communicate()
        return Ended(self._process.returncode or 0, out.decode(), err.decode())

    def abandon(self) -> None:
        self._process.kill()


class LocalShell:
    """A shell of this machine with another environment."""

    def __init__(self, **env: str) -> None:
        self.env = env
        self.commands = 0

    async def run(self, command: str, *, stdin: bytes = b"", timeout_s: float = 30.0) -> Ended:
        raise AssertionError("facts are had by talking")

    @asynccontextmanager
    async def talk(self, command: str) -> AsyncIterator[LocalTalk]:
        self.commands += 1
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", command, stdin=-1, stdout=-1, stderr=-1, env=self.env
        )
        talk = LocalTalk(process)
        try:
            yield talk
        finally:
            if process.returncode is None:
                await talk.end()

    def sftp(self) -> Any:
        raise AssertionError("facts need no files")


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


async def test_one_command_tells_all(tmp_path: Path) -> None:
    program(tmp_path / "bin", "python3.14", "exit 127  # a shim that leads nowhere")
    program(tmp_path / "bin", "python3.13", "echo OLOL-PYTHON $5 3.6.15 old")
    program(tmp_path / "bin", "python3.12", f'exec {sys.executable} "$@"')
    program(tmp_path / "bin", "ollama", "echo ollama version is 0.12.3")
    home = tmp_path / "home"
    home.mkdir()
    shell = LocalShell(HOME=str(home), PATH=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    helper = Helper(shell)
    facts = await survey(helper, "")
    # The same interpreter takes the next errand, and its data.
    ask = {"directory": "", "sha256": hashlib.sha256(b"agent").hexdigest(), "fresh": True}
    with pytest.raises(NodeTrouble, match="damaged on its way"):
        await helper.call("image", "install", ask, data=b"other")
    await helper.close()
    assert shell.commands == 1
    assert [python.problem for python in facts.pythons] == ["broken", "old", ""]
    assert facts.pythons[1].path == str(tmp_path / "bin/python3.13")
    assert facts.arch == os.uname().machine
    assert facts.python is not None
    # The interpreter behind the wrapper, which may lead elsewhere tomorrow.
    assert facts.python.path == sys.executable
    assert facts.ollama is not None
    assert facts.ollama.version == "0.12.3"
    assert facts.base == f"{home}/.local/share/olol-agent"
    assert facts.disk.path == str(home)
    assert facts.uid == os.getuid()
    assert abs(facts.clock_ahead_s) < 30
    assert list(home.iterdir()) == []


async def test_without_an_interpreter_the_shell_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin", "python3.14", "exit 127")
    monkeypatch.setattr("olol_tui.provision.helper._CANDIDATES", ("python3.14", "python3.13"))
    shell = LocalShell(HOME=str(tmp_path), PATH=f"{tmp_path / 'bin'}:/bin")
    async with asyncio.timeout(10):
        facts = await survey(Helper(shell), "")
    assert facts.python is None
    assert [python.problem for python in facts.pythons] == ["broken"]


async def test_an_account_without_commands_is_told(tmp_path: Path) -> None:
    no_login = f"printf '{ESCAPES}This account is currently not available.'; exit 1 #"

    class NoLogin(LocalShell):
        def talk(self, command: str) -> Any:
            return super().talk(no_login + command)

    with pytest.raises(NodeMute, match="status 1 and said: This account is currently not"):
        await survey(Helper(NoLogin()), "")


async def test_a_python_that_dies_and_one_that_is_started_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shell = LocalShell(HOME=str(home), PATH="/usr/bin:/bin")
    helper = Helper(shell)
    helper.python = "/nowhere/python3"
    with pytest.raises(NodeMute, match="/nowhere/python3 ended with status 127"):
        await helper.call("survey", "survey", {"directory": ""})
    helper.python = sys.executable
    ask = {"directory": "", "sha256": hashlib.sha256(b"agent").hexdigest(), "fresh": True}
    done = await helper.call("image", "install", ask, data=b"agent")
    assert Path(done["path"]).read_bytes() == b"agent"
    await helper.close()
    assert shell.commands == 2
