"""The whole story in one process: watched by a person, or played to the end by itself.

`watched` narrates while a person acts; `played` is the person too, over the same
HTTP and SMTP that a person's browser and mail program would use.
"""

import asyncio
import email
import random
import re
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.message import EmailMessage
from email.policy import SMTP
from email.policy import default as default_policy
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from service.app import DEVELOPMENT, Running, running
from service.errors import DemoFailed
from service.inbox import to_mailbox
from service.settings import Settings, load_settings

APPROVER = "ann@localhost"
REQUEST: dict[str, Any] = {
    "subject": "Refund 120.00 EUR to Ana Lima",
    "message": (
        "The parcel arrived damaged; photos are attached to the ticket. "
        "Policy allows a refund within 30 days, this is day 12."
    ),
    "facts": {"Amount": "120.00 EUR", "Order": "A-20931"},
    "requester": {"email": "bob@localhost", "name": "Bob Smith"},
}
#: How long the played story waits for each thing to be seen, in seconds.
PATIENCE = 15.0
#: Seconds in which the decided page and the receipt can be seen before the demo ends.
LINGER = 5.0


async def watched(settings: Settings, console: Console) -> None:
    """Open one approval, say where its letter is, and wait for the person."""
    approver = settings.default_approver or APPROVER
    async with running(settings, DEVELOPMENT) as service, httpx.AsyncClient() as http:
        approval_id = await _open_demo(service, http, approver)
        inbox = f"http://{service.inbox}" if service.inbox else "(off: look in your own)"
        console.print(f"[bold]{'inbox':>14}[/]  [link={inbox}]{inbox}[/link]")
        console.print(f"[bold]{'API and pages':>14}[/]  http://{service.http}")
        console.print(f"[bold]{'waiting for':>14}[/]  {escape(approver)} to decide [bold]{approval_id}[/]")
        console.print(
            f"\nOpen the inbox, read “{escape(REQUEST['subject'])}”, and press Approve,\n"
            "or write [bold]approve[/] or [bold]decline[/] into the reply box below the letter.\n"
        )
        with console.status("the workflow is suspended; nothing is held while it waits"):
            report = await service.approvals.wait(approval_id, 0)
            while report.status == "pending":
                report = await service.approvals.wait(approval_id, 60)
        console.print(f"\nThe workflow went on. Its result: [bold]{report.status}[/]")
        for person in report.approvers:
            if person.status == "decided":
                comment = f": “{person.comment}”" if person.comment else ""
                console.print(f"decided by {person.email}, by {person.channel}{escape(comment)}")
        console.print("\nThat was the story; inbox and page end with it. [bold]approvals dev[/] stays up.")
        await asyncio.sleep(LINGER)


async def _open_demo(service: Running, http: httpx.AsyncClient, approver: str) -> str:
    """Open the demo, or find the one that is still open; return its id.

    One that is closed, or that asked somebody else, is left as it is.
    """
    keys, number = service.settings.api_keys, 1
    while True:
        approval_id = f"demo-{number}"
        answer = await http.post(
            f"http://{service.http}/approvals",
            json=REQUEST | {"id": approval_id, "approvers": [approver]},
            headers={"Authorization": f"Bearer {keys[-1]}"} if keys else {},
        )
        if answer.is_success and answer.json()["status"] == "pending":
            return approval_id
        if answer.is_error and answer.status_code != httpx.codes.CONFLICT:
            raise DemoFailed(answer.text)
        number += 1


async def played(settings: Settings, console: Console) -> None:
    """Play every step of the story. Raises DemoFailed for one that was not observed."""
    async with running(settings, DEVELOPMENT) as service, httpx.AsyncClient(timeout=70) as http:
        play = _Play(service, http, console)
        await play.by_link()
        await play.by_reply()
        await play.scanner_first()
        await play.by_mailhog_api()
    console.print("[green]all four steps were observed[/]")


