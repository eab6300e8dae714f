"""Which seat a request takes, with its reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from olol_tui.fleet.snapshot import Fleet, Loaded, Loading, Node
from olol_tui.routing.policy import NOBODY, Ask
from olol_tui.routing.queue import Queue
from olol_tui.routing.roster import Roster
from olol_tui.routing.ticket import Dispatch, Fail, Load, Ticket
from tests.contract.gateway_rig import engine_node

MODEL = "qwen3:8b"


def node(name: str, **more: Any) -> Node:
    return engine_node(name, "127.0.0.1:1", MODEL, **more)


def roster(*nodes: Node) -> Roster:
    return Roster(Fleet(nodes=nodes), {})


def ticket(model: str = MODEL, **more: Any) -> Ticket:
    return Ticket(Ask(model, prompt_tokens=100, **more), None, 0.0)


def with_engine(one: Node, **changes: Any) -> Node:
    return replace(one, engines=(replace(one.engines[0], **changes),))


def test_a_warm_engine_beats_a_cold_one() -> None:
    queue, r = Queue(), roster(node("cold", warm=False), node("warm"))
    (step,) = queue.submit(ticket(), r, 0.0)
    assert isinstance(step, Dispatch)
    assert step.seat.node == "warm"
    assert "warm/gpu0 has qwen3:8b loaded" in step.decision.text


def test_requests_spread_over_equal_replicas() -> None:
    queue, r = Queue(), roster(node("a"), node("b"), node("c"))
    seats = [queue.submit(ticket(), r, float(i))[0].seat.node for i in range(3)]  # type: ignore[union-attr]
    assert sorted(seats) == ["a", "b", "c"]


def test_a_slow_engine_gets_what_the_fast_one_cannot_take() -> None:
    queue, r = Queue(), roster(node("slow", slots=4), node("fast", slots=2))
    for engine, tps in (("slow/simulated-gpu0", 100.0), ("fast/simulated-gpu0", 5000.0)):
        queue.speeds.served(engine, MODEL, service_s=4.0, prefill_tps=tps)
    seats = [queue.submit(ticket(), r, 0.0)[0].seat.node for _ in range(3)]  # type: ignore[union-attr]
    assert seats == ["fast", "fast", "slow"]


def test_noise_in_what_was_measured_keeps_no_engine_idle() -> None:
    """14 and 16 ms of expected prefill are the same; rounded to 10 and 20 they were not."""
    queue, r = Queue(), roster(*(node(name, slots=8) for name in "abcd"))
    for name, prefill_s in zip("abcd", (0.0149, 0.0151, 0.012, 0.03), strict=True):
        engine = f"{name}/simulated-gpu0"
        queue.speeds.served(engine, MODEL, service_s=1.0, prefill_tps=100 / prefill_s)
    seats = [queue.submit(ticket(), r, 0.0)[0].seat.node for _ in range(16)]  # type: ignore[union-attr]
    assert sorted(seats) == sorted("abcd" * 4)


def test_an_engine_without_samples_is_taken_for_as_fast_as_the_others() -> None:
    """A pessimistic prior once kept new replicas idle for ever."""
    queue, r = Queue(), roster(node("a"), node("b"))
    queue.speeds.served("a/simulated-gpu0", MODEL, service_s=1.0, prefill_tps=9000.0)
    seats = {queue.submit(ticket(), r, 0.0)[0].seat.node for _ in range(2)}  # type: ignore[union-attr]
    assert seats == {"a", "b"}


def test_an_engine_that_does_not_answer_its_agent_gets_no_request() -> None:
    """A process that was stopped still accepts connections: its kernel does."""
    silent = with_engine(node("silent"), error="does not answer: no answer within 5 s")
    queue, r = Queue(), roster(silent, node("well", slots=4))
    decisions = [queue.submit(ticket(), r, 0.0)[0].decision for _ in range(3)]  # type: ignore[union-attr]
    assert {d.seat.node for d in decisions if d.seat is not None} == {"well"}
    assert "the engine does not answer" in decisions[0].text


def test_nobody_has_it_warm_so_the_emptiest_that_fits_loads_it() -> None:
    small = node("small", warm=False, vram_bytes=1 << 30)
    big = node("big", warm=False)
    queue = Queue()
    (step,) = queue.submit(ticket(), roster(small, big), 0.0)
    assert isinstance(step, Load)
    assert step.seat.node == "big"
    assert queue.queued == 1


def test_others_join_a_load_in_progress() -> None:
    queue, r = Queue(), roster(node("a", warm=False), node("b", warm=False))
    assert isinstance(queue.submit(ticket(), r, 0.0)[0], Load)
    assert queue.submit(ticket(), r, 0.1) == []
    waiting = ticket()
    assert queue.submit(waiting, r, 0.2) == []
    assert waiting.decision is None or "the load on a/gpu0" in waiting.decision.text


def test_a_long_queue_is_worth_a_second_load_on_an_idle_gpu() -> None:
    """Residency is not occupancy: a queue in front of a warm model can cost more than a load."""
    queue, r = Queue(), roster(node("busy"), node("idle", warm=False))
    queue.speeds.served("busy/simulated-gpu0", MODEL, service_s=10.0, prefill_tps=1000.0)
    queue.submit(ticket(), r, 0.0)
    (step,) = queue.submit(ticket(), r, 0.0)
    assert isinstance(step, Load)
    assert step.seat.node == "idle"
    assert "10.0 s of queue > " in step.decision.reason


def test_a_short_queue_is_not() -> None:
    queue, r = Queue(), roster(node("busy"), node("idle", warm=False))
    queue.speeds.served("busy/simulated-gpu0", MODEL, service_s=0.5, prefill_tps=1000.0)
    queue.submit(ticket(), r, 0.0)
    assert queue.submit(ticket(), r, 0.0) == []


def test_a_load_never_evicts_what_is_pinned_or_busy() -> None:
    full = node("n", warm=False, vram_bytes=4 * 2**30)
    other = Loaded("other:1b", vram_bytes=3 * 2**30, pinned=True)
    device = replace(full.devices[0], used_bytes=int(3.5 * 2**30))
    pinned = replace(with_engine(full, loaded=(other,)), devices=(device,))
    queue = Queue()
    waiting = ticket()
    assert queue.submit(waiting, roster(pinned), 0.0) == []
    assert waiting.decision is not None
    assert "busy or pinned" in waiting.decision.text
    assert waiting.decision.reason == "waiting for room on n/gpu0", "a queue, not an outage"
    # Unpinned and idle, it may go.
    loose = replace(with_engine(full, loaded=(replace(other, pinned=False),)), devices=(device,))
    (step,) = queue.pump(MODEL, roster(loose), 1.0)
    assert isinstance(step, Load)


def test_cordoned_stopped_and_lost_engines_are_named_and_left_alone() -> None:
    nodes = (
        replace(node("cordoned"), cordoned=True),
        with_engine(node("back-off"), state="backoff", error="exit 1"),
        replace(node("lost"), state="lost"),
    )
    queue, waiting = Queue(), ticket()
    assert queue.submit(waiting, roster(*nodes), 0.0) == []
    assert waiting.decision is not None
    assert waiting.decision.reason == NOBODY
    why = waiting.decision.text
    assert "not cordoned/gpu0: the node is cordoned" in why
    assert "not back-off/gpu0: the engine is backoff: exit 1" in why
    assert "not lost/gpu0: the node is lost" in why


def test_when_every_engine_failed_for_good_the_request_fails_with_the_reason() -> None:
    queue = Queue()
    dead = with_engine(node("n"), state="failed", error="bad magic")
    (step,) = queue.submit(ticket(), roster(dead), 0.0)
    assert isinstance(step, Fail)
    assert "bad magic" in step.decision.text
    assert queue.queued == 0


def test_a_failed_engine_is_not_tried_again_until_it_was_restarted() -> None:
    queue, one = Queue(), node("n")
    again = ticket(exclude=frozenset({"n/simulated-gpu0#1"}))
    assert queue.submit(again, roster(one), 0.0) == []
    (step,) = queue.pump(MODEL, roster(with_engine(one, pid=2)), 1.0)
    assert isinstance(step, Dispatch)


def test_an_engine_that_reports_a_load_is_joined() -> None:
    busy = with_engine(node("n", warm=False), loading=(Loading(MODEL, 0.0),))
    queue, waiting = Queue(), ticket()
    assert queue.submit(waiting, roster(busy), 0.0) == []
    assert waiting.decision is not None
    assert waiting.decision.reason.startswith("waiting for the load on n/gpu0")


def test_loads_go_to_the_emptiest_of_devices_that_load_about_as_fast() -> None:
    """A node that had loaded before once drew every further model, beside idle GPUs."""
    queue = Queue()
    queue.speeds.loaded("known", 10**10, 1.0)
    known = node("known", warm=False)
    device = replace(known.devices[0], used_bytes=10 * 2**30)
    r = roster(replace(known, devices=(device,)), node("fresh", warm=False))
    (step,) = queue.submit(ticket(), r, 0.0)
    assert isinstance(step, Load)
    assert step.seat.node == "fresh"
