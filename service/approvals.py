"""Approvals and ballots as the engine keeps them: promises in, values out.

::

    <id>              the approval's own promise: its parameter holds the request,
                      its value the final report
    <id>:1 ...        one promise an approver, and the arbiter where they share one
    ballot.<key>      a ballot's record, found by the key that capabilities carry
    entry.<key>       an approval's entry in lists, where its own promise can't be one

Everything a page, a letter or a report says follows from these, so that there
is no second store that could disagree.
"""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

import msgspec
from resonate.error import ResonateError, ServerError
from resonate.promises import Promises
from resonate.resonate import Resonate
from resonate.types import PromiseRecord, TaskData, Value

from service.domain import (
    Ballot,
    BallotRecord,
    Closed,
    End,
    Report,
    Signal,
    Vote,
    ballot_key,
    tally,
    undecided,
)
from service.engine import OWNER_TAG
from service.errors import BallotGone, EngineAway, IdTaken, NotFound, RequestInvalid
from service.requests import GRACE, Ask, Request, definite, parse_request, require_due
from service.tokens import spell

#: The group that workers join, and the durable functions' names there.
GROUP = "approvals"
APPROVAL, ANSWER = "approval", "answer"

#: Marks our promises for lists; a fresh value in BORN tells who created one.
KIND_TAG, BORN_TAG = "approvals:kind", "approvals:born"
APPROVER_TAG = "approvals:approver"
#: The birth, in ms, of one that was moved here from another engine.
CREATED_TAG = "approvals:created"

#: Ids that callers give, and those that workflows make below them.
_ANY_ID = re.compile(r"[A-Za-z0-9._:-]{1,512}")
#: Seconds that a caller's question to the engine may take; then they hear that it is away.
ENGINE_PATIENCE = 10.0
#: The same for whoever asks whether we are ready: those who watch processes wait less.
PING_PATIENCE = 2.0
#: Seconds between looks whether a worker has begun with what somebody waits for: doubling, up to the last.
BEGINNING, LATEST_BEGINNING = 0.1, 2.0
#: The year 9000, in ms: other programs' roots may live longer than there are dates for.
FAR = 221_845_392_000_000
_NOT_FOUND = 404

type Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return now, in UTC, to the millisecond: what the engine and the wire keep."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