class _Play:
    """A person with a browser and a mail program, and a scanner before them."""

    def __init__(self, service: Running, http: httpx.AsyncClient, console: Console) -> None:
        self._api = f"http://{service.http}"
        self._inbox = f"http://{service.inbox}"
        self._deliver = to_mailbox(service.mailbox or service.settings.mailbox)
        self._http = http
        self._console = console

    async def by_link(self) -> None:
        """Approve by the button on the page behind the link."""
        letter = await self._ask("demo-link")
        page = await self._press(_link(letter), "approve", "Looks right.")
        _expect("recorded" in page, "the page says that the decision is recorded")
        await self._ends("demo-link", "approved", "link")

    async def by_reply(self) -> None:
        """Decline by a reply, quoting the letter as mail programs do."""
        letter = await self._ask("demo-reply")
        await self._reply(letter, "decline\nThe amount is wrong.")
        await self._ends("demo-reply", "declined", "reply")
        receipt = await self._letter("demo-reply", lambda mail: mail["Auto-Submitted"] == "auto-replied")
        _expect(receipt["In-Reply-To"] == letter["Message-ID"], "the receipt is in the letter's thread")

    async def scanner_first(self) -> None:
        """Let a scanner open every link, which must decide nothing; then press the button."""
        letter = await self._ask("demo-scanner")
        for link in re.findall(r"http://\S+/decide/[\w.?=&-]+", _text(letter)):
            await self._http.head(link)
            await self._http.get(link, headers={"User-Agent": "scanner"})
        report = await self._report("demo-scanner")
        _expect(report["status"] == "pending", "opened links decide nothing")
        await self._press(_link(letter), "approve", "")
        await self._ends("demo-scanner", "approved", "link")

    async def by_mailhog_api(self) -> None:
        """Find a letter as a test suite would, through MailHog's search."""
        letter = await self._ask("demo-search")
        found = await self._http.get(
            f"{self._inbox}/api/v2/search", params={"kind": "containing", "query": "demo-search"}
        )
        _expect(found.json()["total"] >= 1, "MailHog's search finds the letter")
        await self._press(_link(letter), "decline", "")
        await self._ends("demo-search", "declined", "link")

    # ── What a person does ────────────────────────────────────────────────────

    async def _ask(self, approval_id: str) -> EmailMessage:
        answer = await self._http.post(
            f"{self._api}/approvals", json=REQUEST | {"id": approval_id, "approvers": [APPROVER]}
        )
        _expect(answer.status_code == 201, f"{approval_id} is open", answer.text)  # noqa: PLR2004
        return await self._letter(approval_id, lambda mail: mail["Auto-Submitted"] == "auto-generated")

    async def _press(self, link: str, choice: str, comment: str) -> str:
        page = await self._http.get(link)
        _expect(page.status_code == 200, "the page opens", page.text)  # noqa: PLR2004
        nonce = re.search(r'name="nonce"\s+value="([^"]+)"', page.text)
        if nonce is None:
            raise DemoFailed("the page has no form")
        fields = {"nonce": nonce[1], "comment": comment, "choice": choice}
        decided = await self._http.post(link, data=fields)
        _expect(decided.status_code == 200, f"the button {choice} is taken", decided.text)  # noqa: PLR2004
        return decided.text

    async def _reply(self, letter: EmailMessage, text: str) -> None:
        quoted = "\n".join(f"> {line}" for line in _text(letter).splitlines())
        reply = EmailMessage()
        reply["From"], reply["To"] = APPROVER, letter["Reply-To"]
        reply["Subject"], reply["In-Reply-To"] = f"Re: {letter['Subject']}", letter["Message-ID"]
        reply["Message-ID"] = "<demo-reply@localhost>"
        reply.set_content(f"{text}\n\nOn Monday, Approvals wrote:\n{quoted}\n")
        await self._deliver(APPROVER, str(reply["To"]), reply.as_bytes(policy=SMTP))

    # ── What is observed ──────────────────────────────────────────────────────

    async def _letter(self, needle: str, wanted: Callable[[EmailMessage], bool]) -> EmailMessage:
        async def look() -> EmailMessage | None:
            found = await self._http.get(
                f"{self._inbox}/api/v2/search", params={"kind": "containing", "query": needle}
            )
            for item in found.json()["items"]:
                mail = email.message_from_string(item["Raw"]["Data"], policy=default_policy)
                if wanted(mail):
                    return mail
            return None

        return await _seen(look, f"a letter about {needle} in the inbox")

    async def _report(self, approval_id: str, wait: int = 0) -> dict[str, Any]:
        answer = await self._http.get(f"{self._api}/approvals/{approval_id}", params={"wait": wait})
        report: dict[str, Any] = answer.json()
        return report

    async def _ends(self, approval_id: str, status: str, channel: str) -> None:
        report = await self._report(approval_id, wait=int(PATIENCE))
        person = report["approvers"][0]
        _expect(report["status"] == status, f"{approval_id} is {status}", str(report))
        _expect(person["channel"] == channel, f"{approval_id} was decided by {channel}", str(report))
        self._console.print(f"  {approval_id}: {status} by {person['email']}, by {channel}")


def rehearsal(folder: Path) -> Settings:
    """Return development settings on free ports, with everything kept in `folder`."""
    return load_settings("demo", environment(folder), folder)


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return an environment on free ports, with everything kept in `folder`; `settings` replace its own."""
    http, mailbox, inbox, inbox_smtp = free_ports(4)
    own = {
        "ENGINE": f"sqlite:///{folder}/approvals.db",
        "HTTP": f"127.0.0.1:{http}",
        "MAILBOX": f"127.0.0.1:{mailbox}",
        "INBOX": f"127.0.0.1:{inbox}",
        "INBOX_SMTP": f"127.0.0.1:{inbox_smtp}",
        "SMTP": f"smtp://127.0.0.1:{inbox_smtp}",
    }
    return {f"APPROVALS_{name}": value for name, value in (own | settings).items()}


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago: links need theirs before anything listens.

    They lie below those that systems lend to outgoing connections (Linux from
    32768, others from 49152), so that nobody is given one in between by chance.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_768), 500):
        if len(ports) == count:
            break
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports


def _text(mail: EmailMessage) -> str:
    part = mail.get_body(("plain",))
    return "" if part is None else str(part.get_content())


def _link(mail: EmailMessage) -> str:
    found = re.search(r"https?://\S+/decide/[\w.-]+", _text(mail))
    if found is None:
        raise DemoFailed("the letter has no link")
    return found[0]


def _expect(holds: object, what: str, seen: str = "") -> None:
    if not holds:
        raise DemoFailed(f"not observed: {what}. {seen[:500]}")


async def _seen[T](look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Return what `look` finds, within the play's patience."""
    deadline = time.monotonic() + PATIENCE
    while (found := await look()) is None:
        if time.monotonic() > deadline:
            raise DemoFailed(f"not observed within {PATIENCE:.0f} s: {what}")
        await asyncio.sleep(0.05)
    return found
