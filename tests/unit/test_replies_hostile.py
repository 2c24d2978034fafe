"""Any bytes are read: bounded, never raising, never deciding what was not written."""

from typing import Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.replies import Doubt, Ignored, Reason, Reply, Sent, Unverified, read_reply
from service.replies.markup import MAX_MARKUP, lines_of
from service.replies.mime import (
    MAX_DEPTH,
    MAX_FIELD,
    MAX_HEADER,
    MAX_MESSAGE,
    MAX_PARTS,
    MAX_TEXT,
    decoded,
    parse,
)
from tests.fixtures.replies import hostile
from tests.fixtures.replies.mails import FROM, LETTER, REPLY_TO, SUBJECT, mail

SENT: Final = Sent(subject=SUBJECT, text=LETTER, reply_address=REPLY_TO, own_addresses=frozenset({FROM}))
HOSTILE: Final = hostile.mails()

#: Pieces of mail, for bytes that come closer to mail than chance does.
PIECES: Final = [
    *(
        b"From: ann@corp.example\n",
        b"From",
        b": ",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r",
        b" ",
        b"\0",
        b"--b\n",
        b"--b--\n",
    ),
    *(b"Content-Type: multipart/mixed; boundary=b\n", b"Content-Type: text/html; charset=utf-16\n"),
    *(b"Content-Type: text/plain; format=flowed; delsp=yes\n", b"Content-Type: message/delivery-status\n"),
    *(b"Content-Transfer-Encoding: base64\n", b"Content-Transfer-Encoding: quoted-printable\n"),
    *(
        b"=",
        b"=C3",
        b"YXBw",
        b"Subject: =?utf-8?b?!?=\n",
        b"Auto-Submitted: ",
        b"approve",
        b"decline\n",
        b"> ",
    ),
    *(b"wrote:\n", b"<blockquote>", b"</div>", b"<s>", b"&#x110000;", b"\xff", b"\xe2\x80\xae", b"charset="),
    *(b"\xf0\x9f\x91\x8d", b"-- \n", b"\x0b"),
]


@given(st.binary(max_size=2_000) | st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join))
@example(b"")
@example(b"\n")
@example(b"From: \n\napprove")
@example(b"Content-Type: multipart/mixed; boundary=b\n\n--b")
@settings(max_examples=1_000, deadline=None)
def test_any_bytes_are_read(raw: bytes) -> None:
    """Whatever arrives is a reply, unverified or ignored: nothing is raised."""
    reading = read_reply(raw, SENT)
    assert isinstance(reading, Reply | Unverified | Ignored)
    if isinstance(reading, Reply):
        assert len(reading.read) <= 200
        assert reading.verdict is None or reading.read


@given(st.text(max_size=300))
@settings(max_examples=400, deadline=None)
def test_any_text_is_read_and_clean(text: str) -> None:
    """What goes into letters and records holds no control character, whatever was written."""
    raw = mail(text.encode("utf-8", "replace"))
    reading = read_reply(raw, SENT)
    if isinstance(reading, Reply):
        shown = reading.read + reading.comment
        assert not any(ord(c) < 32 and c != "\n" for c in shown)
        shown.encode("utf-8")


