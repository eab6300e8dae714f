"""The functions that templates call: Go's own, and those that Ollama adds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import Any

from olol_tui.models.gotemplate.scan import TemplateError
from olol_tui.models.gotemplate.values import Record

Function = Callable[[list[Any], date], Any]
_VERB = re.compile(r"%(?:%|[-+# 0]{0,5}\d{0,3}(?:\.\d{1,3})?[a-zA-Z])")


def is_true(value: Any) -> bool:
    """Go's truth: neither zero nor empty; a struct always."""
    return isinstance(value, Record) or bool(value)


def printed(value: Any) -> str:
    """As an action puts a value into the text."""
    match value:
        case None:
            return "<no value>"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case list():
            return f"[{' '.join(_shown(one) for one in value)}]"
        case Record(fields):
            return f"{{{' '.join(_shown(one) for one in fields.values())}}}"
        case Mapping():
            return f"map[{' '.join(f'{key}:{_shown(value[key])}' for key in sorted(value))}]"
        case _:
            return str(value)


def _shown(value: Any) -> str:
    return "<nil>" if value is None else printed(value)


def _encoded(value: Any) -> str:
    """Go's JSON: keys in order, and no characters that a page could stumble over."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
    )
    for character, escape in (("<", "003c"), (">", "003e"), ("&", "0026"), ("\u2028", "2028")):
        text = text.replace(character, f"\\u{escape}")
    return text.replace("\u2029", "\\u2029")


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return dict(value.fields)
    raise TemplateError(f"no JSON for {type(value).__name__}")


def _one(name: str, given: list[Any]) -> Any:
    if len(given) != 1:
        raise TemplateError(f"{name} takes one argument, not {len(given)}")
    return given[0]


def _length(given: list[Any], _: date) -> int:
    value = _one("len", given)
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list | Mapping):
        return len(value)
    raise TemplateError("len of what has no length")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    kinds: tuple[tuple[type, str], ...] = ((int, "int"), (float, "float"), (str, "string"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "other")


def _equal(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is None and other is None
    if _kind(one) != _kind(other) or _kind(one) == "other":
        raise TemplateError("incompatible types for comparison")
    return bool(one == other)


def _eq(given: list[Any], _: date) -> bool:
    if len(given) < 2:
        raise TemplateError("missing argument for comparison")
    return any(_equal(given[0], other) for other in given[1:])


def _ne(given: list[Any], _: date) -> bool:
    if len(given) != 2:
        raise TemplateError("ne takes two arguments")
    return not _equal(*given)


def _ordered(name: str, test: Callable[[Any, Any], bool]) -> Function:
    def compare(given: list[Any], _: date) -> bool:
        if len(given) != 2:
            raise TemplateError(f"{name} takes two arguments")
        one, other = given
        if _kind(one) != _kind(other) or _kind(one) in ("bool", "other"):
            raise TemplateError("incompatible types for comparison")
        return test(one, other)

    return compare


def _index(given: list[Any], _: date) -> Any:
    value, *keys = given
    for key in keys:
        if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        elif isinstance(value, Mapping):
            value = value.get(key)
        else:
            raise TemplateError(f"there is no index {printed(key)}")
    return value


def _slice(given: list[Any], _: date) -> Any:
    value, *ends = given
    if not isinstance(value, list | str) or len(ends) > 2:
        raise TemplateError("slice of what is no list")
    data = value.encode() if isinstance(value, str) else value
    start = ends[0] if ends else 0
    end = ends[1] if len(ends) > 1 else len(data)
    is_whole = isinstance(start, int) and isinstance(end, int)
    if not is_whole or not 0 <= start <= end <= len(data):
        raise TemplateError("slice out of range")
    part = data[start:end]
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else part


def _print(given: list[Any], _: date) -> str:
    """Go puts spaces only between neighbours of which none is a text."""
    said = ""
    for index, value in enumerate(given):
        between = index and not isinstance(value, str) and not isinstance(given[index - 1], str)
        said += (" " if between else "") + _shown(value)
    return said


def _printf(given: list[Any], _: date) -> str:
    if not given or not isinstance(given[0], str):
        raise TemplateError("printf needs a format")
    left = list(given[1:])

    def fill(match: re.Match[str]) -> str:
        verb = match.group()
        if verb == "%%":
            return "%"
        if not left:
            return f"%!{verb[-1]}(MISSING)"
        value = left.pop(0)
        flags, kind = verb[1:-1], verb[-1]
        if kind in "vs":
            width = flags.lstrip("+#")
            return str(f"%{width}s" % _shown(value))
        if kind == "q":
            return json.dumps(_shown(value), ensure_ascii=False)
        if kind in "dxXofeEg" and _kind(value) in ("int", "float"):
            return str(f"%{flags}{kind}" % value)
        raise TemplateError(f"printf: {verb} of {_shown(value)[:40]!r}")

    return _VERB.sub(fill, given[0])


def _html(given: list[Any], today: date) -> str:
    text = _print(given, today)
    for character, entity in (
        ("&", "&amp;"),
        ("'", "&#39;"),
        ('"', "&#34;"),
        ("<", "&lt;"),
        (">", "&gt;"),
    ):
        text = text.replace(character, entity)
    return text


FUNCTIONS: dict[str, Function] = {
    "currentDate": lambda given, today: today.isoformat(),
    "eq": _eq,
    "ge": _ordered("ge", lambda one, other: bool(one >= other)),
    "gt": _ordered("gt", lambda one, other: bool(one > other)),
    "html": _html,
    "index": _index,
    "json": lambda given, today: _encoded(_one("json", given)),
    "le": _ordered("le", lambda one, other: bool(one <= other)),
    "len": _length,
    "lt": _ordered("lt", lambda one, other: bool(one < other)),
    "ne": _ne,
    "not": lambda given, today: not is_true(_one("not", given)),
    "print": _print,
    "printf": _printf,
    "println": lambda given, today: " ".join(_shown(one) for one in given) + "\n",
    "slice": _slice,
    "yesterdayDate": lambda given, today: (today - timedelta(days=1)).isoformat(),
}
