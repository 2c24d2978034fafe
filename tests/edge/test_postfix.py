"""A real Postfix that hands replies to the mailbox by LMTP, as docs/mail-recipes.md says."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosmtplib
import pytest

from service.demo import free_ports
from tests.edge.mail_house import ANN, approval, lived, reply_to
from tests.journey.house import Person, eventually

DOMAIN = "reply.corp.example"

MAIN = """
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/log
maillog_file_prefixes = {base}
command_directory = /usr/sbin
daemon_directory = {daemons}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.corp.example
mydestination =
alias_maps =
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
relay_domains = {domain}
transport_maps = texthash:{base}/transport
lmtp_destination_recipient_limit = 1
queue_run_delay = 1s
minimal_backoff_time = 1s
maximal_backoff_time = 2s
"""

SERVICES = {
    "pickup": ("unix", "60", "1", "pickup"),
    "cleanup": ("unix", "-", "0", "cleanup"),
    "qmgr": ("unix", "1", "1", "qmgr"),
    "rewrite": ("unix", "-", "-", "trivial-rewrite"),
    "bounce": ("unix", "-", "0", "bounce"),
    "defer": ("unix", "-", "0", "bounce"),
    "trace": ("unix", "-", "0", "bounce"),
    "flush": ("unix", "1000?", "0", "flush"),
    "proxymap": ("unix", "-", "-", "proxymap"),
    "error": ("unix", "-", "-", "error"),
    "retry": ("unix", "-", "-", "error"),
    "lmtp": ("unix", "-", "-", "lmtp"),
    "anvil": ("unix", "-", "1", "anvil"),
    "scache": ("unix", "-", "1", "scache"),
    "postlog": ("unix-dgram", "-", "1", "postlogd"),
}


def _configured(smtp: int, lmtp: int) -> Path:
    """Return a folder with an instance of its own."""
    said = subprocess.run(["postconf", "-h", "daemon_directory"], check=True, capture_output=True)  # noqa: S607
    base = Path(tempfile.mkdtemp(prefix="postfix-"))
    base.chmod(0o755)
    for folder in ("queue", "data"):
        (base / folder).mkdir()
    shutil.chown(base / "data", "postfix")
    main = MAIN.format(base=base, daemons=said.stdout.decode().strip(), domain=DOMAIN)
    (base / "main.cf").write_text(main)
    lines = [f"127.0.0.1:{smtp} inet n - n - - smtpd"]
    for name, (kind, wakeup, most, command) in SERVICES.items():
        private = "n" if name in {"pickup", "cleanup", "qmgr", "flush", "postlog"} else "-"
        lines.append(f"{name} {kind} {private} - n {wakeup} {most} {command}")
    (base / "master.cf").write_text("\n".join(lines) + "\n")
    (base / "transport").write_text(f"{DOMAIN} lmtp:inet:127.0.0.1:{lmtp}\n")
    return base


@asynccontextmanager
async def postfix(lmtp: int) -> AsyncIterator[int]:
    """Run a Postfix that hands mail for `DOMAIN` to port `lmtp`; yield its SMTP port."""
    if shutil.which("postfix", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("postfix is not installed")
    if os.getuid() != 0:
        pytest.skip("postfix is started by root alone")
    [smtp] = free_ports(1)
    base = await asyncio.to_thread(_configured, smtp, lmtp)

    def control(word: str) -> None:
        subprocess.run(["postfix", "-c", str(base), word], check=True, capture_output=True)  # noqa: S603, S607

    await asyncio.to_thread(control, "start")
    try:

        async def up() -> bool | None:
            try:
                async with aiosmtplib.SMTP(hostname="127.0.0.1", port=smtp, start_tls=False):
                    return True
            except (aiosmtplib.SMTPException, OSError):
                return None

        await eventually(up, "postfix answers")
        yield smtp
    finally:
        await asyncio.to_thread(control, "abort")
        shutil.rmtree(base, ignore_errors=True)


async def send(port: int, person: Person, approval_id: str, text: str) -> None:
    """Answer an approval through Postfix."""
    letter = await approval(person, approval_id)
    to, raw = str(letter["Reply-To"]), reply_to(letter, text, message_id=f"<{approval_id}@corp.example>")
    async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) as smtp:
        await smtp.sendmail(ANN, [to], raw)


async def test_postfix_hands_replies_over_by_lmtp(tmp_path: Path) -> None:
    """A transport map for the reply domain is all that Postfix needs."""
    [lmtp] = free_ports(1)
    async with (
        postfix(lmtp) as smtp,
        lived(tmp_path, MAILBOX=f"lmtp://127.0.0.1:{lmtp}", REPLY_DOMAIN=DOMAIN) as (_, person),
    ):
        await send(smtp, person, "x-1", "approve\nBy way of Postfix.")
        report = await person.report("x-1", wait=25)
        assert (report["status"], report["approvers"][0]["comment"]) == ("approved", "By way of Postfix.")
        await send(smtp, person, "x-2", "decline")
        assert (await person.report("x-2", wait=25))["status"] == "declined"


async def test_postfix_keeps_replies_while_the_mailbox_is_away(tmp_path: Path) -> None:
    """Its queue is the retry: the reply that found nobody decides once the mailbox is back."""
    [lmtp] = free_ports(1)
    own = {"REPLY_DOMAIN": DOMAIN, "SECRET_KEYS": "k" * 40}
    async with postfix(lmtp) as smtp:
        async with lived(tmp_path, dns=None, **own) as (_, person):  # its mailbox is elsewhere
            await send(smtp, person, "x-3", "approve")
        await asyncio.sleep(1)
        async with lived(tmp_path, dns=None, MAILBOX=f"lmtp://127.0.0.1:{lmtp}", **own) as (_, person):
            assert (await person.report("x-3", wait=30))["status"] == "approved"
