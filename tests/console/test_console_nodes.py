"""The Nodes screen by keyboard: every key, what it asks, and what is sent when it is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot

from olol_tui.console.app import ConsoleOptions, OlolApp
from olol_tui.console.sample_nodes import nodes_fleet
from olol_tui.errors import OlolError
from olol_tui.fleet.commands import (
    AddNode,
    AdoptEndpoint,
    CancelProvision,
    Drain,
    GivePassphrase,
    Provision,
    Reconnect,
    RemoveNode,
    RestartEngine,
    SetCordon,
    SetRole,
    TrustHostKey,
    Uninstall,
)
from olol_tui.fleet.snapshot import (
    Engine,
    Fleet,
    Node,
    PassphraseQuestion,
    ProvisionStep,
    StepState,
)
from tests.console.fake_link import NOW_S, Clock, FakeLink, running, shown

Parts = tuple[Pilot[str], OlolApp, FakeLink]
ROW = {"n01": 0, "n02": 1, "n03": 2, "n04": 3, "n05": 4, "n06": 5, "n07": 6, "n08": 7}


@asynccontextmanager
async def on(
    node: str,
    size: tuple[int, int] = (120, 36),
    *,
    fleet: Fleet | None = None,
    read_only: bool = False,
) -> AsyncIterator[Parts]:
    """The Nodes screen with the cursor on a node."""
    async with running(fleet or nodes_fleet(NOW_S), size, read_only=read_only) as parts:
        await parts[0].press("4", *["down"] * ROW[node])
        yield parts


def calm(at_s: float = NOW_S) -> Fleet:
    """Nobody asks anything by itself."""
    fleet = nodes_fleet(at_s)
    return replace(fleet, nodes=tuple(replace(n, question=None) for n in fleet.nodes))


def changed(name: str, fleet: Fleet | None = None, **values: object) -> Fleet:
    fleet = fleet or nodes_fleet(NOW_S)
    nodes = (replace(n, **values) if n.name == name else n for n in fleet.nodes)  # type: ignore[arg-type]
    return replace(fleet, nodes=tuple(nodes))


def words(app: OlolApp) -> str:
    """A window's text without its frame and line breaks."""
    return " ".join(shown(app).replace("│", " ").split())


def toasts(app: OlolApp) -> str:
    return "\n".join(n.message for n in app._notifications)


# -- what is shown --


async def test_the_list_says_state_gpus_load_version_contact_and_reboot() -> None:
    async with on("n01") as (_, app, _link):
        lines = shown(app).splitlines()
        row = next(line for line in lines if "● n01" in line)
        assert row.split("│")[0].split() == [
            *"▶●",
            "n01",
            "ready",
            "8×H200",
            "7",
            "39%",
            "0.1.0",
            "0.5s",
            "yes",
        ]
        assert any("▲ n08" in line and "host key?" in line for line in lines)
        assert any("_ n05" in line and "cordoned" in line for line in lines)
        assert any("✕ n06" in line and "lost" in line and "74s" in line for line in lines)


async def test_on_a_wide_terminal_the_host_is_in_the_list() -> None:
    async with on("n02", (200, 50)) as (_, app, _link):
        row = next(line for line in shown(app).splitlines() if "● n01" in line)
        assert "ops@10.0.4.11" in row.split("│")[0]


async def test_steps_are_shown_as_they_go() -> None:
    async with on("n03", fleet=calm()) as (_, app, link):
        text = shown(app)
        assert "Provision step 5/7: engine" in text
        assert "✓ agent      0.5s  uploaded 0.1.0" in text
        assert "· health" in text
        later = calm(NOW_S + 30)
        link.publish(later)
        app.tick()
        text = shown(app)
        assert "93%" in text
        assert "30.0s" in text
        assert "1.59 of 1.7 GiB" in text


