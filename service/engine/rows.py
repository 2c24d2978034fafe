# ruff: noqa: S608 - statements are put together from this module's constants; values are always bound
"""Records in and out of the tables: every statement of the engine's hot path.

No rule lives here. A `Rows` belongs to the thread and the transaction of the
connection it wraps.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from service.engine.rules import Promise, Task
from service.engine.wire import ScheduleOut

__all__ = ["Pair", "Reach", "Rows"]

#: A promise and the task behind it, if it has one.
type Pair = tuple[Promise, Task | None]

#: What a listener answers to: a JSON list of addresses, and one of how others begin.
type Reach = tuple[str, str]

_P: Final = (
    "p.row, p.id, p.state, p.param, p.value, p.tags, p.external, p.timer, p.target,"
    " p.timeout_at, p.created_at, p.settled_at, p.parent"
)
_T: Final = "t.state, t.version, t.pid, t.ttl, t.due, t.resumes, t.offers"
_PAIR: Final = f"SELECT {_P}, {_T} FROM promises p LEFT JOIN tasks t ON t.row = p.row"
_WIDTH: Final = 13

_BY_ID: Final = f"{_PAIR} WHERE p.id = ?"
_BY_ROW: Final = f"{_PAIR} WHERE p.row = ?"
_CHILDREN: Final = f"SELECT {_P} FROM promises p WHERE p.parent = ? ORDER BY p.row LIMIT ?"
_PROMISES_DUE: Final = (
    f"{_PAIR} WHERE p.external = 1 AND p.state = 'pending' AND p.timeout_at <= ?"
    " ORDER BY p.timeout_at LIMIT ?"
)
_TASKS_DUE: Final = (
    f"SELECT {_P}, {_T} FROM tasks t JOIN promises p ON p.row = t.row"
    " WHERE t.due IS NOT NULL AND t.due <= ? ORDER BY t.due LIMIT ?"
)
#: An address is one of these, or begins with one of those; both are JSON lists.
_REACHES: Final = (
    "({0} IN (SELECT value FROM json_each(?1))"
    " OR EXISTS (SELECT 1 FROM json_each(?2) WHERE substr({0}, 1, length(value)) = value))"
)
_TASKS_WAITING: Final = (
    f"SELECT {_P}, {_T} FROM tasks t JOIN promises p ON p.row = t.row"
    f" WHERE t.due IS NOT NULL AND t.state = 'pending' AND {_REACHES.format('p.target')}"
    " ORDER BY t.due LIMIT ?3"
)
_UNBLOCKS_WAITING: Final = (
    f"SELECT {_P}, o.address FROM outbox o JOIN promises p ON p.row = o.promise"
    f" WHERE o.kind = 'unblock' AND {_REACHES.format('o.address')} LIMIT ?3"
)
_INSERT_PROMISE: Final = "INSERT INTO promises VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SETTLE: Final = "UPDATE promises SET state = ?, value = ?, settled_at = ? WHERE row = ?"
_INSERT_TASK: Final = "INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE_TASK: Final = (
    "UPDATE tasks SET state = ?, version = ?, pid = ?, ttl = ?, due = ?, resumes = ?, offers = ?"
    " WHERE row = ?"
)
_NEXT_DUE: Final = (
    "SELECT min(timeout_at) FROM promises WHERE external = 1 AND state = 'pending'"
    " UNION ALL SELECT min(due) FROM tasks WHERE due IS NOT NULL"
    " UNION ALL SELECT min(next_run_at) FROM schedules"
)
_SCHEDULE: Final = (
    "id, cron, promise_id, promise_timeout, promise_param, promise_tags, created_at, next_run_at, last_run_at"
)


def _pair(row: tuple[Any, ...]) -> Pair:
    promise = Promise(*row[:_WIDTH])
    return promise, (None if row[_WIDTH] is None else Task(*row[_WIDTH:]))


class Rows:
    """The tables, as records."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        #: Any other statement, for the modules that own one.
        self.execute = db.execute
        self._run = db.execute

    # -- promises and tasks ---------------------------------------------------------------------------

    def pair(self, id_: str) -> Pair | None:
        """Return the promise of that id and its task."""
        row = self._run(_BY_ID, (id_,)).fetchone()
        return None if row is None else _pair(row)

    def pair_at(self, row_number: int) -> Pair | None:
        """Return the promise in that row and its task."""
        row = self._run(_BY_ROW, (row_number,)).fetchone()
        return None if row is None else _pair(row)

    def insert_promise(self, promise: Promise) -> Promise:
        """Store a new promise; return it with its row."""
        p = promise
        cursor = self._run(
            _INSERT_PROMISE,
            (p.id, p.state, p.param, p.value, p.tags, p.external, p.timer, p.target,
             p.timeout_at, p.created_at, p.settled_at, p.parent),
        )  # fmt: skip
        return msgspec.structs.replace(promise, row=cursor.lastrowid)

    def settle(self, promise: Promise) -> None:
        """Store what a promise became."""
        self._run(_SETTLE, (promise.state, promise.value, promise.settled_at, promise.row))

    def insert_task(self, row: int, task: Task) -> None:
        """Store a new promise's task."""
        t = task
        self._run(_INSERT_TASK, (row, t.state, t.version, t.pid, t.ttl, t.due, t.resumes, t.offers))

    def update_task(self, row: int, task: Task) -> None:
        """Store what a task became."""
        t = task
        self._run(_UPDATE_TASK, (t.state, t.version, t.pid, t.ttl, t.due, t.resumes, t.offers, row))

    def children(self, parent: int, limit: int) -> list[Promise]:
        """Return what a task made, in the order it made it."""
        return [Promise(*row) for row in self._run(_CHILDREN, (parent, limit))]

    # -- tags that can be searched --------------------------------------------------------------------

    def index_tags(self, id_: str, tags: Iterable[tuple[str, str]]) -> None:
        """Make a promise findable by these tags."""
        self._db.executemany(
            "INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", [(name, value, id_) for name, value in tags]
        )

    # -- subscriptions --------------------------------------------------------------------------------

    def add_callback(self, awaited: int, awaiter: int) -> None:
        """Note that a task awaits a promise; again is the same."""
        self._run("INSERT OR IGNORE INTO callbacks VALUES (?, ?)", (awaited, awaiter))

    def take_callbacks(self, awaited: int) -> list[int]:
        """Remove and return the rows of who awaits a promise."""
        rows = self._run("SELECT awaiter FROM callbacks WHERE awaited = ?", (awaited,)).fetchall()
        if rows:
            self._run("DELETE FROM callbacks WHERE awaited = ?", (awaited,))
        return [row[0] for row in rows]

    def add_listener(self, awaited: int, address: str) -> None:
        """Note an address to tell when a promise is settled; again is the same."""
        self._run("INSERT OR IGNORE INTO listeners VALUES (?, ?)", (awaited, address))

    def take_listeners(self, awaited: int) -> list[str]:
        """Remove and return the addresses to tell about a promise."""
        rows = self._run("SELECT address FROM listeners WHERE awaited = ?", (awaited,)).fetchall()
        if rows:
            self._run("DELETE FROM listeners WHERE awaited = ?", (awaited,))
        return [row[0] for row in rows]

    # -- messages -------------------------------------------------------------------------------------

    def post(self, promise: int, kind: str, address: str, version: int, now: int) -> None:
        """Keep a message until it is handed over; a later version of it replaces it."""
        self._run(
            "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?)", (promise, kind, address, version, now)
        )

    def drop_post(self, promise: int, kind: str, address: str) -> None:
        """Forget a message that was handed over."""
        self._run(
            "DELETE FROM outbox WHERE promise = ? AND kind = ? AND address = ?", (promise, kind, address)
        )

    def drop_stale_posts(self, before: int) -> None:
        """Forget messages that nobody has fetched since ``before``."""
        self._run("DELETE FROM outbox WHERE since < ?", (before,))

    def unblocks_waiting(self, listener: Reach, limit: int) -> list[tuple[Promise, str]]:
        """Return the settled promises that a listener has not been told about, and by which address."""
        rows = self._run(_UNBLOCKS_WAITING, (*listener, limit))
        return [(Promise(*row[:_WIDTH]), row[_WIDTH]) for row in rows]

    # -- what is due ----------------------------------------------------------------------------------

    def promises_due(self, now: int, limit: int) -> list[Pair]:
        """Return external promises past their deadline and not yet stored so."""
        return [_pair(row) for row in self._run(_PROMISES_DUE, (now, limit)).fetchall()]

    def tasks_due(self, now: int, limit: int) -> list[Pair]:
        """Return tasks whose offer or lease end is due."""
        return [_pair(row) for row in self._run(_TASKS_DUE, (now, limit)).fetchall()]

    def tasks_waiting(self, listener: Reach, limit: int) -> list[Pair]:
        """Return pending tasks that a listener may be given."""
        return [_pair(row) for row in self._run(_TASKS_WAITING, (*listener, limit)).fetchall()]

    def free_endless_leases(self, endless: int, now: int) -> int:
        """Make every task held by a process that is gone pending and due; return how many."""
        return self._run(
            "UPDATE tasks SET state = 'pending', pid = NULL, ttl = NULL, due = ?, offers = 0"
            " WHERE due IS NOT NULL AND due >= ? AND state = 'acquired'",
            (now, endless),
        ).rowcount

    def next_due(self) -> int | None:
        """Return the earliest instant at which anything is due, in ms."""
        dues: Iterator[int | None] = (row[0] for row in self._run(_NEXT_DUE))
        return min((due for due in dues if due is not None), default=None)

    # -- schedules ------------------------------------------------------------------------------------

    def schedule(self, id_: str) -> ScheduleOut | None:
        """Return the schedule of that id."""
        row = self._run(f"SELECT {_SCHEDULE} FROM schedules WHERE id = ?", (id_,)).fetchone()
        return None if row is None else _schedule(row)

    def schedules_due(self, now: int, limit: int) -> list[ScheduleOut]:
        """Return schedules that have an occurrence to create."""
        rows = self._run(
            f"SELECT {_SCHEDULE} FROM schedules WHERE next_run_at <= ? ORDER BY next_run_at LIMIT ?",
            (now, limit),
        )
        return [_schedule(row) for row in rows.fetchall()]

    def put_schedule(self, s: ScheduleOut) -> None:
        """Store a schedule, new or changed."""
        self._run(
            "INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (s.id, s.cron, s.promise_id, s.promise_timeout, bytes(s.promise_param),
             bytes(s.promise_tags).decode(), s.created_at, s.next_run_at, s.last_run_at),
        )  # fmt: skip

    def delete_schedule(self, id_: str) -> bool:
        """Forget a schedule; say whether there was one."""
        return self._run("DELETE FROM schedules WHERE id = ?", (id_,)).rowcount > 0


def _schedule(row: tuple[Any, ...]) -> ScheduleOut:
    id_, cron, promise_id, timeout, param, tags, *rest = row
    return ScheduleOut(id_, cron, promise_id, timeout, Raw(param), Raw(tags.encode()), *rest)
