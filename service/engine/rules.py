"""The protocol's rules: how one promise and its task change, and nothing else.

Pure functions from records and a ``now`` in milliseconds to records; nothing
here reads a clock or a file. The two tables are the whole of the state space:
an event that has no row for a state is refused there.

Source: the abstract machine of resonatehq/resonate-specification
(``spec/02-abstract``), protocol 2026-04-01.
"""

from typing import Final, Literal

import msgspec

__all__ = [
    "ENDLESS",
    "PROMISE_MOVES",
    "SETTLEMENTS",
    "TASK_MOVES",
    "Event",
    "Promise",
    "PromiseState",
    "Task",
    "TaskState",
    "Traits",
    "acquired",
    "birth",
    "continued",
    "fulfilled",
    "halted",
    "heartbeaten",
    "lapsed",
    "offered",
    "project",
    "released",
    "resumed",
    "settled",
    "suspended",
    "task_birth",
    "traits",
    "view",
]

type PromiseState = Literal["pending", "resolved", "rejected", "rejected_canceled", "rejected_timedout"]
type TaskState = Literal["pending", "acquired", "suspended", "halted", "fulfilled"]
type Event = Literal[
    "offer", "acquire", "suspend", "resume", "release", "lapse", "halt", "continue", "fulfill"
]

#: Promises: the state that each event leads to. A settled one never moves.
PROMISE_MOVES: Final[dict[tuple[PromiseState, str], PromiseState]] = {
    ("pending", "resolve"): "resolved",
    ("pending", "reject"): "rejected",
    ("pending", "cancel"): "rejected_canceled",
    ("pending", "deadline"): "rejected_timedout",
    ("pending", "deadline of a timer"): "resolved",
}

#: What a client may settle into; ``rejected_timedout`` is the deadline's alone.
SETTLEMENTS: Final[dict[str, str]] = {
    "resolved": "resolve",
    "rejected": "reject",
    "rejected_canceled": "cancel",
}

#: Tasks: the state that each event leads to. What is not here is refused.
TASK_MOVES: Final[dict[tuple[TaskState, Event], TaskState]] = {
    ("pending", "offer"): "pending",
    ("pending", "acquire"): "acquired",
    ("pending", "resume"): "pending",
    ("pending", "halt"): "halted",
    ("pending", "fulfill"): "fulfilled",
    ("acquired", "suspend"): "suspended",
    ("acquired", "resume"): "acquired",
    ("acquired", "release"): "pending",
    ("acquired", "lapse"): "pending",
    ("acquired", "halt"): "halted",
    ("acquired", "fulfill"): "fulfilled",
    ("suspended", "resume"): "pending",
    ("suspended", "halt"): "halted",
    ("suspended", "fulfill"): "fulfilled",
    ("halted", "resume"): "halted",
    ("halted", "halt"): "halted",
    ("halted", "continue"): "pending",
    ("halted", "fulfill"): "fulfilled",
}

#: The expiry of a lease that ends with its process: its holder lives in the
#: engine's own process, so the engine's next start is what ends it.
ENDLESS: Final = 1 << 62

#: First repetition of an offer that nobody took. Attaching, releasing, lapsing
#: and starting offer at once, so this only mends a message that went astray.
RETRY_MS: Final = 30_000
RETRY_CAP_MS: Final = 300_000

#: Delay before a task released without progress is offered again: none the
#: first time, then this, doubling. One that can't be decoded is asked for
#: once a minute instead of hundreds of times a second.
BACKOFF_MS: Final = 250
BACKOFF_CAP_MS: Final = 60_000


class Promise(msgspec.Struct, frozen=True, gc=False):
    """One promise as stored. `param` and `value` are JSON objects, `tags` JSON text.

    `external` promises have a deadline that fires; a `timer` resolves at it.
    `target` is the address of its work, None where it has no task.
    `parent` is the row of the promise whose task made it.
    """

    row: int
    id: str
    state: PromiseState
    param: bytes
    value: bytes
    tags: str
    external: bool
    timer: bool
    target: str | None
    timeout_at: int
    created_at: int
    settled_at: int | None
    parent: int | None


class Task(msgspec.Struct, frozen=True, gc=False):
    """The work behind a targeted promise.

    `due` is when it is offered next (pending) or when its lease ends
    (acquired), in ms. `offers` counts offers since it last got anywhere.
    """

    state: TaskState
    version: int
    pid: str | None = None
    ttl: int | None = None
    due: int | None = None
    resumes: int = 0
    offers: int = 0


class Traits(msgspec.Struct, frozen=True, gc=False):
    """What a promise's tags make of it."""

    external: bool
    timer: bool
    target: str | None


