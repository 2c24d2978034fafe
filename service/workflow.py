"""The durable functions: what outlives every process. The only module with a Context.

`approval` is one approval from its first letter to its outcome. Its body may be
replayed from the top at any time, so its effects are in leaves, journaled by the
engine and repeatable, but for `close`, which only ends promises. A leaf that runs
twice writes the same record and sends the same letter, byte for byte.

A body once run is a promise to the engine: a changed order of its durable calls
is a new version beside the old one, never an edit.
"""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

import msgspec
from resonate.context import Context, ResonateFuture
from resonate.error import PlatformError, ResonateError, Suspended
from resonate.resonate import Resonate
from resonate.retry import Exponential, Never
from resonate.types import Value

from service.answers import ANSWER_LIFE, Answer
from service.conversation import Accepted, Later, Sent, Undeliverable
from service.domain import Ballot, BallotRecord, Closed, End, Report, Vote, ballot_key, tally, to_wire
from service.engine import Promises
from service.errors import RequestInvalid
from service.letters import Letter, Letters
from service.records import (
    ANSWER,
    APPROVAL,
    Clock,
    instant,
    list_approval,
    list_closed,
    milliseconds,
    read_ask,
    read_ballot,
    read_end,
    read_request,
    record_ballot,
    settle,
    signals_of,
    utc_now,
)
from service.requests import Ask, people
from service.tokens import Tokens, spell, unspell

log = logging.getLogger("approvals.workflow")

#: A leaf that fails is run again here a few times; then the approval's result is that error.
LEAF_RETRIES = Exponential(delay=1, factor=2, max_retries=4, max_delay=30)
#: Longer than any root may live: children are clamped to their root.
FOREVER = timedelta(days=3650)
#: Pauses between attempts at a letter, in seconds: ten minutes of at most half a
#: minute each, then longer and longer up to an hour, until the approval is due.
PAUSES = (1, 2, 4, 8, 15, *[30] * 19, 60, 120, 300, 600, 1800)
LAST_PAUSE = 3600

type Delivery = Literal["sent", "later", "undeliverable"]


class Mailer(Protocol):
    """What sends one letter, once; an outcome is a value, never an exception."""

    async def send(self, letter: Letter) -> Sent:
        """Try to hand `letter` to the mail server."""


@dataclass(frozen=True)
class Ports:
    """What leaves need of the world; one frozen object, since the SDK keys dependencies by type."""

    promises: Promises
    mailer: Mailer
    letters: Letters
    tokens: Tokens
    now: Clock = utc_now


def register(resonate: Resonate) -> None:
    """Make the durable functions known to a worker."""
    # The SDK's own policy would retry a body that fails at once for ever, with a permit and a lease in
    # its hand; what is worth another try is in leaves.
    resonate.register(approval, name=APPROVAL, version=1, retry_policy=Never())
    resonate.register(answer, name=ANSWER, version=1, retry_policy=Never())


# ── One approval, from top to bottom ──────────────────────────────────────────


