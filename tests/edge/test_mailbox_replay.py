"""What an approver really wrote, and signed, decides only what they wrote it about."""

import email
import re
from datetime import timedelta
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from pathlib import Path

import pytest

from service.records import utc_now
from tests.edge.mail_house import ANN, approval, lived, reply_to, signed_by_ann
from tests.journey.house import Person, eventually, link_of


async def asks_to_confirm(person: Person, approval_id: str, to: str, raw: bytes) -> None:
    """Hand `raw` in and see that it decides nothing, and that the approver is told."""
    assert (await person.deliver(ANN, to, raw)).startswith("250")
    await person.letter(approval_id, kind="confirmation")
    assert (await person.report(approval_id))["status"] == "pending"


async def test_an_answer_to_one_request_does_not_decide_another(tmp_path: Path) -> None:
    """The very same signed mail, sent again to another reply address of hers."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        first, second = await approval(person, "re-1"), await approval(person, "re-2")
        raw = signed_by_ann(reply_to(first, "approve"))
        await asks_to_confirm(person, "re-2", str(second["Reply-To"]), raw)
        assert (await person.deliver(ANN, str(first["Reply-To"]), raw)).startswith("250")
        assert (await person.report("re-1", wait=20))["status"] == "approved"


async def test_a_yes_to_somebody_else_decides_nothing(tmp_path: Path) -> None:
    """Whoever has a signed mail of hers, and an address from a copy of her question, has no vote."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "re-3")
        lunch = EmailMessage()
        lunch["Reply-To"], lunch["Subject"], lunch["Message-ID"] = (
            "bob@corp.example",
            "Lunch?",
            "<1@b.example>",
        )
        lunch.set_content("Shall we?")
        raw = signed_by_ann(reply_to(lunch, "Yes"))
        await asks_to_confirm(person, "re-3", str(letter["Reply-To"]), raw)


@pytest.mark.parametrize("rewritten", ["To", "a second To", "a second Subject"])
async def test_what_was_written_around_her_signature_is_no_sign(tmp_path: Path, rewritten: str) -> None:
    """Exchange Online leaves To unsigned, and a field above the signed one of its name is anybody's."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        first, second = await approval(person, "re-5"), await approval(person, "re-6")
        covered = (b"from", b"subject", b"date", b"message-id")
        also = (b"to",) if rewritten == "a second To" else ()
        raw = signed_by_ann(reply_to(first, "approve"), covered=(*covered, *also))
        old, to = (str(letter["Reply-To"]) for letter in (first, second))
        if rewritten == "To":
            raw = raw.replace(old.encode(), to.encode())
        elif rewritten == "a second To":
            raw = f"To: {to}\r\n".encode() + raw
        else:
            raw = b"Subject: Re: Refund re-6\r\n" + raw.replace(b"\r\nIn-Reply-To:", b"\r\nX-Was:")
        await asks_to_confirm(person, "re-6", to, raw)


async def test_a_signature_over_the_subject_alone_is_enough(tmp_path: Path) -> None:
    """An honest reply by way of Exchange Online shows its letter by the subject."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "re-7")
        raw = signed_by_ann(reply_to(letter, "approve"), covered=(b"from", b"subject", b"date"))
        assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
        assert (await person.report("re-7", wait=20))["status"] == "approved"


@pytest.mark.parametrize("left", ["To", "In-Reply-To", "Subject"])
async def test_one_sign_of_the_letter_is_enough(tmp_path: Path, left: str) -> None:
    """Gateways rewrite To, programs lose the thread, people change the subject; not all at once."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "re-4")
        raw = reply_to(letter, "approve")
        others = {"To": b"approvals@corp.example", "In-Reply-To": b"<x@y.example>", "Subject": b"My answer"}
        for name, value in others.items():
            if name != left:
                # Programs that lose the thread name no other mail.
                given = b"X-Was" if name == "In-Reply-To" else name.encode()
                raw = re.sub(rb"(?m)^%s: .*(\r\n[ \t].*)*" % name.encode(), given + b": " + value, raw)
        assert raw.count(b"Refund re-4") == (2 if left == "Subject" else 1)
        assert (await person.deliver(ANN, str(letter["Reply-To"]), signed_by_ann(raw))).startswith("250")
        assert (await person.report("re-4", wait=20))["status"] == "approved"


#: What Exchange Online signs of these.
EXCHANGE = (b"from", b"date", b"subject", b"message-id")


def bare(letter: EmailMessage, text: str = "approve", **other: str) -> bytes:
    """Return an answer that quotes nothing, whose fields are `other` than usual, or left out where empty."""
    mail = email.message_from_bytes(reply_to(letter, text), policy=SMTP)
    for name, value in other.items():
        del mail[name.replace("_", "-")]
        if value:
            mail[name.replace("_", "-")] = value
    mail.set_content(f"{text}\n")
    return mail.as_bytes()


def date(**ago: float) -> str:
    """Return a Date so long ago."""
    return format_datetime(utc_now() - timedelta(**ago))


@pytest.mark.parametrize(
    "subject", ["Re: Refund re-10 of ACME", "Re: [Refund re-10] ACME", "No Refund re-10"]
)
async def test_a_longer_subject_is_another(tmp_path: Path, subject: str) -> None:
    """Of a mail through Exchange Online the subject is all that shows its letter: it must be the same."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "re-10")
        raw = signed_by_ann(bare(letter, Subject=subject), covered=EXCHANGE)
        await asks_to_confirm(person, "re-10", str(letter["Reply-To"]), raw)


