"""The SDK's client of promises, with two things that it lacks: looking for some at once, and watching one.

Whoever lives in the embedded engine's process goes past the protocol's envelopes, which cost as
much as what is in them: reading a promise is a look at its row then, and watching one writes nothing.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, override

import msgspec
import resonate.promises
from resonate.core import SettleState
from resonate.error import ServerError
from resonate.resonate import Resonate
from resonate.types import PromiseRecord, Value

from service.engine.embedded import EmbeddedEngine
from service.engine.handlers import promise_create, promise_settle
from service.engine.rules import Promise
from service.engine.wire import PromiseCreate, PromiseOut, PromiseSettle, Reply

__all__ = ["Client", "Nearby", "Promises"]

_OK, _NOT_FOUND = 200, 404
_VALUE: Any = msgspec.json.Decoder(Value)
_TAGS: Any = msgspec.json.Decoder(dict[str, str])


class Promises(resonate.promises.Promises):
    """Promises by the protocol, wherever the engine is. All raise ConnectorError."""

    def __init__(self, client: Resonate) -> None:
        super().__init__(client.promises.sender, client.promises.codec)
        self._client = client

    async def find(self, *ids: str) -> list[PromiseRecord | None]:
        """Return promises as they read now, None for one that there is not."""
        return await asyncio.gather(*map(self._find, ids))

    async def read(self, *ids: str) -> list[PromiseRecord]:
        """Return promises as they read now. Raises ServerError 404 where there is none of an id."""
        found = [record for record in await self.find(*ids) if record is not None]
        if len(found) < len(ids):
            raise _missing()
        return found

    async def _find(self, id_: str) -> PromiseRecord | None:
        try:
            return await self.get(id_)
        except ServerError as exc:
            if exc.code == _NOT_FOUND:
                return None
            raise

    async def watch(self, id_: str) -> asyncio.Future[None]:
        """Return a future that is done once the promise is settled; whoever stops watching cancels it.

        Raises ServerError 404 where there is none.
        """
        # Where we give up it goes on: all who watch share one registration, and one cut off leaves them deaf.
        handle = await asyncio.shield(self._client.get(id_))

        async def settled() -> None:
            with suppress(Exception):  # how it was settled is for whoever reads it
                await handle.result()

        return asyncio.ensure_future(settled())


class Nearby(Promises):
    """Promises of the embedded engine in this process."""

    def __init__(self, engine: EmbeddedEngine, client: Resonate) -> None:
        super().__init__(client)
        self._engine = engine

    @override
    async def get(self, id: str) -> PromiseRecord:
        """Return a promise as it reads now. Raises ServerError 404, ConnectorError."""
        found = self._look(id)
        if found is None:
            raise _missing()
        return found

    @override
    async def find(self, *ids: str) -> list[PromiseRecord | None]:
        return [self._look(id_) for id_ in ids]

    @override
    async def watch(self, id_: str) -> asyncio.Future[None]:
        state = (await self.get(id_)).state
        watch = self._engine.watch(id_)  # an end that comes between is told by this loop, so after this
        if state != "pending":
            watch.set_result(None)
        return watch

    @override
    async def create(self, id: str, timeout_at: int, param: Value, tags: dict[str, str]) -> PromiseRecord:
        """Create a promise, or return the one that exists. Raises ConnectorError."""
        wanted = PromiseCreate(id, timeout_at, self._written(param), tags)
        return self._read(await self._engine.do(partial(promise_create, req=wanted)))

    @override
    async def _settle(self, id: str, state: SettleState, value: Value) -> PromiseRecord:
        """Settle a promise, or return how it was settled before. Raises ServerError 404, ConnectorError."""
        wanted = PromiseSettle(id, state, self._written(value))
        return self._read(await self._engine.do(partial(promise_settle, req=wanted)))

    def _look(self, id_: str) -> PromiseRecord | None:
        promise = self._engine.look(id_)
        return None if promise is None else self._decoded(promise)

    def _written(self, value: Value) -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(self.codec.encode(value.data)))

    def _read(self, reply: Reply) -> PromiseRecord:
        if reply.status != _OK:
            raise ServerError(reply.status, reply.data)
        return self._decoded(reply.data["promise"])

    def _decoded(self, promise: Promise | PromiseOut) -> PromiseRecord:
        record = PromiseRecord(
            id=promise.id,
            state=promise.state,
            param=_VALUE.decode(promise.param),
            value=_VALUE.decode(promise.value),
            tags=_TAGS.decode(promise.tags),
            timeout_at=promise.timeout_at,
            created_at=promise.created_at,
            settled_at=promise.settled_at,
        )
        return self.codec.decode_promise(record)


def _missing() -> ServerError:
    return ServerError(_NOT_FOUND, "Promise not found")


class Client(Resonate):
    """The SDK's client, its promises as above; `promises` tells which."""

    promises: Promises

    def __init__(self, promises: Callable[[Resonate], Promises], **options: Any) -> None:
        super().__init__(**options)
        self.promises = promises(self)
