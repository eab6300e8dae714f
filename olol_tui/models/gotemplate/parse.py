"""A template's text as a tree."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from olol_tui.models.gotemplate.scan import Piece, TemplateError, Token, scan

__all__ = ["TemplateError", "parse"]

_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Field:
    """`.A.B`; no names for `.` alone."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """`$x.A`; `$` is what the template was given."""

    name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Constant:
    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Function:
    name: str


@dataclass(frozen=True, slots=True)
class Inner:
    """`(pipe).A`."""

    pipe: Pipe
    names: tuple[str, ...] = ()


Operand = Field | Variable | Constant | Function | Inner


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each given the result of the one before as its last argument."""

    commands: tuple[tuple[Operand, ...], ...]
    declares: tuple[str, ...] = ()
    """Variables that get its value."""
    assigns: bool = False
    """They are there already."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Action:
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Branch:
    """`if`, `with` or `range`."""

    kind: str
    pipe: Pipe
    body: tuple[Node, ...]
    other: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True)
class Jump:
    """`break` or `continue`."""

    kind: str


@dataclass(frozen=True, slots=True)
class Call:
    """`template "name" pipe`."""

    name: str
    pipe: Pipe | None


Node = Text | Action | Branch | Jump | Call


@dataclass(frozen=True, slots=True)
class Tree:
    root: tuple[Node, ...]
    defined: dict[str, tuple[Node, ...]]
    """By `define`."""


def parse(source: str) -> Tree:
    """Raises TemplateError."""
    return _Parser(scan(source)).tree()


class _Parser:
    def __init__(self, pieces: Iterable[Piece]) -> None:
        self._pieces = iter(pieces)
        self._defined: dict[str, tuple[Node, ...]] = {}
        self._depth = 0

    def tree(self) -> Tree:
        root, ended = self._list()
        if ended is not None:
            raise TemplateError(f"unexpected {{{{{ended[0].text}}}}}")
        return Tree(root, self._defined)

    def _list(self) -> tuple[tuple[Node, ...], list[Token] | None]:
        """Nodes up to an `end` or `else` of the list around them, and its tokens."""
        nodes: list[Node] = []
        for piece in self._pieces:
            if piece.tokens is None:
                nodes.append(Text(piece.text))
                continue
            tokens = _stripped(piece.tokens)
            if not tokens:
                raise TemplateError("missing value for an action")
            first = tokens[0]
            if first == ("name", "end") or first == ("name", "else"):
                return tuple(nodes), tokens
            node = self._node(first, tokens)
            if node is not None:
                nodes.append(node)
        return tuple(nodes), None

    def _node(self, first: Token, tokens: list[Token]) -> Node | None:
        if first.kind == "name":
            match first.text:
                case "if" | "with" | "range":
                    return self._branch(first.text, tokens[1:])
                case "break" | "continue":
                    return Jump(first.text)
                case "template":
                    name, rest = _named(tokens)
                    return Call(name, _Line(rest).whole() if rest else None)
                case "define" | "block":
                    name, rest = _named(tokens)
                    body, ended = self._list()
                    if not ended or ended[0].text != "end":
                        raise TemplateError(f"{first.text} {name} does not end")
                    self._defined[name] = body
                    return Call(name, _Line(rest).whole()) if first.text == "block" else None
        return Action(_Line(tokens).whole())

    def _branch(self, kind: str, tokens: list[Token]) -> Branch:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise TemplateError("nested too deeply")
        pipe = _Line(tokens).whole()
        body, ended = self._list()
        other: tuple[Node, ...] = ()
        if ended and ended[0].text == "else":
            rest = _stripped(tuple(ended[1:]))
            if rest:
                # `else if`: a branch of its own, which the same `end` closes.
                other = (self._branch(rest[0].text, rest[1:]),)
                self._depth -= 1
                return Branch(kind, pipe, body, other)
            other, ended = self._list()
        if not ended or ended[0].text != "end":
            raise TemplateError(f"{kind} does not end")
        self._depth -= 1
        return Branch(kind, pipe, body, other)


class _Line:
    """Reads the tokens of one action."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def whole(self) -> Pipe:
        pipe = self._pipe()
        if self._at < len(self._tokens):
            raise TemplateError(f"unexpected {self._tokens[self._at].text!r}")
        return pipe

    def _peek(self) -> Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else Token("end", "")

    def _next(self) -> Token:
        token = self._peek()
        self._at += 1
        return token

    def _space(self) -> None:
        while self._peek().kind == "space":
            self._at += 1

    def _pipe(self) -> Pipe:
        self._space()
        declares, assigns = self._declared()
        commands = []
        while True:
            commands.append(self._command())
            if self._peek().text != "|":
                break
            self._at += 1
        return Pipe(tuple(commands), declares, assigns)

    def _declared(self) -> tuple[tuple[str, ...], bool]:
        began = self._at
        names: list[str] = []
        while self._peek().kind == "variable":
            names.append(self._next().text)
            self._space()
            sign = self._peek()
            if sign.text == "," and len(names) == 1:
                self._at += 1
                self._space()
            elif sign.text in (":=", "="):
                self._at += 1
                return tuple(names), sign.text == "="
            else:
                break
        self._at = began
        return (), False

    def _command(self) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while True:
            self._space()
            token = self._peek()
            if token.kind == "end" or token.text in ("|", ")"):
                if not operands:
                    raise TemplateError("missing value for a command")
                return tuple(operands)
            operands.append(self._operand())

    def _operand(self) -> Operand:
        token = self._next()
        match token.kind:
            case "field":
                return Field((token.text[1:], *self._names()))
            case "dot":
                return Field(())
            case "variable":
                return Variable(token.text, self._names())
            case "string" | "raw" | "char" | "number":
                return Constant(_constant(token))
            case "name":
                known = {"true": True, "false": False, "nil": None}
                if token.text in known:
                    return Constant(known[token.text])
                return Function(token.text)
        if token.text == "(":
            pipe = self._pipe()
            if self._next().text != ")":
                raise TemplateError("unclosed (")
            return Inner(pipe, self._names())
        raise TemplateError(f"unexpected {token.text!r}")

    def _names(self) -> tuple[str, ...]:
        names = []
        while self._peek().kind == "field":
            names.append(self._next().text[1:])
        return tuple(names)


def _stripped(tokens: tuple[Token, ...]) -> list[Token]:
    found = list(tokens)
    while found and found[0].kind == "space":
        del found[0]
    while found and found[-1].kind == "space":
        del found[-1]
    return found


def _named(tokens: list[Token]) -> tuple[str, list[Token]]:
    rest = _stripped(tuple(tokens[1:]))
    if not rest or rest[0].kind not in ("string", "raw"):
        raise TemplateError("expected a template's name")
    return str(_constant(rest[0])), _stripped(tuple(rest[1:]))


def _constant(token: Token) -> str | int | float:
    text = token.text
    if token.kind == "raw":
        return text[1:-1]
    if token.kind == "number":
        plain = text.replace("_", "")
        return float(plain) if "." in plain or "e" in plain.lower()[2:] else int(plain, 0)
    try:
        unquoted = ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise TemplateError(f"{text} is no string") from error
    if not isinstance(unquoted, str):
        raise TemplateError(f"{text} is no string")
    return ord(unquoted) if token.kind == "char" and len(unquoted) == 1 else unquoted
