"""The mailbox from end to end: real SMTP in, real promises, letters in the inbox."""

import asyncio
import email
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.policy import default as default_policy
from functools import partial
from pathlib import Path

import aiosmtplib
import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from service import app as app_module
from service import mailbox as mailbox_module
from service.answers import Answers
from service.app import Running, running
from service.demo import environment, free_ports
from service.domain import Vote, ballot_key
from service.errors import EngineAway
from service.journal import Journal
from service.records import utc_now
from service.smtpd import Listener
from tests.edge.mail_house import ANN, approval, lived, reply_to, signed_by_ann, zone
from tests.journey.house import Person, eventually, settings_of, text_of
from tests.unit.test_senders_arc import listed, sealed

type Live = Callable[..., AbstractAsyncContextManager[tuple[Running, Person]]]


@pytest.fixture
def live(tmp_path: Path) -> Live:
    """Run a service in a folder of its own."""
    return lambda **own: lived(tmp_path, **own)


async def kinds(person: Person, needle: str) -> list[str]:
    """Return the kinds of the letters about `needle` once nothing more is to come."""
    await person.ask(f"after-{needle}")
    await person.letter(f"after-{needle}")
    found = [str(mail["Message-ID"]) for mail in await person.letters(f"Refund {needle}")]
    return sorted(mid.split("@")[0].split(".")[1].split("-")[0] for mid in found)


# ── Whom a reply is from ──────────────────────────────────────────────────────


async def test_a_signed_reply_decides_and_the_record_says_what_proved_it(live: Live) -> None:
    """REPLY_TRUST=verify: a DKIM signature of From's domain is what counts."""
    async with live(REPLY_TRUST="verify") as (service, person):
        letter = await approval(person, "v-1")
        raw = signed_by_ann(reply_to(letter, "approve\nFine."))
        assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
        assert (await person.report("v-1", wait=20))["status"] == "approved"
        end = (await service.approvals.ballot(ballot_key("v-1", ANN))).end
        assert isinstance(end, Vote)
        assert (end.comment, end.evidence["trust"], end.evidence["from"]) == ("Fine.", "dkim", ANN)


@pytest.mark.parametrize("spoilt", ["unsigned", "changed", "signed by another"])
async def test_an_unproven_reply_asks_the_approver_to_confirm(live: Live, spoilt: str) -> None:
    """REPLY_TRUST=verify: without a valid aligned signature nothing is decided and nobody else is told."""
    async with live(REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "v-2")
        raw = reply_to(letter, "approve")
        if spoilt == "changed":
            raw = signed_by_ann(raw).replace(b"approve", b"decline", 1)
        elif spoilt == "signed by another":
            raw = signed_by_ann(raw, domain=b"evil.example")
        assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
        confirmation = await person.letter("v-2", kind="confirmation")
        assert confirmation["To"].addresses[0].addr_spec == ANN
        assert (await person.report("v-2"))["status"] == "pending"


async def test_dns_away_is_451_and_the_same_reply_counts_later(tmp_path: Path) -> None:
    """The sender's server keeps the reply until the key can be had; no letter goes out meanwhile."""
    dns = zone(away=True)
    async with lived(tmp_path, dns=dns, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "v-3")
        raw = signed_by_ann(reply_to(letter, "approve"))
        assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("451")
        assert (await person.report("v-3"))["status"] == "pending"
        dns.away = False
        assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
        assert (await person.report("v-3", wait=20))["status"] == "approved"
        assert "confirmation" not in await kinds(person, "v-3")


