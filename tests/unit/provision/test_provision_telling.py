"""Runs as lines and as JSON."""

from __future__ import annotations

import json

from olol_tui.provision.plan import Plan, Planned
from olol_tui.provision.runner import Report
from olol_tui.provision.steps import StepResult
from olol_tui.provision.telling import plan_lines, report_json, step_lines, summary_line

DONE = StepResult("agent", "done", "194 KiB sent, checked", took_s=0.234)
FAILED = StepResult("python", "failed", "no python3 was found", "Install python3.", 0.01)


def test_a_step_is_a_line_and_its_hint() -> None:
    assert step_lines("h1", DONE, 3) == ["h1   ● agent    194 KiB sent, checked  0.2 s"]
    assert step_lines("h10", FAILED, 3) == [
        "h10  ✖ python   no python3 was found",
        "                Install python3.",
    ]


def test_a_plan_names_every_step_and_note() -> None:
    plan = Plan(
        (
            Planned("python", "keep", "/usr/bin/python3 (3.11.2)"),
            Planned("agent", "refuse", "full", "Free some space."),
        ),
        ("its clock is 24.0 h behind ours",),
    )
    assert plan_lines("h1", plan, 2) == [
        "h1  ○ python   /usr/bin/python3 (3.11.2)",
        "h1  ✖ agent    full",
        "               Free some space.",
        "h1  ! its clock is 24.0 h behind ours",
    ]


def test_the_summary_counts() -> None:
    reports = [
        Report("h1", (DONE,), took_s=1.2),
        Report("h2", (StepResult("agent", "unchanged"),), took_s=0.4),
        Report("h3", (FAILED,), took_s=0.1),
    ]
    line = summary_line(reports, verb="provisioned")
    assert line == "3 nodes: 1 provisioned, 1 unchanged, 1 failed in 1.2 s"


def test_a_report_is_json() -> None:
    told = json.loads(json.dumps(report_json(Report("h1", (DONE, FAILED)))))
    assert (told["ok"], told["changed"]) == (False, True)
    assert told["steps"][1]["hint"] == "Install python3."
