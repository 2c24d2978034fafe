"""What each kind of request does: its guards in the specification's order, then its step.

A handler that refuses has written nothing. Statuses, guards and their order:
``spec/02-abstract/external.lean`` of resonatehq/resonate-specification.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from service.engine import rules, schedules
from service.engine.rules import Promise, Task
from service.engine.transaction import Transaction
from service.engine.wire import (
    Call,
    CallbackRegister,
    Heartbeat,
    ListenerRegister,
    Malformed,
    Named,
    PromiseCreate,
    PromiseSettle,
    Reply,
    ScheduleCreate,
    TaskAcquire,
    TaskCreate,
    TaskFence,
    TaskFulfill,
    TaskRef,
    TaskSuspend,
    decode,
    promise_out,
    read_value,
    reply_to,
    task_out,
)

__all__ = ["HANDLERS", "handle"]

#: Addresses a listener may have. ``local://`` is the SDK's in-process scheme.
ADDRESS_SCHEMES: Final = ("http://", "https://")
GROUP_SCHEMES: Final = ("poll://", "local://")

OK: Final = 200
NO_TASK: Final = "Task not found"


def handle(tx: Transaction, call: Call) -> Reply:
    """Answer one request. A kind we don't know, or data of another shape, is a 400."""
    entry = HANDLERS.get(call.kind)
    if entry is None:
        return Reply(400, f"Unknown operation: {call.kind}")
    shape, handler = entry
    try:
        return handler(tx, decode(call.data, shape))
    except Malformed as exc:
        return Reply(400, str(exc))


# -- promises -----------------------------------------------------------------------------------------


def promise_get(tx: Transaction, req: Named) -> Reply:
    """Answer a promise as it reads now."""
    pair = tx.read(req.id)
    return Reply(404, "Promise not found") if pair is None else _promise(pair[0])


def promise_create(tx: Transaction, req: PromiseCreate, parent: int | None = None) -> Reply:
    """Create a promise; one that exists is answered as it is, whatever the fields."""
    read_value(req.param)
    pair = tx.read(req.id)
    return _promise(pair[0] if pair is not None else tx.create(req, parent)[0])


def promise_settle(tx: Transaction, req: PromiseSettle) -> Reply:
    """Settle a pending promise; a settled one is answered as it is."""
    if req.state not in rules.SETTLEMENTS:
        return Reply(400, "Invalid state: must be resolved, rejected or rejected_canceled")
    value = read_value(req.value)
    pair = tx.read(req.id)
    if pair is None:
        return Reply(404, "Promise not found")
    promise, task = pair
    if promise.state == "pending":
        promise = rules.settled(promise, req.state, value, tx.now)
        tx.settle(promise, task)
    return _promise(promise)


def register_callback(tx: Transaction, req: CallbackRegister) -> Reply:
    """Have a task resumed when a promise is settled."""
    if req.awaited == req.awaiter:
        return Reply(400, "A promise can't await itself")
    awaited = tx.read(req.awaited)
    if awaited is None:
        return Reply(404, "Awaited promise not found")
    awaiter = tx.read(req.awaiter)
    if awaiter is None or awaiter[0].target is None:
        return Reply(422, "The awaiter has no task")
    if not awaited[0].external:
        return Reply(422, "The awaited promise is internal")
    if awaited[0].state == "pending" and awaiter[0].state == "pending":
        tx.rows.add_callback(awaited[0].row, awaiter[0].row)
    return _promise(awaited[0])


def register_listener(tx: Transaction, req: ListenerRegister) -> Reply:
    """Have an address told when a promise is settled."""
    grouped = req.address.startswith(GROUP_SCHEMES) and "@" in req.address
    if not grouped and not req.address.startswith(ADDRESS_SCHEMES):
        return Reply(400, "Invalid address")
    awaited = tx.read(req.awaited)
    if awaited is None:
        return Reply(404, "Promise not found")
    if not awaited[0].external:
        return Reply(422, "The promise is internal")
    if awaited[0].state == "pending":
        tx.rows.add_listener(awaited[0].row, req.address)
    return _promise(awaited[0])


# -- tasks --------------------------------------------------------------------------------------------


def task_get(tx: Transaction, req: Named) -> Reply:
    """Answer a task as it reads now."""
    pair = _with_task(tx, req.id)
    return Reply(404, NO_TASK) if pair is None else Reply(200, {"task": task_out(req.id, pair[1])})


