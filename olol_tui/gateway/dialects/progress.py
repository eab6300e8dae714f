"""The progress of several stores as one: what `/api/pull` says while more than one pulls.

Pure. One line of Ollama's progress in, the lines for the client out. A client draws one bar a
digest whose total it takes from the first line: so a layer has one total, its size, and is
complete when every store has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SUCCESS = {"status": "success"}
_TOGETHER = frozenset({"verifying sha256 digest", "writing manifest"})
"""Said once every store is that far: the client sees the slowest one."""


@dataclass(slots=True)
class _Layer:
    status: str
    total: int
    shown: int = -1
    done: dict[str, int] = field(default_factory=dict)
    """By store: bytes."""


class Merge:
    """One operation over several stores.

    Args:
        verb: `pull`, for the sentence that names who failed.
        names: the stores, as the client shall read them.
    """

    def __init__(self, verb: str, names: Sequence[str]) -> None:
        self._verb = verb
        self._names = list(names)
        self._layers: dict[str, _Layer] = {}
        self._said: set[str] = set()
        self._heard: dict[str, set[str]] = {}
        """By status: the stores that said it."""
        self.succeeded: list[str] = []
        self.failed: dict[str, tuple[int, str]] = {}
        """By store: status, sentence."""

    @property
    def finished(self) -> bool:
        return len(self.succeeded) + len(self.failed) == len(self._names)

    def line(self, name: str, line: dict[str, Any]) -> list[dict[str, Any]]:
        """What the client is told because a store said this."""
        if self._is_over(name):
            return []
        if "error" in line:
            return self.lost(name, 500, str(line["error"]))
        if line.get("status") == "success":
            self.succeeded.append(name)
            return self._freed()
        if len(self._names) == 1:
            return [line]
        total = line.get("total")
        status = str(line.get("status", ""))
        if isinstance(line.get("digest"), str) and isinstance(total, int):
            if total >= 0:
                return self._layer_line(name, line)
            # A length that the registry did not tell draws no bar.
            line = {"status": status}
        self._heard.setdefault(status, set()).add(name)
        if status in _TOGETHER:
            return self._due()
        if status in self._said:
            return []
        self._said.add(status)
        return [line]

    def lost(self, name: str, status: int, message: str) -> list[dict[str, Any]]:
        """A store failed, with an HTTP status that says how. The others go on."""
        if self._is_over(name):
            return []
        self.failed[name] = (status, message)
        return self._freed()

    def ended(self, name: str) -> list[dict[str, Any]]:
        """A store's reply ended. Without a success before it, it failed."""
        return self.lost(name, 500, "the reply ended before it was complete")

    @property
    def error(self) -> tuple[int, str] | None:
        """Status and sentence when not all succeeded: it names who failed, and who did not."""
        if not self.failed:
            return None
        statuses = {status for status, _ in self.failed.values()}
        status = statuses.pop() if len(statuses) == 1 else 500
        sentences = {message for _, message in self.failed.values()}
        if len(sentences) == 1 and not self.succeeded:
            return status, sentences.pop()  # all say the same: the client reads it as it is
        told = "; ".join(f"{name}: {message}" for name, (_, message) in self.failed.items())
        text = f"{self._verb} failed on {told}"
        if self.succeeded:
            text += f" (it succeeded on {', '.join(self.succeeded)})"
            status = 500
        return status, text

    def _is_over(self, name: str) -> bool:
        return name in self.succeeded or name in self.failed

    def _layer_line(self, name: str, line: dict[str, Any]) -> list[dict[str, Any]]:
        digest, total = line["digest"], line["total"]
        layer = self._layers.get(digest)
        if layer is None:
            layer = self._layers[digest] = _Layer(str(line.get("status", "")), total)
        completed = line.get("completed", 0)
        done = completed if isinstance(completed, int) else 0
        layer.done[name] = max(0, min(done, layer.total))
        return self._shown(digest, layer)

    def _shown(self, digest: str, layer: _Layer) -> list[dict[str, Any]]:
        """The mean over the stores that count; never less than was shown before."""
        working = [name for name in self._names if name not in self.failed]
        if not working:
            return []
        have = sum(
            layer.total if name in self.succeeded else layer.done.get(name, 0) for name in working
        )
        completed = have // len(working)
        if completed <= layer.shown:
            return []
        layer.shown = completed
        line: dict[str, Any] = {"status": layer.status, "digest": digest, "total": layer.total}
        if completed:
            line["completed"] = completed
        return [line]

    def _freed(self) -> list[dict[str, Any]]:
        """A store is over: that may complete what it alone held back."""
        lines: list[dict[str, Any]] = []
        for digest, layer in self._layers.items():
            lines += self._shown(digest, layer)
        return lines + self._due()

    def _due(self) -> list[dict[str, Any]]:
        """The steps that every store at work has reached now."""
        working = {name for name in self._names if not self._is_over(name)}
        lines: list[dict[str, Any]] = []
        for status in sorted(_TOGETHER):
            heard = self._heard.get(status)
            if heard and status not in self._said and working <= heard:
                self._said.add(status)
                lines.append({"status": status})
        return lines
