"""How far a split is and what its nodes should run: stage by stage, without any process."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from olol_tui.fleet.link_book import LinkBook
from olol_tui.fleet.snapshot import Buffer, Engine, EngineKind, Layout
from olol_tui.fleet.split_stage import Stage, stage
from olol_tui.fleet.split_view import lessons, note_speeds, parts_of
from olol_tui.fleet.split_wish import PartWish, Ports, SplitWish, Way, replace_way
from olol_tui.models.learned import Learned

BUILD = "RPC 7.0.0, 0.6.0 (build 1, commit a)"
KEY = "ssh-ed25519 AAAA"
MIB = 2**20


def part(node: str, layers: int, *, way: Way | None = None, output: bool = False) -> PartWish:
    return PartWish(
        node=node,
        device="cpu",
        label="cpu",
        layers=layers,
        has_output=output,
        planned_bytes=90 * MIB,
        weights_bytes=30 * MIB,
        kv_bytes=5 * MIB,
        worker=f"{node}/worker",
        way=way,
        forward=f"h1/forward-{node}" if way is not None and way.road == "ssh" else "",
    )


SSH = Way("ssh", "10.0.0.2", "ops", 22, KEY)
WISH = SplitWish(
    id="split/big:1b",
    model="big:1b",
    node="h1",
    engine="h1/head",
    path="/models/big.gguf",
    parts=(part("h2", 20, way=SSH), part("h1", 10, output=True)),
    head_key=KEY,
)


def engine(engine_id: str, kind: EngineKind, port: int, **more: object) -> Engine:
    one = Engine(engine_id, engine_id.partition("/")[0], kind, "ready", address=f"127.0.0.1:{port}")
    return replace(one, **more)  # type: ignore[arg-type]


WORKERS = {
    "h2/worker": engine("h2/worker", "rpc-server", 2000, version=BUILD),
    "h1/worker": engine("h1/worker", "rpc-server", 1000, version=BUILD),
}
FORWARD = {"h1/forward-h2": engine("h1/forward-h2", "forward", 3000)}
HEAD = {"h1/head": engine("h1/head", "llama-server", 4000)}


def kinds(found: Stage, node: str) -> list[str]:
    return [spec.kind for spec in found.specs[node]]


def test_workers_come_first_and_let_the_heads_key_in() -> None:
    found = stage(WISH, {}, Ports(), {})
    assert found.state == "starting"
    assert kinds(found, "h1") == ["rpc-server"] and kinds(found, "h2") == ["rpc-server"]
    assert found.specs["h2"][0].permit == (KEY,)
    assert found.specs["h1"][0].permit == (), "nobody needs SSH to reach its own node"


def test_forwards_lead_to_the_ports_of_workers_and_the_head_to_both() -> None:
    ports = Ports()
    found = stage(WISH, WORKERS, ports, {})
    assert kinds(found, "h1") == ["rpc-server", "forward"]
    forward = found.specs["h1"][1].forward
    assert forward is not None and (forward.host, forward.target) == ("10.0.0.2", 2000)
    found = stage(WISH, {**WORKERS, **FORWARD}, ports, {})
    assert found.state == "loading"
    chain = found.specs["h1"][-1].chain
    assert chain is not None
    assert chain.workers == ("127.0.0.1:3000", "127.0.0.1:1000")
    assert chain.layers == (20, 11), "the output counts as one layer"
    assert chain.build == "0.6.0 (build 1, commit a)"
    assert stage(WISH, {**WORKERS, **FORWARD, **HEAD}, ports, {}).state == "ready"


def test_a_worker_that_is_restarted_takes_nothing_away() -> None:
    ports = Ports()
    everything = {**WORKERS, **FORWARD, **HEAD}
    before = stage(WISH, everything, ports, {})
    crashed = replace(everything["h2/worker"], state="backoff", address="", error="was killed")
    during = stage(WISH, {**everything, "h2/worker": crashed}, ports, {})
    assert during.state == "backoff" and "h2/worker: was killed" in during.error
    assert during.specs == before.specs
    # Neither does a new controller that has not heard of anybody yet.
    kept = msgspec.json.decode(msgspec.json.encode(ports), type=Ports)
    assert stage(WISH, {}, kept, {}).specs == before.specs


def test_a_worker_of_another_build_is_named_before_the_head_starts() -> None:
    other = replace(WORKERS["h1/worker"], version="RPC 7.0.0, 0.7.0 (build 2, commit b)")
    found = stage(WISH, {**WORKERS, **FORWARD, "h1/worker": other}, Ports(), {})
    assert found.state == "failed"
    assert "different builds" in found.error and "h1/worker: 0.7.0" in found.error
    assert "llama-server" not in kinds(found, "h1")


def test_a_head_that_gave_up_fails_the_split_with_its_last_words() -> None:
    ports = Ports()
    stage(WISH, {**WORKERS, **FORWARD}, ports, {})
    head = replace(HEAD["h1/head"], state="failed", error="crashed 5 times", log_tail=("abort",))
    found = stage(WISH, {**WORKERS, **FORWARD, "h1/head": head}, ports, {})
    assert found.state == "failed" and found.log_tail == ("abort",)
    assert found.error == "h1/head: crashed 5 times"


def test_a_relay_is_asked_for_and_used_once_it_listens() -> None:
    wish = replace_way(WISH, WISH.parts[0], Way("relay"))
    assert wish.parts[0].forward == ""
    ports = Ports()
    found = stage(wish, WORKERS, ports, {})
    assert found.relays == {"h2/worker": ("h2", 2000)} and found.state == "starting"
    assert found.specs["h2"][0].permit == (), "the console's own login carries it"
    found = stage(wish, WORKERS, ports, {"h2/worker": 5000})
    chain = found.specs["h1"][-1].chain
    assert chain is not None and chain.workers[0] == "127.0.0.1:5000"


def test_on_a_trusted_network_workers_listen_for_others() -> None:
    wish = replace_way(WISH, WISH.parts[0], Way("direct", "10.0.0.2"))
    found = stage(wish, WORKERS, Ports(), {})
    assert found.specs["h2"][0].listen == "0.0.0.0"
    assert found.specs["h1"][0].listen == ""
    chain = found.specs["h1"][-1].chain
    assert chain is not None and chain.workers == ("10.0.0.2:2000", "127.0.0.1:1000")


def test_parts_show_what_the_heads_log_says_beside_the_plan() -> None:
    ports = Ports()
    everything = {**WORKERS, **FORWARD, **HEAD}
    stage(WISH, everything, ports, {})
    layout = Layout(
        (
            Buffer("CPU_Mapped", weights_bytes=99 * MIB),
            Buffer("127.0.0.1:3000", 30 * MIB + 1000, 5 * MIB, MIB),
            Buffer("127.0.0.1:1000", 44 * MIB, 5 * MIB, MIB),
        )
    )
    ready = {**everything, "h1/head": replace(HEAD["h1/head"], layout=layout)}
    links = LinkBook(lambda: None)
    links.note("h1", "h2", rtt_s=0.0003)
    carried = {"h1/forward-h2": replace(FORWARD["h1/forward-h2"], carries_bytes_s=1.1e8)}
    note_speeds(WISH, carried, links)
    far, near = parts_of(WISH, ready, ports, stage(WISH, ready, ports, {}), links)
    assert (far.where, far.road, far.real_layers) == ("h2/cpu", "ssh", 20)
    assert far.real_bytes == 36 * MIB + 1000
    assert near.road == "loopback"
    assert (far.rtt_s, far.bytes_s, near.rtt_s) == (0.0003, 1.1e8, None)
    assert near.real_layers is None, "its log tells of more than ten layers"


def test_a_loading_worker_tells_how_much_has_arrived() -> None:
    held = replace(WORKERS["h2/worker"], resident_bytes=8 * MIB + 15 * MIB)
    links = LinkBook(lambda: None)
    far, near = parts_of(WISH, {**WORKERS, "h2/worker": held}, Ports(), None, links)
    assert far.progress == 0.5
    assert near.progress is None


def test_what_a_head_logged_of_its_buffers_is_learned() -> None:
    """By worker; what nobody estimated, or no log tells of, teaches nothing."""
    estimated = replace_buffers(WISH, 20 * MIB)
    ports = Ports(ways={"h2/worker": 3000, "h1/worker": 1000})
    layout = Layout(
        (
            Buffer("127.0.0.1:3000", 30 * MIB, 5 * MIB, 24 * MIB),
            Buffer("127.0.0.1:1000", 30 * MIB, 5 * MIB, 30 * MIB),
            Buffer("CPU", 0, 0, 900 * MIB),
        )
    )
    known = lessons(Learned(), estimated, layout, ports, {"cpu": "cpu"})
    assert known.compute_factor("llama", "big 2048") == 1.5
    assert lessons(known, WISH, layout, ports, {}) == known
    assert lessons(known, estimated, Layout(), ports, {}) == known


def replace_buffers(wish: SplitWish, size: int) -> SplitWish:
    parts = tuple(msgspec.structs.replace(one, buffers_bytes=size) for one in wish.parts)
    return msgspec.structs.replace(wish, parts=parts, architecture="llama", load="big 2048")
