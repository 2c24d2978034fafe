"""What the mailbox learns beside decisions: other addresses of a person, absences, delays."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from resonate.error import ServerError

from service.domain import Signal, SignalKind, Vote, ballot_key
from service.journal import SIGNAL_TAG
from service.records import APPROVER_TAG, KIND_TAG, signal_id, utc_now
from tests.edge.mail_house import ANN, approval, lived, reply_to, signed_by_ann
from tests.journey.house import Person, link_of

ALIAS = "ann.lee@corp.example"


async def test_a_reply_from_an_alias_counts_and_the_record_says_so(tmp_path: Path) -> None:
    """The same proof is asked of the alias as of the address itself."""
    own = {"REPLY_TRUST": "verify", "REPLY_ALIASES": f"{ANN}={ALIAS}"}
    async with lived(tmp_path, dns=None, **own) as (service, person):
        letter = await approval(person, "al-1")
        raw = reply_to(letter, "approve", sender=ALIAS)
        assert (await person.deliver(ALIAS, str(letter["Reply-To"]), raw)).startswith("250")
        await person.letter("al-1", kind="confirmation")
        assert (await person.report("al-1"))["status"] == "pending"
        await person.deliver(ALIAS, str(letter["Reply-To"]), signed_by_ann(raw))
        report = await person.report("al-1", wait=20)
        assert (report["status"], report["approvers"][0]["email"]) == ("approved", ANN)
        end = (await service.approvals.ballot(ballot_key("al-1", ANN))).end
        assert isinstance(end, Vote)
        assert (end.by, end.evidence["from"], end.evidence["alias_of"]) == (ANN, ALIAS, ANN)


async def test_an_alias_is_one_persons_only(tmp_path: Path) -> None:
    """Ann's other address does not decide for bob."""
    async with lived(tmp_path, REPLY_ALIASES=f"{ANN}={ALIAS}") as (_, person):
        await person.ask("al-2", "bob@corp.example")
        letter = await person.letter("al-2")
        raw = reply_to(letter, "approve", sender=ALIAS)
        assert (await person.deliver(ALIAS, str(letter["Reply-To"]), raw)).startswith("250")
        await person.letter("al-2", kind="confirmation")
        assert (await person.report("al-2"))["status"] == "pending"


async def bounce_address(person: Person) -> str:
    """Return the envelope sender of the newest letter."""
    items = (await person.http.get(f"{person.inbox}/api/v2/messages")).json()["items"]
    return str(items[0]["Raw"]["From"])


DELAYED = (
    b"From: MAILER-DAEMON@mx.corp.example\r\nTo: x@localhost\r\nSubject: Delayed\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
    b"--b\r\nContent-Type: text/plain\r\n\r\nStill trying.\r\n"
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    b"Reporting-MTA: dns; mx.corp.example\r\n\r\nFinal-Recipient: rfc822; ann@corp.example\r\n"
    b"Action: delayed\r\nStatus: 4.2.2\r\nDiagnostic-Code: smtp; mailbox full\r\n\r\n--b--\r\n"
)


@pytest.mark.parametrize("kind", ["out-of-office", "delayed"])
async def test_an_absence_or_a_delay_is_kept_with_its_words(tmp_path: Path, kind: SignalKind) -> None:
    """The first of a day stands, is found by its ballot, decides nothing and is not answered."""
    async with lived(tmp_path) as (service, person):
        letter = await approval(person, "si-1")
        if (now := utc_now()).hour == 23 and now.minute == 59:
            await asyncio.sleep(61 - now.second)  # both on one day
        for words in ("Back on Monday.", "Back on Tuesday."):
            if kind == "delayed":
                answer = await person.deliver("", await bounce_address(person), DELAYED)
            else:
                raw = reply_to(letter, words).replace(b"Subject: Re:", b"Subject: Out of office:")
                answer = await person.deliver(ANN, str(letter["Reply-To"]), raw)
            assert answer.startswith("250")
        with pytest.raises(ServerError):
            await service.approvals.promises.get(signal_id(ballot_key("si-1", ANN), 1))
        promise = await service.approvals.promises.get(signal_id(ballot_key("si-1", ANN), 0))
        signal = msgspec.convert(promise.param.data, Signal)
        assert signal.kind == kind
        assert {"out-of-office": "Back on Monday.", "delayed": "4.2.2"}[kind] in signal.text
        tags = {KIND_TAG: "signal", SIGNAL_TAG: kind, APPROVER_TAG: ANN}
        assert tags.items() <= promise.tags.items()
        report = await person.report("si-1")
        assert report["status"] == "pending"
        [note] = report["approvers"][0]["notes"]
        assert (note["kind"], note["text"]) == (kind, signal.text)
        assert len(await person.letters("si-1")) == 1


