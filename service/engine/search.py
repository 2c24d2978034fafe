# ruff: noqa: S608 - statements are put together from this module's constants; values are always bound
"""Lists: promises by state and tags, tasks by state, schedules by tags, a page at a time.

Read on a connection of its own, so that a long list never holds up a request.
A page is ordered by id, and its cursor is its last id. The specification
leaves searches open (501); this is what server 0.9.8 answers, except that
states are as they read now.
"""

import sqlite3
from typing import Any, Final

from msgspec import Raw

from service.engine.rules import Promise
from service.engine.wire import (
    Call,
    Malformed,
    PromiseSearch,
    Reply,
    ScheduleOut,
    ScheduleSearch,
    TaskOut,
    TaskSearch,
    decode,
    promise_out,
)

__all__ = ["KINDS", "search"]

#: The kinds that are answered here.
KINDS: Final = frozenset({"promise.search", "task.search", "schedule.search"})

#: Records in a page when the request does not say.
PAGE: Final = 100

#: A promise's state as it reads at ``:now``.
_READS: Final = (
    "CASE WHEN p.state = 'pending' AND p.timeout_at <= :now"
    " THEN CASE p.timer WHEN 1 THEN 'resolved' ELSE 'rejected_timedout' END ELSE p.state END"
)
_SETTLED_AT: Final = (
    "CASE WHEN p.state = 'pending' AND p.timeout_at <= :now THEN p.timeout_at ELSE p.settled_at END"
)
_TASK_READS: Final = f"CASE WHEN {_READS} <> 'pending' THEN 'fulfilled' ELSE t.state END"
_COLUMNS: Final = (
    f"p.row, p.id, {_READS}, p.param, p.value, p.tags, p.external, p.timer, p.target,"
    f" p.timeout_at, p.created_at, {_SETTLED_AT}, p.parent"
)


def search(db: sqlite3.Connection, call: Call, now: int) -> Reply:
    """Answer a search. Raises sqlite3.Error where the file can't be read."""
    try:
        match call.kind:
            case "promise.search":
                return _promises(db, decode(call.data, PromiseSearch), now)
            case "task.search":
                return _tasks(db, decode(call.data, TaskSearch), now)
            case _:
                return _schedules(db, decode(call.data, ScheduleSearch))
    except Malformed as exc:
        return Reply(400, str(exc))


def _page(name: str, records: list[Any], limit: int) -> Reply:
    data: dict[str, Any] = {name: records[:limit]}
    if len(records) > limit:
        data["cursor"] = records[limit - 1].id
    return Reply(200, data)


def _promises(db: sqlite3.Connection, req: PromiseSearch, now: int) -> Reply:
    limit = req.limit or PAGE
    tags = dict(req.tags or {})
    where = ["p.id > :cursor"]
    values: dict[str, Any] = {"cursor": req.cursor or "", "now": now, "limit": limit + 1, "state": req.state}
    source = "promises p"
    indexed = next((name for name in tags if not name.startswith("resonate:")), None)
    if indexed is not None:
        # The index leads: it holds just the promises with this tag, in the order of the page.
        source = "tags g CROSS JOIN promises p ON p.id = g.promise_id"
        where = ["g.name = :name", "g.value = :value", "g.promise_id > :cursor"]
        values |= {"name": indexed, "value": tags.pop(indexed)}
    if req.state is not None:
        where.append(f"{_READS} = :state")
    for number, (name, value) in enumerate(tags.items()):
        where.append(
            "EXISTS (SELECT 1 FROM json_each(p.tags) e"
            f" WHERE e.key = :name{number} AND e.value = :value{number})"
        )
        values |= {f"name{number}": name, f"value{number}": value}
    order = "p.id" if indexed is None else "g.promise_id"
    sql = f"SELECT {_COLUMNS} FROM {source} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT :limit"
    rows = db.execute(sql, values)
    return _page("promises", [promise_out(Promise(*row)) for row in rows], limit)


def _tasks(db: sqlite3.Connection, req: TaskSearch, now: int) -> Reply:
    limit = req.limit or PAGE
    wanted = "" if req.state is None else f" AND {_TASK_READS} = :state"
    rows = db.execute(
        f"SELECT p.id, {_TASK_READS}, t.version, t.resumes, t.ttl, t.pid"
        f" FROM promises p JOIN tasks t ON t.row = p.row WHERE p.id > :cursor{wanted}"
        " ORDER BY p.id LIMIT :limit",
        {"cursor": req.cursor or "", "now": now, "state": req.state, "limit": limit + 1},
    )
    tasks = [
        TaskOut(id_, state, version, 0) if state == "fulfilled" else TaskOut(id_, state, version, *rest)
        for id_, state, version, *rest in rows
    ]
    return _page("tasks", tasks, limit)


def _schedules(db: sqlite3.Connection, req: ScheduleSearch) -> Reply:
    limit = req.limit or PAGE
    where = ["s.id > :cursor"]
    values: dict[str, Any] = {"cursor": req.cursor or "", "limit": limit + 1}
    for number, (name, value) in enumerate((req.tags or {}).items()):
        where.append(
            "EXISTS (SELECT 1 FROM json_each(s.promise_tags) e"
            f" WHERE e.key = :name{number} AND e.value = :value{number})"
        )
        values |= {f"name{number}": name, f"value{number}": value}
    sql = f"SELECT s.* FROM schedules s WHERE {' AND '.join(where)} ORDER BY s.id LIMIT :limit"
    schedules = [
        ScheduleOut(id_, cron, promise_id, timeout, Raw(param), Raw(tags.encode()), *rest)
        for id_, cron, promise_id, timeout, param, tags, *rest in db.execute(sql, values)
    ]
    return _page("schedules", schedules, limit)