async def test_a_failed_step_says_all_and_the_way_out() -> None:
    async with on("n07") as (_, app, _link):
        text = " ".join(line.split("│")[-1].strip() for line in shown(app).splitlines())
        assert "Provision failed at agent" in text
        assert "/home/ops has 11 MiB free, 33 MiB are needed" in text
        assert "Set `directory` of this node to a place of its own" in text


async def test_a_second_run_says_that_nothing_had_to_change() -> None:
    steps = tuple(
        ProvisionStep(name, "unchanged", 0.2, "as it was") for name in ("connect", "facts", "agent")
    )
    async with on("n01", fleet=changed("n01", steps=steps)) as (_, app, _link):
        assert "Provision nothing to change" in shown(app)


async def test_a_changed_host_key_shows_old_and_new_and_no_way_to_accept() -> None:
    old, new = "SHA256:" + "a" * 43, "SHA256:" + "b" * 43
    fleet = changed(
        "n01",
        calm(),
        state="failed",
        error=f"10.0.4.11: known ED25519 {old} in /home/me/.ssh/known_hosts; offered ED25519 {new}",
        hint="If the machine was reinstalled: olol-tui hosts forget 10.0.4.11. If not: stop here.",
    )
    async with on("n01", fleet=fleet) as (pilot, app, link):
        text = shown(app)
        assert "The host key of 10.0.4.11 changed." in text
        assert text.index("known:   ED25519") < text.index(old)
        assert text.index(old) < text.index("offered: ED25519") < text.index(new)
        detail = " ".join(line.split("│")[-1].strip() for line in text.splitlines())
        assert "olol-tui hosts forget 10.0.4.11" in detail
        await pilot.press("enter")
        assert "Trust" not in shown(app)
        app.tick()
        assert len(app.screen_stack) == 1
        assert link.commands == []


async def test_inside_a_node_the_cursor_walks_its_parts() -> None:
    async with on("n04") as (pilot, app, _):
        await pilot.press("enter")
        assert "▶ gpu0" in shown(app)
        await pilot.press("end")
        assert "▶ ? http://127.0.0.1:11434" in shown(app)
        await pilot.press("up", "d")
        text = shown(app)
        assert "n04/ollama-gpu1" in text
        assert "restarts" in text
        await pilot.press("escape", "escape", "down")
        assert "─ n05" in shown(app)


async def test_on_a_small_terminal_the_node_takes_the_screen() -> None:
    async with on("n04", (80, 24)) as (pilot, app, _):
        assert "● n01" in shown(app)
        await pilot.press("right", "down")
        text = shown(app)
        assert "● n01" not in text
        assert "▶ gpu1" in text
        assert "reserved for llama.cpp RPC" in text
        await pilot.press("left")
        assert "● n01" in shown(app)


async def test_a_long_detail_says_that_there_is_more_and_scrolls() -> None:
    async with on("n01", (80, 24)) as (pilot, app, _):
        assert "more lines: enter goes in" in shown(app)
        await pilot.press("enter", "end")
        assert "▶ ● ollama-gpu7" in shown(app)
        await pilot.press("home")
        assert "▶ gpu0" in shown(app)
        assert "● ready" in shown(app)


async def test_a_step_is_described_with_its_log() -> None:
    steps = (
        ProvisionStep("connect", "unchanged", 0.2),
        ProvisionStep("agent", "failed", 0.1, "no", "do it", log=("cp: No space left", "exit 1")),
    )
    async with on("n07", fleet=changed("n07", steps=steps)) as (pilot, app, _):
        assert "agent says" in shown(app)
        assert "cp: No space left" in shown(app)
        await pilot.press("enter", "enter")
        text = shown(app)
        assert "n07: agent" in text
        assert "exit 1" in text


async def test_the_filter_finds_by_state_host_and_role() -> None:
    async with on("n01") as (pilot, app, _):
        for words, name in (("state:lost", "n06"), ("10.0.4.14", "n04"), ("role:rpc", "n04")):
            await pilot.press("slash", *words, "enter")
            text = shown(app)
            assert f"─ {name}" in text
            assert "1 of 9 nodes" in text
            await pilot.press("escape")


