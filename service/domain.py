"""Ballots, decisions and outcomes as values, and the tally.

Nothing here does I/O. Times are aware UTC datetimes, addresses are canonical.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from service.requests import Approver, Ask

type Choice = Literal["approve", "decline"]
type Channel = Literal["link", "reply", "api"]
type Status = Literal["pending", "approved", "declined", "expired", "withdrawn", "undeliverable"]
type BallotStatus = Literal["asked", "decided", "moot", "undeliverable"]
type SignalKind = Literal["out-of-office", "delayed"]

#: What a vote makes of the approval.
VERDICTS: dict[Choice, Status] = {"approve": "approved", "decline": "declined"}


class Vote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="vote", tag_field="end"):
    """A person's decision. `cast_id` tells a voter's own vote from an equal one."""

    choice: Choice
    by: str
    at: datetime
    channel: Channel
    cast_id: str
    comment: str = ""
    evidence: dict[str, str] = {}


class Closed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="closed", tag_field="end"):
    """An end without a decision of this ballot's approver."""

    reason: Literal["expired", "withdrawn", "undeliverable", "moot"]
    at: datetime
    detail: str = ""


#: What an arbiter or a ballot's own promise is resolved with, always.
type End = Vote | Closed


class BallotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A ballot as it is found by its key.

    `promise` ends when this approver can't be reached or is no longer needed.
    `arbiter` is where votes go: the same promise for a single approver, one that
    all share where the first answer counts, so that two answers never both win.
    """

    approval_id: str
    position: int
    promise: str
    arbiter: str


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine told of an approver: `text` are its own words, clean; `sender` its From, a claim."""

    kind: SignalKind
    at_ms: int
    text: str
    sender: str | None


class Ballot(msgspec.Struct, frozen=True, kw_only=True):
    """One approver's part of an approval, as it stands; `end` is None while it can be decided."""

    key: bytes
    ask: Ask
    record: BallotRecord
    end: End | None

    @property
    def approver(self) -> Approver:
        """The person who is asked."""
        return self.ask.approvers[self.record.position]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Why an approver may not have answered: their mail waits at their server, or they are away."""

    kind: SignalKind
    at: datetime
    text: str


class ApproverReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One approver of an approval as callers see it; `notes` of one who did not decide."""

    email: str
    status: BallotStatus
    name: str | None = None
    choice: Choice | None = None
    channel: Channel | None = None
    at: datetime | None = None
    comment: str | None = None
    notes: list[Note] = []


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An approval as callers see it: the API's answer and the workflow's result."""

    id: str
    status: Status
    subject: str
    created_at: datetime
    due_at: datetime
    approvers: list[ApproverReport]
    closed_at: datetime | None = None


def ballot_key(approval_id: str, email: str) -> bytes:
    """Return the 16 bytes that name one approver's ballot: the same on every retry."""
    return hashlib.blake2b(
        f"{approval_id}\0{email}".encode(), digest_size=16, person=b"approvals ballot"
    ).digest()


def to_wire(value: msgspec.Struct) -> dict[str, Any]:
    """Return `value` as JSON values, its times RFC 3339 with milliseconds and zone."""

    def timed(part: object) -> object:
        match part:
            case datetime():
                return part.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            case dict():
                return {name: timed(each) for name, each in part.items()}
            case list():
                return [timed(each) for each in part]
            case _:
                return part

    return {name: timed(each) for name, each in msgspec.to_builtins(value, builtin_types=(datetime,)).items()}


def tally(
    ask: Ask,
    arbiter: End | None,
    ends: Sequence[End | None],
    signals: Mapping[str, Sequence[Signal]] = MappingProxyType({}),
) -> Report:
    """Tell how an approval stands; `ends` are the approvers' own promises, in their order.

    `signals` are what machines told of them, by address.

    ==================================  ==============  ===================
    arbiter                             status          the other approvers
    ==================================  ==============  ===================
    a vote                              its verdict     moot
    closed                              its reason      moot
    open                                pending         asked
    ==================================  ==============  ===================

    An approver who could not be reached and did not decide is `undeliverable` in
    every row.
    """
    status: Status = "pending"
    if isinstance(arbiter, Vote):
        status = VERDICTS[arbiter.choice]
    elif arbiter is not None and arbiter.reason != "moot":  # an arbiter never is
        status = arbiter.reason
    approvers = [
        _approver_report(approver, arbiter, end, signals.get(approver.email, ()))
        for approver, end in zip(ask.approvers, ends, strict=True)
    ]
    return Report(
        id=ask.approval_id,
        status=status,
        subject=ask.subject,
        created_at=ask.created_at,
        due_at=ask.due_at,
        closed_at=None if arbiter is None else arbiter.at,
        approvers=approvers,
    )


def undecided(ask: Ask, arbiter: End | None) -> list[Approver]:
    """Return the approvers who did not decide, or have not yet."""
    return [one for one in ask.approvers if not (isinstance(arbiter, Vote) and arbiter.by == one.email)]


def _approver_report(
    approver: Approver, arbiter: End | None, end: End | None, signals: Sequence[Signal]
) -> ApproverReport:
    if isinstance(arbiter, Vote) and arbiter.by == approver.email:
        return ApproverReport(
            email=approver.email,
            name=approver.name,
            status="decided",
            choice=arbiter.choice,
            channel=arbiter.channel,
            at=arbiter.at,
            comment=arbiter.comment or None,
        )
    unreachable = isinstance(end, Closed) and end.reason == "undeliverable"
    status: BallotStatus = "undeliverable" if unreachable else "asked" if arbiter is None else "moot"
    notes = [
        Note(kind=one.kind, at=datetime.fromtimestamp(one.at_ms / 1000, UTC), text=one.text)
        for one in signals
    ]
    return ApproverReport(email=approver.email, name=approver.name, status=status, notes=notes)
