"""Letters: headers that hold, bytes that never differ, text that nobody can turn against us."""

import re
from datetime import UTC, datetime
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import letters as module
from service import wording
from service.domain import Ballot, BallotRecord, Closed, Vote, ballot_key
from service.errors import SettingsError
from service.letters import MAX_HTML_BYTES, MAX_MESSAGE_ID, Letter, Letters
from service.requests import Approver, Ask, Person
from service.tokens import Capabilities

CREATED = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
AT = datetime(2026, 11, 23, 9, 12, tzinfo=UTC)
ANN = Approver(email="ann@corp.example", name="Ann Li", zone="Europe/Madrid")
ANA = Approver(email="ana@corp.example", name="Ana Lima")
ASK = Ask(
    approval_id="refund-42",
    subject="Refund 120.00 EUR to Ana Lima",
    message="The parcel arrived damaged.\n\nPolicy allows a refund within 30 days.",
    facts={"Amount": "120.00 EUR", "Order": "A-20931"},
    approvers=[ANN, ANA],
    requester=Person(email="bob@corp.example", name="Bob Smith"),
    created_at=CREATED,
    due_at=datetime(2026, 11, 24, 16, tzinfo=UTC),
)
LINK = "https://approvals.corp.example/decide/" + "eyJhbGciOiJI" * 12
CAPS = Capabilities(
    link=LINK,
    reply_to="r+" + "abcdefghij234567" * 3 + "abcd@reply.corp.example",
    bounce_to="b+" + "abcdefghij234567" * 3 + "abcd@reply.corp.example",
)
VOTE = Vote(
    choice="approve", by=ANN.email, at=AT, channel="reply", cast_id="1", comment="Fine by me.\nAsk Ana."
)
EXPIRED = Closed(reason="expired", at=ASK.due_at)
LETTERS = Letters(sender="Corp Approvals <approvals@corp.example>", reply_domain="reply.corp.example")
BECAUSE = "You get this because bob@corp.example named you as an approver."
REQUEST_HEADERS = [
    "From", "To", "Reply-To", "Subject", "Date", "Message-ID", "Auto-Submitted",
    "X-Auto-Response-Suppress", "Content-Language", "MIME-Version", "Content-Type",
]  # fmt: skip
HOSTILE = [
    "=?utf-8?q?a=0ABcc=3A_x=40y?=",
    "=?utf-8?b?DQpCY2M6IHhAeQ==?=",
    "Refund\r\nBcc: x@y.example",
    "Refund\nBcc: x@y.example\n\nbody",
    "Refund\u2028Bcc: x@y.example",
    "Refund\x85Bcc: x@y.example",
    "Refund\x0b\x0c\0Bcc: x@y.example",
    'Ann" <evil@bad.example>, "',
    "Ann <evil@bad.example>",
    "a" * 70 + "::, <x@y.example> " + '"' * 9,
    "\u202eexe.cod\u202c",
    "Müller, Ana (CFO); <x@y>",
    "half \ud800 a pair",
]
#: What generated text is made of, beside anything.
PIECES = ["=?utf-8?q?a=0ABcc:x?=", "\r\nBcc: a@b", '"', "\\", "<a@b>", ",", "ж" * 50, "x" * 70]


def ballot(ask: Ask = ASK, position: int = 0) -> Ballot:
    """Return an open ballot of `ask`."""
    record = BallotRecord(approval_id=ask.approval_id, position=position, promise="p", arbiter="a")
    return Ballot(
        key=ballot_key(ask.approval_id, ask.approvers[position].email), ask=ask, record=record, end=None
    )


def changed(**fields: object) -> Ballot:
    """Return an open ballot whose request differs from ASK in `fields`."""
    return ballot(msgspec.structs.replace(ASK, **fields))


def answers(letters: Letters = LETTERS) -> list[Letter]:
    """Return one of every letter that answers a person."""
    return [
        letters.receipt(ballot(), VOTE, CAPS, at=AT, nth="1"),
        letters.closed(ballot(), EXPIRED, CAPS, at=AT, nth="1"),
        letters.clarification(ballot(), CAPS, read="maybe", at=AT, nth="1"),
        letters.confirmation(ballot(), CAPS, at=AT, nth="1"),
    ]


def parsed(letter: Letter) -> EmailMessage:
    """Parse a letter as a mail program does."""
    return message_from_bytes(letter.data, policy=default)


