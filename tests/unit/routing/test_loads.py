"""Situations of a fleet, and what is decided in them and why: loads, evictions, replicas, contexts,
caches, and the plain policies."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from olol_tui.fleet.snapshot import Engine, Fleet, Loaded, Model, Node
from olol_tui.models.footprint import Footprint
from olol_tui.routing.books import Books
from olol_tui.routing.decision import Ask, Decision
from olol_tui.routing.policy import POLICIES
from olol_tui.routing.prefix import marks
from olol_tui.routing.roster import Roster
from olol_tui.routing.speeds import Speeds
from olol_tui.routing.survey import ruled_out
from tests.contract.gateway_rig import engine_node

GIB = 2**30
HOT, OTHER = "hot:8b", "other:14b"
SIZES = {HOT: 5 * 10**9, OTHER: 9 * 10**9}
LONG = marks(memoryview(b"x" * 8192))


@dataclass
class Here:
    """A fleet of one-GPU nodes, and what the gateway has under way on it."""

    nodes: tuple[Node, ...]
    queued: dict[str, int] = field(default_factory=dict)
    books: Books = field(default_factory=Books)
    speeds: Speeds = field(default_factory=Speeds)

    def __post_init__(self) -> None:
        for model in SIZES:
            for node in self.nodes:
                self.speeds.served(key(node.name), model, service_s=4.0, prefill_tps=1000.0)
        for node in self.nodes:
            self.speeds.loaded(node.name, 2 * 10**9, 1.0)

    def runs(self, node: str, model: str, count: int = 1) -> None:
        self.books.running[key(node), model] = count
        self.books.by_engine[key(node)] = self.books.by_engine.get(key(node), 0) + count

    def decide(
        self, *, waiting: int = 1, waited_s: float = 0.0, policy: str = "expected", **ask: Any
    ) -> Decision:
        roster = Roster(Fleet(nodes=self.nodes), {})
        return POLICIES[policy](
            Ask(HOT, **{"prompt_tokens": 100, **ask}),
            roster.seats(HOT),
            roster,
            self.books.occupancy(lambda model: self.queued.get(model, 0)),
            self.speeds,
            waiting=waiting,
            waited_s=waited_s,
            now_s=100.0,
        )


def key(node: str) -> str:
    return f"{node}/simulated-gpu0"


def gpu(name: str, *loaded: str, vram: int = 16, ctx: int = 4096, slots: int = 1) -> Node:
    """A node whose store has both models; `vram` GiB, 0: not known."""
    one = engine_node(name, "127.0.0.1:1", HOT, OTHER, warm=False, slots=slots)
    used = sum(int(SIZES[model] * 1.1) for model in loaded)
    device = replace(
        one.devices[0],
        vram_bytes=vram * GIB or None,
        used_bytes=used if vram else None,
    )
    residents = tuple(
        Loaded(
            m, size_bytes=int(SIZES[m] * 1.1), vram_bytes=int(SIZES[m] * 1.1), context_length=ctx
        )
        for m in loaded
    )
    return replace(
        one,
        devices=(device,),
        engines=(replace(one.engines[0], loaded=residents),),
        library=tuple(Model(m, size_bytes=size) for m, size in SIZES.items()),
    )


def test_what_is_wanted_less_makes_room() -> None:
    here = Here((gpu("a", OTHER, vram=12),))
    decision = here.decide()
    assert (decision.action, decision.evict) == ("load", (OTHER,))
    assert decision.reason == (
        "loading hot:8b on a/gpu0: nobody has it warm; other:14b is wanted least there"
    )


def test_a_device_read_before_the_last_load_is_not_taken_for_free() -> None:
    """Engines tell what they have loaded sooner than devices are read: an Ollama that has no room
    for what it is sent evicts what it likes, often what was loaded a second ago."""
    late = gpu("a", OTHER, vram=12)
    late = replace(late, devices=(replace(late.devices[0], used_bytes=0),))
    decision = Here((late,)).decide()
    assert (decision.action, decision.evict) == ("load", (OTHER,))


def test_what_runs_is_let_end_first_and_nothing_new_starts_there() -> None:
    here = Here((gpu("a", OTHER, vram=12),))
    here.runs("a", OTHER)
    decision = here.decide(waited_s=60.0)
    assert (decision.action, decision.claim) == ("wait", key("a"))
    here.books.claims[key("a")] = OTHER
    other = here.decide()
    assert "it makes room for other:14b" in other.text


def runners(*loaded: str, vram: int = 12, pinned: bool = False) -> Node:
    """A node that starts a process for each model."""
    one = gpu("a", *loaded, vram=vram)
    engines = tuple(
        Engine(
            id=f"a/llama-server-{name}",
            node="a",
            kind="llama-server",
            state="ready",
            devices=one.engines[0].devices,
            address="127.0.0.1:1",
            model=name,
            loaded=tuple(
                replace(x, pinned=pinned) for x in one.engines[0].loaded if x.name == name
            ),
        )
        for name in loaded
    )
    library = tuple(replace(model, path=f"/{model.name}") for model in one.library)
    return replace(one, engines=engines, library=library, runner="llama-server")


def test_runners_of_a_device_make_room_for_each_other() -> None:
    """By the rules of an engine that holds both: each has its own process, the memory is one."""
    here = Here((runners(OTHER),))
    decision = here.decide()
    assert (decision.action, decision.evict) == ("load", (OTHER,))
    assert decision.reason.endswith("other:14b is wanted least there")
    assert decision.seat is not None
    here.books.load_began(decision.seat, HOT, decision, 100.0)
    assert here.books.occupancy(len).leaving == {(f"a/llama-server-{OTHER}", OTHER): HOT}
    here.books.load_ended(decision.seat.key, HOT, 101.0)
    assert not here.books.occupancy(len).leaving


def test_a_size_from_the_header_is_believed_before_one_of_the_file() -> None:
    """What a file's size would have too large, and what is too large after all."""
    small = Footprint(3 * GIB, GIB // 2, GIB // 4, 4096, 0, 0)
    node = runners(vram=5)
    assert Here((node,)).decide().action == "load", "it fits no device by its file's size"
    known = replace(node.library[0], footprint=small)
    fits = Here((replace(node, library=(known, *node.library[1:])),)).decide()
    assert (fits.action, fits.reason.split(":")[-1]) == ("load", " nobody has it warm")
    large = replace(node.library[0], footprint=replace(small, weights_bytes=6 * GIB))
    told = Here((replace(node, library=(large, *node.library[1:])),)).decide()
    assert "the model needs 6.8 GiB by its header, the device has 5 GiB" in told.text


def test_a_runner_at_work_or_pinned_is_not_stopped() -> None:
    here = Here((runners(OTHER),))
    here.books.running[f"a/llama-server-{OTHER}", OTHER] = 1
    claims = here.decide(waited_s=60.0)
    assert (claims.action, claims.claim) == ("wait", "a/GPU-a")
    here.books.claims["a/GPU-a"] = HOT
    roster = Roster(Fleet(nodes=here.nodes), {})
    (seat,) = roster.seats(OTHER)
    assert ruled_out(Ask(OTHER), seat, here.books.occupancy(len)) == "it makes room for hot:8b"
    kept = Here((runners(OTHER, pinned=True),)).decide(waited_s=60.0)
    assert kept.action == "wait"
    assert "what is loaded there is busy or pinned" in kept.text


def test_higher_demand_stays_until_patience_ends() -> None:
    here = Here((gpu("a", OTHER, vram=12),), queued={OTHER: 20})
    patient = here.decide(waited_s=1.0)
    assert patient.action == "wait"
    assert "other:14b would wait" in patient.reason
    assert here.decide(waited_s=60.0).action == "load", "nobody starves"


def test_a_replica_is_not_worth_what_its_victim_loses() -> None:
    here = Here((gpu("a", HOT, vram=12), gpu("b", OTHER, vram=12)), queued={OTHER: 30})
    here.runs("a", HOT)
    decision = here.decide(waiting=4)
    assert decision.action == "wait"
    assert "other:14b would wait" in decision.text
    here.queued.clear()
    freed = here.decide(waiting=4)
    assert (freed.action, freed.evict) == ("load", (OTHER,))
    assert "16.0 s of queue > 2.5 s load on idle b/gpu0" in freed.reason


def test_what_was_loaded_just_now_and_is_wanted_stays() -> None:
    here = Here((gpu("a", OTHER, vram=12),), queued={OTHER: 1})
    here.books._loaded_at[key("a"), OTHER] = 99.0
    decision = here.decide(waited_s=60.0)
    assert decision.action == "wait"
    assert decision.reason == "waiting for room on a/gpu0"


def test_where_memory_is_not_known_a_load_is_tried_and_says_so() -> None:
    decision = Here((gpu("a", OTHER, vram=0),)).decide()
    assert decision.action == "load"
    assert "its memory is not known" in decision.candidates[0].text()


@pytest.mark.parametrize(
    ("asked", "action"),
    [(None, "dispatch"), (2048, "dispatch"), (4096, "dispatch"), (8192, "load")],
)
def test_only_more_context_than_is_loaded_is_a_reload(asked: int | None, action: str) -> None:
    decision = Here((gpu("a", HOT),)).decide(num_ctx=asked)
    assert decision.action == action
    if action == "load":
        assert "reload with 8,192 tokens of context" in decision.candidates[0].text()


def test_a_conversation_goes_back_to_its_cache() -> None:
    here = Here((gpu("a", HOT), gpu("b", HOT)))
    here.books.prefixes.served("b/simulated-gpu0#1", HOT, LONG, keeps=2)
    decision = here.decide(prompt_tokens=2048, prefix=LONG)
    assert decision.seat is not None
    assert decision.seat.node == "b"
    assert "prompt cached up to 2,048 tokens" in decision.reason


def test_it_waits_for_its_cache_until_that_costs_more_than_the_prefill() -> None:
    here = Here((gpu("a", HOT), gpu("b", HOT)))
    here.books.prefixes.served("b/simulated-gpu0#1", HOT, LONG, keeps=2)
    here.runs("b", HOT)
    long = here.decide(prompt_tokens=20_000, prefix=LONG)
    assert long.action == "dispatch", "4 s of waiting save 2 s"
    fast = replace(gpu("b", HOT, slots=8))
    eager = Here((gpu("a", HOT), fast))
    eager.books.prefixes.served("b/simulated-gpu0#1", HOT, LONG, keeps=2)
    eager.runs("b", HOT, 8)
    decision = eager.decide(prompt_tokens=2048, prefix=LONG)
    assert (decision.action, decision.picky) == ("wait", True)
    assert decision.reason == (
        "waiting 0.50 s for a slot on b/gpu0, prompt cached up to 2,048 tokens: "
        "its first token comes sooner"
    )


def test_a_model_that_was_hot_shrinks_again_only_after_a_while() -> None:
    here = Here((gpu("a", HOT), gpu("b", HOT), gpu("c", HOT)))
    here.books.demand.arrived(HOT, 3, 99.0)
    assert "left to expire" not in here.decide().text, "three at once a second ago"
    quiet = Here(here.nodes)
    quiet.books.demand.arrived(HOT, 3, -200.0)
    decision = quiet.decide()
    assert decision.action == "dispatch"
    assert decision.text.count("left to expire: 1 at once lately, 3 replicas") == 2


def test_the_faster_gpu_is_taken_until_it_is_full() -> None:
    here = Here((gpu("slow", HOT, slots=2), gpu("fast", HOT, slots=2)))
    for _ in range(40):
        for node, tps in (("slow", 10.0), ("fast", 58.0)):
            here.speeds.served(key(node), HOT, service_s=4.0, prefill_tps=1000.0, decode_tps=tps)
    here.books.demand.arrived(HOT, 9, 100.0)
    seats = []
    for count in (0, 1, 2):
        here.books.running[key("fast"), HOT] = here.books.by_engine[key("fast")] = count
        seat = here.decide().seat
        assert seat is not None
        seats.append(seat.node)
    assert seats == ["fast", "fast", "slow"]


def test_plain_policies_follow_their_rule() -> None:
    here = Here((gpu("a", HOT, slots=4), gpu("b", HOT, slots=4)))
    here.runs("a", HOT, 2)
    here.books._last_used[key("b"), HOT] = 99.0
    chosen = {}
    for policy in ("least-busy", "round-robin"):
        seat = here.decide(policy=policy).seat
        assert seat is not None
        chosen[policy] = seat.node
    assert chosen == {"least-busy": "b", "round-robin": "a"}


def test_sticky_waits_for_its_engine_and_moves_only_when_that_is_out() -> None:
    here = Here((gpu("a", HOT), gpu("b", HOT)))
    first = here.decide(policy="sticky", client="ann").seat
    assert first is not None
    here.runs(first.node, HOT)
    waits = here.decide(policy="sticky", client="ann")
    assert (waits.action, waits.reason) == (
        "wait",
        f"waiting for {first.where}, next by client",
    )
    here.nodes = tuple(replace(n, cordoned=n.name == first.node) for n in here.nodes)
    moved = here.decide(policy="sticky", client="ann").seat
    assert moved is not None
    assert moved.node != first.node


def test_what_a_device_cannot_hold_is_said() -> None:
    decision = Here((gpu("a", HOT), gpu("small", vram=4))).decide()
    assert decision.action == "dispatch"
    cold = Here((gpu("a"), gpu("small", vram=4))).decide()
    assert cold.action == "load"
    assert "not small/gpu0: the model needs 5.7 GiB, the device has 4 GiB" in cold.text


def test_a_model_is_not_sent_where_a_split_has_the_memory() -> None:
    node = gpu("a")
    (device,) = node.devices
    assert device.vram_bytes is not None
    taken = replace(device, used_bytes=device.vram_bytes - 2 * GIB, lent_bytes=12 * GIB)
    here = Here((replace(node, devices=(taken,)),))
    decision = here.decide()
    assert decision.action == "wait"
    assert "a split has 12 GiB" in decision.text
    here.nodes = (*here.nodes, gpu("b"))
    decision = here.decide()
    assert decision.seat is not None and decision.seat.node == "b"
