"""Reads `cluster.toml` and says everything that is wrong with it at once."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from olol_tui.config.positions import KeyPath, key_lines
from olol_tui.config.schema import ClusterConfig
from olol_tui.errors import ConfigError

_SYNTAX = re.compile(r"(?P<what>.*?) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|.*)\)")
_NOT_A_KEY = frozenset({"source", "given"})
"""Fields of ClusterConfig that the program sets."""


class FieldProblem(Exception):
    """A field that is well written, and cannot be had. The message is a sentence."""

    def __init__(self, field: KeyPath, message: str) -> None:
        super().__init__(message)
        self.field = field


def at_field(path: Path, raw: bytes, problem: FieldProblem) -> ConfigError:
    """The problem with file and line. Args: raw: the content of `path`, valid TOML."""
    lines = key_lines(_text(raw))
    return _config_error(path, [(problem.field, str(problem))], lines)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8-sig").replace("\r\n", "\n")


def load(path: Path | None, *, must_exist: bool = False) -> ClusterConfig:
    """The configuration in `path`; all defaults when there is no such file (or None).

    Args:
        path: the file.
        must_exist: the user named the file: then its absence is an error.

    Raises:
        ConfigError: naming file, line, field and what was expected, all problems at once.
    """
    if path is None:
        return ClusterConfig()
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(
                f"{path} does not exist", hint="Check the path after --config."
            ) from None
        return ClusterConfig()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint=f"Look at it: ls -l {path}"
        ) from error
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> ClusterConfig:
    """As `load`, from the content of `path`."""
    try:
        text = _text(raw)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: expected UTF-8 text, got the byte 0x{raw[error.start]:02x}"
        ) from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}, {_syntax_problem(error, text)}") from None
    problems: list[tuple[KeyPath, str]] = [
        ((name,), _unknown_field((name,)))
        for name in _NOT_A_KEY
        if data.pop(name, None) is not None
    ]
    try:
        config = ClusterConfig.model_validate(data, context={"base": path.absolute().parent})
    except ValidationError as error:
        problems += [(_location(details), _sentence(details)) for details in error.errors()]
    else:
        if not problems:
            chosen = {n: one.policy for n, one in config.models.items() if one.policy is not None}
            gateway = config.gateway.model_copy(update={"model_policies": chosen})
            return config.model_copy(update={"source": path, "gateway": gateway})
    raise _config_error(path, problems, key_lines(text))


def _config_error(
    path: Path, problems: list[tuple[KeyPath, str]], lines: dict[KeyPath, int]
) -> ConfigError:
    located = sorted(
        (_line_of(location, lines), _dotted(location), sentence) for location, sentence in problems
    )
    told = [
        f"line {line}, {field}: {sentence}" if field else sentence
        for line, field, sentence in located
    ]
    if len(told) == 1:
        return ConfigError(f"{path}, {told[0]}")
    return ConfigError(f"{path} has {len(told)} problems\n" + "\n".join(f"  {one}" for one in told))


def _line_of(location: KeyPath, lines: dict[KeyPath, int]) -> int:
    """The line of the key, else of the nearest table around it that is written down."""
    for length in range(len(location), 0, -1):
        if location[:length] in lines:
            return lines[location[:length]]
    return 1


def _dotted(location: KeyPath) -> str:
    parts = [
        str(part) if re.fullmatch(r"[A-Za-z0-9_-]+", str(part)) else f'"{part}"'
        for part in location
    ]
    return ".".join(parts)


def _syntax_problem(error: tomllib.TOMLDecodeError, text: str) -> str:
    match = _SYNTAX.fullmatch(str(error))
    if match is None:
        return f"not valid TOML: {error}"
    what = match["what"][0].lower() + match["what"][1:]
    line = match["line"] or text.rstrip("\n").count("\n") + 1
    column = f", column {match['column']}" if match["column"] else ""
    return f"line {line}{column}: not valid TOML: {what}"


def _location(details: ErrorDetails) -> KeyPath:
    at: KeyPath | None = details.get("ctx", {}).get("at")
    return at or tuple(part for part in details["loc"] if part != "[key]")


def _sentence(details: ErrorDetails) -> str:
    kind, context, got = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        return _unknown_field(_location(details))
    if kind == "missing":
        return f"missing; expected a value, for example {_example(_location(details))}"
    if kind == "literal_error":
        expected = context["expected"]
        close = difflib.get_close_matches(str(got), re.findall(r"'([^']*)'", expected), 1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        return f"expected {expected}, got {_shown(got)}{hint}".replace("'", '"')
    if kind == "value_error":
        return str(context["error"])
    if kind == "misplaced":
        return str(context["told"])
    if details["loc"] and details["loc"][-1] == "[key]":
        return (
            "expected a name of lower-case letters, digits, dots, dashes and underscores "
            f"(64 at most), got {_shown(got)}"
        )
    return f"expected {_expectation(kind, context)}, got {_shown(got)}"


def _expectation(kind: str, context: dict[str, Any]) -> str:
    match kind:
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number"
        case "float_type" | "float_parsing":
            return "a number"
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "string_type":
            return "a string in quotes"
        case "list_type":
            return "a list in brackets"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "a table"
        case "greater_than_equal":
            return f"{context['ge']} or more"
        case "greater_than":
            return f"more than {context['gt']:g}"
        case "less_than_equal":
            return f"{context['le']} or less"
        case "string_too_short":
            return "a text that is not empty"
        case _:
            return f"something else ({kind})"


def _unknown_field(location: KeyPath) -> str:
    name = str(location[-1])
    known = _fields_at(location[:-1])
    if close := difflib.get_close_matches(name, known, 1):
        return f'unknown field; did you mean "{close[0]}"?'
    return f"unknown field; expected one of {', '.join(known)}" if known else "unknown field"


def _example(location: KeyPath) -> str:
    return 'url = "http://10.0.0.9:11434"' if location[-1] == "url" else f'{location[-1]} = "..."'


def _fields_at(location: KeyPath) -> list[str]:
    """Names of the fields that the table at `location` may have."""
    current: Any = ClusterConfig
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            info = current.model_fields.get(str(part))
            current = info.annotation if info else None
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        current = next(_models_in(current), current)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [name for name in current.model_fields if name not in _NOT_A_KEY]
    return []


def _models_in(annotation: Any) -> Iterator[Any]:
    """The models of `Model | None`; nothing for `dict[str, Model]`, whose key comes first."""
    if get_origin(annotation) is not dict:
        for option in get_args(annotation):
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield option


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else str(value)
