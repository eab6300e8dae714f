"""Jobs for provisioning a test host, with what a console would bring."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from olol_tui import agent_zip
from olol_tui.agent import PROTOCOL, __version__
from olol_tui.provision.plan import Wanted
from olol_tui.provision.runner import Job, Opener
from olol_tui.provision.steps import StepResult, Wishes
from olol_tui.provision.upload import Source

SIMULATED = {"gpus": 2, "vram_bytes": 24 * 2**30, "name": "SIM 24G"}


def agent_file(folder: Path) -> Source:
    """The agent that this source tree builds."""
    data = agent_zip.build()
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"{digest}.pyz"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return Source(path, digest, len(data))


CONTROLLER_ID = "test-controller"
"""Who sets the desired engines in these tests."""


def wishes(agent: Source, *, directory: str = "", **wanted: Any) -> Wishes:
    wanted.setdefault("simulated", SIMULATED)
    wanted.setdefault("controller_id", CONTROLLER_ID)
    return Wishes(
        Wanted(
            agent_sha256=agent.sha256,
            agent_size=agent.size,
            agent_version=__version__,
            protocol=PROTOCOL,
            **wanted,
        ),
        agent,
        directory,
    )


def job(opener: Opener, what: Wishes, node: str = "h1") -> Job:
    return Job(node, f"{node} in a test", opener, what)


class Told:
    """Every step as it was told."""

    def __init__(self, react: Callable[[StepResult], None] | None = None) -> None:
        self.steps: list[StepResult] = []
        self._react = react

    def __call__(self, node: str, step: StepResult) -> None:
        self.steps.append(step)
        if self._react is not None:
            self._react(step)


class AgentCalls:
    """The agent of a host that is this machine, by its socket."""

    def __init__(self, socket: str) -> None:
        transport = httpx.HTTPTransport(uds=socket)
        self.http = httpx.Client(transport=transport, base_url="http://agent", timeout=30)

    def __enter__(self) -> AgentCalls:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def hello(self) -> dict[str, Any]:
        return self.http.get("/v1/hello").raise_for_status().json()

    def engines(self) -> list[dict[str, Any]]:
        return self.http.get("/v1/engines").raise_for_status().json()["engines"]

    def run_simulated(self, *ids: str, timeout_s: float = 60) -> None:
        """Simulated engines, one a device, until all are ready."""
        devices = self.http.get("/v1/inventory").raise_for_status().json()["devices"]
        specs = [
            {"id": one, "kind": "simulated", "devices": [device["uuid"]]}
            for one, device in zip(ids, devices, strict=False)
        ]
        body = {"generation": 1, "engines": specs}
        self.http.put(
            "/v1/engines", json=body, headers={"x-olol-controller": f"{CONTROLLER_ID} a test"}
        ).raise_for_status()
        deadline = time.monotonic() + timeout_s
        while any(engine["state"] != "ready" for engine in self.engines()):
            assert time.monotonic() < deadline, self.engines()
            time.sleep(0.05)
