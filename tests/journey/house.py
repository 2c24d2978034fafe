"""A whole service on free ports, and a person with a browser and a mail program."""

import asyncio
import email
import os
import re
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP
from email.policy import default as default_policy
from pathlib import Path
from typing import Any

import aiosmtplib
import httpx
import pytest

from service.app import DEVELOPMENT, Role, Running, running
from service.demo import free_ports
from service.settings import Settings, load_settings

#: Bounds each wait, in seconds; what is waited for comes in a fraction of one.
PATIENCE = 30.0


def settings_of(env: dict[str, str], folder: Path) -> Settings:
    """Return the development settings that `env` makes."""
    return load_settings("dev", env, folder)


@dataclass
class Person:
    """Whoever calls the API, opens links, answers mail and looks into the inbox."""

    api: str
    inbox: str
    mailbox: tuple[str, int]
    http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=70))

    async def ask(self, approval_id: str, *approvers: str, **fields: Any) -> httpx.Response:
        """POST /approvals."""
        body = {
            "id": approval_id,
            "subject": f"Refund {approval_id}",
            "approvers": list(approvers or ("ann@corp.example",)),
            **fields,
        }
        return await self.http.post(f"{self.api}/approvals", json=body)

    async def report(self, approval_id: str, wait: float = 0) -> dict[str, Any]:
        """GET /approvals/{id}."""
        answer = await self.http.get(f"{self.api}/approvals/{approval_id}", params={"wait": wait})
        assert answer.status_code == 200, answer.text
        report: dict[str, Any] = answer.json()
        return report

    async def ended(self, *approval_ids: str) -> None:
        """Return once the workflows of these have ended: a wait is over before, a list has them then."""

        async def look() -> bool | None:
            statuses = {(await self.report(approval_id))["status"] for approval_id in approval_ids}
            found = [item["id"] for status in statuses for item in await self.listed(status)]
            return {*approval_ids} <= {*found} or None

        await eventually(look, f"the end of {approval_ids}")

    async def listed(self, status: str) -> list[dict[str, Any]]:
        """GET /approvals?status=, page by page."""
        items: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            query = {"status": status} | ({"cursor": cursor} if cursor else {})
            page = (await self.http.get(f"{self.api}/approvals", params=query)).json()
            items += page["items"]
            cursor = page["next_cursor"]
        return items

    async def raw_letters(self, needle: str) -> list[str]:
        """Return the data of every message that holds `needle`, as it was received."""
        answer = await self.http.get(
            f"{self.inbox}/api/v2/search", params={"kind": "containing", "query": needle}
        )
        return [item["Raw"]["Data"] for item in answer.json()["items"]]

    async def letters(self, needle: str = "", to: str = "") -> list[EmailMessage]:
        """Return what the inbox holds about `needle`, newest first, read from the raw bytes."""
        answer = await self.http.get(f"{self.inbox}/api/v2/messages", params={"limit": 250})
        mails = [
            email.message_from_bytes(
                item["Raw"]["Data"].encode("utf-8", "surrogateescape"), policy=default_policy
            )
            for item in answer.json()["items"]
            if not to or to in item["Raw"]["To"]
        ]
        return [mail for mail in mails if needle in str(mail["Subject"])]

    async def letter(self, needle: str, *, to: str = "", kind: str = "request") -> EmailMessage:
        """Return the letter of `kind` about `needle`, waiting for it."""

        async def look() -> EmailMessage | None:
            found = [m for m in await self.letters(needle, to) if f".{kind}" in str(m["Message-ID"])]
            return found[0] if found else None

        return await eventually(look, f"a {kind} letter about {needle}")

    async def press(self, link: str, choice: str = "approve", comment: str = "") -> httpx.Response:
        """Open the page, press the button."""
        async with httpx.AsyncClient() as browser:
            page = await browser.get(link)
            return await browser.post(link, data=form_of(page.text) | {"choice": choice, "comment": comment})

    async def reply(
        self, letter: EmailMessage, text: str, *, sender: str = "ann@corp.example", **headers: str
    ) -> str:
        """Answer a letter as mail programs do; return the SMTP server's last reply."""
        mail = EmailMessage(policy=SMTP)
        mail["From"], mail["To"] = sender, letter["Reply-To"]
        mail["Subject"], mail["In-Reply-To"] = f"Re: {letter['Subject']}", letter["Message-ID"]
        mail["Message-ID"] = headers.pop("message_id", "<reply@corp.example>")
        for name, value in headers.items():
            mail[name.replace("_", "-")] = value
        quoted = "\n".join(f"> {line}" for line in text_of(letter).splitlines())
        mail.set_content(f"{text}\n\nOn Mon, 23 Nov 2026 at 10:12, Approvals wrote:\n{quoted}\n")
        return await self.deliver(sender, str(letter["Reply-To"]), mail.as_bytes())

    async def deliver(self, sender: str, recipient: str, raw: bytes) -> str:
        """Hand `raw` to the mailbox; return its reply, a refusal's too, as ``code text``."""
        try:
            async with aiosmtplib.SMTP(
                hostname=self.mailbox[0], port=self.mailbox[1], start_tls=False
            ) as smtp:
                await smtp.mail(sender)
                await smtp.rcpt(recipient)
                answer = await smtp.data(raw)
        except aiosmtplib.SMTPResponseException as exc:
            return f"{exc.code} {exc.message}"
        return f"{answer.code} {answer.message}"


