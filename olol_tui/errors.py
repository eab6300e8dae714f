"""Every error a user can meet: a title, what happened, and what to do next.

OlolError
├── ConfigError      cluster.toml is wrong: file, line, field, what was expected
├── NodeError        a node or its agent cannot do what was asked
├── EngineError      an engine is missing, failed or refused
├── PlacementError   a model cannot be placed, moved or unloaded as asked
├── ModelNotFound    nobody has the model
├── PortTaken        the address is in use, and by whom
├── ReadOnly         the command changes something and the session is read-only
└── LinkError        the core we talk to is gone
"""

from __future__ import annotations


class OlolError(Exception):
    """Base of all errors that are shown to a user.

    Attributes:
        title: one line, what failed.
        message: what happened and where.
        hint: what to do next; may be empty.
    """

    title = "Something failed"

    def __init__(self, message: str, *, hint: str = "", title: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if title is not None:
            self.title = title

    def __str__(self) -> str:
        return self.message

    def lines(self) -> list[str]:
        """Title, message and hint as plain text lines, without empty ones."""
        return [line for line in (f"{self.title}: {self.message}", self.hint) if line]


class ConfigError(OlolError):
    title = "The configuration is not valid"


class NodeError(OlolError):
    title = "The node cannot do that"


class EngineError(OlolError):
    title = "The engine failed"


class PlacementError(OlolError):
    title = "The model cannot be placed"


class ModelNotFound(OlolError):
    title = "The model was not found"


class PortTaken(OlolError):
    title = "The port is taken"


class ReadOnly(OlolError):
    title = "Read-only"


class LinkError(OlolError):
    title = "The connection is lost"


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real exception of nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