@pytest.mark.parametrize(("age", "decides"), [({"days": 365.0}, False), ({"hours": 20.0}, True)])
async def test_an_old_yes_to_the_same_subject_decides_nothing(
    tmp_path: Path, age: dict[str, float], *, decides: bool
) -> None:
    """A request that comes every month: what was written before it was made is no answer to it."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "re-11")
        raw = signed_by_ann(bare(letter, Date=date(**age)), covered=EXCHANGE)
        if decides:  # a clock that is wrong by less than a day
            assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
            assert (await person.report("re-11", wait=20))["status"] == "approved"
        else:
            await asks_to_confirm(person, "re-11", str(letter["Reply-To"]), raw)


@pytest.mark.parametrize("left", ["To", "In-Reply-To", "body"])
async def test_whatever_names_another_letter_disproves(tmp_path: Path, left: str) -> None:
    """Of two requests of one subject: the answer's fields and quotation tell which, signed or not."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        for approval_id in ("re-12", "re-13"):
            assert (await person.ask(approval_id, subject="Budget")).status_code == 201
        found = {link_of(mail): mail for mail in [await person.letter("Budget"), *await both(person)]}
        first, second = found.values()
        raw = reply_to(first, "approve") if left == "body" else bare(first)
        for name in {"To", "In-Reply-To"} - {left}:
            raw = re.sub(rb"(?m)^%s: .*\r\n(?:[ \t].*\r\n)*" % name.encode(), b"", raw)
        raw = signed_by_ann(raw, covered=EXCHANGE)
        assert (await person.deliver(ANN, str(second["Reply-To"]), raw)).startswith("250")
        await person.letter("Budget", kind="confirmation")
        for approval_id in ("re-12", "re-13"):
            assert (await person.report(approval_id))["status"] == "pending"


async def both(person: Person) -> list[EmailMessage]:
    """Return the letters of two requests of one subject."""

    async def look() -> list[EmailMessage] | None:
        found = await person.letters("Budget")
        return found if len(found) == 2 else None

    return await eventually(look, "both letters")


async def test_a_quotation_shows_the_letter_where_the_subject_was_changed(tmp_path: Path) -> None:
    """Exchange Online signs no To; the body is always signed."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "re-14")
        raw = reply_to(letter, "approve").replace(b"Subject: Re: Refund re-14", b"Subject: Fine with me")
        raw = signed_by_ann(raw, covered=EXCHANGE)
        assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
        assert (await person.report("re-14", wait=20))["status"] == "approved"


async def test_a_yes_to_the_requesters_question_is_none_to_the_request(tmp_path: Path) -> None:
    """She answered to all, he asked back, and has her "Yes" to that, in the same thread, and the address."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "re-16")
        asked = str(letter["Message-ID"])
        raw = bare(
            letter,
            "Yes",
            To="bob@corp.example",
            In_Reply_To="<2@bob.example>",
            References=f"{asked} <1@corp.example> <2@bob.example>",
        )
        covered = (b"from", b"to", b"subject", b"date", b"message-id", b"in-reply-to", b"references")
        raw = signed_by_ann(raw, covered=covered)
        await asks_to_confirm(person, "re-16", str(letter["Reply-To"]), raw)


SEEN = "dkim=pass header.d=corp.example; dmarc=pass header.from=corp.example"
STRAIGHT = f"spf=pass smtp.mailfrom=corp.example; {SEEN}"


@pytest.mark.parametrize(
    ("results", "covered", "decides"),
    [(SEEN, EXCHANGE, False), (SEEN, (b"from", b"to"), True), (STRAIGHT, EXCHANGE, True)],
    ids=["anybody could have written To", "To is signed", "it came straight from their server"],
)
async def test_the_server_in_front_saw_a_signature_that_does_not_cover_everything(
    tmp_path: Path, results: str, covered: tuple[bytes, ...], *, decides: bool
) -> None:
    """REPLY_TRUST=authserv-id: her "Yes" to somebody else is no answer to whom its To was rewritten."""
    async with lived(tmp_path, REPLY_TRUST="authserv-id=mx.corp.example") as (_, person):
        letter = await approval(person, "re-15")
        raw = signed_by_ann(bare(letter, "Yes", Subject="Re: Lunch?", In_Reply_To=""), covered=covered)
        raw = f"Authentication-Results: mx.corp.example; {results}\r\n".encode() + raw
        if decides:
            assert (await person.deliver(ANN, str(letter["Reply-To"]), raw)).startswith("250")
            assert (await person.report("re-15", wait=20))["status"] == "approved"
        else:
            await asks_to_confirm(person, "re-15", str(letter["Reply-To"]), raw)


async def test_a_mail_that_is_attached_does_not_become_the_reply(tmp_path: Path) -> None:
    """Gmail signs no Content-Type: whoever names the attached mail's boundary there is refused."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        letter = await approval(person, "re-8")
        theirs = EmailMessage()
        theirs["From"], theirs["Subject"] = "bob@corp.example", "Please"
        theirs.set_content("Approve\n")
        theirs.add_alternative("<p>Approve</p>", subtype="html")
        theirs.set_boundary("theirs")
        mail = email.message_from_bytes(reply_to(letter, "Decline"), policy=SMTP)
        mail.add_attachment(theirs)
        mail.set_boundary("hers")
        raw = signed_by_ann(mail.as_bytes())
        forged = raw.replace(b'boundary="hers"', b'boundary="theirs"')
        to = str(letter["Reply-To"])
        assert raw != forged
        assert (await person.deliver(ANN, to, forged)).startswith("554")
        assert (await person.report("re-8"))["status"] == "pending"
        assert (await person.deliver(ANN, to, raw)).startswith("250")
        assert (await person.report("re-8", wait=20))["status"] == "declined"