@pytest.mark.parametrize(
    ("sealers", "seen", "decides"),
    [
        ("other.example, List.example", "pass", True),
        ("list.example", "fail", False),
        ("other.example", "pass", False),
        ("", "pass", False),
    ],
    ids=["trusted", "saw it fail", "another is trusted", "nobody is trusted"],
)
async def test_a_reply_by_way_of_a_list_counts_where_its_seal_is_trusted(
    live: Live, sealers: str, seen: str, *, decides: bool
) -> None:
    """ARC_SEALERS: the author's signature broke on the way, the relay says what it saw."""
    async with live(REPLY_TRUST="verify", ARC_SEALERS=sealers) as (service, person):
        letter = await approval(person, "v-4")
        broken = listed(signed_by_ann(reply_to(letter, "approve")))
        raw = sealed(broken, "list.example", f"dmarc={seen} header.from=corp.example")
        assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
        if not decides:
            await person.letter("v-4", kind="confirmation")
            assert (await person.report("v-4"))["status"] == "pending"
            return
        assert (await person.report("v-4", wait=20))["status"] == "approved"
        end = (await service.approvals.ballot(ballot_key("v-4", ANN))).end
        assert isinstance(end, Vote)
        assert end.evidence["trust"] == "arc"


PASS = "mx.corp.example; dkim=pass header.d=corp.example; dmarc=pass header.from=corp.example"
FAIL = "mx.corp.example; dmarc=fail header.from=corp.example"


@pytest.mark.parametrize(
    ("results", "peers", "decides"),
    [
        ([PASS], "127.0.0.0/8", True),
        ([PASS], "192.0.2.0/24", False),
        ([FAIL], "127.0.0.0/8", False),
        ([FAIL, PASS], "127.0.0.0/8", False),
        ([PASS.replace("mx.corp", "mx.evil")], "127.0.0.0/8", False),
        ([], "127.0.0.0/8", False),
    ],
    ids=["passes", "another peer", "fails", "a pass below", "another server's", "none"],
)
async def test_the_server_in_front_is_believed_where_it_is_the_one(
    live: Live, results: list[str], peers: str, *, decides: bool
) -> None:
    """REPLY_TRUST=authserv-id: only its topmost field, and only from an allowed peer."""
    async with live(REPLY_TRUST="authserv-id=mx.corp.example", REPLY_PEERS=peers) as (_, person):
        letter = await approval(person, "s-1")
        fields = "".join(f"Authentication-Results: {value}\r\n" for value in results)
        raw = fields.encode() + reply_to(letter, "approve")
        assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
        if decides:
            assert (await person.report("s-1", wait=20))["status"] == "approved"
        else:
            await person.letter("s-1", kind="confirmation")
            assert (await person.report("s-1"))["status"] == "pending"


async def test_an_address_alone_counts_only_where_that_was_chosen(live: Live) -> None:
    """REPLY_TRUST=address: the approver's From decides, anybody else's does not."""
    async with live(REPLY_TRUST="address") as (_, person):
        letter = await approval(person, "d-1")
        eve = reply_to(letter, "decline", sender="eve@evil.example")
        assert (await person.deliver("eve@evil.example", str(letter["Reply-To"]), eve)).startswith("250")
        assert (await person.report("d-1"))["status"] == "pending"
        assert (await person.deliver(ANN, str(letter["Reply-To"]), reply_to(letter, "approve"))).startswith(
            "250"
        )
        assert (await person.report("d-1", wait=20))["status"] == "approved"


# ── What is refused, and when ─────────────────────────────────────────────────


async def test_strangers_are_refused_before_data(live: Live) -> None:
    """An address that we did not sign costs its sender no message and us no parsing."""
    async with live() as (_, person):
        signed = str((await approval(person, "r-1"))["Reply-To"])
        local, _, domain = signed.partition("@")
        forged = local[:-1] + ("a" if local[-1] != "a" else "b")
        wrong = [
            f"{forged}@{domain}",
            f"{local}@evil.example",
            f"x{signed}",
            "postmaster@localhost",
            signed[1:],
        ]
        host, port = person.mailbox
        async with aiosmtplib.SMTP(hostname=host, port=port, start_tls=False) as smtp:
            await smtp.mail(ANN)
            for address in wrong:
                with pytest.raises(aiosmtplib.SMTPRecipientRefused) as caught:
                    await smtp.rcpt(address)
                assert caught.value.code == 550, address
            with pytest.raises(aiosmtplib.SMTPResponseException) as data:
                await smtp.data(b"approve\r\n")
            assert data.value.code == 503
            # The right one, in any case, is still welcome in the same session; a second is put off.
            assert (await smtp.rcpt(signed.upper())).code == 250
            with pytest.raises(aiosmtplib.SMTPRecipientRefused) as second:
                await smtp.rcpt(signed)
            assert second.value.code == 452
        assert (await person.report("r-1"))["status"] == "pending"