def traits(tags: dict[str, str]) -> Traits:
    """Read the tags.

    A timer that names a target has no task: the SDK's sleep sends both, and
    nothing executes a timer.
    """
    timer = tags.get("resonate:timer") == "true"
    target = tags.get("resonate:target")
    return Traits(
        external=timer or target is not None or tags.get("resonate:external") == "true",
        timer=timer,
        target=None if timer else target,
    )


def project(promise: Promise, now: int) -> Promise:
    """Return the promise as it reads at ``now``: past its deadline it is settled, stored or not."""
    if promise.state != "pending" or promise.timeout_at > now:
        return promise
    event = "deadline of a timer" if promise.timer else "deadline"
    return msgspec.structs.replace(
        promise, state=PROMISE_MOVES["pending", event], settled_at=promise.timeout_at
    )


def view(task: Task, promise: Promise) -> Task:
    """Return the task as it reads beside its projected promise: fulfilled once that is settled."""
    return task if promise.state == "pending" or task.state == "fulfilled" else fulfilled(task)


def birth(  # noqa: PLR0917 - a record's fields, in their order
    id_: str, timeout_at: int, param: bytes, tags: str, has: Traits, parent: int | None, now: int
) -> Promise:
    """Return a new promise; one born at or past its deadline is born settled."""
    if timeout_at > now:
        state: PromiseState = "pending"
        created_at, settled_at = now, None
    else:
        state = PROMISE_MOVES["pending", "deadline of a timer" if has.timer else "deadline"]
        created_at = settled_at = timeout_at
    return Promise(
        0, id_, state, param, b"{}", tags, has.external, has.timer, has.target,
        timeout_at, created_at, settled_at, parent,
    )  # fmt: skip


def task_birth(promise: Promise, delay_until: int, now: int) -> Task:
    """Return the task of a new targeted promise: offered first at ``delay_until``, never before now."""
    if promise.state != "pending":
        return Task("fulfilled", 0)
    return Task("pending", 0, due=max(delay_until, now))


def settled(promise: Promise, state: str, value: bytes, now: int) -> Promise:
    """Return the pending promise settled as a client asked."""
    return msgspec.structs.replace(
        promise, state=PROMISE_MOVES[promise.state, SETTLEMENTS[state]], value=value, settled_at=now
    )


def _move(task: Task, event: Event, **changes: object) -> Task:
    return msgspec.structs.replace(task, state=TASK_MOVES[task.state, event], **changes)


def acquired(task: Task, pid: str, ttl: int, expires_at: int) -> Task:
    """Return the task leased to ``pid``; the only move that issues a version."""
    return _move(task, "acquire", version=task.version + 1, pid=pid, ttl=ttl, due=expires_at, resumes=0)


def heartbeaten(task: Task, expires_at: int) -> Task:
    """Return the acquired task with its lease extended."""
    return msgspec.structs.replace(task, due=expires_at)


def suspended(task: Task) -> Task:
    """Return the task asleep until something it awaits is settled."""
    return _move(task, "suspend", pid=None, ttl=None, due=None, resumes=0, offers=0)


def resumed(task: Task, now: int) -> Task:
    """Return the task with one more awaited promise settled: awake if it slept."""
    if task.state == "suspended":
        return _move(task, "resume", due=now, resumes=1, offers=0)
    return _move(task, "resume", resumes=task.resumes + 1)


def released(task: Task, now: int) -> Task:
    """Return the task given up by its holder: offered now, later each time it gets nowhere."""
    delay = 0 if task.offers <= 1 else min(BACKOFF_MS << min(task.offers - 2, 16), BACKOFF_CAP_MS)
    return _move(task, "release", pid=None, ttl=None, due=now + delay)


def lapsed(task: Task, now: int) -> Task:
    """Return the task whose lease ran out: same version, offered now."""
    return _move(task, "lapse", pid=None, ttl=None, due=now)


def offered(task: Task, now: int) -> Task:
    """Return the task as offered at ``now``, with the instant of the next offer."""
    again = min(RETRY_MS << min(task.offers, 16), RETRY_CAP_MS)
    return _move(task, "offer", due=now + again, offers=task.offers + 1)


def halted(task: Task) -> Task:
    """Return the task stopped by an operator."""
    return _move(task, "halt", pid=None, ttl=None, due=None)


def continued(task: Task, now: int) -> Task:
    """Return the halted task set going again, offered now."""
    return _move(task, "continue", due=now, offers=0)


def fulfilled(task: Task) -> Task:
    """Return the task done: its promise is settled, by whomever."""
    return _move(task, "fulfill", pid=None, ttl=None, due=None, resumes=0, offers=0)
