"""The short cut of `expected` decides what its general case decides, in the same words."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from olol_tui.fleet.snapshot import Fleet
from olol_tui.routing.decision import Ask, Decision
from olol_tui.routing.policy import at_a_glance, expected, in_full
from olol_tui.routing.queue import Queue
from olol_tui.routing.roster import Roster, Seat
from olol_tui.routing.ticket import Dispatch, Ticket
from tests.contract.gateway_rig import engine_node

MODEL = "qwen3:8b"
ENGINES = 5


def _roster(random: Random) -> Roster:
    nodes = []
    for index in range(random.randint(1, ENGINES)):
        node = engine_node(
            f"n{index}",
            "127.0.0.1:1",
            MODEL,
            slots=random.choice((1, 2, 4, 64)),
            warm=random.random() > 0.03,
        )
        if random.random() < 0.02:
            node = replace(node, cordoned=True)
        nodes.append(node)
    return Roster(Fleet(nodes=tuple(nodes)), {})


def _learn(random: Random, queue: Queue, seats: tuple[Seat, ...], spread: float) -> None:
    for seat in seats:
        for _ in range(random.choice((0, 0, 1, 6))):
            queue.speeds.served(
                seat.key,
                MODEL,
                service_s=random.uniform(0.1, 3.0),
                prefill_tps=1000.0 * random.uniform(1.0, spread),
                decode_tps=50.0 * random.uniform(1.0, spread),
            )


@pytest.mark.parametrize("seed", range(60))
def test_the_short_cut_decides_as_the_general_case(seed: int) -> None:
    """Over fleets of all sizes, speeds, loads and demands: a difference would be a policy that
    nobody wrote down."""
    random = Random(seed)
    queue, roster = Queue(), _roster(random)
    seats = roster.seats(MODEL)
    _learn(random, queue, seats, random.choice((1.0, 1.05, 4.0)))
    running: list[Ticket] = []
    now_s, taken = 0.0, 0
    most = random.choice((1, 3, 12, 100))
    for _ in range(120):
        now_s += random.choice((0.0, 0.001, 0.3, 20.0))
        while running and (len(running) >= most or random.random() < 0.4):
            queue.release(running.pop(random.randrange(len(running))), now_s)
        ask = Ask(MODEL, prompt_tokens=random.choice((0, 3, 80, 400, 20_000)))
        if random.random() < 0.2:
            seats = tuple(
                replace(seat, share=random.choice((0.1, 0.5, 1.0))) for seat in roster.seats(MODEL)
            )
        glance = at_a_glance(ask, seats, queue._busy, queue.speeds, now_s)
        if glance is not None:
            taken += 1
            assert _same(glance, _in_full(ask, seats, roster, queue, now_s))
        running += [
            step.ticket
            for step in queue.submit(Ticket(ask, None, now_s), roster, now_s)
            if isinstance(step, Dispatch)
        ]
        for ticket in queue.drop_waiting(MODEL):
            assert ticket.seat is None
    every = all(seat.warm and not seat.refused for seat in seats)
    assert taken > 20 or not every


def test_it_is_taken_at_low_demand_too() -> None:
    """One client over eight engines: the most frequent case of all in a small team."""
    nodes = (engine_node(f"n{i}", "127.0.0.1:1", MODEL, slots=4) for i in range(8))
    queue, roster = Queue(), Roster(Fleet(nodes=tuple(nodes)), {})
    used = set()
    for turn in range(20):
        now_s = turn * 1.0
        ask, seats = Ask(MODEL, 100), roster.seats(MODEL)
        if turn:
            # Nobody knows how much it is wanted before it was asked for once.
            assert at_a_glance(ask, seats, queue._busy, queue.speeds, now_s) is not None
        (step,) = queue.submit(Ticket(ask, None, now_s), roster, now_s)
        assert isinstance(step, Dispatch)
        used.add(step.seat.key)
        queue.release(step.ticket, now_s + 0.5)
    assert len(used) == 1, "the other replicas are left to expire"


def test_what_needs_a_look_gets_one() -> None:
    nodes = (engine_node(f"n{i}", "127.0.0.1:1", MODEL) for i in range(2))
    queue, roster = Queue(), Roster(Fleet(nodes=tuple(nodes)), {})
    seats = roster.seats(MODEL)
    for ask in (
        Ask(MODEL, 100, num_ctx=8192),
        Ask(MODEL, 100, prefix=(1, 2)),
        Ask(MODEL, 100, exclude=frozenset({seats[0].incarnation})),
    ):
        assert at_a_glance(ask, seats, queue._busy, queue.speeds, 0.0) is None
    cold = (replace(seats[0], warm=False), seats[1])
    cordoned = (replace(seats[0], refused="the node is cordoned"), seats[1])
    for others in (cold, cordoned):
        assert at_a_glance(Ask(MODEL, 100), others, queue._busy, queue.speeds, 0.0) is None


def _in_full(
    ask: Ask, seats: tuple[Seat, ...], roster: Roster, queue: Queue, now_s: float
) -> Decision:
    found, chosen = (
        policy(ask, seats, roster, queue._busy, queue.speeds, waiting=1, waited_s=0.0, now_s=now_s)
        for policy in (in_full, expected)
    )
    assert _same(found, chosen)
    return found


def _same(one: Decision, other: Decision) -> bool:
    """The same seat, and the same for a person who reads why."""
    assert one == other
    return one.text == other.text