async def test_what_no_mail_program_writes_is_refused(live: Live) -> None:
    """A header block past every bound is a 554, and leads to no letter."""
    async with live() as (_, person):
        letter = await approval(person, "r-2")
        raw = b"X-Long: " + b"x" * 70_000 + b"\r\n" + reply_to(letter, "approve")
        folded = raw.replace(b"x" * 900, b"x" * 899 + b"\r\n ")
        assert (await person.deliver(ANN, str(letter["Reply-To"]), folded)).startswith("554")
        assert await kinds(person, "r-2") == ["request"]


async def test_an_engine_that_is_away_is_451_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender's server keeps the reply; once the engine is back the same one decides."""
    monkeypatch.setattr(mailbox_module, "ENGINE_PATIENCE", 1.0)
    http, engine, mailbox, inbox, inbox_smtp = free_ports(5)
    keys = {"SECRET_KEYS": "k" * 40}
    main = environment(
        tmp_path,
        HTTP=f"127.0.0.1:{http}",
        ENGINE_HTTP=f"127.0.0.1:{engine}",
        INBOX=f"127.0.0.1:{inbox}",
        INBOX_SMTP=f"127.0.0.1:{inbox_smtp}",
        SMTP=f"smtp://127.0.0.1:{inbox_smtp}",
        **keys,
    )
    apart = environment(tmp_path, ENGINE=f"http://127.0.0.1:{engine}", MAILBOX=f"127.0.0.1:{mailbox}", **keys)

    @asynccontextmanager
    async def office() -> AsyncIterator[Person]:
        async with running(settings_of(main, tmp_path), frozenset({"gateway", "worker", "inbox", "engine"})):
            person = Person(f"http://127.0.0.1:{http}", f"http://127.0.0.1:{inbox}", ("127.0.0.1", mailbox))
            async with person.http:
                yield person

    async with office() as person:
        letter = await approval(person, "e-1")
    async with running(settings_of(apart, tmp_path), frozenset({"mailbox"})):
        raw, to = reply_to(letter, "approve"), str(letter["Reply-To"])
        assert (await person.deliver(ANN, to, raw)).startswith("451")
        async with office() as back:

            async def taken() -> bool | None:
                return (await back.deliver(ANN, to, raw)).startswith("250") or None

            await eventually(taken, "the reply is taken")
            assert (await back.report("e-1", wait=20))["status"] == "approved"


# ── Once is enough ────────────────────────────────────────────────────────────


async def test_the_same_message_twice_is_one_message(live: Live) -> None:
    """A copy, or a 250 that was lost, brings neither a second letter nor a wrong one."""
    async with live() as (_, person):
        letter = await approval(person, "m-1")
        to, unclear = str(letter["Reply-To"]), reply_to(letter, "perhaps", message_id="<1@corp.example>")
        await person.deliver(ANN, to, unclear)
        await person.letter("m-1", kind="clarification")
        decided = reply_to(letter, "approve", message_id="<2@corp.example>")
        for _ in range(3):
            assert (await person.deliver(ANN, to, decided)).startswith("250")
        assert (await person.report("m-1", wait=20))["status"] == "approved"
        # Now a late answer would be told the outcome; a copy of what was answered before is not.
        assert (await person.deliver(ANN, to, unclear)).startswith("250")
        assert (await person.deliver(ANN, to, b"X-Relay: two\r\n" + decided)).startswith("250")
        await person.letter("m-1", kind="receipt")
        assert await kinds(person, "m-1") == ["clarification", "receipt", "request"]


