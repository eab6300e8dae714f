"""From the fleet as it is to the wish for one split: what there is, the plan, the roads.

Asks agents and links what only they know (the shape of the model, keys, addresses); the
planning itself is pure and elsewhere.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec

from olol_tui.errors import ModelNotFound, NodeError, PlacementError
from olol_tui.fleet import split_binaries
from olol_tui.fleet.crew import Crew
from olol_tui.fleet.mesh_links import MeshLinks
from olol_tui.fleet.snapshot import Device, Engine, Mesh, Model, Node
from olol_tui.fleet.split_wish import PartWish, SplitWish, Way, split_id
from olol_tui.fleet.wishes import Wishes
from olol_tui.models.memory import Settings, load_key
from olol_tui.models.names import canonical, same
from olol_tui.models.shape import Shape, ShapeError, shape_of
from olol_tui.models.store_layers import accepting_prompts, layers_of
from olol_tui.placement.again import plan_again
from olol_tui.placement.report import Report as FitReport
from olol_tui.placement.report import report, with_fleet
from olol_tui.placement.split import Ground, Refusal, Share, SplitDevice, SplitPlan, plan

MARGIN_BYTES = 2**30
MARGIN_SHARE = 0.05
"""Left free on a device without `vram_limit`: other programs take memory without asking."""

_LESS_THAN_ALL = 0.75
"""Of what the whole takes, what one device may hold where it is to lie on several."""


@dataclass(frozen=True, slots=True)
class Victim:
    """An idle model that goes so that its memory can be lent."""

    node: str
    device: Device
    engine: Engine
    model: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A plan that can be carried out."""

    wish: SplitWish
    victims: tuple[Victim, ...]