async def test_the_workflow_learns_who_was_away(tmp_path: Path) -> None:
    """What machines told of those who did not decide is in the workflow's result, the earliest first."""
    async with lived(tmp_path) as (service, person):
        await person.ask("si-2", ANN, "bob@corp.example")
        letter = await person.letter("si-2", to=ANN)
        to_bob = await person.letter("si-2", to="bob@corp.example")
        bounces = {
            item["Raw"]["To"][0]: item["Raw"]["From"]
            for item in (await person.http.get(f"{person.inbox}/api/v2/messages")).json()["items"]
        }
        assert (await person.deliver("", bounces[ANN], DELAYED)).startswith("250")
        away = reply_to(letter, "Back on Monday.").replace(b"Subject: Re:", b"Subject: Out of office:")
        assert (await person.deliver(ANN, str(letter["Reply-To"]), away)).startswith("250")
        assert (await person.deliver("", bounces["bob@corp.example"], DELAYED)).startswith("250")
        await person.press(link_of(to_bob))
        told = await person.report("si-2", wait=20)
        await person.ended("si-2")
        assert await person.report("si-2") == told
        result = (await service.approvals.promises.get("si-2")).value.data
        assert result is not None
        ann, bob = result["approvers"]
        assert (ann["status"], [note["kind"] for note in ann["notes"]]) == (
            "moot",
            ["delayed", "out-of-office"],
        )
        assert (bob["status"], "notes" in bob) == ("decided", False)


async def notes(person: Person, approval_id: str) -> list[tuple[str, str]]:
    """Return what is told of the one approver of a pending approval."""
    report = await person.report(approval_id)
    assert report["status"] == "pending"
    return [(note["kind"], note["text"]) for note in report["approvers"][0].get("notes", [])]


async def kinds(person: Person, approval_id: str) -> set[str]:
    """Return the kinds of letters about an approval."""
    return {str(mail["Message-ID"]).split(".")[1].split("@")[0] for mail in await person.letters(approval_id)}


@pytest.mark.parametrize("envelope", ["", ANN], ids=["as RFC 3834 has it", "as people's rules do"])
async def test_an_absence_that_goes_to_where_bounces_go_is_kept(tmp_path: Path, envelope: str) -> None:
    """RFC 3834 sends it to the envelope sender, which is not the reply address."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "si-3")
        away = reply_to(letter, "Back on Monday.").replace(b"Subject: Re:", b"Subject: Auto:")
        away = b"Auto-Submitted: auto-replied (vacation)\r\n" + away
        assert (await person.deliver(envelope, await bounce_address(person), away)).startswith("250")
        assert await notes(person, "si-3") == [("out-of-office", "Back on Monday.")]
        assert await kinds(person, "si-3") == {"request"}


@pytest.mark.parametrize("spoilt", [False, True], ids=["a reply", "of no known sender"])
async def test_a_person_who_writes_to_where_bounces_go_is_asked_to_confirm(
    tmp_path: Path, *, spoilt: bool
) -> None:
    """Some programs answer to the envelope sender; it decides nothing, and is not lost."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "si-4")
        raw = reply_to(letter, "approve")
        raw = raw.replace(b"From: ann@", b"From: ann@corp.example, bob@") if spoilt else raw
        assert (await person.deliver(ANN, await bounce_address(person), raw)).startswith("250")
        await person.letter("si-4", kind="confirmation")
        assert await notes(person, "si-4") == []


