"""The SMTP listener under the mailbox and the local inbox: aiosmtpd, bounded, in a loop of its own.

aiosmtpd has no limits until it is given some, and a message of many short
lines holds its loop for seconds; so a `Listener` runs on a thread of its own,
and a session's connections, commands, octets, lines and time all have an end.
A handler has aiosmtpd's hooks (``handle_RCPT``, ``handle_DATA``, ...). What it
raises answers the peer by `ApprovalsError.smtp_reply` or 451, never by its text.
"""

import asyncio
import collections
import ipaddress
import logging
import re
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import cast, override

from aiosmtpd import lmtp, smtp
from aiosmtpd.proxy_protocol import ProxyData

from service.errors import ApprovalsError
from service.sockets import bind_path, bind_tcp, group_of, peer_group

log = logging.getLogger(__name__)

#: A reply to a letter has a few KB; ten MB leave room for its attachments.
DATA_SIZE_LIMIT = 10 * 1024 * 1024
#: Each line costs aiosmtpd about 80 octets beside its own; ten MB of base64 are 140,000 lines.
MAX_LINES = 250_000
#: Lines of at most two octets that a message may have: each costs the loop what a long one does, and
#: mail that has more of them was made to cost it.
MAX_SHORT_LINES = 20_000
_SHORT_LINE = re.compile(rb"(?<=\n)[^\n]{0,3}\n")
#: How often one connection may send each command. Pools keep a connection for many letters.
COMMAND_CALL_LIMIT: Mapping[str, int] = {
    "MAIL": 1000,
    "RCPT": 1000,
    "DATA": 1000,
    "RSET": 1000,
    "NOOP": 1000,
    "*": 20,
}
#: An MTA in front is one peer with up to 20 connections a destination (Postfix's default).
MAX_CONNECTIONS, MAX_PER_PEER = 200, 50
#: Seconds for all of one message. RFC 5321 4.5.3.2 lets a client take minutes, and ten MB take
#: five at 270 kbit/s; without an end, an octet a minute would hold a place for days.
DATA_TIMEOUT = 300.0
#: Seconds for a proxy to say for whom it connects.
PROXY_TIMEOUT = 5.0
#: Seconds that a peer which does not read keeps its connection after we closed it.
LINGER = 5.0


type Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class SMTP(smtp.SMTP):
    """One SMTP session of a `Listener`."""

    ident = "ESMTP"

    def __init__(self, listener: "Listener") -> None:
        # The base keeps these in one dict of the class, which each new connection clears.
        self.command_size_limits = collections.defaultdict(lambda: smtp.SMTP.command_size_limit)
        super().__init__(
            listener.handler,
            data_size_limit=listener.data_size_limit,
            enable_SMTPUTF8=listener.smtputf8,
            hostname=listener.hostname,
            ident=self.ident,
            timeout=listener.timeout,
            command_call_limit=dict(listener.command_call_limit),
            tls_context=listener.tls,
            proxy_protocol_timeout=None if listener.proxies is None else PROXY_TIMEOUT,
            loop=listener.loop,
        )
        self._listener = listener
        self._behind_proxy: tuple[str, int] | None = None
        self.in_data = False
        self._octets = self._lines = self._short_lines = 0
        #: When reading a message must be over, on the loop's clock; None while none is read.
        self._deadline: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a session; after STARTTLS a new one, with the peer that the proxy named."""
        super().connection_made(transport)
        if self._behind_proxy is not None and self.session is not None:
            self.session.peer = cast("str", self._behind_proxy)  # as of a TCP socket, a pair

    def connection_lost(self, error: Exception | None) -> None:
        """Give the connection's place back."""
        self._listener.release(self)
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Hang up on a message that is far past the limits.

        The base reads to the end before it answers 552, and keeps all of a
        line that has no end: without this, memory is bounded by time alone.
        """
        if self.in_data:
            self._octets += len(data)
            self._lines += data.count(b"\n")
            self._short_lines += len(_SHORT_LINE.findall(data))
            if (
                self._octets > 2 * self._listener.data_size_limit
                or self._lines > MAX_LINES
                or self._short_lines > MAX_SHORT_LINES
            ):
                self.dismiss("552 5.3.4 Message too big")
                return
        if self._deadline is not None:
            # The base counts the time for all of a message; here it is the time without a word,
            # and the deadline does not move.
            left = self._deadline - self.loop.time()
            self._reset_timeout(max(min(self._listener.timeout, left), 0.001))
        super().data_received(data)

    @override
    async def smtp_DATA(self, arg: str) -> None:
        """Receive a message; a listener that is stopping lets it finish first."""
        self.in_data, self._octets, self._lines, self._short_lines = True, 0, 0, 0
        self._deadline = self.loop.time() + self._listener.data_timeout
        try:
            await super().smtp_DATA(arg)
        finally:
            self.in_data, self._deadline = False, None
            if self._listener.stopping:
                # Not before the answer, which for an exception is written after this.
                self.loop.call_soon(self.dismiss, "421 4.3.2 Shutting down")

    async def _call_handler_hook(self, command: str, *args: object) -> object:
        if command == "PROXY":
            return self._proxied(cast("ProxyData", args[0]))
        # The time a slow peer took for its message is not taken from the handler, nor may it
        # win the handler more by what it sends meanwhile.
        self._deadline = None
        self._reset_timeout()
        return await super()._call_handler_hook(command, *args)

    def _proxied(self, said: ProxyData) -> bool:
        """Take the peer that a proxy names; where it names none, nobody is trusted. False hangs up."""
        named = said.src_addr is not None
        try:
            host = str(ipaddress.ip_address(str(said.src_addr))) if named else ""
        except ValueError:
            return False
        self._behind_proxy = host, int(said.src_port or 0)
        if self.session is not None:
            self.session.peer = cast("str", self._behind_proxy)  # as of a TCP socket, a pair
        return self._listener.rename(self, group_of(host)) if named else True

    async def handle_exception(self, error: Exception) -> str:
        """Answer what a handler raised, without its text.

        An `ApprovalsError` has an answer of its own; all else is 451, so that
        the sender's MTA tries again, and goes to the log.
        """
        if self.envelope is not None and self.envelope.content is not None:
            # The base forgets to end the transaction when handle_DATA raises.
            self.envelope = self._create_envelope()
        if isinstance(error, ApprovalsError):
            return error.smtp_reply
        log.error("SMTP session failed", exc_info=error)
        return ApprovalsError.smtp_reply

    def dismiss(self, reply: str) -> None:
        """Say ``reply`` and close; a peer that does not read is cut off after `LINGER`."""
        transport = cast("asyncio.Transport | None", self.transport)
        if transport is None:
            return
        if not transport.is_closing():
            transport.write(reply.encode("ascii") + b"\r\n")
        transport.close()
        self.loop.call_later(LINGER, transport.abort)

    def cut(self) -> None:
        """Drop the connection, with whatever is still to be written."""
        transport = cast("asyncio.Transport | None", self.transport)
        if transport is not None:
            transport.abort()

    def _timeout_cb(self) -> None:
        self.dismiss("421 4.4.2 Timeout")


class LMTP(SMTP, lmtp.LMTP):
    """One LMTP session of a `Listener`.

    LMTP wants an answer for each recipient after DATA and aiosmtpd gives one,
    so a message has one recipient here; the sender's MTA splits it.
    """

    ident = "LMTP"

    @override
    async def smtp_RCPT(self, arg: str | None) -> None:
        """Take the first recipient, put the others off."""
        if self.envelope is not None and self.envelope.rcpt_tos:
            await self.push("452 4.5.3 One recipient a message")
            return
        await super().smtp_RCPT(arg)


class _Door(asyncio.Protocol):
    """Stands before the session: past the limits a peer hears 421 and no session is made."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        if not self._listener.welcomes(stream):
            stream.abort()
            return
        session = self._listener.admit(peer_group(stream))
        if session is None:
            stream.write(b"421 4.7.0 Too many connections, try again later\r\n")
            stream.close()
            return
        stream.set_protocol(session)
        session.connection_made(stream)


