"""Letters in answer to what a person wrote: asked for here, sent by the durable `answer`.

At most one of a kind per ballot per day: the engine's first write wins, under an id
that says ballot, kind and day. What is asked for here will be sent, crash or not.
"""

from datetime import timedelta
from typing import Any, Literal

import msgspec

from service.engine import Promises
from service.records import ANSWER, Clock, engine_errors, milliseconds, start_function, utc_now
from service.tokens import spell

#: How long such a letter is tried for.
ANSWER_LIFE = timedelta(days=3)

type AnswerKind = Literal["receipt", "closed", "clarification", "confirmation"]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One letter in answer: `ballot` is the spelt key, `read` what a clarification quotes.

    `mark` tells the message that it answers from others.
    """

    ballot: str
    kind: AnswerKind
    at_ms: int
    #: Tells this letter from others of its kind on this ballot, in its Message-ID.
    nth: str
    read: str = ""
    mark: str = ""


class Answers:
    """Asks for letters in answer, to the ballot's known approver and nobody else."""

    def __init__(self, promises: Promises, target: str, now: Clock = utc_now) -> None:
        self._promises = promises
        self._target = target
        self._now = now

    async def ask(self, ballot_key: bytes, kind: AnswerKind, read: str = "", *, mark: str = "") -> bool:
        """Have the letter sent, unless one of its kind was today; False where that answered another message.

        Raises EngineAway.
        """
        now, ballot = self._now(), spell(ballot_key)
        day = f"{now:%Y%m%d}"
        order = Answer(ballot=ballot, kind=kind, at_ms=milliseconds(now), nth=day, read=read, mark=mark)
        async with engine_errors():
            promise = await start_function(
                self._promises,
                self._target,
                f"answer.{ballot}.{kind}.{day}",
                ANSWER,
                msgspec.to_builtins(order),
                timeout_at=now + ANSWER_LIFE,
            )
        won: Any = promise.param.data
        return msgspec.convert(won["args"][0], Answer).mark == mark
