"""What the operator and the gateway asked to exist, kept over restarts of the controller.

Pins, launched runners, cordons, roles of GPUs and adopted servers: the part of the desired
state that no configuration says. `Wishes` is pure; `WishesFile` keeps it in one small JSON
file, written whole.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from olol_tui.files import write_atomic
from olol_tui.fleet.link_book import LinkBook, SeenLink
from olol_tui.fleet.snapshot import EngineKind, Pin, Role
from olol_tui.fleet.split_book import KeptSplit, SplitBook
from olol_tui.models.learned import Learned
from olol_tui.models.names import canonical, same
from olol_tui.placement.again import Place

log = logging.getLogger("olol.fleet.wishes")


class Launch(msgspec.Struct, frozen=True):
    """A runner that should exist for one model."""

    engine_id: str
    node: str
    kind: EngineKind
    device: str
    """UUID."""
    model: str
    path: str
    chat_template: str = ""
    num_ctx: int | None = None
    keep_alive_s: float = 300.0
    """Idle time after which it goes; negative: never."""


class RoleWish(msgspec.Struct, frozen=True):
    """What a GPU is for, whatever the configuration says."""

    node: str
    device: str
    """UUID."""
    role: Role


class Adopted(msgspec.Struct, frozen=True):
    """A server on a node that somebody else runs and that we use."""

    node: str
    url: str


class Kept(msgspec.Struct, frozen=True):
    """Content of the file."""

    version: int = 1
    pins: tuple[Pin, ...] = ()
    launches: tuple[Launch, ...] = ()
    cordoned: tuple[str, ...] = ()
    roles: tuple[RoleWish, ...] = ()
    adopted: tuple[Adopted, ...] = ()
    splits: tuple[KeptSplit, ...] = ()
    paused: tuple[str, ...] = ()
    """Canonical names of models."""
    learned: Learned = Learned()
    """What engines took: no wish, but kept as long and as safely as the splits planned by it."""
    places: Mapping[str, Place] = {}
    """Where each split lay last: its tensors are still on the disks there."""
    links: tuple[SeenLink, ...] = ()
    """As measured, for the same reason."""


class Wishes:
    """`changed` is called after every change."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._pins: dict[tuple[str, str, str], Pin] = {}
        self._launches: dict[str, Launch] = {}
        self._cordoned: set[str] = set()
        self._roles: dict[str, dict[str, Role]] = {}
        self._adopted: dict[Adopted, None] = {}
        self.splits = SplitBook(changed)
        self.links = LinkBook(changed)
        self._paused: Counter[str] = Counter()
        """Engine → how many keep new work away from it."""
        self._paused_models: set[str] = set()
        self._draining: set[str] = set()
        self._learned = Learned()
        self._announced: dict[str, Launch] = {}
        self._largest_ctx: dict[str, int] = {}
        self._changed = changed

    @property
    def learned(self) -> Learned:
        """What loaded models took, for the plans of others."""
        return self._learned

    @learned.setter
    def learned(self, after: Learned) -> None:
        if after != self._learned:
            self._learned = after
            self._changed()

    @property
    def pins(self) -> tuple[Pin, ...]:
        return tuple(self._pins.values())

    def is_pinned(self, model: str, node: str, devices: Iterable[str]) -> bool:
        name = canonical(model)
        return any((node, device, name) in self._pins for device in devices)

    def pins_on(self, node: str, devices: Iterable[str]) -> tuple[Pin, ...]:
        wanted = set(devices)
        return tuple(p for p in self._pins.values() if p.node == node and p.device in wanted)

    def pin(self, model: str, node: str, device: str) -> None:
        name = canonical(model)
        self._pins[node, device, name] = Pin(model=name, node=node, device=device)
        self._changed()

    def unpin(self, model: str, node: str, devices: Iterable[str]) -> bool:
        """True if there was such a pin."""
        name = canonical(model)
        gone = [self._pins.pop((node, device, name), None) for device in devices]
        if not any(gone):
            return False
        self._changed()
        return True

    def launches_on(self, node: str) -> tuple[Launch, ...]:
        return tuple(launch for launch in self._launches.values() if launch.node == node)

    def launch_of(self, engine_id: str) -> Launch | None:
        return self._launches.get(engine_id)

    def find_launch(self, model: str, node: str, device: str) -> Launch | None:
        return next(
            (
                launch
                for launch in self._launches.values()
                if launch.node == node and launch.device == device and same(launch.model, model)
            ),
            None,
        )

    def add_launch(self, launch: Launch) -> None:
        if self._launches.get(launch.engine_id) != launch:
            self._launches[launch.engine_id] = launch
            self._changed()

    def drop_launch(self, engine_id: str) -> Launch | None:
        launch = self._launches.pop(engine_id, None)
        self._largest_ctx.pop(engine_id, None)
        if launch is not None:
            self._changed()
        return launch

    def announced_on(self, node: str) -> Iterable[Launch]:
        """What will be wished for as soon as there is room for it."""
        return [launch for launch in self._announced.values() if launch.node == node]

    @contextmanager
    def announced(self, launch: Launch) -> Iterator[None]:
        """Room is made for a runner meanwhile. Not kept over a restart."""
        self._announced[launch.engine_id] = launch
        self._changed()
        try:
            yield
        finally:
            self._announced.pop(launch.engine_id, None)
            self._changed()

    def largest_ctx(self, engine_id: str) -> int | None:
        """More context than this was tried and refused: it does not fit."""
        return self._largest_ctx.get(engine_id)

    def limit_ctx(self, engine_id: str, num_ctx: int) -> None:
        """Not kept over a restart: there may be more room then."""
        self._largest_ctx[engine_id] = num_ctx
        self._changed()

    def is_cordoned(self, node: str) -> bool:
        return node in self._cordoned

    def set_cordon(self, node: str, cordoned: bool) -> None:
        if cordoned != (node in self._cordoned):
            self._cordoned.symmetric_difference_update({node})
            self._changed()

    @property
    def paused_models(self) -> tuple[str, ...]:
        """Canonical names."""
        return tuple(sorted(self._paused_models))

    def pause_model(self, model: str, paused: bool) -> None:
        if paused != (model in self._paused_models):
            self._paused_models.symmetric_difference_update({model})
            self._changed()

    def roles_on(self, node: str) -> Mapping[str, Role]:
        """By UUID; only what was wished."""
        return self._roles.get(node, {})

    def set_role(self, node: str, device: str, role: Role) -> None:
        """Args: role: "" leaves it to the configuration again."""
        roles = self._roles.setdefault(node, {})
        if roles.get(device, "") != role:
            if role:
                roles[device] = role
            else:
                del roles[device]
            self._changed()

    def adopted_on(self, node: str) -> tuple[str, ...]:
        """URLs of the servers that somebody else runs there and that we use."""
        return tuple(one.url for one in self._adopted if one.node == node)

    def set_adopted(self, node: str, url: str, adopted: bool) -> None:
        one = Adopted(node, url)
        if adopted != (one in self._adopted):
            if adopted:
                self._adopted[one] = None
            else:
                del self._adopted[one]
            self._changed()

    def is_draining(self, node: str) -> bool:
        return node in self._draining

    @contextmanager
    def draining(self, node: str) -> Iterator[None]:
        """Somebody waits for the node's last requests meanwhile. Not kept over a restart."""
        self._draining.add(node)
        self._changed()
        try:
            yield
        finally:
            self._draining.discard(node)
            self._changed()

    def is_paused(self, engine_id: str) -> bool:
        """Whether the engine takes no new work for a moment. Not kept over a restart."""
        return self._paused[engine_id] > 0

    @contextmanager
    def paused(self, engine_ids: Iterable[str]) -> Iterator[None]:
        """No new work for these engines meanwhile."""
        held = Counter(set(engine_ids))
        self._paused += held
        self._changed()
        try:
            yield
        finally:
            self._paused -= held
            self._changed()

    def forget_node(self, node: str) -> None:
        """The node was taken out: nothing is wished for it any more."""
        self._pins = {key: pin for key, pin in self._pins.items() if pin.node != node}
        self._launches = {key: one for key, one in self._launches.items() if one.node != node}
        self._cordoned.discard(node)
        self._roles.pop(node, None)
        self.links.forget_node(node)
        self._adopted = {one: None for one in self._adopted if one.node != node}
        self._changed()

    def encode(self) -> bytes:
        return msgspec.json.format(
            msgspec.json.encode(
                Kept(
                    pins=self.pins,
                    launches=tuple(self._launches.values()),
                    cordoned=tuple(sorted(self._cordoned)),
                    roles=tuple(
                        RoleWish(node, device, role)
                        for node, roles in self._roles.items()
                        for device, role in roles.items()
                    ),
                    adopted=tuple(self._adopted),
                    splits=self.splits.kept(),
                    paused=self.paused_models,
                    learned=self._learned,
                    links=self.links.kept(),
                    places=self.splits.places,
                )
            )
        )

    def adopt(self, kept: Kept) -> None:
        """Take over what an earlier run kept."""
        self._pins = {(p.node, p.device, canonical(p.model)): p for p in kept.pins}
        self._launches = {launch.engine_id: launch for launch in kept.launches}
        self._cordoned = set(kept.cordoned)
        self._roles = {}
        for wish in kept.roles:
            self._roles.setdefault(wish.node, {})[wish.device] = wish.role
        self._adopted = dict.fromkeys(kept.adopted)
        self.splits.adopt(kept.splits, kept.places)
        self._paused_models = set(kept.paused)
        self._learned = kept.learned
        self.links.adopt(kept.links)


