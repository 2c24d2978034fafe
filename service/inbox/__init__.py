"""The local development inbox: letters for anyone land here, are read and answered here.

An SMTP sink that keeps each message as it was received, MailHog's HTTP API
over what it keeps, and a page with a reply box. It stands for the world's mail
servers and mail programs on a developer's machine, so it knows nothing of
approvals: letters come in by SMTP and replies go out by `Deliver`.
"""

from collections.abc import Callable, Collection
from datetime import UTC, datetime

from aiosmtpd.smtp import SMTP, Envelope, Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.inbox.guard import LOOPBACK, Guard
from service.inbox.mailhog import Api
from service.inbox.pages import Pages
from service.inbox.replying import Deliver, to_mailbox
from service.inbox.store import InboxAway, Store

__all__ = ["Deliver", "Inbox", "InboxAway", "Sink", "to_mailbox"]

#: More recipients than this are left to a second message (RFC 5321 4.5.3.1.8).
MAX_RECIPIENTS = 100


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Inbox:
    """The inbox over one file of letters, or over none (``:memory:``).

    `handler` goes into a `service.smtpd.Listener`, which should offer
    SMTPUTF8; `app` into an HTTP server. `deliver` sends what the reply box
    makes. `hosts` are the names under which browsers may open the page.
    Raises `InboxAway` when the file can't be opened.
    """

    def __init__(
        self,
        *,
        path: str,
        deliver: Deliver,
        clock: Callable[[], datetime] = _utc_now,
        hosts: Collection[str] = LOOPBACK,
    ) -> None:
        self._store = Store(path)
        self.handler = Sink(self._store, clock)
        self.app = Starlette(
            routes=[*Api(self._store).routes(), *Pages(self._store, deliver, clock).routes()],
            middleware=[Middleware(Guard, hosts=hosts)],
            exception_handlers={InboxAway: _away},
        )

    def close(self) -> None:
        """Close the file; letters stay in it."""
        self._store.close()


class Sink:
    """aiosmtpd's hooks: any recipient is taken, 250 comes after the letter is on the disk."""

    def __init__(self, store: Store, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._clock = clock

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Take any recipient, up to `MAX_RECIPIENTS` a message."""
        del server, session
        if len(envelope.rcpt_tos) >= MAX_RECIPIENTS:
            return "452 4.5.3 Too many recipients"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep the letter. Raises `InboxAway`, whose answer is 451."""
        del server
        letter_id = self._store.add(
            received_at=self._clock(),
            helo=_text(session.host_name or ""),
            # aiosmtpd tells the null sender as '<>'.
            sender=_text((envelope.mail_from or "").removeprefix("<>")),
            recipients=[_text(each) for each in envelope.rcpt_tos],
            raw=envelope.original_content or b"",
        )
        return f"250 2.0.0 OK: queued as {letter_id}"


def _text(wire: str) -> str:
    """Return what aiosmtpd decoded with surrogates for bad octets as text that can be stored."""
    return wire.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _away(_: Request, exc: Exception) -> Response:
    return PlainTextResponse(str(exc), status_code=503)
