"""The protocol's ``debug.*`` verbs: time by hand and a look inside, for conformance checkers.

Off unless switched on. ``debug.start`` stops what fires by itself, so that
``debug.tick`` is the only time there is; messages are then kept, not sent.
"""

from typing import Any, Final, Protocol

import msgspec

from service.engine import rules
from service.engine.transaction import Transaction
from service.engine.wire import (
    Call,
    Malformed,
    Reply,
    Tick,
    decode,
    execute_message,
    promise_out,
    task_out,
    unblock_message,
)

__all__ = ["handle"]

_TABLES: Final = ("promises", "tasks", "callbacks", "listeners", "outbox", "tags", "schedules")

#: A tick fires to the end of what is due; a schedule that can't come to an
#: end within this many rounds (one a second since 1970, say) is cut short.
_ROUNDS: Final = 10_000


class Database(Protocol):
    """What of the database a verb moves."""

    running: bool

    def fire(self, tx: Transaction) -> int:
        """Fire what is due; return how much it was."""


def handle(database: Database, tx: Transaction, call: Call) -> Reply:
    """Answer a debug verb."""
    match call.kind:
        case "debug.start" | "debug.stop":
            database.running = call.kind == "debug.stop"
            tx.dispatch = tx.live = database.running
            return Reply(200, {})
        case "debug.reset":
            for table in _TABLES:
                tx.rows.execute(f"DELETE FROM {table}")  # noqa: S608 - a constant
            return Reply(200, {})
        case "debug.tick":
            try:
                tx.now = decode(call.data, Tick).time
            except Malformed as exc:
                return Reply(400, str(exc))
            live, tx.live = tx.live, False
            for _ in range(_ROUNDS):
                if database.fire(tx) == 0:
                    break
            tx.live = live
            return Reply(200, [])
        case "debug.snap":
            return Reply(200, snap(tx))
        case _:
            return Reply(400, f"Unknown operation: {call.kind}")


def snap(tx: Transaction) -> dict[str, Any]:
    """Return everything stored, as the protocol's snapshot has it."""
    run = tx.rows.execute
    names: dict[int, str] = dict(run("SELECT row, id FROM promises").fetchall())
    pairs = [pair for id_ in sorted(names.values()) if (pair := tx.rows.pair(id_)) is not None]
    messages = []
    for row, kind, address, version in run("SELECT promise, kind, address, version FROM outbox").fetchall():
        if kind == "execute":
            text = execute_message(names[row], version)
        else:
            text = unblock_message(promise_out(pairs[[p.row for p, _ in pairs].index(row)][0]))
        messages.append({"address": address, "message": msgspec.Raw(text.encode())})
    return {
        "promises": [promise_out(rules.project(promise, tx.now)) for promise, _ in pairs],
        "promiseTimeouts": [
            {"id": promise.id, "timeout": promise.timeout_at}
            for promise, _ in pairs
            if promise.external and promise.state == "pending"
        ],
        "callbacks": [
            {"awaiter": names[awaiter], "awaited": names[awaited]}
            for awaited, awaiter in run("SELECT awaited, awaiter FROM callbacks").fetchall()
        ],
        "listeners": [
            {"id": names[awaited], "address": address}
            for awaited, address in run("SELECT awaited, address FROM listeners").fetchall()
        ],
        "tasks": [
            task_out(promise.id, rules.view(task, rules.project(promise, tx.now)))
            for promise, task in pairs
            if task is not None
        ],
        "taskTimeouts": [
            {"id": promise.id, "type": 1 if task.state == "acquired" else 0, "timeout": task.due}
            for promise, task in pairs
            if task is not None and task.due is not None
        ],
        "messages": messages,
    }
