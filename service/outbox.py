"""Letters leave here: SMTP over a small pool of kept connections, one attempt a call.

A kept connection that turns out dead before MAIL was accepted is replaced at
once. After that an attempt never repeats itself: the server may have the letter.
What is said on one is in `service.conversation`.
"""

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from email.utils import parseaddr
from functools import partial

from aiosmtplib import SMTP

from service.conversation import Conversation, Later, Sent, Unusable
from service.letters import Letter
from service.settings import SmtpServer, is_loopback

log = logging.getLogger("approvals.outbox")


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
        self._idle: dict[Conversation, asyncio.TimerHandle] = {}
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
        except Unusable as failed:
            return Later(str(failed))
        except TimeoutError:  # `close`, out of grace; the time-outs of a conversation are Unusable by now.
            return closing
        finally:
            self._limits.discard(limit)

    async def _attempt(self, letter: Letter) -> Sent:
        link = self._take()
        if link is not None:
            try:
                return await self._use(link, letter)
            except Unusable as dead:
                if link.taken:
                    raise
                log.debug("replaced a kept connection: %s", dead)
        return await self._use(await self._connect(), letter)

    async def _use(self, link: Conversation, letter: Letter) -> Sent:
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

    def _take(self) -> Conversation | None:
        """Return the connection used last of those that are still fit, so that the others can retire."""
        while self._idle:
            link, timer = self._idle.popitem()
            timer.cancel()
            if self._fit(link):
                return link
            link.leave()
        return None

    def _retire(self, link: Conversation) -> None:
        del self._idle[link]
        link.leave()

    def _fit(self, link: Conversation) -> bool:
        age = asyncio.get_running_loop().time() - link.born
        return link.client.is_connected and link.letters < self._max_letters and age < self._max_age

    async def _connect(self) -> Conversation:
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
        link = Conversation(client, server, self._data_patience)
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
                raise Unusable("STARTTLS: required here, and the server does not offer it")
            if server.password is not None:
                await link.step("AUTH", link.sign_in(server.username or "", server.password))
            ready = True
        finally:
            if not ready:
                link.abort()
        return link
