"""A tree filled in with values, as Go does it.

Values are None, bool, int, float, str, list, dict (a map), and `Record` (a struct, whose fields
are fixed). What Go would refuse at that place is a TemplateError here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Any

from olol_tui.models.gotemplate.functions import FUNCTIONS, is_true, printed
from olol_tui.models.gotemplate.parse import (
    Action,
    Branch,
    Call,
    Constant,
    Field,
    Function,
    Inner,
    Jump,
    Node,
    Operand,
    Pipe,
    TemplateError,
    Text,
    Tree,
    Variable,
)
from olol_tui.models.gotemplate.values import NO_VALUE, Record

_MAX_STEPS = 1_000_000
"""A template with a conversation that takes more runs away."""
_MAX_CALLS = 32


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def render(tree: Tree, data: Mapping[str, Any], today: date) -> str:
    """The text.

    Args:
        today: for templates that tell the model the date.

    Raises:
        TemplateError
    """
    run = _Run(tree, today)
    run.walk(tree.root, data)
    return "".join(run.out)


class _Run:
    def __init__(self, tree: Tree, today: date) -> None:
        self.out: list[str] = []
        self._tree = tree
        self._today = today
        self._variables: list[tuple[str, Any]] = []
        self._steps = 0
        self._calls = 0

    def walk(self, root: tuple[Node, ...], data: Any) -> None:
        """One template from its start, with `$` as its data."""
        before, self._variables = self._variables, [("$", data)]
        self._calls += 1
        if self._calls > _MAX_CALLS:
            raise TemplateError("templates call each other too deeply")
        try:
            self._list(root, data)
        except (_Break, _Continue) as error:
            raise TemplateError("break or continue outside of range") from error
        self._calls -= 1
        self._variables = before

    def _list(self, nodes: tuple[Node, ...], dot: Any) -> None:
        for node in nodes:
            self._step()
            match node:
                case Text(text):
                    self.out.append(text)
                case Action(pipe):
                    value = self._pipe(pipe, dot)
                    if not pipe.declares:
                        self.out.append(printed(value))
                case Branch():
                    self._branch(node, dot)
                case Jump(kind):
                    raise _Break if kind == "break" else _Continue
                case Call(name, given):
                    if name not in self._tree.defined:
                        raise TemplateError(f"template {name!r} is not defined")
                    data = None if given is None else self._pipe(given, dot)
                    self.walk(self._tree.defined[name], data)

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise TemplateError("the template does not come to an end")

    def _branch(self, node: Branch, dot: Any) -> None:
        mark = len(self._variables)
        try:
            if node.kind == "range":
                self._range(node, dot)
                return
            value = self._pipe(node.pipe, dot)
            if is_true(value):
                self._list(node.body, value if node.kind == "with" else dot)
            else:
                self._list(node.other, dot)
        finally:
            del self._variables[mark:]

    def _range(self, node: Branch, dot: Any) -> None:
        declares, assigns = node.pipe.declares, node.pipe.assigns
        bare = Pipe(node.pipe.commands)
        mark = len(self._variables)
        is_empty = True
        for key, value in _items(self._pipe(bare, dot)):
            is_empty = False
            self._step()
            given = (value,) if len(declares) == 1 else (key, value)
            for name, one in zip(declares, given, strict=False):
                self._set(name, one, assigns)
            try:
                self._list(node.body, value)
            except _Continue:
                pass
            except _Break:
                break
            finally:
                del self._variables[mark:]
        if is_empty:
            self._list(node.other, dot)

    def _set(self, name: str, value: Any, assigns: bool) -> None:
        if not assigns:
            self._variables.append((name, value))
            return
        for index in reversed(range(len(self._variables))):
            if self._variables[index][0] == name:
                self._variables[index] = (name, value)
                return
        raise TemplateError(f"undefined variable {name}")

    def _pipe(self, pipe: Pipe, dot: Any) -> Any:
        value: Any = NO_VALUE
        for command in pipe.commands:
            value = self._command(command, dot, value)
        for name in pipe.declares:
            self._set(name, value, pipe.assigns)
        return value

    def _command(self, command: tuple[Operand, ...], dot: Any, last: Any) -> Any:
        first, *others = command
        if isinstance(first, Function):
            piped = [] if last is NO_VALUE else [lambda: last]
            return self._call(first.name, [*(self._later(o, dot) for o in others), *piped])
        if others or last is not NO_VALUE:
            raise TemplateError("arguments for what is no function")
        return self._value(first, dot)

    def _later(self, operand: Operand, dot: Any) -> Callable[[], Any]:
        return lambda: self._value(operand, dot)

    def _call(self, name: str, given: list[Callable[[], Any]]) -> Any:
        if name in ("and", "or"):
            # The first that decides is the result; those after it are not looked at.
            if not given:
                raise TemplateError(f"{name} of nothing")
            value: Any = None
            for one in given:
                value = one()
                if is_true(value) == (name == "or"):
                    break
            return value
        function = FUNCTIONS.get(name)
        if function is None:
            raise TemplateError(f"function {name!r} is not defined")
        return function([one() for one in given], self._today)

    def _value(self, operand: Operand, dot: Any) -> Any:
        match operand:
            case Field(names):
                return _fields(dot, names)
            case Variable(name, names):
                for known, value in reversed(self._variables):
                    if known == name:
                        return _fields(value, names)
                raise TemplateError(f"undefined variable {name}")
            case Constant(value):
                return value
            case Inner(pipe, names):
                return _fields(self._pipe(pipe, dot), names)
            case Function(name):
                return self._call(name, [])


def _fields(value: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        if isinstance(value, Record):
            if name not in value.fields:
                raise TemplateError(f"there is no field {name}")
            value = value.fields[name]
        elif isinstance(value, Mapping):
            value = value.get(name)
        else:
            raise TemplateError(f"{printed(value)[:40]!r} has no field {name}")
    return value


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """Index and value, key and value in the order of keys, or so many numbers."""
    if isinstance(value, list):
        yield from enumerate(value)
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield key, value[key]
    elif isinstance(value, int) and not isinstance(value, bool):
        for number in range(value):
            yield number, number
    elif value is not None:
        raise TemplateError(f"range over {printed(value)[:40]!r}")
