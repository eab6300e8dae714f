"""Nodes that come and go, roles and drains: commands against a running controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from olol_tui.config import load
from olol_tui.errors import ConfigError, ModelNotFound, NodeError, OlolError, PlacementError
from olol_tui.fleet import drains
from olol_tui.fleet.commands import (
    AddNode,
    AdoptEndpoint,
    CancelProvision,
    Drain,
    GivePassphrase,
    PauseModel,
    Place,
    Provision,
    Reconnect,
    RemoveNode,
    RerouteRequest,
    SetCordon,
    SetRole,
    TrustHostKey,
)
from olol_tui.fleet.snapshot import GatewayState, Request
from olol_tui.models.names import canonical
from tests.contract.fleet_rig import Rig, rig, simulated_cluster

FILE = """\
# The fleet of the lab.
[nodes.n1]
local = true
simulated = { gpus = 2, load_bytes_s = 2e10 }  # small
"""
CLOSED_NODE = '\n[nodes.h1]\nhost = "127.0.0.1"\nport = 1\n'
CLOSED = {"host": "127.0.0.1", "port": 1}
"""A node that refuses at once."""


@asynccontextmanager
async def from_file(tmp_path: Path, text: str = FILE) -> AsyncIterator[Rig]:
    path = tmp_path / "state" / "cluster.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    async with rig(tmp_path / "state", load(path)) as fleet:
        await fleet.ready()
        yield fleet


def file_of(fleet: Rig) -> Path:
    return fleet.paths.config_file


async def test_a_node_is_added_and_removed_while_the_others_work(tmp_path: Path) -> None:
    async with from_file(tmp_path) as fleet:
        pids = [engine.pid for engine in fleet.node().engines]
        done = await fleet.do(AddNode("h1", host="127.0.0.1", port=1, simulated_gpus=4))
        assert "is in the configuration" in done.message
        await fleet.until(lambda f: any(n.name == "h1" and n.state == "failed" for n in f.nodes))
        text = file_of(fleet).read_text()
        assert "# The fleet of the lab." in text and "# small" in text and "[nodes.h1]" in text
        config = load(file_of(fleet)).nodes["h1"]
        assert config.simulated is not None and config.simulated.gpus == 4
        with pytest.raises(ConfigError, match="already has the node h1"):
            await fleet.controller.submit(AddNode("h1"))
        with pytest.raises(ConfigError, match="would not be valid"):
            await fleet.controller.submit(AddNode("H 1"))
        await fleet.do(SetCordon("h1"))
        await fleet.do(RemoveNode("h1"))
        assert [node.name for node in fleet.fleet.nodes] == ["n1"]
        assert "h1" not in file_of(fleet).read_text()
        assert not fleet.controller.wishes.is_cordoned("h1")
        assert [engine.pid for engine in fleet.node().engines] == pids


async def test_what_is_written_into_the_file_by_hand_is_followed(tmp_path: Path) -> None:
    async with from_file(tmp_path) as fleet:
        pids = [engine.pid for engine in fleet.node().engines]
        more = '\n[nodes.h1]\nhost = "127.0.0.1"\nport = 1\n'
        file_of(fleet).write_text(FILE + more)
        await fleet.until(lambda f: len(f.nodes) == 2)
        file_of(fleet).write_text(FILE + more + "\n[nodes.h2]\nhots = 5\n")
        wrong = await fleet.until(lambda f: any("hots" in a.message for a in f.alerts))
        assert len(wrong.nodes) == 2, "the fleet goes on as it was"
        file_of(fleet).write_text(FILE)
        await fleet.until(lambda f: len(f.nodes) == 1 and not f.alerts)
        assert [engine.pid for engine in fleet.node().engines] == pids
        file_of(fleet).write_text(FILE.replace("gpus = 2", "gpus = 3"))
        await fleet.until(lambda f: len(f.nodes[0].engines) == 3)
        await fleet.ready()


async def test_the_first_added_node_does_not_push_this_machine_out(tmp_path: Path) -> None:
    config = load(None)
    async with rig(tmp_path, config) as fleet:
        assert [node.name for node in fleet.fleet.nodes] == ["local"]
        await fleet.do(AddNode("h1", host="127.0.0.1", port=1))
        assert [node.name for node in fleet.fleet.nodes] == ["local", "h1"]
        assert load(file_of(fleet)).nodes["local"].local


async def test_a_fleet_that_is_made_up_is_not_written_down(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        with pytest.raises(OlolError, match="made up by the program"):
            await fleet.controller.submit(AddNode("h1"))
        assert not file_of(fleet).exists()


async def test_commands_for_what_is_not_there_say_so(tmp_path: Path) -> None:
    async with from_file(tmp_path) as fleet:
        submit = fleet.controller.submit
        with pytest.raises(NodeError, match="this machine: there is nothing to install"):
            await submit(Provision("n1"))
        with pytest.raises(NodeError, match="nothing is being done to n1"):
            await submit(CancelProvision("n1"))
        with pytest.raises(PlacementError, match="there is no node h9"):
            await submit(Drain("h9"))
        with pytest.raises(PlacementError, match="not reached over SSH"):
            await submit(TrustHostKey("n1", "SHA256:x"))
        with pytest.raises(PlacementError, match="n1 has no device gpu7"):
            await submit(SetRole("n1", "gpu7", "off"))
        with pytest.raises(PlacementError, match="no Ollama of somebody else"):
            await submit(AdoptEndpoint("n1", "http://127.0.0.1:11434"))
        with pytest.raises(OlolError, match="nobody asks"):
            await submit(GivePassphrase("/key", "secret"))
        await fleet.do(Reconnect("n1"))


async def test_roles_move_gpus_between_engines_of_their_own_and_a_shared_one(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path, simulated_cluster(gpus=3)) as fleet:
        await fleet.ready()
        pid = fleet.engine("n1/simulated-gpu2").pid
        await fleet.do(SetRole("n1", "gpu0", "shared"))
        assert [d.role for d in fleet.node().devices] == ["shared", "ollama", "ollama"]
        done = await fleet.do(SetRole("n1", "gpu1", "shared"))
        assert "n1/simulated-shared runs" in done.message
        assert fleet.engine("n1/simulated-shared").devices == tuple(
            device.uuid for device in fleet.node().devices[:2]
        )
        done = await fleet.do(SetRole("n1", "gpu1", "off"))
        assert "switched off" in done.message and "n1/simulated-shared ended" in done.message
        with pytest.raises(PlacementError, match="takes no model: switched off"):
            await fleet.controller.submit(Place("qwen3:8b", "n1", "gpu1"))
        await fleet.do(SetRole("n1", "gpu1", ""))
        assert fleet.node().devices[1].role == "ollama"
        assert fleet.engine("n1/simulated-gpu2").pid == pid


class Traffic:
    """The gateway, as far as a drain sees it."""

    def __init__(self, fleet: Rig) -> None:
        self.requests: dict[str, Request] = {}
        self.cancelled: list[str] = []
        self._fleet = fleet
        fleet.controller.attach_gateway(self._view, self._cancel)

    def begin(self, request_id: str, engine: str) -> None:
        self.requests[request_id] = Request(
            id=request_id, state="decode", model="m:1", dialect="ollama", path="/api/chat",
            client="me", age_s=0.0, engine=engine,
        )  # fmt: skip
        self._fleet.controller.poke()

    def end(self, request_id: str) -> None:
        del self.requests[request_id]
        self._fleet.controller.poke()

    def _view(self) -> tuple[tuple[Request, ...], GatewayState]:
        return tuple(self.requests.values()), GatewayState()

    def _cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        self.end(request_id)
        return True


async def test_a_drain_waits_for_the_last_request(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster(nodes=2)) as fleet:
        await fleet.ready()
        traffic = Traffic(fleet)
        traffic.begin("r1", "n1/simulated-gpu0")
        traffic.begin("r2", "n2/simulated-gpu0")
        await fleet.until(lambda f: len(f.requests) == 2)
        operation = (await fleet.controller.submit(Drain("n1"))).operation
        waiting = await fleet.until(
            lambda f: any(o.message == "waits for 1 request" for o in f.operations)
        )
        assert waiting.nodes[0].draining and waiting.nodes[0].cordoned
        assert not waiting.nodes[1].cordoned
        traffic.end("r1")
        done = await fleet.until(
            lambda f: any(o.id == operation and o.state == "done" for o in f.operations)
        )
        assert not done.nodes[0].draining and done.nodes[0].cordoned
        assert traffic.cancelled == []


async def test_a_drain_cuts_what_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drains, "DRAIN_S", 0.3)
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        traffic = Traffic(fleet)
        traffic.begin("r1", "n1/simulated-gpu0")
        await fleet.until(lambda f: f.requests)
        done = await fleet.do(Drain("n1"))
        assert "1 request had to be cut" in done.message
        assert traffic.cancelled == ["r1"]


async def test_a_role_waits_for_requests_on_its_gpu_and_no_others(tmp_path: Path) -> None:
    async with rig(tmp_path, simulated_cluster()) as fleet:
        await fleet.ready()
        traffic = Traffic(fleet)
        traffic.begin("r1", "n1/simulated-gpu0")
        traffic.begin("r2", "n1/simulated-gpu1")
        await fleet.until(lambda f: len(f.requests) == 2)
        operation = (await fleet.controller.submit(SetRole("n1", "gpu0", "off"))).operation
        waiting = await fleet.until(lambda f: fleet.engine("n1/simulated-gpu0").cordoned)
        assert not fleet.engine("n1/simulated-gpu1").cordoned
        assert waiting.nodes[0].devices[0].role == "ollama"
        await asyncio.sleep(0.3)
        assert fleet.engine("n1/simulated-gpu0").state == "ready"
        traffic.end("r1")
        await fleet.until(
            lambda f: any(o.id == operation and o.state == "done" for o in f.operations)
        )
        assert [engine.id for engine in fleet.node().engines] == ["n1/simulated-gpu1"]


async def test_a_paused_model_stays_paused_over_a_restart(tmp_path: Path) -> None:
    async with from_file(tmp_path) as fleet:
        model = fleet.node().library[0].name
        await fleet.do(PauseModel(model))
        assert fleet.fleet.paused == (canonical(model),)
        with pytest.raises(ModelNotFound, match="no node has no-such-model"):
            await fleet.controller.submit(PauseModel("no-such-model"))
        with pytest.raises(OlolError, match="there is no gateway"):
            await fleet.controller.submit(RerouteRequest("r1", to="n1"))
    async with from_file(tmp_path) as fleet:
        assert fleet.fleet.paused == (canonical(model),)
        await fleet.do(PauseModel(model, paused=False))
        assert fleet.fleet.paused == ()


async def test_a_change_of_the_file_waits_for_requests_and_may_be_taken_back(
    tmp_path: Path,
) -> None:
    async with from_file(tmp_path) as fleet:
        traffic = Traffic(fleet)
        pids = {engine.id: engine.pid for engine in fleet.node().engines}
        traffic.begin("r1", "n1/simulated-gpu0")
        traffic.begin("r2", "n1/simulated-gpu1")
        await fleet.until(lambda f: len(f.requests) == 2)

        # Other rates are another engine: it takes no new work, and waits for its request.
        other = FILE.replace("load_bytes_s = 2e10", "load_bytes_s = 1e10")
        file_of(fleet).write_text(other + CLOSED_NODE)
        waiting = await fleet.until(
            lambda f: any("waits for 2 requests" in o.message for o in f.operations)
        )
        assert all(engine.cordoned for engine in waiting.nodes[0].engines)
        file_of(fleet).write_text(FILE)
        back = await fleet.until(
            lambda f: len(f.nodes) == 1 and not any(o.state == "running" for o in f.operations)
        )
        assert not any(engine.cordoned for engine in back.nodes[0].engines)
        assert {engine.id: engine.pid for engine in fleet.node().engines} == pids

        # A role in the file touches one GPU's engine, and its neighbour computes on.
        file_of(fleet).write_text(FILE + '[nodes.n1.roles]\n1 = "off"\n')
        await fleet.until(lambda f: fleet.engine("n1/simulated-gpu1").cordoned)
        assert not fleet.engine("n1/simulated-gpu0").cordoned
        traffic.end("r2")
        await fleet.until(lambda f: len(f.nodes[0].engines) == 1)
        assert fleet.engine("n1/simulated-gpu0").pid == pids["n1/simulated-gpu0"]
        assert traffic.cancelled == [] and list(traffic.requests) == ["r1"]

        # A pool is only a word: nothing stops for it.
        file_of(fleet).write_text(FILE.replace("local = true", 'local = true\npool = "batch"'))
        await fleet.until(lambda f: f.nodes[0].pool == "batch" and len(f.nodes[0].engines) == 2)
        assert fleet.engine("n1/simulated-gpu0").pid == pids["n1/simulated-gpu0"]
