"""Postgres as the engine: resonate-pg's schema, through its connector.

What is added to the connector here, and why:

* a request that finds Postgres away waits for it, as one over HTTP does, and that is said once;
* what is due is fired by one process at a time, and goes on being fired after an outage
  (the connector gives up for good at the first failure of any kind);
* requests are answered until the engine is closed, not until the SDK stops it;
* each statement is its own transaction: a request is one round trip instead of three;
* lists are read from the table, since resonate-pg answers no searches.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import psycopg
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from resonate.types import PromiseRecord, Value
from resonate_base import ConnectorError, Source
from resonate_pg import PostgresConnection
from resonate_pg.client import PgConn, PgSessions

from service.engine.clock import now_ms
from service.engine.lists import Page, decoded
from service.engine.timers import untargeted
from service.errors import NoLists, SettingsError

__all__ = ["Postgres", "PostgresSource"]

log = logging.getLogger("approvals.engine")

#: Backends that one process may hold, besides the one that listens.
POOL: Final = 16
#: Seconds to wait for one of them, and for a connection to be made.
PATIENCE: Final = 5
#: Seconds between looks at what is due. A decision does not wait for it: that is notified.
TICK: Final = 0.5
#: Seconds between attempts while Postgres is away: doubling, up to the last.
FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0

#: One process at a time fires what is due; the others' turns would find nothing.
_FIRE: Final = "SELECT CASE WHEN pg_try_advisory_xact_lock(5001, 1) THEN resonate.process_timeouts() END"

#: What must be executable, and what should be: name -> whether it must.
_NEEDED: Final = {
    "resonate_rpc": True,
    "dequeue_execute": True,
    "dequeue_unblock": True,
    "process_timeouts": False,
}
_RIGHTS: Final = """
    SELECT p.proname, has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'resonate'
"""

#: A setting on a function keeps it from being inlined, and so from its index; then two rights.
_SET_UP: Final = """
    SELECT
        (SELECT bool_or(p.proconfig IS NOT NULL) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = 'resonate' AND p.proname = '_promise_timed'),
        (SELECT bool_or(has_function_privilege(p.oid, 'EXECUTE')) FROM pg_proc p
         JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = 'resonate' AND p.proname = 'process_timeouts'),
        has_table_privilege('resonate.promises', 'SELECT'),
        (SELECT coalesce(string_agg(indexdef, E'\\n'), '') FROM pg_indexes
         WHERE schemaname = 'resonate' AND tablename = 'promises')
"""

#: A tag that each value of is on few promises; without its index one is sought in the whole table,
#: 1.5 s among half a million. Of a tag that many have, the order of ids finds a page sooner.
RARE: Final = "approvals:approver"
INDEX: Final = (
    f"CREATE INDEX approvals_by_approver ON resonate.promises ((tags->>'{RARE}'), id) WHERE tags ? '{RARE}'"
)

#: A record as `promise.get` gives it; $now settles what is past its deadline.
_SEARCH: Final = """
    SELECT * FROM (
        SELECT id,
            CASE WHEN state <> 'pending' OR timeout_at > %(now)s THEN state
                 WHEN is_timer THEN 'resolved' ELSE 'rejected_timedout' END AS reads,
            param_headers, param_data, value_headers, value_data, tags, timeout_at, created_at,
            CASE WHEN state = 'pending' AND timeout_at <= %(now)s THEN timeout_at ELSE settled_at END
        FROM resonate.promises
        WHERE tags @> %(tags)s AND id > %(cursor)s
    ) p
    WHERE %(state)s::text IS NULL OR reads = %(state)s
    ORDER BY id LIMIT %(limit)s
