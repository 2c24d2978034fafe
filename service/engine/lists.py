"""Lists of promises, on each engine by the road that it has: its own search, or its table."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from resonate.codec import Codec, NoopEncryptor
from resonate.error import ResonateError
from resonate.send import Sender
from resonate.transport import Transport
from resonate.types import PromiseRecord, Value
from resonate_base import Network

from service.errors import NoLists

__all__ = ["MAX_PAGE", "Page", "Search", "decoded", "no_lists", "searching"]

#: Records in a page, at most: what a Resonate server allows.
MAX_PAGE: Final = 1000

#: Records by id, and the cursor of the next page where there is one.
type Page = tuple[list[PromiseRecord], str | None]
#: By state (or any), by every one of the tags, so many, after a cursor.
type Search = Callable[[str | None, dict[str, str], int, str | None], Awaitable[Page]]

_CODEC: Final = Codec(NoopEncryptor())


def searching(network: Network, token: str | None = None) -> Search:
    """Return the search of an engine that answers the protocol's ``promise.search``."""
    sender = Sender(Transport(network), token)

    async def search(state: str | None, tags: dict[str, str], limit: int, cursor: str | None) -> Page:
        page = await sender.promise_search(state, tags or None, limit, cursor)
        return [decoded(record) for record in page.promises], page.cursor

    return search


async def no_lists(_state: str | None, _tags: dict[str, str], _limit: int, _cursor: str | None) -> Page:
    """Say that the SDK's in-memory engine has none."""
    raise NoLists("the engine memory: keeps no lists; use sqlite:///FILE, a server or postgresql://")


def decoded(record: PromiseRecord) -> PromiseRecord:
    """Return a record with its values read; one that can't be is as good as empty.

    Another program's odd value must not take a whole page with it.
    """
    return msgspec.structs.replace(record, param=_read(record.param), value=_read(record.value))


def _read(value: Value) -> Value:
    try:
        return Value(headers=value.headers, data=_CODEC.decode(value))
    except ResonateError:
        return Value(headers=value.headers)
