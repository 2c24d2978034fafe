"""What inbound mail told, kept durably beside its ballot.

::

    mail.<key>.<mark>   a message that was acted on, so that its copy is not
    signal.<key>.<n>    what a machine told of the approver, in the order it did: one of a kind a day

Each is a promise that is created once and never settled: it ends with the ballot's record.
"""

import msgspec
from resonate.types import PromiseRecord, Value

from service.domain import Ballot, Signal, SignalKind
from service.engine import OWNER_TAG, Promises
from service.records import (
    APPROVER_TAG,
    KIND_TAG,
    Clock,
    engine_errors,
    instant,
    milliseconds,
    read_signals,
    signal_id,
    utc_now,
)
from service.requests import GRACE
from service.tokens import spell

#: Names a signal's kind in its promise's tags.
SIGNAL_TAG = "approvals:signal"


class Journal:
    """Remembers messages. Everything here is durable when it returns, and raises EngineAway."""

    def __init__(self, promises: Promises, now: Clock = utc_now) -> None:
        self._promises = promises
        self._now = now

    async def knows(self, ballot: Ballot, mark: str) -> bool:
        """Tell whether the message with this mark was acted on."""
        async with engine_errors():
            (kept,) = await self._promises.find(_mail_id(ballot, mark))
        return kept is not None

    async def mark(self, ballot: Ballot, mark: str) -> None:
        """Remember that the message with this mark was acted on."""
        await self._keep(_mail_id(ballot, mark), ballot, Value(), {KIND_TAG: "mail"})

    async def note(self, ballot: Ballot, kind: SignalKind, text: str, sender: str | None) -> None:
        """Keep what a machine told of this ballot's approver; the first of a kind each day stands."""
        now = self._now()
        signal = Signal(kind=kind, at_ms=milliseconds(now), text=text, sender=sender)
        tags = {KIND_TAG: "signal", SIGNAL_TAG: kind, APPROVER_TAG: ballot.approver.email}
        async with engine_errors():
            (kept,) = await read_signals(self._promises, ballot.key)
        while not any(one.kind == kind and instant(one.at_ms).date() == now.date() for one in kept):
            promise = await self._keep(signal_id(ballot.key, len(kept)), ballot, Value(data=signal), tags)
            kept.append(msgspec.convert(promise.param.data, Signal))  # ours, or another process's

    async def _keep(
        self, promise_id: str, ballot: Ballot, value: Value, tags: dict[str, str]
    ) -> PromiseRecord:
        tags |= {OWNER_TAG: ballot.ask.approval_id}
        async with engine_errors():
            until = milliseconds(ballot.ask.due_at + GRACE)
            return await self._promises.create(promise_id, until, value, tags)


def _mail_id(ballot: Ballot, mark: str) -> str:
    return f"mail.{spell(ballot.key)}.{mark}"
