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
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import msgspec
from resonate.error import ResonateError, ServerError
from resonate.types import PromiseRecord, TaskData, Value

from service.domain import Ballot, BallotRecord, Closed, End, Signal, Vote, ballot_key, undecided
from service.engine import OWNER_TAG, Promises
from service.errors import EngineAway, IdTaken, NotFound, RequestInvalid
from service.requests import Ask, Request, definite, parse_request
from service.tokens import spell

#: The group that workers join, and the durable functions' names there.
GROUP = "approvals"
APPROVAL, ANSWER = "approval", "answer"

#: Marks our promises for lists; a fresh value in BORN tells who created one.
KIND_TAG, BORN_TAG = "approvals:kind", "approvals:born"
APPROVER_TAG = "approvals:approver"
#: The birth, in ms, of one that was moved here from another engine.
CREATED_TAG = "approvals:created"

#: Seconds that a caller's question to the engine may take; then they hear that it is away.
ENGINE_PATIENCE = 10.0
#: The year 9000, in ms: other programs' roots may live longer than there are dates for.
FAR = 221_845_392_000_000
_NOT_FOUND = 404

type Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return now, in UTC, to the millisecond: what the engine and the wire keep."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


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


async def find_records(promises: Promises, *keys: bytes) -> list[BallotRecord | None]:
    """Return ballots' records, None where there is none."""
    found = await promises.find(*map(_record_id, keys))
    return [None if one is None else msgspec.convert(one.param.data, BallotRecord) for one in found]


async def read_ballot(promises: Promises, key: bytes) -> Ballot:
    """Return the ballot as it stands. Raises the SDK's ServerError 404 where there is none."""
    record = msgspec.convert((await promises.get(_record_id(key))).param.data, BallotRecord)
    root, arbiter = await promises.read(record.approval_id, record.arbiter)
    return Ballot(key=key, ask=read_ask(root), record=record, end=read_end(arbiter))


async def read_signals(promises: Promises, *keys: bytes) -> list[list[Signal]]:
    """Return what machines told of each ballot's approver, the earliest first."""
    told: list[list[Signal]] = [[] for _ in keys]
    asked = list(zip(keys, told, strict=True))
    while asked:
        found = await promises.find(*(signal_id(key, len(signals)) for key, signals in asked))
        more = [(one, promise) for one, promise in zip(asked, found, strict=True) if promise is not None]
        for (_, signals), promise in more:
            signals.append(msgspec.convert(promise.param.data, Signal))
        asked = [one for one, _ in more]
    return told


async def signals_of(promises: Promises, ask: Ask, arbiter: End | None) -> dict[str, list[Signal]]:
    """Return what machines told of those who did not decide, by address."""
    emails = [approver.email for approver in undecided(ask, arbiter)]
    told = await read_signals(promises, *(ballot_key(ask.approval_id, email) for email in emails))
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
    request = request_of(promise)
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


def request_of(promise: PromiseRecord) -> Request | None:
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