"""
#: The same in words that the index knows.
_SEARCH_RARE: Final = _SEARCH.replace(
    "WHERE tags @>", f"WHERE tags ? '{RARE}' AND tags->>'{RARE}' = %(tags)s->>'{RARE}' AND tags @>"
)


#: Failures to connect that time does not mend.
_REFUSALS: Final = ("password authentication failed", "does not exist", "no pg_hba.conf entry")

# Both say again, several times a second, what is said once here.
for _noisy in ("psycopg.pool", "resonate_pg"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)


class Postgres:
    """Requests to a database with resonate-pg's schema; a `Network`, and the lists.

    `url` is libpq's. Nothing connects before `start` or the first request.
    """

    def __init__(self, url: str, setting: str) -> None:
        self._url = url
        self._setting = setting
        self._sessions = _Sessions(url)
        self._requests = PostgresConnection(sessions=self._sessions)
        self._closed = asyncio.Event()
        self._away = False

    def source(self, group: str, pid: str, *, fires: bool) -> "PostgresSource":
        """Return the messages for a member of `group`; with `fires` it also fires what is due."""
        # Its end must not take the connections away from the requests.
        connection = PostgresConnection(
            sessions=_Borrowed(self._sessions), group=group, pid=pid, drive_timers=False
        )
        return PostgresSource(connection, self._fire if fires else None)

    async def open(self) -> None:
        """See that the schema is there and may be used; a database that is away is waited for later.

        Raises SettingsError for what time does not mend.
        """
        try:
            async with self._sessions.connect() as db:
                user = db.info.user
                rights = {str(name): bool(may) for name, may in await (await db.execute(_RIGHTS)).fetchall()}
        except psycopg.Error as exc:
            if any(refusal in str(exc) for refusal in _REFUSALS):
                raise SettingsError(self._setting, f"Postgres refuses: {_line(exc)}") from exc
            self._note(exc)
            return
        missing = [name for name, must in _NEEDED.items() if must and name not in rights]
        if missing:
            raise SettingsError(
                self._setting,
                f"there is no resonate.{missing[0]}; apply resonate-pg's schema: psql -f resonate.sql",
            )
        if any(must and not rights[name] for name, must in _NEEDED.items()):
            raise SettingsError(
                self._setting, f"{user} may not use resonate-pg's schema; GRANT resonate_worker TO {user}"
            )
        if not rights.get("process_timeouts"):
            log.warning("Postgres: %s may not fire what is due: only pg_cron does, every 5 s", user)

    async def close(self) -> None:
        """End every connection; requests under way fail."""
        self._closed.set()
        await self._requests.stop()

    async def start(self) -> None:
        """Open nothing: the first request does."""

    async def stop(self) -> None:
        """Keep answering; `close` is what ends this network."""

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        """Answer a request, waiting for the database while it is away.

        What was asked for may have been done although the connection broke; the
        protocol's requests can be asked again, as the SDK's own do over HTTP.
        Raises ConnectorError once closed, and for a request that Postgres refuses.
        """
        req, pause = untargeted(req), FIRST_PAUSE
        while True:
            try:
                answer = await self._requests.send(req, headers)
            except ConnectorError as exc:
                if self._closed.is_set() or not _passes(exc.error):
                    raise
                self._note(exc.error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closed.wait(), pause)
                pause = min(2 * pause, LAST_PAUSE)
            else:
                self._back()
                return answer

    async def search(self, state: str | None, tags: dict[str, str], limit: int, cursor: str | None) -> Page:
        """Return a page of the table. Raises NoLists without the right to, ConnectorError."""
        wanted = {
            "now": now_ms(),
            "state": state,
            "tags": Jsonb(tags),
            "cursor": cursor or "",
            "limit": limit + 1,
        }
        try:
            async with self._sessions.connection() as db:
                rows = await (await db.execute(_SEARCH_RARE if RARE in tags else _SEARCH, wanted)).fetchall()
        except psycopg.errors.InsufficientPrivilege as exc:
            raise NoLists(
                "lists need a right: GRANT SELECT ON resonate.promises TO the service's role"
            ) from exc
        except (psycopg.Error, PoolTimeout) as exc:
            raise ConnectorError(exc) from exc
        records = [_record(row) for row in rows[:limit]]
        return records, records[-1].id if len(rows) > limit else None

    async def about(self) -> str:
        """Return Postgres' own version. Raises ConnectorError."""
        try:
            async with self._sessions.connect() as db:
                return f"Postgres {db.info.server_version // 10_000}"
        except psycopg.Error as exc:
            raise ConnectorError(exc) from exc

    async def advice(self) -> list[str]:
        """Return what an administrator should change, a line each."""
        try:
            async with self._sessions.connect() as db:
                found = await (await db.execute(_SET_UP)).fetchone()
        except psycopg.Error as exc:
            return [f"its set-up can't be read: {_line(exc)}"]
        slow, fires, reads, indexes = found or (False, True, True, RARE)
        advice = [
            (slow, "to use its index: ALTER FUNCTION resonate._promise_timed(resonate.promises) RESET ALL"),
            (not fires, "timers wait for pg_cron: GRANT EXECUTE ON FUNCTION resonate.process_timeouts"),
            (not reads, "lists need a right: GRANT SELECT ON resonate.promises TO the service's role"),
            (RARE not in indexes, f"lists by approver want an index: {INDEX}"),
        ]
        return [line for holds, line in advice if holds]

    async def _fire(self) -> None:
        """Fire what is due, until cancelled; without the right to, leave it to pg_cron."""
        while True:
            try:
                async with self._sessions.connection() as db:
                    await db.execute(_FIRE)
            except psycopg.errors.InsufficientPrivilege:
                return
            except (psycopg.Error, PoolTimeout) as exc:
                self._note(exc)
            else:
                self._back()
            await asyncio.sleep(TICK)

    def _note(self, exc: Exception) -> None:
        if not self._away and not self._closed.is_set():
            self._away = True
            log.warning("Postgres does not answer, waiting for it: %s", _line(exc))

    def _back(self) -> None:
        if self._away:
            self._away = False
            log.warning("Postgres answers again")


