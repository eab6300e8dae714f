"""A conversation as one prompt, by a template of Ollama's, in Ollama's way.

Templates come in two forms. Those that know `.Messages` are filled in once. Older ones know one
`.System`, `.Prompt` and `.Response`: they are filled in for each turn, and for the last one only
up to where the model is to go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Any

from olol_tui.models.gotemplate.parse import (
    Action,
    Branch,
    Call,
    Field,
    Inner,
    Node,
    Operand,
    Pipe,
    Tree,
    Variable,
    parse,
)
from olol_tui.models.gotemplate.render import render
from olol_tui.models.gotemplate.values import Record

_RESPONSE = Action(Pipe(((Field(("Response",)),),)))


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, plain text."""

    role: str
    content: str
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether the model is to think first; None: it was not asked."""

    wanted: bool | None = None
    level: str = ""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template's text, read."""

    tree: Tree
    last: Tree
    """The same up to where the model is to go on."""
    names: frozenset[str]
    """Fields that it looks at."""

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, source: str) -> ChatTemplate:
        """Raises TemplateError."""
        tree = parse(source)
        names = frozenset(
            name for root in (tree.root, *tree.defined.values()) for name in _names(root)
        )
        if not names & {"messages", "response"}:
            tree = replace(tree, root=(*tree.root, _RESPONSE))
        return cls(tree, Tree(_cut(tree.root)[0], tree.defined), names)

    def prompt(self, messages: Sequence[Message], thinking: Thinking, today: date) -> str:
        """What the model is to continue.

        Raises:
            TemplateError
        """
        merged = _merged(messages)
        common = {
            "Think": bool(thinking.wanted),
            "ThinkLevel": thinking.level,
            "IsThinkSet": thinking.wanted is not None,
        }
        if "messages" in self.names:
            system = "\n\n".join(one.content for one in messages if one.role == "system")
            data = {
                "System": system,
                "Messages": [_record(one) for one in merged],
                "Tools": [],
                "Response": "",
            }
            return render(self.tree, data | common, today)
        return self._turns(merged, common, today)

    def _turns(self, messages: Sequence[Message], common: Mapping[str, Any], today: date) -> str:
        said: list[str] = []
        turn = {"System": "", "Prompt": "", "Response": ""}

        def fill(tree: Tree) -> None:
            said.append(render(tree, {**turn, **common}, today))
            turn.update(System="", Prompt="", Response="")

        for one in messages:
            match one.role:
                case "system":
                    if turn["Prompt"] or turn["Response"]:
                        fill(self.tree)
                    turn["System"] = one.content
                case "user":
                    if turn["Response"]:
                        fill(self.tree)
                    turn["Prompt"] = one.content
                case "assistant":
                    turn["Response"] = one.content
        fill(self.last)
        return "".join(said)


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one."""
    merged: list[Message] = []
    for one in messages:
        if merged and merged[-1].role == one.role and one.role != "tool":
            both = f"{merged[-1].content}\n\n{one.content}"
            merged[-1] = replace(merged[-1], content=both)
        else:
            merged.append(one)
    return merged


def _record(message: Message) -> Record:
    return Record(
        {
            "Role": message.role,
            "Content": message.content,
            "Thinking": message.thinking,
            "Images": [],
            "ToolCalls": [],
            "ToolName": "",
            "ToolCallID": "",
        }
    )


def _names(nodes: Sequence[Node]) -> list[str]:
    """Every field that is looked at, in lower case."""
    found: list[str] = []
    for node in nodes:
        match node:
            case Action(pipe) | Call(_, Pipe() as pipe):
                found += _names_in(pipe)
            case Branch(_, pipe, body, other):
                found += [*_names_in(pipe), *_names(body), *_names(other)]
    return found


def _names_in(pipe: Pipe) -> list[str]:
    found: list[str] = []
    for operand in (operand for command in pipe.commands for operand in command):
        match operand:
            case Field(names) | Variable(_, names):
                found += [name.lower() for name in names]
            case Inner(inner, _):
                found += _names_in(inner)
    return found


def _cut(nodes: Sequence[Node]) -> tuple[tuple[Node, ...], bool]:
    """Without all that follows the first place where the reply is put; whether there is one."""
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Branch):
            body, is_cut = _cut(node.body)
            other, is_cut_there = ((), True) if is_cut else _cut(node.other)
            kept.append(replace(node, body=body, other=other))
            if is_cut or is_cut_there:
                return tuple(kept), True
        else:
            kept.append(node)
            if isinstance(node, Action) and _has_response(node.pipe):
                return tuple(kept), True
    return tuple(kept), False


def _has_response(pipe: Pipe) -> bool:
    def holds(operand: Operand) -> bool:
        return isinstance(operand, Field) and "Response" in operand.names

    return any(holds(operand) for command in pipe.commands for operand in command)
