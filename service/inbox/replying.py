"""A reply to a letter as mail programs write one, and the way it is sent.

The reply decides through the same door as any person's: mail to the address
in the letter's Reply-To. Nothing here knows what a decision is.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid, parsedate_to_datetime
from io import BytesIO

import msgspec

from service.endpoints import MailEndpoint
from service.inbox import mime
from service.inbox.store import Letter
from service.receive import hand_in

#: Takes envelope sender, envelope recipient and the message; raises Undelivered.
type Deliver = Callable[[str, str, bytes], Awaitable[None]]

#: Header folding would turn long ids into encoded words, and the thread would be lost.
_POLICY = SMTP.clone(max_line_length=998)
#: What a mail program quotes at most.
_MAX_QUOTED = 64 * 1024
#: Characters of a display name; a longer one would not fit its line.
_MAX_NAME = 100
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,250}>")


class Unanswerable(ValueError):
    """The letter names no address that a reply can go to, or comes from."""


class Undelivered(Exception):
    """The mailbox did not take the reply: its own words, or why it could not be asked."""


class Reply(msgspec.Struct, frozen=True):
    """A reply ready to be sent."""

    sender: str
    recipient: str
    message: bytes


def to_mailbox(where: MailEndpoint) -> Deliver:
    """Return a `Deliver` to the mailbox, as a pipe does: SMTP or LMTP, by TCP or a unix socket."""

    async def deliver(sender: str, recipient: str, message: bytes) -> None:
        handed = await asyncio.to_thread(hand_in, where, sender, recipient, BytesIO(message))
        if handed.exit_code:
            raise Undelivered(handed.problem)

    return deliver


def recipient(letter: mime.Part) -> str:
    """Return the address a reply goes to: the first of Reply-To, else of From; may be empty."""
    for name in ("reply-to", "from"):
        for _, address in mime.addresses(letter.first(name)):
            return address
    return ""


def compose(letter: Letter, sender: str, typed: str, *, now: datetime) -> Reply:
    """Return the reply of ``sender``, one of the letter's recipients, to a letter.

    Raises `Unanswerable` when the addresses can't be written in a header.
    """
    original = mime.parse(letter.raw)
    to = recipient(original)
    message = EmailMessage(_POLICY)
    try:
        message["From"] = Address(_display_name(original, sender), addr_spec=_ascii(sender))
        message["To"] = Address(addr_spec=_ascii(to))
    except (ValueError, IndexError, HeaderParseError) as exc:
        raise Unanswerable(f"no reply can go from {sender!r} to {to!r}") from exc
    subject = mime.words(original.first("subject"))
    message["Subject"] = subject if subject.lower().startswith("re:") else f"Re: {subject}"
    message["Date"] = now
    message["Message-ID"] = make_msgid(domain="inbox.localhost")
    answered = _MESSAGE_ID.findall(original.first("message-id"))[:1]
    if answered:
        # The first id names the thread, the last ones its end.
        known = _MESSAGE_ID.findall(original.first("references"))
        message["In-Reply-To"] = answered[0]
        message["References"] = " ".join([*known[:1], *known[1:][-9:], *answered])
    message.set_content(f"{typed.strip()}\n\n{_quotation(letter, original)}\n", cte="quoted-printable")
    return Reply(sender, to, message.as_bytes())


def _quotation(letter: Letter, original: mime.Part) -> str:
    """Return the line of attribution and the letter's text part, quoted."""
    try:
        when = parsedate_to_datetime(original.first("date"))
    except (ValueError, OverflowError):
        when = letter.received_at
    author = mime.words(original.first("from")) or letter.sender
    lines = [f"On {format_datetime(when).rpartition(':')[0]}, {author} wrote:"]
    part = mime.leaf(original, "text/plain")
    if part is not None:
        text = mime.text(part)[:_MAX_QUOTED].rstrip()
        lines += [f">{line}" if line.startswith(">") else f"> {line}".rstrip() for line in text.split("\n")]
    return "\n".join(lines)


def _display_name(original: mime.Part, sender: str) -> str:
    """Return the name under which the letter was sent to this address."""
    for name, address in mime.addresses(original.first("to")):
        if address.lower() == sender.lower():
            return name[:_MAX_NAME]
    return ""


def _ascii(address: str) -> str:
    """Return the address; others would need SMTPUTF8, which a mailbox need not offer."""
    if not address.isascii() or not address.isprintable():
        raise ValueError(address)
    return address
