"""Faults on demand: what a test or a demonstration asks an engine to do wrong.

A fault hits requests that compute (generate, chat, embed and their twins in other
dialects), or with `scope` "store" those that change the store (pull, push, delete, blobs);
the agent's polling of ps and version is not counted and not hit, unless `scope` is "all".
"""

from __future__ import annotations

from typing import Any

KINDS = ("refuse", "500", "503", "hang", "cut", "slow", "none")


class Fault:
    """One fault as it was asked for.

    Attributes:
        kind: refuse (connection reset before any byte), 500, 503, hang (silence until the
            peer leaves), cut (connection closed mid-reply), slow (everything takes longer).
        after_tokens: tokens, or lines of progress, that are sent before cut, hang or 500 strike.
        factor: how many times longer under slow.
        scope: compute, store or all.
    """

    __slots__ = ("after_tokens", "count", "factor", "kind", "scope")

    def __init__(self, kind: str, after_tokens: int, count: int | None, factor: float) -> None:
        self.kind = kind
        self.after_tokens = after_tokens
        self.count = count
        self.factor = factor
        self.scope = "compute"


class Faults:
    """The fault that is in force, if any."""

    def __init__(self) -> None:
        self._fault: Fault | None = None

    def set(self, body: Any) -> None:
        """
        Raises:
            ValueError: the request is not understood.
        """
        if not isinstance(body, dict) or str(body.get("fault")) not in KINDS:
            raise ValueError(f"fault: expected one of {', '.join(KINDS)}")
        kind = str(body["fault"])
        if kind == "none":
            self._fault = None
            return
        after_tokens = _whole(body, "after_tokens", 3 if kind == "cut" else 0)
        count = None if body.get("count") is None else _whole(body, "count", 1)
        factor = body.get("factor", 10)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 0:
            raise ValueError("factor: expected a number above 0")
        fault = Fault(kind, after_tokens or 0, count, float(factor))
        fault.scope = str(body.get("scope", "compute"))
        if fault.scope not in ("compute", "store", "all"):
            raise ValueError("scope: expected compute, store or all")
        self._fault = fault if count != 0 else None

    def take(self, computes: bool) -> Fault | None:
        """The fault for this request; counts it."""
        return self._take("compute" if computes else "")

    def take_store(self) -> Fault | None:
        """The fault for a request that changes the store; counts it."""
        return self._take("store")

    def _take(self, scope: str) -> Fault | None:
        fault = self._fault
        if fault is None or fault.scope not in (scope, "all"):
            return None
        if fault.count is not None:
            fault.count -= 1
            if fault.count <= 0:
                self._fault = None
        return fault

    def describe(self) -> dict[str, Any] | None:
        """For `/sim/stats`."""
        fault = self._fault
        if fault is None:
            return None
        return {
            "fault": fault.kind,
            "after_tokens": fault.after_tokens,
            "count": fault.count,
            "factor": fault.factor,
        }


def _whole(body: dict[str, Any], key: str, default: int) -> int:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key}: expected a whole number")
    return value
