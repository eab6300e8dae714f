"""Typed reads of a parsed JSON body, refusing wrong types in the words of Ollama.

Ollama is written in Go: its 400 for a wrong type is what `encoding/json` says, and clients
show that sentence to people. `null` reads as absent, as it does there.
"""

from __future__ import annotations

from typing import Any

import msgspec

from olol_tui.gateway.dialects.errors import BadRequest

STRUCTS = {
    "/api/generate": "GenerateRequest",
    "/api/chat": "ChatRequest",
    "/api/embed": "EmbedRequest",
    "/api/embeddings": "EmbeddingRequest",
    "/api/show": "ShowRequest",
}


def decode_body(raw: bytes, route: str) -> dict[str, Any]:
    """A request body as an object.

    Raises:
        BadRequest: empty, not JSON, or not an object.
    """
    if not raw.strip():
        raise BadRequest("missing request body")
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"invalid JSON: {error}") from None
    if not isinstance(body, dict):
        struct = STRUCTS.get(route, "Request")
        raise BadRequest(
            f"json: cannot unmarshal {kind_of(body)} into Go value of type api.{struct}"
        )
    return body


def kind_of(value: object) -> str:
    """JSON's word for a value's type, as Go writes it."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, int | float):
        return "number"
    return "array" if isinstance(value, list) else "object"


class Fields:
    """The fields of one request; `struct` is Ollama's name for it, used in its errors."""

    __slots__ = ("_body", "_struct")

    def __init__(self, struct: str, body: dict[str, Any]) -> None:
        self._struct = struct
        self._body = body

    def raw(self, name: str) -> Any:
        return self._body.get(name)

    def text(self, name: str, default: str = "") -> str:
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, value, "string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, value, "bool")
        return value

    def whole(self, name: str, default: int = 0) -> int:
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, value, "int")
        return value

    def table(self, name: str) -> dict[str, Any]:
        value = self._body.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(name, value, "map[string]interface {}")
        return value

    def items(self, name: str, go_type: str) -> list[Any]:
        value = self._body.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, value, go_type)
        return value

    def objects(self, name: str, go_type: str) -> list[dict[str, Any]]:
        """A list whose items are objects; `go_type` is the item's type in Ollama."""
        values = self.items(name, f"[]{go_type}")
        for value in values:
            if not isinstance(value, dict):
                raise self.wrong(name, value, go_type)
        return values

    def wrong(self, name: str, value: object, go_type: str) -> BadRequest:
        if isinstance(value, float) and go_type == "int":
            kind = f"number {value:g}"
        else:
            kind = kind_of(value)
        return BadRequest(
            f"json: cannot unmarshal {kind} into Go struct field "
            f"{self._struct}.{name} of type {go_type}"
        )