async def test_clicks_choose_nodes_and_parts() -> None:
    async with on("n01") as (pilot, app, _):
        await pilot.click(offset=(5, 6))
        assert "─ n04" in shown(app)
        lines = shown(app).splitlines()
        y = next(i for i, line in enumerate(lines) if "gpu2  rpc" in line)
        await pilot.click(offset=(70, y))
        assert "▶ gpu2" in shown(app)


# -- adding --

SSH_CONFIG = """\
Host old-n01
    HostName 10.0.4.11
Host gpu1 gpu2
    HostName %h.lan
    User ops
    Port 2222
Host *
    User me
"""


@asynccontextmanager
async def adding(tmp_path: Path) -> AsyncIterator[Parts]:
    config = tmp_path / "config"
    config.write_text(SSH_CONFIG)
    link = FakeLink(calm())
    options = ConsoleOptions(refresh_hz=0, headless=True, ssh_config=config)
    app = OlolApp(link, options, clock=Clock())
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.press("4", "a")
        for _ in range(100):
            if "reading ~/.ssh/config" not in shown(app):
                break
            await pilot.pause(0.05)
        yield pilot, app, link


async def test_add_offers_the_hosts_of_the_ssh_configuration(tmp_path: Path) -> None:
    async with adding(tmp_path) as (pilot, app, link):
        text = shown(app)
        assert "ops@gpu1.lan:2222" in text
        assert "is node n01" in text
        assert "▶ gpu1" in text, "the first that is no node yet"
        await pilot.press(*"gpu2", "enter")
        assert "Add and provision" in shown(app)
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == [AddNode(name="gpu2"), Provision(node="gpu2")]


async def test_add_goes_to_the_new_node_when_it_appears(tmp_path: Path) -> None:
    async with adding(tmp_path) as (pilot, app, link):
        await pilot.press(*"gpu2", "enter", "tab", "enter")
        await pilot.pause()
        assert link.commands == [AddNode(name="gpu2")]
        new = Node("gpu2", "connecting", "ssh", host="ops@gpu2.lan:2222", provisioned=False)
        link.publish(replace(link.fleet, nodes=(*link.fleet.nodes, new)))
        app.tick()
        assert "─ gpu2  ops@gpu2.lan:2222" in shown(app)


async def test_add_takes_what_is_typed_with_a_name_and_simulated_gpus(tmp_path: Path) -> None:
    async with adding(tmp_path) as (pilot, _app, link):
        await pilot.press(*"root@10.9.9.9:22", "tab", *"lab1", "tab", *"4x24GiB", "enter", "enter")
        await pilot.pause()
        added = AddNode(
            name="lab1",
            host="10.9.9.9",
            user="root",
            port=22,
            simulated_gpus=4,
            simulated_vram_bytes=24 * 2**30,
        )
        assert link.commands == [added, Provision(node="lab1")]


@pytest.mark.parametrize(
    ("keys", "refusal"),
    [
        ([*"n05", "enter"], "there is a node n05 already"),
        ([*"-oProxyCommand=x", "enter"], "is not a name that ssh takes"),
        ([*"h:99999", "enter"], "is no port"),
        (["tab", *"Bad Name", "enter"], "a name is made of"),
        (["tab", "tab", *"many", "enter"], "simulated GPUs: 1 to 1024"),
        (["tab", "tab", *"2x24", "enter"], "a unit was forgotten"),
    ],
    ids=["taken", "option", "port", "name", "gpus", "vram"],
)
async def test_add_refuses_with_the_reason(tmp_path: Path, keys: list[str], refusal: str) -> None:
    async with adding(tmp_path) as (pilot, app, link):
        await pilot.press(*keys)
        assert refusal in shown(app)
        await pilot.press("enter")
        assert refusal in shown(app)
        await pilot.press("escape")
        assert link.commands == []


