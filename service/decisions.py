"""Casting a decision: the one place outside the workflow that ends a ballot.

Every channel comes through `Decisions.cast`, so that link, reply and API have
the same rules, the same deadline and the same winner.
"""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from service.approvals import Approvals
from service.domain import Ballot, Channel, Choice, Closed, End, Vote
from service.records import Clock, engine_errors, settle, utc_now
from service.requests import clean_text

log = logging.getLogger("approvals.decisions")


@dataclass(frozen=True)
class Cast:
    """What became of a vote: `counted` tells that it decided; `end` is what stands either way."""

    ballot: Ballot
    end: End
    counted: bool


class Decisions:
    """Casts votes on ballots."""

    def __init__(self, approvals: Approvals, now: Clock = utc_now) -> None:
        self._approvals = approvals
        self._now = now

    async def cast(
        self,
        ballot: Ballot,
        choice: Choice,
        channel: Channel,
        *,
        comment: str = "",
        evidence: Mapping[str, str] | None = None,
    ) -> Cast:
        """Cast the vote of the ballot's approver, or tell what had ended it before.

        The vote is durable when this returns; that `ballot` was read a while ago is no
        matter, since the first to reach its arbiter wins. Raises EngineAway.
        """
        if ballot.end is not None:
            return Cast(ballot, ballot.end, counted=False)
        now = self._now()
        ours: End = Vote(
            choice=choice,
            by=ballot.approver.email,
            at=now,
            channel=channel,
            cast_id=secrets.token_hex(8),
            comment=clean_text(comment),
            evidence=dict(evidence or {}),
        )
        if now > ballot.ask.due_at:
            # The timer is late or no worker is up: the deadline holds all the same.
            ours = Closed(reason="expired", at=ballot.ask.due_at)
        async with engine_errors():
            won = await settle(self._approvals.promises, ballot.record.arbiter, ours)
        counted = won == ours and isinstance(won, Vote)
        log.info(
            "approval %s: %s by %s, by %s%s",
            ballot.ask.approval_id,
            choice,
            ballot.approver.email,
            channel,
            "" if counted else ": too late",
        )
        return Cast(replace(ballot, end=won), won, counted=counted)

    async def bounced(self, ballot: Ballot, detail: str) -> None:
        """Note that this approver's mail server sent their letter back. Raises EngineAway.

        A bounce after they decided, by another road, changes nothing.
        """
        end = Closed(reason="undeliverable", at=self._now(), detail=detail)
        async with engine_errors():
            await settle(self._approvals.promises, ballot.record.promise, end)
