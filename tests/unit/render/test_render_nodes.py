"""What the Nodes screen says about a node, by its words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olol_tui.console.sample_nodes import nodes_fleet
from olol_tui.console.themes import load_themes
from olol_tui.fleet.snapshot import Engine, Fleet, Node, ProvisionStep
from olol_tui.render.history import FleetHistory
from olol_tui.render.line import text_of
from olol_tui.render.node_detail import draw_node, parts
from olol_tui.render.nodes import adopted_from, draw_nodes, gpus, node_state, state_words
from olol_tui.render.scene import Scene, make_scene
from olol_tui.render.steps import fault_lines, progress

PALETTES = load_themes().get(None).palettes
FLEET = nodes_fleet(300.0)
BARE = Node("n", "failed", "ssh", host="ops@n", provisioned=False)


def scene_of(*nodes: Node, at_s: float = 300.0) -> Scene:
    fleet = Fleet(nodes=nodes, now_s=at_s)
    history = FleetHistory()
    history.feed(fleet)
    return make_scene(fleet, history, PALETTES)


def told(node: Node, width: int = 80) -> str:
    return "\n".join(text_of(x.line) for x in draw_node(scene_of(node), node, width, cursor=""))


@pytest.mark.parametrize(
    ("node", "state", "words"),
    [
        (BARE, "idle", "new"),
        (replace(BARE, provisioned=True), "lost", "failed"),
        (replace(BARE, steps=(ProvisionStep("agent", "running"),)), "loading", "step 1/1"),
        (replace(BARE, steps=(ProvisionStep("agent", "failed"),)), "lost", "failed"),
        (replace(BARE, steps=(ProvisionStep("proof", "done"),)), "idle", "new"),
        (replace(BARE, question=FLEET.nodes[7].question), "warn", "host key?"),
        (replace(BARE, state="connecting"), "loading", "connecting"),
        (replace(BARE, state="ready", stale=True), "stale", "stale"),
        (replace(BARE, state="ready", cordoned=True), "cordoned", "cordoned"),
        (replace(BARE, state="ready", cordoned=True, draining=True), "cordoned", "draining"),
        (
            replace(BARE, state="ready", engines=(Engine("n/e", "n", "ollama", "failed"),)),
            "warn",
            "1 fault",
        ),
    ],
)
def test_states(node: Node, state: str, words: str) -> None:
    assert node_state(node) == state
    assert state_words(scene_of(node), node) == words


def test_a_new_node_says_what_to_press_and_no_error() -> None:
    text = told(replace(BARE, error="nothing of olol-tui is installed on n yet"))
    assert "our agent is not installed there yet: P does it" in text
    assert "nothing of olol-tui" not in text


def test_a_node_of_another_console_says_whose_it_is() -> None:
    node = replace(BARE, state="ready", managed_by="ops@laptop since 12:03")
    assert "managed by ops@laptop since 12:03" in told(node)


def test_elapsed_time_counts_the_step_that_runs() -> None:
    steps = (ProvisionStep("connect", "unchanged", 2.0), ProvisionStep("engine", "running"))
    node = replace(BARE, steps=steps)
    history = FleetHistory()
    history.feed(Fleet(nodes=(node,), now_s=100.0))
    history.feed(Fleet(nodes=(node,), now_s=100.2))
    assert progress("n", steps, history, 130.0).took_s == pytest.approx(32.0)
    history.feed(Fleet(nodes=(BARE,), now_s=131.0))
    assert history.step_since_s("n", "engine") is None


def test_checks_do_not_count_as_changes() -> None:
    names = ("connect", "facts", "python", "agent", "service", "health", "engines", "traffic")
    done = tuple(ProvisionStep(name, "done", 0.1) for name in names)
    history = FleetHistory()
    assert progress("n", done, history, 0.0).words == "2 steps changed something"
    same = tuple(
        replace(s, state="unchanged") if s.name in ("agent", "service") else s for s in done
    )
    assert progress("n", same, history, 0.0).words == "nothing to change"


def test_a_changed_host_key_is_three_lines() -> None:
    text = "The host key changed: gpu1: known RSA SHA256:a in f; offered ED25519 SHA256:b"
    assert fault_lines(text) == [
        "The host key of gpu1 changed.",
        "known:   RSA SHA256:a in f",
        "offered: ED25519 SHA256:b",
    ]
    assert fault_lines("no route to host") == ["no route to host"]


def test_long_words_of_a_step_are_wrapped_where_the_pane_is_narrow() -> None:
    step = ProvisionStep("facts", "unchanged", 0.1, "Ubuntu 24.04, x86_64, 8×H200, driver 570.133")
    node = replace(BARE, steps=(step,))
    assert "570.133" in told(node, 59)
    assert "570.133" in told(node, 100)
    assert len(told(node, 59).splitlines()) == len(told(node, 100).splitlines()) + 1


def test_gpus_in_few_words() -> None:
    assert gpus(FLEET.nodes[0]) == "8×H200"
    assert gpus(FLEET.nodes[8]) == "RTX 4090"
    mixed = replace(FLEET.nodes[0], devices=FLEET.nodes[0].devices[:1] + FLEET.nodes[3].devices[:1])
    assert gpus(mixed) == "2 GPUs"
    assert gpus(BARE) == "-"


def test_an_adopted_server_knows_its_node() -> None:
    engine = Engine("n-11434/o", "n-11434", "endpoint", "ready", address="127.0.0.1:11434")
    adopted = Node("n-11434", "ready", "endpoint", engines=(engine,))
    fleet = Fleet(nodes=(BARE, adopted))
    assert adopted_from(adopted, fleet) == (BARE, "http://127.0.0.1:11434")
    assert adopted_from(BARE, fleet) is None
    assert adopted_from(adopted, Fleet(nodes=(adopted,))) is None


@pytest.mark.parametrize("width", [59, 60, 80, 120])
def test_every_part_can_be_found_by_its_lines(width: int) -> None:
    for node in FLEET.nodes:
        drawn = draw_node(scene_of(node), node, width, cursor="")
        assert [*dict.fromkeys(x.part for x in drawn if x.part)] == [p.id for p in parts(node)]


def test_only_rows_that_are_seen_are_drawn() -> None:
    many = tuple(replace(FLEET.nodes[0], name=f"n{i}") for i in range(200))
    frame = draw_nodes(scene_of(*many), many, 150, 20, 120, cursor="n155")
    assert len(frame.lines) == 20
    assert frame.hits[0].value == "node:150"
