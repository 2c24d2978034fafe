"""The IMAP poller: for sites whose approvals address is an ordinary mailbox.

Each unseen message that went to an address we signed is handed to the mailbox, as if it
had come by SMTP. Nothing is ever deleted:

==============================  ====================================================
the mailbox answers             the message is
==============================  ====================================================
250                             marked seen and `DONE`, and moved where ``?move=`` says
4xx: engine or DNS are away     left unseen, and tried again
5xx, or it is not for us        left unseen for people to see, marked `LEFT`; a 5xx is a warning,
                                since its sender hears of nothing
==============================  ====================================================

IDLE tells of new mail at once; a connection that is lost is made again, later and later.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable, Callable

from aioimaplib import (  # type: ignore[import-untyped] # it ships no types
    IMAP4,
    IMAP4_SSL,
    Abort,
    CommandTimeout,
    Error,
    Response,
)

from service.endpoints import ImapAccount
from service.errors import AddressInvalid
from service.receive import return_path
from service.smtpd import DATA_SIZE_LIMIT
from service.tokens import Tokens

log = logging.getLogger("approvals.imap")

#: Keywords on messages: taken, and looked at but not ours to take.
DONE, LEFT = "ApprovalsDone", "ApprovalsLeft"
#: Seconds of one IDLE. Some routers forget a connection after five minutes without a word.
IDLE_SECONDS = 240.0
#: Seconds until what was put off is tried again.
RETRY_SECONDS = 30.0
#: Seconds for each command, and the pauses between attempts to connect.
COMMAND_SECONDS, FIRST_PAUSE, LAST_PAUSE = 30.0, 1.0, 300.0
_MAX_HEADER = 64 * 1024
#: In this order: what the last server wrote counts before what the sender wrote.
_FIELDS = ("delivered-to", "x-original-to", "to")
_CANDIDATE = re.compile(r"[a-z0-9+]{52,56}@[a-z0-9.-]{1,253}")

#: Takes the address, the message and its Return-Path; returns an SMTP reply.
type Receive = Callable[[str, bytes, str | None], Awaitable[str]]


class ConnectionLost(Exception):  # noqa: D101 - never leaves this module
    pass


class Poller:
    """Watches one folder for replies and hands them to `receive`; `run` it until it is cancelled."""

    def __init__(
        self, account: ImapAccount, receive: Receive, tokens: Tokens, tls: ssl.SSLContext | None = None
    ) -> None:
        self._account = account
        self._receive = receive
        self._tokens = tokens
        self._tls = tls
        self._pause = FIRST_PAUSE

    async def run(self) -> None:
        """Watch, and connect again whenever the connection is lost."""
        while True:
            try:
                await self._watch()
            except (ConnectionLost, OSError, Abort, Error, CommandTimeout, TimeoutError) as exc:
                log.warning(
                    "IMAP at %s: %s; again in %.0f s",
                    self._account.host,
                    str(exc) or type(exc).__name__,
                    self._pause,
                )
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LAST_PAUSE)

    async def _watch(self) -> None:
        account, lost = self._account, asyncio.Event()
        client: IMAP4
        if account.tls:
            tls = self._tls or ssl.create_default_context()
            client = IMAP4_SSL(account.host, account.port, timeout=COMMAND_SECONDS, ssl_context=tls)
        else:
            client = IMAP4(account.host, account.port, timeout=COMMAND_SECONDS)
        client.protocol.conn_lost_cb = lambda _: lost.set()
        try:
            await asyncio.wait_for(client._client_task, COMMAND_SECONDS)  # noqa: SLF001 - its errors show there alone
            await client.wait_hello_from_server()
            _checked(await client.login(account.username, account.password))
            _checked(await client.select(f'"{account.folder}"'))
            self._pause = FIRST_PAUSE
            log.info("IMAP at %s: watching %s", account.host, account.folder)
            while True:
                put_off = await self._take_unseen(client)
                await _idle(client, lost, RETRY_SECONDS if put_off else IDLE_SECONDS)
        finally:
            client._client_task.cancel()  # noqa: SLF001 - a connection that is still being made
            if (transport := client.protocol.transport) is not None:
                transport.close()

    async def _take_unseen(self, client: IMAP4) -> bool:
        """Hand in what is new; tell whether something was put off."""
        found = _checked(await client.uid_search("UNSEEN", "UNKEYWORD", DONE, "UNKEYWORD", LEFT))
        put_off = False
        for uid in found.lines[0].decode("ascii").split():
            if not uid.isdigit():
                break
            put_off = not await self._take(client, uid) or put_off
        return put_off

    async def _take(self, client: IMAP4, uid: str) -> bool:
        """Hand one message in and mark it; False where it is put off."""
        raw = await _message(client, uid)
        address = None if raw is None else self._address(raw)
        answer = "" if raw is None or address is None else await self._receive(address, raw, return_path(raw))
        if answer.startswith("4"):
            return False
        if not answer.startswith("2"):
            _checked(await client.uid("store", uid, "+FLAGS.SILENT", f"({LEFT})"))
            level = logging.WARNING if answer else logging.INFO
            log.log(level, "IMAP: message %s is left: %s", uid, answer or "it is not for us")
            return True
        _checked(await client.uid("store", uid, "+FLAGS.SILENT", rf"(\Seen {DONE})"))
        if self._account.move_to:
            _checked(await client.uid("move", uid, f'"{self._account.move_to}"'))
        return True

    def _address(self, raw: bytes) -> str | None:
        fields = _fields(raw)
        for name in _FIELDS:
            for value in fields.get(name, ()):
                for candidate in _CANDIDATE.findall(value):
                    try:
                        self._tokens.read_address(candidate)
                    except AddressInvalid:
                        continue
                    return str(candidate)
        return None


async def _message(client: IMAP4, uid: str) -> bytes | None:
    """Return the message without marking it seen; None for one that is too big or gone."""
    told = _checked(await client.uid("fetch", uid, "(RFC822.SIZE)"))
    size = re.search(rb"RFC822\.SIZE (\d+)", b" ".join(bytes(line) for line in told.lines))
    if size is None or int(size[1]) > DATA_SIZE_LIMIT:
        return None
    whole = _checked(await client.uid("fetch", uid, "(BODY.PEEK[])"))
    return next((bytes(line) for line in whole.lines if isinstance(line, bytearray)), None)


async def _idle(client: IMAP4, lost: asyncio.Event, seconds: float) -> None:
    """Return when the server tells something, or after `seconds`. Raises ConnectionLost."""
    idle = await client.idle_start(timeout=2 * seconds)
    waits = [asyncio.ensure_future(client.wait_server_push(seconds)), asyncio.ensure_future(lost.wait())]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        if lost.is_set():
            idle.cancel()
    if lost.is_set():
        raise ConnectionLost("the connection was lost")
    client.idle_done()
    await asyncio.wait_for(idle, COMMAND_SECONDS)


def _checked(response: Response) -> Response:
    if response.result != "OK":
        said = b" ".join(bytes(line) for line in response.lines[-1:]).decode("utf-8", "replace")
        raise ConnectionLost(f"the server said {response.result} {said}"[:200])
    return response


def _fields(raw: bytes) -> dict[str, list[str]]:
    """Return the fields that may hold our address, unfolded, in lower case."""
    head = re.split(rb"\r?\n\r?\n", raw[:_MAX_HEADER], maxsplit=1)[0].decode("latin-1").lower()
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\r?\n[ \t]+", " ", head).splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() in _FIELDS:
            found.setdefault(name.strip(), []).append(value.strip())
    return found