def part(letter: Letter, subtype: str) -> str:
    """Return the decoded text of a letter's part: ``plain`` or ``html``."""
    body = parsed(letter).get_body((subtype,))
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


def header_names(letter: Letter) -> list[str]:
    """Return the names of the header fields as they stand in the bytes."""
    head = letter.data.partition(b"\r\n\r\n")[0].decode("ascii")
    return [line.partition(":")[0] for line in head.split("\r\n") if line[0] not in " \t"]


def test_request_has_the_headers_that_hold_a_thread_together() -> None:
    """Everything that mail programs, autoresponders and bounces go by is there, once."""
    letter = LETTERS.request(ballot(), CAPS)
    message = parsed(letter)
    assert header_names(letter) == REQUEST_HEADERS
    assert message["From"] == "Corp Approvals <approvals@corp.example>"
    assert message["To"] == "Ann Li <ann@corp.example>"
    assert message["Reply-To"] == CAPS.reply_to
    assert message["Subject"] == ASK.subject
    assert message["Date"].datetime == CREATED
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["X-Auto-Response-Suppress"] == "OOF, AutoReply"
    assert message.get_content_type() == "multipart/alternative"
    assert [p.get_content_type() for p in message.iter_parts()] == ["text/plain", "text/html"]
    assert {p["Content-Transfer-Encoding"] for p in message.iter_parts()} == {"quoted-printable"}
    assert not message.defects
    assert (letter.sender, letter.recipient) == (CAPS.bounce_to, ANN.email)
    assert letter.message_id == message["Message-ID"]


def test_ids_are_short_and_stand_in_one_piece() -> None:
    """No id is folded or encoded: a program that can't read one loses the thread."""
    request = LETTERS.request(ballot(), CAPS)
    assert re.fullmatch(r"<[a-z2-7]{26}\.request@reply\.corp\.example>", request.message_id)
    for letter in [request, *answers()]:
        assert len(letter.message_id) <= MAX_MESSAGE_ID
        assert f"\r\nMessage-ID: {letter.message_id}\r\n".encode() in letter.data
    for letter in answers():
        assert f"\r\nIn-Reply-To: {request.message_id}\r\n".encode() in letter.data
        assert f"\r\nReferences: {request.message_id}\r\n".encode() in letter.data


def test_answers_are_threaded_and_never_answered() -> None:
    """RFC 3834: null envelope sender and auto-replied, in the thread of the request."""
    for letter in answers():
        message = parsed(letter)
        assert letter.sender == ""
        assert message["Auto-Submitted"] == "auto-replied"
        assert message["Subject"] == f"Re: {ASK.subject}"
        assert message["Date"].datetime == AT
        assert message["Reply-To"] == CAPS.reply_to
    assert [a.kind for a in answers()] == ["receipt", "closed", "clarification", "confirmation"]


def test_nth_tells_answers_of_a_kind_apart_whatever_it_holds() -> None:
    """A day, a digest or a hostile Message-ID all give a short id of their own."""
    nths = ["1", "2", "2026-11-23", "x" * 200, "<a@b>\r\nBcc: x@y", "é"]
    ids = [LETTERS.confirmation(ballot(), CAPS, at=AT, nth=nth).message_id for nth in nths]
    assert len(set(ids)) == len(nths)
    assert all(re.fullmatch(r"<[A-Za-z0-9.-]+@reply\.corp\.example>", i) for i in ids)
    assert all(len(i) <= MAX_MESSAGE_ID for i in ids)


def test_same_ballot_same_bytes() -> None:
    """A retry in another process sends the very same mail."""
    other = Letters(sender="Corp Approvals <approvals@corp.example>", reply_domain="reply.corp.example")
    assert LETTERS.request(ballot(), CAPS) == other.request(ballot(), CAPS)
    assert answers() == answers(other)
    assert LETTERS.request(ballot(), CAPS).message_id != LETTERS.request(ballot(position=1), CAPS).message_id


