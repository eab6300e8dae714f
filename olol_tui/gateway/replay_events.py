"""The events of a reply's stream taken apart: the text in them, and the shape around it.

Two runs of one request cut their text into other pieces and have other ids and times. What they
must share is the text of each channel (content, thinking, a tool's arguments) and the order of
shapes: an event without its text and without what differs from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from olol_tui.gateway.dialects.errors import upstream_message
from olol_tui.gateway.routes import Inference

_NAMES = frozenset({"id", "item_id", "call_id", "response_id", "created", "created_at"})
"""What a client uses to tell what belongs together: the first run's values are kept."""
_FLEETING = _NAMES | {
    "completed_at", "context", "logprobs", "obfuscation", "role", "sequence_number", "signature",
    "system_fingerprint", "timings", "usage",
}  # fmt: skip
_FLEETING_ENDS = ("_count", "_duration")
_DELTAS = ("thinking", "reasoning", "reasoning_content", "content", "refusal")
_BLOCK_DELTAS = ("text", "thinking", "partial_json")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Text:
    """A piece of text in an event, and where it goes back to."""

    __slots__ = ("_holder", "_key", "channel", "value")

    def __init__(self, channel: str, holder: dict[str, Any], key: str) -> None:
        self.channel = channel
        self._holder = holder
        self._key = key
        self.value: str = holder[key]

    def take(self) -> None:
        """Out of the event, while its shape is looked at."""
        self._holder[self._key] = None

    def put_back(self) -> None:
        self._holder[self._key] = self.value


class Event:
    """One line of NDJSON, or one server-sent event."""

    __slots__ = ("data", "failure", "head", "mark", "names", "raw", "sequence", "texts")

    def __init__(self, raw: bytes, head: bytes, payload: bytes, route: Inference) -> None:
        self.raw = raw
        self.head = head
        """What stands before the JSON in it."""
        self.texts: list[Text] = []
        self.names: tuple[tuple[str, Any], ...] = ()
        self.sequence: int | None = None
        self.failure = ""
        try:
            data = _decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            data = None
        if not isinstance(data, dict):
            self.data: dict[str, Any] | None = None
            self.mark = payload
            return
        self.data = data
        self.failure = _failure(data)
        sequence = data.get("sequence_number")
        self.sequence = sequence if isinstance(sequence, int) else None
        self.names = tuple(_names(data))
        self.texts = list(_texts(route, data))
        for text in self.texts:
            text.take()
        self.mark = _encode(_bare(data))


class Reader:
    """Cuts a stream into events, wherever its pieces end."""

    def __init__(self, route: Inference) -> None:
        self._route = route
        self._lines = route.dialect == "ollama"
        self._tail = b""

    def restart(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that are whole now."""
        buffered = self._tail + data
        if self._lines:
            *whole, self._tail = buffered.split(b"\n")
            raws = [line + b"\n" for line in whole]
        else:
            buffered = buffered.replace(b"\r\n", b"\n")
            *whole, self._tail = buffered.split(b"\n\n")
            raws = [block + b"\n\n" for block in whole]
        return (event for raw in raws if (event := self._event(raw)) is not None)

    def rest(self) -> Iterator[Event]:
        """The last one, if nothing stood after it."""
        tail, self._tail = self._tail.strip(), b""
        if not tail:
            return iter(())
        event = self._event(tail + (b"\n" if self._lines else b"\n\n"))
        return iter(() if event is None else (event,))

    def encode(self, event: Event, renamed: dict[tuple[str, Any], Any], sequence: int) -> bytes:
        """The event with the text that is left in it, under the names of the first run."""
        data = event.data
        if data is None:
            return event.raw
        for text in event.texts:
            text.put_back()
        if event.sequence is not None:
            data["sequence_number"] = sequence
        if renamed:
            _rename(data, renamed)
        return event.head + _encode(data) + (b"\n" if self._lines else b"\n\n")

    def _event(self, raw: bytes) -> Event | None:
        """None: nothing in it, or a comment."""
        if self._lines:
            return Event(raw, b"", raw, self._route) if raw.strip() else None
        head, payload = b"", b""
        for line in raw.splitlines():
            if line.startswith(b"data:"):
                payload += line[5:].strip()
            elif line.startswith(b"event:"):
                head = line + b"\n"
        if not payload or payload == b'{"type":"ping"}':
            return None
        return Event(raw, head + b"data: ", payload, self._route)


def _texts(route: Inference, data: dict[str, Any]) -> Iterator[Text]:
    """Where text grows piece by piece, in the order in which clients read it."""
    if route.dialect == "ollama":
        message = data.get("message")
        yield from _some(message if isinstance(message, dict) else data, ("thinking", "content"))
        yield from _some(data, ("response",))
    elif route.dialect == "anthropic":
        delta = data.get("delta")
        if data.get("type") == "content_block_delta" and isinstance(delta, dict):
            yield from _some(delta, _BLOCK_DELTAS, str(data.get("index")))
    elif route.events:
        kind = str(data.get("type"))
        if kind.endswith(".delta"):
            where = f"{kind}/{data.get('output_index')}/{data.get('content_index')}"
            yield from _some(data, ("delta",), where)
    else:
        for choice in _dicts(data.get("choices")):
            index = str(choice.get("index"))
            yield from _some(choice, ("text",), index)
            delta = choice.get("delta")
            if isinstance(delta, dict):
                yield from _some(delta, _DELTAS, index)
                for call in _dicts(delta.get("tool_calls")):
                    function = call.get("function")
                    if isinstance(function, dict):
                        where = f"{index}/{call.get('index')}"
                        yield from _some(function, ("arguments",), where)


def _some(holder: dict[str, Any], keys: tuple[str, ...], where: str = "") -> Iterator[Text]:
    for key in keys:
        if isinstance(holder.get(key), str):
            yield Text(f"{key}/{where}", holder, key)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _failure(data: dict[str, Any]) -> str:
    """The sentence of an event that says that the engine failed; empty for any other."""
    response = data.get("response")
    held = response if isinstance(response, dict) else data
    if data.get("type") == "error" or held.get("error"):
        return upstream_message(_encode({"error": held.get("error") or data.get("message")}))
    return ""


def _fleeting(key: str) -> bool:
    return key in _FLEETING or key.endswith(_FLEETING_ENDS)


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in sorted(value.items()) if not _fleeting(k) and v is not None}
    if isinstance(value, list):
        return [_bare(one) for one in value]
    return value


def _names(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in sorted(value.items()):
            if key in _NAMES and isinstance(one, str | int):
                yield key, one
            else:
                yield from _names(one)
    elif isinstance(value, list):
        for one in value:
            yield from _names(one)


def _rename(value: Any, renamed: dict[tuple[str, Any], Any]) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            if key in _NAMES and isinstance(one, str | int):
                value[key] = renamed.get((key, one), one)
            else:
                _rename(one, renamed)
    elif isinstance(value, list):
        for one in value:
            _rename(one, renamed)
