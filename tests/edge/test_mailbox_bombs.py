"""Mail made to hang a parser, by real SMTP: it is answered at once, and the gateway serves meanwhile."""

import asyncio
import re
import threading
import time
from pathlib import Path

import pytest

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


async def handed_in(person: Person, to: str, raw: bytes) -> tuple[bytes, float, float]:
    """Return the mailbox's answer, how long it took from the first octet, and the gateway's longest."""
    reader, writer = await asyncio.open_connection(*person.mailbox)
    writer.write(b"HELO c\r\nMAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n" % (ANN.encode(), to.encode()))
    while not (await reader.readline()).startswith(b"354"):
        pass
    # A line of over a thousand octets is refused before any parser: here it is folded.
    body = re.sub(rb"[^\n]{900}", rb"\g<0>\n ", raw).replace(b"\n", b"\r\n") + b"\r\n.\r\n"
    done = asyncio.Event()
    pages = asyncio.create_task(slowest_page(person, done))
    started = time.monotonic()
    writer.write(body)
    answer = await reader.readline()
    took = time.monotonic() - started
    done.set()
    writer.close()
    return answer, took, await pages


@pytest.mark.parametrize("name", BOMBS)
async def test_a_parse_bomb_is_answered_at_once_and_the_gateway_serves_on(tmp_path: Path, name: str) -> None:
    """What takes the standard library seconds takes a fifth of one, from the first octet on."""
    times, pages = [], []
    async with lived(tmp_path) as (_, person):
        to = str((await approval(person, "b-1"))["Reply-To"])
        for _ in range(ATTEMPTS):
            answer, took, longest = await handed_in(person, to, BOMBS[name])
            assert answer[:3] in {b"250", b"552", b"554"}, answer
            times.append(took)
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


@pytest.mark.parametrize(
    ("line", "lines", "answer"),
    [(b"x\r\n", 20_100, b"552"), (b"123,4\r\n", 25_000, b"250"), (b"x\r\n", 15_000, b"250")],
)
async def test_only_very_many_very_short_lines_are_too_many(
    tmp_path: Path, line: bytes, lines: int, answer: bytes
) -> None:
    """A long paste into a reply is received; what is made of empty lines is refused, and its sender told."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "b-3")
        raw = reply_to(letter, "approve").replace(b"\r\n", b"\n") + line.replace(b"\r\n", b"\n") * lines
        got, _, _ = await handed_in(person, str(letter["Reply-To"]), raw)
        assert got.startswith(answer)
        assert ((await person.report("b-3"))["status"] == "approved") is (answer == b"250")
