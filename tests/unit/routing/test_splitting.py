"""When a request makes a split, waits for one, or is told why there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from olol_tui.fleet.snapshot import Device, Engine, Fleet, Loaded, Model, Node, Split
from olol_tui.routing.policy import Ask
from olol_tui.routing.queue import Dispatch, Fail, Load, Queue, Ticket
from olol_tui.routing.roster import Roster
from olol_tui.routing.splitting import KIND, PATIENCE_S

BIG = "big:70b"
GIB = 2**30


def node(name: str, vram_gib: int = 24, **more: Any) -> Node:
    return Node(
        name,
        "ready",
        devices=(Device("g0", 0, "GPU", "nvidia", vram_bytes=vram_gib * GIB, used_bytes=0),),
        library=(Model(BIG, size_bytes=40 * GIB, path="/big.gguf"),),
        runner="llama-server",
        lends=True,
        heads=True,
        **more,
    )


def first(fleet: Fleet) -> tuple[object, Queue]:
    queue = Queue()
    steps = queue.submit(Ticket(Ask(BIG), None, 0.0), Roster(fleet, {}), fleet.now_s)
    return (steps[0] if steps else queue.reason_to_wait(BIG)), queue


def split(state: Any, **more: Any) -> Split:
    return Split(f"split/{BIG}", BIG, state, node="a", engine="a/head", **more)


def test_a_model_that_fits_no_device_is_split_and_not_spilled() -> None:
    step, _ = first(Fleet(nodes=(node("a"), node("b"))))
    assert isinstance(step, Load) and step.seat.kind == KIND


def test_a_model_that_fits_somewhere_is_not_split() -> None:
    step, _ = first(Fleet(nodes=(node("a"), node("b", vram_gib=80))))
    assert isinstance(step, Load) and step.seat.node == "b"


def test_the_rule_of_a_model_is_obeyed() -> None:
    big = (node("a"), node("b", vram_gib=80))
    step, _ = first(Fleet(nodes=big, split_rules={BIG: "always"}))
    assert isinstance(step, Load) and step.seat.kind == KIND
    step, _ = first(Fleet(nodes=big[:1], split_rules={BIG: "never"}))
    assert isinstance(step, Load) and step.seat.kind == "llama-server"


def test_without_llama_cpp_nothing_is_split() -> None:
    step, _ = first(Fleet(nodes=(replace(node("a"), lends=False, heads=False),)))
    assert isinstance(step, Load) and step.seat.kind == "llama-server"


def test_requests_wait_for_a_split_on_its_way_or_being_mended() -> None:
    for state in ("planning", "starting", "loading", "backoff"):
        found, queue = first(Fleet(nodes=(node("a"), node("b")), splits=(split(state),)))
        assert queue.queued == 1, state
        assert not isinstance(found, Load), "a device that is too small is no way around it"


def test_nobody_waits_for_ever() -> None:
    down = split("backoff", error="h2 is lost", since_s=0.0)
    found, queue = first(Fleet(nodes=(node("a"),), splits=(down,), now_s=PATIENCE_S + 1))
    assert queue.queued == 1
    assert "h2 is lost" in found.text  # type: ignore[attr-defined]


def test_a_split_that_was_refused_says_why() -> None:
    no = split("failed", error="it needs 40 GiB; 30 GiB are free")
    lone = replace(node("a"), runner="")
    step, _ = first(Fleet(nodes=(lone,), splits=(no,)))
    assert isinstance(step, Fail)
    assert "it needs 40 GiB; 30 GiB are free" in step.decision.text


def test_a_ready_head_is_the_seat() -> None:
    head = Engine(
        "a/head", "a", "llama-server", "ready", address="127.0.0.1:1", model=BIG, pid=1,
        loaded=(Loaded(BIG, size_bytes=40 * GIB),),
    )  # fmt: skip
    one = replace(node("a"), engines=(head,))
    step, _ = first(Fleet(nodes=(one, node("b")), splits=(split("ready"),)))
    assert isinstance(step, Dispatch) and step.seat.engine == "a/head"
    # While it is down it has no seat of its own: the split is waited for.
    down = replace(one, engines=(replace(head, state="backoff", loaded=()),))
    _, queue = first(Fleet(nodes=(down, node("b")), splits=(split("backoff"),)))
    assert queue.queued == 1


def test_a_request_may_want_it_otherwise_than_the_rule() -> None:
    queue = Queue()
    roomy = Fleet(nodes=(node("a", vram_gib=80),))
    (step,) = queue.submit(Ticket(Ask(BIG, distributed=True), None, 0.0), Roster(roomy, {}), 0.0)
    assert isinstance(step, Load) and step.seat.kind == KIND and step.seat.spread
    queue = Queue()
    (step,) = queue.submit(
        Ticket(Ask(BIG, distributed=False), None, 0.0), Roster(Fleet(nodes=(node("a"),)), {}), 0.0
    )
    assert isinstance(step, Load) and step.seat.kind == "llama-server"
