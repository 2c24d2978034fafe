"""What inbound mail told, kept durably beside its ballot.

::

    mail.<key>.<mark>           a message that was acted on, so that its copy is not
    signal.<key>.<kind>.<day>   what a machine told of the approver: the first of its kind that day

Each is a promise that is created once and never settled: it ends with the ballot's record.
"""

from typing import Literal

import msgspec
from resonate.error import ServerError
from resonate.promises import Promises
from resonate.types import Value

from service.approvals import APPROVER_TAG, KIND_TAG, Clock, engine_errors, milliseconds, utc_now
from service.domain import Ballot
from service.requests import GRACE
from service.tokens import spell

#: Names a signal's kind in its promise's tags.
SIGNAL_TAG = "approvals:signal"

type SignalKind = Literal["out-of-office", "delayed"]

_NOT_FOUND = 404


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine told: `text` are its own words, clean; `sender` its From, a claim."""

    kind: SignalKind
    at_ms: int
    text: str
    sender: str | None


class Journal:
    """Remembers messages. Everything here is durable when it returns, and raises EngineAway."""

    def __init__(self, promises: Promises, now: Clock = utc_now) -> None:
        self._promises = promises
        self._now = now

    async def knows(self, ballot: Ballot, mark: str) -> bool:
        """Tell whether the message with this mark was acted on."""
        async with engine_errors():
            try:
                await self._promises.get(_mail_id(ballot, mark))
            except ServerError as exc:
                if exc.code == _NOT_FOUND:
                    return False
                raise
        return True

    async def mark(self, ballot: Ballot, mark: str) -> None:
        """Remember that the message with this mark was acted on."""
        await self._keep(_mail_id(ballot, mark), ballot, Value(), {KIND_TAG: "mail"})

    async def note(self, ballot: Ballot, kind: SignalKind, text: str, sender: str | None) -> None:
        """Keep what a machine told of this ballot's approver; the first of a kind each day stands."""
        now = self._now()
        signal = Signal(kind=kind, at_ms=milliseconds(now), text=text, sender=sender)
        tags = {KIND_TAG: "signal", SIGNAL_TAG: kind, APPROVER_TAG: ballot.approver.email}
        await self._keep(signal_id(ballot.key, kind, f"{now:%Y%m%d}"), ballot, Value(data=signal), tags)

    async def _keep(self, promise_id: str, ballot: Ballot, value: Value, tags: dict[str, str]) -> None:
        async with engine_errors():
            until = milliseconds(ballot.ask.due_at + GRACE)
            await self._promises.create(promise_id, until, value, tags)


def signal_id(ballot_key: bytes, kind: SignalKind, day: str) -> str:
    """Return the promise of a signal; `day` is ``YYYYMMDD`` in UTC."""
    return f"signal.{spell(ballot_key)}.{kind}.{day}"


def _mail_id(ballot: Ballot, mark: str) -> str:
    return f"mail.{spell(ballot.key)}.{mark}"