def task_create(tx: Transaction, req: TaskCreate) -> Reply:
    """Create a promise and hold the lease on its task."""
    action = req.action.data
    if rules.traits(action.tags).target is None:
        return Reply(400, "A task needs a promise with a target that is no timer")
    read_value(action.param)
    pair = tx.read(action.id)
    if pair is None:
        promise, task = tx.create_acquired(action, req.pid, req.ttl)
        return _leased(promise, task, [])
    promise, held = pair
    if held is None:
        return Reply(422, "The promise has no task")
    if held.state == "fulfilled":
        return _leased(promise, held, [])
    if held.state != "pending":
        return Reply(409, "The task is not pending")
    task = tx.lease(held, req.pid, req.ttl)
    tx.rows.update_task(promise.row, task)
    return _leased(promise, task, tx.preload(promise))


def task_acquire(tx: Transaction, req: TaskAcquire) -> Reply:
    """Lease a pending task, if it is still at the version that was offered."""
    pair = _with_task(tx, req.id)
    if pair is None:
        return Reply(404, NO_TASK)
    promise, task = pair
    if task.state != "pending" or promise.state != "pending":
        return Reply(409, "The task is not pending")
    if task.version != req.version:
        return Reply(409, "The task has another version")
    leased = tx.lease(task, req.pid, req.ttl)
    tx.rows.update_task(promise.row, leased)
    return _leased(promise, leased, tx.preload(promise))


def task_fence(tx: Transaction, req: TaskFence) -> Reply:
    """Create or settle another promise, provided the caller still holds the task."""
    action = req.action
    inner: PromiseCreate | PromiseSettle
    match action.kind:
        case "promise.create":
            inner = decode(action.data, PromiseCreate)
        case "promise.settle":
            inner = decode(action.data, PromiseSettle)
        case _:
            return Reply(400, "A fence holds promise.create or promise.settle")
    if inner.id == req.id:
        return Reply(400, "A fence is for another promise than the task's own")
    held = _held(tx, req.id, req.version)
    if isinstance(held, Reply):
        return held
    promise, task = held
    if isinstance(inner, PromiseCreate):
        answer = promise_create(tx, inner, parent=promise.row)
    else:
        answer = promise_settle(tx, inner)
        if task.offers > 1 and answer.status == OK:
            # A result was kept, so a later release is no sign of going in circles.
            current = tx.rows.pair_at(promise.row)
            if current is not None and current[1] is not None:
                tx.rows.update_task(promise.row, msgspec.structs.replace(current[1], offers=1))
    return Reply(200, {"action": reply_to(action.kind, action.head.corr_id, answer), "preload": []})


def task_heartbeat(tx: Transaction, req: Heartbeat) -> Reply:
    """Extend each lease that the caller still holds; the others are let be."""
    for ref in req.tasks:
        held = _held(tx, ref.id, ref.version)
        if isinstance(held, Reply) or held[1].pid != req.pid:
            continue
        tx.rows.update_task(held[0].row, tx.extend(held[1]))
    return Reply(200, {})


def task_suspend(tx: Transaction, req: TaskSuspend) -> Reply:
    """Put a task to sleep until something it awaits is settled; 300 if something is already."""
    ids = [action.data.awaited for action in req.actions]
    if not ids or req.id in ids or len(set(ids)) != len(ids):
        return Reply(400, "A task awaits one or more promises, each once and none its own")
    held = _held(tx, req.id, req.version)
    if isinstance(held, Reply):
        return held
    promise, task = held
    awaited: list[Promise] = []
    for id_ in ids:
        pair = tx.read(id_)
        if pair is None or not pair[0].external:
            return Reply(422, f"{id_} is absent or internal")
        awaited.append(pair[0])
    if any(one.state != "pending" for one in awaited):
        if task.resumes:
            tx.rows.update_task(promise.row, msgspec.structs.replace(task, resumes=0))
        return Reply(300, {"preload": tx.preload(promise)})
    for one in awaited:
        tx.rows.add_callback(one.row, promise.row)
    tx.rows.update_task(promise.row, rules.suspended(task))
    return Reply(200, {"preload": []})


def task_fulfill(tx: Transaction, req: TaskFulfill) -> Reply:
    """Settle the promise of a task that the caller holds."""
    if req.action.data.state not in rules.SETTLEMENTS:
        return Reply(400, "Invalid state: must be resolved, rejected or rejected_canceled")
    value = read_value(req.action.data.value)
    held = _held(tx, req.id, req.version)
    if isinstance(held, Reply):
        return held
    promise = rules.settled(held[0], req.action.data.state, value, tx.now)
    tx.settle(promise, held[1])
    return _promise(promise)


