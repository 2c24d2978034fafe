"""A mail names the letter that it answers, or another one, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.replies import Reply, Sent, read_reply
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
        (["In-Reply-To: <1@x.example>"], {"subject": f"AW: {SUBJECT.upper()} (2)"}, True),
        ([], {"subject": f"=?utf-8?q?{SUBJECT.replace(' ', '_')}?="}, True),
        ([], {}, False),
        ([], {"subject": "Team trip"}, False),
    ],
)
def test_the_first_sign_of_a_letter_of_ours_counts(
    fields: list[str], more: dict[str, str], *, expected: bool
) -> None:
    """Recipients go before the thread, the thread before the subject."""
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
    assert other.names_letter({"subject"})
