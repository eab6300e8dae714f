"""Runs as text and as JSON, for the command line. Pure."""

from __future__ import annotations

from typing import Any

from olol_tui.provision.facts import Facts
from olol_tui.provision.plan import Plan
from olol_tui.provision.runner import Report
from olol_tui.provision.steps import StepResult

_GLYPHS = {
    "waiting": "·",
    "running": "◌",
    "done": "●",
    "unchanged": "○",
    "skipped": "–",
    "failed": "✖",
    "cancelled": "✖",
}
_ACTION_GLYPHS = {"do": "●", "keep": "○", "skip": "–", "refuse": "✖"}
_HINT_INDENT = "  "


def step_lines(node: str, step: StepResult, width: int) -> list[str]:
    """A finished step: `h1  ● agent    194 KiB by sftp, checked  0.2 s`, and its hint.

    Args:
        width: of the longest node's name.
    """
    took = f"  {step.took_s:.1f} s" if step.took_s >= 0.05 else ""
    head = f"{node:<{width}}  {_GLYPHS[step.state]} {step.name:<8}"
    lines = [f"{head} {step.message}{took}".rstrip()]
    if step.hint and step.state in ("failed", "skipped"):
        lines.append(f"{'':<{width}}  {_HINT_INDENT}{'':<8} {step.hint}")
    return lines


def plan_lines(node: str, plan: Plan, width: int) -> list[str]:
    lines = []
    for step in plan.steps:
        head = f"{node:<{width}}  {_ACTION_GLYPHS[step.action]} {step.name:<8}"
        lines.append(f"{head} {step.text}")
        if step.hint and step.action in ("refuse", "skip"):
            lines.append(f"{'':<{width}}  {_HINT_INDENT}{'':<8} {step.hint}")
    lines += [f"{node:<{width}}  ! {note}" for note in plan.notes]
    return lines


def summary_line(reports: list[Report], *, verb: str) -> str:
    """`3 nodes: 2 provisioned, 1 failed in 1.4 s`."""
    failed = sum(1 for report in reports if not report.ok)
    changed = sum(1 for report in reports if report.ok and report.changed)
    same = len(reports) - failed - changed
    parts = [
        f"{count} {word}"
        for count, word in ((changed, verb), (same, "unchanged"), (failed, "failed"))
        if count
    ]
    took_s = max((report.took_s for report in reports), default=0.0)
    noun = "node" if len(reports) == 1 else "nodes"
    return f"{len(reports)} {noun}: {', '.join(parts)} in {took_s:.1f} s"


def report_json(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {
        "node": report.node,
        "ok": report.ok,
        "changed": report.changed,
        "took_s": round(report.took_s, 3),
        "steps": [
            {
                "name": step.name,
                "state": step.state,
                "message": step.message,
                "hint": step.hint,
                "took_s": round(step.took_s, 3),
                "log": list(step.log),
            }
            for step in report.steps
        ],
    }
    if report.facts is not None:
        found["facts"] = facts_json(report.facts)
    if report.plan is not None:
        found["plan"] = [
            {"name": s.name, "action": s.action, "text": s.text, "hint": s.hint}
            for s in report.plan.steps
        ]
        found["notes"] = list(report.plan.notes)
    return found


def facts_json(facts: Facts) -> dict[str, Any]:
    python = facts.python
    return {
        "os": facts.os or facts.system,
        "arch": facts.arch,
        "hostname": facts.hostname,
        "machine_id": facts.machine_id,
        "user": facts.user,
        "python": None if python is None else {"path": python.path, "version": python.version},
        "directory": facts.base,
        "clock_ahead_s": round(facts.clock_ahead_s, 1),
        "free_bytes": facts.disk.free_bytes,
        "noexec": facts.disk.noexec,
        "linger": facts.linger,
        "gpus": list(facts.gpus),
        "driver": facts.driver,
        "ollama": None
        if facts.ollama is None
        else {"path": facts.ollama.path, "version": facts.ollama.version},
        "agent": None
        if facts.agent is None
        else {"pid": facts.agent.pid, "version": facts.agent.version, "error": facts.agent.error},
    }
