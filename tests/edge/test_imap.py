"""Replies from an ordinary mailbox, on a real dovecot."""

import asyncio
import imaplib
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from service import imap as imap_module
from service import mailbox as mailbox_module
from service.errors import EngineAway
from tests.edge.dovecot import PASSWORD, USER, Wire, client, dovecot, wire
from tests.edge.mail_house import ANN, approval, lived, reply_to
from tests.edge.smtp_house import make_certificates
from tests.journey.house import eventually


@pytest.fixture
async def line() -> AsyncIterator[Wire]:
    """A wire to a running dovecot."""
    async with dovecot() as ports, wire(ports.clear) as made:
        yield made


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause less than in life."""
    monkeypatch.setattr(imap_module, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(imap_module, "RETRY_SECONDS", 0.3)


def url(line: Wire, query: str = "") -> str:
    """Return the setting."""
    return f"imap://{USER}:{PASSWORD}@127.0.0.1:{line.port}/INBOX{query}"


def arrives(port: int, letter: EmailMessage, text: str, *, head: bytes = b"", sender: str = ANN) -> None:
    """Put a reply to `letter` into the mailbox, unseen, as a mail server does."""
    raw = b"Return-Path: <%s>\r\n" % sender.encode() + head + reply_to(letter, text, sender=sender)
    with client(port) as mail:
        mail.append("INBOX", "", "", raw)


def flags(line: Wire, folder: str = "INBOX") -> list[str]:
    """Return the flags of each message in a folder."""
    with client(line.target) as mail:
        status, [count] = mail.select(folder, readonly=True)
        assert status == "OK", count
        if count == b"0":
            return []
        _, found = mail.fetch("1:*", "(FLAGS)")
    return [" ".join(f.decode() for f in imaplib.ParseFlags(one)) for one in found if isinstance(one, bytes)]


async def seen(line: Wire, keyword: str) -> None:
    """Wait until a message has this keyword."""

    async def look() -> bool | None:
        return any(keyword in each for each in await asyncio.to_thread(flags, line)) or None

    await eventually(look, keyword)


async def test_a_reply_in_an_ordinary_mailbox_decides_and_is_kept(line: Wire, tmp_path: Path) -> None:
    """It is marked as seen and taken, and stays where it is."""
    async with lived(tmp_path, IMAP=url(line)) as (_, person):
        letter = await approval(person, "i-1")
        await asyncio.to_thread(arrives, line.target, letter, "approve\nFine.")
        report = await person.report("i-1", wait=20)
        assert (report["status"], report["approvers"][0]["comment"]) == ("approved", "Fine.")
        await seen(line, "ApprovalsDone")
        [one] = await asyncio.to_thread(flags, line)
        assert "\\Seen" in one


async def test_what_was_taken_is_moved_where_that_is_wished(line: Wire, tmp_path: Path) -> None:
    """The inbox stays for people; nothing is deleted."""
    with client(line.target) as mail:
        mail.create("Done")
    async with lived(tmp_path, IMAP=url(line, "?move=Done")) as (_, person):
        letter = await approval(person, "i-2")
        await asyncio.to_thread(arrives, line.target, letter, "decline")
        assert (await person.report("i-2", wait=20))["status"] == "declined"

        async def moved() -> bool | None:
            return len(await asyncio.to_thread(flags, line, "Done")) == 1 or None

        await eventually(moved, "the message is moved")
        assert await asyncio.to_thread(flags, line) == []


async def test_other_mail_is_left_unseen_for_people(line: Wire, tmp_path: Path) -> None:
    """A message that is not for us, or that the mailbox refuses, is theirs to read."""
    async with lived(tmp_path, IMAP=url(line)) as (_, person):
        letter = await approval(person, "i-3")
        del letter["Reply-To"]
        letter["Reply-To"] = "approvals@corp.example"
        await asyncio.to_thread(arrives, line.target, letter, "approve")
        await seen(line, "ApprovalsLeft")
        [one] = await asyncio.to_thread(flags, line)
        assert "\\Seen" not in one
        assert (await person.report("i-3"))["status"] == "pending"


async def test_what_was_asked_back_today_is_left_for_people_and_told(
    line: Wire, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody tells its sender, so that whoever runs the service is warned; it is not deleted."""
    async with lived(tmp_path, IMAP=url(line)) as (_, person):
        letter = await approval(person, "i-10")
        await asyncio.to_thread(arrives, line.target, letter, "why?")
        await seen(line, "ApprovalsDone")
        await asyncio.to_thread(arrives, line.target, letter, "why not?")
        await seen(line, "ApprovalsLeft")
        [one, other] = await asyncio.to_thread(flags, line)
        assert ("ApprovalsDone" in one, "\\Seen" in other) == (True, False)
        [record] = [record for record in caplog.records if "is left" in record.getMessage()]
        assert (record.levelname, mailbox_module.UNCLEAR in record.getMessage()) == ("WARNING", True)