class Listener:
    """A bounded SMTP or LMTP server on ``host:port``, in a loop and thread of its own.

    With a `path` it is on that unix socket instead. `tls` offers STARTTLS. With `proxies`,
    networks, each connection must come from one of them and begin with a PROXY header.
    `setting` is the environment variable to name when the address can't be
    had. `protocol` is `SMTP` or `LMTP`. `timeout` is in seconds: from one
    command to the next, without an octet of a message, and for each handler;
    `data_timeout` for all of one message, however it drips.
    `max_per_peer` counts by IPv4 address or IPv6 /64.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        handler: object,
        *,
        setting: str,
        host: str,
        port: int,
        path: Path | None = None,
        protocol: type[SMTP] = SMTP,
        tls: ssl.SSLContext | None = None,
        proxies: Sequence[Network] | None = None,
        hostname: str = "localhost",
        smtputf8: bool = False,
        data_size_limit: int = DATA_SIZE_LIMIT,
        command_call_limit: Mapping[str, int] = COMMAND_CALL_LIMIT,
        timeout: float = 60,
        data_timeout: float = DATA_TIMEOUT,
        max_connections: int = MAX_CONNECTIONS,
        max_per_peer: int = MAX_PER_PEER,
    ) -> None:
        self.handler = handler
        self.setting = setting
        self.host = host
        #: The port asked for; once started, the real one.
        self.port = port
        self.path = path
        self.tls = tls
        self.proxies = proxies
        self.protocol = protocol
        self.hostname = hostname
        self.smtputf8 = smtputf8
        self.data_size_limit = data_size_limit
        self.command_call_limit = command_call_limit
        self.timeout = timeout
        self.data_timeout = data_timeout
        self.max_connections = max_connections
        self.max_per_peer = max_per_peer
        self.stopping = False
        self._sessions: dict[SMTP, str | None] = {}
        self._per_peer: collections.Counter[str] = collections.Counter()
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event
        self._drained: asyncio.Event
        self._grace = 0.0

    def start(self) -> None:
        """Listen; returns once connections are accepted.

        Raises `SettingsError` when the address is taken, not ours or unknown;
        another port is never chosen instead.
        """
        if self.path is not None:
            sockets = [bind_path(self.setting, self.path)]
        else:
            sockets = bind_tcp(self.setting, self.host, self.port)
            self.port = sockets[0].getsockname()[1]
        # aiosmtpd logs each command at INFO, and RCPT carries signed addresses.
        logging.getLogger("mail.log").setLevel(logging.WARNING)
        self.stopping = False
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run,
            args=(sockets, ready),
            name=f"{self.setting}:{self.path or self.port}",
            daemon=True,
        )
        self._thread.start()
        ready.result()

    def stop(self, *, grace: float = 5.0) -> None:
        """Accept nothing more, let sessions in DATA finish within ``grace`` seconds, join the thread.

        Blocks, so an event loop that a handler may need calls it through
        `asyncio.to_thread`. A second call does nothing.
        """
        if self._thread is None:
            return
        self._grace = grace
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def welcomes(self, transport: asyncio.Transport) -> bool:
        """Tell whether a connection may come from there: where there are proxies, from them alone."""
        name = transport.get_extra_info("peername")
        if self.proxies is None or not isinstance(name, tuple):
            return True
        address = ipaddress.ip_address(str(name[0]).partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self.proxies)

    def admit(self, peer: str | None) -> SMTP | None:
        """Return a session for a new connection, or None past the limits."""
        if len(self._sessions) >= self.max_connections:
            return None
        if self.proxies is not None:
            peer = None  # the proxy says soon for whom it connects
        if peer is not None and self._per_peer[peer] >= self.max_per_peer:
            return None
        session = self.protocol(self)
        self._sessions[session] = peer
        if peer is not None:
            self._per_peer[peer] += 1
        return session

    def rename(self, session: SMTP, peer: str) -> bool:
        """Count `session` as one of `peer`'s; False past its limit."""
        if session not in self._sessions or self._per_peer[peer] >= self.max_per_peer:
            return False
        self._sessions[session] = peer
        self._per_peer[peer] += 1
        return True

    def release(self, session: SMTP) -> None:
        """Forget a session whose connection is gone."""
        peer = self._sessions.pop(session, None)
        if peer is not None:
            self._per_peer[peer] -= 1
            if not self._per_peer[peer]:
                del self._per_peer[peer]
        if not self._sessions:
            self._drained.set()

    def _run(self, sockets: list[socket.socket], ready: "Future[None]") -> None:
        try:
            asyncio.run(self._serve(sockets, ready))
        except BaseException as exc:
            if ready.done():
                raise
            ready.set_exception(exc)

    async def _serve(self, sockets: list[socket.socket], ready: "Future[None]") -> None:
        self.loop = asyncio.get_running_loop()
        self._stop, self._drained = asyncio.Event(), asyncio.Event()
        servers = [await self.loop.create_server(lambda: _Door(self), sock=each) for each in sockets]
        ready.set_result(None)
        await self._stop.wait()
        self.stopping = True
        for server in servers:
            server.close()
        for session in list(self._sessions):
            if not session.in_data:
                session.dismiss("421 4.3.2 Shutting down")
        self._drained.clear()
        try:
            async with asyncio.timeout(self._grace):
                if self._sessions:
                    await self._drained.wait()
        except TimeoutError:
            log.warning("%d SMTP sessions were cut off at the stop", len(self._sessions))
        for session in list(self._sessions):
            session.cut()
        # One turn of the loop, in which the cut connections are told.
        await asyncio.sleep(0)
