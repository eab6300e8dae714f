"""Order, slots and bounds of the queue."""

from __future__ import annotations

from olol_tui.fleet.snapshot import Fleet
from olol_tui.routing.policy import Ask
from olol_tui.routing.queue import Queue
from olol_tui.routing.room import WaitingRoom
from olol_tui.routing.roster import Roster
from olol_tui.routing.ticket import Dispatch, Ticket
from tests.contract.gateway_rig import engine_node

ROSTER = Roster(
    Fleet(nodes=(engine_node("n", "127.0.0.1:1", "a:latest", "b:latest", slots=2),)), {}
)


def ticket(model: str = "a:latest") -> Ticket:
    return Ticket(Ask(model), None, 0.0)


def test_first_come_first_served_within_a_model() -> None:
    queue = Queue()
    tickets = [ticket() for _ in range(4)]
    for one in tickets:
        queue.submit(one, ROSTER, 0.0)
    assert [one.seat is not None for one in tickets] == [True, True, False, False]
    assert [queue.outlook.place(one, ROSTER, 0.0).position for one in tickets[2:]] == [1, 2]
    queue.release(tickets[1], 1.0)
    (step,) = queue.pump("a:latest", ROSTER, 1.0)
    assert isinstance(step, Dispatch)
    assert step.ticket is tickets[2]


def test_models_do_not_block_each_other() -> None:
    queue = Queue()
    for _ in range(3):
        queue.submit(ticket(), ROSTER, 0.0)
    other = ticket("b:latest")
    queue.submit(other, ROSTER, 0.0)
    assert other.seat is not None


def test_a_withdrawn_ticket_leaves_no_trace() -> None:
    queue = Queue()
    tickets = [ticket() for _ in range(4)]
    for one in tickets:
        queue.submit(one, ROSTER, 0.0)
    assert queue.withdraw(tickets[2])
    assert not queue.withdraw(tickets[2])
    assert not queue.withdraw(tickets[0]), "it runs"
    assert queue.queued == 1
    queue.release(tickets[0], 1.0)
    (step,) = queue.pump("a:latest", ROSTER, 1.0)
    assert isinstance(step, Dispatch)
    assert step.ticket is tickets[3]
    assert (queue.queued, queue.running) == (0, 2)


def test_slots_are_given_back_once() -> None:
    queue = Queue()
    one = ticket()
    queue.submit(one, ROSTER, 0.0)
    queue.release(one, 1.0)
    queue.release(one, 1.0)
    assert queue.running == 0
    assert queue.runs_on("n/simulated-gpu0", "a:latest") == 0


def test_the_bound_counts_only_who_waits() -> None:
    queue = Queue(WaitingRoom(max_queued=1))
    for _ in range(2):
        queue.submit(ticket(), ROSTER, 0.0)
    assert not queue.room.full
    queue.submit(ticket(), ROSTER, 0.0)
    assert queue.room.full


def test_dropping_a_model_returns_everybody_who_waited() -> None:
    queue = Queue()
    for _ in range(5):
        queue.submit(ticket(), ROSTER, 0.0)
    assert len(queue.drop_waiting("a:latest")) == 3
    assert queue.queued == 0
    assert queue.drop_waiting("a:latest") == []
