"""A reply to our own letter, however it is quoted, is read right or asked back: never wrong."""

import html
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Ballot, BallotRecord
from service.letters import Letters
from service.replies import Reply, Sent, read_reply
from service.requests import Approver, Ask, Person
from service.tokens import Capabilities
from tests.fixtures.replies.mails import FROM, REPLY_TO, both, mail
from tests.fixtures.replies.quoting import TONGUES, Tongue

HTML: Final = "text/html; charset=utf-8"
LINK: Final = "https://approvals.corp.example/decide/WyJwYXJpcy0yMDI2Il0.k3Jd8s"
LETTERS: Final = Letters(sender=f"Approvals <{FROM}>", reply_domain="reply.corp.example")
CAPS: Final = Capabilities(link=LINK, reply_to=REPLY_TO, bounce_to="b+x@reply.corp.example")

#: Words that a requester may put into a letter, hoping or not that they are taken for an answer.
WORDS: Final = (
    "approve",
    "decline",
    "yes",
    "no",
    "approved",
    "genehmigt",
    "oui",
    "hotel",
    "Paris",
    "the",
    "if",
    "not",
)
lines: Final = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)
messages: Final = st.lists(lines | st.just(""), max_size=6).map("\n".join)
subjects: Final = lines | st.just("Team trip to Paris in May")
tongues: Final = st.sampled_from(sorted(TONGUES)).map(TONGUES.__getitem__)
#: Columns at which a program breaks lines that it has already marked; None: it does not.
widths: Final = st.none() | st.integers(20, 78)


AT: Final = datetime(2026, 11, 24, 9, 12, tzinfo=UTC)


def ballot(subject: str, message: str) -> Ballot:
    """Return a ballot of a request about `subject`."""
    ask = Ask(
        approval_id="paris-2026",
        subject=subject,
        message=message,
        facts={"Amount": "4,120 EUR", "Decision": "no"},
        approvers=[Approver(email="ann@corp.example", name="Ann Lee")],
        requester=Person(email="bob@corp.example", name="Bob Smith"),
        created_at=AT,
        due_at=AT.replace(month=12),
    )
    record = BallotRecord(approval_id="paris-2026", position=0, promise="p", arbiter="p")
    return Ballot(key=b"k" * 16, ask=ask, record=record, end=None)


def sent(subject: str, message: str) -> Sent:
    """Return the letter that asks about `subject`, as the real templates write it."""
    text = LETTERS.request_text(ballot(subject, message), CAPS)
    return Sent(subject=subject, text=text, reply_address=REPLY_TO, own_addresses=frozenset({FROM}))


def asked_back(read: str) -> str:
    """Return the plain text of the letter that asks back, having read `read`."""
    letter = LETTERS.clarification(ballot("Trip", "x"), CAPS, read=read, at=AT, nth="1")
    body = message_from_bytes(letter.data, policy=default).get_body(("plain",))
    assert body is not None
    text: str = body.get_content()
    return text.replace("\r\n", "\n")


def broken(line: str, width: int | None) -> list[str]:
    """Return `line` in pieces of at most `width` characters, broken at spaces."""
    pieces = [""]
    for word in line.split(" "):
        if width is not None and pieces[-1] and len(pieces[-1]) + len(word) >= width:
            pieces.append("")
        pieces[-1] = f"{pieces[-1]} {word}" if pieces[-1] else word
    return pieces


def marked(text: str, width: int | None) -> str:
    """Return `text` quoted, then broken: what breaks off has no mark."""
    return "\n".join(piece for line in text.split("\n") for piece in broken(f"> {line}", width))


def rows(tongue: Tongue, subject: str) -> str:
    """Return Outlook's rows in a language."""
    values = (f"Approvals <{FROM}>", tongue.date, "Ann Lee <ann@corp.example>", subject)
    return "\n".join(f"{label}: {value}" for label, value in zip(tongue.rows, values, strict=True))


def page(letter: Sent) -> str:
    """Return our letter as quoted HTML: every line a paragraph, and the two buttons."""
    body = "".join(f"<p>{html.escape(line)}</p>" for line in letter.text.split("\n") if line)
    return (
        f"<div><p>Bob Smith asks for your approval</p>{body}<p><a>Approve</a></p><p><a>Decline</a></p></div>"
    )


