"""`olol-tui status` as text."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from olol_tui.fleet.snapshot import (
    Alert,
    Device,
    Engine,
    Fleet,
    GatewayState,
    Loaded,
    Loading,
    Model,
    ModelLoad,
    Node,
    Operation,
    Request,
)
from olol_tui.status import status_lines

GIB = 2**30
FLEET = Fleet(
    now_s=100.0,
    name="lab",
    version="0.1.0",
    nodes=(
        Node(
            name="n1",
            state="ready",
            devices=(
                Device(
                    uuid="GPU-a",
                    index=0,
                    name="SIM 24G",
                    vendor="simulated",
                    vram_bytes=24 * GIB,
                    used_bytes=6 * GIB,
                    util_percent=35.4,
                    temp_c=61.0,
                    power_w=120.0,
                ),
                Device(uuid="GPU-b", index=1, name="SIM 24G", vendor="simulated"),
                Device(uuid="GPU-c", index=2, name="SIM 24G", error="lost: Xid 79"),
            ),
            engines=(
                Engine(
                    id="n1/simulated-gpu0",
                    node="n1",
                    kind="simulated",
                    state="ready",
                    slots=4,
                    loaded=(Loaded("qwen3:8b", size_bytes=5 * GIB, pinned=True),),
                    loading=(Loading("gemma3:4b", started_s=97.0, progress=0.42),),
                ),
                Engine(
                    id="n1/simulated-gpu1",
                    node="n1",
                    kind="simulated",
                    state="backoff",
                    error="exited with 1",
                    retry_in_s=4.0,
                    log_tail=("starting", "CUDA error: out of memory", ""),
                ),
            ),
            library=(Model("qwen3:8b"), Model("phi4:14b")),
            foreign=("http://127.0.0.1:11434",),
        ),
        Node(name="n2", state="lost", error="No route to host"),
    ),
    requests=(
        Request(
            id="r7",
            state="decode",
            model="qwen3:8b",
            dialect="ollama",
            path="/api/chat",
            client="127.0.0.1",
            age_s=3.2,
            where="n1/gpu0",
            tokens=17,
        ),
        Request(
            id="r6",
            state="done",
            model="qwen3:8b",
            dialect="ollama",
            path="/api/chat",
            client="127.0.0.1",
            age_s=9.0,
        ),
    ),
    gateway=GatewayState(
        address="http://127.0.0.1:8000",
        queued=2,
        running=1,
        tokens_per_s=45.2,
        models=(ModelLoad("qwen3:8b", queued=2, running=1, tokens_per_s=45.2),),
    ),
    operations=(
        Operation("o1", "load gemma3:4b on n1/gpu0", "running", 97.0, progress=0.42),
        Operation("o2", "load x on n1/gpu1", "failed", 90.0, message="does not fit"),
    ),
    alerts=(Alert("critical", "n2", "no telemetry for 12 s", 88.0),),
)


def test_everything_an_operator_asks_for_is_in_it() -> None:
    assert status_lines(FLEET, colour=False) == [
        "olol-tui 0.1.0 · lab · http://127.0.0.1:8000 · 1 running · 2 queued · 45 tok/s",
        "",
        "NODE  STATE    GPU   NAME     UTIL            VRAM   TEMP  POWER",
        "n1    ● ready  gpu0  SIM 24G   35%  6 GiB / 24 GiB  61 °C  120 W",
        "               gpu1  SIM 24G     -                      -      -",
        "               gpu2  SIM 24G: lost: Xid 79",
        "n2    ✖ lost         No route to host",
        "",
        "ENGINE                  STATE       SLOTS  MODELS",
        "n1/simulated-gpu0       ● ready         4  qwen3:8b (5 GiB, pinned), "
        "gemma3:4b (loading 42%, 3 s)",
        "n1/simulated-gpu1       ▲ backoff       1  exited with 1; "
        "last log line: CUDA error: out of memory; again in 4 s",
        "http://127.0.0.1:11434  ○ not ours         on n1",
        "",
        "MODEL     REPLICAS  RUNNING  QUEUED  TOK/S",
        "phi4:14b         0        0       0      0",
        "qwen3:8b         1        1       2     45",
        "",
        "REQUEST  STATE     MODEL     WHERE    CLIENT     AGE  TOKENS",
        "r7       ● decode  qwen3:8b  n1/gpu0  127.0.0.1  3 s      17",
        "",
        "OPERATION  STATE          WHAT",
        "o1         ◐ running 42%  load gemma3:4b on n1/gpu0",
        "o2         ✖ failed       load x on n1/gpu1: does not fit",
        "",
        "✖ n2: no telemetry for 12 s",
    ]


def test_colour_adds_to_the_text_and_changes_none_of_it() -> None:
    plain = status_lines(FLEET, colour=False)
    coloured = status_lines(FLEET, colour=True)
    assert coloured != plain
    assert [re.sub("\x1b\\[[0-9]*m", "", line).rstrip() for line in coloured] == plain


def test_a_fleet_of_nothing_is_one_line() -> None:
    assert status_lines(Fleet(), colour=True) == [
        "olol-tui · local · gateway not listening · 0 running · 0 queued · 0 tok/s"
    ]


def test_a_name_cannot_steer_the_terminal() -> None:
    evil = replace(FLEET.nodes[0], name="n1\x1b[2J\n")
    text = "\n".join(status_lines(replace(FLEET, nodes=(evil,)), colour=False))
    assert "\x1b" not in text
    assert "n1 [2J" in text


def test_stale_facts_show_their_age() -> None:
    stale = replace(FLEET.nodes[0], stale=True, age_s=12.0)
    text = "\n".join(status_lines(replace(FLEET, nodes=(stale,)), colour=False))
    assert "● ready, 12 s old" in text


def test_it_needs_neither_textual_nor_rich_nor_pydantic(tmp_path: Path) -> None:
    code = (
        "import sys, olol_tui.cli as cli\n"
        "cli.main(['status', '--state-dir', sys.argv[1]])\n"
        "print([m for m in ('textual', 'rich', 'pydantic', 'asyncssh') if m in sys.modules])"
    )
    with_state = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert with_state.stdout.strip() == "[]"
    assert "olol-tui --serve" in with_state.stderr
