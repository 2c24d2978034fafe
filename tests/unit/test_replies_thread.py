"""A mail names the letter that it answers, or another one, or none."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Ballot, BallotRecord, ballot_key
from service.replies import Reply, Sent, read_reply
from service.requests import Approver, Ask
from service.tokens import Capabilities, Tokens, spell
from tests.fixtures.replies.mails import FROM, LETTER, REPLY_TO, SUBJECT, mail

KEY, OTHER = "a" * 26, "b" * 26
TOKEN = REPLY_TO.partition("+")[2].partition("@")[0][:52].ljust(52, "2")
ADDRESS = f"r+{TOKEN}@reply.corp.example"
SENT = Sent(subject=SUBJECT, text=LETTER, reply_address=ADDRESS, own_addresses=frozenset({FROM}), thread=KEY)


def names(*fields: str, subject: str = "My answer", to: str = "approvals@corp.example") -> bool:
    """Tell what is read of a mail with these header lines."""
    raw = mail("approve", subject=subject, extra="".join(f"{field}\n" for field in fields))
    raw = raw.replace(f"To: Approvals <{REPLY_TO}>".encode(), b"To: " + to.encode())
    reading = read_reply(raw, SENT)
    assert isinstance(reading, Reply)
    return reading.names_letter()


@pytest.mark.parametrize(
    ("fields", "more", "expected"),
    [
        ([], {"to": ADDRESS}, True),
        ([], {"to": f"bob@corp.example, Approvals <{ADDRESS.upper()}>"}, True),
        ([], {"to": f"{TOKEN}@reply.corp.example"}, True),
        ([f"Cc: {ADDRESS}"], {}, True),
        ([], {"to": f"r+{'c' * 52}@reply.corp.example", "subject": SUBJECT}, False),
        ([f"In-Reply-To: <{KEY}.request@reply.corp.example>"], {"to": f"r+{'c' * 52}@x.example"}, False),
        ([f"In-Reply-To: <{KEY}.request@reply.corp.example>"], {}, True),
        ([f"References: <1@x.example>\n <{KEY}.receipt.1@reply.corp.example>"], {}, True),
        ([f"In-Reply-To: <{OTHER}.request@reply.corp.example>"], {"subject": SUBJECT}, False),
        ([], {"subject": f"AW: {SUBJECT.upper()}"}, True),
        (["In-Reply-To: <1@x.example>"], {"subject": SUBJECT}, False),
        (["In-Reply-To: <1@x.example>", f"References: <{KEY}.request@reply.corp.example>"], {}, False),
        (["In-Reply-To: <1@x.example>"], {"to": f"bob@corp.example, {ADDRESS}"}, True),
        (["In-Reply-To: <1@x.example>"], {"to": "undisclosed-recipients:;", "subject": SUBJECT}, True),
        ([], {"subject": f"AW: {SUBJECT} (2)"}, False),
        ([], {"subject": f"=?utf-8?q?{SUBJECT.replace(' ', '_')}?="}, True),
        ([], {}, False),
        ([], {"subject": "Team trip"}, False),
    ],
)
def test_one_sign_is_enough_and_one_of_another_letter_too_much(
    fields: list[str], more: dict[str, str], *, expected: bool
) -> None:
    """Recipients, the thread and the subject name a letter; the first two may name another."""
    assert names(*fields, **more) is expected


@given(st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"])))
def test_any_recipient_is_read(text: str) -> None:
    """Nothing in a field but the letter's own token or thread names the letter."""
    assert not names(f"Cc: {text}", f"References: {text}")


def test_only_what_is_covered_counts() -> None:
    """Of fields that anybody could have written anew none is a sign, neither for nor against."""
    reply = Reply(sender=FROM, verdict="approve", why=None, signs=(("to", True), ("subject", True)))
    assert reply.names_letter()
    assert reply.names_letter({"subject"})
    assert not reply.names_letter({"from"})
    other = Reply(sender=FROM, verdict="approve", why=None, signs=(("to", False), ("subject", True)))
    assert not other.names_letter()
    assert not other.names_letter({"subject"})
    quoting = Reply(sender=FROM, verdict="approve", why=None, signs=(("body", True),))
    assert quoting.names_letter(set())


@pytest.mark.parametrize(
    "before",
    [
        "",
        *("Re: ", "RE:", "Re: Re: ", "re[2]: ", "Re(3): ", "Re^2: ", "Aw: WG: ", "RÉP : ", "R: ", "I: "),
        *("SV: ", "Vá: ", "YNT: ", "Отв: ", "На: ", "ΑΠ: ", "השב: ", "رد: ", "回复\uff1a", "答复: "),  # noqa: RUF001
        *("返信: ", "회신: ", "Fwd: ", "FW: ", "TR : ", "轉寄: ", "전달: ", "Trả lời: ", "Doorst: ", "Odp: "),
        *("VS: ", "Res: ", "Pd: ", "[External] Re: ", "Re: [EXT] ", "(extern) ", "[EXTERNAL EMAIL]: "),
        *("EXTERNAL: Re: ", "***SPAM*** ", "[Encrypt] "),
    ],
)  # fmt: skip
def test_what_stands_before_a_subject_is_no_matter(before: str) -> None:
    """Programs of every language say that they answer or hand on, and gateways what they think of it."""
    assert names(subject=f"{before}{SUBJECT}")
    assert not names(subject=f"{before}{SUBJECT} and June")
    assert not names(subject=f"{before}Our {SUBJECT}")


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("Invoice 1", "Re: Invoice 12", False),
        ("Budget", "Re: [Q3] Budget", False),
        ("[Q3] Budget", "Re: Budget", False),
        ("[EXT] Budget", "Re: [EXT] Budget", True),
        ("Re: Budget", "Re: Budget", True),
        ("Extern: Budget", "AW: Extern: Budget", True),
        ("No", "Re: No: ", False),
        ("", "Re: ", False),
    ],
)
def test_a_subject_counts_as_a_whole(ours: str, theirs: str, *, same: bool) -> None:
    """A piece of another request's subject names nothing, and brackets of ours are ours."""
    reading = read_reply(mail("approve", subject=theirs), replace(SENT, subject=ours))
    assert isinstance(reading, Reply)
    assert (("subject", True) in reading.signs) is same