class WishesFile:
    """The file that wishes are kept in."""

    def __init__(self, path: Path, wishes: Wishes) -> None:
        self._path = path
        self._wishes = wishes
        self.dirty = asyncio.Event()
        """Set it after a change; `keep` writes soon."""
        self._asked = 0
        self._written = 0
        self._done = 0
        self._writing = threading.Lock()

    def load(self) -> None:
        """Take over what was kept. Blocks.

        A file that cannot be read is put aside and said in the log: pins are worth less than
        a gateway that starts.
        """
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            aside = self._path.with_suffix(".broken")
            log.error("pins and launches cannot be read, kept as %s: %s", aside, error)
            try:
                self._path.replace(aside)
            except OSError as problem:
                log.error("%s cannot be put aside: %s", self._path, problem)
            return
        self._wishes.adopt(kept)

    async def keep(self) -> None:
        """Write after each change, for ever."""
        while True:
            await self.dirty.wait()
            await self.store()

    async def store(self) -> None:
        """Write if something changed. A disk that refuses is logged."""
        if self.dirty.is_set():
            self.dirty.clear()
            self._asked += 1
        elif self._done == self._asked:
            return
        # Else a cancelled `keep` left its write under way: whoever closes must not end before it.
        # Encoded here, on the loop that changes it; only the fsync is for a thread.
        await asyncio.to_thread(self._write, self._wishes.encode(), self._asked)

    def _write(self, content: bytes, number: int) -> None:
        # A cancelled `keep` leaves its thread running: it must not overwrite what came later.
        with self._writing:
            if number < self._written:
                return
            self._written = number
            try:
                write_atomic(self._path, content)
            except OSError as error:
                log.error("pins and launches cannot be kept in %s: %s", self._path, error)
            self._done = number
