"""When an idle runner goes."""

from __future__ import annotations

from datetime import datetime

from olol_tui.fleet.leases import Leases
from olol_tui.fleet.snapshot import Engine, EngineState

ID = "local/embedded-cpu-m"


def expired(
    leases: Leases,
    now_s: float,
    *,
    state: EngineState = "ready",
    busy: bool = False,
    pinned: bool = False,
) -> list[str]:
    engine = Engine(ID, "local", "embedded", state)
    return leases.expired([engine], is_busy=lambda _: busy, is_pinned=lambda _: pinned, now_s=now_s)


def test_it_goes_when_its_keep_alive_is_over_counted_from_ready() -> None:
    leases = Leases()
    leases.hold(ID, 300)
    assert expired(leases, 0, state="starting") == []
    assert expired(leases, 500) == []
    assert expired(leases, 799) == []
    assert expired(leases, 800) == [ID]


def test_each_request_counts_from_its_end_and_a_running_one_holds_it() -> None:
    leases = Leases()
    leases.hold(ID, 300)
    expired(leases, 0)
    leases.touch(ID, None, 250)
    assert expired(leases, 549) == []
    assert expired(leases, 900, busy=True) == []
    assert expired(leases, 901) == [], "its time counts anew when it became idle"
    assert expired(leases, 1201) == [ID]


def test_zero_goes_at_once_and_negative_never() -> None:
    leases = Leases()
    leases.hold(ID, 300)
    leases.touch(ID, -1, 0)
    assert expired(leases, 1e9) == []
    assert leases.expires_at(ID, 1e9) == ""
    leases.touch(ID, 0, 1e9)
    assert expired(leases, 1e9, busy=True) == []
    assert expired(leases, 1e9) == [ID]


def test_a_request_without_keep_alive_leaves_the_models_own() -> None:
    leases = Leases()
    leases.hold(ID, -1)
    leases.touch(ID, None, 10)
    assert leases.keep_alive_s(ID) == -1
    assert expired(leases, 1e9) == []


def test_a_pinned_one_stays_and_a_failed_one_goes() -> None:
    leases = Leases()
    leases.hold(ID, 10)
    assert expired(leases, 0, pinned=True) == expired(leases, 100, pinned=True) == []
    assert expired(leases, 100, state="failed") == []
    assert expired(leases, 110, state="failed") == [ID]
    leases.drop(ID)
    assert expired(leases, 1e9) == []
    leases.touch(ID, 0, 1e9)
    assert leases.keep_alive_s(ID) is None


def test_the_expiry_is_shown_as_a_time() -> None:
    leases = Leases()
    leases.hold(ID, 300)
    expired(leases, 0)
    later = datetime.fromisoformat(leases.expires_at(ID, 100))
    sooner = datetime.fromisoformat(leases.expires_at(ID, 250))
    assert 148 <= (later - sooner).total_seconds() <= 151
