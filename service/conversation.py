"""One SMTP conversation: a connection to the mail server, and what became of a letter on it.

What became of an attempt is a value; the durable workflow decides when there is
another. By where a reply comes and what it is:

=====================================  =====  ======================  ========
stage                                  4xx    5xx                     no reply
=====================================  =====  ======================  ========
connect, EHLO, STARTTLS, AUTH, MAIL    Later  Later: our own fault    Later
RCPT, DATA, after the final dot        Later  Undeliverable: final    Later
=====================================  =====  ======================  ========
"""

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPException,
    SMTPResponse,
    SMTPResponseException,
    SMTPServerDisconnected,
)
from aiosmtplib.auth import auth_login_encode, auth_plain_encode

from service.letters import Letter
from service.settings import SmtpServer

log = logging.getLogger("approvals.outbox")

#: How much of a server's text is kept, in characters; a reply may have 32 KB.
MAX_TEXT: Final = 400
#: Servers quote addresses, and in refusals much else, while our signed addresses and links are secrets.
_SIGNED: Final = re.compile(r"[A-Za-z0-9_.+=-]{43,}(?=@)")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_.+=-]{43,}")
#: What stays one word between the angle brackets of a command.
_MAILBOX: Final = re.compile(r"[!-;=?-~]*")
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_DOT: Final = re.compile(rb"^\.", re.MULTILINE)
_GOOD, _FINAL = range(200, 300), range(500, 600)
_START_INPUT, _CLOSING, _BAD_MAILBOX = 354, 421, 553
#: Answers to AUTH that find the method strange, not the password wrong.
_STRANGE: Final = range(500, 505)


@dataclass(frozen=True)
class Accepted:
    """The server took the letter; `response` is what it said, often a queue id."""

    response: str


@dataclass(frozen=True)
class Undeliverable:
    """This recipient will not get this letter, however often it is sent."""

    code: int
    text: str


@dataclass(frozen=True)
class Later:
    """Not sent, or not known to be sent: the same letter may be tried again."""

    reason: str


type Sent = Accepted | Undeliverable | Later


class Unusable(Exception):
    """The connection failed or ended; `str()` is the reason, fit for a log."""


