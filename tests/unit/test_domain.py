"""Ballots and outcomes: the tally row by row, keys that never change, times as callers read them."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import (
    VERDICTS,
    Ballot,
    BallotRecord,
    BallotStatus,
    Choice,
    Closed,
    End,
    Report,
    Status,
    Vote,
    ballot_key,
    tally,
    to_wire,
)
from service.requests import Approver, Ask

AT = datetime(2026, 11, 24, 16, 0, tzinfo=UTC)
ANN, BOB, CYD = (
    Approver(email="ann@corp.com", name="Ann"),
    Approver(email="bob@x.io"),
    Approver(email="cyd@x.io"),
)
ASK = Ask(
    approval_id="refund-42",
    subject="Refund",
    message="",
    facts={},
    approvers=[ANN, BOB, CYD],
    requester=None,
    created_at=AT - timedelta(days=1),
    due_at=AT + timedelta(days=1),
)
BOUNCED = Closed(reason="undeliverable", at=AT, detail="550 no such user")
MOOT = Closed(reason="moot", at=AT)


def vote(choice: Choice = "approve", by: str = ANN.email) -> Vote:
    """Return a vote at AT."""
    return Vote(choice=choice, by=by, at=AT, channel="reply", cast_id="1", comment="fine")


def closed(reason: str) -> Closed:
    """Return an end without a decision."""
    return msgspec.convert({"end": "closed", "reason": reason, "at": AT}, Closed)


@pytest.mark.parametrize(
    ("arbiter", "status", "others"),
    [
        (None, "pending", "asked"),
        (vote("approve"), "approved", "moot"),
        (vote("decline"), "declined", "moot"),
        (closed("expired"), "expired", "moot"),
        (closed("withdrawn"), "withdrawn", "moot"),
        (closed("undeliverable"), "undeliverable", "moot"),
    ],
)
@pytest.mark.parametrize("theirs", [None, MOOT])
def test_the_tally_row_by_row(
    arbiter: End | None, status: Status, others: BallotStatus, theirs: End | None
) -> None:
    """The table of `tally`: the arbiter decides, whatever the others' promises say so far."""
    report = tally(ASK, arbiter, [theirs, BOUNCED, theirs])
    assert (report.id, report.subject) == (ASK.approval_id, ASK.subject)
    assert (report.created_at, report.due_at) == (ASK.created_at, ASK.due_at)
    assert report.status == status
    assert report.closed_at == (None if arbiter is None else AT)
    assert [a.email for a in report.approvers] == [ANN.email, BOB.email, CYD.email]
    mine = "decided" if isinstance(arbiter, Vote) else others
    assert [a.status for a in report.approvers] == [mine, "undeliverable", others]


def test_the_voter_is_reported_with_the_vote() -> None:
    """Who, what, how, when and why stand beside the one who decided, and beside nobody else."""
    ann, bob, cyd = tally(ASK, vote("decline", BOB.email), [None, None, None]).approvers
    assert (bob.choice, bob.channel, bob.at, bob.comment) == ("decline", "reply", AT, "fine")
    for other in (ann, cyd):
        assert (other.choice, other.channel, other.at, other.comment) == (None, None, None, None)
    assert (ann.name, bob.name) == ("Ann", None)


def test_a_vote_without_a_comment_has_none() -> None:
    """An empty comment is no comment."""
    silent = msgspec.structs.replace(vote(), comment="")
    assert tally(ASK, silent, [None] * 3).approvers[0].comment is None


def test_who_decided_after_a_bounce_has_decided() -> None:
    """A letter that came back late does not undo a vote."""
    assert tally(ASK, vote(), [BOUNCED, None, None]).approvers[0].status == "decided"


