"""Request bodies as Ollama reads them: Go's JSON rules and Go's sentences."""

from __future__ import annotations

import json
from typing import Any

_GO_KIND = {
    "str": "string",
    "bool": "bool",
    "int": "int",
    "float": "float64",
    "map": "map[string]interface {}",
    "list": "[]interface {}",
    "messages": "[]api.Message",
}


class BadRequest(Exception):
    """The request cannot be served as it is.

    Attributes:
        status: of the reply.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def parse_json(raw: bytes) -> Any:
    """
    Raises:
        BadRequest: empty or not JSON.
    """
    if not raw.strip():
        raise BadRequest("missing request body")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest("invalid UTF-8 in request body") from error
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()):
            raise BadRequest("unexpected EOF") from error
        raise BadRequest(
            f"invalid character '{text[error.pos]}' looking for beginning of value"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadRequest(str(error) or "exceeded max depth") from error


def parse_object(raw: bytes, go_name: str, kinds: dict[str, str]) -> dict[str, Any]:
    """The fields of a request object, with null as absent and types checked.

    Args:
        go_name: of Ollama's struct, for its error sentence.
        kinds: expected kind by field: str, bool, int, float, map, list, messages; fields
            that are not named are passed through.

    Raises:
        BadRequest: not an object, or a field of the wrong type.
    """
    value = parse_json(raw)
    if not isinstance(value, dict):
        raise BadRequest(
            f"json: cannot unmarshal {go_kind(value)} into Go value of type api.{go_name}"
        )
    fields = {key: item for key, item in value.items() if item is not None}
    for key, kind in kinds.items():
        if key in fields and not fits(fields[key], kind):
            raise BadRequest(
                f"json: cannot unmarshal {go_kind(fields[key])} into Go struct field "
                f"{go_name}.{key} of type {_GO_KIND[kind]}"
            )
    return fields


def fits(value: Any, kind: str) -> bool:
    """Whether a JSON value is of this kind."""
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "float":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "map":
        return isinstance(value, dict)
    if kind == "messages":
        return isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return isinstance(value, list)


def go_kind(value: Any) -> str:
    """What Go's decoder calls a JSON value."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _no_constant(name: str) -> Any:
    raise ValueError(f"invalid character '{name[0]}' looking for beginning of value")
