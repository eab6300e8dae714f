"""What the agent keeps on disk: records, the desired list, logs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from olol_tui.agent import logs
from olol_tui.agent.errors import StartError
from olol_tui.agent.records import Record, State, atomic_write, slug
from olol_tui.agent.spec import parse_spec

RECORD = Record(
    id="node/ollama-gpu0",
    pid=42,
    starttime=7,
    boot_id="b",
    port=11500,
    spec_digest="d",
    argv=["ollama", "serve"],
    log="/l",
    started_wall=1.5,
)


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path, "machine")


def test_records_come_back_under_ids_that_are_no_file_names(state: State) -> None:
    odd = Record(**{**RECORD.__dict__, "id": "../we ird/…%2F"})
    state.write(RECORD)
    state.write(odd)
    assert state.records() == {RECORD.id: RECORD, odd.id: odd}
    assert {p.parent for p in state.engines.rglob("*")} == {state.engines}
    state.forget(odd.id)
    state.forget(odd.id)
    assert state.records() == {RECORD.id: RECORD}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"id": "x"}', b"\xff\xfe"])
def test_a_damaged_record_is_dropped(state: State, damage: bytes) -> None:
    state.write(RECORD)
    broken = state.engines / "n%2Fbroken.json"
    broken.write_bytes(damage)
    assert set(state.records()) == {RECORD.id}
    assert not broken.exists()


def test_a_record_of_a_newer_agent_is_still_read(state: State) -> None:
    state.write(RECORD)
    path = state.engines / f"{slug(RECORD.id)}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cgroup": "x"}))
    assert state.records() == {RECORD.id: RECORD}


def test_the_desired_list_comes_back(state: State) -> None:
    assert state.read_desired() == (0, [])
    given = {
        "id": "n/r",
        "kind": "embedded",
        "model": {"name": "m", "path": "/m", "chat_template": "t"},
        "env": {"A": "b"},
        "args": ["-x"],
        "devices": ["cpu"],
    }
    specs = [parse_spec(given, "s"), parse_spec({"id": "n/o", "kind": "ollama"}, "s")]
    state.write_desired(3, specs)
    assert state.read_desired() == (3, specs)
    assert [s.digest for s in state.read_desired()[1]] == [s.digest for s in specs]


def test_machines_that_share_a_home_do_not_share_state(tmp_path: Path) -> None:
    one, other = State(tmp_path, "one"), State(tmp_path, "other/../x")
    one.write(RECORD)
    assert other.records() == {}
    assert other.path.parent == tmp_path
    with pytest.raises(StartError, match=f"pid {os.getpid()}"):
        State(tmp_path, "one")
    one.close()
    State(tmp_path, "one").close()
    other.close()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "f"
    atomic_write(path, b"old")
    with pytest.raises(TypeError):
        atomic_write(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_tail_gives_the_last_lines_of_long_files(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {n} {'x' * 100}\n" for n in range(5000)))
    last = logs.tail(path, 3)
    assert [line.split()[1] for line in last] == ["4997", "4998", "4999"]
    assert len(logs.tail(path, 100_000)) == 5000
    assert logs.tail(path, 0) == []
    assert logs.tail(tmp_path / "none", 3) == []


def test_lines_are_safe_to_draw(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"\x1b[1;31mred\x1b[0m\nload 1%\rload 99%\r\n\xff\x07bell\n" + b"y" * 9000)
    red, load, bell, long = logs.tail(path, 10)
    assert red == "red"
    assert load == "load 99%"
    assert bell == "��bell"
    assert len(long) == 4000


def test_rotation_keeps_the_writer_and_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    limits = logs.Limits(max_bytes=10, files=3)
    with path.open("ab", buffering=0) as writer:
        for n in range(4):
            writer.write(b"%d" % n * 20 + b"\n")
            assert logs.rotate(path, limits)
        assert not logs.rotate(path, limits)
        writer.write(b"after\n")
    assert path.read_bytes() == b"after\n"
    assert logs.rotated(path, 1).read_bytes().startswith(b"3333")
    assert logs.rotated(path, 2).read_bytes().startswith(b"2222")
    assert len(list(tmp_path.iterdir())) == 3


async def test_following_survives_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    lines = logs.follow(path, 1, poll_s=0.01)
    assert await anext(lines) == "old"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"one\n")
        assert await anext(lines) == "one"
        logs.rotate(path, logs.Limits(max_bytes=1, files=2))
        writer.write(b"2\n")
        assert await anext(lines) == "2"
    await lines.aclose()  # type: ignore[attr-defined]