def test_text_part_reads_in_the_order_of_a_decision() -> None:
    """Who, what, why, facts, until when, how: and each link on a line of its own."""
    text = part(LETTERS.request(ballot(), CAPS), "plain")
    expected = [
        "Bob Smith asks for your approval:",
        "  Refund 120.00 EUR to Ana Lima",
        "  The parcel arrived damaged.",
        "  Policy allows a refund within 30 days.",
        "  Amount: 120.00 EUR",
        "  Order: A-20931",
        "Decide by Tue 24 Nov 2026, 17:00 CET.",
        "Approve:",
        f"{LINK}?choice=approve",
        "Decline:",
        f"{LINK}?choice=decline",
        "Or just reply: approve or decline in the first line. Anything below it is kept as your comment.",
        "-- ",
        f"{BECAUSE} Opening a link decides nothing; you confirm on the page.",
        "Request refund-42",
    ]
    assert [line for line in text.split("\n") if line] == expected
    assert LETTERS.request_text(ballot(), CAPS) == text


def test_html_part_has_every_way_to_decide_and_loads_nothing() -> None:
    """Buttons for all programs, the visible link, dark mode; no image, script or remote file."""
    html = part(LETTERS.request(ballot(), CAPS), "html")
    assert html.count(f'href="{LINK}?choice=approve"') == 2  # Outlook's and everybody's
    assert html.count(f'href="{LINK}?choice=decline"') == 2
    assert f'<a href="{LINK}" ' in html
    assert f">{LINK}</a>" in html
    for needed in ('lang="en"', 'dir="ltr"', 'role="presentation"', "v:roundrect", "prefers-color-scheme",
                   'name="color-scheme"', "display: none", "Tue 24 Nov 2026, 17:00 CET"):  # fmt: skip
        assert needed in html
    for banned in ("<img", "<script", "url(", "@import", "<link", "<form", "src="):
        assert banned not in html.lower()
    order = ["Bob Smith asks", "<h1", "The parcel", "Amount", "Decide by", "Approve</a>", "Or just reply"]
    positions = [html.index(words, html.index('class="who"')) for words in order]
    assert positions == sorted(positions)


def test_answers_say_what_happened_and_what_to_do() -> None:
    """Each answer names the fact in its text and its HTML, with a link to the page."""
    receipt, closed, clarification, confirmation = answers()
    for letter, said in [
        (receipt, "Approved by you on 23 Nov, 10:12, by reply."),
        (receipt, "If this was not you, write to Bob Smith, bob@corp.example."),
        (closed, "This closed on 24 Nov, 17:00 without a decision. Bob Smith can ask again."),
        (clarification, "maybe"),
        (clarification, "Nothing is decided yet"),
        (confirmation, "could not verify"),
    ]:
        assert said in part(letter, "plain")
        assert said in part(letter, "html")
    for letter in answers():
        assert f"\n{LINK}\n" in part(letter, "plain")
        assert f'href="{LINK}"' in part(letter, "html")
    assert "\n  Fine by me.\n  Ask Ana.\n" in part(receipt, "plain")
    assert "Fine by me.<br>Ask Ana." in part(receipt, "html")


def test_closed_names_the_colleague_who_decided() -> None:
    """A late answer learns who was first, when and how."""
    vote = msgspec.structs.replace(VOTE, choice="decline", by=ANA.email, channel="link", comment="secret")
    letter = LETTERS.closed(ballot(), vote, CAPS, at=AT, nth="1")
    assert "Declined by Ana Lima on 23 Nov, 10:12, by link." in part(letter, "plain")
    assert "Already decided" in part(letter, "html")
    assert "secret" not in letter.data.decode()


def test_receipt_without_comment_or_requester_leaves_no_gap() -> None:
    """What is not there is not announced."""
    letter = LETTERS.receipt(
        changed(requester=None), msgspec.structs.replace(VOTE, comment=""), CAPS, at=AT, nth="1"
    )
    text = part(letter, "plain")
    assert "comment" not in text
    assert "If this was not you, tell the sender." in text
    assert "\n\n\n" not in text
    assert "You get this because you were named as an approver." in text


def test_an_empty_reply_is_told_that_it_was_empty() -> None:
    """A clarification never quotes nothing."""
    text = part(LETTERS.clarification(ballot(), CAPS, read=" \n", at=AT, nth="1"), "plain")
    assert "Your reply held no text of its own" in text
    assert "starts with" not in text


def test_a_bare_request_has_no_empty_places() -> None:
    """No message, facts or requester: still a letter that reads well."""
    letter = LETTERS.request(changed(message="", facts={}, requester=None), CAPS)
    text = part(letter, "plain")
    assert text.startswith("Your approval is needed:\n\n  Refund 120.00 EUR to Ana Lima\n\nDecide by ")
    assert 'class="message"' not in part(letter, "html")


