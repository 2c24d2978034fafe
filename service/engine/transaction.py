"""One transaction's view of the engine, and the steps that several requests share.

Whatever a promise's end sets off (its task done, its listeners told, its
awaiters woken) happens here, in the transaction that ends it.
"""

from typing import Final

import msgspec

from service.engine import rules
from service.engine.rows import Pair, Rows
from service.engine.rules import Promise, Task
from service.engine.wire import PromiseCreate, execute_message, promise_out, read_value, unblock_message

__all__ = ["Message", "Transaction"]

#: How many of a task's own promises are sent along when it is acquired. To
#: the SDK they are a cache: with them a replay asks the engine nothing.
PRELOAD_LIMIT: Final = 1000

_JSON = msgspec.json.Encoder()


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message to hand over once the transaction is on disk.

    `promise` is the row it is about; `kept` says that it stays in the outbox
    until it was handed over.
    """

    address: str
    text: str
    promise: int
    kept: bool


class Transaction:
    """The tables at one instant, with the messages that are to follow the commit.

    `dispatch` offers tasks as they fall due; `live` delivers messages rather
    than keeping them for ``debug.snap``. `endless` leases end with this
    process, others after their ttl.
    """

    def __init__(self, rows: Rows, now: int, *, dispatch: bool = True, live: bool = True) -> None:
        self.rows = rows
        self.now = now
        self.dispatch = dispatch
        self.live = live
        self.endless = False
        self.messages: list[Message] = []
        #: Promises that can be awaited and were settled, by id.
        self.settled: list[str] = []
        #: The earliest instant that this transaction made something due, in ms.
        self.next_due: int | None = None

    # -- reading --------------------------------------------------------------------------------------

    def read(self, id_: str) -> Pair | None:
        """Return a promise and its task as they read now."""
        pair = self.rows.pair(id_)
        return None if pair is None else self.as_of_now(pair)

    def as_of_now(self, pair: Pair) -> Pair:
        """Return the pair projected."""
        promise = rules.project(pair[0], self.now)
        task = pair[1]
        return promise, (None if task is None else rules.view(task, promise))

    def preload(self, parent: Promise) -> list[object]:
        """Return the records of what a task has made so far."""
        children = self.rows.children(parent.row, PRELOAD_LIMIT)
        return [promise_out(rules.project(child, self.now)) for child in children]

    # -- promises -------------------------------------------------------------------------------------

    def create(self, wanted: PromiseCreate, parent: int | None = None, created_at: int | None = None) -> Pair:
        """Store a promise that was not there, and its task if it has a target.

        `created_at` in ms, where that is not now: a schedule's occurrence is
        born at its instant, however late it is fired.
        """
        born = self.now if created_at is None else created_at
        promise = self._insert(wanted, parent, born)
        if promise.target is None:
            return promise, None
        delay = wanted.tags.get("resonate:delay", "")
        until = min(int(delay), rules.ENDLESS - 1) if delay.isascii() and delay.isdigit() else 0
        task = rules.task_birth(promise, until, born)
        if task.state == "pending":
            task = self._offer_if_due(promise, task)
        self.rows.insert_task(promise.row, task)
        return promise, task

    def create_acquired(self, wanted: PromiseCreate, pid: str, ttl: int) -> tuple[Promise, Task]:
        """Store a promise that was not there, its task already leased."""
        promise = self._insert(wanted, None, self.now)
        task = rules.task_birth(promise, 0, self.now)
        if task.state == "pending":
            task = self.lease(task, pid, ttl)
        self.rows.insert_task(promise.row, task)
        return promise, task

    def _insert(self, wanted: PromiseCreate, parent: int | None, born: int) -> Promise:
        has = rules.traits(wanted.tags)
        tags = _JSON.encode(wanted.tags).decode()
        value = read_value(wanted.param)
        promise = self.rows.insert_promise(
            rules.birth(wanted.id, wanted.timeout_at, value, tags, has, parent, born)
        )
        searched = [tag for tag in wanted.tags.items() if not tag[0].startswith("resonate:")]
        if searched:
            self.rows.index_tags(promise.id, searched)
        if promise.external and promise.state == "pending":
            self.arm(promise.timeout_at)
        return promise

    def settle(self, promise: Promise, task: Task | None) -> None:
        """Store a promise's end with all that follows from it.

        `promise` is settled already, `task` as it was. An awaiter past its own
        deadline is not woken: it is as good as settled itself.
        """
        self.rows.settle(promise)
        if task is not None and task.state != "fulfilled":
            self.rows.update_task(promise.row, rules.fulfilled(task))
        if not promise.external:
            return
        self.settled.append(promise.id)
        for address in self.rows.take_listeners(promise.row):
            self.rows.post(promise.row, "unblock", address, 0, self.now)
            if self.live:
                self.messages.append(
                    Message(address, unblock_message(promise_out(promise)), promise.row, kept=True)
                )
        for awaiter in self.rows.take_callbacks(promise.row):
            pair = self.rows.pair_at(awaiter)
            if pair is None or pair[1] is None:
                continue
            sleeper, its_task = self.as_of_now(pair)
            if its_task is None or its_task.state == "fulfilled":
                continue
            woken = rules.resumed(its_task, self.now)
            if its_task.state == "suspended":
                woken = self._offer_if_due(sleeper, woken)
            self.rows.update_task(sleeper.row, woken)

    # -- tasks ----------------------------------------------------------------------------------------

    def lease(self, task: Task, pid: str, ttl: int) -> Task:
        """Return the pending task leased to ``pid``."""
        expires_at = self._lease_end(ttl)
        self.arm(expires_at)
        return rules.acquired(task, pid, ttl, expires_at)

    def extend(self, task: Task) -> Task:
        """Return the acquired task with its lease counted from now."""
        if task.due is not None and task.due >= rules.ENDLESS:
            return task
        expires_at = min(self.now + (task.ttl or 0), rules.ENDLESS - 1)
        self.arm(expires_at)
        return rules.heartbeaten(task, expires_at)

    def _lease_end(self, ttl: int) -> int:
        return rules.ENDLESS if self.endless else min(self.now + ttl, rules.ENDLESS - 1)

    def put_pending(self, promise: Promise, task: Task) -> None:
        """Store a task that became pending, offering it if that is due."""
        self.rows.update_task(promise.row, self._offer_if_due(promise, task))

    def _offer_if_due(self, promise: Promise, task: Task) -> Task:
        # A missed occurrence of a schedule can be past its own deadline already.
        alive = promise.timeout_at > self.now
        if self.dispatch and alive and task.due is not None and task.due <= self.now:
            task = self.offer(promise, task)
        if task.due is not None:
            self.arm(task.due)
        return task

    def offer(self, promise: Promise, task: Task) -> Task:
        """Send a pending task's message; return the task with its next offer set."""
        target = promise.target or ""
        if self.live:
            self.messages.append(
                Message(target, execute_message(promise.id, task.version), promise.row, kept=False)
            )
        else:
            self.rows.post(promise.row, "execute", target, task.version, self.now)
        return rules.offered(task, self.now)

    def arm(self, due: int) -> None:
        """Note an instant at which something will be due."""
        if due < rules.ENDLESS and (self.next_due is None or due < self.next_due):
            self.next_due = due
