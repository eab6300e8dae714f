"""The text of a template as pieces: text, and the tokens between `{{` and `}}`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""
    (?P<space>[\ \t\r\n]+)
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<raw>`[^`]*`)
  | (?P<char>'(?:[^'\\\n]|\\.)+')
  | (?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?))
  | (?P<variable>\$[A-Za-z0-9_]*)
  | (?P<field>\.[A-Za-z_][A-Za-z0-9_]*)
  | (?P<dot>\.)
  | (?P<declare>:=)
  | (?P<sign>[=|(),])
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    """,
    re.VERBOSE,
)


class TemplateError(ValueError):
    """The template cannot be read, or does something that is no use here."""


class Token(NamedTuple):
    kind: str
    """A group of `_TOKEN`."""
    text: str


class Piece(NamedTuple):
    """Text, or an action with its tokens."""

    text: str
    tokens: tuple[Token, ...] | None = None


def scan(source: str) -> Iterator[Piece]:
    """Pieces in their order, with white space trimmed where the template says so; comments and
    empty texts are left out.

    Raises:
        TemplateError
    """
    at, trims = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        if trims:
            text = text.lstrip(_SPACE)
        if start < 0:
            if text:
                yield Piece(text)
            return
        inside = start + 2
        if source[inside : inside + 1] == "-" and source[inside + 1 : inside + 2] in _SPACE:
            text = text.rstrip(_SPACE)
            inside += 1
        if text:
            yield Piece(text)
        tokens, at, trims = _action(source, inside)
        if tokens is not None:
            yield Piece("", tokens)


def _action(source: str, at: int) -> tuple[tuple[Token, ...] | None, int, bool]:
    """Tokens up to `}}`, where it goes on, and whether white space there is trimmed."""
    comment = at + len(source[at:]) - len(source[at:].lstrip(_SPACE))
    if source.startswith("/*", comment):
        end = source.find("*/", comment)
        if end < 0:
            raise TemplateError("a comment does not end")
        at = end + 2
    tokens: list[Token] = []
    while True:
        if source.startswith("}}", at):
            return (None if _is_comment(source, comment) else tuple(tokens)), at + 2, False
        rest = source[at : at + 4]
        if rest[:1] and rest[0] in _SPACE and rest[1:] == "-}}":
            return (None if _is_comment(source, comment) else tuple(tokens)), at + 4, True
        match = _TOKEN.match(source, at)
        if match is None or match.lastgroup is None:
            raise TemplateError(f"unexpected {source[at : at + 10]!r} in an action")
        text = match.group()
        if match.lastgroup == "space" and source.startswith("-}}", match.end()):
            at = match.end() - 1
            if len(text) > 1:
                continue
        else:
            at = match.end()
        tokens.append(Token(match.lastgroup, text))


def _is_comment(source: str, at: int) -> bool:
    return source.startswith("/*", at)
