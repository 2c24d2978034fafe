"""The durable state machine: requests and deadlines applied to one SQLite file, in one thread.

Whatever is handed to `Database.run` together is committed together, and
nothing is answered before it is on disk: WAL, ``synchronous=FULL``. Only what
the next start would undo or do again is left to the next such commit, or to the
system; should the power fail before, the log ends a little earlier. A batch that
fails is rolled back and its jobs are tried one by one, so that one request's
failure is never another's.
"""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from service.engine import debug, retention, rules, schedules
from service.engine.clock import Clock, Steady, now_ms
from service.engine.handlers import handle
from service.engine.lock import FileLock
from service.engine.rows import Rows
from service.engine.schema import NotOurs, TooNew, migrate
from service.engine.transaction import Message, Transaction
from service.engine.wire import Call, Reply, encode_reply
from service.errors import SettingsError

__all__ = ["SETTING", "Database", "Job", "StorageFault", "connect"]

#: The setting that names the engine; errors about its URL name it.
SETTING: Final = "APPROVALS_ENGINE"

#: Deadlines, offers and leases fired in one transaction; more follow in the next.
FIRE_BATCH: Final = 500

#: How long an ``unblock`` waits for its listener. The SDK asks again every
#: minute, so one that stayed away this long has gone, or knows already.
UNBLOCK_KEPT_MS: Final = 24 * 3600 * 1000

_PRAGMAS: Final = (
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = 1",  # macOS: fsync alone stops at the drive's cache.
    "PRAGMA checkpoint_fullfsync = 1",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -32768",
    "PRAGMA wal_autocheckpoint = 2000",
    "PRAGMA journal_size_limit = 67108864",
)


_log = logging.getLogger(__name__)


class StorageFault(Exception):
    """The file could not be read or written: nothing was changed, nothing acknowledged."""


class Job(msgspec.Struct, frozen=True, gc=False):
    """Work for one transaction, and who hears of its outcome after the commit.

    `done` is called with what `work` returned, or with a StorageFault. `lazy`
    work need not be on disk when it is.
    """

    work: Callable[[Transaction], Any]
    done: Callable[[Any], None]
    lazy: bool = False


def own_file(path: Path) -> None:
    """Make a file that only its owner reads, where there is none: people's addresses and words go into it."""
    with contextlib.suppress(OSError):  # what keeps us from that is told by whoever opens it
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def connect(path: Path | None) -> sqlite3.Connection:
    """Open the file for writing in WAL mode, or a database in memory. Raises sqlite3.Error."""
    name = ":memory:" if path is None else str(path)
    if path is not None:
        own_file(path)
    db = sqlite3.connect(name, isolation_level=None, cached_statements=256, check_same_thread=False)
    try:
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if path is not None and mode != "wal":
            raise sqlite3.OperationalError(f"journal mode is {mode}, not wal")
        for pragma in _PRAGMAS:
            db.execute(pragma)
    except sqlite3.Error:
        db.close()
        raise
    return db