@given(st.text(max_size=300), st.text(max_size=80), st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_letter_can_have_been_sent(subject: str, text: str, address: str) -> None:
    """Nothing about our own letter makes reading raise."""
    sent = Sent(subject=subject, text=text, reply_address=address, own_addresses=frozenset({address, ""}))
    assert isinstance(read_reply(mail("approve\n"), sent), Reply | Ignored)


@given(st.text(alphabet="<>/!-=\"' abps&#;x0\n", max_size=200))
@settings(max_examples=400, deadline=None)
def test_any_markup_becomes_lines(markup: str) -> None:
    """Broken HTML becomes lines without line breaks."""
    assert all("\n" not in line for line in lines_of([(markup, True)]))


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_mail_decides(name: str) -> None:
    """A mail made to exhaust a reader is refused or read, and is no decision; time is the benchmark's."""
    reading = read_reply(HOSTILE[name], SENT)
    written = name.startswith("text-approval")  # and what is below does not take it back
    assert not isinstance(reading, Reply) or reading.verdict is None or written


@pytest.mark.parametrize(
    ("raw", "doubt"),
    [
        (b"x" * (MAX_MESSAGE + 1), Doubt.TOO_BIG),
        (b"a: b\n" * (MAX_HEADER // 5 + 1), Doubt.HEADER_TOO_LONG),
        (b"From: a@b.example\nSubject: " + b"a" * MAX_FIELD + b"\n\n", Doubt.FIELD_TOO_LONG),
        (b"From: a@b.example\nSubject: a\n" + b" a\n" * MAX_FIELD + b"\n", Doubt.FIELD_TOO_LONG),
        (b"From: " + b"a" * 1_100 + b"@b.example\n\napprove", Doubt.FIELD_TOO_LONG),
        (HOSTILE["parts-350k"], Doubt.TOO_MANY_PARTS),
        (HOSTILE["parts-nested"], Doubt.TOO_DEEP),
        (hostile.MIXED + b"--b\nx: " + b"a" * 20_000 + b"\n\napprove\n--b--\n", Doubt.HEADER_TOO_LONG),
        (HOSTILE["from-parentheses"], Doubt.MALFORMED_SENDER),
        (HOSTILE["from-group-ends"], Doubt.MALFORMED_SENDER),
    ],
)
def test_each_bound_is_told(raw: bytes, doubt: Doubt) -> None:
    """A mail over a bound says which; one whose sender alone is bad is not refused at the door."""
    reading = read_reply(raw, SENT)
    assert isinstance(reading, Unverified)
    assert reading.doubt is doubt
    assert reading.refusable is (doubt is not Doubt.MALFORMED_SENDER)


def test_the_bounds_leave_room_for_honest_mail() -> None:
    """As many parts as allowed, as deep as allowed, with a file of megabytes, still decide."""
    parts = b"--b\n\n\n" * (MAX_PARTS - 2)
    answer = b"--b\nContent-Type: text/plain\n\napprove\n"
    photo = (
        b"--b\nContent-Type: image/jpeg\nContent-Transfer-Encoding: base64\n\n" + b"QUJD" * 2_000_000 + b"\n"
    )
    reading = read_reply(hostile.MIXED + answer + photo + parts + b"--b--\n", SENT)
    assert isinstance(reading, Reply)
    assert reading.verdict == "approve"
    levels = b"".join(
        b'--%d\nContent-Type: multipart/mixed; boundary="%d"\n\n' % (n, n + 1) for n in range(MAX_DEPTH - 1)
    )
    answer = b"--%d\n\ndecline\n" % (MAX_DEPTH - 1)
    deep = hostile.HEAD + b'Content-Type: multipart/mixed; boundary="0"\n\n' + levels + answer
    reading = read_reply(deep, SENT)
    assert isinstance(reading, Reply)
    assert reading.verdict == "decline"


@pytest.mark.parametrize("more", [" if it is cheap", "\nif it is cheap", " \nif it is cheap", ""])
@pytest.mark.parametrize("flowed", ["", "; format=flowed"])
def test_a_line_cut_off_by_the_bound_decides_nothing(more: str, flowed: str) -> None:
    """Where the bound falls on or after an answer below the quotation, what was cut off is not guessed."""
    head = "On 24/11/2026 10:12, Approvals wrote:\n"
    room = MAX_TEXT - len(head) - len("approve") - 3
    quoted = "> " + "x" * 900 + "\n"
    body = head + quoted * (room // len(quoted))
    padding = "> " + "y" * (MAX_TEXT - len(body) - len("> \n\napprove")) + "\n\n"
    raw = mail(
        f"{body}{padding}approve{more}\nmore and more", content_type=f"text/plain; charset=utf-8{flowed}"
    )
    reading = read_reply(raw, SENT)
    assert isinstance(reading, Reply)
    assert reading.verdict is None


def test_markup_cut_off_by_the_bound_decides_nothing() -> None:
    """The last line of HTML that is over its bound is left out, wherever the bound falls."""
    quoted = "<blockquote>" + "x" * (MAX_MARKUP - 200) + "</blockquote>"
    for pad in range(150, 200):
        markup = f"{quoted}<p>{' ' * pad}approve <b>only</b> if it is cheap</p>"
        lines = lines_of([(markup, True)])
        assert "approve" not in lines


def test_silence_wins_over_a_bad_sender() -> None:
    """A machine's mail with a malformed From is ignored: nobody is asked to confirm what a machine wrote."""
    raw = mail("approve", sender="ann", extra="Auto-Submitted: auto-replied\n")
    reading = read_reply(raw, SENT)
    assert isinstance(reading, Ignored)
    assert reading.reason is Reason.AUTO_REPLY


def test_a_message_id_is_given_only_when_well_formed() -> None:
    """The id of a mail is kept as it stands, or not at all."""
    good, bad = mail("approve"), mail("approve").replace(b"<case-1@corp.example>", b"<a b@c>\tx")
    kept, dropped = read_reply(good, SENT), read_reply(bad, SENT)
    assert (kept.message_id, dropped.message_id) == ("<case-1@corp.example>", None)


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        (b"approv\xe9", "utf-8", "apprové"),
        (b"a" * (64 * 1024 - 1) + b"\xc3", "utf-8", "a" * (64 * 1024 - 1)),
        (b"caf\xe9", "no-such-charset", "café"),
        ("да".encode("koi8-r"), '"KOI8-R"', "да"),
        (b"\x81", "iso-8859-1", "\ufffd"),
        (b"eJzLSM3JyQcABiwCFQ==", "zlib", "eJzLSM3JyQcABiwCFQ=="),
    ],
)
def test_bytes_become_text_by_their_charset_or_the_next_best(data: bytes, charset: str, text: str) -> None:
    """A charset that is unknown, or does not fit, gives way to UTF-8 and then Windows-1252."""
    assert decoded(data, charset) == text


def test_a_part_ends_before_its_boundary_line() -> None:
    """The line break before a boundary is the boundary's, as RFC 2046 has it."""
    head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    whole = parse(head + b"--b\r\n\r\none\r\n--b \r\n\r\ntwo\r\n\r\n--b--\r\nepilogue")
    assert [part.body for part in whole.children] == [b"one", b"two\r\n"]
