"""What people live through, from the request to the result, on each engine and each inbox."""

import asyncio
import email
import time
from collections.abc import AsyncIterator
from datetime import datetime
from email.policy import default as default_policy
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

from service.demo import environment, free_ports
from service.smtpd import Listener
from tests.engine.real import postgres_url, server_url
from tests.journey.house import Person, eventually, form_of, house, link_of, mailhog, settings_of, text_of


@pytest.fixture(
    params=[
        "sqlite, local inbox",
        "memory, local inbox",
        "server, local inbox",
        "postgres, local inbox",
        "sqlite, MailHog",
    ]
)
async def person(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Person]:
    """A person in front of a running service."""
    match request.param.partition(",")[0]:
        case "sqlite":
            engine = f"sqlite:///{tmp_path}/approvals.db"
        case "memory":
            engine = "memory:"
        case "server":
            engine = server_url(empty=True)
        case _:
            engine = postgres_url()
    if "MailHog" in request.param:
        async with mailhog() as (smtp, http):
            env = environment(tmp_path, ENGINE=engine, SMTP=f"smtp://{smtp}", INBOX="off")
            async with house(settings_of(env, tmp_path), inbox=http) as (_, someone):
                yield someone
    else:
        env = environment(tmp_path, ENGINE=engine)
        async with house(settings_of(env, tmp_path)) as (_, someone):
            yield someone


async def test_approve_by_link(person: Person) -> None:
    """The button on the page decides, and the waiting caller is told who, when and how."""
    opened = await person.ask("a-1")
    assert opened.status_code == 201
    assert opened.json()["status"] == "pending"
    letter = await person.letter("a-1")
    waiting = asyncio.create_task(person.report("a-1", wait=20))
    page = await person.press(link_of(letter), "approve", "Fine by me.")
    assert page.status_code == 200
    assert "Approved" in page.text
    report = await waiting
    assert report["status"] == "approved"
    [ann] = report["approvers"]
    assert (ann["status"], ann["choice"], ann["channel"], ann["comment"]) == (
        "decided",
        "approve",
        "link",
        "Fine by me.",
    )
    assert ann["at"] <= report["due_at"]
    assert ann["at"] == report["closed_at"]


async def test_decline_by_reply(person: Person) -> None:
    """A reply in the first line decides, the rest is the comment, and a receipt comes back in the thread."""
    await person.ask("a-2")
    letter = await person.letter("a-2")
    assert (await person.reply(letter, "Decline.\nThe amount is wrong.")).startswith("250")
    report = await person.report("a-2", wait=20)
    assert report["status"] == "declined"
    [ann] = report["approvers"]
    assert (ann["channel"], ann["comment"]) == ("reply", "The amount is wrong.")
    receipt = await person.letter("a-2", kind="receipt")
    assert receipt["In-Reply-To"] == letter["Message-ID"]
    assert "The amount is wrong." in text_of(receipt)


async def test_scanner_first(person: Person) -> None:
    """A scanner that opens every link, with GET, HEAD and OPTIONS, decides nothing."""
    await person.ask("a-3")
    letter = await person.letter("a-3")
    for link in (link_of(letter), link_of(letter) + "?choice=approve", link_of(letter) + "?choice=decline"):
        for method in ("GET", "HEAD", "OPTIONS"):
            await person.http.request(method, link)
    assert (await person.report("a-3"))["status"] == "pending"
    assert (await person.press(link_of(letter), "approve")).status_code == 200
    assert (await person.report("a-3", wait=20))["status"] == "approved"


async def test_second_click_shows_the_truth(person: Person) -> None:
    """Whoever comes late learns who decided what, and finds no buttons."""
    await person.ask("a-4")
    link = link_of(await person.letter("a-4"))
    late = await person.http.get(link)
    await person.press(link, "decline")
    second = await person.http.post(link, data=form_of(late.text) | {"choice": "approve"})
    assert second.status_code == 409
    assert "Declined" in second.text
    assert "<button" not in second.text
    shown = await person.http.get(link)
    assert shown.status_code == 200
    assert "Declined" in shown.text
    assert (await person.report("a-4"))["status"] == "declined"


