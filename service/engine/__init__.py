"""Where durable promises live: one call opens any engine the SDK can talk to.

    engine = open_engine("sqlite:///approvals.db", group="approvals")
    await engine.start()
    r = engine.client()
    r.start()
    ...
    await r.stop()      # leaves in flight are still answered: their results are kept
    await engine.close()

====================  =========================================================
URL                   engine
====================  =========================================================
``memory:``           the SDK's own in-memory connection, for tests and trials
``sqlite:///a.db``    the embedded engine on a file relative to the directory
``sqlite:////x/a.db`` the embedded engine on an absolute path
``http(s)://host``    a Resonate server, or another process's role ``engine``
``unix:/x/a.sock``    another process's role ``engine``, on this machine
``postgresql://host`` a database with resonate-pg's schema
====================  =========================================================

What ``memory:`` lacks: it keeps nothing, never expires an untargeted promise
in time (its tick is a second), runs a leaf longer than its lease twice, has no
lists, and each operation costs as much as there are promises.

Where engines differ, an `Engine` carries what is its own: nobody else asks
which one it is.
"""

import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from resonate.connections import LocalConnection
from resonate.heartbeat import Heartbeat, NoopHeartbeat
from resonate.resonate import Resonate
from resonate_base import PROTOCOL_VERSION, Network, Source

from service.engine.backup import backup
from service.engine.clock import Clock, now_ms
from service.engine.connection import Connection
from service.engine.database import SETTING
from service.engine.elsewhere import Connector, Elsewhere
from service.engine.embedded import EmbeddedEngine
from service.engine.lists import Page, Search, no_lists, searching
from service.engine.parking import Parked, Parking
from service.engine.promises import Client, Nearby, Promises
from service.engine.retention import KEPT_MS, OWNER_TAG
from service.engine.unix import unix_path
from service.errors import SettingsError

__all__ = [
    "OWNER_TAG",
    "Client",
    "Connection",
    "EmbeddedEngine",
    "Engine",
    "Parked",
    "Promises",
    "backup",
    "open_engine",
    "sqlite_path",
]

#: How long a worker's tasks stay its own without a sign of life, on engines that outlive it.
#: Signs are given twice as often; a letter at a slow mail server takes as long as it likes.
LEASE = timedelta(seconds=30)
#: Seconds that a task which can't be run waits for its next turn, at most, where leases have no end.
LONGEST = 60.0
#: Connections to an engine elsewhere; the SDK's own number: signs of life must always find one free.
CONNECTIONS = 256


async def _nothing() -> None:
    """Open or close nothing."""


async def _protocol() -> str:
    """Return what every engine here speaks, since it is asked for with each request."""
    return f"protocol {PROTOCOL_VERSION}"


async def _sqlite() -> str:
    return f"SQLite {sqlite3.sqlite_version}, {await _protocol()}"


async def _no_advice() -> list[str]:
    """Know nothing better."""
    return []


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One engine, ready to be given to ``Resonate``.

    `heartbeat` and `ttl` are passed on as they are: ``None`` is the SDK's own
    default. `start` opens what must be open before the first request and
    raises SettingsError if that can't be; `close` is the last thing to call.
    Between ``Resonate.stop()`` and `close` requests are still answered.
    """

    #: As it was given, so it may hold a password.
    url: str = field(repr=False)
    group: str
    pid: str
    network: Network
    sources: Sequence[Source]
    heartbeat: Heartbeat | None = None
    ttl: timedelta | None = None
    #: What a Resonate server wants in each request, beside the header that our own engine wants.
    token: str | None = field(default=None, repr=False)
    #: The embedded engine behind it, for its HTTP surface and its backup; None elsewhere.
    embedded: EmbeddedEngine | None = None
    parking: Parking = field(repr=False)
    open_: Callable[[], Awaitable[None]] = field(default=_nothing, repr=False)
    close_: Callable[[], Awaitable[None]] = field(default=_nothing, repr=False)
    search_: Search = field(default=no_lists, repr=False)
    advice_: Callable[[], Awaitable[list[str]]] = field(default=_no_advice, repr=False)
    about_: Callable[[], Awaitable[str]] = field(default=_protocol, repr=False)
    promises_: Callable[[Resonate], Promises] = field(default=Promises, repr=False)
    #: What to do where messages or timers are late.
    slow: str = "the machine is busy, or its disk slow"

    async def search(
        self,
        state: str | None = None,
        tags: dict[str, str] | None = None,
        *,
        limit: int,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of promises by id, and the cursor of the next one or None.

        Those in `state` (as they read now) and with all of `tags`, at most `limit`
        (1 to `lists.MAX_PAGE`), values decoded; one that can't be decoded is empty.
        Raises NoLists where the engine has none, and the SDK's ResonateError.
        """
        return await self.search_(state, tags or {}, limit, cursor)

    async def advice(self) -> list[str]:
        """Return what would make this engine, as it is set up, better: a line each."""
        return await self.advice_()

    async def about(self) -> str:
        """Return its version, as far as it tells one."""
        return await self.about_()

    def client(self, **options: Any) -> Client:
        """Return the SDK's client on this engine, not started; `options` are its own."""
        return Client(
            self.promises_,
            network=self.network,
            sources=self.sources,
            group=self.group,
            pid=self.pid,
            heartbeat=self.heartbeat,
            ttl=self.ttl,
            token=self.token,
            env={},
            autostart=False,
            **options,
        )

    async def start(self) -> None:
        """Open the engine; SettingsError says in one line why that can't be."""
        await self.open_()

    @property
    def parked(self) -> Mapping[str, Parked]:
        """Tasks that this process can't run, and that are offered to it ever more rarely; by task."""
        return self.parking.parked

    async def close(self) -> None:
        """Close the engine; from here on every request is refused."""
        await self.parking.close()
        await self.close_()


