"""What letters and pages say: times, sentences for outcomes, a message as safe HTML.

Everything here is pure and English; a locale is a parameter where one matters, so
that catalogues can come without a change of callers.
"""

import re
import unicodedata
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, assert_never
from zoneinfo import ZoneInfo

import nh3
from babel.dates import format_datetime, format_timedelta
from markdown_it import MarkdownIt
from markdown_it.token import Token

from service.domain import Channel, Choice, Closed, End, Vote
from service.requests import Approver, Ask, Person

#: Kept short and small: nothing here loads, scripts, floats or poses as our own heading.
_TAGS: Final = {
    "a", "blockquote", "br", "code", "em", "h3", "h4", "hr", "li", "ol", "p", "pre", "s", "strong", "ul",
}  # fmt: skip
_SCHEMES: Final = {"http", "https", "mailto"}
_LINK: Final = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
#: Characters that hide or reorder text, or end a line where nobody sees it.
_DECEPTIVE: Final = re.compile("[\u2028\u2029\u202a-\u202e\u2066-\u2069]")

_CHANNELS: Final[dict[Channel, str]] = {"link": "by link", "reply": "by reply", "api": "by API"}
_DONE: Final[dict[Choice, str]] = {"approve": "Approved", "decline": "Declined"}


@lru_cache(maxsize=1024)  # page, letter and answer tell the same few instants
def when(at: datetime, zone: str | None = None, *, locale: str = "en") -> str:
    """Return an instant in full, for a reader in `zone` (UTC without one): ``Tue 24 Nov 2026, 17:00 CET``."""
    local = at.astimezone(_zone(zone))
    return f"{format_datetime(local, 'EEE d MMM y, HH:mm', locale=locale)} {_zone_name(local)}"


def when_briefly(at: datetime, zone: str | None = None, *, locale: str = "en") -> str:
    """Return an instant as a sentence holds it: ``24 Nov, 17:00``, with ``UTC`` where that is a guess."""
    text = format_datetime(at.astimezone(_zone(zone)), "d MMM, HH:mm", locale=locale)
    # A reader's own time needs no label; one who named no zone must not take UTC for it.
    return text if zone else f"{text} UTC"


def from_now(at: datetime, now: datetime, *, locale: str = "en") -> str:
    """Return how far `at` is from `now`: ``in 2 days``, ``3 hours ago``."""
    return str(format_timedelta(at - now, threshold=1, add_direction=True, locale=locale))


def one_line(text: str) -> str:
    """Return `text` as one line without anything that hides, reorders or breaks it; never raises."""
    return " ".join(plain(text).split())


def plain(text: str) -> str:
    r"""Return `text` with ``\n`` as its only line break and no control or reordering characters."""
    text = _DECEPTIVE.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(" " if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)
    # Half a surrogate pair can stand in a str, but not in a letter.
    return text.encode("utf-8", "replace").decode()


@lru_cache(maxsize=32)  # one message goes to every approver, and to every view of a page
def message_html(text: str) -> str:
    """Return a message (CommonMark, line breaks kept) as HTML that can do nothing but be read.

    Raw HTML is shown as text, images become links, links lead to http, https or
    mailto only and give the page they open no hold on ours.
    """
    rendered = _MARKDOWN.render(plain(text))
    return nh3.clean(
        rendered,
        tags=_TAGS,
        attributes={"a": {"href"}, "ol": {"start"}},
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def asks(requester: Person | None) -> str:
    """Return the line above the heading: who asks."""
    return f"{one_line(requester.display)} asks for your approval" if requester else "Your approval is needed"


def asked(requester: Person | None) -> str:
    """Return the line above the heading once there is nothing to decide any more."""
    return (
        f"{one_line(requester.display)} asked for your approval"
        if requester
        else "Your approval was asked for"
    )


def because(requester: Person | None) -> str:
    """Return why this person is written to."""
    named = f"{requester.email} named you" if requester else "you were named"
    return f"You get this because {named} as an approver."


def decided(choice: Choice) -> str:
    """Return the one word for a choice that was made: ``Approved``."""
    return _DONE[choice]


def recorded(vote: Vote) -> str:
    """Return what somebody is told right after deciding."""
    return f"{decided(vote.choice)}. Your decision is recorded."


def outcome(ask: Ask, end: End, reader: Approver) -> str:
    """Return how a request ended, for `reader`: who, when and by which channel, or why without a decision."""
    match end:
        case Vote():
            who = "you" if end.by == reader.email else name_of(ask, end.by)
            at = when_briefly(end.at, reader.zone)
            return f"{decided(end.choice)} by {who} on {at}, {_CHANNELS[end.channel]}."
        case Closed():
            return f"{_without_decision(end, when_briefly(end.at, reader.zone))}{_again(ask, end)}"
        case _:  # pragma: no cover
            assert_never(end)


def name_of(ask: Ask, email: str) -> str:
    """Return how `ask` names the approver at `email`; the address itself where it names nobody."""
    return next((one_line(a.display) for a in ask.approvers if a.email == email), email)


def _without_decision(end: Closed, at: str) -> str:
    match end.reason:
        case "expired":
            return f"This closed on {at} without a decision."
        case "withdrawn":
            return f"This was withdrawn on {at}. No decision is needed any more."
        case "undeliverable":
            return f"This closed on {at}: the letter could not be delivered."
        case "moot":
            return f"This closed on {at}. Your answer is no longer needed."
        case _:  # pragma: no cover
            assert_never(end.reason)


def _again(ask: Ask, end: Closed) -> str:
    if ask.requester is None or end.reason not in {"expired", "undeliverable"}:
        return ""
    return f" {one_line(ask.requester.display)} can ask again."


def _zone(name: str | None) -> ZoneInfo:
    return ZoneInfo(name) if name else ZoneInfo("UTC")


def _zone_name(local: datetime) -> str:
    # Babel knows short names only for a locale's own region; the zone database knows
    # what people of the zone write, or a bare offset such as -03.
    name = local.tzname() or ""
    if name.isalpha():
        return name
    minutes = int((local.utcoffset() or timedelta()) / timedelta(minutes=1))
    return f"UTC{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("strikethrough")
    markdown.disable("image")
    markdown.validateLink = lambda url: _LINK.match(url) is not None  # type: ignore[method-assign]
    markdown.core.ruler.push("lower_headings", lambda state: _lower_headings(state.tokens))
    return markdown


def _lower_headings(tokens: list[Token]) -> None:
    """Keep a message's headings below the letter's own."""
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = "h3" if token.tag in {"h1", "h2", "h3"} else "h4"


_MARKDOWN: Final = _markdown()