async def test_wrong_sender(person: Person) -> None:
    """Somebody else's reply decides nothing; the approver, not they, is asked to confirm by link."""
    await person.ask("a-5")
    letter = await person.letter("a-5")
    assert (await person.reply(letter, "approve", sender="eve@evil.example")).startswith("250")
    confirmation = await person.letter("a-5", kind="confirmation")
    assert confirmation["To"].addresses[0].addr_spec == "ann@corp.example"
    assert link_of(confirmation) == link_of(letter)
    assert (await person.report("a-5"))["status"] == "pending"


async def test_forged_token(person: Person) -> None:
    """A forged, cut or lengthened link explains itself with a 404 and changes nothing."""
    await person.ask("a-6")
    link = link_of(await person.letter("a-6"))
    base, token = link.rsplit("/", 1)
    forged = [token[:-3], token[:-2] + "AA", "x" + token, token + "x" * 600, "é" + token, "", "a/b"]
    for bad in forged:
        for answer in (
            await person.http.get(f"{base}/{bad}"),
            await person.http.post(f"{base}/{bad}", data={"choice": "approve"}),
        ):
            assert answer.status_code == 404, bad
            assert "does not work" in answer.text
    assert (await person.report("a-6"))["status"] == "pending"


async def test_forged_address(person: Person) -> None:
    """An address that we did not sign is refused at RCPT."""
    await person.ask("a-7")
    letter = await person.letter("a-7")
    signed = str(letter["Reply-To"])
    forged = signed[:10] + ("a" if signed[10] != "a" else "b") + signed[11:]
    assert (await person.deliver("ann@corp.example", forged, b"approve")).startswith("550")
    assert (await person.deliver("ann@corp.example", "nobody@localhost", b"approve")).startswith("550")
    assert (await person.report("a-7"))["status"] == "pending"


async def test_unclear_reply_is_asked_back(person: Person) -> None:
    """A reply that is no plain decision gets one letter that says what to write."""
    await person.ask("a-8")
    letter = await person.letter("a-8")
    for _ in range(2):
        assert (await person.reply(letter, "approve if the amount is right?")).startswith("250")
    clarification = await person.letter("a-8", kind="clarification")
    assert "approve if the amount is right?" in text_of(clarification)
    assert (await person.report("a-8"))["status"] == "pending"
    assert (await person.reply(clarification, "approve")).startswith("250")
    assert (await person.report("a-8", wait=20))["status"] == "approved"
    asked = [m for m in await person.letters("a-8") if ".clarification" in str(m["Message-ID"])]
    assert len(asked) == 1


async def test_machines_are_ignored(person: Person) -> None:
    """Auto-replies and out-of-office notes decide nothing and are not answered."""
    await person.ask("a-9")
    letter = await person.letter("a-9")
    assert (await person.reply(letter, "approve", Auto_Submitted="auto-replied")).startswith("250")
    assert (await person.reply(letter, "approve", Precedence="bulk")).startswith("250")
    assert (await person.report("a-9"))["status"] == "pending"
    assert len(await person.letters("a-9")) == 1


async def test_a_late_reply_learns_the_outcome(person: Person) -> None:
    """A reply that came too late gets 250, and a letter with the real outcome."""
    await person.ask("a-10")
    letter = await person.letter("a-10")
    await person.press(link_of(letter), "approve")
    assert (await person.reply(letter, "decline")).startswith("250")
    closed = await person.letter("a-10", kind="closed")
    assert "Approved" in text_of(closed)
    assert (await person.report("a-10"))["status"] == "approved"


async def test_the_first_of_several_counts(person: Person) -> None:
    """Each approver has a letter of their own; one decision closes it for all."""
    await person.ask("a-11", "ann@corp.example", "bob@corp.example")
    ann = link_of(await person.letter("a-11", to="ann@corp.example"))
    bob = link_of(await person.letter("a-11", to="bob@corp.example"))
    assert ann != bob
    answers = await asyncio.gather(person.press(ann, "approve"), person.press(bob, "decline"))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    report = await person.report("a-11", wait=20)
    winner = "approved" if answers[0].status_code == 200 else "declined"
    assert report["status"] == winner
    assert sorted(approver["status"] for approver in report["approvers"]) == ["decided", "moot"]