def task_release(tx: Transaction, req: TaskRef) -> Reply:
    """Give a task up: it is offered again."""
    held = _held(tx, req.id, req.version)
    if isinstance(held, Reply):
        return held
    tx.put_pending(held[0], rules.released(held[1], tx.now))
    return Reply(200, {})


def task_halt(tx: Transaction, req: Named) -> Reply:
    """Stop a task until it is continued."""
    pair = _with_task(tx, req.id)
    if pair is None:
        return Reply(404, NO_TASK)
    promise, task = pair
    if task.state == "fulfilled":
        return Reply(409, "The task is fulfilled")
    if task.state != "halted":
        tx.rows.update_task(promise.row, rules.halted(task))
    return Reply(200, {})


def task_continue(tx: Transaction, req: Named) -> Reply:
    """Set a halted task going again."""
    pair = _with_task(tx, req.id)
    if pair is None:
        return Reply(404, NO_TASK)
    promise, task = pair
    if task.state != "halted" or promise.state != "pending":
        return Reply(409, "The task is not halted")
    tx.put_pending(promise, rules.continued(task, tx.now))
    return Reply(200, {})


# -- schedules ----------------------------------------------------------------------------------------


def schedule_get(tx: Transaction, req: Named) -> Reply:
    """Answer a schedule."""
    schedule = tx.rows.schedule(req.id)
    return Reply(404, "Schedule not found") if schedule is None else Reply(200, {"schedule": schedule})


def schedule_create(tx: Transaction, req: ScheduleCreate) -> Reply:
    """Create a schedule; one that exists is answered as it is."""
    existing = tx.rows.schedule(req.id)
    if existing is not None:
        return Reply(200, {"schedule": existing})
    try:
        schedule = schedules.new(req, tx.now)
    except schedules.CronInvalid as exc:
        return Reply(400, str(exc))
    tx.rows.put_schedule(schedule)
    tx.arm(schedule.next_run_at)
    return Reply(200, {"schedule": schedule})


def schedule_delete(tx: Transaction, req: Named) -> Reply:
    """Forget a schedule; what it has created stays."""
    return Reply(200, {}) if tx.rows.delete_schedule(req.id) else Reply(404, "Schedule not found")


# -- shared -------------------------------------------------------------------------------------------


def _with_task(tx: Transaction, id_: str) -> tuple[Promise, Task] | None:
    pair = tx.read(id_)
    if pair is None or pair[1] is None:
        return None
    return pair[0], pair[1]


def _held(tx: Transaction, id_: str, version: int) -> tuple[Promise, Task] | Reply:
    """Return a task that is acquired at that version, or the refusal."""
    pair = _with_task(tx, id_)
    if pair is None:
        return Reply(404, NO_TASK)
    promise, task = pair
    if task.state != "acquired" or promise.state != "pending":
        return Reply(409, "The task is not acquired")
    if task.version != version:
        return Reply(409, "The task has another version")
    return promise, task


def _promise(promise: Promise) -> Reply:
    return Reply(200, {"promise": promise_out(promise)})


def _leased(promise: Promise, task: Task, preload: list[object]) -> Reply:
    out = {"task": task_out(promise.id, task), "promise": promise_out(promise), "preload": preload}
    return Reply(200, out)


#: Every kind that changes or reads promises, tasks and schedules: its data's shape and its handler.
HANDLERS: Final[dict[str, tuple[type[msgspec.Struct], Callable[[Transaction, Any], Reply]]]] = {
    "promise.get": (Named, promise_get),
    "promise.create": (PromiseCreate, promise_create),
    "promise.settle": (PromiseSettle, promise_settle),
    "promise.register_callback": (CallbackRegister, register_callback),
    "promise.register_listener": (ListenerRegister, register_listener),
    "task.get": (Named, task_get),
    "task.create": (TaskCreate, task_create),
    "task.acquire": (TaskAcquire, task_acquire),
    "task.fence": (TaskFence, task_fence),
    "task.heartbeat": (Heartbeat, task_heartbeat),
    "task.suspend": (TaskSuspend, task_suspend),
    "task.fulfill": (TaskFulfill, task_fulfill),
    "task.release": (TaskRef, task_release),
    "task.halt": (Named, task_halt),
    "task.continue": (Named, task_continue),
    "schedule.get": (Named, schedule_get),
    "schedule.create": (ScheduleCreate, schedule_create),
    "schedule.delete": (Named, schedule_delete),
}
