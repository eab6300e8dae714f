"""The steps of many nodes on a terminal or in a pipe, as they go."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from olol_tui.provision.runner import Report
    from olol_tui.provision.steps import StepResult

_ENDED = ("done", "unchanged", "skipped", "failed", "cancelled")


class Teller:
    """Steps as lines; on a terminal also what is under way, on one line that is redrawn."""

    def __init__(self, names: list[str], *, quiet: bool) -> None:
        self._width = max(len(name) for name in names)
        self._quiet = quiet
        self._live = sys.stdout.isatty() and not quiet
        self._shown = 0

    def tell(self, node: str, step: StepResult) -> None:
        from olol_tui.provision.telling import step_lines

        if self._quiet:
            return
        if step.state in _ENDED:
            self.clear()
            print("\n".join(step_lines(node, step, self._width)), flush=True)
        elif self._live and step.state == "running":
            percent = "" if step.progress is None else f" {step.progress:.0%}"
            text = f"{node}  ◌ {step.name} {step.message}{percent}"[:100]
            self.clear()
            print(text, end="\r", flush=True)
            self._shown = len(text)

    def plans(self, reports: list[Report]) -> None:
        from olol_tui.provision.telling import plan_lines

        for report in reports:
            if report.plan is not None:
                print("\n".join(plan_lines(report.node, report.plan, self._width)))

    def clear(self) -> None:
        if self._shown:
            print(" " * self._shown, end="\r", flush=True)
            self._shown = 0