@asynccontextmanager
async def house(
    settings: Settings, *, roles: frozenset[Role] = DEVELOPMENT, inbox: str = ""
) -> AsyncIterator[tuple[Running, Person]]:
    """Run the service in this process; `inbox` is MailHog's address where that is used instead of ours."""
    async with running(settings, roles) as service:
        mailbox = service.mailbox or settings.mailbox
        person = Person(
            f"http://{service.http}", inbox or f"http://{service.inbox}", (mailbox.host, mailbox.port)
        )
        async with person.http:
            yield service, person


@asynccontextmanager
async def mailhog(*arguments: str) -> AsyncIterator[tuple[str, str]]:
    """Run a real MailHog; yield its SMTP address and its HTTP address."""
    binary = os.environ.get("MAILHOG")
    if not binary:
        pytest.skip("MAILHOG names no binary")
    smtp, http = free_ports(2)
    command = [binary, "-smtp-bind-addr", f"127.0.0.1:{smtp}", "-api-bind-addr", f"127.0.0.1:{http}"]
    process = await asyncio.create_subprocess_exec(
        *command, "-ui-bind-addr", f"127.0.0.1:{http}", *arguments, stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        await reachable(f"http://127.0.0.1:{http}/api/v2/messages")
        yield f"127.0.0.1:{smtp}", f"http://127.0.0.1:{http}"
    finally:
        process.kill()
        await process.wait()


async def reachable(url: str) -> None:
    """Return once `url` answers."""

    async def look() -> httpx.Response | None:
        try:
            async with httpx.AsyncClient() as http:
                return await http.get(url)
        except httpx.HTTPError:
            return None

    await eventually(look, f"{url} answers")


async def eventually[T](look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Return the first thing that `look` finds, within a bound."""
    deadline = time.monotonic() + PATIENCE
    while (found := await look()) is None:
        assert time.monotonic() < deadline, f"not seen within {PATIENCE:.0f} s: {what}"
        await asyncio.sleep(0.03)
    return found


def text_of(mail: EmailMessage) -> str:
    """Return the plain part."""
    part = mail.get_body(("plain",))
    assert part is not None
    return str(part.get_content())


def link_of(mail: EmailMessage) -> str:
    """Return the letter's link, without a choice."""
    found = re.search(r"https?://\S+/decide/[\w.-]+", text_of(mail))
    assert found, text_of(mail)
    return found[0]


def form_of(page: str) -> dict[str, str]:
    """Return the page's hidden fields."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)"\s+value="([^"]*)"', page))
