"""The embedded engine: a database, its writer, and everyone attached to it in this process.

Calls come in on the event loop, are done in the writer's thread, and are
answered on the loop after their commit; so are the messages that follow.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from resonate_base import ConnectorError

from service.engine import retention, rules
from service.engine.backup import backup
from service.engine.clock import Clock, now_ms
from service.engine.database import Database, Job, StorageFault, explain
from service.engine.delivery import Deliver, Listener, Switchboard
from service.engine.handlers import handle
from service.engine.rows import Reach, Rows
from service.engine.rules import Promise
from service.engine.search import KINDS, search
from service.engine.transaction import Message, Transaction
from service.engine.wire import (
    Call,
    Malformed,
    Reply,
    encode_reply,
    promise_out,
    read_call,
    unblock_message,
)
from service.engine.writer import Writer

__all__ = ["EmbeddedEngine"]

#: Tasks offered to a listener when it attaches; more come with their retry.
ATTACH_BATCH: Final = 10_000

#: Seconds until a release that failed with the disk is tried again.
OWED_S: Final = 1.0

#: From callers in this process these are lost with nothing: the power that takes them
#: takes the caller, and the next start frees the lease and has the work done again.
_LEASING: Final = frozenset({"task.acquire", "task.suspend", "task.release"})
#: So is the birth of what runs under the lease, which comes in a task.fence. Values are
#: base64, so that this is nowhere else.
_LOCAL: Final = '"resonate:scope":"local"'


def _not_kept() -> None:
    """Note nothing: the task itself remembers that it is to be offered again."""


class EmbeddedEngine:
    """Durable promises on a SQLite file, for any number of connections in this process.

    `start` and everything else belong to one event loop. From `close` on each
    request is refused with ConnectorError.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock = now_ms,
        retention_ms: int = retention.KEPT_MS,
        debug_verbs: bool = False,
    ) -> None:
        self.path = path
        self.debug_verbs = debug_verbs
        self._database = Database(path, clock=clock, retention_ms=retention_ms, debug_verbs=debug_verbs)
        self._writer = Writer(self._database, self._committed)
        self._switchboard = Switchboard()
        self._watches: dict[str, set[asyncio.Future[None]]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="engine-reader")
        self._reading: sqlite3.Connection | None = None
        self._glancing: sqlite3.Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    # -- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the file; SettingsError says in one line why that can't be. Ready when it returns."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._writer.start)

    async def close(self) -> None:
        """Answer what was asked, then close the file. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        # The writer's connection closes last, since only one that writes puts the log into the file.
        await asyncio.to_thread(self._reader.shutdown)
        for connection in (self._reading, self._glancing):
            if connection is not None:
                connection.close()
        await asyncio.to_thread(self._writer.close)
        # The last outcomes were posted to the loop before the thread ended.
        await asyncio.sleep(0)

    # -- requests -------------------------------------------------------------------------------------

    async def send(self, request: str | bytes, *, endless: bool) -> bytes:
        """Answer one request of the protocol.

        `endless` leases, for callers in this process, end with it rather than
        after their ttl. Raises ConnectorError if the file failed or the engine
        is closed: then nothing was changed.
        """
        try:
            call = read_call(request)
        except Malformed as exc:
            return encode_reply("error", "", Reply(400, str(exc)))
        if call.kind in KINDS:
            return await self._search(call)
        if call.kind == "promise.get":
            now = self._reading_time(call)
            reply = self._glance(
                lambda rows: handle(Transaction(rows, now, dispatch=False, live=False), call)
            )
            return encode_reply(call.kind, call.corr_id, reply)
        lazy = endless and (call.kind in _LEASING or (call.kind == "task.fence" and _LOCAL in str(request)))
        outcome = await self._do(partial(self._database.answer, call, endless=endless), lazy=lazy)
        if isinstance(outcome, StorageFault):
            if endless and call.kind == "task.release":
                self._owe(call)
            raise ConnectorError(outcome)
        answer: bytes = outcome
        return answer

    async def _do(self, work: Callable[[Transaction], Any], *, lazy: bool = False) -> Any:
        """Do something in a transaction; return what it returned, or a StorageFault."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._closed or not self._writer.submit(Job(work, partial(_set, future), lazy)):
            return StorageFault("the engine is closed")
        return await future

    async def do[T](self, work: Callable[[Transaction], T]) -> T:
        """Do something in a transaction; return its result once it is on disk. Raises ConnectorError."""
        outcome = await self._do(work)
        if isinstance(outcome, StorageFault):
            raise ConnectorError(outcome)
        done: T = outcome
        return done

    def _owe(self, call: Call) -> None:
        """Try a release again until it is on disk: the SDK asks once, and nobody else can end the lease."""

        def tried(outcome: Any) -> None:
            if isinstance(outcome, StorageFault) and not self._closed:
                self._owe(call)

        job = Job(partial(self._database.answer, call, endless=True), tried)
        asyncio.get_running_loop().call_later(OWED_S, self._writer.submit, job)

    def look(self, id_: str) -> Promise | None:
        """Return one promise as it was last committed and reads now, or None. Raises ConnectorError."""
        pair = self._glance(lambda rows: rows.pair(id_))
        return None if pair is None else rules.project(pair[0], self._database.clock())

    def watch(self, id_: str) -> asyncio.Future[None]:
        """Return a future that is done once a promise that can be awaited is settled and that is on disk.

        Nothing of it is written, since whoever watches is here. To stop watching, cancel it.
        """
        watch: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watches.setdefault(id_, set()).add(watch)
        watch.add_done_callback(partial(self._unwatch, id_))
        return watch

    def _unwatch(self, id_: str, watch: asyncio.Future[None]) -> None:
        watches = self._watches.get(id_, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(id_, None)

    def _glance[T](self, read: Callable[[Rows], T]) -> T:
        """Read on the loop: by its key a promise takes microseconds, and two changes of threads more."""
        self._require_open()
        try:
            if self._glancing is None:
                self._glancing = self._connect()
            return read(Rows(self._glancing))
        except sqlite3.Error as exc:
            raise ConnectorError(StorageFault(explain(exc))) from exc

    async def _search(self, call: Call) -> bytes:
        self._require_open()
        now = self._reading_time(call)
        loop = asyncio.get_running_loop()
        try:
            reply = await loop.run_in_executor(self._reader, self._read, call, now)
        except sqlite3.Error as exc:
            raise ConnectorError(StorageFault(explain(exc))) from exc
        return encode_reply(call.kind, call.corr_id, reply)

    def _read(self, call: Call, now: int) -> Reply:
        if self._reading is None:
            self._reading = self._connect()
        return search(self._reading, call, now)

    def _require_open(self) -> None:
        if self._closed or self._writer.closed:
            raise ConnectorError(StorageFault("the engine is closed"))

    def _reading_time(self, call: Call) -> int:
        return call.debug_time if self.debug_verbs and call.debug_time is not None else self._database.clock()

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self.path.resolve().as_uri()}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    # -- messages -------------------------------------------------------------------------------------

    async def attach(self, group: str, pid: str, deliver: Deliver) -> Listener:
        """Have messages for the group and pid delivered, first of all those that wait for it."""
        listener = Listener(group, pid, deliver)
        self._switchboard.attach(listener)
        try:
            waiting = await self._do(partial(self._waiting, _reach(listener)))
        except asyncio.CancelledError:
            self._switchboard.detach(listener)
            raise
        self._deliver_all(waiting)
        return listener

    def detach(self, listener: Listener, *, lost: bool = False) -> None:
        """Deliver nothing more to a listener; again is the same.

        `lost` says that what was sent to it may not have arrived: the group's
        pending tasks are then offered to whoever is left of it. A double offer
        is harmless, a lost one would wait for its retry.
        """
        self._switchboard.detach(listener)
        if lost and self._switchboard.find(f"poll://any@{listener.group}") is not None:
            self._writer.submit(Job(partial(self._waiting, _reach(listener)), self._deliver_all))

    def nudge(self) -> None:
        """Look at the clock again: a test has moved it."""
        self._writer.nudge()

    async def backup(self, target: Path) -> None:
        """Copy the file as it is now to ``target``, while everything goes on.

        Raises OSError or sqlite3.Error; what was at ``target`` is then still there.
        """
        await asyncio.to_thread(backup, self.path, target)

    def _waiting(self, listener: Reach, tx: Transaction) -> list[Message]:
        """Return what a new listener has missed, offering each pending task once more."""
        for promise, task in tx.rows.tasks_waiting(listener, ATTACH_BATCH):
            if task is None or rules.project(promise, tx.now).state != "pending":
                continue
            delayed = task.offers == 0 and task.due is not None and task.due > tx.now
            if not delayed:
                tx.rows.update_task(promise.row, tx.offer(promise, task))
        return [
            Message(address, unblock_message(promise_out(promise)), promise.row, kept=True)
            for promise, address in tx.rows.unblocks_waiting(listener, ATTACH_BATCH)
        ]

    def _committed(
        self, outcomes: Sequence[tuple[Job, Any]], messages: Sequence[Message], settled: Sequence[str]
    ) -> None:
        """Hand a commit's outcomes to the loop; in the writer's thread."""
        loop = self._loop
        if loop is not None:
            # A loop that was closed under us has nobody left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._announce, outcomes, messages, settled)

    def _announce(
        self, outcomes: Sequence[tuple[Job, Any]], messages: Sequence[Message], settled: Sequence[str]
    ) -> None:
        # Whoever waits for a promise hears of it before whoever settled it goes on.
        for id_ in settled:
            for watch in self._watches.pop(id_, ()):
                _set(watch, None)
        for message in messages:
            self._deliver(message)
        for job, outcome in outcomes:
            job.done(outcome)

    def _deliver_all(self, messages: Sequence[Message] | StorageFault) -> None:
        for message in () if isinstance(messages, StorageFault) else messages:
            self._deliver(message)

    def _deliver(self, message: Message) -> None:
        listener = self._switchboard.find(message.address)
        if listener is not None:
            listener.deliver(message.text, partial(self._forget, message) if message.kept else _not_kept)

    def _forget(self, message: Message) -> None:
        def drop(tx: Transaction) -> None:
            tx.rows.drop_post(message.promise, "unblock", message.address)

        self._writer.later(Job(drop, _ignore))


def _reach(listener: Listener) -> Reach:
    names, beginnings = listener.addresses(), listener.beginnings()
    return msgspec.json.encode(names).decode(), msgspec.json.encode(beginnings).decode()


def _ignore(_: Any) -> None:
    """Take note of no outcome."""


def _set(future: asyncio.Future[Any], outcome: Any) -> None:
    if not future.done():
        future.set_result(outcome)
