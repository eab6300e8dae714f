"""Request records on disk: bounded, readable while they are written, and never in the way."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from olol_tui.cli import main
from olol_tui.gateway import archive
from olol_tui.gateway.archive import Archive, Refused, read
from olol_tui.gateway.records import Record


def record(number: int, **changes: Any) -> Record:
    now = time.monotonic()
    one = Record(f"r{number}", "m:1b", "ollama", "/api/chat", "ann", now - 2.0, True)
    one.state, one.status, one.sent_s, one.first_s, one.ended_s = (
        "done",
        200,
        now - 1.5,
        now - 1,
        now,
    )
    one.tokens, one.prompt_tokens, one.where, one.engine = 10, 5, "n1/gpu0", "n1/ollama-gpu0"
    for name, value in changes.items():
        setattr(one, name, value)
    return one


def write(path: Path, *records: Record | Refused, **options: Any) -> Archive:
    kept = Archive(path, **{"max_rows": 1000, "max_age_s": 1e6, **options})
    for one in records:
        kept.put(one)
    kept.start()
    kept.close()
    return kept


def test_a_record_is_whole_and_its_file_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    write(path, record(1), record(2, state="failed", cause="engine_lost", error="gone"))
    first, second = read(path)
    assert (first["id"], first["client"], first["place"], first["tokens"]) == (
        "r1",
        "ann",
        "n1/gpu0",
        10,
    )
    assert first["ttft_s"] == pytest.approx(1.0, abs=0.01)
    assert first["arrived_wall_s"] == pytest.approx(time.time() - 2, abs=1)
    assert (second["cause"], second["error"]) == ("engine_lost", "gone")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [row["id"] for row in read(path, limit=1)] == ["r2"]
    assert read(path, since_wall_s=time.time()) == []


TRIES = ("n1/gpu0: the engine closed the connection", "n2/gpu0: it answered 500")


def test_what_was_tried_before_is_kept_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, at = tmp_path / "requests.db", ["--state-dir", str(tmp_path)]
    twice = record(1, retries=2, tried=TRIES)
    write(path, twice, record(2, retries=1, replays=1, tried=TRIES[:1]), record(3))
    told = [(row["replays"], row["tried"]) for row in read(path)]
    assert told == [(0, list(TRIES)), (1, [TRIES[0]]), (0, [])]
    assert main(["requests", *at]) == 0
    out = capsys.readouterr().out
    assert "done, retried 2 times" in out
    assert "done, replayed once" in out
    assert main(["requests", "--csv", "--limit", "3", *at]) == 0
    assert f"0,{TRIES[0]}; {TRIES[1]}\n" in capsys.readouterr().out
    assert main(["why", "r1", *at]) == 0
    assert f"tried before: {TRIES[1]}" in capsys.readouterr().out


def test_a_file_of_the_version_before_is_read_and_gets_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    write(path, record(1))
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE requests DROP COLUMN replays")
        database.execute("ALTER TABLE requests DROP COLUMN tried")
        database.execute("PRAGMA user_version = 1")
    assert [(row["id"], row["replays"], row["tried"]) for row in read(path)] == [("r1", 0, [])]
    write(path, record(2, retries=1, tried=TRIES[:1]))
    assert [(row["id"], row["tried"]) for row in read(path)] == [("r1", []), ("r2", [TRIES[0]])]
    assert [file.name for file in tmp_path.glob("*.old.db")] == []


def test_rows_are_bounded_by_count_and_by_age(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    for start in range(0, 60, 20):
        write(path, *(record(number) for number in range(start, start + 20)), max_rows=25)
    assert [row["id"] for row in read(path)] == [f"r{number}" for number in range(35, 60)]
    write(path, record(99), max_age_s=0.5)
    assert read(path) == []


def test_a_flood_costs_records_and_no_memory(tmp_path: Path) -> None:
    many = [record(number) for number in range(archive.MAX_PENDING + 50)]
    kept = write(tmp_path / "requests.db", *many, max_rows=10_000)
    assert kept.unrecorded == 50
    assert len(read(tmp_path / "requests.db")) == archive.MAX_PENDING


def test_it_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    kept = Archive(path, max_rows=1000, max_age_s=1e6)
    kept.start()
    try:
        kept.put(record(1))
        deadline = time.monotonic() + 20
        while not (path.exists() and _rows(path)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        kept.close()


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read(path)
    except sqlite3.OperationalError:
        return []  # the file is there, its table not yet


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, b""])
def test_a_damaged_file_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "requests.db"
    path.write_bytes(content)
    write(path, record(1))
    assert [row["id"] for row in read(path)] == ["r1"]
    assert (tmp_path / "requests.old.db").exists() == bool(content)


def test_a_database_of_another_version_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "requests.db"
    other = sqlite3.connect(path)
    other.execute("PRAGMA user_version = 7")
    other.close()
    write(path, record(1))
    assert len(read(path)) == 1


def test_a_place_that_cannot_be_written_is_said_once_and_breaks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "requests.db"
    path.mkdir()
    kept = Archive(path, max_rows=10, max_age_s=1e6)
    for _ in range(2):
        kept.put(record(1))
        kept.start()
        kept.close()
    assert kept.unrecorded == 2
    assert len(caplog.records) == 1


def test_nothing_is_kept_when_nothing_is_wanted(tmp_path: Path) -> None:
    write(tmp_path / "requests.db", record(1), max_rows=0)
    assert list(tmp_path.iterdir()) == []


def test_the_access_log_is_json_without_secrets_and_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "access.log"
    refused = Refused(time.time(), "10.0.0.7", "GET", "/x\n" + "y" * 500, 401)
    write(tmp_path / "requests.db", record(1), refused, access_log=str(log))
    first, second = [json.loads(line) for line in log.read_text().splitlines()]
    assert (first["id"], first["client"], first["path"], first["state"]) == (
        "r1",
        "ann",
        "/api/chat",
        "done",
    )
    assert not {"why", "error", "prompt"} & first.keys()
    assert (second["status"], second["client"], len(second["path"])) == (401, "10.0.0.7", 200)
    assert log.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(archive, "LOG_BYTES", 10)
    write(tmp_path / "requests.db", record(2), access_log=str(log))
    assert (tmp_path / "access.log.1").exists()
    assert not log.exists()


def test_the_command_prints_text_json_and_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--state-dir", str(tmp_path)]
    assert main(["requests", *at]) == 1
    assert "no request has ended" in capsys.readouterr().err
    evil = record(2, model="=cmd|' /C calc'!A0", client="a\x1b[31m")
    write(tmp_path / "requests.db", record(1), evil)
    assert main(["requests", "--since", "1h", *at]) == 0
    out = capsys.readouterr().out
    assert "r1" in out
    assert "n1/gpu0" in out
    assert "\x1b" not in out
    assert main(["requests", "--json", *at]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["r1", "r2"]
    assert main(["requests", "--csv", "--limit", "1", *at]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.startswith("id,arrived_wall_s,client")
    assert "'=cmd" in line, "a spreadsheet must not run what a client sent"
    assert main(["why", "r1", *at]) == 0
    assert "r1: m:1b for ann, done, n1/gpu0" in capsys.readouterr().out
    assert main(["why", "r77", *at]) == 1