@pytest.mark.parametrize("end", [None, vote(), vote("decline"), closed("expired"), BOUNCED])
def test_a_single_approver_is_their_own_arbiter(end: End | None) -> None:
    """Where one promise is both, the report agrees with itself."""
    ask = msgspec.structs.replace(ASK, approvers=[ANN])
    report = tally(ask, end, [end])
    expected = {
        "pending": "asked",
        "approved": "decided",
        "declined": "decided",
        "expired": "moot",
        "undeliverable": "undeliverable",
    }
    assert report.approvers[0].status == expected[report.status]


@pytest.mark.parametrize("count", [0, 2, 4])
def test_ends_are_counted(count: int) -> None:
    """An end too many or too few is a defect, never a shorter report."""
    with pytest.raises(ValueError, match="zip"):
        tally(ASK, None, [None] * count)


def test_every_row_is_a_report_that_can_be_read_again() -> None:
    """Whatever came of it, callers in any language get plain JSON that means the same."""
    ends: list[End | None] = [None, vote(), BOUNCED, MOOT]
    for arbiter, *theirs in product([None, vote(), closed("expired"), BOUNCED], ends, ends, ends):
        report = tally(ASK, arbiter, theirs)
        assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(to_wire(report))), Report) == report


def test_every_choice_has_a_verdict() -> None:
    """No vote leaves an approval without an outcome."""
    assert VERDICTS == {"approve": "approved", "decline": "declined"}


def test_ends_survive_their_storage() -> None:
    """A vote and a closing are told apart when a promise is read back."""
    for end in (vote(), BOUNCED, MOOT):
        assert msgspec.json.decode(msgspec.json.encode(end), type=End.__value__) == end


def test_a_ballot_knows_whom_it_asks() -> None:
    """The record's position names the approver."""
    record = BallotRecord(approval_id=ASK.approval_id, position=1, promise="p", arbiter="a")
    assert Ballot(key=b"", ask=ASK, record=record, end=None).approver is BOB


# ── Keys ──────────────────────────────────────────────────────────────────────


def test_a_ballots_key_never_changes() -> None:
    """Links, addresses and records in flight hold it: these vectors may never be edited."""
    assert ballot_key("refund-42", "ann@corp.com").hex() == "1af8f424ed31cc9d571b22fcae7cad01"
    assert ballot_key("root:0", "x@xn--bcher-kva.example").hex() == "aac7804d8fa05410afe40632b78fb11f"


ids = st.from_regex(r"[A-Za-z0-9._:-]{1,20}", fullmatch=True)


@given(st.sets(st.tuples(ids, st.emails()), min_size=2, max_size=9))
def test_ballots_have_keys_of_their_own(named: set[tuple[str, str]]) -> None:
    """Another approval or another approver is another ballot; a key has sixteen bytes."""
    keys = {ballot_key(approval_id, email) for approval_id, email in named}
    assert len(keys) == len(named)
    assert {len(key) for key in keys} == {16}


def test_an_id_and_an_address_do_not_run_together() -> None:
    """Where one ends and the other begins is part of the key."""
    assert ballot_key("a", "bc@x.io") != ballot_key("ab", "c@x.io")


# ── Times as callers read them ────────────────────────────────────────────────


def test_times_have_milliseconds_and_a_zone() -> None:
    """RFC 3339 in UTC, at every depth, whatever zone they were in."""
    east = timezone(timedelta(hours=2))
    report = tally(msgspec.structs.replace(ASK, due_at=AT.astimezone(east)), vote(), [None] * 3)
    wire = to_wire(report)
    assert wire["created_at"] == "2026-11-23T16:00:00.000Z"
    assert wire["due_at"] == "2026-11-24T16:00:00.000Z"
    assert wire["approvers"][0]["at"] == "2026-11-24T16:00:00.000Z"


@given(st.datetimes(datetime(1900, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_time_on_the_wire_is_never_later(at: datetime) -> None:
    """Cutting to milliseconds never moves a decision past its due time."""
    read = datetime.fromisoformat(to_wire(Closed(reason="moot", at=at))["at"])
    assert timedelta(0) <= at - read < timedelta(milliseconds=1)