async def approval(ctx: Context, request: object) -> dict[str, Any]:
    """Ask the approvers of `request` and return the report of how it ended."""
    try:
        approvers = people(read_request(request))
    except RequestInvalid as exc:  # any language may call: a result that names the field, not a retry
        return {"status": "invalid", "problems": msgspec.to_builtins(exc.problems)}

    # Else a leaf has a day, and a worker that is away for longer would find it timed out.
    patient = ctx.options(retry_policy=LEAF_RETRIES, timeout=FOREVER)

    # 1. A promise for each approver; votes go to the arbiter, so that only one can win.
    seats = [ctx.promise(FOREVER) for _ in approvers]
    arbiter = seats[0] if len(seats) == 1 else ctx.promise(FOREVER)
    arbiter_id, seat_ids = await arbiter.id(), [await seat.id() for seat in seats]

    # 2. The letters, until all are out or it has ended without them.
    unsent, timers = list(range(len(seats))), list[ResonateFuture[None]]()
    while unsent:
        tries = [patient.run(ask_approver, n, seat_ids[n], arbiter_id) for n in unsent]
        deliveries = [await delivered(one) for one in tries]
        unsent = [n for n, delivery in zip(unsent, deliveries, strict=True) if delivery == "later"]
        if unsent:
            timers = timers or [ctx.sleep(await time_left(ctx))]
            timers.append(ctx.sleep(pause_after(len(timers) - 1)))
            # The pause comes last: where this clock is behind the engine's, each is over as it begins.
            if await first(patient, arbiter, timers[0], timers[-1]) != 2:  # noqa: PLR2004
                break

    # 3. Nothing is held while people think: this is where it suspends, for weeks if need be.
    #    Every way out leads to the same next step, so a replay need not be told which one it was.
    #    One that finds it decided makes no timer, and has none to end: the one there is ends by itself.
    decided, *unreachable = [await is_settled(one) for one in (arbiter, *seats)]
    if not (decided or all(unreachable)):
        deadline = timers[0] if timers else ctx.sleep(await time_left(ctx))
        if not await is_settled(deadline):
            raise Suspended

    # 4. Close what is still open, whoever won; a body must not return before all it waits for has ended.
    ask, end, report = await close(ctx, arbiter_id, seat_ids, [await timer.id() for timer in timers])
    if not all([await is_settled(one) for one in (arbiter, *seats, *timers)]):
        raise Suspended  # what this run saw pending, the next one finds settled

    # 5. The voice of the one who decided is answered.
    if isinstance(end, Vote) and end.channel == "reply":
        voter = spell(ballot_key(ask.approval_id, end.by))
        receipt = Answer(ballot=voter, kind="receipt", at_ms=milliseconds(end.at), nth="1")
        await ctx.options(timeout=ANSWER_LIFE).detached(ANSWER, msgspec.to_builtins(receipt))
    log.info("approval %s: %s", ask.approval_id, report.status)
    return to_wire(report)


async def answer(ctx: Context, order: dict[str, Any]) -> Delivery:
    """Send one letter in answer, trying until the mail server has taken or refused it."""
    attempt = 0
    while True:
        patient = ctx.options(retry_policy=LEAF_RETRIES, timeout=FOREVER)
        delivery = await delivered(patient.run(send_answer, order))
        if delivery != "later":
            return delivery
        await ctx.sleep(pause_after(attempt))
        attempt += 1


async def close(
    ctx: Context, arbiter_id: str, seat_ids: list[str], timer_ids: list[str]
) -> tuple[Ask, End, Report]:
    """End what is still open; return what was asked, how it ended, and the report of it.

    Whoever came first at the arbiter stands: a vote that beat the deadline by a
    moment is what the report says. Where nobody did, nobody could be reached, or
    it is late. No leaf, since nothing of it needs a journal: what is settled stays
    as it is, so that another run finds what this one made.
    """
    with engine_at_hand():
        ports, root_id = ctx.get_dependency(Ports), ctx.info.id
        promises = ports.promises
        asked = dict.fromkeys([root_id, arbiter_id, *seat_ids])
        found = dict(zip(asked, await promises.read(*asked), strict=True))
        ask, end = read_ask(found[root_id]), read_end(found[arbiter_id])
        seats = [read_end(found[seat_id]) for seat_id in seat_ids]
        if end is None:
            lost = Closed(reason="undeliverable", at=ports.now())
            late = Closed(reason="expired", at=ask.due_at)
            end = await settle(promises, arbiter_id, lost if all(seats) else late)
        moot = Closed(reason="moot", at=end.at)
        ends = [
            seat or (end if seat_id == arbiter_id else await settle(promises, seat_id, moot))
            for seat_id, seat in zip(seat_ids, seats, strict=True)
        ]
        for timer_id in timer_ids:
            await promises.resolve(timer_id, Value())
        await list_closed(promises, found[root_id])
        return ask, end, tally(ask, end, ends, await signals_of(promises, ask, end))


async def first(ctx: Context, *futures: ResonateFuture[Any]) -> int:
    """Return the index of the first settled future: durable, the same on every replay.

    Suspends while none is. The index is journaled: without that, a replay that
    finds two settled could take another branch and lose a step in silence.
    """
    settled = [await is_settled(future) for future in futures]
    if not any(settled):
        raise Suspended
    return await ctx.run(keep, settled.index(True))


async def is_settled(future: ResonateFuture[Any]) -> bool:
    """Tell whether awaiting `future` would not suspend."""
    try:
        await future
    except Suspended:
        return False
    except Exception:  # noqa: BLE001 - a rejection of any kind settles it; read_end says what it means
        return True
    return True


async def delivered(attempt: ResonateFuture[Delivery]) -> Delivery:
    """Return what became of a letter; an attempt that failed by a defect of ours is made again later."""
    try:
        return await attempt
    except Exception:
        log.exception("a letter could not be tried: %s", await attempt.id())
        return "later"


