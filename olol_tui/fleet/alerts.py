"""What an operator should look at, found in the facts of the snapshot.

Pure: nodes in, findings out. `AlertBook` only remembers since when each one holds, and lets
a level be left with a margin, so that a GPU at its limit does not flicker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from olol_tui.fleet.snapshot import (
    Alert,
    Device,
    Engine,
    Node,
    PassphraseQuestion,
    Severity,
    Split,
)
from olol_tui.units import format_size

HOT_C = 85.0
"""Of a device that does not tell its limit."""
CRITICAL_C = 92.0
NEAR_LIMIT_C = 5.0
COOLED_C = 3.0
"""Margin by which it must cool before the alert goes."""
FULL_SHARE = 0.96
FULL_MARGIN_SHARE = 0.02
SPILL_SHARE = 0.98
"""A model of which less lies on the GPU has spilled; real engines keep a little in RAM."""
_SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")


@dataclass(frozen=True, slots=True)
class Finding:
    key: str
    """What stays the same while the numbers in the message change."""
    severity: Severity
    where: str
    message: str


def find(nodes: Iterable[Node], active: Set[str] = frozenset()) -> list[Finding]:
    """Everything that is wrong, worst first.

    Args:
        active: keys found the last time.
    """
    findings = [finding for node in nodes for finding in _of_node(node, active)]
    findings.sort(key=lambda f: (_SEVERITIES.index(f.severity), f.where, f.key))
    return findings


class AlertBook:
    """Findings with the moment at which each began."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def update(
        self,
        nodes: Iterable[Node],
        now_s: float,
        config_problem: str = "",
        asked: PassphraseQuestion | None = None,
        config_notices: Iterable[str] = (),
        splits: Iterable[Split] = (),
    ) -> tuple[Alert, ...]:
        """What holds now.

        Args:
            config_problem: why the configuration file as it is now is not followed.
            asked: the passphrase that connections wait for.
            config_notices: what of that file holds from the next start only.
        """
        findings = find(nodes, self._since_s.keys())
        findings += [finding for split in splits for finding in _of_split(split)]
        findings += [
            Finding(f"config {told}", "info", "cluster.toml", told) for told in config_notices
        ]
        if asked is not None:
            told = "locked: nodes wait for its passphrase"
            findings.insert(0, Finding(f"key {asked.path}", "warning", asked.path, told))
        if config_problem:
            told = f"not followed: {config_problem}"
            findings.insert(0, Finding("config", "warning", "cluster.toml", told))
        self._since_s = {f.key: self._since_s.get(f.key, now_s) for f in findings}
        return tuple(
            Alert(
                severity=f.severity,
                where=f.where,
                message=f.message,
                since_s=self._since_s[f.key],
            )
            for f in findings
        )


def _of_split(split: Split) -> Iterator[Finding]:
    """A split that is down and mended, or that could not be."""
    if split.state in ("backoff", "failed"):
        told = f"split {split.state}: {split.error or 'no reason given'}"
        yield Finding(f"{split.id} down", "warning", split.model, told)


def _of_node(node: Node, active: Set[str]) -> Iterator[Finding]:
    name = node.name
    if node.question is not None:
        told = f"its {node.question.key_type} host key is unknown: {node.question.fingerprint}"
        yield Finding(f"{name} host key", "warning", name, told)
    elif node.provisioned is False and node.state == "failed":
        yield Finding(f"{name} new", "warning", name, node.error or "not provisioned yet")
    elif node.state in ("lost", "failed"):
        said = node.error or "no contact"
        yield Finding(f"{name} down", "critical", name, f"{node.state}: {said}")
    elif node.stale:
        why = f": {node.error}" if node.error else ""
        told = f"no telemetry for {node.age_s:.0f} s{why}"
        yield Finding(f"{name} stale", "warning", name, told)
    elif node.error:
        severity: Severity = "warning" if node.engines else "critical"
        yield Finding(f"{name} error", severity, name, node.error)
    for url in node.foreign:
        yield Finding(
            f"{name} foreign {url}",
            "info",
            name,
            f"an Ollama that we did not start runs at {url}: it is left alone, and can be used "
            "as an endpoint",
        )
    if node.managed_by:
        yield Finding(
            f"{name} managed",
            "info",
            name,
            f"managed by {node.managed_by}: read-only here",
        )
    if node.state == "lost" or node.stale:
        # Old temperatures and engine states would raise alarms about the past.
        return
    for device in node.devices:
        yield from _of_device(name, device, active)
    for engine in node.engines:
        yield from _of_engine(node, engine)


def _of_device(node: str, device: Device, active: Set[str]) -> Iterator[Finding]:
    where = f"{node}/{device.label}"
    if device.error:
        yield Finding(f"{where} error", "critical", where, device.error)
    if device.ecc_errors:
        yield Finding(
            f"{where} ecc", "warning", where, f"{device.ecc_errors} uncorrected ECC errors"
        )
    yield from _hot(where, device, active)
    if device.vram_bytes and device.used_bytes is not None:
        share = device.used_bytes / device.vram_bytes
        key = f"{where} full"
        if share >= FULL_SHARE - (FULL_MARGIN_SHARE if key in active else 0):
            what = "memory" if device.vendor == "cpu" else "VRAM"
            free = format_size(max(0, device.vram_bytes - device.used_bytes))
            yield Finding(key, "warning", where, f"{what} {share:.0%} full, {free} free")


def _hot(where: str, device: Device, active: Set[str]) -> Iterator[Finding]:
    if device.temp_c is None:
        return
    limit_c = device.temp_limit_c
    warn_c = HOT_C if limit_c is None else limit_c - NEAR_LIMIT_C
    critical_c = CRITICAL_C if limit_c is None else limit_c
    key = f"{where} hot"
    if device.temp_c < warn_c - (COOLED_C if key in active else 0):
        return
    limit = "" if limit_c is None else f", limit {limit_c:.0f} °C"
    slowed = f", slowed down by {', '.join(device.throttle)}" if device.throttle else ""
    severity: Severity = "critical" if device.temp_c >= critical_c else "warning"
    yield Finding(key, severity, where, f"{device.temp_c:.0f} °C{limit}{slowed}")


def _of_engine(node: Node, engine: Engine) -> Iterator[Finding]:
    last_line = next((line.strip() for line in reversed(engine.log_tail) if line.strip()), "")
    log_says = f"; last log line: {last_line}" if last_line else ""
    said = engine.error or "it ended"
    if engine.state == "failed":
        yield Finding(f"{engine.id} failed", "critical", engine.id, f"failed: {said}{log_says}")
    elif engine.state == "backoff" and engine.kind != "endpoint":
        retry = "" if engine.retry_in_s is None else f", next try in {engine.retry_in_s:.0f} s"
        yield Finding(
            f"{engine.id} failed",
            "warning",
            engine.id,
            f"{said}{retry} (restart {engine.restarts}){log_says}",
        )
    on_cpu = {device.uuid for device in node.devices if device.vendor == "cpu"}
    if engine.kind == "endpoint" or on_cpu.intersection(engine.devices):
        return
    for loaded in engine.loaded:
        if loaded.size_bytes > 0 and loaded.vram_bytes < SPILL_SHARE * loaded.size_bytes:
            spilled = format_size(loaded.size_bytes - loaded.vram_bytes)
            yield Finding(
                f"{engine.id} spill {loaded.name}",
                "warning",
                engine.id,
                f"{loaded.name} runs partly on the CPU: {spilled} of "
                f"{format_size(loaded.size_bytes)} did not fit the GPU",
            )
