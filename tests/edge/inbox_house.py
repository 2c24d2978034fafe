"""An inbox with all of its real parts for its tests: SMTP in, HTTP, and a mailbox that gets replies."""

import smtplib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY

import httpx
import uvicorn
from aiosmtpd.smtp import SMTP, Envelope, Session

from service.endpoints import MailEndpoint
from service.inbox import Inbox, to_mailbox
from service.smtpd import Listener


@dataclass
class Mailbox:
    """Where replies go: keeps them, and answers DATA with `answer`."""

    answer: str = "250 2.0.0 Thank you"
    mails: list[Envelope] = field(default_factory=list)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep what is accepted."""
        del server, session
        if self.answer.startswith("250"):
            self.mails.append(envelope)
        return self.answer


@dataclass
class House:
    """A running inbox; `url` is its page, `smtp_port` its sink."""

    inbox: Inbox
    url: str
    smtp_port: int
    mailbox: Mailbox
    mailbox_listener: Listener
    http: httpx.Client

    def send(self, raw: bytes, *to: str, sender: str = "approvals@localhost") -> None:
        """Send a message by SMTP."""
        with smtplib.SMTP("127.0.0.1", self.smtp_port, local_hostname="client.test", timeout=10) as client:
            client.sendmail(sender, to or ("ann@corp.test",), raw)


@contextmanager
def open_house(path: str = ":memory:") -> Iterator[House]:
    """Start the parts on free ports, stop them at the end."""
    mailbox = Mailbox()
    replies = Listener(mailbox, setting="APPROVALS_MAILBOX", host="127.0.0.1", port=0)
    replies.start()
    inbox = Inbox(path=path, deliver=to_mailbox(MailEndpoint("127.0.0.1", replies.port)))
    sink = Listener(inbox.handler, setting="APPROVALS_INBOX_SMTP", host="127.0.0.1", port=0, smtputf8=True)
    sink.start()
    # With its protocol named, or asyncio leaves Nagle's delay of 40 ms on each answer.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(inbox.app, lifespan="off", ws="none", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    try:
        with httpx.Client(base_url=url, timeout=30) as http:
            yield House(inbox, url, sink.port, mailbox, replies, http)
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
        sink.stop(grace=1)
        replies.stop(grace=1)
        inbox.close()


def letter(subject: str = "Refund 120.00 EUR", *, html: str | None = None, **headers: str) -> bytes:
    """Return a letter as the service sends it, more or less; headers have ``_`` for ``-``."""
    message = EmailMessage(SMTP_POLICY.clone(max_line_length=998))
    defaults = {
        "From": "Bob Smith via Approvals <approvals@localhost>",
        "To": "Ann Lee <ann@corp.test>",
        "Reply-To": "r+afqwcmrtgy3tqnbvgu3dombr@localhost",
        "Message-ID": "<refund-42@localhost>",
        "Date": "Tue, 24 Nov 2026 10:12:13 +0100",
    }
    for name, value in (defaults | {key.replace("_", "-"): each for key, each in headers.items()}).items():
        if value:
            message[name] = value
    message["Subject"] = subject
    message.set_content("Bob asks for your approval: café.\n\n> an old line\n", cte="quoted-printable")
    if html is not None:
        message.add_alternative(html, subtype="html", cte="quoted-printable")
    return message.as_bytes()
