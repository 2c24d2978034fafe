"""Letters leave here: SMTP over a small pool of kept connections, one attempt a call.

What became of an attempt is a value; the durable workflow decides when there is
another. By where a reply comes and what it is:

=====================================  =====  ======================  ========
stage                                  4xx    5xx                     no reply
=====================================  =====  ======================  ========
connect, EHLO, STARTTLS, AUTH, MAIL    Later  Later: our own fault    Later
RCPT, DATA, after the final dot        Later  Undeliverable: final    Later
=====================================  =====  ======================  ========

A kept connection that turns out dead before MAIL was accepted is replaced at
once. After that an attempt never repeats itself: the server may have the letter.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parseaddr
from functools import partial
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
from service.settings import SmtpServer, is_loopback

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


class _Unusable(Exception):
    """The connection failed or ended; `str()` is the reason, fit for a log."""


class Outbox:
    """Sends letters to `server`, over `connections` at most.

    `fallback_sender` stands in for the null sender where that is refused. In
    seconds: `patience` for each reply, `data_patience` for the one to a whole
    letter, `idle` and `max_age` of a kept connection, `grace` for letters under
    way at the close. `hostname` is what EHLO says, by default this machine's
    name. Construction does no I/O. For one event loop.
    """

    def __init__(
        self,
        server: SmtpServer,
        *,
        fallback_sender: str,
        connections: int = 8,
        patience: float = 30,
        data_patience: float = 300,
        idle: float = 30,
        max_age: float = 300,
        max_letters: int = 100,
        grace: float = 5,
        hostname: str | None = None,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self._server = server
        self._fallback = parseaddr(fallback_sender)[1]
        self._patience, self._data_patience, self._grace = patience, data_patience, grace
        self._idle_limit, self._max_age, self._max_letters = idle, max_age, max_letters
        self._hostname = hostname
        self._tls = tls_context
        self._connections = connections
        self._slots = asyncio.Semaphore(connections)
        self._limits: set[asyncio.Timeout] = set()
        self._idle: dict[_Link, asyncio.TimerHandle] = {}
        self._closed = asyncio.Event()

    async def send(self, letter: Letter) -> Sent:
        """Try once to hand `letter` over; nothing that SMTP or the network does is raised.

        When cancelled it drops its connection, and the server may have the letter.
        """
        sent = await self._within(partial(self._attempt, letter))
        log.debug("%s %s: %s", letter.kind, letter.message_id, sent)
        return sent

    async def probe(self) -> Later | None:
        """Say why no letter could leave now, or None: connects, signs in, sends nothing."""
        return await self._within(self._try_connection)

    async def close(self) -> None:
        """Give letters under way `grace` seconds, then close every connection; later sends are `Later`."""
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            await asyncio.wait_for(self._drain(), self._grace)
        except TimeoutError:
            for limit in self._limits:
                limit.reschedule(0)
            await self._drain()
        for timer in self._idle.values():
            timer.cancel()
        await asyncio.gather(*(link.quit(self._grace) for link in self._idle))
        self._idle.clear()

    async def _drain(self) -> None:
        """Take every slot for good, so that nothing is under way any more."""
        while self._connections:
            await self._slots.acquire()
            self._connections -= 1

    async def _within[T](self, attempt: Callable[[], Awaitable[T]]) -> T | Later:
        """Run `attempt` in a slot of the pool, cut short where `close` says so."""
        closing = Later("the outbox is closing")
        if self._closed.is_set():
            return closing
        limit = asyncio.timeout(None)
        self._limits.add(limit)
        try:
            async with limit, self._slots:
                return closing if self._closed.is_set() else await attempt()
        except _Unusable as failed:
            return Later(str(failed))
        except TimeoutError:  # `close`, out of grace; the time-outs of a conversation are _Unusable by now.
            return closing
        finally:
            self._limits.discard(limit)

    async def _attempt(self, letter: Letter) -> Sent:
        link = self._take()
        if link is not None:
            try:
                return await self._use(link, letter)
            except _Unusable as dead:
                if link.taken:
                    raise
                log.debug("replaced a kept connection: %s", dead)
        return await self._use(await self._connect(), letter)

    async def _use(self, link: "_Link", letter: Letter) -> Sent:
        kept = False
        try:
            sent = await link.deliver(letter, self._fallback)
            kept = True
        finally:
            # A conversation cut short, by cancellation too, can't be taken up again.
            if not kept:
                link.abort()
        if self._closed.is_set() or not self._fit(link):
            link.leave()
        else:
            loop = asyncio.get_running_loop()
            self._idle[link] = loop.call_later(self._idle_limit, self._retire, link)
        return sent

    async def _try_connection(self) -> None:
        link = await self._connect()
        try:
            await link.step("NOOP", link.client.noop())
            await link.quit(self._patience)
        finally:
            link.abort()

    def _take(self) -> "_Link | None":
        """Return the connection used last of those that are still fit, so that the others can retire."""
        while self._idle:
            link, timer = self._idle.popitem()
            timer.cancel()
            if self._fit(link):
                return link
            link.leave()
        return None

    def _retire(self, link: "_Link") -> None:
        del self._idle[link]
        link.leave()

    def _fit(self, link: "_Link") -> bool:
        age = asyncio.get_running_loop().time() - link.born
        return link.client.is_connected and link.letters < self._max_letters and age < self._max_age

    async def _connect(self) -> "_Link":
        """Return a connection that is encrypted and signed in as the settings ask."""
        server, implicit = self._server, self._server.tls == "implicit"
        # Settings see to this as well; a password that left in the clear can't be called back.
        required = server.tls == "required" or (server.password is not None and not is_loopback(server.host))
        if self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        client = SMTP(
            hostname=server.host,
            port=server.port,
            local_hostname=self._hostname,
            timeout=self._patience,
            use_tls=implicit,
            start_tls=False,
            tls_context=self._tls,
        )
        link = _Link(client, server, self._data_patience)
        ready = False
        try:
            await link.step("connect", client.connect())
            # The resolver, which aiosmtplib asked for it, can be slow.
            self._hostname = client.local_hostname
            await link.step("EHLO", client.ehlo())
            if not implicit and client.supports_extension("starttls"):
                await link.step("STARTTLS", client.starttls())
                await link.step("EHLO", client.ehlo())
            elif not implicit and required:
                raise _Unusable("STARTTLS: required here, and the server does not offer it")
            if server.password is not None:
                await link.step("AUTH", link.sign_in(server.username or "", server.password))
            ready = True
        finally:
            if not ready:
                link.abort()
        return link


class _Link:
    """One connection; a failure of it is raised as `_Unusable`, what the server refuses is a value."""

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
            raise _Unusable(self._told(stage, exc)) from exc
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
            raise _Unusable(self._told(stage, answer))
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
        except _Unusable as gone:
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
