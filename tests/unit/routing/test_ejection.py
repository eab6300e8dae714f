"""Engines that fail: out for a while, tried with one request, back with a growing share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from olol_tui.fleet.snapshot import Fleet, Node
from olol_tui.routing.budget import RETRY_MIN, WINDOW_S, RetryBudget
from olol_tui.routing.ejection import (
    BUSY_BASE_S,
    EJECT_AFTER,
    EJECT_BASE_S,
    EJECT_MAX_S,
    SLOW_START_S,
    Ejection,
)
from olol_tui.routing.policy import Ask
from olol_tui.routing.queue import FORSAKEN_S, Queue
from olol_tui.routing.roster import Roster
from olol_tui.routing.ticket import Dispatch, Terms, Ticket
from tests.contract.gateway_rig import engine_node

MODEL = "qwen3:8b"
A, B = "a/simulated-gpu0", "b/simulated-gpu0"


def node(name: str, **more: Any) -> Node:
    return engine_node(name, "127.0.0.1:1", MODEL, **more)


def roster(*nodes: Node) -> Roster:
    return Roster(Fleet(nodes=nodes), {})


def queue() -> Queue:
    return Queue(ejection=Ejection(chance=lambda: 0.5))


def ticket(**more: Any) -> Ticket:
    return Ticket(Ask(MODEL, prompt_tokens=10, **more), None, 0.0)


def fail(q: Queue, engine: str, now_s: float, times: int = EJECT_AFTER) -> bool:
    return [q.ejection.failed(engine, now_s, others=True) for _ in range(times)][-1] > 0


def taken(q: Queue, r: Roster, now_s: float, **more: Any) -> Dispatch:
    (step,) = q.submit(ticket(**more), r, now_s)
    assert isinstance(step, Dispatch)
    return step


def test_three_failures_in_a_row_eject_and_a_success_between_them_does_not() -> None:
    q = queue()
    assert not fail(q, A, 0.0, 2)
    q.ejection.succeeded(A, 0.0, 0.0)
    assert not fail(q, A, 0.0, 2)
    assert fail(q, A, 0.0, 1)
    assert q.ejection.is_out(A, 1.0)


def test_what_runs_while_an_engine_falls_counts_once() -> None:
    q = queue()
    assert fail(q, A, 0.0)
    assert not fail(q, A, 0.1, 8), "they were under way already"
    assert not q.ejection.is_out(A, EJECT_BASE_S + 0.01)
    # A long stream that was sent before and ends well proves nothing about now.
    q.ejection.succeeded(A, 5.0, sent_s=-60.0)
    assert q.ejection.is_out(A, 5.0)


def test_each_ejection_is_longer_up_to_a_limit_and_with_jitter() -> None:
    lengths = []
    ejection, now = Ejection(chance=lambda: 0.5), 0.0
    for _ in range(15):
        while not ejection.failed(A, now, others=True):
            pass
        began = now
        while ejection.is_out(A, now):
            now += 0.5
        lengths.append(now - began)
    assert lengths[:3] == [10.0, 20.0, 30.0]
    assert lengths[-1] == EJECT_MAX_S
    for jittered, length in ((Ejection(chance=lambda: 0), 8), (Ejection(chance=lambda: 1), 12)):
        for _ in range(EJECT_AFTER):
            jittered.failed(A, 0.0, others=True)
        assert jittered.is_out(A, length - 0.1)
        assert not jittered.is_out(A, length + 0.1)


def test_ejections_are_forgotten_when_it_does_well() -> None:
    q, r = queue(), Fleet(nodes=(node("a"), node("b")))
    fail(q, A, 0.0)
    q.ejection.answered(A, 11.0, sent_s=10.5)
    q.ejection.succeeded(A, 11.0, sent_s=10.5)
    q.ejection.observe(r, 200.0)
    assert not q.ejection.watches
    fail(q, A, 200.0)
    assert not q.ejection.is_out(A, 210.1), "the first one again"


def test_one_request_finds_out_whether_it_works_again() -> None:
    q, r = queue(), roster(node("a", slots=4), node("b", slots=4))
    fail(q, A, 0.0)
    assert taken(q, r, 1.0).seat.node == "b"
    assert "ejected for" in taken(q, r, 1.0).decision.text
    later = EJECT_BASE_S + 1
    probe = next(d for d in (taken(q, r, later) for _ in range(4)) if d.seat.node == "a")
    others = [taken(q, r, later) for _ in range(2)]
    assert {d.seat.node for d in others} == {"b"}
    assert "a request is finding out" in others[0].decision.text
    # Whoever asked left: that says nothing, and the next one finds out.
    q.release(probe.ticket, later)
    assert taken(q, r, later).seat.node == "a"
    assert q.ejection.failed(A, later, others=True), "one failure is enough on probation"
    assert q.ejection.is_out(A, later + 2 * EJECT_BASE_S - 1)


def test_its_share_grows_after_it_came_back() -> None:
    q, r = queue(), roster(node("a", slots=10), node("b", slots=10))
    fail(q, A, 0.0)
    q.ejection.answered(A, 20.0, sent_s=19.0)
    counts = []
    for now in (20.0, 20.0 + SLOW_START_S / 2, 20.0 + SLOW_START_S):
        steps = [taken(q, r, now) for _ in range(10)]
        counts.append(sum(d.seat.node == "a" for d in steps))
        for step in steps:
            q.release(step.ticket, now)
    assert counts[0] <= 1
    assert counts[0] < counts[1] < counts[2] == 5


def test_alone_it_takes_everything_at_once() -> None:
    q, r = queue(), roster(node("a", slots=4))
    fail(q, A, 0.0)
    q.ejection.answered(A, 20.0, sent_s=19.0)
    assert [taken(q, r, 20.0).seat.node for _ in range(4)] == ["a"] * 4


def test_the_last_engine_of_a_model_is_never_ejected() -> None:
    q, r = queue(), roster(node("a"))
    for _ in range(9):
        assert not q.ejection.failed(A, 0.0, others=False)
    assert taken(q, r, 1.0).seat.node == "a"


def test_when_most_are_ejected_ejections_are_ignored_and_the_reason_says_so() -> None:
    q, r = queue(), roster(node("a"), node("b"), node("c"))
    fail(q, A, 0.0)
    assert {taken(q, r, 1.0).seat.node for _ in range(2)} == {"b", "c"}
    fail(q, B, 0.0)
    step = taken(q, r, 1.0)
    assert step.seat.node == "a"
    assert "2 of its 3 engines are ejected: ejections ignored" in step.decision.text


def test_a_request_that_only_ejected_engines_are_left_for_goes_to_one() -> None:
    q, r = queue(), roster(node("a"), node("b"))
    fail(q, A, 0.0)
    step = taken(q, r, 1.0, exclude=frozenset({f"{B}#1"}))
    assert step.seat.node == "a"
    assert "only ejected engines are left" in step.decision.text


def test_a_new_process_gets_a_new_chance_and_begins_slowly() -> None:
    q, nodes = queue(), (node("a", slots=10), node("b", slots=10))
    q.ejection.observe(Fleet(nodes=nodes), 0.0)
    fail(q, A, 0.0)
    again = replace(nodes[0], engines=(replace(nodes[0].engines[0], pid=2),))
    q.ejection.observe(Fleet(nodes=(again, nodes[1])), 1.0)
    assert not q.ejection.is_out(A, 1.0)
    r = roster(again, nodes[1])
    assert sum(taken(q, r, 1.0).seat.node == "a" for _ in range(10)) <= 1
    q.ejection.observe(Fleet(nodes=(nodes[1],)), 2.0)
    assert not q.ejection.watches, "it left"


def test_a_busy_engine_is_waited_for_and_not_blamed() -> None:
    q, r = queue(), roster(node("a"))
    assert q.ejection.busy(A, 0.0) == pytest.approx(BUSY_BASE_S)
    assert q.submit(ticket(), r, 0.0) == []
    decision = q.reason_to_wait(MODEL)
    assert decision is not None
    assert "waiting for a slot on a/gpu0" in decision.text
    assert q.ejection.busy(A, 0.1) == pytest.approx(2 * BUSY_BASE_S)
    (step,) = q.pump(MODEL, r, 1.0)
    assert isinstance(step, Dispatch)
    assert not q.ejection.is_out(A, 1.0)


def test_a_failure_that_others_shared_is_taken_back() -> None:
    q = queue()
    fail(q, A, 0.0)
    q.ejection.forgiven(A)
    assert not q.ejection.is_out(A, 0.0)
    assert not fail(q, B, 0.0, 2)


def test_who_lost_an_engine_goes_first() -> None:
    q, r = queue(), roster(node("a"))
    running = taken(q, r, 0.0).ticket
    lost, new = taken(q, roster(node("a"), node("b")), 0.0).ticket, ticket()
    assert q.submit(new, r, 0.0) == []
    q.release(lost, 0.5)
    again = lost.retried(lost.ask, 0.5)
    assert q.submit(again, r, 0.5) == []
    q.release(running, 1.0)
    (step,) = q.pump(MODEL, r, 1.0)
    assert isinstance(step, Dispatch)
    assert step.ticket is again


def test_retries_are_a_share_of_the_traffic() -> None:
    budget = RetryBudget()
    assert [budget.take(1000.0) for _ in range(RETRY_MIN + 1)] == [True] * RETRY_MIN + [False]
    for second in range(5):
        for _ in range(100):
            budget.started(1001.0 + second)
    assert sum(budget.take(1005.0) for _ in range(1000)) == 100 - RETRY_MIN
    assert not budget.take(1009.9)
    assert sum(budget.take(1005.0 + WINDOW_S) for _ in range(1000)) == RETRY_MIN


def test_a_retry_with_a_deadline_takes_the_place_of_its_first_try() -> None:
    """Both are in the heap of deadlines for a while, with the same place."""
    q, r = queue(), roster(node("a"))
    running = taken(q, r, 0.0).ticket
    first = Ticket(Ask(MODEL), None, 0.0, Terms(deadline_s=100.0))
    assert q.submit(first, r, 0.0) == []
    q.release(running, 1.0)
    assert [type(step) for step in q.pump(MODEL, r, 1.0)] == [Dispatch]
    q.release(first, 2.0)
    lost = frozenset({f"{A}#1"})
    again = first.retried(structs.replace(first.ask, exclude=lost), 2.0)
    assert q.submit(again, r, 2.0) == []
    assert [one.ticket for one in q.expire(101.0)] == [again]


def test_who_has_no_other_engine_may_have_the_one_again_that_failed_it() -> None:
    q, r = queue(), roster(node("a"))
    lost = frozenset({f"{A}#1"})
    one = ticket(exclude=lost)
    assert q.submit(one, r, 0.0) == []
    assert q.forsaken(0.0) == [one]
    q.readmit(one, f"{A}#1")
    assert q.queued == 0
    (step,) = q.submit(one, r, 1.0)
    assert isinstance(step, Dispatch)


def test_who_waits_for_another_engine_does_so_for_a_while() -> None:
    q, r = queue(), roster(node("a"), node("b"))
    taken(q, roster(node("b")), 0.0)
    one = ticket(exclude=frozenset({f"{A}#1"}))
    assert q.submit(one, r, 0.0) == []
    assert q.forsaken(FORSAKEN_S) == []
    assert q.forsaken(FORSAKEN_S + 0.1) == [one]