def test_letters_keep_to_the_words_of_the_reader() -> None:
    """No exclamation marks, no apologies, and none of our own jargon."""
    for letter in [LETTERS.request(ballot(), CAPS), *answers()]:
        text = part(letter, "plain")
        html = re.sub(r"<!--.*?-->|<style>.*?</style>|<[^>]*>", " ", part(letter, "html"), flags=re.DOTALL)
        for said in (text, html):
            assert not re.search(r"!|sorry|apolog|token|promise|workflow|ballot", said, re.IGNORECASE)


@pytest.mark.parametrize("text", HOSTILE)
def test_nobodys_text_becomes_a_header(text: str) -> None:
    """Subject and names of any content leave the header fields as they were, and readable."""
    hostile = changed(
        subject=text,
        approvers=[Approver(email=ANN.email, name=text)],
        requester=Person(email="bob@corp.example", name=text),
    )
    clean = wording.one_line(text).replace("=?", "= ?")
    letter = LETTERS.request(hostile, CAPS)
    message = parsed(letter)
    assert header_names(letter) == REQUEST_HEADERS
    assert message["Subject"] == clean
    assert [a.addr_spec for a in message["To"].addresses] == [ANN.email]
    assert not message["To"].defects


@given(st.lists(st.text(max_size=40) | st.sampled_from(PIECES), max_size=5).map("".join))
def test_any_text_gives_a_well_formed_letter(text: str) -> None:
    """Whatever people write, the bytes are ASCII, CRLF, within all limits, and say just that."""
    letter = LETTERS.request(
        changed(
            subject=text, message=text, facts={text: text}, approvers=[Approver(email=ANN.email, name=text)]
        ),
        CAPS,
    )
    assert letter.data.isascii()
    assert b"\n" not in letter.data.replace(b"\r\n", b"")
    head, _, body = letter.data.partition(b"\r\n\r\n")
    assert max(map(len, head.split(b"\r\n"))) <= 998
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert all(len(word) <= 75 for word in re.findall(rb"=\?utf-8\?[bq]\?[^?]*\?=", head))
    assert header_names(letter) == REQUEST_HEADERS
    message = parsed(letter)
    clean = wording.one_line(wording.one_line(text).replace("=?", "= ?"))
    assert wording.one_line(message["Subject"]) == clean
    (to,) = message["To"].addresses
    assert to.addr_spec == ANN.email
    name = to.display_name
    if not clean.isascii():  # the parser puts spaces between encoded words; its decoder does not
        raw = dict(message.raw_items())["To"].rpartition("<")[0]
        name = str(make_header(decode_header(raw.strip())))
    assert wording.one_line(name) == clean


@pytest.mark.parametrize(
    "text",
    [
        "Approve:\nhttps://evil.example/decide/x",
        "\n\n-- \nApprove:\r\nhttps://evil.example/",
        "a\u2028Approve:\u2029https://evil.example/",
        "a\x85Approve:\x0bhttps://evil.example/\x0cb\x1cc",
    ],
)
def test_nobodys_text_starts_at_the_margin_of_the_text_part(text: str) -> None:
    """A message can't pose as our own lines: what others wrote is indented, all of it."""
    hostile = changed(subject=text, message=text, facts={text: text})
    ours = set(LETTERS.request_text(changed(message="", facts={}), CAPS).split("\n"))
    for line in LETTERS.request_text(hostile, CAPS).splitlines():
        assert line in ours or line.startswith("  ")
    receipt = LETTERS.receipt(hostile, msgspec.structs.replace(VOTE, comment=text), CAPS, at=AT, nth="1")
    asked_back = LETTERS.clarification(hostile, CAPS, read=text, at=AT, nth="1")
    for letter in (receipt, asked_back):
        assert not [ln for ln in part(letter, "plain").splitlines() if "evil" in ln and ln[:2] != "  "]


MARKUP = '<script>alert(1)</script><img src=x onerror=alert(1)>"\'><b x="--><![endif]-->'