async def time_left(ctx: Context) -> timedelta:
    """Return how long it is until it is due: a timer's length, of which a replay keeps the first."""
    with engine_at_hand():
        ports = ctx.get_dependency(Ports)
        due_at = read_ask(await ports.promises.get(ctx.info.id)).due_at
        return max(timedelta(0), due_at - ports.now())


def pause_after(attempt: int) -> timedelta:
    """Return how long to wait after attempt number `attempt` (from 0) at a letter."""
    return timedelta(seconds=PAUSES[attempt] if attempt < len(PAUSES) else LAST_PAUSE)


# ── Leaves: every effect, each safe to run twice ──────────────────────────────


def leaf[F: Callable[..., Any]](function: F) -> F:
    """Have a leaf's signature read once, and not at each of its calls as the SDK does."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


@contextmanager
def engine_at_hand() -> Iterator[None]:
    """Give the task back when the engine fails a leaf, instead of failing the approval.

    Without this an outage that outlasts the leaf's retries would be journaled as
    the leaf's own error, and the approval would end with it.
    """
    try:
        yield
    except ResonateError as exc:
        raise PlatformError([exc]) from exc


@leaf
async def ask_approver(ctx: Context, position: int, seat_id: str, arbiter_id: str) -> Delivery:
    """Have a ballot found by its key, and try its letter; an address refused for good ends the seat."""
    with engine_at_hand():
        ports = ctx.get_dependency(Ports)
        root = await ports.promises.get(ctx.info.parent_id)
        if position == 0:
            await list_approval(ports.promises, root)
        ask = read_ask(root)
        key = ballot_key(ask.approval_id, ask.approvers[position].email)
        record = BallotRecord(
            approval_id=ask.approval_id, position=position, promise=seat_id, arbiter=arbiter_id
        )
        early = await record_ballot(ports.promises, ask, record) and ports.now() < ask.due_at
        if not early or read_end(await ports.promises.get(arbiter_id)) is not None:
            return "sent"  # due, decided or closed meanwhile
        ballot = Ballot(key=key, ask=ask, record=record, end=None)
        sent = await ports.mailer.send(ports.letters.request(ballot, ports.tokens.capabilities(ballot)))
        if isinstance(sent, Undeliverable):
            refused = Closed(reason="undeliverable", at=ports.now(), detail=f"{sent.code} {sent.text}"[:500])
            await settle(ports.promises, seat_id, refused)
        return _delivery(sent, ballot, "request")


@leaf
async def send_answer(ctx: Context, order: dict[str, Any]) -> Delivery:
    """Try one letter in answer."""
    with engine_at_hand():
        ports = ctx.get_dependency(Ports)
        wanted = msgspec.convert(order, Answer)
        ballot = await read_ballot(ports.promises, unspell(wanted.ballot))
        sent = await ports.mailer.send(_answer_letter(ports, ballot, wanted))
        return _delivery(sent, ballot, wanted.kind)


@leaf
def keep(_: Context, index: int) -> int:
    """Journal `index`."""
    return index


def _answer_letter(ports: Ports, ballot: Ballot, wanted: Answer) -> Letter:
    caps, at = ports.tokens.capabilities(ballot), instant(wanted.at_ms)
    match wanted.kind, ballot.end:
        case "receipt", Vote() as vote:
            return ports.letters.receipt(ballot, vote, caps, at=at, nth=wanted.nth)
        case (("receipt" | "closed"), (Vote() | Closed()) as end):
            return ports.letters.closed(ballot, end, caps, at=at, nth=wanted.nth)
        case "clarification", _:
            return ports.letters.clarification(ballot, caps, read=wanted.read, at=at, nth=wanted.nth)
        case _:
            return ports.letters.confirmation(ballot, caps, at=at, nth=wanted.nth)


def _delivery(sent: Sent, ballot: Ballot, kind: str) -> Delivery:
    approval_id, email = ballot.ask.approval_id, ballot.approver.email
    match sent:
        case Accepted():
            log.info("approval %s: %s letter to %s is out", approval_id, kind, email)
            return "sent"
        case Later():
            log.warning("approval %s: %s letter to %s waits: %s", approval_id, kind, email, sent.reason)
            return "later"
        case Undeliverable():
            log.warning("approval %s: %s is out of reach: %s %s", approval_id, email, sent.code, sent.text)
            return "undeliverable"