async def test_the_deadline_closes_it(person: Person) -> None:
    """At its due time an approval expires, and the page then says so and has no buttons."""
    await person.ask("a-12", due="PT1S")
    link = link_of(await person.letter("a-12"))
    report = await person.report("a-12", wait=10)
    assert report["status"] == "expired"
    assert report["closed_at"] == report["due_at"]
    page = await person.http.get(link)
    assert page.status_code == 200
    assert "<button" not in page.text


async def test_the_deadline_of_what_was_decided_changes_nothing(person: Person) -> None:
    """What an approval's due time finds decided stays as it is, and nobody hears of it again."""
    await person.ask("a-15", due="PT2S")
    await person.press(link_of(await person.letter("a-15")))
    decided = await person.report("a-15", wait=20)
    assert decided["status"] == "approved"
    await asyncio.sleep(max(0, datetime.fromisoformat(decided["due_at"]).timestamp() - time.time()) + 1)
    assert await person.report("a-15") == decided
    assert len(await person.letters("a-15")) == 1


async def test_the_same_request_is_one_approval(person: Person) -> None:
    """The same body twice is one approval and one letter; another body is a conflict."""
    answers = await asyncio.gather(*[person.ask("a-13") for _ in range(8)])
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    await person.letter("a-13")
    assert (await person.ask("a-13", subject="Something else a-13")).status_code == 409
    await person.press(link_of(await person.letter("a-13")))
    assert (await person.report("a-13", wait=20))["status"] == "approved"
    again = await person.ask("a-13")
    assert (again.status_code, again.json()["status"]) == (200, "approved")
    assert len(await person.letters("a-13")) == 1


async def test_start_workflow(person: Person) -> None:
    """The walk-through's own call starts a workflow, finds it again, and tells its result."""
    call = f"{person.api}/start-workflow"
    started = await person.http.post(call, json={"workflow_id": "hitl-001"})
    assert (started.status_code, "started" in started.json()["message"]) == (200, True)
    link = link_of(await person.letter("hitl-001"))
    waiting = await person.http.post(call, json={"workflow_id": "hitl-001"})
    assert "waiting" in waiting.json()["message"]
    await person.press(link)
    await person.report("hitl-001", wait=20)
    done = await person.http.post(call, json={"workflow_id": "hitl-001"})
    assert done.json()["message"].startswith("approved by approver@localhost")
    assert len(await person.letters("hitl-001")) == 1


async def test_smtp_down_then_up(tmp_path: Path) -> None:
    """A letter waits for its mail server as long as it takes, and arrives once."""
    [smtp] = free_ports(1)
    env = environment(tmp_path, SMTP=f"smtp://127.0.0.1:{smtp}")
    async with house(settings_of(env, tmp_path)) as (_, person):
        assert (await person.ask("a-14")).status_code == 201
        assert (await person.http.get(f"{person.api}/readyz")).status_code == 200
        await asyncio.sleep(0.2)  # long enough for the first attempt to fail
        late = settings_of(environment(tmp_path, ENGINE="memory:", INBOX_SMTP=f"127.0.0.1:{smtp}"), tmp_path)
        async with house(late) as (_, reader):
            letter = await reader.letter("a-14")
            await person.press(link_of(letter))
            assert (await person.report("a-14", wait=20))["status"] == "approved"
            assert len(await reader.letters("a-14")) == 1


async def test_due_while_the_mail_server_is_away(tmp_path: Path) -> None:
    """A letter that could not go out in time expires with its approval, and does not come later."""
    [smtp] = free_ports(1)
    env = environment(tmp_path, SMTP=f"smtp://127.0.0.1:{smtp}")
    async with house(settings_of(env, tmp_path)) as (_, person):
        await person.ask("a-16", due="PT5S")
        await person.ask("a-17")
        # Pauses of 1, 2 and 4 seconds: the last one would end after it is due.
        report = await person.report("a-16", wait=20)
        assert (report["status"], report["closed_at"]) == ("expired", report["due_at"])
        assert time.time() < datetime.fromisoformat(report["due_at"]).timestamp() + 1
        late = settings_of(environment(tmp_path, ENGINE="memory:", INBOX_SMTP=f"127.0.0.1:{smtp}"), tmp_path)
        async with house(late) as (_, reader):
            await reader.letter("a-17")
            assert await reader.letters("a-16") == []