def paragraphs(answer: str) -> str:
    """Return an answer as HTML."""
    return "".join(f"<div>{html.escape(line) or '<br>'}</div>" for line in answer.split("\n"))


def replies_above(answer: str, letter: Sent, tongue: Tongue, width: int | None) -> dict[str, bytes]:
    """Return `answer` above the letter, as every kind of program quotes it."""
    attribution = tongue.attributed(FROM)
    outlook = f"{answer}\n\n{'_' * 32}\n{rows(tongue, letter.subject)}\n\n"
    unmarked = "\n".join(piece for line in letter.text.split("\n") for piece in broken(line, width))
    quoted = page(letter)
    gmail = (
        f'<div dir="ltr">{paragraphs(answer)}</div><br><div class="gmail_quote"><div class="gmail_attr">'
        f"{html.escape(attribution)}<br></div><blockquote>{quoted}</blockquote></div>"
    )
    shown_rows = html.escape(rows(tongue, letter.subject)).replace("\n", "<br>")
    rule = "border:none;border-top:solid #E1E1E1 1.0pt"
    outlook_html = f'{paragraphs(answer)}<div style="{rule}"><p>{shown_rows}</p></div>{quoted}'
    return {
        "gmail": both(f"{answer}\n\n{attribution}\n\n{marked(letter.text, width)}\n", gmail),
        "gmail html": mail(gmail, content_type=HTML),
        "apple": mail(f"{answer}\n\n{marked(f'{attribution}{chr(10)}{chr(10)}{letter.text}', width)}\n"),
        "outlook": both(f"{outlook}{unmarked}\n", outlook_html),
        "outlook html": mail(outlook_html, content_type=HTML),
        "original": mail(f"{answer}\n\n-------- {tongue.original} --------\n{unmarked}\n"),
        "yahoo": mail(f"{answer}\n\n    {attribution}\n\n{unmarked}\n"),
        "phone": mail(f"{answer}\n\n{tongue.mobile}\n\n{attribution}\n\n{marked(letter.text, width)}\n"),
        "bare": mail(f"{answer}\n\n{unmarked}\n"),
        "bare html": mail(f"{paragraphs(answer)}{quoted}", content_type=HTML),
    }


def replies_below(answer: str, letter: Sent, tongue: Tongue, width: int | None) -> dict[str, bytes]:
    """Return `answer` below the letter."""
    attribution = tongue.attributed(FROM)
    cited = html.escape(attribution)
    return {
        "marked": mail(f"{attribution}\n{marked(letter.text, width)}\n\n{answer}\n"),
        "bare": mail(f"{letter.text}\n\n{answer}\n"),
        "html": mail(
            f"<p>{cited}</p><blockquote>{page(letter)}</blockquote>{paragraphs(answer)}", content_type=HTML
        ),
        "outlook": mail(f"{rows(tongue, letter.subject)}\n\n{letter.text}\n\n{answer}\n"),
    }


def verdicts(replies: dict[str, bytes], letter: Sent) -> dict[str, str | None]:
    """Return what each reply is read as."""
    read = {name: read_reply(raw, letter) for name, raw in replies.items()}
    return {name: reply.verdict for name, reply in read.items() if isinstance(reply, Reply)}


@given(subjects, messages, tongues, widths)
@settings(max_examples=100, deadline=None)
def test_a_quotation_alone_decides_nothing(
    subject: str, message: str, tongue: Tongue, width: int | None
) -> None:
    """Whatever a requester writes into a letter, sending it back unanswered is no decision."""
    letter = sent(subject, message)
    replies = replies_above("", letter, tongue, width) | replies_below("", letter, tongue, width)
    assert verdicts(replies, letter) == dict.fromkeys(replies)


