"""Which stores a fleet has, who speaks for them, and where the blobs of a client go."""

from __future__ import annotations

from dataclasses import replace

from olol_tui.fleet.snapshot import Engine, EngineKind, Fleet, Model, Node
from olol_tui.gateway.stores import REMEMBERED_S, Uploads, stores_of


def engine(engine_id: str, kind: EngineKind = "ollama", **more: object) -> Engine:
    fields = {"state": "ready", "address": f"127.0.0.1:{len(engine_id)}"} | more
    return Engine(id=engine_id, node=engine_id.split("/")[0], kind=kind, **fields)  # type: ignore[arg-type]


def node(name: str, *engines: Engine, **more: object) -> Node:
    library = (Model("a:1b"),)
    return replace(Node(name, "ready", engines=engines, library=library), **more)  # type: ignore[arg-type]


def test_the_first_ready_engine_of_a_node_speaks_for_its_store() -> None:
    first, second = engine("n/ollama-gpu0", state="backoff"), engine("n/ollama-gpu1")
    stores = stores_of(Fleet(nodes=(node("n", first, second),)))
    assert [store.engine for store in stores.ready] == ["n/ollama-gpu1"]
    up = replace(first, state="ready")
    stores = stores_of(Fleet(nodes=(node("n", up, second),)))
    assert [store.engine for store in stores.ready] == ["n/ollama-gpu0"]


def test_engines_that_serve_a_file_have_no_store() -> None:
    nodes = (
        node("a", engine("a/embedded", "embedded"), engine("a/l", "llama-server")),
        node("b", engine("b/rpc", "rpc-server")),
        node("c"),
    )
    stores = stores_of(Fleet(nodes=nodes))
    assert stores.ready == stores.lost == ()
    assert stores.default is None


def test_a_store_that_cannot_be_asked_says_why_and_what_it_held() -> None:
    nodes = (
        node("a", engine("a/o"), state="lost"),
        node("b", engine("b/o", state="failed")),
        node("c", engine("c/o", address="")),
    )
    stores = stores_of(Fleet(nodes=nodes))
    assert [(name, why) for name, why, _ in stores.lost] == [
        ("a", "the node is lost"),
        ("b", "its engine is failed"),
        ("c", "its engine has no address yet"),
    ]
    assert stores.lost_with("a:1b") and not stores.lost_with("b:1b")


def test_something_new_goes_rather_to_our_own_and_not_where_it_is_cordoned() -> None:
    theirs = node("e", engine("e/endpoint", "endpoint"), kind="endpoint")
    quiet, ours = node("a", engine("a/o"), cordoned=True), node("b", engine("b/o"))
    stores = stores_of(Fleet(nodes=(theirs, quiet, ours)))
    assert stores.default is not None and stores.default.node == "b"
    assert [store.node for store in stores.growing] == ["e", "b"]
    assert [store.node for store in stores.having("a:1b")] == ["e", "a", "b"]


def test_ssh_nodes_are_reached_over_their_road() -> None:
    far = node("h1", engine("h1/o"), kind="ssh")
    (store,) = stores_of(Fleet(nodes=(far,))).ready
    assert store.address == f"h1!{far.engines[0].address}"


def test_blobs_of_one_client_stay_together_for_an_hour() -> None:
    now = [0.0]
    uploads = Uploads(lambda: now[0])
    fleet = Fleet(nodes=(node("a", engine("a/o")), node("b", engine("b/o"))))
    stores = stores_of(fleet)
    b = stores.on("b")
    assert b is not None
    assert uploads.store_for(stores, "d1", "10.0.0.1") is None
    uploads.remember(b, "d1", "10.0.0.1")
    assert uploads.store_for(stores, "d2", "10.0.0.1") == b, "the next blob of this client"
    assert uploads.store_for(stores, "d1", "10.0.0.2") == b, "this blob for anybody"
    assert uploads.store_for(stores, "d2", "10.0.0.2") is None
    assert uploads.store_of(stores, ["d9", "d1"], "10.0.0.2") == b
    gone = stores_of(replace(fleet, nodes=fleet.nodes[:1]))
    assert uploads.store_for(gone, "d1", "10.0.0.1") is None, "that store cannot be asked now"
    now[0] = REMEMBERED_S + 1
    assert uploads.store_for(stores, "d1", "10.0.0.1") is None


def test_what_is_remembered_is_bounded() -> None:
    uploads = Uploads(lambda: 0.0)
    stores = stores_of(Fleet(nodes=(node("a", engine("a/o")),)))
    for at in range(10_000):
        uploads.remember(stores.ready[0], f"d{at}", f"c{at}")
    assert len(uploads._nodes) <= 4096
    assert uploads.store_for(stores, "d9999", "") is not None
    assert uploads.store_for(stores, "d0", "") is None
