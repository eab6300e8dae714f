"""The file of keys: what is in it, who may change it, and what a damaged one does."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from olol_tui.cli import main
from olol_tui.gateway.keys import Key, KeyFileError, KeyStore, NoSuchKey


def store(tmp_path: Path) -> KeyStore:
    found = KeyStore(tmp_path / "keys.json")
    found.load()
    return found


def test_only_a_digest_is_kept_in_a_file_of_ours(tmp_path: Path) -> None:
    token = store(tmp_path).create(Key(id="", name="a", digest=""))
    assert re.fullmatch(r"olol_[0-9a-z]{8}_[0-9A-Za-z]{32}", token)
    path = tmp_path / "keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert token.rpartition("_")[2] not in path.read_text()
    (key,) = store(tmp_path).keys
    assert key.is_secret(token.encode(), time.time())
    assert not key.is_secret(token[:-1].encode(), time.time())


def test_rotation_keeps_the_old_secret_for_its_grace_and_no_longer(tmp_path: Path) -> None:
    keys = store(tmp_path)
    old = keys.create(Key(id="", name="a", digest="")).encode()
    key, new = keys.rotate("a", grace_s=100)
    now = time.time()
    assert key.is_secret(new.encode(), now)
    assert key.is_secret(old, now)
    assert not key.is_secret(old, now + 101)
    key, newer = keys.rotate(key.id)
    assert not key.is_secret(old, now)
    assert not key.is_secret(new.encode(), now)
    assert key.is_secret(newer.encode(), now)


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    one, two = store(tmp_path), store(tmp_path)
    one.create(Key(id="", name="a", digest=""))
    two.create(Key(id="", name="b", digest=""))
    one.create(Key(id="", name="c", digest=""))
    assert [key.name for key in store(tmp_path).keys] == ["a", "b", "c"]


def test_names_are_unique_among_the_living_and_the_dead_are_not_found(tmp_path: Path) -> None:
    keys = store(tmp_path)
    keys.create(Key(id="", name="a", digest=""))
    with pytest.raises(KeyFileError, match="exists"):
        keys.create(Key(id="", name="a", digest=""))
    keys.revoke("a")
    with pytest.raises(NoSuchKey):
        keys.rotate("a")
    keys.create(Key(id="", name="a", digest=""))
    assert keys.required


def test_a_running_core_keeps_what_it_knows_when_the_file_is_gone_or_damaged(
    tmp_path: Path,
) -> None:
    """Fail closed: losing the file must not let everybody in."""
    keys = store(tmp_path)
    keys.create(Key(id="", name="a", digest=""))
    path = tmp_path / "keys.json"
    good = path.read_bytes()
    for harm in (lambda: path.write_text("{"), lambda: path.chmod(0o644), path.unlink):
        path.write_bytes(good)
        path.chmod(0o600)
        harm()
        assert not keys.refresh()
        assert keys.required
        assert keys.find("a").name == "a"


@pytest.mark.parametrize("content", ["{", '{"keys":[{"id":1}]}', '{"version":2,"keys":[]}'])
def test_a_damaged_file_stops_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="damaged"):
        store(tmp_path)


def test_a_file_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text('{"keys":[]}')
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="others"):
        store(tmp_path)


def test_the_command_shows_a_key_once_and_never_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--state-dir", str(tmp_path)]
    line = ["keys", "create", "ann", "--models", "llama3*,qwen3", "--requests-per-min", "60"]
    assert main([*line, "--expires", "90d", "--class", "batch", *at]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("olol_")
    assert len(out.splitlines()) == 1
    assert "shown once" in err
    assert main(["keys", "list", *at]) == 0
    listed = capsys.readouterr().out
    assert "ann" in listed
    assert "llama3*,qwen3:latest" in listed
    assert "60 req/min, batch" in listed
    assert main(["keys", "list", "--json", *at]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["state"] == "active"
    assert not {"digest", "previous"} & shown.keys()
    assert main(["keys", "rotate", "ann", "--grace", "1h", *at]) == 0
    assert capsys.readouterr().out != out
    assert main(["keys", "revoke", "ann", *at]) == 0
    assert main(["keys", "revoke", "ann", *at]) == 1
    assert "no key has the id or name ann" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["create", "a b"],
        ["create", "a", "--scopes", "infer,root"],
        ["create", "a", "--expires", "soon"],
        ["create", "a", "--requests-per-min", "0"],
        ["create", "a", "--weight", "-1"],
        ["create", "a", "--models", "x,,y"],
        [],
    ],
)
def test_a_wrong_line_ends_with_2(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["keys", *options])
    assert ended.value.code == 2
    assert "expected" in capsys.readouterr().err or not options
