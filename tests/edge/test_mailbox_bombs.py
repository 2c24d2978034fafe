"""Mail made to hang a parser, by real SMTP: it is answered at once, and the gateway serves meanwhile."""

import asyncio
import re
import threading
import time
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from service import mailbox as mailbox_module
from service.replies import Reading, Sent, read_reply
from tests.edge.mail_house import ANN, approval, lived, reply_to
from tests.fixtures.replies import hostile
from tests.journey.house import Person

#: Seconds for an answer, and for the gateway's.
BOUND = 0.2
#: A machine that is busy with other things may miss a bound, but not every time.
ATTEMPTS = 5
BOMBS = {
    name: hostile.mails()[name]
    for name in ("from-quotes-20k", "from-addresses-17k", "parts-350k", "parts-nested")
}
BOMBS["charset-unknown"] = hostile.HEAD + b"Content-Type: text/plain; charset=X-UNKNOWN\n\n\xe4h\n"


async def slowest_page(person: Person, done: asyncio.Event) -> float:
    """Return the longest that the gateway took for an answer until `done`."""
    longest = 0.0
    while not done.is_set():
        start = time.monotonic()
        assert (await person.http.get(f"{person.api}/healthz")).status_code == 200
        longest = max(longest, time.monotonic() - start)
    return longest


async def handed_in(person: Person, to: str, raw: bytes) -> tuple[bytes, float]:
    """Return the mailbox's answer, and the gateway's longest meanwhile."""
    reader, writer = await asyncio.open_connection(*person.mailbox)
    writer.write(b"HELO c\r\nMAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n" % (ANN.encode(), to.encode()))
    while not (await reader.readline()).startswith(b"354"):
        pass
    # A line of over a thousand octets is refused before any parser: here it is folded.
    body = re.sub(rb"[^\n]{900}", rb"\g<0>\n ", raw).replace(b"\n", b"\r\n") + b"\r\n.\r\n"
    done = asyncio.Event()
    pages = asyncio.create_task(slowest_page(person, done))
    writer.write(body)
    answer = await reader.readline()
    done.set()
    writer.close()
    return answer, await pages


@pytest.mark.parametrize("name", BOMBS)
async def test_a_parse_bomb_is_answered_at_once_and_the_gateway_serves_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What takes the standard library seconds takes a fifth of one, once it is received."""
    times: list[float] = []
    handle = mailbox_module.Mailbox.handle_DATA

    async def timed(
        mailbox: mailbox_module.Mailbox, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        started = time.monotonic()
        answer = await handle(mailbox, server, session, envelope)
        times.append(time.monotonic() - started)
        return answer

    monkeypatch.setattr(mailbox_module.Mailbox, "handle_DATA", timed)
    async with lived(tmp_path) as (_, person):
        to = str((await approval(person, "b-1"))["Reply-To"])
        pages = []
        for _ in range(ATTEMPTS):
            answer, longest = await handed_in(person, to, BOMBS[name])
            assert answer[:3] in {b"250", b"554"}, answer
            pages.append(longest)
        assert min(times) < BOUND
        assert min(pages) < BOUND
        assert (await person.report("b-1"))["status"] == "pending"


async def test_a_message_that_can_not_be_read_in_time_is_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender's server keeps it: 451, and no place is held for long."""
    slow = threading.Event()

    def stuck(raw: bytes, sent: Sent, *, envelope_from: str | None = None) -> Reading:
        slow.wait(10)
        return read_reply(raw, sent, envelope_from=envelope_from)

    monkeypatch.setattr(mailbox_module, "READING_SECONDS", 0.2)
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "b-2")
        to, raw = str(letter["Reply-To"]), reply_to(letter, "approve")
        with monkeypatch.context() as patched:
            patched.setattr(mailbox_module, "read_reply", stuck)
            assert (await person.deliver(ANN, to, raw)).startswith("451")
            slow.set()
        assert (await person.report("b-2"))["status"] == "pending"
        assert (await person.deliver(ANN, to, raw)).startswith("250")
        assert (await person.report("b-2", wait=20))["status"] == "approved"
