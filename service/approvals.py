"""Opens approvals, and tells how they stand: what the API asks of the engine's records."""

import asyncio
import re
import secrets
import time
from contextlib import suppress

import msgspec
from resonate.error import ServerError
from resonate.types import PromiseRecord

from service.domain import Ballot, Closed, Report, ballot_key, tally
from service.engine import Promises
from service.errors import BallotGone, EngineAway, IdTaken, NotFound, RequestInvalid
from service.records import (
    APPROVAL,
    BORN_TAG,
    KIND_TAG,
    Clock,
    engine_errors,
    find_records,
    read_ask,
    read_ballot,
    read_end,
    request_of,
    signals_of,
    start_function,
    utc_now,
)
from service.requests import GRACE, parse_request, require_due

#: Ids that callers give, and those that workflows make below them.
_ANY_ID = re.compile(r"[A-Za-z0-9._:-]{1,512}")
#: How long whoever asks whether we are ready has patience: those who watch processes have less.
PING_PATIENCE = 2.0
#: Seconds between looks whether a worker has begun with what somebody waits for: doubling, up to the last.
BEGINNING, LATEST_BEGINNING = 0.1, 2.0


class Approvals:
    """Opens approvals and tells how they stand."""

    def __init__(self, promises: Promises, target: str, now: Clock = utc_now) -> None:
        self.promises = promises
        self._target = target
        self._now = now
        #: Nobody is kept waiting any more: this process stops.
        self.hung_up = False
        self._waits: set[asyncio.Timeout] = set()

    async def open(self, body: object) -> tuple[Report, bool]:
        """Open the approval that `body` asks for; True tells that it is new.

        The same body under the same id is the same approval, as often as it is
        sent. Raises RequestInvalid, IdTaken, EngineAway.
        """
        request = parse_request(body)
        approval_id = request.id or f"a-{secrets.token_hex(10)}"
        request = msgspec.structs.replace(request, id=None)
        born = secrets.token_hex(8)
        try:
            due = require_due(request, self._now())
        except RequestInvalid as late:
            # A passed instant opens nothing, but may be the due time of what was opened before it.
            try:
                promise = await self._root(approval_id)
            except NotFound:
                raise late from None
        else:
            async with engine_errors():
                promise = await start_function(
                    self.promises,
                    self._target,
                    approval_id,
                    APPROVAL,
                    msgspec.to_builtins(request),
                    timeout_at=due + GRACE,
                    tags={KIND_TAG: APPROVAL, BORN_TAG: born},
                )
        if request_of(promise) != request:
            raise IdTaken(approval_id)
        if promise.tags.get(BORN_TAG) == born:
            ask = read_ask(promise)
            return tally(ask, None, [None] * len(ask.approvers)), True
        return await self.report(promise), False

    async def show(self, approval_id: str) -> Report:
        """Tell how an approval stands. Raises NotFound, EngineAway."""
        return await self.report(await self._root(approval_id))

    async def wait(self, approval_id: str, seconds: float) -> Report:
        """Tell how it stands once it is decided, after `seconds`, or as soon as we hang up.

        Decided it is from the arbiter's end on, whenever a worker gets to the rest.
        Raises NotFound, EngineAway.
        """
        root, end_of_patience = await self._root(approval_id), time.monotonic() + seconds
        while True:
            report, arbiter = await self._standing(root)
            left = end_of_patience - time.monotonic()
            if report.status != "pending" or left <= 0 or self.hung_up:
                return report
            if arbiter is None:
                await self._begun(root, left)
                root = await self._root(approval_id)
            else:
                await self._settled(arbiter, left)
                end_of_patience = 0  # whatever ended the wait, it was the only one

    def hang_up(self) -> None:
        """Tell those who wait how it stands, now and from now on."""
        self.hung_up = True
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(0)

    async def _begun(self, root: PromiseRecord, seconds: float) -> None:
        """Return once a worker has begun with it or it has ended, after `seconds`, or as we hang up."""
        ask, end, pause = read_ask(root), time.monotonic() + seconds, BEGINNING
        key = ballot_key(ask.approval_id, ask.approvers[0].email)
        while (left := end - time.monotonic()) > 0 and not self.hung_up:
            if await self._settled(root.id, min(left, pause)):
                return
            with suppress(EngineAway):
                async with engine_errors():
                    if await find_records(self.promises, key) != [None]:
                        return
            pause = min(2 * pause, LATEST_BEGINNING)

    async def _settled(self, promise_id: str, seconds: float) -> bool:
        """Return True when a promise is settled, or False after `seconds` or as we hang up."""
        async with engine_errors():
            watch = await self.promises.watch(promise_id)
        try:
            async with asyncio.timeout(0 if self.hung_up else seconds) as wait:
                self._waits.add(wait)
                # Not through a task: nothing comes between the outcome and whoever waits for it.
                await watch
        except TimeoutError:
            return False
        finally:
            self._waits.discard(wait)
        return True

    async def ballot(self, key: bytes) -> Ballot:
        """Return the ballot as it stands. Raises BallotGone, EngineAway."""
        async with engine_errors(missing=BallotGone("no record of this ballot")):
            return await read_ballot(self.promises, key)

    async def ping(self) -> None:
        """Return when the engine answers. Raises EngineAway."""
        async with engine_errors(patience=PING_PATIENCE):
            with suppress(ServerError):
                await self.promises.get("ballot.none")

    async def _root(self, approval_id: str) -> PromiseRecord:
        if not _ANY_ID.fullmatch(approval_id):  # no engine need be asked, or could refuse, such an id
            raise NotFound(approval_id)
        async with engine_errors(missing=NotFound(approval_id)):
            promise = await self.promises.get(approval_id)
        if request_of(promise) is None:
            raise NotFound(approval_id)
        return promise

    async def report(self, promise: PromiseRecord) -> Report:
        """Tell how the approval of this promise, its own, stands. Raises NotFound, EngineAway."""
        return (await self._standing(promise))[0]

    async def _standing(self, promise: PromiseRecord) -> tuple[Report, str | None]:
        """Return the report, and its arbiter's id where that is what to wait for."""
        if promise.state == "resolved":
            return msgspec.convert(promise.value.data, Report), None
        ask = read_ask(promise)
        keys = [ballot_key(ask.approval_id, approver.email) for approver in ask.approvers]
        async with engine_errors():
            records = await find_records(self.promises, *keys)
            asked = dict.fromkeys(id_ for r in records if r is not None for id_ in (r.arbiter, r.promise))
            found = await self.promises.read(*asked)
            ends = dict(zip(asked, map(read_end, found), strict=True))
            arbiter_id = next((r.arbiter for r in records if r is not None), None)
            arbiter = None if arbiter_id is None else ends[arbiter_id]
            if arbiter_id is None and promise.state != "pending":  # no worker ever took it up
                arbiter = Closed(reason="expired", at=ask.due_at)
            signals = await signals_of(self.promises, ask, arbiter)
        seats = [None if r is None else ends[r.promise] for r in records]
        return tally(ask, arbiter, seats, signals), arbiter_id
