"""Tasks that are given back again and again wait, ever longer, instead of storming.

The SDK gives a task back when it can't run it: arguments that it can't decode, a
function that nobody registered, a result that can't be written. An engine offers
it again at once, hundreds of times a second for ever. So a task that comes back
without having got anywhere is kept here for a while before the engine hears of it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, override

import msgspec
from resonate.error import PlatformError, ResonateError
from resonate_base import PROTOCOL_VERSION

__all__ = ["Parked", "Parking"]

log = logging.getLogger("approvals.engine")

#: Seconds that a task is kept at its second return; each further one doubles that.
FIRST_WAIT: Final = 0.25
#: A task that has not come back for so long, in seconds, goes on elsewhere, or its time is up.
FORGOTTEN: Final = 15 * 60.0
#: Seconds that giving back what is kept may take at the end.
PARTING: Final = 2.0

#: What a request about a task begins with, as the SDK writes it.
_TASK: Final = '{"kind":"task.'
_RELEASE: Final = _TASK + 'release"'
#: Requests after which a task has got somewhere; of those that hold an action, one that keeps a result.
_PROGRESS: Final = (_TASK + 'suspend"', _TASK + 'fulfill"', _TASK + 'fence"')
_CREATES: Final = '"kind":"promise.create"'


def _ignore(_: "Parked") -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Parked:
    """A task that was given back `times` times in a row, first and last `since` and `last` (Unix time).

    `reason` is the SDK's, in a line.
    """

    task: str
    reason: str
    times: int
    since: float
    last: float


class Parking:
    """A network that keeps releases for a while; all else goes straight to `send`.

    `longest` bounds a wait, in seconds: less than a lease, or the engine would not
    wait for the release. `start` is what the network itself does at its start.
    """

    def __init__(
        self,
        send: Callable[[str, dict[str, str] | None], Awaitable[str]],
        *,
        longest: float,
        start: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._send = send
        self._longest = longest
        self._start = start
        #: Called once for each task that is parked.
        self.told: Callable[[Parked], None] = _ignore
        self._tasks: dict[str, Parked] = {}
        self._reasons: dict[str, str] = {}
        self._kept: dict[asyncio.Task[None], tuple[str, dict[str, str] | None]] = {}
        self._told = _Told(self)

    @property
    def parked(self) -> Mapping[str, Parked]:
        """What comes back again and again, by task."""
        self._forget()
        return {name: task for name, task in self._tasks.items() if task.times > 1}

    def knows(self, cause: str) -> bool:
        """Tell whether a failure is why a task is parked, and so has been logged."""
        return any(task.reason == cause for task in self.parked.values())

    async def start(self) -> None:
        """Start the network."""
        logging.getLogger("resonate.core").addFilter(self._told)
        if self._start is not None:
            await self._start()

    async def stop(self) -> None:
        """Keep answering; `close` is what ends this network."""

    async def close(self) -> None:
        """Give back what is kept, so that others need not wait for our leases to end."""
        logging.getLogger("resonate.core").removeFilter(self._told)
        kept = list(self._kept.items())
        for waiting, _ in kept:
            waiting.cancel()
        with contextlib.suppress(TimeoutError, ResonateError):
            async with asyncio.timeout(PARTING):
                for _, (req, headers) in kept:
                    await self._send(req, headers)

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        """Answer a request; a repeated release at once, although the engine hears of it later."""
        if req.startswith(_RELEASE):
            return await self._release(req, headers)
        answer = await self._send(req, headers)
        if self._tasks and req.startswith(_PROGRESS) and _CREATES not in req:
            self._tasks.pop(msgspec.json.decode(req, type=_Request).data.id, None)
        return answer

    async def _release(self, req: str, headers: dict[str, str] | None) -> str:
        request = msgspec.json.decode(req, type=_Request)
        name, now = request.data.id, time.time()
        self._forget()
        before = self._tasks.get(name, Parked(name, "", 0, since=now, last=now))
        reason = self._reasons.pop(name, before.reason)
        task = self._tasks[name] = replace(before, reason=reason, times=before.times + 1, last=now)
        if task.times == 1:  # an engine that was away for a moment, as often as not
            return await self._send(req, headers)
        if before.times == 1:
            log.error("task %s can't be run here and waits, ever longer: %s", name, reason)
            self.told(task)
        wait = min(FIRST_WAIT * 2 ** min(task.times - 2, 20), self._longest)
        waiting = asyncio.create_task(self._later(wait, req, headers))
        self._kept[waiting] = req, headers
        waiting.add_done_callback(self._kept.pop)
        return _released(request.head.corrId)

    async def _later(self, wait: float, req: str, headers: dict[str, str] | None) -> None:
        await asyncio.sleep(wait)
        # What the engine does not hear of ends with the lease.
        with contextlib.suppress(ResonateError):
            await self._send(req, headers)

    def _forget(self) -> None:
        long_ago = time.time() - FORGOTTEN
        for name in [name for name, task in self._tasks.items() if task.last < long_ago]:
            del self._tasks[name]

    def hear(self, name: str, error: BaseException) -> bool:
        """Note why a task is about to be given back; tell whether that is new."""
        cause = error.cause if isinstance(error, PlatformError) else error
        self._reasons[name] = str(cause)
        return name not in self._tasks


class _Told(logging.Filter):
    """The SDK's log of its core: read for the reasons, which nothing else has, and kept from repeating."""

    def __init__(self, parking: Parking) -> None:
        super().__init__()
        self._parking = parking

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        args: Any = record.args
        if not (record.exc_info and record.exc_info[1] and isinstance(args, tuple) and args):
            return True
        return self._parking.hear(str(args[0]), record.exc_info[1])


class _Head(msgspec.Struct):
    corrId: str = ""  # noqa: N815 - the wire's


class _Data(msgspec.Struct):
    id: str


class _Request(msgspec.Struct):
    head: _Head
    data: _Data


def _released(corr_id: str) -> str:
    head = {"corrId": corr_id, "status": 200, "version": PROTOCOL_VERSION}
    return msgspec.json.encode({"kind": "task.release", "head": head, "data": {}}).decode()
