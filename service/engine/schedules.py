"""Cron: when a schedule occurs, and what each occurrence creates. Instants are UTC."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec
from cronsim import CronSim, CronSimError

from service.engine.transaction import Transaction
from service.engine.wire import PromiseCreate, ScheduleCreate, ScheduleOut, read_value

__all__ = ["CronInvalid", "fire", "new", "next_run"]

#: Missed occurrences created in one transaction; the rest follow in the next.
BATCH: Final = 200


class CronInvalid(Exception):
    """The expression is no cron, or names no instant that ever comes."""


def next_run(cron: str, after: int) -> int:
    """Return the first occurrence strictly after an instant, both in ms. Raises CronInvalid."""
    try:
        found = next(CronSim(cron, datetime.fromtimestamp(after / 1000, UTC)), None)
    except CronSimError as exc:
        raise CronInvalid(f"Invalid cron expression: {exc}") from exc
    if found is None:
        raise CronInvalid("Invalid cron expression: it never occurs")
    return int(found.timestamp() * 1000)


def new(req: ScheduleCreate, now: int) -> ScheduleOut:
    """Return the schedule as created at ``now``. Raises CronInvalid."""
    return ScheduleOut(
        req.id,
        req.cron,
        req.promise_id,
        req.promise_timeout,
        msgspec.Raw(read_value(req.promise_param)),
        msgspec.Raw(msgspec.json.encode(req.promise_tags)),
        now,
        next_run(req.cron, now),
    )


def _missed(schedule: ScheduleOut, now: int) -> Iterator[int]:
    at = schedule.next_run_at
    for _ in range(BATCH):
        if at > now:
            return
        yield at
        at = next_run(schedule.cron, at)


def fire(tx: Transaction, schedule: ScheduleOut) -> None:
    """Create every occurrence missed up to now, each as of its own instant, at most `BATCH` of them."""
    now = tx.now
    tags = msgspec.json.decode(schedule.promise_tags, type=dict[str, str])
    last = schedule.last_run_at
    for at in _missed(schedule, now):
        id_ = schedule.promise_id.replace("{{.id}}", schedule.id).replace("{{.timestamp}}", str(at))
        if tx.rows.pair(id_) is None:
            wanted = PromiseCreate(id_, at + schedule.promise_timeout, schedule.promise_param, tags)
            tx.create(wanted, created_at=at)
        last = at
    if last is not None and last != schedule.last_run_at:
        following = next_run(schedule.cron, last)
        tx.rows.put_schedule(msgspec.structs.replace(schedule, last_run_at=last, next_run_at=following))
        tx.arm(following)
