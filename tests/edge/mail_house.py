"""A service with a mailbox, ann's mail program, and a DNS that is a dict."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from functools import cache
from pathlib import Path
from typing import Any

import dkim  # type: ignore[import-untyped] # it ships no types

from service.app import DEVELOPMENT, Running, running
from service.demo import environment
from service.records import utc_now
from service.senders import DnsUnavailable
from tests.journey.house import Person, settings_of, text_of
from tests.unit.test_senders import Key, rsa

ANN = "ann@corp.example"


@dataclass
class Zone:
    """DNS as a dict, which may be away."""

    records: dict[str, tuple[bytes, ...]]
    away: bool = False

    async def txt(self, name: str) -> tuple[bytes, ...]:
        """Return what the dict has."""
        if self.away:
            raise DnsUnavailable(f"no answer for {name}")
        return self.records.get(name, ())


def zone(*, away: bool = False) -> Zone:
    """Return the zone where these domains publish a key each."""
    names = ("corp.example", "evil.example", "list.example")
    return Zone({f"s1._domainkey.{name}": (_key().record,) for name in names}, away)


@cache
def _key() -> Key:
    return rsa()


@asynccontextmanager
async def lived(
    folder: Path, *, dns: Zone | None = None, **own: str
) -> AsyncIterator[tuple[Running, Person]]:
    """Run a development service whose DNS is `dns`; its settings are `own`."""
    settings = settings_of(environment(folder, **own), folder)
    async with running(settings, DEVELOPMENT, resolver=dns or zone()) as service:
        mailbox = service.mailbox or settings.mailbox
        person = Person(f"http://{service.http}", f"http://{service.inbox}", (mailbox.host, mailbox.port))
        async with person.http:
            yield service, person


async def approval(person: Person, approval_id: str) -> EmailMessage:
    """Open an approval of ann's and return its letter."""
    assert (await person.ask(approval_id)).status_code == 201
    return await person.letter(approval_id)


def reply_to(
    letter: EmailMessage, text: str, *, sender: str = ANN, message_id: str = "<reply@corp.example>"
) -> bytes:
    """Return an answer to `letter` as mail programs write them; an empty `message_id` leaves it out."""
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"], mail["Subject"] = sender, letter["Reply-To"], f"Re: {letter['Subject']}"
    mail["In-Reply-To"], mail["Date"] = letter["Message-ID"], format_datetime(utc_now())
    if message_id:
        mail["Message-ID"] = message_id
    quoted = "\n".join(f"> {line}" for line in text_of(letter).splitlines())
    mail.set_content(f"{text}\n\nOn Mon, 23 Nov 2026 at 10:12, Approvals wrote:\n{quoted}\n")
    return mail.as_bytes()


def signed_by_ann(
    raw: bytes,
    domain: bytes = b"corp.example",
    covered: tuple[bytes, ...] = (b"from", b"to", b"subject", b"date", b"message-id", b"in-reply-to"),
) -> bytes:
    """Return `raw` with a DKIM signature of `domain` on top."""
    line: Any = dkim.sign(raw, b"s1", domain, _key().private, include_headers=list(covered))
    return bytes(line) + raw
