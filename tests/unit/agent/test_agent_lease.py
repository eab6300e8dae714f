"""Who may change what runs on a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from olol_tui.agent.errors import BadRequest, Held
from olol_tui.agent.lease import LEASE_S, Controller, Lease

OPS = Controller("ops-console-1", "ops@laptop")
EVE = Controller("eve-console-2", "eve@desk")


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lease(tmp_path: Path, clock: Clock) -> Lease:
    return Lease(tmp_path / "controller.json", clock=clock)


def test_the_second_one_is_told_who_holds_it(lease: Lease) -> None:
    lease.claim(OPS)
    with pytest.raises(Held, match=r"managed by ops@laptop since 20\d\d-") as told:
        lease.claim(EVE)
    assert told.value.status == 409
    assert told.value.body()["held_by"]["name"] == "ops@laptop"
    lease.claim(OPS)


def test_nobody_without_a_name_changes_anything_meanwhile(lease: Lease) -> None:
    lease.check(None)
    lease.claim(OPS)
    with pytest.raises(Held):
        lease.check(None)


def test_it_lapses_when_its_holder_is_silent(lease: Lease, clock: Clock) -> None:
    lease.claim(OPS)
    clock.now_s += LEASE_S - 1
    lease.claim(OPS)
    clock.now_s += LEASE_S - 1
    with pytest.raises(Held):
        lease.claim(EVE)
    clock.now_s += 2
    assert lease.shown() is None
    lease.claim(EVE)
    with pytest.raises(Held, match="eve@desk"):
        lease.claim(OPS)


def test_an_orderly_end_frees_it_at_once(lease: Lease) -> None:
    lease.claim(OPS)
    lease.release(EVE)
    with pytest.raises(Held):
        lease.claim(EVE)
    lease.release(OPS)
    lease.claim(EVE)


def test_a_restart_of_the_agent_leaves_the_holder_its_time(
    tmp_path: Path, lease: Lease, clock: Clock
) -> None:
    lease.claim(OPS)
    later = Lease(tmp_path / "controller.json", clock=clock)
    with pytest.raises(Held, match="ops@laptop"):
        later.claim(EVE)
    later.claim(OPS)
    clock.now_s += LEASE_S
    later.claim(EVE)


def test_a_record_that_makes_no_sense_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "controller.json").write_text('{"id": 5}')
    lease = Lease(tmp_path / "controller.json")
    assert lease.shown() is None
    lease.claim(EVE)


def test_who_holds_it_is_told_when_it_changes(tmp_path: Path) -> None:
    told: list[str] = []
    lease = Lease(tmp_path / "controller.json", lambda: told.append("changed"))
    lease.claim(OPS)
    lease.claim(OPS)
    lease.release(OPS)
    assert told == ["changed", "changed"]


def test_names_are_made_safe_to_show() -> None:
    assert Controller.parse("") is None
    assert Controller.parse("console-17 ops@\x1b[2Jlaptop") == Controller(
        "console-17", "ops@[2Jlaptop"
    )
    assert Controller.parse("console-17") == Controller("console-17", "another console")
    with pytest.raises(BadRequest, match="expected an id"):
        Controller.parse("a/b c")