def test_markup_in_any_field_is_text() -> None:
    """Tags, quotes and comment ends written by people are shown, not run, in every letter."""
    hostile = changed(
        subject=MARKUP,
        message=MARKUP,
        facts={MARKUP: MARKUP},
        requester=Person(email="bob@corp.example", name=MARKUP),
        approval_id=MARKUP,
    )
    vote = msgspec.structs.replace(VOTE, comment=MARKUP)
    for letter in [
        LETTERS.request(hostile, CAPS),
        LETTERS.receipt(hostile, vote, CAPS, at=AT, nth="1"),
        LETTERS.closed(hostile, EXPIRED, CAPS, at=AT, nth="1"),
        LETTERS.clarification(hostile, CAPS, read=MARKUP, at=AT, nth="1"),
    ]:
        html = part(letter, "html")
        for banned in ("<script", "<img", "<b x", 'x"--', "'><"):
            assert banned not in html
        assert "&lt;script&gt;" in html


def test_a_maximal_request_stays_under_what_gmail_shows() -> None:
    """However long, wide or dense the text, buttons are never clipped away; the text part has it all."""
    dense = {
        "plain": "Twenty thousand characters. " * 714,
        "cyrillic": "Слово и дело. " * 1428,
        "emoji": "\U0001f600" * 20_000,
        "quotes": "\"'&<>" * 4_000,
        "lists": "- a\n" * 5_000,
        "lines": "a\n" * 10_000,
        "nested": (">" * 20 + "a\n\n") * 860,
    }
    for name, message in dense.items():
        for fact in ("x" * 500, "\U0001f600" * 500, "'" * 500):
            crowded = changed(message=message, facts={f"{i:060}": fact for i in range(20)})
            letter = LETTERS.request(crowded, CAPS)
            body = parsed(letter).get_body(("html",))
            assert body is not None
            assert len(str(body.get_payload())) <= MAX_HTML_BYTES, name
            html = part(letter, "html")
            assert f'href="{LINK}?choice=approve"' in html
            whole = part(letter, "plain")
            assert wording.plain(message).strip().split("\n")[-1] in whole
            assert whole.count(fact) >= 20


def test_a_long_message_is_cut_at_a_word_and_says_where_the_rest_is() -> None:
    """Cutting is never silent, and never happens to a message that fits."""
    long = LETTERS.request(changed(message="Слово и дело. " * 1428), CAPS)
    html = part(long, "html")
    assert "…" in html
    assert f'<a href="{LINK}" style="color: #1d5fbf;">Read the rest on the page</a>' in html
    plain_english = part(LETTERS.request(changed(message="Twenty thousand characters. " * 714), CAPS), "html")
    assert "Read the rest" not in plain_english


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "Approvals",
        "a@b.example, c@d.example",
        "Approvals approvals@localhost",
        "a\r\nBcc: x@y <a@b>",
        "x@",
    ],
)
def test_a_sender_that_is_not_one_address_stops_the_start(sender: str) -> None:
    """The setting is named, so that its owner can mend it."""
    with pytest.raises(SettingsError, match="APPROVALS_FROM"):
        Letters(sender=sender, reply_domain="localhost")


@pytest.mark.parametrize(
    ("sender", "shown"),
    [
        ("Approvals <approvals@localhost>", "Approvals"),
        ("approvals@corp.example", "approvals@corp.example"),
        ('"Smith, Bob" <a@corp.example>', "Smith, Bob"),
        ("Freigaben für alle <a@corp.example>", "Freigaben für alle"),
    ],
)
def test_the_sender_keeps_the_name_it_was_given(sender: str, shown: str) -> None:
    """The From is our own name, and it closes the letter."""
    letter = Letters(sender=sender, reply_domain="localhost").request(ballot(), CAPS)
    (address,) = parsed(letter)["From"].addresses
    assert shown in {address.display_name, address.addr_spec}
    assert f"{shown} · request refund-42" in part(letter, "html")


def test_a_missing_template_stops_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wheel without its letters fails at once, not at the first approval."""
    monkeypatch.setattr(module, "_templates", lambda: tmp_path)
    with pytest.raises(FileNotFoundError):
        Letters(sender="a@b.example", reply_domain="localhost")


def test_dates_are_in_utc_and_of_the_mail_format() -> None:
    """Whatever zone an instant came in, its Date is the same."""
    madrid = AT.astimezone(ZoneInfo("Europe/Madrid"))
    first = LETTERS.confirmation(ballot(), CAPS, at=madrid, nth="1")
    assert first.data == LETTERS.confirmation(ballot(), CAPS, at=AT, nth="1").data
    assert b"\r\nDate: Mon, 23 Nov 2026 09:12:00 +0000\r\n" in first.data
