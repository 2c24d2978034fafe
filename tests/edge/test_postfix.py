"""A real Postfix hands replies to the mailbox, in each way that docs/mail-recipes.md has."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import aiosmtplib
import pytest

from service.demo import free_ports
from tests.edge.mail_house import ANN, approval, lived, reply_to
from tests.edge.postfix import DOMAIN, new_folder, postfix
from tests.journey.house import Person, eventually

WAYS = ["lmtp", "alias", "pipe"]


def way(name: str, port: int) -> tuple[str, dict[str, Any]]:
    """Return the service's MAILBOX and what Postfix is told."""
    match name:
        case "lmtp":
            return f"lmtp://127.0.0.1:{port}", {"transport": f"lmtp:inet:127.0.0.1:{port}"}
        case "alias":
            return f"127.0.0.1:{port}", {"pipe_to": f"127.0.0.1:{port}"}
        case _:
            return f"127.0.0.1:{port}", {"transport": "approvals:", "pipe_to": f"127.0.0.1:{port}"}


async def send(port: int, person: Person, approval_id: str, text: str) -> None:
    """Answer an approval through Postfix."""
    letter = await approval(person, approval_id)
    to, raw = str(letter["Reply-To"]), reply_to(letter, text, message_id=f"<{approval_id}@corp.example>")
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as smtp:
        await smtp.sendmail(ANN, [to], raw)


async def decides(port: int, person: Person) -> None:
    """See two replies decide."""
    await send(port, person, "x-1", "approve\nBy way of Postfix.")
    report = await person.report("x-1", wait=25)
    assert (report["status"], report["approvers"][0]["comment"]) == ("approved", "By way of Postfix.")
    await send(port, person, "x-2", "decline")
    assert (await person.report("x-2", wait=25))["status"] == "declined"


@pytest.mark.parametrize("name", WAYS)
async def test_postfix_hands_replies_over(tmp_path: Path, name: str) -> None:
    """By LMTP, by `approvals receive` of an alias, and of a transport."""
    [port] = free_ports(1)
    mailbox, told = way(name, port)
    async with (
        postfix(**told) as mta,
        lived(tmp_path, MAILBOX=mailbox, REPLY_DOMAIN=DOMAIN) as (_, person),
    ):
        await decides(mta.port, person)


@pytest.mark.parametrize("chroot", [False, True])
async def test_postfix_hands_replies_over_on_a_unix_socket(tmp_path: Path, *, chroot: bool) -> None:
    """The socket in the queue's folder has the group of its own folder, so that Postfix may open it."""
    base = new_folder()
    sockets = base / "queue" / "approvals"
    sockets.mkdir()
    if shutil.which("postfix"):
        shutil.chown(sockets, group="postfix")
    sockets.chmod(0o2750)
    async with (
        postfix(transport="lmtp:unix:approvals/mail", chroot=chroot, folder=base) as mta,
        lived(tmp_path, MAILBOX=f"lmtp://{sockets}/mail", REPLY_DOMAIN=DOMAIN) as (_, person),
    ):
        await decides(mta.port, person)


@pytest.mark.parametrize("name", WAYS)
async def test_postfix_keeps_replies_while_the_mailbox_is_away(tmp_path: Path, name: str) -> None:
    """Its queue is the retry: the reply that found nobody decides once the mailbox is back."""
    [port] = free_ports(1)
    mailbox, told = way(name, port)
    own = {"REPLY_DOMAIN": DOMAIN, "SECRET_KEYS": "k" * 40}
    async with postfix(**told) as mta:
        async with lived(tmp_path, dns=None, **own) as (_, person):  # its mailbox is elsewhere
            await send(mta.port, person, "x-3", "approve")

        async def put_off() -> bool | None:
            return "status=deferred" in await asyncio.to_thread(mta.log) or None

        await eventually(put_off, "the reply is kept")
        async with lived(tmp_path, dns=None, MAILBOX=mailbox, **own) as (_, person):
            assert (await person.report("x-3", wait=30))["status"] == "approved"


@pytest.mark.parametrize("name", WAYS)
async def test_postfix_bounces_what_is_to_no_address_of_ours(tmp_path: Path, name: str) -> None:
    """Its sender hears that it was lost, in our words."""
    [port] = free_ports(1)
    mailbox, told = way(name, port)
    async with postfix(**told) as mta, lived(tmp_path, MAILBOX=mailbox, REPLY_DOMAIN=DOMAIN):
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=mta.port, start_tls=False) as smtp:
            await smtp.sendmail(ANN, [f"r+nobody@{DOMAIN}"], b"Subject: Hi\r\n\r\napprove\r\n")

        async def bounced() -> str | None:
            lines = (await asyncio.to_thread(mta.log)).splitlines()
            return next((line for line in lines if "status=bounced" in line), None)

        assert "550 5.1.1" in await eventually(bounced, "the bounce")