async def test_a_refused_add_does_not_provision(tmp_path: Path) -> None:
    async with adding(tmp_path) as (pilot, app, link):
        link.refusal = OlolError("the file cannot be written", title="Not added")
        await pilot.press(*"gpu1", "enter", "enter")
        await pilot.pause()
        assert link.commands == []
        assert "the file cannot be written" in toasts(app)


# -- provisioning --


async def test_provision_shows_its_steps_and_asks() -> None:
    async with on("n01") as (pilot, app, link):
        await pilot.press("P")
        text = shown(app)
        assert "Look after n01 (ops@10.0.4.11)" in text
        assert "find a python3; none is installed" in text
        await pilot.press("escape")
        assert link.commands == []
        app.say("a long story about something else")
        await pilot.pause()
        assert toasts(app)
        await pilot.press("P")
        assert not toasts(app), "they would cover the window"
        # Nothing is lost by it: no other key is needed than enter.
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == [Provision(node="n01")]


async def test_abort_and_retry() -> None:
    async with on("n03") as (pilot, app, link):
        await pilot.press("x")
        assert "Now: engine" in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands == [CancelProvision(node="n03")]
        await pilot.press(*["down"] * 4, "r")
        await pilot.pause()
        await pilot.press("up", "r")
        await pilot.pause()
        assert link.commands[1:] == [Provision(node="n07"), Reconnect(node="n06")]
        await pilot.press("home", "r", "x")
        await pilot.pause()
        assert len(link.commands) == 3
        assert "nothing of n01 has failed" in toasts(app)
        assert "nothing is being done to n01" in toasts(app)


async def test_an_uninstall_that_failed_is_retried_as_one() -> None:
    steps = (ProvisionStep("connect", "unchanged", 0.1), ProvisionStep("remove", "failed", 0.1))
    async with on("n01", fleet=changed("n01", steps=steps)) as (pilot, app, link):
        assert "Uninstall failed at remove" in shown(app)
        await pilot.press("r")
        await pilot.pause()
        assert link.commands == [Uninstall(node="n01")]


async def test_uninstall_wants_the_name_typed() -> None:
    async with on("n01") as (pilot, app, link):
        await pilot.press("U")
        text = words(app)
        assert "Models stay" in text
        assert "7 requests running there will fail" in text
        # A slip is said and can be mended; it neither does it nor closes the window.
        await pilot.press(*"n0", "enter")
        assert "That is not n01." in words(app)
        await pilot.press("enter")
        await pilot.pause()
        assert "Models stay" not in words(app)
        await pilot.press("U", *"n0", "tab", "enter")
        await pilot.pause()
        assert link.commands == []
        await pilot.press("escape", "U", *"n01", "enter")
        await pilot.pause()
        assert link.commands == [Uninstall(node="n01")]


async def test_forget_asks() -> None:
    async with on("n05") as (pilot, app, link):
        await pilot.press("ctrl+d")
        assert "What runs there goes on running" in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands == [RemoveNode(node="n05")]


# -- work --


async def test_cordon_and_drain_ask() -> None:
    async with on("n05") as (pilot, app, link):
        await pilot.press("c")
        assert "Give n05 new work again?" in shown(app)
        await pilot.press("tab", "enter", "home", "D")
        await pilot.pause()
        assert "7 requests running there now" in shown(app)
        await pilot.press("enter", "D", "tab", "enter")
        await pilot.pause()
        assert link.commands == [SetCordon(node="n05", cordoned=False), Drain(node="n01")]


async def test_restart_asks_which_engine_unless_one_is_chosen() -> None:
    async with on("n01") as (pilot, app, link):
        await pilot.press("e", *"gpu3", "enter", "tab", "enter")
        await pilot.pause()
        assert link.commands == [RestartEngine(engine="n01/ollama-gpu3")]
        await pilot.press("enter", "down", "e")
        assert "Restart n01/ollama-gpu1?" in shown(app)
        assert "1 request running there will fail" in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands[-1] == RestartEngine(engine="n01/ollama-gpu1")


