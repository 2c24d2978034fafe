"""The abstract machine, as small as it can be: promises and tasks in dictionaries.

Written from ``spec/02-abstract`` of resonatehq/resonate-specification and
not from our rules, so that the two can be held against each other. It has no
storage, no messages and no values; a timer with a target has no task here
either, as in our named deviation.
"""

from dataclasses import dataclass, field

SETTABLE = ("resolved", "rejected", "rejected_canceled")


@dataclass
class P:
    """A promise."""

    state: str
    timeout_at: int
    timer: bool
    target: bool
    external: bool
    callbacks: set[str] = field(default_factory=set)


@dataclass
class T:
    """A task."""

    state: str
    version: int
    pid: str = ""
    ttl: int = 0
    expires_at: int = 0
    resumes: set[str] = field(default_factory=set)


class Model:
    """Answers each request with the status that the specification gives it."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.promises: dict[str, P] = {}
        self.tasks: dict[str, T] = {}

    # -- views ----------------------------------------------------------------------------------------

    def state(self, id_: str) -> str:
        """A promise's state as it reads now."""
        p = self.promises[id_]
        if p.state == "pending" and p.timeout_at <= self.now:
            return "resolved" if p.timer else "rejected_timedout"
        return p.state

    def task(self, id_: str) -> tuple[str, int, int] | None:
        """A task's state, version and resumes as they read now."""
        t = self.tasks.get(id_)
        if t is None:
            return None
        if self.state(id_) != "pending":
            return "fulfilled", t.version, 0
        return t.state, t.version, len(t.resumes)

    def held(self, id_: str, version: int) -> int:
        """Return 0 if the task is held at that version, or the refusal."""
        if id_ not in self.tasks:
            return 404
        t = self.tasks[id_]
        return 0 if self.task(id_) == ("acquired", version, len(t.resumes)) else 409

    # -- steps ----------------------------------------------------------------------------------------

    def born(self, id_: str, kind: str, timeout_at: int) -> None:
        """Make a promise, and its task if its kind has one."""
        dead = timeout_at <= self.now
        timer = kind in {"timer", "sleep"}
        state = ("resolved" if timer else "rejected_timedout") if dead else "pending"
        self.promises[id_] = P(state, timeout_at, timer, kind == "target", kind != "internal")
        if kind == "target":
            self.tasks[id_] = T("fulfilled" if dead else "pending", 0)

    def end(self, id_: str, state: str) -> None:
        """Settle a promise for good, with all that follows."""
        p = self.promises[id_]
        p.state = state
        if id_ in self.tasks:
            self.tasks[id_].state = "fulfilled"
        for awaiter in p.callbacks:
            t = self.tasks[awaiter]
            if self.state(awaiter) != "pending" or t.state == "fulfilled":
                continue
            t.resumes.add(id_)
            if t.state == "suspended":
                t.state = "pending"
        p.callbacks = set()

    def fire(self) -> None:
        """Do what the clock does."""
        for id_, p in self.promises.items():
            if p.external and p.state == "pending" and p.timeout_at <= self.now:
                self.end(id_, self.state(id_))
        for t in self.tasks.values():
            if t.state == "acquired" and t.expires_at <= self.now:
                t.state = "pending"

    # -- requests -------------------------------------------------------------------------------------

    def create(self, id_: str, kind: str, timeout_at: int) -> int:
        """``promise.create``."""
        if id_ not in self.promises:
            self.born(id_, kind, timeout_at)
        return 200

    def settle(self, id_: str, state: str) -> int:
        """``promise.settle``."""
        if state not in SETTABLE:
            return 400
        if id_ not in self.promises:
            return 404
        if self.state(id_) == "pending":
            self.end(id_, state)
        return 200

    def callback(self, awaited: str, awaiter: str) -> int:
        """``promise.register_callback``."""
        if awaited == awaiter:
            return 400
        if awaited not in self.promises:
            return 404
        if awaiter not in self.tasks or not self.promises[awaited].external:
            return 422
        if self.state(awaited) == self.state(awaiter) == "pending":
            self.promises[awaited].callbacks.add(awaiter)
        return 200

    def task_create(self, id_: str, kind: str, timeout_at: int, pid: str, ttl: int) -> int:
        """``task.create``."""
        if kind != "target":
            return 400
        if id_ not in self.promises:
            self.born(id_, kind, timeout_at)
            if self.tasks[id_].state == "pending":
                self.lease(id_, pid, ttl)
            return 200
        if id_ not in self.tasks:
            return 422
        match self.task(id_):
            case ("fulfilled", *_):
                return 200
            case ("pending", *_):
                self.lease(id_, pid, ttl)
                return 200
            case _:
                return 409

    def lease(self, id_: str, pid: str, ttl: int) -> None:
        """Issue the next version."""
        version = self.tasks[id_].version + 1
        self.tasks[id_] = T("acquired", version, pid, ttl, self.now + ttl)

    def acquire(self, id_: str, version: int, pid: str, ttl: int) -> int:
        """``task.acquire``."""
        if id_ not in self.tasks:
            return 404
        now = self.task(id_)
        if now is None or now[0] != "pending" or now[1] != version:
            return 409
        self.lease(id_, pid, ttl)
        return 200

    def heartbeat(self, id_: str, version: int, pid: str) -> int:
        """``task.heartbeat``."""
        t = self.tasks.get(id_)
        if t is not None and not self.held(id_, version) and t.pid == pid:
            t.expires_at = self.now + t.ttl
        return 200

    def suspend(self, id_: str, version: int, awaited: list[str]) -> int:
        """``task.suspend``."""
        if not awaited or id_ in awaited or len(set(awaited)) != len(awaited):
            return 400
        refusal = self.held(id_, version)
        if refusal:
            return refusal
        if any(one not in self.promises or not self.promises[one].external for one in awaited):
            return 422
        t = self.tasks[id_]
        t.resumes = set()
        if any(self.state(one) != "pending" for one in awaited):
            return 300
        for one in awaited:
            self.promises[one].callbacks.add(id_)
        t.state = "suspended"
        return 200

    def fulfill(self, id_: str, version: int, state: str) -> int:
        """``task.fulfill``."""
        if state not in SETTABLE:
            return 400
        refusal = self.held(id_, version)
        if refusal:
            return refusal
        self.end(id_, state)
        return 200

    def release(self, id_: str, version: int) -> int:
        """``task.release``."""
        refusal = self.held(id_, version)
        if refusal:
            return refusal
        self.tasks[id_].state = "pending"
        return 200

    def fence(self, id_: str, version: int, inner: str, state: str) -> int:
        """``task.fence`` around a settle."""
        if id_ == inner:
            return 400
        refusal = self.held(id_, version)
        if refusal:
            return refusal
        self.settle(inner, state)
        return 200

    def halt(self, id_: str) -> int:
        """``task.halt``."""
        now = self.task(id_)
        if now is None:
            return 404
        if now[0] == "fulfilled":
            return 409
        self.tasks[id_].state = "halted"
        return 200

    def resume_halted(self, id_: str) -> int:
        """``task.continue``."""
        now = self.task(id_)
        if now is None:
            return 404
        if now[0] != "halted":
            return 409
        self.tasks[id_].state = "pending"
        return 200
