"""The one thread that writes: it commits together whatever came in while the last commit ran.

It sleeps until there is work or the next deadline, to the millisecond, and
wakes once a second besides, which mends an arm that was missed and a wall
clock that was set.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from service.engine.database import Database, Job, StorageFault
from service.engine.transaction import Message
from service.errors import SettingsError

__all__ = ["Outcomes", "Writer"]

#: Jobs in one transaction, so that a burst does not make its first wait for its last.
BATCH: Final = 256

#: Seconds between two looks at what is due when nothing happens.
SWEEP_S: Final = 1.0

#: Seconds between two slices of reclaiming.
RECLAIM_S: Final = 10.0

#: What a commit brought: each job with its outcome, the messages that follow, and what was settled.
type Outcomes = Callable[[Sequence[tuple[Job, Any]], Sequence[Message], Sequence[str]], None]


class Writer:
    """Runs a database in a thread of its own. `outcomes` is called in that thread."""

    def __init__(self, database: Database, outcomes: Outcomes) -> None:
        self._database = database
        self._outcomes = outcomes
        self._queue: deque[Job] = deque()
        self._in_hand: list[Job] = []
        self._wake = threading.Condition()
        self._closing = False
        self._nudged = False
        self._opened = threading.Event()
        self._failure: SettingsError | None = None
        self._thread = threading.Thread(target=self._run, name="engine-writer", daemon=True)

    def start(self) -> None:
        """Open the database and begin; raises what `Database.open` raises. Blocks meanwhile."""
        self._thread.start()
        self._opened.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    @property
    def closed(self) -> bool:
        """Whether nothing more is done: it was closed, or a defect has ended its thread."""
        return self._closing

    def submit(self, job: Job) -> bool:
        """Queue a job; False once closed."""
        with self._wake:
            if self._closing:
                return False
            self._queue.append(job)
            self._wake.notify()
            return True

    def later(self, job: Job) -> None:
        """Queue a job that may wait for the next commit there is, or for the sweep."""
        with self._wake:
            self._queue.append(job)

    def nudge(self) -> None:
        """Look at the clock again: a test has moved it."""
        with self._wake:
            self._nudged = True
            self._wake.notify()

    def close(self) -> None:
        """Finish what is queued, close the database, and end the thread. Safe to call twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._database.open()
        except SettingsError as exc:
            self._failure = exc
            return
        finally:
            self._opened.set()
        try:
            self._loop()
        finally:
            self._database.close()
            self._refuse_queued()

    def _refuse_queued(self) -> None:
        """Answer what is still asked: even a defect that ends the thread must leave nobody waiting."""
        with self._wake:
            self._closing = True
            jobs = [*self._in_hand, *self._queue]
            self._queue.clear()
        if jobs:
            self._outcomes([(job, StorageFault("the engine is closed")) for job in jobs], (), ())

    def _loop(self) -> None:
        swept = time.monotonic()
        while True:
            with self._wake:
                patience = self._patience()
                if not (self._queue or self._closing or self._nudged) and patience > 0:
                    self._wake.wait(patience)
                self._nudged = False
                jobs = [self._queue.popleft() for _ in range(min(len(self._queue), BATCH))]
                if self._closing and not jobs:
                    return
            self._in_hand = jobs
            self._tell(list(zip(jobs, self._database.run(jobs), strict=True)))
            self._in_hand = []
            if time.monotonic() - swept >= RECLAIM_S:
                self._database.sweep()
                self._tell([])
                swept = time.monotonic()

    def _tell(self, outcomes: Sequence[tuple[Job, Any]]) -> None:
        database = self._database
        messages, settled = database.messages, database.settled
        database.messages, database.settled = [], []
        if outcomes or messages or settled:
            self._outcomes(outcomes, messages, settled)

    def _patience(self) -> float:
        """Return how long nothing needs doing, in seconds."""
        due = self._database.next_due
        if due is None or self._database.faulty:
            return SWEEP_S
        return min(max((due - self._database.clock()) / 1000, 0.0), SWEEP_S)