async def test_without_a_message_id_the_same_octets_are_one_message(live: Live) -> None:
    """Programs that write no Message-ID are recognised by what they sent."""
    async with live() as (_, person):
        letter = await approval(person, "m-2")
        to, unclear = str(letter["Reply-To"]), reply_to(letter, "perhaps", message_id="")
        assert b"Message-ID" not in unclear
        await person.deliver(ANN, to, unclear)
        await person.letter("m-2", kind="clarification")
        await person.reply(letter, "decline")
        await person.letter("m-2", kind="receipt")
        await person.deliver(ANN, to, unclear)
        assert await kinds(person, "m-2") == ["clarification", "receipt", "request"]


async def test_a_forged_copy_does_not_keep_the_real_reply_out(live: Live) -> None:
    """The same Message-ID without a signature, and first: the signed one decides all the same."""
    async with live(REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "m-3")
        to, raw = str(letter["Reply-To"]), reply_to(letter, "approve")
        await person.deliver(ANN, to, raw)
        assert (await person.report("m-3"))["status"] == "pending"
        assert (await person.deliver(ANN, to, signed_by_ann(raw))).startswith("250")
        assert (await person.report("m-3", wait=20))["status"] == "approved"


async def test_a_ballot_gets_one_letter_of_a_kind_a_day_and_what_else_comes_is_refused(live: Live) -> None:
    """However many unclear or doubtful messages come, each asks back once, and the others are refused."""
    async with live() as (_, person):
        letter = await approval(person, "m-4")
        to = str(letter["Reply-To"])
        for number in range(5):
            mid = f"<{number}@corp.example>"
            unclear = reply_to(letter, f"why {number}?", message_id=mid)
            eve = reply_to(letter, "approve", sender="eve@evil.example", message_id=mid)
            answers = [
                await person.deliver(ANN, to, unclear),
                await person.deliver("eve@evil.example", to, eve),
                await person.deliver(ANN, to, unclear),  # its 250 was lost
            ]
            if number == 0:
                assert {answer[:3] for answer in answers} == {"250"}
            else:
                assert answers == [mailbox_module.UNCLEAR, mailbox_module.UNPROVEN, mailbox_module.UNCLEAR]
        assert (await person.report("m-4"))["status"] == "pending"
        await person.letter("m-4", kind="clarification")
        await person.letter("m-4", kind="confirmation")
        assert await kinds(person, "m-4") == ["clarification", "confirmation", "request"]


async def test_a_letter_that_a_forger_had_sent_does_not_swallow_the_real_reply(live: Live) -> None:
    """An honest mail that proves nothing is refused then, and one that decides decides."""
    async with live(REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "m-6")
        to = str(letter["Reply-To"])
        forged = reply_to(letter, "decline", message_id="<0@evil.example>")
        assert (await person.deliver("eve@evil.example", to, forged)).startswith("250")
        assert await person.deliver(ANN, to, reply_to(letter, "approve")) == mailbox_module.UNPROVEN
        assert (await person.report("m-6"))["status"] == "pending"
        assert (await person.deliver(ANN, to, signed_by_ann(reply_to(letter, "approve")))).startswith("250")
        assert (await person.report("m-6", wait=20))["status"] == "approved"
        for number in range(3):  # too late is told once a day, and taken always
            late = reply_to(letter, "decline", message_id=f"<{number}@corp.example>")
            assert (await person.deliver(ANN, to, signed_by_ann(late))).startswith("250")
            assert (await person.deliver(ANN, to, late)).startswith("250")


