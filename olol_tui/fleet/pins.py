"""Keeps pinned models where they belong: after an engine restart, an eviction, an expiry.

Asked once a tick. Each pin has its own back-off, so that one that cannot be (its device was
swapped for a smaller one) does not load the engine again and again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from olol_tui.errors import OlolError
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.placing import Placer
from olol_tui.fleet.snapshot import Pin
from olol_tui.fleet.targets import find_target, runner_engine
from olol_tui.models.names import same

log = logging.getLogger("olol.fleet.pins")

RETRY_FIRST_S = 2.0
RETRY_MAX_S = 60.0


@dataclass(slots=True)
class _Retry:
    at_s: float = 0.0
    pause_s: float = RETRY_FIRST_S
    operation: str = ""


class PinKeeper:
    def __init__(self, desk: Desk, placer: Placer) -> None:
        self._desk = desk
        self._placer = placer
        self._retries: dict[Pin, _Retry] = {}

    def check(self, now_s: float) -> None:
        """Start whatever is needed so that every pin holds."""
        pins = self._desk.wishes.pins
        self._retries = {pin: self._retries.get(pin, _Retry()) for pin in pins}
        for pin in pins:
            retry = self._retries[pin]
            if now_s < retry.at_s or self._is_running(retry.operation):
                continue
            try:
                held = self._holds(pin, retry, now_s)
            except OlolError as error:
                log.warning("pin %s on %s: %s", pin.model, pin.node, error)
                held = False
                self._postpone(retry, now_s)
            if held:
                retry.pause_s = RETRY_FIRST_S

    def _holds(self, pin: Pin, retry: _Retry, now_s: float) -> bool:
        node = next((one for one in self._desk.nodes if one.name == pin.node), None)
        if node is None or node.state != "ready" or node.stale or node.managed_by:
            return False  # Nothing can be done until it is back, and ours.
        target = find_target(self._desk.nodes, pin.model, pin.node, pin.device)
        if target.engine is None:
            runner = runner_engine(node, target.device, pin.model)
            if runner is not None and runner.state != "stopping":
                # Its agent brings it back after a crash; a failed one waits for the operator.
                return True
        else:
            if target.engine.state != "ready":
                return False
            loaded = next((o for o in target.engine.loaded if same(o.name, pin.model)), None)
            if loaded is not None and not loaded.expires_at:
                return True
            if any(same(one.name, pin.model) for one in target.engine.loading):
                return False
        self._postpone(retry, now_s)
        retry.operation = self._placer.hold(
            target, title=f"restore pinned {target.name} on {target.where}"
        )
        return False

    def _postpone(self, retry: _Retry, now_s: float) -> None:
        retry.at_s = now_s + retry.pause_s
        retry.pause_s = min(RETRY_MAX_S, retry.pause_s * 2)

    def _is_running(self, operation_id: str) -> bool:
        return bool(operation_id) and self._desk.book.is_running(operation_id)
