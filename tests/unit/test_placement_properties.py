"""What every plan must keep, on many small fleets; the fewest devices against brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from olol_tui.models.learned import Learned
from olol_tui.models.memory import Settings, need
from olol_tui.models.shape import Shape
from olol_tui.placement.split import Link, Refusal, SplitDevice, SplitPlan, plan

MIB = 2**20
LEARNED = Learned(overhead={"nvidia": 0, "cpu": 0})
CTX = 256


def shape(sizes: list[int], output: int) -> Shape:
    count = len(sizes)
    return Shape(
        architecture="llama",
        file_bytes=sum(sizes) * MIB,
        layers=tuple(size * MIB for size in sizes),
        embedding_bytes=MIB,
        output_bytes=output * MIB,
        vocabulary=1,
        embedding_length=1,
        feed_forward=1,
        query_elements=1,
        key_elements=(1,) * count,
        value_elements=(1,) * count,
        windows=(0,) * count,
        recurrent_bytes=(0,) * count,
    )


EVEN = st.tuples(st.integers(2, 12), st.integers(5, 20)).map(lambda x: [x[1]] * x[0])
UNEVEN = st.lists(st.integers(3, 20), min_size=2, max_size=9)
OUTPUT = st.integers(1, 30)
NODES = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(5, 90), min_size=1, max_size=3)),
    min_size=1,
    max_size=4,
)
SINGLES = st.lists(
    st.tuples(st.booleans(), st.lists(st.integers(5, 90), min_size=1, max_size=1)),
    min_size=1,
    max_size=5,
)


def devices(nodes: list[tuple[bool, list[int]]]) -> list[SplitDevice]:
    return [
        SplitDevice(f"n{n}", f"{n}-{g}", f"gpu{g}", free * MIB, "nvidia", blob)
        for n, (blob, sizes) in enumerate(nodes)
        for g, free in enumerate(sizes)
    ]


def decide(model: Shape, ground: list[SplitDevice], ctx: int = CTX) -> SplitPlan | Refusal:
    return plan(model, ground, ctx=ctx, learned=LEARNED)


def fewest(model: Shape, ground: list[SplitDevice]) -> int | None:
    """By trying every set, head and order: one device, one node, then anything."""
    wanted = need(model, Settings(CTX), LEARNED)
    fixed = wanted.largest_compute_bytes + wanted.first_bytes
    costs = [w + kv for w, kv in zip(wanted.weights, wanted.kv, strict=True)]
    tail = wanted.output_bytes + wanted.logits_bytes

    def fits(order: tuple[SplitDevice, ...]) -> bool:
        at = 0
        for index, device in enumerate(order):
            room = device.free_bytes - fixed
            if index == len(order) - 1:
                return sum(costs[at:]) + tail <= room
            while at < len(costs) and costs[at] <= room:
                room -= costs[at]
                at += 1
        return False

    def is_ordered(order: tuple[SplitDevice, ...]) -> bool:
        local = [device.node == order[-1].node for device in order]
        return order[-1].has_blob and local == sorted(local)

    def least(pool: list[SplitDevice]) -> int | None:
        orders = (
            (count, order)
            for count in range(1, len(pool) + 1)
            for chosen in combinations(pool, count)
            for order in permutations(chosen)
        )
        return next((n for n, order in orders if is_ordered(order) and fits(order)), None)

    nodes = {device.node for device in ground}
    alone = [least([d for d in ground if d.node == node]) for node in nodes]
    found = [count for count in alone if count is not None]
    return min(found) if found else least(ground)


def check(found: SplitPlan | Refusal, model: Shape) -> None:
    if isinstance(found, Refusal):
        assert found.message
        assert found.need_bytes > 0
        return
    shares = found.shares
    assert sum(found.tensor_split) == model.layer_count + 1
    assert [share.first_layer for share in shares] == [
        sum(share.layers for share in shares[:index]) for index in range(len(shares))
    ]
    assert all(share.left_bytes >= 0 for share in shares)
    assert all(share.layers > 0 for share in shares[:-1])
    assert shares[-1].has_output and shares[-1].device.has_blob
    assert sum(share.weights_bytes for share in shares) == model.weights_bytes
    assert sum(share.kv_bytes for share in shares) == sum(found.need.kv)
    local = [share.is_local for share in shares]
    assert local == sorted(local), "workers come before the head's own devices"
    assert 0 < found.tokens_factor <= 1
    assert found.reasons


@settings(max_examples=120)
@given(sizes=EVEN, output=OUTPUT, nodes=NODES)
def test_even_layers_take_the_fewest_devices(
    sizes: list[int], output: int, nodes: list[tuple[bool, list[int]]]
) -> None:
    model, ground = shape(sizes, output), devices(nodes)[:6]
    found = decide(model, ground)
    check(found, model)
    count = len(found.shares) if isinstance(found, SplitPlan) else None
    assert count == fewest(model, ground)


@settings(max_examples=80)
@given(sizes=UNEVEN, output=OUTPUT, nodes=SINGLES)
def test_uneven_layers_take_the_fewest_nodes(
    sizes: list[int], output: int, nodes: list[tuple[bool, list[int]]]
) -> None:
    model, ground = shape(sizes, output), devices(nodes)
    found = decide(model, ground)
    check(found, model)
    count = len(found.shares) if isinstance(found, SplitPlan) else None
    assert count == fewest(model, ground)


@settings(max_examples=80)
@given(
    sizes=UNEVEN,
    output=OUTPUT,
    nodes=NODES,
    which=st.integers(0, 11),
    less=st.integers(1, 60),
    ctx=st.integers(1, 4),
)
def test_what_is_refused_stays_refused_with_less_memory_or_more_context(
    sizes: list[int],
    output: int,
    nodes: list[tuple[bool, list[int]]],
    which: int,
    less: int,
    ctx: int,
) -> None:
    model, ground = shape(sizes, output), devices(nodes)
    if not isinstance(decide(model, ground), Refusal):
        return
    at = which % len(ground)
    smaller = replace(ground[at], free_bytes=max(0, ground[at].free_bytes - less * MIB))
    assert isinstance(decide(model, [*ground[:at], smaller, *ground[at + 1 :]]), Refusal)
    assert isinstance(decide(model, [*ground[:at], *ground[at + 1 :]]), Refusal)
    assert isinstance(decide(model, ground, ctx=CTX * (ctx + 1)), Refusal)


def test_cpus_are_used_only_where_gpus_do_not_suffice() -> None:
    gpus = devices([(True, [60]), (False, [60])])
    cpu = SplitDevice("n0", "cpu", "cpu", 500 * MIB, "cpu", True)
    both = decide(shape([10] * 8, 5), [*gpus, cpu])
    assert isinstance(both, SplitPlan)
    assert {share.device.label for share in both.shares} == {"gpu0"}
    large = decide(shape([10] * 20, 5), [*gpus, cpu])
    assert isinstance(large, SplitPlan)
    assert large.head.device.label == "cpu"
    assert not large.head.is_local, "a CPU takes part through a worker, on its own node too"


def test_devices_of_the_heads_node_are_taken_before_far_ones_that_are_larger() -> None:
    ground = devices([(True, [60, 45]), (False, [80])])
    found = plan(
        shape([10] * 9, 5), ground, ctx=CTX, learned=LEARNED, links={("n0", "n1"): Link(0.01)}
    )
    assert isinstance(found, SplitPlan)
    assert found.level == "node"