async def test_the_address_that_the_server_wrote_goes_first(line: Wire, tmp_path: Path) -> None:
    """Delivered-To is what counts where To was rewritten."""
    async with lived(tmp_path, IMAP=url(line)) as (_, person):
        letter = await approval(person, "i-4")
        head = f"Delivered-To: {str(letter['Reply-To']).upper()}\r\n".encode()
        del letter["Reply-To"]
        letter["Reply-To"] = "approvals@corp.example"
        await asyncio.to_thread(arrives, line.target, letter, "approve", head=head)
        assert (await person.report("i-4", wait=20))["status"] == "approved"


async def test_a_connection_that_drops_during_idle_is_made_again(line: Wire, tmp_path: Path) -> None:
    """What came meanwhile is found; later mail is told of again."""
    async with lived(tmp_path, IMAP=url(line)) as (_, person):
        first, second = await approval(person, "i-5"), await approval(person, "i-6")

        async def watching() -> bool | None:
            return line.made > 0 or None

        await eventually(watching, "the poller connects")
        await asyncio.sleep(0.5)  # long enough to be in IDLE
        before = line.made
        line.cut()
        await asyncio.to_thread(arrives, line.target, first, "approve")
        assert (await person.report("i-5", wait=20))["status"] == "approved"
        assert line.made == before + 1
        await asyncio.to_thread(arrives, line.target, second, "approve")
        assert (await person.report("i-6", wait=20))["status"] == "approved"
        assert line.made == before + 1


async def test_while_the_engine_is_away_mail_stays_unseen(
    line: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again until the engine answers, and then decides."""
    async with lived(tmp_path, IMAP=url(line)) as (_, person):
        letter = await approval(person, "i-7")
        tried = asyncio.Event()

        async def away(*_: object) -> None:
            tried.set()
            raise EngineAway("away")

        with monkeypatch.context() as patched:
            patched.setattr(mailbox_module.Mailbox, "_addressee", away)
            await asyncio.to_thread(arrives, line.target, letter, "approve")
            await asyncio.wait_for(tried.wait(), 20)
            [one] = await asyncio.to_thread(flags, line)
            assert "\\Seen" not in one
            assert "Approvals" not in one
        assert (await person.report("i-7", wait=20))["status"] == "approved"


async def test_a_server_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    """The service starts without its IMAP server, and stops without it."""
    async with lived(tmp_path, IMAP=f"imap://{USER}:{PASSWORD}@127.0.0.1:1/INBOX") as (_, person):
        await approval(person, "i-8")
        await asyncio.sleep(0.3)
        assert (await person.report("i-8"))["status"] == "pending"


@pytest.mark.parametrize(
    ("host", "trusted", "taken"),
    [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("127.1", True, False)],
    ids=["trusted", "of an unknown CA", "of another name"],
)
async def test_the_password_goes_to_a_certificate_that_is_trusted_and_to_no_other(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    host: str,
    trusted: bool,
    taken: bool,
) -> None:
    """Replies are taken by imaps:// where SSL_CERT_FILE names the CA and the certificate the host."""
    make_certificates(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/certificate.pem")
    async with dovecot(tmp_path) as ports:
        setting = f"imaps://{USER}:{PASSWORD}@{host}:{ports.secure}/INBOX"
        async with lived(tmp_path, IMAP=setting) as (_, person):
            letter = await approval(person, "i-9")
            await asyncio.to_thread(arrives, ports.clear, letter, "approve")
            if taken:
                assert (await person.report("i-9", wait=20))["status"] == "approved"
                return

            async def refused() -> bool | None:
                return "certificate verify failed" in caplog.text or None

            await eventually(refused, "the certificate is refused")
            assert (await person.report("i-9"))["status"] == "pending"
            assert PASSWORD not in caplog.text
