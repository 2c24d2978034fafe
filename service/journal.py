"""What inbound mail told, kept durably beside its ballot.

::

    mail.<key>.<mark>     a message that was acted on, so that its copy is not

Each is a promise that is created once and never settled: it ends with the ballot's record.
"""

from resonate.error import ServerError
from resonate.promises import Promises
from resonate.types import Value

from service.approvals import KIND_TAG, engine_errors, milliseconds
from service.domain import Ballot
from service.requests import GRACE
from service.tokens import spell

_NOT_FOUND = 404


class Journal:
    """Remembers messages. Everything here is durable when it returns, and raises EngineAway."""

    def __init__(self, promises: Promises) -> None:
        self._promises = promises

    async def knows(self, ballot: Ballot, mark: str) -> bool:
        """Tell whether the message with this mark was acted on."""
        with engine_errors():
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

    async def _keep(self, promise_id: str, ballot: Ballot, value: Value, tags: dict[str, str]) -> None:
        with engine_errors():
            until = milliseconds(ballot.ask.due_at + GRACE)
            await self._promises.create(promise_id, until, value, tags)


def _mail_id(ballot: Ballot, mark: str) -> str:
    return f"mail.{spell(ballot.key)}.{mark}"
