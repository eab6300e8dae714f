"""What an operator is told to look at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olol_tui.fleet.alerts import AlertBook, find
from olol_tui.fleet.snapshot import (
    Device,
    Engine,
    HostKeyQuestion,
    Loaded,
    Node,
    PassphraseQuestion,
    Split,
)

GIB = 2**30
GPU = Device("GPU-0", 0, "RTX", "nvidia", vram_bytes=24 * GIB, used_bytes=GIB, temp_c=60)
ENGINE = Engine("n1/ollama-gpu0", "n1", "ollama", "ready", devices=("GPU-0",))
NODE = Node("n1", "ready", devices=(GPU,), engines=(ENGINE,))


def told(node: Node, active: frozenset[str] = frozenset()) -> list[tuple[str, str, str]]:
    return [(f.severity, f.where, f.message) for f in find([node], active)]


def with_device(**changes: object) -> Node:
    return replace(NODE, devices=(replace(GPU, **changes),))  # type: ignore[arg-type]


def with_engine(**changes: object) -> Node:
    return replace(NODE, engines=(replace(ENGINE, **changes),))  # type: ignore[arg-type]


def test_a_healthy_node_is_quiet() -> None:
    assert told(NODE) == []


def test_a_lost_node_is_one_alert_and_its_old_facts_are_none() -> None:
    node = replace(with_device(temp_c=99), state="lost", stale=True, error="does not answer")
    assert told(node) == [("critical", "n1", "lost: does not answer")]
    assert told(replace(NODE, stale=True, age_s=7.4)) == [("warning", "n1", "no telemetry for 7 s")]


@pytest.mark.parametrize(
    ("temp_c", "limit_c", "severity"),
    [
        (84, None, None),
        (86, None, "warning"),
        (93, None, "critical"),
        (86, 95, None),
        (91, 95, "warning"),
        (95, 95, "critical"),
    ],
)
def test_hot_is_measured_against_the_devices_own_limit(
    temp_c: float, limit_c: float | None, severity: str | None
) -> None:
    found = told(with_device(temp_c=temp_c, temp_limit_c=limit_c))
    assert [one[0] for one in found] == ([severity] if severity else [])


def test_a_gpu_that_cools_a_little_does_not_flicker() -> None:
    book = AlertBook()
    (alert,) = book.update([with_device(temp_c=86)], 10.0)
    (still,) = book.update([with_device(temp_c=84)], 20.0)
    assert alert.since_s == still.since_s == 10.0 and "84" in still.message
    assert book.update([with_device(temp_c=81)], 30.0) == ()
    (again,) = book.update([with_device(temp_c=86)], 40.0)
    assert again.since_s == 40.0


def test_full_memory_is_named_after_what_it_is() -> None:
    full = with_device(used_bytes=int(23.5 * GIB))
    assert told(full) == [("warning", "n1/gpu0", "VRAM 98% full, 512 MiB free")]
    cpu = replace(GPU, vendor="cpu", used_bytes=int(23.5 * GIB))
    assert told(replace(NODE, devices=(cpu,)))[0][1:] == ("n1/cpu", "memory 98% full, 512 MiB free")


def test_drivers_and_throttling_speak_up() -> None:
    assert told(with_device(error="GPU is lost")) == [("critical", "n1/gpu0", "GPU is lost")]
    assert told(with_device(ecc_errors=3))[0][2] == "3 uncorrected ECC errors"
    (hot,) = told(with_device(temp_c=90, throttle=("thermal",)))
    assert hot[2].endswith("slowed down by thermal")


def test_a_failed_engine_shows_its_last_log_line() -> None:
    failed = with_engine(
        state="failed", error="5 crashes in 5 minutes", log_tail=("CUDA error: out of memory", " ")
    )
    assert told(failed) == [
        (
            "critical",
            "n1/ollama-gpu0",
            "failed: 5 crashes in 5 minutes; last log line: CUDA error: out of memory",
        )
    ]
    back = with_engine(state="backoff", error="exit code 1", retry_in_s=3.6, restarts=2)
    assert told(back) == [("warning", "n1/ollama-gpu0", "exit code 1, next try in 4 s (restart 2)")]


def test_a_model_that_spilled_to_the_cpu_is_a_fault_with_a_name() -> None:
    spilled = Loaded("qwen3:8b", size_bytes=6 * GIB, vram_bytes=4 * GIB)
    (alert,) = told(with_engine(loaded=(spilled,)))
    assert alert[2] == "qwen3:8b runs partly on the CPU: 2 GiB of 6 GiB did not fit the GPU"
    on_cpu = replace(with_engine(loaded=(spilled,)), devices=(replace(GPU, vendor="cpu"),))
    assert told(on_cpu) == []
    assert told(with_engine(loaded=(replace(spilled, vram_bytes=6 * GIB),))) == []


def test_a_foreign_ollama_is_mentioned_with_what_can_be_done() -> None:
    (alert,) = told(replace(NODE, foreign=("http://127.0.0.1:11434",)))
    assert alert[0] == "info" and "can be used as an endpoint" in alert[2]


def test_a_node_without_engines_is_critical_and_worst_comes_first() -> None:
    dead = replace(NODE, name="n2", engines=(), error="No engine was found")
    found = find([replace(NODE, error="a library is unreadable"), dead])
    assert [(f.severity, f.where) for f in found] == [("critical", "n2"), ("warning", "n1")]


def test_a_host_key_that_nobody_knows_is_named_instead_of_its_consequence() -> None:
    question = HostKeyQuestion("gpu1.lan", "ED25519", "SHA256:abc")
    node = replace(NODE, state="failed", error="never seen", question=question)
    (alert,) = told(node)
    assert alert[0] == "warning" and "ED25519 host key is unknown: SHA256:abc" in alert[2]


def test_a_machine_that_waits_for_its_provisioning_is_no_disaster() -> None:
    (alert,) = told(replace(NODE, state="failed", error="not installed", provisioned=False))
    assert alert[0] == "warning"
    (alert,) = told(replace(NODE, state="failed", error="no route", provisioned=True))
    assert alert[0] == "critical"


def test_a_node_of_another_console_is_said_to_be_read_only() -> None:
    (alert,) = told(replace(NODE, managed_by="ops@laptop since 12:03"))
    assert alert[0] == "info" and "managed by ops@laptop since 12:03" in alert[2]


def test_what_concerns_no_node_comes_first() -> None:
    book = AlertBook()
    locked = PassphraseQuestion("/home/ops/.ssh/id_ed25519")
    alerts = book.update([NODE], 5.0, "line 3: unknown field", locked)
    assert [alert.where for alert in alerts] == ["cluster.toml", locked.path]
    assert book.update([NODE], 9.0) == ()


def test_a_split_that_is_down_is_told_with_its_reason() -> None:
    down = Split("split/big:70b", "big:70b", "backoff", error="h2 is lost")
    ready = Split("split/other:70b", "other:70b", "ready")
    (alert,) = AlertBook().update((), 1.0, splits=(down, ready))
    assert (alert.where, alert.message) == ("big:70b", "split backoff: h2 is lost")
