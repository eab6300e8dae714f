"""Routes that change what the stores hold: pull, push, create, copy, delete, blobs.

What all stores shall have or lose goes to all of them; what is made of uploaded blobs is made
in the store that got them. Single-model engines have no store: a fleet of those alone says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from olol_tui.errors import OlolError
from olol_tui.gateway import http
from olol_tui.gateway.asking import Lost, Reply, Task, ask
from olol_tui.gateway.blobs import INVALID_DIGEST, BlobUpload, digest_in
from olol_tui.gateway.dialects import errors, fields
from olol_tui.gateway.dialects.errors import BadRequest
from olol_tui.gateway.errands import GONE, Errand
from olol_tui.gateway.fanout import Fanout
from olol_tui.gateway.port import FleetPort
from olol_tui.gateway.remotes import check_remote
from olol_tui.gateway.routes import BLOBS
from olol_tui.gateway.stores import Store, Stores, Uploads, stores_of
from olol_tui.models.names import DEFAULT_REGISTRY, canonical

if TYPE_CHECKING:
    from olol_tui.gateway.gateway import Gateway

log = logging.getLogger("olol.gateway.library")

HEAD_S = 15.0
CHANGE_S = 120.0
"""For a deletion or a copy: metadata, but of files that may be large and on slow disks."""
SURVEY_S = 15.0
NO_STORE = (
    "no engine here keeps models in a store: llama-server and the embedded engine serve GGUF "
    "files, which are added and removed on their node"
)

Handle = Callable[[http.HttpConnection, http.Request], None]
Work = Callable[[http.HttpConnection, http.Request], Coroutine[Any, Any, None]]


class Library:
    """These routes of one gateway. Owns the tasks of the answers that take time."""

    def __init__(self, gateway: Gateway, fleet: FleetPort) -> None:
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()
        self._uploads = Uploads(gateway.now)
        self.fleet = fleet
        self.pool = gateway.pool
        self.now = gateway.now
        self.routes: dict[str, dict[bytes, Handle]] = {
            "/api/pull": {b"POST": self._checked(self._pull)},
            "/api/push": {b"POST": self._checked(self._push)},
            "/api/create": {b"POST": self._as_task(self._create)},
            "/api/copy": {b"POST": self._as_task(self._copy)},
            "/api/delete": {b"DELETE": self._as_task(self._delete)},
        }
        self.blob_routes: dict[bytes, Handle] = {
            b"HEAD": self._as_task(self._head_blob),
            b"POST": self._checked(self._take_blob),
        }

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def work(self, coroutine: Coroutine[Any, Any, None]) -> Task:
        return Task(coroutine, self._tasks)

    async def survey(self, nodes: Iterable[str]) -> None:
        """Let the fleet show what these stores hold now; a node that cannot say is left."""
        await asyncio.gather(*(self._survey(node) for node in nodes))

    async def _survey(self, node: str) -> None:
        try:
            async with asyncio.timeout(SURVEY_S):
                await self.fleet.survey(node)
        except (OlolError, TimeoutError) as error:
            log.warning("survey failed", extra={"where": node, "reason": str(error)})

    # -- how routes are run

    def _checked(self, handle: Handle) -> Handle:
        """A handler that may raise BadRequest."""

        def run(connection: http.HttpConnection, request: http.Request) -> None:
            try:
                self._admit()
                handle(connection, request)
            except BadRequest as bad:
                self._gateway.error(connection, request, bad.status, bad.message)

        return run

    def _as_task(self, work: Work) -> Handle:
        async def run(connection: http.HttpConnection, request: http.Request) -> None:
            try:
                self._admit()
                await work(connection, request)
            except BadRequest as bad:
                self._gateway.error(connection, request, bad.status, bad.message)
            except Exception:
                # A defect of ours must cost this request only, and be seen.
                log.exception("request failed", extra={"path": request.path})
                self._gateway.error(connection, request, 500, "internal error")

        def handle(connection: http.HttpConnection, request: http.Request) -> None:
            connection.handler = self.work(run(connection, request))

        return handle

    @property
    def _registries(self) -> list[str]:
        return self._gateway.settings.config.registries

    @property
    def account(self) -> Store | None:
        """Which store's engine signs what is pushed to Ollama's registry; None where nothing may
        be pushed there, or no engine can."""
        if not {DEFAULT_REGISTRY, "*"} & set(self._registries):
            return None
        stores = [one for one in stores_of(self.fleet.fleet).ready if one.kind != "simulated"]
        return min(stores, key=lambda one: (one.cordoned, one.foreign), default=None)

    def _admit(self) -> None:
        if self._gateway.draining:
            raise BadRequest("the gateway is shutting down", status=503)

    # -- pull and push

    def _pull(self, connection: http.HttpConnection, request: http.Request) -> None:
        body = fields.decode_body(request.body, request.path)
        name = _name(body)
        check_remote(name, body, self._registries)
        stores = self._stores()
        growing = stores.growing
        if not growing:
            raise BadRequest("every store is cordoned", status=503)
        log.info("pull", extra={"model": name, "where": [store.node for store in growing]})
        notes = [f"skipping {node}: {why}" for node, why, _ in stores.lost]
        errand = self._errand(connection, request, name, growing)
        Fanout(self, connection, "pull", request.path, growing, body, errand, notes)

    def _push(self, connection: http.HttpConnection, request: http.Request) -> None:
        body = fields.decode_body(request.body, request.path)
        name = _name(body)
        having = self._stores().having(canonical(name))
        if not having:
            raise BadRequest(errors.model_not_found(name), status=404)
        check_remote(name, body, self._registries)
        account = self.account
        store = account if account in having else having[0]
        errand = self._errand(connection, request, name, [store])
        Fanout(self, connection, "push", request.path, [store], body, errand)

    # -- create and blobs

    async def _create(self, connection: http.HttpConnection, request: http.Request) -> None:
        body = fields.decode_body(request.body, request.path)
        name = _name(body)
        base = fields.Fields("CreateRequest", body).text("from")
        if body.get("remote_host"):
            raise BadRequest(
                f"cloud models are disabled: {name!r} would leave this cluster", status=403
            )
        if base:
            # An engine that does not have it would fetch it.
            check_remote(base, body, self._registries)
        stores = self._stores()
        digests = _digests(body)
        store = self._uploads.store_of(stores, digests, connection.peer) if digests else None
        if store is None and digests:
            store = await self._store_with(stores, digests)
        if store is None and base:
            having = stores.having(canonical(base))
            store = min(having, key=lambda one: (one.cordoned, one.foreign), default=None)
        store = store or stores.default
        if store is None:
            raise BadRequest("every store is cordoned", status=503)
        log.info("create", extra={"model": name, "where": store.node})
        errand = self._errand(connection, request, name, [store])
        Fanout(self, connection, "create", request.path, [store], body, errand)

    async def _store_with(self, stores: Stores, digests: list[str]) -> Store | None:
        """The store that has most of these blobs; None when none has any."""
        asked = [(store, digest) for store in stores.ready for digest in digests]
        found = await asyncio.gather(*(self._has_blob(*one) for one in asked))
        counts: dict[str, int] = {}
        for (store, _), has in zip(asked, found, strict=True):
            counts[store.node] = counts.get(store.node, 0) + has
        best = max(stores.ready, key=lambda store: counts[store.node])
        return best if counts[best.node] else None

    async def _has_blob(self, store: Store, digest: str) -> bool:
        try:
            reply = await ask(self.pool, store.address, "HEAD", BLOBS + digest, timeout_s=HEAD_S)
        except Lost as lost:
            log.warning("blob", extra={"where": store.node, "reason": str(lost)})
            return False
        return reply.status == 200

    async def _head_blob(self, connection: http.HttpConnection, request: http.Request) -> None:
        digest = _digest(request)
        stores = self._stores()
        known = self._uploads.store_for(stores, digest, connection.peer)
        asked = stores.ready if known is None else (known,)
        found = await asyncio.gather(*(self._has_blob(store, digest) for store in asked))
        for store, has in zip(asked, found, strict=True):
            if has:
                self._uploads.remember(store, digest, connection.peer)
                connection.reply(200, b"", b"")
                return
        raise BadRequest(f'blob "{digest}" not found', status=404)

    def _take_blob(self, connection: http.HttpConnection, request: http.Request) -> None:
        digest = _digest(request)
        stores = self._stores()
        store = self._uploads.store_for(stores, digest, connection.peer) or stores.default
        if store is None:
            raise BadRequest("every store is cordoned", status=503)
        self._uploads.remember(store, digest, connection.peer)
        log.info("blob", extra={"digest": digest, "where": store.node})
        errand = self._errand(connection, request, digest, [store])
        BlobUpload(self, connection, request, store, digest, errand)

    # -- copy and delete

    async def _copy(self, connection: http.HttpConnection, request: http.Request) -> None:
        body = fields.decode_body(request.body, request.path)
        given = fields.Fields("CopyRequest", body)
        source = given.text("source")
        stores = self._stores()
        asked = stores.having(canonical(source)) if source else []
        await self._recorded(connection, request, "copy", source, asked or list(stores.ready), [])

    async def _delete(self, connection: http.HttpConnection, request: http.Request) -> None:
        body = fields.decode_body(request.body, request.path)
        name = _name(body)
        model = canonical(name)
        stores = self._stores()
        lost = stores.lost_with(model)
        if not lost and not stores.having(model) and (where := self._file_of(model)):
            raise BadRequest(f"{name} is a file, to be removed where it lies: {where}", status=501)
        log.info("delete", extra={"model": name})
        # All, not only those that are known to have it: one may have got it a moment ago.
        await self._recorded(connection, request, "delete", name, list(stores.ready), lost)

    def _file_of(self, model: str) -> str:
        """Where a model lies that is no store's; empty when there is none."""
        for node in self.fleet.fleet.nodes:
            for entry in node.library:
                if entry.path and canonical(entry.name) == model:
                    return f"{entry.path} on {node.name}"
        return ""

    def _errand(
        self,
        connection: http.HttpConnection,
        request: http.Request,
        model: str,
        stores: Iterable[Store],
    ) -> Errand:
        where = ", ".join(store.node for store in stores)
        return Errand(self._gateway, connection, request, model, where)

    async def _recorded(
        self,
        connection: http.HttpConnection,
        request: http.Request,
        verb: str,
        model: str,
        stores: list[Store],
        lost: list[tuple[str, str]],
    ) -> None:
        errand = self._errand(connection, request, model, stores)
        try:
            errand.end(await self._everywhere(connection, request, verb, stores, lost))
        except BadRequest as bad:
            errand.end(bad.status, bad.message)
            raise
        except asyncio.CancelledError:
            errand.end(GONE, "the client left")
            raise

    async def _everywhere(
        self,
        connection: http.HttpConnection,
        request: http.Request,
        verb: str,
        stores: list[Store],
        lost: list[tuple[str, str]],
    ) -> int:
        """The same change in several stores; returns the status that the client got.

        A store that has no such model is content. 404 when none has it; an error names the
        stores where the change was not made, and those where it was.
        """
        replies = await asyncio.gather(*(self._change(store, request) for store in stores))
        done = [store.node for store, reply in zip(stores, replies, strict=True) if _ok(reply)]
        await self.survey(done)
        failed = [
            (store.node, reply)
            for store, reply in zip(stores, replies, strict=True)
            if not _ok(reply) and reply.status != 404
        ]
        if not failed and not lost:
            if not done:
                connection.reply(404, replies[0].body)
                return 404
            connection.reply(200, b"", b"")
            return 200
        statuses = {reply.status for _, reply in failed}
        if not done and not lost and len(failed) == len(stores) and len(statuses) == 1:
            (status,) = statuses  # they all say the same
            connection.reply(status, failed[0][1].body)
            return status
        told = [f"{node}: {errors.upstream_message(reply.body)}" for node, reply in failed]
        told += [f"{node}: {why}" for node, why in lost]
        message = f"{verb} failed on {'; '.join(told)}"
        if done:
            message += f" (it succeeded on {', '.join(done)})"
        raise BadRequest(message, status=500)

    async def _change(self, store: Store, request: http.Request) -> Reply:
        method = request.method.decode("latin-1")
        try:
            return await ask(
                self.pool, store.address, method, request.path, request.body, timeout_s=CHANGE_S
            )
        except Lost as error:
            return Reply(500, msgspec.json.encode({"error": f"upstream lost: {error}"}))

    def _stores(self) -> Stores:
        """
        Raises:
            BadRequest: there is none that can be asked.
        """
        stores = stores_of(self.fleet.fleet)
        if stores.ready:
            return stores
        if stores.lost:
            told = "; ".join(f"{node}: {why}" for node, why, _ in stores.lost)
            raise BadRequest(f"no store can be reached now: {told}", status=503)
        raise BadRequest(NO_STORE, status=501)


def _ok(reply: Reply) -> bool:
    return 200 <= reply.status < 300


def _name(body: dict[str, Any]) -> str:
    given = fields.Fields("Request", body)
    name = given.text("model") or given.text("name")
    if not name.strip():
        raise BadRequest("model is required")
    return name


def _digest(request: http.Request) -> str:
    digest = digest_in(request.path.removeprefix(BLOBS))
    if digest is None:
        raise BadRequest(INVALID_DIGEST)
    return digest


def _digests(body: dict[str, Any]) -> list[str]:
    """The blobs that a model is to be made of."""
    given = fields.Fields("CreateRequest", body)
    found: list[str] = []
    for field in ("files", "adapters", "draft_files"):
        for text in given.table(field).values():
            digest = digest_in(text) if isinstance(text, str) else None
            if digest is None:
                raise BadRequest(INVALID_DIGEST)
            found.append(digest)
    return found