async def test_a_role_says_what_it_stops_and_asks_when_something_does() -> None:
    async with on("n04") as (pilot, app, link):
        uuid = link.fleet.nodes[3].devices[0].uuid
        await pilot.press("enter", "R")
        assert "Role of n04/gpu0" in shown(app)
        assert "stops or restarts n04/ollama-gpu0, with qwen3:32b loaded" in shown(app)
        await pilot.press("up", "enter")
        assert "it has this role now" in shown(app)
        await pilot.press("down", "down", "enter")
        assert "Role of n04/gpu0: rpc?" in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands == [SetRole(node="n04", device=uuid, role="rpc")]


async def test_a_role_of_an_idle_gpu_needs_no_second_question() -> None:
    async with on("n04") as (pilot, app, link):
        uuid = link.fleet.nodes[3].devices[3].uuid
        await pilot.press("R", *"gpu3", "enter")
        assert "nothing stops" in shown(app)
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == [SetRole(node="n04", device=uuid, role="ollama")]


async def test_adopt_and_let_go() -> None:
    url = "http://127.0.0.1:11434"
    async with on("n04", fleet=calm()) as (pilot, app, link):
        await pilot.press("A")
        assert "never started, stopped or changed" in words(app)
        await pilot.press("enter")
        await pilot.pause()
        assert link.commands == [AdoptEndpoint(node="n04", url=url)]
        engine = Engine("n04-11434/ollama", "n04-11434", "endpoint", "ready")
        adopted = Node(
            "n04-11434", "ready", "endpoint", engines=(replace(engine, address=url[7:]),)
        )
        link.publish(replace(link.fleet, nodes=(*link.fleet.nodes, adopted)))
        app.tick()
        await pilot.press("end", "A")
        assert "It goes on running" in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands[-1] == AdoptEndpoint(node="n04", url=url, adopted=False)


async def test_nothing_to_adopt_is_said() -> None:
    async with on("n01") as (pilot, app, link):
        await pilot.press("A")
        assert "no other Ollama was found on n01" in toasts(app)
        assert link.commands == []


async def test_copy_ssh_is_one_clean_line() -> None:
    hostile = "ssh ops@10.0.4.11\nrm -rf ~\x1b]52;c;x\x07"
    async with on("n01", fleet=changed("n01", ssh_command=hostile)) as (pilot, app, _):
        await pilot.press("y")
        assert app.clipboard == "ssh ops@10.0.4.11 rm -rf ~"
        assert "copied: ssh ops@10.0.4.11" in toasts(app)


async def test_logs_of_the_agent_and_of_an_engine() -> None:
    async with on("n01") as (pilot, app, link):
        await pilot.press("l")
        await pilot.pause()
        assert link.logs_asked == [("n01", "")]
        await pilot.press("4", "enter", "end", "l")
        await pilot.pause()
        assert link.logs_asked[-1] == ("n01", "n01/ollama-gpu7")
        await pilot.press("escape")
        assert app._view.name == "nodes", "where it was opened"


# -- questions that come by themselves --


async def test_an_unknown_host_key_asks_by_itself_and_no_is_the_default() -> None:
    async with running(nodes_fleet(NOW_S)) as (pilot, app, link):
        app.tick()
        await pilot.pause()
        text = shown(app)
        assert "This host is unknown." in text
        assert "10.0.4.18" in text
        assert "ED25519" in text
        assert "SHA256:3Vx0uQk9cN1yZf5r7Wm2LbT8sHd4aPoE6iJgRzXvKqM" in text
        assert "|      .oS* =     |" in text
        await pilot.press("enter")
        app.tick()
        await pilot.pause()
        assert link.commands == []
        assert len(app.screen_stack) == 1