@given(lines, tongues, st.none() | st.integers(60, 78))
@settings(max_examples=80, deadline=None)
def test_a_quotation_of_another_letter_of_ours_decides_nothing(
    read: str, tongue: Tongue, width: int | None
) -> None:
    """A letter that asks back repeats words of an approver; known or not, quoting it is no decision."""
    request, text = sent("Trip", "x"), asked_back(f"I wonder whether we should {read}")
    quoted = Sent(subject="Trip", text=text, reply_address=REPLY_TO)
    replies = replies_above("", quoted, tongue, width) | replies_below("", quoted, tongue, width)
    assert verdicts(replies, request) == dict.fromkeys(replies)
    both_letters = replace(request, text=f"{request.text}\n{text}")
    assert verdicts(replies, both_letters) == dict.fromkeys(replies)


@given(subjects, messages, tongues, st.sampled_from(("approve", "decline")), widths)
@settings(max_examples=100, deadline=None)
def test_an_answer_is_read_right_or_asked_back(
    subject: str, message: str, tongue: Tongue, choice: str, width: int | None
) -> None:
    """Above or below, no quoting turns an answer into the other one."""
    letter = sent(subject, message)
    answer = tongue.yes if choice == "approve" else tongue.no
    above, below = (place(answer, letter, tongue, width) for place in (replies_above, replies_below))
    assert set(verdicts(above, letter).values()) | set(verdicts(below, letter).values()) <= {choice, None}


@given(
    messages,
    tongues,
    st.sampled_from(("approve?", "do not approve", "approve if cheap", "ok", "yes no")),
    widths,
)
@settings(max_examples=60, deadline=None)
def test_what_is_no_answer_stays_none(message: str, tongue: Tongue, answer: str, width: int | None) -> None:
    """No quoting turns a question, a denial or a condition into a decision."""
    letter = sent("Team trip to Paris in May", message)
    replies = replies_above(answer, letter, tongue, width) | replies_below(answer, letter, tongue, width)
    assert verdicts(replies, letter) == dict.fromkeys(replies)


@pytest.mark.parametrize("tag", TONGUES)
def test_an_ordinary_reply_is_read_in_every_language(tag: str) -> None:
    """An answer above an ordinary letter is read, in each language's quoting of each program."""
    letter, tongue = sent("Team trip to Paris in May", "Four people, three nights."), TONGUES[tag]
    approved = verdicts(replies_above(f"{tongue.yes}\n\nGood.", letter, tongue, None), letter)
    declined = verdicts(replies_above(tongue.no, letter, tongue, 72), letter)
    assert set(approved.values()) == {"approve"}
    assert set(declined.values()) == {"decline"}
    below = verdicts(replies_below(tongue.no, letter, tongue, None), letter)
    assert below == {"marked": "decline", "bare": None, "html": below["html"], "outlook": None}
    assert below["html"] in {"decline", None}


@pytest.mark.parametrize("tag", TONGUES)
def test_a_comment_holds_nothing_of_the_quotation(tag: str) -> None:
    """Attribution, rows, phone signature and letter are left out of the comment in every language."""
    letter, tongue = sent("Team trip to Paris in May", "Four people, three nights."), TONGUES[tag]
    replies = replies_above(f"{tongue.yes}\n\nGood.", letter, tongue, None)
    read = {name: read_reply(raw, letter) for name, raw in replies.items()}
    assert {name: reply.comment for name, reply in read.items() if isinstance(reply, Reply)} == dict.fromkeys(
        replies, "Good."
    )


@pytest.mark.parametrize("tag", TONGUES)
def test_an_attribution_is_told_wherever_it_breaks(tag: str) -> None:
    """Broken over lines, an attribution is no comment, above a quotation or where all is below."""
    letter, tongue = sent("Team trip to Paris in May", "Four people, three nights."), TONGUES[tag]
    for width in (60, 66, 72, 78):
        attribution = "\n".join(broken(tongue.attributed(FROM), width))
        above = mail(f"{tongue.yes}\nGood.\n{attribution}\n{marked(letter.text, None)}\n")
        below = mail(f"{attribution}\n{marked(letter.text, None)}\n\n{tongue.yes}\nGood.\n")
        for raw in (above, below):
            reading = read_reply(raw, letter)
            assert isinstance(reading, Reply)
            assert (reading.verdict, reading.comment) == ("approve", "Good."), width
