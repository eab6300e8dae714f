"""Builds one session for each node and endpoint of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import httpx

from olol_tui.config import ClusterConfig, NodeConfig
from olol_tui.errors import NodeError
from olol_tui.fleet.endpoints import EndpointSession
from olol_tui.fleet.local import LocalRoad
from olol_tui.fleet.member import Member
from olol_tui.fleet.node_session import Library, NodeSession
from olol_tui.fleet.road import Road
from olol_tui.fleet.wishes import Wishes
from olol_tui.paths import Paths


def build_members(
    config: ClusterConfig,
    paths: Paths,
    *,
    wishes: Wishes,
    clock: Callable[[], float],
    changed: Callable[[], None],
    expires_at: Callable[[str], str],
    beat_s: float,
) -> dict[str, Member]:
    """All members by name, in the order of the configuration, endpoints last."""
    files = tuple((name, model.path, model.chat_template) for name, model in config.models.items())
    members: dict[str, Member] = {}
    for name, node in config.nodes.items():
        is_real_local = node.local and node.simulated is None
        library = Library(
            files=files if is_real_local else (),
            user_dir=str(paths.models_dir) if is_real_local else "",
        )
        members[name] = NodeSession(
            name,
            node,
            _road(name, node, paths),
            wishes=wishes,
            library=library,
            clock=clock,
            changed=changed,
            expires_at=expires_at,
            beat_s=beat_s,
        )
    for name, endpoint in config.endpoints.items():
        members[name] = EndpointSession(name, endpoint, wishes=wishes, clock=clock, changed=changed)
    return members


def _road(name: str, node: NodeConfig, paths: Paths) -> Road:
    if not node.local:
        return _NoRoad(name, node.host)
    simulated: dict[str, str | int | float] | None = None
    if node.simulated is not None:
        simulated = {
            "gpus": node.simulated.gpus,
            "vram_bytes": node.simulated.vram,
            "name": node.simulated.name,
        }
    return LocalRoad(name, paths, simulated)


class _NoRoad:
    """The road to a node that this program cannot reach: every step says so."""

    def __init__(self, name: str, host: str) -> None:
        self._name = name
        self._host = host

    @property
    def kind(self) -> Literal["local", "ssh"]:
        return "ssh"

    async def ensure_agent(self) -> None:
        raise self._error()

    def agent_transport(self) -> httpx.AsyncBaseTransport:
        raise self._error()

    def engine_transport(self) -> httpx.AsyncBaseTransport:
        raise self._error()

    async def gone(self, timeout_s: float) -> bool:
        return True

    def _error(self) -> NodeError:
        return NodeError(
            f"{self._name} ({self._host}): this version manages only this machine, "
            "not nodes over SSH",
            hint=f"If an Ollama runs there: [endpoints.{self._name}] url = "
            f'"http://{self._host}:11434"',
        )
