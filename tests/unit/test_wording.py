"""Wording: times as readers live them, outcomes as facts, messages that can only be read."""

import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import wording
from service.domain import Closed, End, Vote
from service.requests import Approver, Ask, Person

AT = datetime(2026, 11, 24, 16, 0, tzinfo=UTC)
ANN = Approver(email="ann@corp.example", name="Ann Li", zone="Europe/Madrid")
ANA = Approver(email="ana@corp.example", name="Ana Lima")
ASK = Ask(
    approval_id="refund-42",
    subject="Refund 120.00 EUR to Ana Lima",
    message="",
    facts={},
    approvers=[ANN, ANA, Approver(email="cy@corp.example")],
    requester=Person(email="bob@corp.example", name="Bob Smith"),
    created_at=AT - timedelta(days=2),
    due_at=AT,
)


def vote(**fields: object) -> Vote:
    """Return Ann's approval by reply at AT, with other `fields`."""
    base = Vote(choice="approve", by=ANN.email, at=AT, channel="reply", cast_id="1")
    return msgspec.structs.replace(base, **fields)


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("Europe/Madrid", "Tue 24 Nov 2026, 17:00 CET"),
        ("America/New_York", "Tue 24 Nov 2026, 11:00 EST"),
        ("Asia/Tokyo", "Wed 25 Nov 2026, 01:00 JST"),
        ("America/Sao_Paulo", "Tue 24 Nov 2026, 13:00 UTC-03:00"),
        ("Asia/Kathmandu", "Tue 24 Nov 2026, 21:45 UTC+05:45"),
        (None, "Tue 24 Nov 2026, 16:00 UTC"),
    ],
)
def test_when_is_in_the_readers_zone_and_names_it(zone: str | None, expected: str) -> None:
    """A due time can't be misread: day, date, time and zone."""
    assert wording.when(AT, zone) == expected


def test_a_sentence_names_utc_only_where_the_zone_is_a_guess() -> None:
    """Who gave a zone reads their own time; who did not must not take UTC for it."""
    assert wording.when_briefly(AT, "Europe/Madrid") == "24 Nov, 17:00"
    assert wording.when_briefly(AT) == "24 Nov, 16:00 UTC"


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (timedelta(days=2), "in 2 days"),
        (timedelta(hours=5), "in 5 hours"),
        (timedelta(seconds=40), "in 40 seconds"),
        (timedelta(hours=-3), "3 hours ago"),
    ],
)
def test_from_now_tells_how_long_is_left(ahead: timedelta, expected: str) -> None:
    """The nearest unit, before or after."""
    assert wording.from_now(AT + ahead, AT) == expected


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (vote(), "Approved by you on 24 Nov, 17:00, by reply."),
        (vote(choice="decline", channel="link"), "Declined by you on 24 Nov, 17:00, by link."),
        (vote(by=ANA.email), "Approved by Ana Lima on 24 Nov, 17:00, by reply."),
        (vote(by="cy@corp.example", channel="api"), "Approved by cy@corp.example on 24 Nov, 17:00, by API."),
        (vote(by="gone@corp.example"), "Approved by gone@corp.example on 24 Nov, 17:00, by reply."),
        (
            Closed(reason="expired", at=AT),
            "This closed on 24 Nov, 17:00 without a decision. Bob Smith can ask again.",
        ),
        (
            Closed(reason="withdrawn", at=AT),
            "This was withdrawn on 24 Nov, 17:00. No decision is needed any more.",
        ),
        (
            Closed(reason="undeliverable", at=AT),
            "This closed on 24 Nov, 17:00: the letter could not be delivered. Bob Smith can ask again.",
        ),
        (Closed(reason="moot", at=AT), "This closed on 24 Nov, 17:00. Your answer is no longer needed."),
    ],
)
def test_outcome_names_who_when_and_how(end: End, expected: str) -> None:
    """Every end has a sentence that is true for its reader."""
    assert wording.outcome(ASK, end, ANN) == expected