class Approvals:
    """Opens approvals and tells how they stand."""

    def __init__(self, resonate: Resonate, target: str, now: Clock = utc_now) -> None:
        self._resonate = resonate
        self._target = target
        self._now = now
        self.promises: Promises = resonate.promises

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
        if _request_of(promise) != request:
            raise IdTaken(approval_id)
        if promise.tags.get(BORN_TAG) == born:
            ask = read_ask(promise)
            return tally(ask, None, [None] * len(ask.approvers)), True
        return await self.report(promise), False

    async def show(self, approval_id: str) -> Report:
        """Tell how an approval stands. Raises NotFound, EngineAway."""
        return await self.report(await self._root(approval_id))

    async def wait(self, approval_id: str, seconds: float, stop: asyncio.Event | None = None) -> Report:
        """Tell how it stands once it is decided, after `seconds`, or when `stop` is set.

        Decided it is from the arbiter's end on, whenever a worker gets to the rest.
        Raises NotFound, EngineAway.
        """
        root, end_of_patience = await self._root(approval_id), time.monotonic() + seconds
        stopping = asyncio.create_task((stop or asyncio.Event()).wait())
        try:
            while True:
                report, arbiter = await self._standing(root)
                left = end_of_patience - time.monotonic()
                if report.status != "pending" or left <= 0 or stopping.done():
                    return report
                if arbiter is None:
                    await self._begun(root, left, stopping)
                    root = await self._root(approval_id)
                else:
                    await self._settled(arbiter, left, stopping)
                    end_of_patience = 0  # whatever ended the wait, it was the only one
        finally:
            stopping.cancel()

    async def _begun(
        self, root: PromiseRecord, seconds: float, stopping: asyncio.Task[Literal[True]]
    ) -> None:
        """Return once a worker has begun with it or it has ended, after `seconds`, or with `stopping`."""
        ask, end, pause = read_ask(root), time.monotonic() + seconds, BEGINNING
        key = ballot_key(ask.approval_id, ask.approvers[0].email)
        while (left := end - time.monotonic()) > 0 and not stopping.done():
            if await self._settled(root.id, min(left, pause), stopping):
                return
            with suppress(EngineAway):
                async with engine_errors():
                    if await find_record(self.promises, key) is not None:
                        return
            pause = min(2 * pause, LATEST_BEGINNING)

    async def _settled(self, promise_id: str, seconds: float, stopping: asyncio.Task[Literal[True]]) -> bool:
        """Return True when a promise is settled, or False after `seconds` or with `stopping`."""
        async with engine_errors():
            handle = await self._resonate.get(promise_id)
        settled = asyncio.create_task(handle.result())
        try:
            await asyncio.wait({settled, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return settled.done()
        finally:
            if not settled.cancel():
                settled.exception()  # how it ended is read from the promise

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
        if _request_of(promise) is None:
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
            records = await asyncio.gather(*(find_record(self.promises, key) for key in keys))
            asked = dict.fromkeys(id_ for r in records if r is not None for id_ in (r.arbiter, r.promise))
            found = await asyncio.gather(*map(self.promises.get, asked))
            ends = dict(zip(asked, map(read_end, found), strict=True))
            arbiter_id = next((r.arbiter for r in records if r is not None), None)
            arbiter = None if arbiter_id is None else ends[arbiter_id]
            if arbiter_id is None and promise.state != "pending":  # no worker ever took it up
                arbiter = Closed(reason="expired", at=ask.due_at)
            signals = await signals_of(self.promises, ask, arbiter)
        seats = [None if r is None else ends[r.promise] for r in records]
        return tally(ask, arbiter, seats, signals), arbiter_id


async def start_function(
    promises: Promises,
    target: str,
    promise_id: str,
    function: str,
    *args: object,
    timeout_at: datetime,
    tags: dict[str, str] | None = None,
) -> PromiseRecord:
    """Create the promise of a durable function, or return the one that exists.

    What ``Resonate.rpc`` does, but answered only once it is durable, with the
    record that won, and with tags of our own.
    """
    lineage = {f"resonate:{part}": promise_id for part in ("origin", "branch", "parent")}
    return await promises.create(
        promise_id,
        milliseconds(timeout_at),
        Value(data=TaskData(func=function, args=args)),
        lineage | {"resonate:scope": "global", "resonate:target": target} | (tags or {}),
    )


async def record_ballot(promises: Promises, ask: Ask, record: BallotRecord) -> bool:
    """Make a ballot findable by its key; tell whether it is not due yet, by the engine's clock.

    Doing it again changes nothing. Raises IdTaken if another approval of this id has left its
    own record there: a vote must never reach another ballot than its letter was about.
    """
    email = ask.approvers[record.position].email
    kept = await promises.create(
        _record_id(ballot_key(ask.approval_id, email)),
        milliseconds(ask.due_at),
        Value(data=record),
        {KIND_TAG: "ballot", APPROVER_TAG: email, OWNER_TAG: ask.approval_id},
    )
    if msgspec.convert(kept.param.data, BallotRecord) != record:
        raise IdTaken(ask.approval_id)
    return kept.state == "pending"


async def find_record(promises: Promises, key: bytes) -> BallotRecord | None:
    """Return the ballot's record, or None where there is none."""
    try:
        promise = await promises.get(_record_id(key))
    except ServerError as exc:
        if exc.code == _NOT_FOUND:
            return None
        raise
    return msgspec.convert(promise.param.data, BallotRecord)


async def read_ballot(promises: Promises, key: bytes) -> Ballot:
    """Return the ballot as it stands. Raises the SDK's ServerError 404 where there is none."""
    record = msgspec.convert((await promises.get(_record_id(key))).param.data, BallotRecord)
    root, arbiter = await asyncio.gather(promises.get(record.approval_id), promises.get(record.arbiter))
    return Ballot(key=key, ask=read_ask(root), record=record, end=read_end(arbiter))


async def read_signals(promises: Promises, key: bytes) -> list[Signal]:
    """Return what machines told of a ballot's approver, the earliest first."""
    signals: list[Signal] = []
    while True:
        try:
            promise = await promises.get(signal_id(key, len(signals)))
        except ServerError as exc:
            if exc.code == _NOT_FOUND:
                return signals
            raise
        signals.append(msgspec.convert(promise.param.data, Signal))


async def signals_of(promises: Promises, ask: Ask, arbiter: End | None) -> dict[str, list[Signal]]:
    """Return what machines told of those who did not decide, by address."""
    emails = [approver.email for approver in undecided(ask, arbiter)]
    keys = [ballot_key(ask.approval_id, email) for email in emails]
    told = await asyncio.gather(*(read_signals(promises, key) for key in keys))
    return dict(zip(emails, told, strict=True))


def signal_id(key: bytes, position: int) -> str:
    """Return the promise of a ballot's signal, counted from 0."""
    return f"signal.{spell(key)}.{position}"


async def list_approval(promises: Promises, root: PromiseRecord) -> None:
    """Have lists show an approval whose own promise bears another program's tags."""
    if root.tags.get(KIND_TAG) != APPROVAL:
        entry, tags = _entry_id(root.id), {KIND_TAG: APPROVAL}
        await promises.create(entry, root.timeout_at, Value(data=root.id), tags)


async def list_closed(promises: Promises, root: PromiseRecord) -> None:
    """Have lists find that approval among those that are closed."""
    if root.tags.get(KIND_TAG) != APPROVAL:
        await promises.resolve(_entry_id(root.id), Value())


def read_ask(promise: PromiseRecord) -> Ask:
    """Return what an approval's own promise asks. Raises NotFound if it is no approval's."""
    request = _request_of(promise)
    if request is None:
        raise NotFound(promise.id)
    created_at = instant(int(promise.tags.get(CREATED_TAG, promise.created_at)))
    return definite(request, promise.id, created_at, instant(promise.timeout_at))


def read_end(promise: PromiseRecord) -> End | None:
    """Return how a ballot's promise or an arbiter ended; None while it has not.

    We only ever resolve them. One that timed out (the engine was away past the
    grace) expired; one that an operator cancelled was withdrawn.
    """
    match promise.state:
        case "pending":
            return None
        case "resolved":
            return msgspec.convert(promise.value.data, Vote | Closed)
        case "rejected_timedout":
            return Closed(reason="expired", at=instant(promise.settled_at or promise.timeout_at))
        case "rejected" | "rejected_canceled":
            return Closed(reason="withdrawn", at=instant(promise.settled_at or promise.timeout_at))


async def settle(promises: Promises, promise_id: str, end: End) -> End:
    """Resolve a ballot's promise or an arbiter; return the end that won, ours or an earlier one."""
    won = read_end(await promises.resolve(promise_id, Value(data=end)))
    assert won is not None  # a promise that was just settled  # noqa: S101
    return won


@asynccontextmanager
async def engine_errors(
    missing: Exception | None = None, *, patience: float = ENGINE_PATIENCE
) -> AsyncIterator[None]:
    """Turn the SDK's errors into ours: 404 into `missing`, all else into EngineAway.

    Silence too: the SDK's connector to an engine that is away tries for ever, while
    somebody waits for our answer. What was cut off may still have been done.
    """
    try:
        async with asyncio.timeout(patience):
            yield
    except TimeoutError as exc:
        raise EngineAway("no answer in time") from exc
    except ServerError as exc:
        if exc.code == _NOT_FOUND and missing is not None:
            raise missing from exc
        raise EngineAway(str(exc)) from exc
    except ResonateError as exc:
        raise EngineAway(str(exc)) from exc


def instant(ms: int) -> datetime:
    """Return the instant of a promise's clock: milliseconds since 1970, at most `FAR`."""
    return datetime.fromtimestamp(min(ms, FAR) / 1000, UTC)


def milliseconds(at: datetime) -> int:
    """Return an instant as the promises' clock has it."""
    return (at - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)


def _record_id(key: bytes) -> str:
    return f"ballot.{spell(key)}"


def _entry_id(approval_id: str) -> str:
    return f"entry.{spell(ballot_key(approval_id, ''))}"


def _request_of(promise: PromiseRecord) -> Request | None:
    """Return the request that an approval's own promise carries; None for any other promise."""
    data = promise.param.data
    if not isinstance(data, dict) or data.get("func") != APPROVAL:
        return None
    args: Sequence[object] = data.get("args") or ()
    try:
        return read_request(args[0]) if len(args) == 1 else None
    except RequestInvalid:  # sent by another language's workflow; its result says so
        return None


def read_request(body: object) -> Request:
    """Parse a request that was kept, which is read many times over. Raises RequestInvalid."""
    return _read(msgspec.json.encode(body))


@lru_cache(maxsize=256)
def _read(encoded: bytes) -> Request:
    return parse_request(msgspec.json.decode(encoded))