OLD, NEW = b"o" * 32, b"n" * 32


def caps(email: str, *keys: bytes) -> tuple[bytes, Capabilities]:
    """Return the key and the capabilities of one approver's ballot."""
    ask = Ask(
        approval_id="a",
        subject=SUBJECT,
        message="",
        facts={},
        approvers=[Approver(email=email)],
        requester=None,
        created_at=NOW,
        due_at=NOW,
    )
    record = BallotRecord(approval_id="a", position=0, promise="p", arbiter="q")
    ballot = Ballot(key=ballot_key("a", email), ask=ask, record=record, end=None)
    ring = Tokens(keys, public_url="https://approvals.corp.example", reply_domain="reply.corp.example")
    return ballot.key, ring.capabilities(ballot)


NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)


def quoting(text: str, *, html: bool = False, **fields: str) -> bool | None:
    """Tell what a mail says that quotes `text`: the letter that was sent with the new key, another, none."""
    key, ours = caps("ann@corp.example", OLD, NEW)
    sent = replace(SENT, thread=spell(key), reply_address=ours.reply_to, link=ours.link)
    body = f'<p>approve</p><a href="{text}">Approve</a>' if html else f"approve\n\n> {text}\n"
    raw = mail(body, subject="x", content_type=f"text/{'html' if html else 'plain'}; charset=utf-8", **fields)
    reading = read_reply(raw, sent)
    assert isinstance(reading, Reply)
    return dict(reading.signs).get("body")


def rewritten(link: str) -> list[str]:
    """Return a link as gateways write it anew."""
    once = quote(link, safe="")
    return [
        link,
        f"https://eur01.safelinks.protection.outlook.com/?url={once}&data=05%7C02",
        f"https://linkprotect.example/url?a={quote(once, safe='')}&c=E,1",
        f"https://urldefense.com/v3/__{link}__;!!a",
        "https://urldefense.proofpoint.com/v2/url?u=" + link.replace(":", "-3A").replace("/", "_"),
    ]


@pytest.mark.parametrize("html", [False, True])
@pytest.mark.parametrize("keys", [(OLD,), (NEW,)])
def test_a_quotation_names_its_letter_whichever_key_signed_it(keys: tuple[bytes], *, html: bool) -> None:
    """Links, written anew or not, and reply addresses; of another's letter the same."""
    for email, expected in (("ann@corp.example", True), ("bob@corp.example", False)):
        _, quoted = caps(email, *keys)
        for text in (
            *rewritten(f"{quoted.link}?choice=approve"),
            f"mailto:{quoted.reply_to}",
            quote(quoted.reply_to),
        ):
            assert quoting(text, html=html) is expected, text
    assert quoting("https://approvals.corp.example/decide/none", html=html) is None


def test_a_letter_from_before_a_key_was_changed_is_answered_as_ever() -> None:
    """Its reply address in To is signed by the old key."""
    key, new = caps("ann@corp.example", OLD, NEW)
    _, old = caps("ann@corp.example", OLD)
    sent = replace(SENT, thread=spell(key), reply_address=new.reply_to)
    raw = mail("approve", subject="x").replace(REPLY_TO.encode(), old.reply_to.encode())
    reading = read_reply(raw, sent)
    assert isinstance(reading, Reply)
    assert old.reply_to != new.reply_to
    assert reading.signs == (("to", True),)


@pytest.mark.parametrize(
    ("date", "expected"),
    [
        ("Tue, 24 Nov 2026 11:00:00 +0000", True),
        ("Mon, 23 Nov 2026 10:00:01 +0000", True),
        ("Mon, 23 Nov 2026 11:59:59 +0200", False),
        ("Mon, 23 Nov 2026 09:59:59 -0000", False),
        ("Tue, 24 Nov 2025 11:00:00 +0000", False),
        ("Thu, 01 Jan 0001 00:00:00 +1400", False),
        ("yesterday", True),
        ("", True),
    ],
)
def test_a_mail_older_than_its_letter_is_no_answer(date: str, *, expected: bool) -> None:
    """By more than a day, which clocks are not wrong by; what is no date says nothing."""
    raw = re.sub(rb"(?m)^Date:.*\n", b"", mail("approve", extra=f"Date: {date}\n"))
    raw = raw.replace(b"\n\n", f"\nDate: {date}\n\n".encode(), 1)
    reading = read_reply(raw, replace(SENT, made=NOW))
    assert isinstance(reading, Reply)
    assert reading.names_letter() is expected