class PostgresSource:
    """Messages for one process; beside them, what is due is fired where that is asked for."""

    def __init__(self, messages: Source, fire: Callable[[], Any] | None) -> None:
        self._messages = messages
        self._fire = fire
        self._firing: asyncio.Task[None] | None = None

    def unicast(self) -> str:
        """Return the address of this process alone."""
        return self._messages.unicast()

    def resolve_target(self, target: str) -> str:
        """Return the address of any one member of a group."""
        return self._messages.resolve_target(target)

    def recv(self, callback: Callable[[str], None]) -> None:
        """Have messages given to ``callback``; before `start`."""
        self._messages.recv(callback)

    async def start(self) -> None:
        """Take messages from now on."""
        await self._messages.start()
        if self._fire is not None and self._firing is None:
            self._firing = asyncio.create_task(self._fire())

    async def stop(self) -> None:
        """Take no more messages; requests are still answered."""
        if self._firing is not None:
            self._firing.cancel()
            await asyncio.gather(self._firing, return_exceptions=True)
            self._firing = None
        await self._messages.stop()


class _Sessions:
    """The connector's way to Postgres: a pool, and a connection to listen on."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Lend a connection of the pool. Raises psycopg.Error, PoolTimeout."""
        if self._closed:
            raise psycopg.OperationalError("the engine is closed")
        if self._pool is None:
            self._pool = AsyncConnectionPool(
                self._url,
                min_size=1,
                max_size=POOL,
                timeout=PATIENCE,
                kwargs={"autocommit": True, "connect_timeout": PATIENCE},
                open=False,
            )
            await self._pool.open()
        async with self._pool.connection() as db:
            yield db

    @asynccontextmanager
    async def session(self) -> AsyncIterator[PgConn]:
        """Lend a connection to the connector."""
        async with self.connection() as db:
            yield cast("PgConn", db)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """Open a connection for a moment. Raises psycopg.Error at once where the pool would try on."""
        db = await psycopg.AsyncConnection.connect(self._url, autocommit=True, connect_timeout=PATIENCE)
        async with db:
            yield db

    async def dedicated(self) -> PgConn:
        """Open the connection that listens; the connector closes it."""
        db = await psycopg.AsyncConnection.connect(self._url, autocommit=True, connect_timeout=PATIENCE)
        return cast("PgConn", db)

    async def close(self) -> None:
        """Close the pool."""
        self._closed = True
        if self._pool is not None:
            await self._pool.close()


class _Borrowed:
    """Sessions that belong to somebody else, who closes them."""

    def __init__(self, sessions: PgSessions) -> None:
        self.session = sessions.session
        self.dedicated = sessions.dedicated

    async def close(self) -> None:
        """Leave them open."""


def _passes(exc: Exception) -> bool:
    """Tell whether a failure may be gone in a moment: no connection, a deadlock, a full disk."""
    return isinstance(exc, (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout))


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:300]


def _record(row: Sequence[Any]) -> PromiseRecord:
    id_, state, param_headers, param, value_headers, value, tags, timeout_at, created_at, settled_at = row
    return decoded(
        PromiseRecord(
            id=id_,
            state=state,
            param=Value(headers=param_headers or None, data=param),
            value=Value(headers=value_headers or None, data=value),
            tags=tags,
            timeout_at=timeout_at,
            created_at=created_at,
            settled_at=settled_at,
        )
    )
