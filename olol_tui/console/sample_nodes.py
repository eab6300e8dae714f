"""A made-up fleet for the Nodes screen: every state that a node can be in.

Like `sample`: a function of the second it is asked for, and data for the screen only.
"""

from __future__ import annotations

from dataclasses import replace

from olol_tui.console.sample import panes_fleet
from olol_tui.console.sample_parts import H200, L40S, RTX_4090, node, requests, wave
from olol_tui.fleet.snapshot import (
    Alert,
    Fleet,
    HostKeyQuestion,
    Node,
    Operation,
    ProvisionStep,
    StepState,
)

HELD_8: tuple[tuple[str, ...], ...] = (
    ("llama3.3:70b",),
    ("llama3.3:70b", "qwen3:8b"),
    ("gpt-oss:120b",),
    ("qwen3:32b",),
    (),
    ("deepseek-r1:32b",),
    ("gemma3:27b", "nomic-embed-text"),
    ("qwen3:32b",),
)
UPLOAD_FROM_S = 274.0
UPLOAD_S = 60.0
"""When the sample's upload begins, and how long it takes."""

RANDOMART = """\
+--[ED25519 256]--+
|      .o+B=*..   |
|     . .o.X o    |
|      o  + O     |
|     . o+ = +    |
|      .oS* =     |
|       o+.B .    |
|       .oE.o     |
|      . .=o      |
|       oo..      |
+----[SHA256]-----+"""


def _reached(one: Node, address: str, at_s: float, *, reboot: bool = True) -> Node:
    """The node as one over SSH, provisioned and heard of just now."""
    return replace(
        one,
        devices=tuple(replace(device, role="ollama") for device in one.devices),
        host=f"ops@{address}",
        ssh_command=f"ssh ops@{address}",
        provisioned=True,
        survives_reboot=reboot,
        last_contact_s=at_s - 0.5,
    )


def _step(
    name: str, state: StepState, took_s: float | None = None, message: str = "", hint: str = ""
) -> ProvisionStep:
    return ProvisionStep(name, state, took_s, message, hint)


def provisioning(at_s: float) -> tuple[ProvisionStep, ...]:
    """A run in the middle of bringing Ollama."""
    share = min(1.0, (at_s - UPLOAD_FROM_S) / UPLOAD_S)
    if share < 0:
        return ()
    upload = ProvisionStep(
        "engine",
        "running",
        None,
        f"{1.7 * share:.2f} of 1.7 GiB, {wave(4, at_s, 88, 112):.0f} MiB/s",
        progress=share,
    )
    return (
        _step("connect", "unchanged", 0.4, "ops@10.0.4.13, OpenSSH_9.6p1"),
        _step("facts", "unchanged", 0.6, "Ubuntu 24.04, x86_64, 8×H200, driver 570.133"),
        _step("python", "unchanged", 0.0, "/usr/bin/python3 (3.12.3)"),
        _step("agent", "done", 0.5, "uploaded 0.1.0 (9f3c2ad81b40), 412 KiB"),
        upload,
        _step("service", "waiting"),
        _step("health", "waiting"),
    )


def failed_steps() -> tuple[ProvisionStep, ...]:
    """A run that stopped, and says what to do."""
    return (
        _step("connect", "unchanged", 0.5, "ops@10.0.4.17, OpenSSH_9.2p1"),
        _step("facts", "unchanged", 0.7, "Debian 12, x86_64, 2×RTX 4090, driver 550.54"),
        _step("python", "unchanged", 0.0, "/usr/bin/python3 (3.11.2)"),
        _step(
            "agent",
            "failed",
            0.1,
            "The node cannot take it: /home/ops has 11 MiB free, 33 MiB are needed",
            "Free some space. Set `directory` of this node to a place of its own, "
            "such as /scratch/n07.",
        ),
        _step("engine", "waiting"),
        _step("service", "waiting"),
        _step("health", "waiting"),
    )


def _bare(name: str, address: str) -> Node:
    return Node(
        name=name,
        state="failed",
        kind="ssh",
        host=f"ops@{address}",
        ssh_command=f"ssh ops@{address}",
        provisioned=False,
    )


def nodes_fleet(at_s: float = 300.0) -> Fleet:
    """Nine nodes: at work, provisioned, split in roles, cordoned, lost, failed, unknown."""
    first = _reached(node("n01", H200, 11, at_s, HELD_8), "10.0.4.11", at_s)
    second = _reached(node("n02", H200, 40, at_s, HELD_8[::-1]), "10.0.4.12", at_s)
    mixed = _reached(
        node("n04", L40S, 70, at_s, (("qwen3:32b",), ("phi4:14b",), (), ())),
        "10.0.4.14",
        at_s,
        reboot=False,
    )
    lent = replace(
        mixed.devices[2], role="rpc", note="reserved for llama.cpp RPC", util_percent=0.0
    )
    off = replace(mixed.devices[3], role="off", note="off: nothing of ours", util_percent=0.0)
    mixed = replace(
        mixed,
        devices=(*mixed.devices[:2], lent, off),
        engines=mixed.engines[:2],
        foreign=("http://127.0.0.1:11434",),
        pool="batch",
    )
    cordoned = _reached(node("n05", L40S, 90, at_s, ((), ())), "10.0.4.15", at_s)
    lost = _reached(node("n06", H200, 110, at_s, HELD_8[:4]), "10.0.4.16", at_s)
    lost = replace(
        lost,
        state="lost",
        stale=True,
        age_s=74.0,
        last_contact_s=at_s - 74,
        error="The SSH connection is lost: no answer for 4 s",
        hint="It is tried again by itself, at the latest in 8 s.",
    )
    question = HostKeyQuestion(
        "10.0.4.18",
        "ED25519",
        "SHA256:3Vx0uQk9cN1yZf5r7Wm2LbT8sHd4aPoE6iJgRzXvKqM",
        RANDOMART,
    )
    workstation = _reached(
        node("desk-4090", RTX_4090, 7, at_s, (("qwen3:8b", "phi4:14b"),)), "10.0.4.40", at_s
    )
    nodes = (
        first,
        second,
        replace(_bare("n03", "10.0.4.13"), state="connecting", steps=provisioning(at_s)),
        mixed,
        replace(cordoned, cordoned=True),
        lost,
        replace(_bare("n07", "10.0.4.17"), steps=failed_steps()),
        replace(
            _bare("n08", "10.0.4.18"),
            question=question,
            error="The host key is unknown: 10.0.4.18 shows an ED25519 key that was never seen",
        ),
        workstation,
    )
    places = [
        (f"{one.name}/{device.label}", engine.loaded[0].name)
        for one in (first, second, workstation)
        for device, engine in zip(one.devices, one.engines, strict=True)
        if engine.loaded
    ]
    base = panes_fleet(at_s)
    return replace(
        base,
        nodes=nodes,
        requests=requests(at_s, places, base.gateway.queued),
        pins=(),
        operations=(Operation("op-9", "provision n03", "running", UPLOAD_FROM_S - 1.5),),
        alerts=(Alert("critical", "n06", "The SSH connection is lost", at_s - 74),),
    )