async def test_a_message_that_was_cut_off_before_it_was_marked_is_taken_again(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its letter is asked for already, by itself: the answer is as it would have been."""
    async with live() as (_, person):
        letter = await approval(person, "m-7")
        to, unclear = str(letter["Reply-To"]), reply_to(letter, "perhaps")

        async def away(*_: object) -> None:
            raise EngineAway("away")

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "mark", away)
            assert (await person.deliver(ANN, to, unclear)).startswith("451")
        for _ in range(2):
            assert (await person.deliver(ANN, to, unclear)).startswith("250")
        await person.letter("m-7", kind="clarification")
        assert await kinds(person, "m-7") == ["clarification", "request"]


async def test_the_next_day_an_unclear_reply_is_answered_again(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day is the clock's, in UTC: just before midnight a second one is refused, after it a letter."""
    midnight = utc_now().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    clock = [midnight]
    monkeypatch.setattr(app_module, "Answers", partial(Answers, now=lambda: clock[0]))
    async with live() as (_, person):
        letter = await approval(person, "m-5")
        for number, hours in enumerate((-1, -1e-6, 0, 18, 31)):
            clock[0] = midnight + timedelta(hours=hours)
            mid = f"<{number}@corp.example>"
            await person.reply(letter, f"why {number}?", message_id=mid)
            await person.reply(letter, "approve", sender="eve@evil.example", message_id=mid)
        await person.letter("m-5", kind="clarification")
        assert await kinds(person, "m-5") == [*["clarification"] * 3, *["confirmation"] * 3, "request"]
        told = [text_of(mail) for mail in await person.letters("m-5") if ".clar" in mail["Message-ID"]]
        assert sorted(re.findall(r"why \d\?", "".join(told))) == ["why 0?", "why 2?", "why 4?"]


@dataclass
class Absent:
    """A mail server whose only user is away: it answers every letter at once, in one way or another."""

    polite: bool
    mailbox: tuple[str, int]
    came: int = 0

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Answer to Reply-To, where there is one, else to From."""
        assert isinstance(envelope.content, bytes)
        letter = email.message_from_bytes(envelope.content, policy=default_policy)
        self.came += 1
        note = EmailMessage(policy=SMTP_POLICY)
        note["From"], note["To"], note["Subject"] = ANN, letter["Reply-To"] or letter["From"], "Thank you"
        note["Message-ID"] = f"<{self.came}@away.example>"
        if self.polite:
            note["Auto-Submitted"] = "auto-replied"
        note.set_content("I will read this when I am back.")
        host, port = self.mailbox
        async with aiosmtplib.SMTP(hostname=host, port=port, start_tls=False) as smtp:
            # Its own server tells it of a refusal, and it does not answer its own server.
            with suppress(aiosmtplib.SMTPDataError):
                await smtp.sendmail(ANN, [str(note["To"])], note.as_bytes())
        return "250 OK"


@pytest.mark.parametrize(("polite", "letters"), [(True, 1), (False, 2)], ids=["polite", "impolite"])
async def test_a_loop_with_an_autoresponder_ends_at_once(
    tmp_path: Path, *, polite: bool, letters: int
) -> None:
    """One that says so gets no answer; one that hides it gets one, and its answer to that is refused."""
    [mailbox] = free_ports(1)
    absent = Absent(polite, ("127.0.0.1", mailbox))
    server = Listener(absent, setting="TEST", host="127.0.0.1", port=0)
    await asyncio.to_thread(server.start)
    try:
        smtp = f"smtp://127.0.0.1:{server.port}"
        async with lived(tmp_path, MAILBOX=f"127.0.0.1:{mailbox}", SMTP=smtp, INBOX="off") as (_, person):
            await person.ask("l-1")

            async def enough() -> bool | None:
                return absent.came >= letters or None

            await eventually(enough, "the letters")
            await asyncio.sleep(1)
            assert absent.came == letters
            assert (await person.report("l-1"))["status"] == "pending"
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_letter_in_answer_has_the_null_sender_and_says_what_it_is(live: Live) -> None:
    """RFC 3834: nothing answers it, and it is threaded under the letter that was answered."""
    async with live() as (_, person):
        letter = await approval(person, "n-1")
        await person.reply(letter, "what is this?")
        answer = await person.letter("n-1", kind="clarification")
        assert answer["Auto-Submitted"] == "auto-replied"
        assert answer["In-Reply-To"] == letter["Message-ID"]
        assert "what is this?" in text_of(answer)
        items = (await person.http.get(f"{person.inbox}/api/v2/messages")).json()["items"]
        senders = [i["Raw"]["From"] for i in items if ".clarification" in i["Raw"]["Data"]]
        assert senders == [""]
