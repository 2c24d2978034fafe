"""Facts to bytes: every letter we send, from `mail_templates/`.

A letter is made once and never differs: same ballot, same bytes, so that a retry
is the same mail to every program on its way. Nothing here does I/O after
construction.

========================  ================  ==============  ==================
letter                    Auto-Submitted    envelope from   sent when
========================  ================  ==============  ==================
request                   auto-generated    signed          somebody is asked
receipt                   auto-replied      null            their vote counted
closed                    auto-replied      null            it ended otherwise
clarification             auto-replied      null            a reply was unclear
confirmation              auto-replied      null            a reply was unproven
========================  ================  ==============  ==================
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, formataddr
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, Literal

import css_inline
from jinja2 import Environment, FunctionLoader, StrictUndefined, Template, select_autoescape
from markupsafe import Markup, escape

from service import wording
from service.domain import Ballot, End, Vote
from service.errors import SettingsError
from service.tokens import Capabilities

type Kind = Literal["request", "receipt", "closed", "clarification", "confirmation"]

KINDS: Final[tuple[Kind, ...]] = ("request", "receipt", "closed", "clarification", "confirmation")

#: Gmail cuts an HTML part at 102 KB and hides what follows, our buttons too. Ours is
#: measured as it travels, encoded, which is never less than what Gmail counts.
MAX_HTML_BYTES: Final = 100_000
#: How much of a message, and of each fact, goes into the HTML part, in characters:
#: the first row that fits. The page and the text part always have the whole.
ROOM: Final = ((20_000, 500), (10_000, 500), (4_000, 250), (1_000, 100))
#: Past this a Message-ID makes some programs lose the thread.
MAX_MESSAGE_ID: Final = 69
#: How much of a reply we show back, and of a comment, in characters.
MAX_READ, MAX_COMMENT = 200, 4_000
_EXCERPT: Final = 120

_NTH: Final = re.compile(r"[A-Za-z0-9-]{1,24}")
_INCLUDE: Final = re.compile(r'\{% include "([^"]+)" %\}\n?')
_STATEMENT: Final = re.compile(r"\{%.*?%\}")


@dataclass(frozen=True)
class Letter:
    """A letter ready to be sent: envelope and bytes; `sender` is '' for the null one."""

    kind: Kind
    sender: str
    recipient: str
    message_id: str
    data: bytes


@dataclass(frozen=True)
class _Compiled:
    subject: Template
    text: Template
    html: Template


class Letters:
    """Makes every letter; construction compiles all templates, so that a missing one stops the start.

    `sender` is the From of every letter, ``Name <address>``; `reply_domain` names
    the right-hand side of Message-IDs. Raises SettingsError for a sender that is
    not exactly one address.
    """

    def __init__(self, *, sender: str, reply_domain: str) -> None:
        self._sender = _one_mailbox(sender)
        self._domain = reply_domain
        env = _environment()
        self._templates: dict[Kind, _Compiled] = {
            kind: _Compiled(
                env.get_template(f"{kind}/subject.txt"),
                env.get_template(f"{kind}/body.txt"),
                env.get_template(f"{kind}/body.html"),
            )
            for kind in KINDS
        }

    def request(self, ballot: Ballot, caps: Capabilities) -> Letter:
        """Return the letter that asks; bounces go to its signed envelope sender."""
        return self._letter("request", ballot, caps, at=ballot.ask.created_at, nth="", more={})

    def request_text(self, ballot: Ballot, caps: Capabilities) -> str:
        """Return the text part of `request`, to recognise our own words in a reply."""
        return self._text("request", self._facts(ballot, caps))

    def receipt(self, ballot: Ballot, vote: Vote, caps: Capabilities, *, at: datetime, nth: str) -> Letter:
        """Return the letter that tells a voter what was recorded.

        Of this and every answer: `at` is its Date, `nth` tells it from others of its kind.
        """
        requester = ballot.ask.requester
        tell = f"write to {_person(requester.display, requester.email)}." if requester else "tell the sender."
        more = {
            "headline": wording.recorded(vote),
            "outcome": wording.outcome(ballot.ask, vote, ballot.approver),
            "comment": _cut(wording.plain(vote.comment).strip(), MAX_COMMENT),
            "tell": tell,
        }
        return self._letter("receipt", ballot, caps, at=at, nth=nth, more=more)

    def closed(self, ballot: Ballot, end: End, caps: Capabilities, *, at: datetime, nth: str) -> Letter:
        """Return the letter that names how it ended: who, when, how."""
        more = {
            "headline": "Already decided" if isinstance(end, Vote) else "No longer open",
            "outcome": wording.outcome(ballot.ask, end, ballot.approver),
        }
        return self._letter("closed", ballot, caps, at=at, nth=nth, more=more)

    def clarification(
        self, ballot: Ballot, caps: Capabilities, *, read: str, at: datetime, nth: str
    ) -> Letter:
        """Return the letter that names what was `read` in a reply, and what to write."""
        more = {
            "headline": "Nothing is decided yet",
            "read": _cut(wording.one_line(read), MAX_READ),
        }
        return self._letter("clarification", ballot, caps, at=at, nth=nth, more=more)

    def confirmation(self, ballot: Ballot, caps: Capabilities, *, at: datetime, nth: str) -> Letter:
        """Return the letter that asks to confirm on the page; it shows nothing of the unproven reply."""
        more = {"headline": "Nothing is decided yet"}
        return self._letter("confirmation", ballot, caps, at=at, nth=nth, more=more)

    def _letter(
        self,
        kind: Kind,
        ballot: Ballot,
        caps: Capabilities,
        *,
        at: datetime,
        nth: str,
        more: dict[str, str],
    ) -> Letter:
        facts = self._facts(ballot, caps) | more
        message_id = self._message_id(ballot.key, kind, nth)
        subject = _header_text(self._templates[kind].subject.render(facts))
        answer = kind != "request"
        headers = [
            _mailbox_header("From", *self._sender),
            _mailbox_header("To", _header_text(ballot.approver.name or ""), ballot.approver.email),
            f"Reply-To: {caps.reply_to}\r\n",
            _header("Subject", subject),
            f"Date: {format_datetime(at.astimezone(UTC))}\r\n",
            f"Message-ID: {message_id}\r\n",
        ]
        if answer:
            asked = self._message_id(ballot.key, "request", "")
            # Ids stay whole: a folded In-Reply-To becomes an encoded word, and the thread is lost.
            headers += [f"In-Reply-To: {asked}\r\n", f"References: {asked}\r\n"]
        headers.append(f"Auto-Submitted: {'auto-replied' if answer else 'auto-generated'}\r\n")
        # An encoded part can't hold '=_': '=' stands before hex digits or a line's end only.
        boundary = f"=_{_token(message_id.encode(), 15)}"
        parts = {"plain": _quoted_printable(self._text(kind, facts)), "html": self._html(kind, facts)}
        return Letter(
            kind=kind,
            sender="" if answer else caps.bounce_to,
            recipient=ballot.approver.email,
            message_id=message_id,
            data=_message(headers, boundary, parts),
        )

    def _facts(self, ballot: Ballot, caps: Capabilities) -> dict[str, Any]:
        """Return what every template may name; text is plain here and escaped where it stands."""
        ask, approver = ballot.ask, ballot.approver
        asks, due = wording.asks(ask.requester), wording.when(ask.due_at, approver.zone)
        message = wording.plain(ask.message).strip()
        return {
            "ask": ask,
            "asks": asks,
            "because": wording.because(ask.requester),
            "due": due,
            "facts": [(wording.one_line(k), wording.one_line(v)) for k, v in ask.facts.items()],
            "link": caps.link,
            "message_text": message,
            "preheader": f"{asks} by {due}. {_cut(wording.one_line(message), _EXCERPT)}",
            "sender_name": self._sender[0] or self._sender[1],
            "subject": wording.one_line(ask.subject),
        }

    def _text(self, kind: Kind, facts: Mapping[str, Any]) -> str:
        return self._templates[kind].text.render(facts)

    def _html(self, kind: Kind, facts: Mapping[str, Any]) -> bytes:
        """Return the encoded HTML part, with as much of message and facts as a mail program shows."""
        encoded = b""
        for of_message, of_fact in ROOM:
            message = _cut(facts["message_text"], of_message)
            shown = [(label, _cut(text, of_fact)) for label, text in facts["facts"]]
            page = {
                "message_html": Markup(wording.message_html(message)),  # noqa: S704 -- sanitised there
                "facts": shown,
                "cut": message != facts["message_text"] or shown != facts["facts"],
            }
            encoded = _quoted_printable(self._templates[kind].html.render({**facts, **page}))
            if len(encoded) + encoded.count(b"\n") <= MAX_HTML_BYTES:  # lines will end in CRLF
                break
        return encoded

    def _message_id(self, key: bytes, kind: Kind, nth: str) -> str:
        head = f"{base64.b32encode(key).decode().rstrip('=').lower()}.{kind}"
        plain = f"<{head}.{nth}@{self._domain}>" if nth else f"<{head}@{self._domain}>"
        if not nth or (_NTH.fullmatch(nth) and len(plain) <= MAX_MESSAGE_ID):
            return plain
        return f"<{head}.{_token(nth.encode(), 5)}@{self._domain}>"


def _message(headers: Iterable[str], boundary: str, parts: Mapping[str, bytes]) -> bytes:
    """Return a message of alternative parts, each in quoted-printable.

    Written here and not by the library's `EmailMessage`, which parses every value
    that it is given, and takes as long for one letter as all else together.
    """
    head = [
        *headers,
        "X-Auto-Response-Suppress: OOF, AutoReply\r\nContent-Language: en\r\nMIME-Version: 1.0\r\n",
        f'Content-Type: multipart/alternative; boundary="{boundary}"\r\n\r\n',
    ]
    body = b"".join(
        f"--{boundary}\r\n"
        f'Content-Type: text/{subtype}; charset="utf-8"\r\n'
        "Content-Transfer-Encoding: quoted-printable\r\n\r\n".encode()
        + encoded.replace(b"\n", b"\r\n")
        + b"\r\n"
        for subtype, encoded in parts.items()
    )
    return "".join(head).encode("ascii") + body + f"--{boundary}--\r\n".encode()


def _header(name: str, text: str) -> str:
    """Return a header of one line, or of encoded words of at most 75 characters each (RFC 2047)."""
    if not text.isascii():
        text = Header(text, "utf-8", maxlinelen=76, header_name=name).encode(linesep="\r\n")
    return f"{name}: {text}\r\n"


def _mailbox_header(name: str, display: str, email: str) -> str:
    if display.isascii():
        return f"{name}: {formataddr((display, email))}\r\n"
    return f"{_header(name, display)} <{email}>\r\n"


def _one_mailbox(text: str) -> tuple[str, str]:
    """Return the display name and the address of a From value."""
    message = EmailMessage()
    try:
        message["From"] = text
        addresses: tuple[Address, ...] = () if message["From"].defects else message["From"].addresses
    except ValueError:
        addresses = ()
    if len(addresses) != 1 or not addresses[0].domain:
        raise SettingsError("APPROVALS_FROM", "must be one address, as in Approvals <approvals@example.org>")
    return _header_text(addresses[0].display_name), addresses[0].addr_spec


def _header_text(text: str) -> str:
    """Return `text` as one line that no parser takes for an encoded word."""
    # Decoded, `=?utf-8?q?a=0ABcc=3A_x=40y?=` was a header of its own (CVE-2024-6923).
    return wording.one_line(text).replace("=?", "= ?")


def _person(display: str, email: str) -> str:
    name = wording.one_line(display)
    return email if name == email else f"{name}, {email}"


def _cut(text: str, limit: int) -> str:
    """Return `text`, or its first `limit` characters back to a word's end, and an ellipsis."""
    if len(text) <= limit:
        return text
    head = text[:limit]
    words = head.rsplit(None, 1)[0]
    return f"{words if len(words) > limit // 2 else head}…"