def test_nobody_is_named_where_nobody_asked() -> None:
    """Without a requester, no sentence invents one."""
    alone = msgspec.structs.replace(ASK, requester=None)
    closed = Closed(reason="expired", at=AT)
    assert wording.outcome(alone, closed, ANN) == "This closed on 24 Nov, 17:00 without a decision."
    assert wording.asks(None) == "Your approval is needed"
    assert wording.asked(None) == "Your approval was asked for"
    assert wording.because(None) == "You get this because you were named as an approver."


def test_a_person_is_shown_by_name_and_known_by_address() -> None:
    """The heading has the name; why this came has the address."""
    assert wording.asks(ASK.requester) == "Bob Smith asks for your approval"
    assert wording.asked(ASK.requester) == "Bob Smith asked for your approval"
    assert wording.because(ASK.requester) == (
        "You get this because bob@corp.example named you as an approver."
    )
    assert wording.recorded(vote()) == "Approved. Your decision is recorded."


def test_message_html_keeps_what_people_write() -> None:
    """Paragraphs, line breaks, emphasis, lists, quotes, code and links come through."""
    html = wording.message_html(
        "Hello **you**,\nsecond ~~line~~.\n\n1. one\n2. two\n\n> said\n\n`x`\n\n[run](https://ci.example/1)"
    )
    for needed in (
        "<strong>you</strong>,<br>",
        "<s>line</s>",
        "<ol>\n<li>one</li>",
        "<blockquote>",
        "<code>x</code>",
        'href="https://ci.example/1"',
        'rel="noopener noreferrer nofollow"',
    ):
        assert needed in html
    assert wording.message_html("") == ""


def test_a_messages_headings_stay_below_ours() -> None:
    """No message writes a second headline."""
    html = wording.message_html("# Approved\n\nDone\n====\n\n#### small")
    assert re.findall(r"<h\d>", html) == ["<h3>", "<h3>", "<h4>"]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![seen](https://tracker.example/pixel.png)",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "[x](data:text/html;base64,PHNjcmlwdD4=)",
        "[x](vbscript:x)",
        "[x](file:///etc/passwd)",
        "[x](//evil.example)",
        "[x](/decide/abc)",
        "[x](&#106;avascript:alert(1))",
        "<javascript:alert(1)>",
        '[x](https://a.example/"onmouseover="alert(1))',
        "[x]: javascript:alert(1)\n\n[x]",
        "<a href='https://evil.example' style='position:fixed'>x</a>",
        "```<script>\nx\n```",
        "<!-- <![endif]--> <style>*{display:none}</style>",
    ],
)
def test_a_message_can_only_be_read(text: str) -> None:
    """Nothing runs, loads, floats or leads to anything but http, https and mailto."""
    html = wording.message_html(text)
    tags = re.findall(r"<([a-z0-9]+)([^>]*)>", html)
    assert {name for name, _ in tags} <= {"a", "br", "code", "em", "p", "pre"}
    for name, attributes in tags:
        assert name == "a" or attributes == ""
        assert not re.search(r"\s(on\w+|style|src)=", attributes)
        for href in re.findall(r'href="([^"]*)"', attributes):
            assert re.match(r"https?://|mailto:", href)
    assert "<!--" not in html


@given(st.text(max_size=200) | st.text(alphabet="[]()<>!*_~`#>- \n\\\"'&;:/ahtps1.", max_size=200))
def test_message_html_is_closed_whatever_is_written(text: str) -> None:
    """Any text gives HTML whose tags are ours and all closed: it can't leave its place."""
    depth: list[str] = []
    for closing, name in re.findall(r"<(/?)([a-z0-9]+)[^>]*>", wording.message_html(text)):
        assert name in wording._TAGS
        if closing:
            assert depth.pop() == name
        elif name not in {"br", "hr"}:
            depth.append(name)
    assert depth == []


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    """No break, control or reordering character survives, and everything encodes."""
    line = wording.one_line(text)
    assert len(line.splitlines()) <= 1
    assert not re.search("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", line)
    assert line == wording.one_line(line)
    line.encode()


def test_plain_keeps_lines_and_drops_what_hides() -> None:
    """Line ends become one kind; half a surrogate pair can't stop a letter."""
    assert wording.plain("a\r\nb\rc\u2028d\te\0f\ud800") == "a\nb\nc d\te f?"