async def test_letters_arrive_through_chaos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MailHog's Jim drops connections and refuses senders; every letter arrives, each copy the same bytes."""
    # A third of the tries fail: five in a row for one of six letters once in forty runs, eight in 1,100.
    monkeypatch.setattr("tests.journey.house.PATIENCE", 100.0)
    jim = ["-invite-jim", "-jim-disconnect=0.01", "-jim-accept=0.9", "-jim-reject-sender=0.2"]
    async with mailhog(*jim, "-jim-reject-recipient=0", "-jim-reject-auth=0") as (smtp, http):
        env = environment(tmp_path, SMTP=f"smtp://{smtp}", INBOX="off")
        async with house(settings_of(env, tmp_path), inbox=http) as (_, person):
            for number in range(6):
                await person.ask(f"chaos-{number}")
            letters = [await person.letter(f"chaos-{number}") for number in range(6)]
            for number in range(6):
                assert len(set(await person.raw_letters(f"chaos-{number}"))) == 1
            await person.press(link_of(letters[0]))
            assert (await person.report("chaos-0", wait=20))["status"] == "approved"


class Picky:
    """A mail server that refuses who is named gone, for good, and keeps what it takes."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Refuse gone@ and nobody else."""
        if address.startswith("gone"):
            return "550 5.1.1 No such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Keep the letter."""
        assert isinstance(envelope.content, bytes)
        self.taken.append(envelope.content)
        return "250 OK"


async def test_an_address_refused_for_good_leaves_the_others(tmp_path: Path) -> None:
    """One who can't be reached leaves the others asked; with none left it is undeliverable."""
    picky = Picky()
    server = Listener(picky, setting="TEST", host="127.0.0.1", port=0)
    await asyncio.to_thread(server.start)
    try:
        env = environment(tmp_path, SMTP=f"smtp://127.0.0.1:{server.port}", INBOX="off")
        async with house(settings_of(env, tmp_path)) as (_, person):
            await person.ask("u-1", "gone@corp.example", "gone2@corp.example")
            report = await person.report("u-1", wait=20)
            assert report["status"] == "undeliverable"
            assert {a["status"] for a in report["approvers"]} == {"undeliverable"}

            await person.ask("u-2", "gone@corp.example", "ann@corp.example")

            async def one_is_gone() -> list[str] | None:
                found = [a["status"] for a in (await person.report("u-2"))["approvers"]]
                return found if "undeliverable" in found and picky.taken else None

            assert await eventually(one_is_gone, "an approver is undeliverable") == ["undeliverable", "asked"]
            letter = email.message_from_bytes(picky.taken[0], policy=default_policy)
            await person.press(link_of(letter))
            report = await person.report("u-2", wait=20)
            assert report["status"] == "approved"
            assert [a["status"] for a in report["approvers"]] == ["undeliverable", "decided"]
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_bounce_ends_the_ballot(tmp_path: Path) -> None:
    """A report of failed delivery to the letter's envelope sender makes the approver undeliverable."""
    env = environment(tmp_path)
    async with house(settings_of(env, tmp_path)) as (_, person):
        await person.ask("b-1")
        await person.letter("b-1")
        items = (await person.http.get(f"{person.inbox}/api/v2/messages")).json()["items"]
        bounce = (
            "From: MAILER-DAEMON@mx.corp.example\r\nTo: x@localhost\r\nSubject: Undelivered\r\n"
            "Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n"
            'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\n\r\n'
            "--b\r\nContent-Type: text/plain\r\n\r\nNo such user.\r\n"
            "--b\r\nContent-Type: message/delivery-status\r\n\r\n"
            "Reporting-MTA: dns; mx.corp.example\r\n\r\n"
            "Final-Recipient: rfc822; ann@corp.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n"
        )
        assert (await person.deliver("", items[0]["Raw"]["From"], bounce.encode())).startswith("250")
        assert (await person.report("b-1", wait=20))["status"] == "undeliverable"
