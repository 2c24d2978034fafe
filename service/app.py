"""Wiring: builds what the roles need, in the order they need it, and closes it in the reverse.

Every address is bound before anything is promised to anybody, so that a port
which is taken stops the start and leaves nothing half-done.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from email.policy import default as default_policy
from functools import partial
from pathlib import Path
from typing import Literal, override

import uvicorn
from resonate.observability import BackgroundTaskFailed, Event, logging_observer
from starlette.types import ASGIApp

from service.answers import Answers
from service.approvals import Approvals
from service.decisions import Decisions
from service.engine import Engine, open_engine, sqlite_path
from service.engine.http import HttpSurface
from service.engine.unix import unix_socket
from service.errors import SettingsError
from service.imap import Poller
from service.inbox import Inbox, to_mailbox
from service.journal import Journal
from service.letters import Letters
from service.lists import Lists
from service.mailbox import Mailbox
from service.outbox import Outbox
from service.pages import Pages
from service.parked import Notes
from service.records import GROUP
from service.requests import canonical_address
from service.senders import Resolver, senders
from service.settings import PREFIX, Endpoint, MailEndpoint, Settings
from service.smtpd import LMTP, SMTP, Listener
from service.tokens import Tokens
from service.web import Web
from service.workflow import Ports, register

log = logging.getLogger("approvals.app")

type Role = Literal["gateway", "worker", "mailbox", "engine", "inbox"]

#: What `demo` and `dev` run in one process.
DEVELOPMENT: frozenset[Role] = frozenset({"gateway", "worker", "mailbox", "inbox"})
#: The default address of the role `engine`.
ENGINE_HTTP = Endpoint("127.0.0.1", 8001)
#: Tasks that one worker runs at once.
MAX_TASKS = 1024
#: Seconds that requests in flight have when a server stops.
STOP_GRACE = 5


@dataclass(frozen=True)
class Running:
    """What runs, and where it answers."""

    settings: Settings
    approvals: Approvals
    http: Endpoint | None = None
    mailbox: MailEndpoint | None = None
    inbox: Endpoint | None = None
    engine: Endpoint | Path | None = None


@asynccontextmanager
async def running(
    settings: Settings, roles: Collection[Role], *, resolver: Resolver | None = None
) -> AsyncIterator[Running]:
    """Run `roles` until the block ends; signing keys are asked of `resolver`, by default the machine's.

    Raises SettingsError for what can't be had.
    """
    tokens = Tokens(settings.secret_keys, public_url=settings.public_url, reply_domain=settings.reply_domain)
    letters = Letters(sender=settings.sender, reply_domain=settings.reply_domain)
    with_inbox = "inbox" in roles and settings.inbox is not None
    engine_http = settings.engine_http or (ENGINE_HTTP if "engine" in roles else None)

    if engine_http is not None and not settings.engine.startswith("sqlite:"):
        raise SettingsError(f"{PREFIX}ENGINE_HTTP", "only an engine on a file, sqlite:///FILE, is offered")

    async with AsyncExitStack() as stack:
        sockets = {
            name: stack.enter_context(_bound(endpoint, f"{PREFIX}{name}"))
            for name, endpoint in {
                "HTTP": settings.http if "gateway" in roles else None,
                "INBOX": settings.inbox if with_inbox else None,
                "ENGINE_HTTP": engine_http,
            }.items()
            if endpoint is not None
        }

        engine = open_engine(
            settings.engine,
            # Only workers may be given work: anybody else would have to hand it back.
            group=GROUP if "worker" in roles else f"{GROUP}-clients",
            token=settings.engine_token,
            debug=settings.engine_debug,
            retention=settings.retention,
            works="worker" in roles,
            lease=settings.engine_lease,
        )
        await engine.start()
        stack.push_async_callback(engine.close)
        if engine_http is not None:
            await stack.enter_async_context(_engine_role(settings, engine, sockets["ENGINE_HTTP"]))

        resonate = engine.client(
            # A task waits here while its letter waits for a connection: with the SDK's 64, as many
            # letters at a mail server that hangs would keep every decision from going on.
            max_concurrent_tasks=MAX_TASKS,
            observer=partial(_observe, engine),
        )
        target = engine.sources[0].resolve_target(GROUP)
        approvals = Approvals(resonate.promises, target)
        decisions = Decisions(approvals)
        if "worker" in roles:
            outbox = Outbox(settings.smtp, fallback_sender=_address_of(settings.sender))
            stack.push_async_callback(outbox.close)
            ports = Ports(promises=resonate.promises, mailer=outbox, letters=letters, tokens=tokens)
            resonate.with_dependency(ports)
            engine.parking.told = Notes(resonate.promises).keep
            register(resonate)

        # The local inbox takes letters before the worker sends any.
        mailbox = settings.mailbox
        if "mailbox" in roles:
            handler = Mailbox(
                approvals=approvals,
                decisions=decisions,
                answers=Answers(resonate.promises, target),
                journal=Journal(resonate.promises),
                tokens=tokens,
                letters=letters,
                senders=senders(
                    settings.reply_trust, settings.reply_peers, resolver, sealers=settings.arc_sealers
                ),
                own_addresses=frozenset({_address_of(settings.sender)}),
                aliases=settings.reply_aliases,
            )
            listener = await stack.enter_async_context(_listening(_mailbox_listener(handler, settings)))
            mailbox = replace(mailbox, port=listener.port)
            if settings.imap is not None:
                poller = Poller(settings.imap, handler.receive, tokens)
                await stack.enter_async_context(_polling(poller))
        if with_inbox:
            inbox = Inbox(path=_inbox_path(settings.engine), deliver=to_mailbox(mailbox))
            stack.callback(inbox.close)
            await stack.enter_async_context(
                _listening(
                    Listener(
                        inbox.handler,
                        setting=f"{PREFIX}INBOX_SMTP",
                        host=settings.inbox_smtp.host,
                        port=settings.inbox_smtp.port,
                        smtputf8=True,
                    )
                )
            )
            await stack.enter_async_context(_serving(inbox.app, sockets["INBOX"]))

        resonate.start()
        stack.push_async_callback(resonate.stop)
        if "gateway" in roles:
            web = Web(
                settings,
                approvals=approvals,
                decisions=decisions,
                lists=Lists(engine, approvals),
                tokens=tokens,
                pages=Pages(),
            )
            await stack.enter_async_context(_serving(web.app, sockets["HTTP"]))
            stack.callback(approvals.hang_up)
        yield Running(
            settings,
            approvals,
            http=_endpoint(sockets.get("HTTP")),
            mailbox=mailbox if "mailbox" in roles else None,
            inbox=_endpoint(sockets.get("INBOX")),
            engine=engine_http if isinstance(engine_http, Path) else _endpoint(sockets.get("ENGINE_HTTP")),
        )


def _observe(engine: Engine, event: Event) -> None:
    """Log what the SDK tells; a task that somebody else has (409) is no failure, a parked one no news."""
    if isinstance(event, BackgroundTaskFailed) and (
        "code=409" in event.cause or engine.parking.knows(event.cause)
    ):
        log.debug("%s", event.cause)
    else:
        logging_observer(event)


@asynccontextmanager
async def _engine_role(settings: Settings, engine: Engine, sock: socket.socket) -> AsyncIterator[None]:
    """Answer the Resonate protocol over HTTP for other processes."""
    assert engine.embedded is not None  # as its URL said before anything was opened  # noqa: S101
    surface = HttpSurface(engine.embedded, token=settings.engine_token)
    async with _serving(surface.app, sock):
        try:
            yield
        finally:
            surface.hang_up()


def _mailbox_listener(handler: Mailbox, settings: Settings) -> Listener:
    """Return the listener that the settings ask for. Raises SettingsError for a certificate that is none."""
    where, tls = settings.mailbox, None
    if settings.mailbox_tls is not None:
        certificate, key = settings.mailbox_tls
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            tls.load_cert_chain(certificate, key)
        except OSError as exc:  # SSLError is one
            raise SettingsError(f"{PREFIX}MAILBOX_TLS_CERT", f"{certificate}, {key}: {exc}") from exc
    return Listener(
        handler,
        setting=f"{PREFIX}MAILBOX",
        host=where.host,
        port=where.port,
        path=where.path,
        protocol=LMTP if where.protocol == "lmtp" else SMTP,
        hostname=settings.reply_domain,
        tls=tls,
        proxies=settings.reply_peers if settings.mailbox_proxy else None,
    )


@asynccontextmanager
async def _polling(poller: Poller) -> AsyncIterator[None]:
    """Run an IMAP poller."""
    task = asyncio.create_task(poller.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _listening(listener: Listener) -> AsyncIterator[Listener]:
    """Run an SMTP listener on a thread of its own."""
    await asyncio.to_thread(listener.start)
    try:
        yield listener
    finally:
        # It waits for its sessions, which may wait for this loop.
        await asyncio.to_thread(listener.stop)


class _Server(uvicorn.Server):
    """A server among others in this loop: signals are the command's to handle."""

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _serving(app: ASGIApp, sock: socket.socket) -> AsyncIterator[None]:
    """Serve `app` on a bound socket. No access log: a link's path is a capability."""
    server = _Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_GRACE,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield  # the socket listens already: whoever connects before the server runs waits for it
    finally:
        server.should_exit = True
        await task


