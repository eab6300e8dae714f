"""Errors that an agent answers with: an HTTP status, a title, what happened, what to do."""

from __future__ import annotations

from typing import Any


class AgentError(Exception):
    """Base; becomes `{"error": {"title", "message", "hint"}}` with its status."""

    status = 500
    title = "The agent failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def body(self) -> dict[str, Any]:
        return {"error": {"title": self.title, "message": self.message, "hint": self.hint}}


class BadRequest(AgentError):
    status = 400
    title = "The request is not valid"


class NotFound(AgentError):
    status = 404
    title = "Not found"


class MethodNotAllowed(AgentError):
    status = 405
    title = "The method is not allowed here"


class TooLarge(AgentError):
    status = 413
    title = "The request is too large"


class Conflict(AgentError):
    status = 409
    title = "Not in this state"


class Held(Conflict):
    """Another controller manages the engines here."""

    title = "Managed by somebody else"

    def __init__(self, message: str, hint: str, name: str, since_wall: float) -> None:
        super().__init__(message, hint)
        self.name = name
        self.since_wall = since_wall

    def body(self) -> dict[str, Any]:
        body = super().body()
        body["held_by"] = {"name": self.name, "since_wall": self.since_wall}
        return body


class StartError(AgentError):
    """The agent itself cannot start: socket, state directory, another agent."""

    title = "The agent cannot start"


class EngineError(AgentError):
    """An engine cannot be started as described; the reason is shown in its status."""

    status = 400
    title = "The engine cannot be started"


class Malformed(AgentError):
    """A file is not what its name says."""

    status = 400
    title = "The file is malformed"