@pytest.mark.parametrize("proof", ["", "Auto-Submitted: auto-replied\r\n", "null sender"])
async def test_a_subject_alone_does_not_make_a_decision_an_absence(tmp_path: Path, proof: str) -> None:
    """It is kept as one, and the approver is asked to confirm, unless something else shows a machine."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "si-5")
        raw = reply_to(letter, "approve")
        raw = raw.replace(b"Subject: Re: Refund si-5", b"Subject: Out of office until Monday, but approve")
        raw = (proof.encode() if ":" in proof else b"") + raw
        assert (await person.deliver("" if proof == "null sender" else ANN, str(letter["Reply-To"]), raw))[
            :3
        ] == "250"
        if not proof:
            await person.letter("si-5", kind="confirmation")
        [(kind, _)] = await notes(person, "si-5")
        assert kind == "out-of-office"
        assert await kinds(person, "si-5") == ({"request"} if proof else {"request", "confirmation"})


@pytest.mark.parametrize("who", ["postmaster@corp.example", "Mailer-Daemon@corp.example"])
async def test_an_approver_may_be_called_postmaster(tmp_path: Path, who: str) -> None:
    """Their reply decides where it has an envelope sender; a machine's of that name has none."""
    async with lived(tmp_path, REPLY_TRUST="verify") as (_, person):
        assert (await person.ask("si-6", who)).status_code == 201
        letter = await person.letter("si-6")
        to = str(letter["Reply-To"])
        raw = signed_by_ann(reply_to(letter, "approve", sender=who))
        assert (await person.deliver("", to, raw)).startswith("250")
        other = reply_to(letter, "approve", sender="postmaster@mx.example", message_id="<2@mx.example>")
        assert (await person.deliver("postmaster@mx.example", to, other)).startswith("250")
        assert (await notes(person, "si-6"), await kinds(person, "si-6")) == ([], {"request"})
        assert (await person.deliver(who, to, raw)).startswith("250")
        assert (await person.report("si-6", wait=20))["status"] == "approved"


FAILED = DELAYED.replace(b"Action: delayed\r\nStatus: 4.2.2", b"Action: failed\r\nStatus: 5.1.1")
FINAL = b"Final-Recipient: rfc822; ann@corp.example\r\n"
FORWARD = b"Final-Recipient: rfc822; ann@home.example\r\n"
ORIGINAL = b"Original-Recipient: rfc822;"


@pytest.mark.parametrize(
    ("named", "ends"),
    [
        (FINAL, True),
        (FINAL.replace(b"ann@", b"Ann.Lee@"), True),
        (FORWARD, False),
        (ORIGINAL + b"ann@corp.example\r\n" + FORWARD, False),
        (ORIGINAL + b"x@home.example\r\n" + FINAL, True),
        (ORIGINAL + b"ann@corp.example\r\n", True),
        (ORIGINAL + b"ann@home.example\r\n", False),
        (b"", True),
        (FORWARD + b"Action: failed\r\n\r\n" + FINAL, True),
    ],
    ids=[
        *("theirs", "an alias", "a forward", "a forward of theirs", "theirs at last", "theirs alone"),
        *("another's alone", "nobody", "theirs among others"),
    ],
)
async def test_a_bounce_ends_the_ballot_only_of_whom_it_names(
    tmp_path: Path, named: bytes, *, ends: bool
) -> None:
    """A dead forward of ann's is not ann, whose own copy may have come; it is kept like a delay."""
    async with lived(tmp_path, REPLY_ALIASES=f"{ANN}={ALIAS}") as (_, person):
        await approval(person, "si-7")
        raw = FAILED.replace(FINAL, named)
        assert (await person.deliver("", await bounce_address(person), raw)).startswith("250")
        if ends:
            assert (await person.report("si-7", wait=20))["status"] == "undeliverable"
            return
        [(kind, text)] = await notes(person, "si-7")
        assert kind == "delayed"
        assert text == "a forward to ann@home.example failed: 5.1.1 smtp; mailbox full"
