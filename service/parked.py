"""Tasks that no worker here can run, told to whoever looks from another process.

A worker that parks one (`service.engine.parking`) keeps a record of it for a day.
"""

import asyncio
import hashlib
from contextlib import suppress
from datetime import timedelta

import msgspec
from resonate.error import ResonateError
from resonate.types import Value

from service.engine import Parked, Promises
from service.engine.lists import Search
from service.records import KIND_TAG, milliseconds, utc_now
from service.tokens import spell

PARKED = "parked"
#: How long a record is kept; a task that still comes back is noted anew.
KEPT = timedelta(days=1)
PAGE = 100


class Notes:
    """Keeps the records, in the background of whoever parks."""

    def __init__(self, promises: Promises) -> None:
        self._promises = promises
        self._writing: set[asyncio.Task[None]] = set()

    def keep(self, task: Parked) -> None:
        """Keep a record of a parked task; again on the same day changes nothing."""
        writing = asyncio.ensure_future(self._write(task))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)

    async def _write(self, task: Parked) -> None:
        now = utc_now()
        name = spell(hashlib.blake2b(f"{now:%Y%m%d}\0{task.task}".encode(), digest_size=16).digest())
        tags, until = {KIND_TAG: PARKED}, milliseconds(now + KEPT)
        # An engine that is away has told so, and the worker's own log has the task.
        with suppress(ResonateError):
            await self._promises.create(f"{PARKED}.{name}", until, Value(data=task), tags)


async def parked_tasks(search: Search) -> list[Parked]:
    """Return the tasks that were parked in the last day, up to a page. Raises NoLists, ResonateError."""
    records, _ = await search("pending", {KIND_TAG: PARKED}, PAGE, None)
    return [msgspec.convert(record.param.data, Parked) for record in records if record.param.data]