class Database:
    """One engine's state. Not for more than one thread at a time.

    `retention_ms` is how long a settled root and what it made are kept.
    `debug_verbs` allows ``debug.*`` and ``resonate:debug_time``.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        clock: Clock = now_ms,
        retention_ms: int = retention.KEPT_MS,
        debug_verbs: bool = False,
    ) -> None:
        self.path = path
        self.clock: Clock = Steady(clock)
        self.debug_verbs = debug_verbs
        #: Off between ``debug.start`` and ``debug.stop``: then nothing fires by itself.
        self.running = True
        self.messages: list[Message] = []
        #: What was settled, by id, for those who watch in this process.
        self.settled: list[str] = []
        #: The last transaction failed: the file can't be written just now.
        self.faulty = False
        self._reaper = retention.Reaper(retention_ms)
        self._lock = None if path is None else FileLock(path)
        self._db: sqlite3.Connection | None = None
        self._rows: Rows | None = None
        self._next_due: int | None = 0
        self._lazy = False
        #: The log ends with commits that were not forced to disk; or so it did when one failed.
        self._unforced = self._doubtful = False

    # -- opening --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file, bring it forward, and free what a process that is gone still held.

        Raises SettingsError in one line that says what to do.
        """
        where = "memory" if self.path is None else str(self.path)
        if self.path is not None and not self.path.parent.is_dir():
            raise SettingsError(SETTING, f"{self.path.parent} is no directory; make it, or name another file")
        if self._lock is not None:
            self._lock.take()
        try:
            self._db = connect(self.path)
            migrate(self._db)
            self._rows = Rows(self._db)
            self._recover()
        except TooNew as exc:
            self.close()
            raise SettingsError(
                SETTING, f"{where} was written by a newer version ({exc}); run that one, or restore a backup"
            ) from exc
        except NotOurs as exc:
            self.close()
            raise SettingsError(
                SETTING, f"{where} is a database of another program; name another file"
            ) from exc
        except sqlite3.Error as exc:
            self.close()
            raise SettingsError(SETTING, f"{where} can't be opened: {explain(exc)}") from exc

    def close(self) -> None:
        """Close the file and let go of its lock. Safe to call twice."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self._db = self._rows = None
        if self._lock is not None:
            self._lock.release()

    def _recover(self) -> None:
        """Offer at once what was in hand when the last process ended: its leases ended with it."""
        assert self._db is not None  # noqa: S101 - open() has just set it
        assert self._rows is not None  # noqa: S101 - likewise
        self._db.execute("BEGIN IMMEDIATE")
        self._rows.free_endless_leases(rules.ENDLESS, self.clock())
        self._db.execute("COMMIT")
        self._next_due = self._rows.next_due()

    # -- running --------------------------------------------------------------------------------------

    def run(self, jobs: Sequence[Job], *, fire: bool = True) -> list[Any]:
        """Do the jobs and whatever is due in one transaction; return each job's outcome.

        An outcome is what the job's work returned, or a StorageFault. Messages
        that follow from it are appended to `messages`, what was settled to `settled`.
        """
        try:
            return self._attempt(jobs, fire=fire)
        except Exception as exc:  # noqa: BLE001 - a defect in one job must not take the others with it
            self._roll_back()
            if not self.faulty:
                # The file's faults explain themselves; anything else is a defect of ours.
                known = isinstance(exc, sqlite3.Error | StorageFault)
                _log.error("engine: nothing was changed: %s", explain(exc), exc_info=None if known else exc)
            self.faulty = True
            if len(jobs) == 1 and not fire:
                fault = StorageFault(explain(exc))
                fault.__cause__ = exc
                return [fault]
        return [outcome for job in jobs for outcome in self.run([job], fire=False)]

    def _attempt(self, jobs: Sequence[Job], *, fire: bool) -> list[Any]:
        db, rows = self._db, self._rows
        if db is None or rows is None:
            raise StorageFault("the engine is closed")
        if self._doubtful:
            self._settle_log(db)
        lazy = bool(jobs) and all(job.lazy for job in jobs)
        if lazy is not self._lazy:
            db.execute(f"PRAGMA synchronous = {'NORMAL' if lazy else 'FULL'}")
            self._lazy = lazy
        tx = Transaction(rows, self.clock(), dispatch=self.running, live=self.running)
        # Deferred, so that reading goes on where nothing can be written; nobody
        # else writes, so the step up to a write lock never has to wait.
        db.execute("BEGIN")
        outcomes = []
        for job in jobs:
            tx.now = self.clock()
            tx.endless = False
            outcomes.append(job.work(tx))
        tx.now = self.clock()
        fired = fire and self.running and self._next_due is not None and self._next_due <= tx.now
        due = (rows.next_due() if self.fire(tx) < FIRE_BATCH else 0) if fired else self._next_due
        db.execute("COMMIT")
        self.faulty, self._unforced = False, lazy
        self._next_due = min((at for at in (due, tx.next_due) if at is not None), default=None)
        self.messages += tx.messages
        self.settled += tx.settled
        return outcomes

    def _roll_back(self) -> None:
        if self._db is not None and self._db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
        # What the failed transaction had armed is not known to be armed.
        self._next_due = 0
        self._doubtful = self._doubtful or self._unforced

    def _settle_log(self, db: sqlite3.Connection) -> None:
        """Put all of the log into the file before anything is written after it.

        A force that failed may have lost what was written before it and never will be again:
        then what comes after is cut off with it when the power fails. Raises StorageFault.
        """
        db.execute("PRAGMA synchronous = FULL")
        self._lazy = False
        if db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise StorageFault("the log could not be written into the file")
        self._doubtful = self._unforced = False

    def answer(self, call: Call, tx: Transaction, *, endless: bool = False) -> bytes:
        """Answer one request inside a transaction. `endless` leases end with this process."""
        tx.endless = endless
        if self.debug_verbs and call.debug_time is not None:
            tx.now = call.debug_time
        if call.kind.startswith("debug."):
            reply = debug.handle(self, tx, call) if self.debug_verbs else Reply(403, "Debug is switched off")
        else:
            reply = handle(tx, call)
        return encode_reply(call.kind, call.corr_id, reply)

    # -- what fires by itself -------------------------------------------------------------------------

    @property
    def next_due(self) -> int | None:
        """The earliest instant at which anything is due, in ms, as far as is known."""
        return self._next_due if self.running else None

    def fire(self, tx: Transaction) -> int:
        """Fire what is due at the transaction's now, promises before leases; return how much it was."""
        rows, now = tx.rows, tx.now
        expired = rows.promises_due(now, FIRE_BATCH)
        for promise, task in expired:
            tx.settle(rules.project(promise, now), task)
        tasks = rows.tasks_due(now, FIRE_BATCH)
        for promise, task in tasks:
            if task is None or rules.project(promise, now).state != "pending":
                continue
            waiting = rules.lapsed(task, now) if task.state == "acquired" else task
            rows.update_task(promise.row, tx.offer(promise, waiting))
        crons = rows.schedules_due(now, FIRE_BATCH)
        for schedule in crons:
            schedules.fire(tx, schedule)
        return max(len(expired), len(tasks), len(crons))

    def sweep(self) -> None:
        """Re-read what is due next, mending an arm that was missed, and reclaim a little of what is old."""
        if self._rows is None or not self.running:
            return
        self._next_due = 0
        self.run([Job(self._reclaim, lambda _: None)])

    def _reclaim(self, tx: Transaction) -> int:
        tx.rows.drop_stale_posts(tx.now - UNBLOCK_KEPT_MS)
        return self._reaper.step(tx)


def explain(exc: Exception) -> str:
    """Return what a failure of the file means, for the person who can mend it."""
    text = str(exc)
    code = getattr(exc, "sqlite_errorcode", None)
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return "the disk is full"
        case sqlite3.SQLITE_READONLY:
            return f"the file can't be written ({text})"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return f"the file is damaged, restore a backup ({text})"
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return f"permission or path ({text})"
        case sqlite3.SQLITE_IOERR:
            return f"the disk failed ({text})"
        case _:
            return text or type(exc).__name__
