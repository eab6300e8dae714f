"""What a filter line means: `qwen`, `!qwen`, `state:queued`, `util>80`, in any mix.

Words are joined by «and»; each is a regular expression that ignores case, searched in all
fields or in the named one. A word that is no valid expression is taken literally, so a
half-typed filter never fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Fields = Mapping[str, str | float | None]
"""A row as the filter sees it: words and figures by name."""

_COMPARE = re.compile(r"([a-z_]+)(>=|<=|>|<|=)(-?\d+(?:\.\d+)?)")
_NAMED = re.compile(r"([a-z_]+):(.*)")

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "=": lambda a, b: a == b,
}


def _expression(word: str) -> re.Pattern[str]:
    try:
        return re.compile(word, re.IGNORECASE)
    except re.error:
        return re.compile(re.escape(word), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter line, ready to be asked; an empty one lets everything pass."""

    text: str = ""
    tests: tuple[Callable[[Fields], bool], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tests)

    def passes(self, fields: Fields) -> bool:
        return all(test(fields) for test in self.tests)


def _figure_test(name: str, operator: str, limit: float) -> Callable[[Fields], bool]:
    compare = _OPERATORS[operator]

    def test(fields: Fields) -> bool:
        value = fields.get(name)
        return isinstance(value, int | float) and compare(value, limit)

    return test


def _word_test(word: str) -> Callable[[Fields], bool]:
    named = _NAMED.fullmatch(word)
    field = named.group(1) if named else ""

    def anywhere(fields: Fields) -> bool:
        return any(isinstance(v, str) and pattern.search(v) for v in fields.values())

    def in_field(fields: Fields) -> bool:
        if field not in fields:
            # `llama3.2:3b` looks like a named field and is a model.
            return anywhere(fields)
        return bool(value_pattern.search(str(fields[field] or "")))

    pattern = _expression(word)
    value_pattern = _expression(named.group(2) if named else "")
    return in_field if named else anywhere


def parse(text: str) -> Filter:
    """A Filter from what was typed.

    >>> parse("state:queued age>3").passes({"state": "queued", "age": 4.2})
    True
    """
    tests: list[Callable[[Fields], bool]] = []
    for word in text.split():
        negated = word.startswith("!") and len(word) > 1
        body = word[1:] if negated else word
        compared = _COMPARE.fullmatch(body)
        if compared:
            test = _figure_test(compared.group(1), compared.group(2), float(compared.group(3)))
        else:
            test = _word_test(body)
        tests.append(_negation(test) if negated else test)
    return Filter(text, tuple(tests))


def _negation(test: Callable[[Fields], bool]) -> Callable[[Fields], bool]:
    return lambda fields: not test(fields)
