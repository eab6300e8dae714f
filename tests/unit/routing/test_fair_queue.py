"""The promises of the queue, whatever comes: nothing lost, nothing twice, bounds, fairness."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from olol_tui.fleet.snapshot import Fleet
from olol_tui.routing.decision import Ask
from olol_tui.routing.lane import Lane
from olol_tui.routing.line import BATCH_TURN_S
from olol_tui.routing.queue import PAUSED, Queue
from olol_tui.routing.room import WaitingRoom
from olol_tui.routing.roster import Roster
from olol_tui.routing.ticket import Dispatch, Expire, Load, Terms, Ticket
from tests.contract.gateway_rig import engine_node

A, B = "a:latest", "b:latest"
SERVICE_S = 2.0


def roster(slots: int = 1, *nodes: str) -> Roster:
    return Roster(
        Fleet(
            nodes=tuple(
                engine_node(name, "127.0.0.1:1", A, B, slots=slots) for name in nodes or ("n",)
            )
        ),
        {},
    )


def ticket(flow: str = "", model: str = A, **terms: Any) -> Ticket:
    return Ticket(Ask(model), None, 0.0, Terms(flow, **terms))


class Bench:
    """One queue with a clock of its own: every request takes SERVICE_S."""

    def __init__(self, queue: Queue, roster: Roster) -> None:
        self.queue, self.roster = queue, roster
        self.now_s = 0.0
        self.running: list[tuple[float, Ticket]] = []
        self.served: list[Ticket] = []
        self.expired: list[Ticket] = []

    def note(self, steps: Any) -> None:
        for step in steps:
            if isinstance(step, Dispatch):
                self.running.append((self.now_s + SERVICE_S, step.ticket))
                self.served.append(step.ticket)
            elif isinstance(step, Expire):
                self.expired.append(step.ticket)
            else:
                assert isinstance(step, Load)

    def add(self, one: Ticket) -> Ticket:
        one.enqueued_s = self.now_s
        self.note(self.queue.submit(one, self.roster, self.now_s))
        return one

    def step(self) -> None:
        """Until the next request ends."""
        self.running.sort(key=lambda one: one[0])
        self.now_s, done = self.running.pop(0)
        self.note(self.queue.expire(self.now_s))
        self.queue.release(done, self.now_s)
        self.queue.speeds.served("n/simulated-gpu0", done.ask.model, service_s=SERVICE_S)
        self.note(self.queue.pump(done.ask.model, self.roster, self.now_s, freed=True))

    def finish(self) -> None:
        while self.running:
            self.step()


def bench(slots: int = 1, **bounds: Any) -> Bench:
    bounds.setdefault("max_queued", 10_000)
    return Bench(Queue(WaitingRoom(**bounds)), roster(slots))


FLOWS = st.sampled_from("abcd")
ARRIVALS = st.lists(
    st.tuples(
        FLOWS,
        st.sampled_from([A, B]),
        st.booleans(),
        st.one_of(st.none(), st.floats(0.5, 60)),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=60,
)
"""flow, model, batch, deadline, requests that end before the next one comes, withdrawn later."""


@settings(max_examples=60, deadline=None)
@given(ARRIVALS, st.integers(1, 3))
def test_every_ticket_is_served_expired_or_withdrawn_and_only_once(
    arrivals: Any, slots: int
) -> None:
    b = bench(slots)
    withdrawn: list[Ticket] = []
    every: list[Ticket] = []
    for flow, model, batch, deadline, ends, leaves in arrivals:
        due_s = None if deadline is None else b.now_s + deadline
        one = b.add(ticket(flow, model, batch=batch, deadline_s=due_s))
        every.append(one)
        assert b.queue.running <= 2 * slots
        assert b.queue.queued == sum(t.waits for t in every)
        for model in (A, B):
            line = b.queue.room.lines.get(model)
            order = [] if line is None else list(line.order(SERVICE_S))
            assert {id(t) for t in order} == {
                id(t) for t in every if t.waits and t.ask.model == model
            }
        if leaves and every[0].waits:
            assert b.queue.withdraw(every[0])
            assert not b.queue.withdraw(every[0])
            withdrawn.append(every[0])
        for _ in range(min(ends, len(b.running))):
            b.step()
    b.finish()
    assert Counter(map(id, [*b.served, *b.expired, *withdrawn])) == Counter(map(id, every))
    assert b.queue.queued == b.queue.running == 0
    assert all(one.terms.deadline_s is not None for one in b.expired)
    assert b.queue.room.queued_by("a") == 0


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(FLOWS, st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2),
    st.lists(FLOWS, min_size=20, max_size=120),
    st.floats(0.1, 10),
)
def test_busy_flows_get_slot_time_by_their_weights(
    weights: dict[str, float], arrivals: list[str], cost_s: float
) -> None:
    """Start-time fair queueing: two flows that always wait never differ by more than a request
    of each, for their weights."""
    lane = Lane()
    for flow in weights:
        # Enough that nobody runs dry before the others were compared.
        for _ in range(60):
            lane.add(_numbered(ticket(flow, weight=weights[flow])))
    had: Counter[str] = Counter()
    for _ in range(60):
        head = lane.head()
        lane.take(head, cost_s)
        had[head.terms.flow] += 1
        for one in weights:
            for other in weights:
                apart = abs(had[one] / weights[one] - had[other] / weights[other])
                assert apart <= 1 / weights[one] + 1 / weights[other] + 1e-6


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(FLOWS, st.booleans()), min_size=1, max_size=40))
def test_positions_are_the_order_in_which_they_are_served(arrivals: Any) -> None:
    b = bench()
    b.queue.speeds.served("n/simulated-gpu0", A, service_s=SERVICE_S)
    for flow, batch in arrivals:
        b.add(ticket(flow, batch=batch))
    places = list(b.queue.outlook.places(A, 100, b.roster, 0.0))
    flows = len({one.terms.flow for one, _ in places})
    for one, place in places:
        # Of those that are due at the same time either may be told to be first.
        told = b.queue.outlook.place(one, b.roster, 0.0).position
        assert abs(told - place.position) < max(1, flows)
    expected = [one for one, _ in places]
    assert [place.position for _, place in places] == list(range(1, len(places) + 1))
    b.finish()
    if not any(batch for _, batch in arrivals):
        assert b.served[-len(expected) :] == expected or not expected


_SEQUENCE = iter(range(1, 10**9))


def _numbered(one: Ticket) -> Ticket:
    one.order = (float("inf"), next(_SEQUENCE))
    return one


def test_a_flood_of_one_key_delays_another_by_one_slot_at_most() -> None:
    """5,000 batch requests of one key wait; ten interactive ones of another come one by one."""
    b = bench(slots=2)
    for _ in range(5000):
        b.add(ticket("flood", batch=True))
    waits = []
    for _ in range(10):
        one = b.add(ticket("person"))
        came_s = b.now_s
        while one.seat is None:
            b.step()
        waits.append(b.now_s - came_s)
        b.step()
    assert max(waits) < SERVICE_S + 1e-9
    # The same among interactive ones: fair between keys, not first come first served.
    b = bench(slots=2)
    for _ in range(5000):
        b.add(ticket("flood"))
    one = b.add(ticket("person"))
    while one.seat is None:
        b.step()
    assert b.now_s <= SERVICE_S


def test_batch_gets_on_however_many_interactive_requests_come() -> None:
    b = bench()
    batch = [b.add(ticket("nightly", batch=True)) for _ in range(3)]
    for _ in range(200):
        while b.queue.queued < 5:
            b.add(ticket("person"))
        b.step()
    assert [one in b.served for one in batch] == [True] * 3
    at = [b.served.index(one) for one in batch]
    gaps = [(later - sooner) * SERVICE_S for sooner, later in itertools.pairwise(at[1:])]
    assert all(gap >= BATCH_TURN_S for gap in gaps), "interactive ones come first in between"


def test_the_earlier_deadline_of_a_key_goes_first_and_a_late_one_is_told() -> None:
    b = bench()
    b.add(ticket("k"))
    late = b.add(ticket("k", deadline_s=100.0))
    plain = b.add(ticket("k"))
    soon = b.add(ticket("k", deadline_s=10.0))
    never = b.add(ticket("k", deadline_s=1.0))
    b.finish()
    assert b.served[1:] == [soon, late, plain]
    assert b.expired == [never]


def test_a_long_request_is_charged_for_what_it_took() -> None:
    """Expected 2 s each; one of `long` took 20: the other key gets the next ten slots."""
    queue, r = Queue(WaitingRoom(1000)), roster()
    queue.speeds.served("n/simulated-gpu0", A, service_s=2.0)
    first = ticket("long")
    queue.submit(first, r, 0.0)
    for _ in range(15):
        queue.submit(ticket("long"), r, 0.0)
        queue.submit(ticket("short"), r, 0.0)
    queue.release(first, 20.0)
    order = []
    now_s = 20.0
    for _ in range(12):
        (step, *_) = queue.pump(A, r, now_s)
        assert isinstance(step, Dispatch)
        order.append(step.ticket.terms.flow)
        now_s += 2.0
        queue.release(step.ticket, now_s)
    assert order.count("short") >= 9


def test_bounds_leave_room_for_other_models_classes_and_keys() -> None:
    room = WaitingRoom(16)
    queue, r = Queue(room), roster()
    for number in range(16):
        assert not room.is_full_for(B, batch=False)
        if room.is_full_for(A, batch=False):
            assert number == 15, "one runs, fourteen wait: the last eighth is for other models"
            break
        queue.submit(ticket(f"k{number}"), r, 0.0)
    else:
        raise AssertionError("one model filled the whole queue")
    room = WaitingRoom(16)
    queue = Queue(room)
    taken = 0
    while not room.is_full_for(A, batch=True):
        queue.submit(ticket(f"k{taken}", batch=True), r, 0.0)
        taken += 1
    assert (room.queued, room.is_full_for(A, batch=False)) == (12, False)
    room = WaitingRoom(16)
    queue = Queue(room)
    while not room.is_full_for_flow("k"):
        queue.submit(ticket("k"), r, 0.0)
    assert room.queued_by("k") == 8


def test_batch_loads_nothing_while_interactive_requests_wait_unless_for_too_long() -> None:
    warm = engine_node("n", "127.0.0.1:1", A, slots=1)
    cold = engine_node("m", "127.0.0.1:2", B, slots=1, warm=False)
    r = Roster(Fleet(nodes=(warm, cold)), {})
    queue = Queue()
    running = ticket("p")
    queue.submit(running, r, 0.0)
    queue.submit(ticket("p"), r, 0.0)
    assert queue.submit(ticket("q", B, batch=True), r, 0.0) == []
    decision = queue.reason_to_wait(B)
    assert decision is not None and "interactive" in decision.text
    assert queue.pump_all(r, BATCH_TURN_S - 1) == []
    (load,) = queue.pump_all(r, BATCH_TURN_S + 1)
    assert isinstance(load, Load)


def test_a_paused_model_waits_and_others_do_not() -> None:
    queue, r = Queue(), roster()
    queue.room.paused = frozenset({A})
    held = ticket()
    assert queue.submit(held, r, 0.0) == []
    decision = queue.reason_to_wait(A)
    assert decision is not None and decision.text == PAUSED
    assert queue.outlook.place(held, r, 0.0) == (1, None)
    (other,) = queue.submit(ticket(model=B), r, 0.0)
    assert isinstance(other, Dispatch)
    queue.room.paused = frozenset()
    (step,) = queue.pump_all(r, 1.0)
    assert isinstance(step, Dispatch)
    assert step.ticket is held


def test_who_is_sent_somewhere_waits_apart_and_holds_nobody_up() -> None:
    r = Roster(
        Fleet(
            nodes=(
                engine_node("a", "127.0.0.1:1", A),
                replace(engine_node("b", "127.0.0.1:2", A), cordoned=True),
            )
        ),
        {},
    )
    queue = Queue()
    first = ticket()
    queue.submit(first, r, 0.0)
    bound = ticket()
    bound.only = "b"
    assert queue.submit(bound, r, 0.0) == []
    plain = ticket()
    assert queue.submit(plain, r, 0.0) == []
    queue.release(first, 1.0)
    (step,) = queue.pump(A, r, 1.0)
    assert isinstance(step, Dispatch)
    assert step.ticket is plain
    open_again = Roster(
        Fleet(
            nodes=(
                engine_node("a", "127.0.0.1:1", A),
                engine_node("b", "127.0.0.1:2", A),
            )
        ),
        {},
    )
    (step,) = queue.pump(A, open_again, 2.0)
    assert isinstance(step, Dispatch)
    assert (step.ticket, step.seat.node) == (bound, "b")


def test_a_model_that_makes_room_for_another_waits_in_a_queue_not_in_an_outage() -> None:
    """Its only engine is claimed: that ends by itself, and is no reason for a 503."""
    queue, r = Queue(), roster()
    queue.books.claim("n/simulated-gpu0", "c:latest")
    assert queue.submit(ticket(), r, 0.0) == []
    assert queue.pump_all(r, 1000.0) == []
    assert queue.stuck(1000.0, 30.0) == []
    assert "room is made" in getattr(queue.reason_to_wait(A), "text", "")
    queue.books.claim("", "c:latest")
    (step,) = queue.pump_all(r, 1001.0)
    assert isinstance(step, Dispatch)


def test_a_model_that_is_never_idle_starves_no_other_on_its_only_gpu() -> None:
    """The GPU holds one of both; requests of `a` come without end, three of `b` come once."""
    sizes = {"size_bytes": 14 * 10**9}
    holds_a = engine_node("n", "127.0.0.1:1", A, slots=2, **sizes)
    holds_b = engine_node("n", "127.0.0.1:1", B, slots=2, **sizes)
    library = (*holds_a.library, *holds_b.library)
    rosters = {
        name: Roster(Fleet(nodes=(replace(node, library=library),)), {})
        for name, node in ((A, holds_a), (B, holds_b))
    }
    b = Bench(Queue(WaitingRoom(1000)), rosters[A])
    load_s = b.queue.speeds.load_s("n", sizes["size_bytes"])
    waiting: list[Ticket] = []
    served_at: dict[int, float] = {}
    loads: list[tuple[float, str]] = []
    ends: list[tuple[float, str]] = []
    for second in range(600):
        now_s = float(second)
        steps = []
        for done in [one for one in b.running if one[0] <= now_s]:
            b.running.remove(done)
            b.queue.release(done[1], now_s)
        for at_s, model in [one for one in ends if one[0] <= now_s]:
            ends.remove((at_s, model))
            b.roster = rosters[model]
            b.queue.load_ended("n/simulated-gpu0", model, now_s)
        while b.queue.queued_of(A) < 3:
            steps += b.queue.submit(ticket("busy", A), b.roster, now_s)
        if second == 10:
            waiting = [ticket("rare", B) for _ in range(3)]
            for one in waiting:
                one.enqueued_s = now_s
                steps += b.queue.submit(one, b.roster, now_s)
        steps += b.queue.pump_all(b.roster, now_s)
        for step in steps:
            if isinstance(step, Dispatch):
                assert step.seat.warm
                b.running.append((now_s + SERVICE_S, step.ticket))
                b.served.append(step.ticket)
                served_at[id(step.ticket)] = now_s
            elif isinstance(step, Load):
                loads.append((now_s, step.model))
                ends.append((now_s + load_s, step.model))
        assert b.queue.stuck(now_s, 30.0) == []
    waits = [served_at[id(one)] - 10 for one in waiting]
    assert max(waits) < 10 * load_s, "it waits some load times for others' work, not for ever"
    assert loads[0][1] == B
    late = [at_s for one, at_s in ((t, served_at[id(t)]) for t in b.served) if one.ask.model == A]
    assert max(late) > 500, "and the busy one comes back"
    assert len(loads) < 20, "they do not swap at every request"


def test_an_engine_that_is_away_for_a_moment_costs_nobody_the_place() -> None:
    """They have waited for long, but not for an engine: only that counts."""
    queue, r = Queue(), roster()
    running = ticket()
    queue.submit(running, r, 0.0)
    waiting = [ticket() for _ in range(3)]
    for one in waiting:
        queue.submit(one, r, 0.0)
    node = replace(engine_node("n", "127.0.0.1:1", A), cordoned=True)
    away = Roster(Fleet(nodes=(node,)), {})
    queue.release(running, 100.0)
    assert queue.pump_all(away, 100.0) == []
    assert queue.stuck(101.0, 30.0) == []
    assert queue.pump_all(away, 120.0) == []
    assert queue.stuck(129.0, 30.0) == []
    told = queue.stuck(131.0, 30.0)
    assert [one for one, _ in told] == waiting
    assert "cordoned" in told[0][1].text


def test_room_is_made_for_a_request_that_lost_its_engine() -> None:
    """Nothing but its retry waits, and the GPU that is left is kept busy by another model."""
    size = 14 * 10**9
    lost = engine_node("x", "127.0.0.1:1", A, size_bytes=size)
    other = engine_node("n", "127.0.0.1:2", B, size_bytes=size)
    other = replace(other, library=(*other.library, *lost.library))
    r = Roster(Fleet(nodes=(lost, other)), {})
    queue = Queue()
    one, busy = ticket(), ticket(model=B)
    queue.submit(one, r, 0.0)
    queue.submit(busy, r, 0.0)
    exclude = frozenset({lost.engines[0].id + "#1"})
    queue.release(one, 1.0)
    left = Roster(Fleet(nodes=(other,)), {})
    again = one.retried(structs.replace(one.ask, exclude=exclude), 1.0)
    assert queue.submit(again, left, 1.0) == []
    assert queue.pump_all(left, 200.0) == []
    assert queue.books.claims == {"n/simulated-gpu0": A}
    assert queue.submit(ticket(model=B), left, 200.0) == [], "nothing new of the other starts"
    queue.release(busy, 201.0)
    (load,) = queue.pump(B, left, 201.0)
    assert isinstance(load, Load)
    assert load.model == A