async def test_trust_is_said_with_the_fingerprint_and_the_run_goes_on() -> None:
    async with on("n08", (80, 24)) as (pilot, app, link):
        await pilot.press("P")
        assert "This host is unknown." in shown(app)
        await pilot.press("tab", "enter")
        await pilot.pause()
        question = link.fleet.nodes[7].question
        assert question is not None
        trust = TrustHostKey(node="n08", fingerprint=question.fingerprint)
        assert link.commands == [trust]
        failed: StepState = "failed"
        steps = (ProvisionStep("connect", failed, 0.1, "The host key is unknown"),)
        fleet = changed("n08", steps=steps)
        link.publish(fleet)
        app.tick()
        await pilot.press("enter")
        await pilot.press("tab", "enter")
        await pilot.pause()
        assert link.commands[1:] == [trust, Provision(node="n08")]


async def test_a_question_answered_elsewhere_closes_its_window() -> None:
    async with running(nodes_fleet(NOW_S)) as (pilot, app, link):
        app.tick()
        await pilot.pause()
        assert len(app.screen_stack) == 2
        link.publish(changed("n08", question=None, error=""))
        app.tick()
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert link.commands == []


async def test_a_question_waits_while_something_is_typed_or_asked() -> None:
    async with on("n01") as (pilot, app, _):
        await pilot.press("slash", *"n0")
        app.tick()
        await pilot.pause()
        assert len(app.screen_stack) == 1
        await pilot.press("escape", "D")
        app.tick()
        await pilot.pause()
        assert "Drain n01?" in shown(app)
        await pilot.press("escape")
        app.tick()
        await pilot.pause()
        assert "This host is unknown." in shown(app)


async def test_a_locked_key_asks_for_its_passphrase_unseen() -> None:
    fleet = replace(
        changed("n08", question=None), passphrase=PassphraseQuestion("/home/me/.ssh/id_ed25519")
    )
    async with running(fleet, (80, 24)) as (pilot, app, link):
        app.tick()
        await pilot.pause()
        assert "/home/me/.ssh/id_ed25519 is locked." in shown(app)
        await pilot.press(*"hush hush")
        assert "hush" not in shown(app)
        assert "•" * 9 in shown(app)
        await pilot.press("enter")
        await pilot.pause()
        path = "/home/me/.ssh/id_ed25519"
        assert link.commands == [GivePassphrase(path=path, passphrase="hush hush")]
        wrong = PassphraseQuestion(path, "that was not it")
        link.publish(replace(fleet, passphrase=wrong))
        app.tick()
        await pilot.pause()
        assert "that was not it" in shown(app)
        await pilot.press("escape")
        await pilot.pause()
        assert link.commands[1:] == [GivePassphrase(path=path, passphrase=None)]


# -- read-only --


async def test_read_only_looks_and_touches_nothing() -> None:
    async with on("n07", read_only=True) as (pilot, app, link):
        app.tick()
        await pilot.pause()
        for key in ("a", "P", "U", "c", "D", "e", "r", "R", "x", "A", "ctrl+d"):
            await pilot.press(key)
            assert len(app.screen_stack) == 1, key
        await pilot.press("down", "P", "r", "enter")
        await pilot.pause()
        assert "never" in shown(app)
        assert "Trust" not in shown(app)
        await pilot.press("escape")
        assert link.commands == []
        assert "Provision " not in shown(app).splitlines()[-1]
        await pilot.press("home", "y")
        assert app.clipboard == "ssh ops@10.0.4.11"


async def test_a_local_node_has_nothing_to_provision() -> None:
    local = changed("n01", kind="local", host="", ssh_command="", provisioned=None)
    async with on("n01", fleet=local) as (pilot, app, link):
        await pilot.press("P", "U", "y", "ctrl+d")
        assert len(app.screen_stack) == 1
        assert link.commands == []
        assert "n01 is not reached over SSH: there is nothing to provision" in toasts(app)