class Planning:
    """Args:
    nodes: the fleet's nodes as they are now.
    busy: canonical names of the models that an engine computes on now, by engine id.
    """

    def __init__(
        self,
        crew: Crew,
        wishes: Wishes,
        nodes: Callable[[], tuple[Node, ...]],
        busy: Callable[[str], frozenset[str]],
    ) -> None:
        self._crew = crew
        self._wishes = wishes
        self._nodes = nodes
        self._busy = busy
        self._links = MeshLinks(crew, wishes.links)

    async def draft(
        self,
        name: str,
        *,
        num_ctx: int | None,
        keep_alive_s: float,
        without: Collection[str] = (),
        spread: bool = False,
    ) -> Draft:
        """A split of this model over what is free, or can be freed.

        Args:
            without: nodes that are not to take part.
            spread: over several devices even where one would do.

        Raises:
            ModelNotFound, NodeError: no node has it, or none says what it is made of.
            PlacementError: it fits nowhere; with numbers.
        """
        nodes = [node for node in self._nodes() if _takes_part(node) and node.name not in without]
        holders = [(node, model) for node in nodes if (model := _held(node, name)) is not None]
        heads = [(node, model) for node, model in holders if node.heads]
        if not heads:
            raise _no_head(name, holders, self._nodes())
        facts, shape = await self._shape(heads)
        if shape.loads is False:
            raise PlacementError(shape.caveat)
        context = num_ctx or self._crew.config.nodes[heads[0][0].name].num_ctx
        slots = self._crew.config.nodes[heads[0][0].name].slots or 1
        blobs = {node.name for node, _ in heads}
        links = await self._links.between(blobs, (node.name for node in nodes if node.lends))
        found: SplitPlan | Refusal = Refusal("no device can be lent", 0, 0)
        for evict in (False, True):
            devices = list(self._devices(nodes, blobs, name, evict=evict))
            work = partial(
                plan, shape, ctx=context, slots=slots, links=links, learned=self._wishes.learned
            )
            before = self._wishes.splits.place(split_id(name))
            found = await asyncio.to_thread(plan_again, work, devices, before)
            if spread and isinstance(found, SplitPlan) and len(found.shares) == 1:
                limit = int(found.total_bytes * _LESS_THAN_ALL)
                smaller = [replace(one, free_bytes=min(one.free_bytes, limit)) for one in devices]
                several = await asyncio.to_thread(work, smaller)
                found = several if isinstance(several, SplitPlan) else found
            if isinstance(found, SplitPlan):
                break
        if isinstance(found, Refusal):
            hint = "" if any(node.lends for node in nodes) else split_binaries.HOW_TO_GET
            raise PlacementError(f"{canonical(name)} fits nowhere: {found.message}", hint=hint)
        model = next(model for node, model in heads if node.name == found.head.device.node)
        path = model.path or str(facts[found.head.device.node]["path"])
        wish = await self._write(found, model, path, context, slots, keep_alive_s)
        wish = _with_layers(wish, facts[found.head.device.node])
        load = load_key(shape, found.settings)
        wish = msgspec.structs.replace(wish, architecture=shape.architecture, load=load)
        return Draft(wish, tuple(self._victims(found, nodes, name)))

    async def fit(
        self, name: str, *, num_ctx: int = 0, slots: int = 0, cache_type: str = "f16"
    ) -> FitReport:
        """What a model takes, where it fits now, and the split it would get; changes nothing.

        Args:
            num_ctx, slots: 0 for those of the node that has the model.

        Raises:
            ModelNotFound, NodeError: no node has it, or none says what it is made of.
            PlacementError: it cannot be planned.
        """
        nodes = [
            node for node in self._nodes() if node.kind != "endpoint" and node.state == "ready"
        ]
        holders = [(node, model) for node in nodes if (model := _held(node, name)) is not None]
        if not holders:
            raise _no_head(name, (), self._nodes())
        _, shape = await self._shape(holders)
        config = self._crew.config.nodes[holders[0][0].name]
        try:
            settings = Settings(num_ctx or config.num_ctx, slots or config.slots or 1, cache_type)
        except ValueError as error:
            raise PlacementError(str(error)) from error
        blobs = {node.name for node, _ in holders}
        heads = {node.name for node, _ in holders if node.heads}
        links = await self._links.between(heads, (node.name for node in nodes if node.lends))
        learned = self._wishes.learned
        every = list(self._devices(nodes, blobs, name, evict=False, lent_only=False))
        lends = {node.name for node in nodes if node.lends}
        lent = [one for one in every if one.node in lends]
        found: SplitPlan | Refusal = Refusal("no node that has the file has a llama-server", 0, 0)
        if heads:
            ground = Ground(lent, links, learned)
            found = await asyncio.to_thread(ground.plan, shape, settings, heads)
        bare = report(canonical(name), shape, settings, learned)
        return with_fleet(bare, every, found, learned)

    # -- what there is

    async def _shape(
        self, heads: Iterable[tuple[Node, Model]]
    ) -> tuple[dict[str, dict[str, Any]], Shape]:
        """Facts of each node that could be the head, and the shape by the first of them."""
        facts: dict[str, dict[str, Any]] = {}
        trouble: list[str] = []
        for node, model in heads:
            try:
                facts[node.name] = await self._crew.session(node.name).shape(model)
            except NodeError as error:
                trouble.append(f"{node.name}: {error}")
        if not facts:
            raise NodeError("; ".join(trouble))
        known = next(iter(facts.values()))
        try:
            return facts, shape_of(known)
        except ShapeError as error:
            raise PlacementError(f"it cannot be planned: {error}") from error

    def _devices(
        self,
        nodes: Iterable[Node],
        blobs: Collection[str],
        name: str,
        *,
        evict: bool,
        lent_only: bool = True,
    ) -> Iterable[SplitDevice]:
        for node in nodes:
            if lent_only and not node.lends:
                continue
            own = self._own(node.name, name)
            for device in node.devices:
                free = self._free(node, device, own.get(device.uuid, 0), evict=evict)
                if device.role != "off" and not device.error and free > 0:
                    yield SplitDevice(
                        node=node.name,
                        uuid=device.uuid,
                        label=device.label,
                        free_bytes=free,
                        vendor=device.vendor,
                        has_blob=node.name in blobs,
                    )

    def _own(self, node: str, name: str) -> dict[str, int]:
        """What the split that is to be replaced holds there, by UUID."""
        wish = self._wishes.splits.get(split_id(name))
        parts = [part for part in wish.parts if part.node == node] if wish else []
        return {part.device: part.planned_bytes for part in parts}

    def _free(self, node: Node, device: Device, own: int, *, evict: bool) -> int:
        if device.free_bytes is None or device.vram_bytes is None:
            return 0
        # What is reserved for splits is taken already, by the device's own account.
        free = min(device.vram_bytes, device.free_bytes + own)
        if not self._is_limited(node.name, device):
            free -= max(MARGIN_BYTES, int(device.vram_bytes * MARGIN_SHARE))
        if evict:
            free += sum(one.bytes for one in self._idle(node, device))
        return free

    def _is_limited(self, node: str, device: Device) -> bool:
        config = self._crew.config.nodes.get(node)
        return config is not None and config.vram_limit is not None

    def _idle(self, node: Node, device: Device) -> Iterable[Victim]:
        """Models on the device that may go: not pinned, not busy, no part of another split."""
        heads = self._wishes.splits.heads()
        for engine in node.engines:
            if device.uuid not in engine.devices or engine.kind == "endpoint":
                continue
            if engine.id in heads:
                continue
            running = self._busy(engine.id)
            for one in engine.loaded:
                if not one.pinned and canonical(one.name) not in running:
                    size = one.vram_bytes or one.size_bytes
                    yield Victim(node.name, device, engine, canonical(one.name), size)

    def _victims(self, found: SplitPlan, nodes: Iterable[Node], name: str) -> Iterable[Victim]:
        """Idle models that must go from the plan's devices, the largest first."""
        by_name = {node.name: node for node in nodes}
        for share in found.shares:
            node = by_name[share.device.node]
            device = next(one for one in node.devices if one.uuid == share.device.uuid)
            own = self._own(node.name, name).get(device.uuid, 0)
            missing = share.total_bytes - self._free(node, device, own, evict=False)
            for victim in sorted(self._idle(node, device), key=lambda one: -one.bytes):
                if missing <= 0:
                    break
                missing -= victim.bytes
                yield victim

    # -- what shall be

    async def _write(
        self,
        found: SplitPlan,
        model: Model,
        path: str,
        num_ctx: int,
        slots: int,
        keep_alive_s: float,
    ) -> SplitWish:
        config = self._crew.config
        head = found.head.device.node
        name = canonical(model.name)
        slug = re.sub(r"[^a-z0-9.]+", "-", name).strip("-")
        parts = [
            await self._part(share, head, slug)
            for share in found.shares
            if share.layers or share.has_output
        ]
        uses_ssh = any(part.way is not None and part.way.road == "ssh" for part in parts)
        return SplitWish(
            id=split_id(name),
            model=model.name,
            node=head,
            engine=f"{head}/llama-server-split-{slug}",
            path=path,
            chat_template=model.chat_template,
            num_ctx=num_ctx,
            slots=slots,
            binary=split_binaries.head(config.nodes[head], config.engines),
            is_direct=config.nodes[head].transport == "direct",
            parts=tuple(parts),
            head_key=await self._crew.session(head).mesh_key() if uses_ssh else "",
            tokens_factor=found.tokens_factor,
            reason="; ".join(found.reasons),
            keep_alive_s=keep_alive_s,
        )

    async def _part(self, share: Share, head: str, slug: str) -> PartWish:
        config, device = self._crew.config, share.device
        label = f"{device.label}-{slug}"
        way = None if device.node == head else await self._way(head, device.node)
        return PartWish(
            node=device.node,
            device=device.uuid,
            label=device.label,
            layers=share.layers,
            has_output=share.has_output,
            planned_bytes=share.total_bytes,
            weights_bytes=share.weights_bytes,
            kv_bytes=share.kv_bytes,
            buffers_bytes=share.uncorrected_bytes,
            worker="" if share.is_local else f"{device.node}/rpc-server-{label}",
            binary=split_binaries.worker(config.nodes[device.node], config.engines),
            way=way,
            forward=f"{head}/forward-{device.node}-{label}"
            if way is not None and way.road == "ssh"
            else "",
        )

    async def _way(self, head: str, worker: str) -> Way:
        mesh: Mesh = self._crew.config.split.mesh
        session = self._crew.session(worker)
        config = self._crew.config.nodes[worker]
        if session.road.kind == "local" or mesh == "relay":
            # Nobody may be able to log in here, and nobody has to.
            return Way("relay")
        address = await self._crew.remote_road(worker).address()
        if address.jumps and not config.mesh_host:
            return Way("relay")
        host = config.mesh_host or address.host
        if mesh == "direct":
            return Way("direct", host=await _ipv4(host))
        return Way("ssh", host, address.user, address.port, address.host_key)