class Conversation:
    """One connection; a failure of it is raised as `Unusable`, what the server refuses is a value."""

    def __init__(self, client: SMTP, server: SmtpServer, data_patience: float) -> None:
        self.client = client
        self.born = asyncio.get_running_loop().time()
        self.letters = 0
        #: MAIL was accepted, so that the letter may be taken.
        self.taken = False
        self._stale = False
        self._server = server
        self._data_patience = data_patience
        self._transport: asyncio.BaseTransport | None = None

    async def step[T](self, stage: str, action: Awaitable[T]) -> T:
        """Await `action`, its failure told as that of `stage`."""
        try:
            result = await action
        except (SMTPException, OSError, ValueError) as exc:
            raise Unusable(self._told(stage, exc)) from exc
        # Remembered for `abort`: aiosmtplib forgets it when it closes, which waits for unsent octets.
        self._transport = self.client.transport or self._transport
        return result

    async def sign_in(self, username: str, password: str) -> None:
        """Give the password once: a wrong one, tried by each method, would lock the account."""
        client = self.client
        refusal = SMTPException("the server offers no way to sign in that we know")
        methods = {"plain": client.auth_plain, "login": client.auth_login, "cram-md5": client.auth_crammd5}
        for name, method in methods.items():
            if name in client.server_auth_methods:
                try:
                    await method(username, password)
                except SMTPAuthenticationError as exc:
                    if exc.code not in _STRANGE:
                        raise
                    refusal = exc
                else:
                    return
        raise refusal

    async def deliver(self, letter: Letter, fallback: str) -> Sent:
        """Hold the conversation about one letter."""
        if not _MAILBOX.fullmatch(letter.recipient):
            return Undeliverable(_BAD_MAILBOX, "5.1.3 Not an address that SMTP can carry")
        self.taken = False
        if self._stale:
            await self.step("RSET", self.client.rset())
            self._stale = False
        self.letters += 1
        stage, answer = await self._ask("MAIL FROM", letter.sender)
        if _final(answer) and not letter.sender:
            # MailHog and some relays refuse the null sender, which says only that nobody wants
            # the bounce: a letter that somebody waits for is worth more.
            stage, answer = await self._ask("MAIL FROM", fallback)
        if not _good(answer):
            # Not for the next letter: some servers count, and refuse here until one connects anew.
            self.client.close()
            return Later(self._told(stage, answer))
        self.taken = self._stale = True
        stage, answer = await self._ask("RCPT TO", letter.recipient)
        if _good(answer):
            stage, answer = await self._ask("DATA")
            if answer.code == _START_INPUT:
                stage, answer = await self._hear("after the final dot", self._hand_over(letter.data))
                self._stale = False
                if _good(answer):
                    return Accepted(_line(answer.message))
        if _final(answer):
            return Undeliverable(answer.code, self._tidy(answer.message))
        return Later(self._told(stage, answer))

    async def _hand_over(self, data: bytes) -> SMTPResponse:
        """Send the letter and its dot; its answer has more patience than others, which aiosmtplib lacks.

        The octets go as they are, dots at line starts doubled. Only line ends that SMTP
        forbids are mended, which no `Letter` has: a bare one can hide a second letter.
        """
        protocol = self.client.protocol
        if protocol is None:
            raise SMTPServerDisconnected("the connection is lost")
        lines = _LINE_END.sub(b"\r\n", data)
        end = b".\r\n" if lines.endswith(b"\r\n") else b"\r\n.\r\n"
        protocol.write(_DOT.sub(b"..", lines) + end)
        return await protocol.read_response(self._data_patience)

    async def _ask(self, verb: str, address: str | None = None) -> tuple[str, SMTPResponse]:
        return await self._hear(verb, self._say(verb, address))

    async def _say(self, verb: str, address: str | None) -> SMTPResponse:
        if address is not None and not _MAILBOX.fullmatch(address):
            raise ValueError("not an address that SMTP can carry")
        command = verb if address is None else f"{verb}:<{address}>"
        return await self.client.execute_command(command.encode("ascii"))

    async def _hear(self, stage: str, action: Awaitable[SMTPResponse]) -> tuple[str, SMTPResponse]:
        answer = await self.step(stage, action)
        if answer.code == _CLOSING:  # The server says that it hangs up.
            raise Unusable(self._told(stage, answer))
        return stage, answer

    def leave(self) -> None:
        """Say QUIT and close, without waiting to hear what the server thinks of it."""
        if self.client.protocol is not None and self.client.is_connected:
            self.client.protocol.write(b"QUIT\r\n")
        self.client.close()

    async def quit(self, patience: float) -> None:
        """Say QUIT, hear the answer, close."""
        try:
            await self.step("QUIT", self.client.quit(timeout=patience))
        except Unusable as gone:
            log.debug("%s", gone)
        finally:
            self.abort()
        await asyncio.sleep(0)  # The turn of the loop in which the socket is closed.

    def abort(self) -> None:
        """Drop the connection and what is not sent yet."""
        transport = self.client.transport or self._transport
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()
        self.client.close()

    def _told(self, stage: str, what: SMTPResponse | Exception) -> str:
        if isinstance(what, SMTPResponse | SMTPResponseException):
            return f"{stage}: {what.code} {self._tidy(what.message)}"
        # aiosmtplib wraps what OpenSSL says about a certificate.
        cause = what.__cause__ or what
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{stage}: the server's certificate does not hold: {self._tidy(cause.verify_message)}"
        return f"{stage}: {self._tidy(str(what)) or type(what).__name__}"

    def _tidy(self, text: str) -> str:
        """Return a server's text without the secrets that it may quote."""
        user, password = self._server.username or "", self._server.password
        if password:
            spelt = (*auth_login_encode(user, password), auth_plain_encode(user, password))
            for secret in (password, *(each.decode() for each in spelt)):
                text = text.replace(secret, "…")
        return _line(_TOKEN.sub("…", text))


def _good(answer: SMTPResponse) -> bool:
    return answer.code in _GOOD


def _final(answer: SMTPResponse) -> bool:
    return answer.code in _FINAL


def _line(text: str) -> str:
    """Return a server's text as one bounded line that can be stored and shown anywhere."""
    sound = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    line = " ".join("".join(c if c.isprintable() else " " for c in sound).split())
    return _SIGNED.sub("…", line)[:MAX_TEXT]
