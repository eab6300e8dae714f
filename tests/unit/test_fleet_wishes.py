"""Pins, launches and cordons over a restart."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from olol_tui.fleet.wishes import Launch, Wishes, WishesFile
from olol_tui.models.learned import Learned

LAUNCH = Launch(
    engine_id="local/embedded-cpu-m",
    node="local",
    kind="embedded",
    device="cpu",
    model="m:latest",
    path="/m.gguf",
    keep_alive_s=-1,
)


def kept(path: Path) -> tuple[Wishes, WishesFile]:
    wishes = Wishes(lambda: file.dirty.set())
    file = WishesFile(path, wishes)
    return wishes, file


async def test_everything_comes_back_after_a_restart(tmp_path: Path) -> None:
    wishes, file = kept(tmp_path / "deep" / "wishes.json")
    wishes.pin("Qwen3:8B", "n1", "GPU-0")
    wishes.add_launch(LAUNCH)
    wishes.set_cordon("n2", True)
    wishes.learned = learned = Learned({"llama": 1.2}, {"nvidia": 500}, {"llama 1": 1.1})
    await file.store()
    again, file = kept(tmp_path / "deep" / "wishes.json")
    file.load()
    assert again.is_pinned("qwen3:8b", "n1", ["GPU-1", "GPU-0"])
    assert again.launch_of(LAUNCH.engine_id) == LAUNCH
    assert again.is_cordoned("n2") and not again.is_cordoned("n1")
    assert again.learned == learned
    assert not file.dirty.is_set()


async def test_each_change_is_written_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "wishes.json"
    wishes, file = kept(path)
    async with asyncio.timeout(20):
        keeper = asyncio.create_task(file.keep())
        for name in ("a:1", "b:1"):
            wishes.pin(name, "n1", "GPU-0")
            while not path.exists() or name not in path.read_text():
                await asyncio.sleep(0.01)
        keeper.cancel()
        await asyncio.wait([keeper])
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["wishes.json"], "no temporary file is left"


def test_a_broken_file_is_put_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "wishes.json"
    path.write_text('{"pins": 3')
    wishes, file = kept(path)
    with caplog.at_level(logging.ERROR):
        file.load()
    assert wishes.pins == ()
    assert (tmp_path / "wishes.broken").read_text() == '{"pins": 3'
    assert "cannot be read" in caplog.text


def test_only_real_changes_are_told() -> None:
    changes = []
    wishes = Wishes(lambda: changes.append(1))
    assert not wishes.unpin("a", "n", ["d"])
    wishes.set_cordon("n", False)
    assert wishes.drop_launch("x") is None
    assert not changes
    wishes.pin("a", "n", "d")
    wishes.add_launch(LAUNCH)
    wishes.add_launch(LAUNCH)
    assert wishes.unpin("A:latest", "n", ["c", "d"])
    assert wishes.find_launch("M", "local", "cpu") == LAUNCH
    assert wishes.find_launch("M", "local", "GPU-0") is None
    assert len(changes) == 3


async def test_roles_and_adopted_servers_come_back_and_pauses_do_not(tmp_path: Path) -> None:
    wishes, file = kept(tmp_path / "wishes.json")
    wishes.set_role("h1", "GPU-1", "rpc")
    wishes.set_role("h1", "GPU-2", "off")
    wishes.set_role("h1", "GPU-2", "")
    wishes.set_adopted("h1", "http://127.0.0.1:11434", True)
    with wishes.paused(["h1/ollama-gpu0"]), wishes.draining("h1"):
        assert wishes.is_paused("h1/ollama-gpu0") and wishes.is_draining("h1")
        await file.store()
    assert not wishes.is_paused("h1/ollama-gpu0") and not wishes.is_draining("h1")
    again, file = kept(tmp_path / "wishes.json")
    file.load()
    assert again.roles_on("h1") == {"GPU-1": "rpc"}
    assert again.adopted_on("h1") == ("http://127.0.0.1:11434",)
    assert not again.is_paused("h1/ollama-gpu0")


def test_two_who_pause_an_engine_do_not_free_it_for_each_other() -> None:
    wishes = Wishes()
    with wishes.paused(["a", "b"]):
        with wishes.paused(["b", "c"]):
            pass
        assert wishes.is_paused("a") and wishes.is_paused("b") and not wishes.is_paused("c")


def test_a_node_that_leaves_takes_its_wishes_along() -> None:
    wishes = Wishes()
    wishes.pin("m", "local", "cpu")
    wishes.pin("m", "h1", "GPU-0")
    wishes.add_launch(LAUNCH)
    wishes.set_cordon("local", True)
    wishes.set_role("local", "cpu", "off")
    wishes.set_adopted("local", "http://127.0.0.1:1", True)
    wishes.forget_node("local")
    assert [pin.node for pin in wishes.pins] == ["h1"]
    assert not wishes.launches_on("local") and not wishes.is_cordoned("local")
    assert not wishes.roles_on("local") and not wishes.adopted_on("local")