def _takes_part(node: Node) -> bool:
    return node.state == "ready" and not node.cordoned and not node.managed_by and not node.stale


def _held(node: Node, name: str) -> Model | None:
    return next((model for model in node.library if same(model.name, name)), None)


def _no_head(
    name: str, holders: Collection[tuple[Node, Model]], nodes: Collection[Node]
) -> ModelNotFound | PlacementError:
    if holders:
        where = ", ".join(node.name for node, _ in holders)
        return PlacementError(
            f"{canonical(name)} is on {where}, where there is no llama-server",
            hint=split_binaries.HOW_TO_GET,
        )
    lost = [node.name for node in nodes if _held(node, name) is not None]
    if lost:
        return PlacementError(f"{canonical(name)} is only on {', '.join(lost)}, not in use now")
    return ModelNotFound(f"model {canonical(name)!r} not found on any node")


def _with_layers(wish: SplitWish, facts: Mapping[str, Any]) -> SplitWish:
    """What belongs to a model of an Ollama store beside its weights."""
    layers, texts = facts.get("layers") or {}, facts.get("texts") or {}
    own = layers_of(texts)
    chat_template = wish.chat_template
    if own.template:
        known = str(texts.get("chat_template") or "")
        chat_template = accepting_prompts(chat_template or known) or chat_template
    args: list[str] = []
    for path in layers.get("projectors") or ():
        args += ["--mmproj", path]
    for path in layers.get("adapters") or ():
        args += ["--lora", path]
    return msgspec.structs.replace(
        wish,
        args=tuple(args),
        chat_template=chat_template,
        layers=own,
    )


async def _ipv4(host: str) -> str:
    """Workers' clients resolve nothing but IPv4."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, family=2)
    except OSError as error:
        raise NodeError(f"{host} has no IPv4 address: {error}") from error
    return str(found[0][4][0])
