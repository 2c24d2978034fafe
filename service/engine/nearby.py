"""Promises of the embedded engine for whoever lives in its process: reading one is a look at its row.

By the protocol's envelopes, there and back, the same look costs four times as much,
and nothing is asked more often.
"""

from typing import Any, override

import msgspec
from resonate.error import ServerError
from resonate.promises import Promises
from resonate.types import PromiseRecord, Value

from service.engine.embedded import EmbeddedEngine

__all__ = ["Nearby"]

_VALUE: Any = msgspec.json.Decoder(Value)
_TAGS: Any = msgspec.json.Decoder(dict[str, str])


class Nearby(Promises):
    """The SDK's client of promises, its reads past the protocol."""

    def __init__(self, engine: EmbeddedEngine, promises: Promises) -> None:
        super().__init__(promises.sender, promises.codec)
        self._engine = engine

    @override
    async def get(self, id: str) -> PromiseRecord:
        """Return a promise as it reads now. Raises ServerError 404, ConnectorError."""
        promise = self._engine.look(id)
        if promise is None:
            raise ServerError(404, "Promise not found")
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
