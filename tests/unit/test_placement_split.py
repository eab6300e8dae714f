"""Plans of splits: where layers go, in llama.cpp's order, and why not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from olol_tui.models.shape import Shape
from olol_tui.placement.again import Place, plan_again
from olol_tui.placement.split import Link, Links, Refusal, SplitDevice, SplitPlan, plan

GIB = 2**30
OVERHEAD = 450 * 2**20


def shape(layers: int = 30, layer_bytes: int = GIB, output_bytes: int = GIB // 2) -> Shape:
    return Shape(
        architecture="llama",
        file_bytes=layers * layer_bytes + output_bytes,
        layers=(layer_bytes,) * layers,
        embedding_bytes=GIB // 2,
        output_bytes=output_bytes,
        vocabulary=32000,
        embedding_length=4096,
        feed_forward=14336,
        query_elements=4096,
        key_elements=(1024,) * layers,
        value_elements=(1024,) * layers,
        windows=(0,) * layers,
        recurrent_bytes=(0,) * layers,
    )


def gpu(node: str, index: int, free_gib: float, *, blob: bool = False) -> SplitDevice:
    return SplitDevice(
        node=node,
        uuid=f"{node}-{index}",
        label=f"gpu{index}",
        free_bytes=int(free_gib * GIB),
        has_blob=blob,
    )


def planned(found: SplitPlan | Refusal) -> SplitPlan:
    assert isinstance(found, SplitPlan), found
    return found


def test_one_gpu_that_holds_all_is_enough() -> None:
    devices = [gpu("a", 0, 48, blob=True), gpu("a", 1, 48, blob=True), gpu("b", 0, 80)]
    found = planned(plan(shape(), devices, ctx=4096))
    assert found.level == "gpu"
    assert found.tensor_split == (31,)
    assert found.head.device.where == "a/gpu0"
    assert found.tokens_factor == 1.0


def test_gpus_of_one_node_come_before_other_nodes() -> None:
    devices = [gpu("a", n, 12, blob=True) for n in range(4)] + [gpu("b", n, 30) for n in range(2)]
    found = planned(plan(shape(), devices, ctx=4096))
    assert found.level == "node"
    assert {share.device.node for share in found.shares} == {"a"}
    assert sum(found.tensor_split) == 31
    assert found.workers == ()


def test_the_output_lies_on_the_heads_own_gpu_and_workers_come_first() -> None:
    devices = [gpu("a", 0, 20, blob=True), gpu("b", 0, 20)]
    found = planned(plan(shape(), devices, ctx=4096, links={("a", "b"): Link(0.0005)}))
    assert [share.device.node for share in found.shares] == ["b", "a"]
    assert found.head.has_output and found.head.is_local
    assert [share.device.node for share in found.workers] == ["b"]
    assert sum(found.tensor_split) == 31
    assert 0.85 < found.tokens_factor < 0.95
    assert all(share.left_bytes >= 0 for share in found.shares)
    assert any("0.5 ms a round trip" in reason for reason in found.reasons)


def test_the_nearer_of_equal_nodes_is_taken() -> None:
    devices = [gpu("a", 0, 20, blob=True), gpu("b", 0, 20), gpu("c", 0, 20)]
    links = {("a", "b"): Link(0.02), ("a", "c"): Link(0.0002)}
    found = planned(plan(shape(), devices, ctx=4096, links=links))
    assert [share.device.node for share in found.shares] == ["c", "a"]


def test_of_equally_near_nodes_the_one_with_the_wider_link_is_taken() -> None:
    devices = [gpu("a", 0, 20, blob=True), gpu("b", 0, 20), gpu("c", 0, 20)]
    links = {("a", "b"): Link(0.0002, 1.2e7), ("a", "c"): Link(0.0002, 1.1e9)}
    found = planned(plan(shape(), devices, ctx=4096, links=links))
    assert [share.device.node for share in found.shares] == ["c", "a"]
    assert "a to c: 0.2 ms a round trip, 1100 MB/s" in found.reasons
    narrow = planned(plan(shape(), devices[:2], ctx=4096, links=links))
    assert narrow.tokens_factor < found.tokens_factor


def test_a_model_goes_where_it_was_unless_that_is_slower_or_takes_more() -> None:
    devices = [gpu(name, 0, 20, blob=name in "ab") for name in "abc"]

    def work(given: Sequence[SplitDevice], links: Links | None = None) -> SplitPlan | Refusal:
        return plan(shape(), given, ctx=4096, links=links)

    def places(found: SplitPlan | Refusal) -> list[str]:
        return [share.device.node for share in planned(found).shares]

    ids = {one.node: (one.node, one.uuid) for one in devices}
    assert places(plan_again(work, devices, None)) == ["b", "a"]
    before = Place("b", (ids["c"], ids["b"]))
    assert places(plan_again(work, devices, before)) == ["c", "b"], "its tensors are there"
    far = partial(work, links={("b", "c"): Link(0.05), ("b", "a"): Link(0.0001)})
    assert places(plan_again(far, devices, before)) != ["c", "b"], "too slow"
    gone = Place("z", (("z", "GPU-z"), ids["c"]))
    assert places(plan_again(work, devices, gone)) == ["b", "a"]


def test_a_refusal_has_numbers() -> None:
    found = plan(shape(), [gpu("a", 0, 8, blob=True), gpu("b", 0, 8)], ctx=4096)
    assert isinstance(found, Refusal)
    assert found.missing_bytes > 14 * GIB
    assert "it needs 31 GiB" in found.message


def test_nobody_with_the_file_is_said() -> None:
    found = plan(shape(), [gpu("a", 0, 80)], ctx=4096)
    assert isinstance(found, Refusal)
    assert "holds the model's file" in found.message