def sqlite_path(url: str) -> Path:
    """Return the file that a ``sqlite://`` URL names, by SQLAlchemy's slashes.

    Three lead to a relative path, four to an absolute one. Raises SettingsError.
    """
    path = unquote(url.removeprefix("sqlite://"))
    if not url.startswith("sqlite:///") or path in {"/", "//", "/:memory:"} or path.endswith("/"):
        raise SettingsError(
            SETTING, f"{url!r} names no file; use sqlite:///file.db or sqlite:////path/file.db"
        )
    return Path(path[1:])


def _elsewhere(
    url: str, connector: Connector, group: str, pid: str, *, token: str | None, lease: timedelta
) -> Engine:
    """Return an engine in another process."""
    elsewhere = Elsewhere(
        "http://localhost" if url.startswith("unix:") else url, group, pid, token, connector
    )
    parking = Parking(elsewhere.send, longest=lease.total_seconds() / 2, start=elsewhere.start)
    return Engine(
        url=url,
        group=group,
        pid=pid,
        network=parking,
        sources=(elsewhere.messages,),
        ttl=lease,
        token=token,
        parking=parking,
        open_=partial(elsewhere.open, SETTING),
        close_=elsewhere.close,
        search_=searching(elsewhere, token),
        slow="a Resonate server wants --messages-poll-interval 5 --timeouts-poll-interval 20",
    )


def _postgres(url: str, group: str, pid: str, lease: timedelta, *, works: bool) -> Engine:
    """Return the engine that a database is."""
    try:
        # An extra: libpq and its driver are ten megabytes that the other engines do without.
        from service.engine.postgres import Postgres  # noqa: PLC0415
    except ImportError as exc:
        raise SettingsError(
            SETTING, "postgresql:// needs an extra: install email-approvals[postgres]"
        ) from exc
    postgres = Postgres(url, SETTING)
    parking = Parking(postgres.send, longest=lease.total_seconds() / 2)
    return Engine(
        url=url,
        group=group,
        pid=pid,
        network=parking,
        sources=(postgres.source(group, pid, fires=works),),
        ttl=lease,
        parking=parking,
        open_=postgres.open,
        close_=postgres.close,
        search_=postgres.search,
        advice_=postgres.advice,
        about_=postgres.about,
        slow="Postgres is busy, or far away",
    )


def _socket_path(url: str) -> Path:
    try:
        return unix_path(url)
    except ValueError as exc:
        raise SettingsError(SETTING, str(exc)) from exc


def open_engine(
    url: str,
    *,
    group: str = "approvals",
    pid: str | None = None,
    token: str | None = None,
    retention: timedelta = timedelta(milliseconds=KEPT_MS),
    clock: Clock = now_ms,
    debug: bool = False,
    works: bool = True,
    lease: timedelta = LEASE,
) -> Engine:
    """Return the engine that ``url`` names; nothing is opened before `Engine.start`.

    `pid` names this process to the engine (default: a fresh one), `group` the
    work it takes; one that takes none (`works`) does not fire what is due on
    Postgres either. What a process that died had in hand is another's after
    `lease`, where the engine outlives it; one that lives renews it, so it bounds
    no work. `token` is the bearer token of another process's engine. The embedded
    engine keeps what has ended for `retention`, reads `clock` (ms), and answers
    ``debug.*`` verbs only with `debug`. Raises SettingsError if no engine has such
    a URL.
    """
    pid = pid or uuid.uuid4().hex
    match urlsplit(url).scheme:
        case "memory":
            local = LocalConnection(pid=pid, group=group)
            parking = Parking(local.send, longest=LEASE.total_seconds())
            return Engine(
                url=url,
                group=group,
                pid=pid,
                network=parking,
                sources=(local,),
                heartbeat=NoopHeartbeat(),
                parking=parking,
            )
        case "sqlite":
            keep_ms = int(retention.total_seconds() * 1000)
            embedded = EmbeddedEngine(sqlite_path(url), clock=clock, retention_ms=keep_ms, debug_verbs=debug)
            connection = Connection(embedded, group, pid)
            parking = Parking(connection.send, longest=LONGEST)
            return Engine(
                url=url,
                group=group,
                pid=pid,
                network=parking,
                sources=(connection,),
                heartbeat=NoopHeartbeat(),
                parking=parking,
                embedded=embedded,
                promises_=partial(Nearby, embedded),
                search_=searching(connection),
                open_=embedded.start,
                about_=_sqlite,
                close_=embedded.close,
            )
        case "http" | "https":
            return _elsewhere(
                url, partial(aiohttp.TCPConnector, limit=CONNECTIONS), group, pid, token=token, lease=lease
            )
        case "unix":
            socket = partial(aiohttp.UnixConnector, str(_socket_path(url)), limit=CONNECTIONS)
            return _elsewhere(url, socket, group, pid, token=token, lease=lease)
        case "postgresql" | "postgres":
            return _postgres(url, group, pid, lease, works=works)
        case _:
            raise SettingsError(
                SETTING,
                f"{url!r} names no engine; use sqlite:///file.db, http(s)://host, postgresql:// or memory:",
            )