def _bound(endpoint: Endpoint | Path, setting: str) -> AbstractContextManager[socket.socket]:
    """Return a listening socket, to be closed at the end. Raises SettingsError naming `setting`."""
    if isinstance(endpoint, Path):
        return unix_socket(endpoint, setting)
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    # The protocol is named since asyncio sets TCP_NODELAY only where it sees TCP.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((endpoint.host, endpoint.port))
        sock.listen(512)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            problem = f"{endpoint} is already in use; stop what listens there, or set another address"
        else:
            problem = f"can't listen on {endpoint}: {os.strerror(exc.errno) if exc.errno else exc}"
        raise SettingsError(setting, problem) from exc
    return sock


def _endpoint(sock: socket.socket | None) -> Endpoint | None:
    return None if sock is None else Endpoint(*sock.getsockname()[:2])


def _inbox_path(engine_url: str) -> str:
    """Keep the inbox's letters beside the database, so that they outlive the process as it does."""
    if not engine_url.startswith("sqlite:"):
        return ":memory:"
    database: Path = sqlite_path(engine_url)
    return str(database.with_name(f"{database.stem}-inbox.db"))


def _address_of(sender: str) -> str:
    """Return the canonical address in a From value."""
    header = default_policy.header_factory("From", sender)
    return canonical_address(header.addresses[0].addr_spec)