def _quoted_printable(text: str) -> bytes:
    return binascii.b2a_qp(text.encode(), istext=True)


def _token(of: bytes, size: int) -> str:
    """Return `size` bytes (a multiple of 5) of a digest as lower-case base32."""
    return base64.b32encode(hashlib.blake2b(of, digest_size=size).digest()).decode().lower()


def _environment() -> Environment:
    root = _templates()
    inliner = css_inline.CSSInliner(
        keep_style_tags=True, remove_inlined_selectors=True, load_remote_stylesheets=False
    )

    def source(name: str) -> str:
        pasted = _read(root, name)
        return _inlined(pasted, inliner) if name.endswith(".html") else pasted

    env = Environment(
        loader=FunctionLoader(source),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters["quoted"] = _indented
    env.filters["lines"] = _lines
    return env


def _templates() -> Traversable:
    """Return the folder of templates: in the installed package, or beside it in a checkout."""
    packaged = resources.files("service").joinpath("mail_templates")
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "mail_templates"


def _read(root: Traversable, name: str) -> str:
    """Return a template with its includes pasted in: styles are inlined over a whole letter or not at all."""
    text = root.joinpath(name).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda found: _read(root, found[1]), text)


def _inlined(source: str, inliner: css_inline.CSSInliner) -> str:
    """Inline the styles of a template, not of a letter: once at start.

    Statements become comments meanwhile, which an HTML parser leaves where they
    stand, in a table too.
    """
    statements: list[str] = []

    def hide(found: re.Match[str]) -> str:
        statements.append(found[0])
        return f"<!--statement {len(statements) - 1}-->"

    inlined = inliner.inline(_STATEMENT.sub(hide, source))
    return re.sub(r"<!--statement (\d+)-->", lambda found: statements[int(found[1])], inlined)


def _indented(text: str) -> str:
    """Set what somebody wrote apart in a text part: only our own lines start at the margin."""
    return "\n".join(f"  {line}".rstrip() for line in text.split("\n"))


def _lines(text: str) -> Markup:
    return Markup("<br>").join(escape(line) for line in text.split("\n"))
