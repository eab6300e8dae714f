"""Takes the operator's commands: checks what can be checked at once, and starts the rest."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from olol_tui.config import EndpointConfig
from olol_tui.errors import ModelNotFound, NodeError, OlolError, PlacementError, ReadOnly
from olol_tui.fleet.cluster_file import ClusterFile
from olol_tui.fleet.commands import (
    AddNode,
    AdoptEndpoint,
    AnyCommand,
    CancelProvision,
    CancelRequest,
    Drain,
    GivePassphrase,
    Move,
    PauseModel,
    Place,
    Provision,
    Reconnect,
    RemoveNode,
    RerouteRequest,
    RestartEngine,
    RetrySplit,
    SetCordon,
    SetPin,
    SetRole,
    TrustHostKey,
    Uninstall,
    Unload,
)
from olol_tui.fleet.crew import Crew, adopted_name
from olol_tui.fleet.desk import Desk
from olol_tui.fleet.drains import Drains
from olol_tui.fleet.live_requests import LiveRequests
from olol_tui.fleet.maintenance import Maintenance
from olol_tui.fleet.placing import Placer
from olol_tui.fleet.provisions import Provisions
from olol_tui.fleet.questions import Questions
from olol_tui.fleet.reload import Reload
from olol_tui.fleet.renewal import Renewal
from olol_tui.fleet.roles import Roles
from olol_tui.fleet.splits import Splits
from olol_tui.models.names import canonical


class Orders:
    """Args:
    live: what can be done to requests.
    """

    def __init__(
        self,
        desk: Desk,
        crew: Crew,
        *,
        placer: Placer,
        splits: Splits,
        reload: Reload,
        maintenance: Maintenance,
        questions: Questions,
        file: ClusterFile,
        live: LiveRequests,
    ) -> None:
        self._desk = desk
        self._crew = crew
        self._placer = placer
        self._splits = splits
        self._reload = reload
        self._maintenance = maintenance
        self._questions = questions
        self._file = file
        self._live = live
        self._drains = Drains(desk, crew, lambda request: live.cancel(request))
        self._roles = Roles(desk, crew, self._drains)
        self._provisions = Provisions(
            desk, crew, self._drains, Renewal(desk, self._drains, maintenance)
        )

    async def take(self, command: AnyCommand) -> str:
        """Returns the id of the operation.

        Raises:
            OlolError: refused at once, with the reason.
        """
        self._check_ours(command)
        match command:
            case Place():
                return self._placer.place(command)
            case Unload():
                return self._splits.unload(command) or self._placer.unload(command)
            case Move():
                return self._placer.move(command)
            case SetPin():
                return self._placer.set_pin(command)
            case CancelRequest():
                return self._cancel(command.request)
            case RerouteRequest():
                return self._reroute(command)
            case PauseModel():
                return self._pause(command.model, command.paused)
            case RetrySplit():
                return self._splits.retry(command.model)
            case RestartEngine():
                return self._maintenance.restart(command.engine)
            case SetCordon():
                return self._cordon(command.node, command.cordoned)
            case Drain():
                return self._drains.node(command.node)
            case SetRole():
                return self._roles.set(command)
            case Provision():
                return self._provisions.provision(command.node)
            case CancelProvision():
                return self._provisions.cancel(command.node)
            case Uninstall():
                return self._provisions.uninstall(command.node)
            case _:
                return await self._at_once(command)

    async def _at_once(self, command: AnyCommand) -> str:
        """What is done when this returns."""
        match command:
            case AddNode():
                return await self._add(command)
            case RemoveNode():
                return await self._remove(command.node)
            case TrustHostKey():
                return await self._trust(command)
            case GivePassphrase():
                self._questions.answer(command.path, command.passphrase)
                given = "given" if command.passphrase is not None else "not given"
                return self._desk.book.note(f"passphrase of {command.path}", given)
            case Reconnect():
                return self._reconnect(command.node)
            case AdoptEndpoint():
                return await self._adopt(command)
        raise AssertionError(f"nobody carries out {command!r}")

    def _check_ours(self, command: AnyCommand) -> None:
        """Raises ReadOnly: another controller manages a node that the command would change."""
        match command:
            case Move():
                names = [command.node, command.to_node]
            case RestartEngine():
                names = [command.engine.partition("/")[0]]
            case Place() | Unload() | SetPin() | SetRole() | Provision() | Uninstall():
                names = [command.node]
            case _:
                return
        for node in self._desk.nodes:
            if node.name in names and node.managed_by:
                raise ReadOnly(
                    f"{node.name} is managed by {node.managed_by}",
                    hint="It becomes ours when that console has ended.",
                )

    def _cancel(self, request: str) -> str:
        if not self._live.cancel(request):
            raise OlolError(
                f"there is no live request {request}",
                title="The request cannot be cancelled",
                hint="It may have ended just now.",
            )
        return self._desk.book.note(f"cancel {request}", "cancelled")

    def _reroute(self, command: RerouteRequest) -> str:
        self._live.reroute(command.request, command.to, command.away)
        way = f"to {command.to}" if command.to else f"away from {command.away}"
        if not command.to and not command.away:
            way = "to wherever it is served first"
        return self._desk.book.note(f"send {command.request} {way}", "queued for it")

    def _pause(self, model: str, paused: bool) -> str:
        name = canonical(model)
        held = any(
            canonical(entry.name) == name for node in self._desk.nodes for entry in node.library
        )
        # What was paused can be resumed, although its last copy was deleted meanwhile.
        if not held and (paused or name not in self._desk.wishes.paused_models):
            raise ModelNotFound(f"no node has {model}")
        self._desk.wishes.pause_model(name, paused)
        word = "pause" if paused else "resume"
        told = "its requests wait until it is resumed" if paused else "its requests go on"
        return self._desk.book.note(f"{word} {name}", told)

    def _cordon(self, node: str, cordoned: bool) -> str:
        member = self._crew.member(node)
        self._desk.wishes.set_cordon(node, cordoned)
        member.replan()
        word = "cordon" if cordoned else "uncordon"
        takes = "takes no new work" if cordoned else "takes work again"
        return self._desk.book.note(f"{word} {node}", f"{node} {takes}")

    async def _add(self, command: AddNode) -> str:
        told: dict[str, Any] = {"host": command.host, "user": command.user, "port": command.port}
        fields = {key: value for key, value in told.items() if value}
        if command.simulated_gpus is not None:
            simulated = {"gpus": command.simulated_gpus, "vram": command.simulated_vram_bytes}
            fields["simulated"] = {key: v for key, v in simulated.items() if v is not None}
        await self._file.add_node(command.name, fields)
        return self._desk.book.note(
            f"add {command.name}", f"{command.name} is in the configuration"
        )

    async def _remove(self, node: str) -> str:
        self._crew.member(node)
        self._provisions.forget(node)
        await self._file.remove_node(node)
        # It may still compute: nothing that is wished for there may end it.
        self._reload.when_gone(node, lambda: self._desk.wishes.forget_node(node))
        return self._desk.book.note(
            f"remove {node}", f"{node} is out of the configuration; what runs there goes on"
        )

    async def _trust(self, command: TrustHostKey) -> str:
        road = self._crew.remote_road(command.node)
        host = await road.trust(command.fingerprint)
        # Others may wait for the same host: a jump host, another name of it.
        for other in self._crew.remote_roads():
            question = other.facts.question
            if question is not None and question.fingerprint == command.fingerprint:
                other.link.retry()
        return self._desk.book.note(f"trust {host}", f"{command.fingerprint} is trusted")

    def _reconnect(self, node: str) -> str:
        member = self._crew.member(node)
        for road in self._crew.remote_roads():
            if road.name == node:
                road.link.retry()
        member.try_now()
        return self._desk.book.note(f"reconnect {node}", "tries now")

    async def _adopt(self, command: AdoptEndpoint) -> str:
        session = self._crew.session(command.node)
        node = next(one for one in self._desk.nodes if one.name == command.node)
        wishes = self._desk.wishes
        is_adopted = command.url in wishes.adopted_on(command.node)
        name = adopted_name(command.node, command.url)
        if command.adopted and not is_adopted:
            if command.url not in node.foreign:
                raise PlacementError(
                    f"no Ollama of somebody else was found at {command.url} on {command.node}",
                    hint=f"Found there: {', '.join(node.foreign) or 'none'}",
                )
            try:
                EndpointConfig(url=command.url)
            except ValidationError as error:
                raise NodeError(f"{command.url} cannot be used: {error}") from error
            if any(one.name == name for one in self._desk.nodes):
                raise PlacementError(f"there is {name} already")
        elif not command.adopted and not is_adopted:
            raise PlacementError(f"{command.url} on {command.node} is not used")
        wishes.set_adopted(session.name, command.url, command.adopted)
        await self._crew.apply(self._crew.config)
        where = urlsplit(command.url).netloc
        told = f"used as {name}" if command.adopted else "used no more"
        return self._desk.book.note(f"{where} of {command.node}", told)
