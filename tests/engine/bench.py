"""A bench for the embedded engine: one database in memory, a clock moved by hand, requests one by one."""

import json
from typing import Any

import msgspec

from service.engine.database import Database, Job
from service.engine.wire import read_call

#: Where every test begins: a plain Tuesday, in ms.
T0 = 1_750_000_000_000

VERSION = "2026-04-01"

#: A target that makes a promise a task's.
TARGET = "poll://any@workers"


class FakeClock:
    """Milliseconds that move when told to."""

    def __init__(self, now: int = T0) -> None:
        self.now = now

    def __call__(self) -> int:
        """Return the time."""
        return self.now


def envelope(kind: str, data: dict[str, Any], **head: Any) -> str:
    """Return a request as the SDK would send it."""
    whole = {"kind": kind, "head": {"corrId": "c1", "version": VERSION, **head}, "data": data}
    return json.dumps(whole, separators=(",", ":"))


class Answer(msgspec.Struct):
    """A reply's status and data."""

    status: int
    data: Any


class Bench:
    """A `Database` with everything at hand: requests, time, messages, and what is stored."""

    def __init__(self, database: Database | None = None, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.database = database or Database(None, clock=self.clock, debug_verbs=True)
        self.database.open()

    @property
    def now(self) -> int:
        """The time."""
        return self.clock.now

    def ask(self, kind: str, /, *, endless: bool = False, at: int | None = None, **data: Any) -> Answer:
        """Send a request; return its answer after the commit. Nothing fires by itself meanwhile."""
        head = {} if at is None else {"resonate:debug_time": at}
        call = read_call(envelope(kind, data, **head))
        outcome = self.database.run(
            [Job(lambda tx: self.database.answer(call, tx, endless=endless), lambda _: None)], fire=False
        )[0]
        if isinstance(outcome, Exception):
            raise outcome
        reply = json.loads(outcome)
        assert (reply["kind"], reply["head"]["corrId"]) == (kind, "c1")
        return Answer(reply["head"]["status"], reply["data"])

    def ok(self, kind: str, /, **data: Any) -> Any:
        """Send a request that must succeed; return its data."""
        answer = self.ask(kind, **data)
        assert answer.status == 200, answer
        return answer.data

    def refused(self, status: int, kind: str, /, **data: Any) -> str:
        """Send a request that must be refused with this status, and change nothing; return the reason."""
        before = self.stored()
        answer = self.ask(kind, **data)
        assert answer.status == status, answer
        assert self.stored() == before
        reason = answer.data
        assert isinstance(reason, str)
        return reason

    def stored(self) -> dict[str, list[Any]]:
        """Return every row of every table."""
        db = self.database._db
        assert db is not None
        tables = ("promises", "tasks", "callbacks", "listeners", "outbox", "tags", "schedules")
        return {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in tables}  # noqa: S608

    def pass_time(self, ms: int = 0) -> None:
        """Move the clock and fire what is due."""
        self.clock.now += ms
        self.database.sweep()

    def messages(self) -> list[dict[str, Any]]:
        """Return and forget the messages that commits have brought since the last look."""
        messages, self.database.messages = self.database.messages, []
        return [{"address": m.address, **json.loads(m.text)} for m in messages]

    def offers(self) -> list[tuple[str, int]]:
        """Return and forget the tasks offered since the last look, as (id, version)."""
        return [
            (m["data"]["task"]["id"], m["data"]["task"]["version"])
            for m in self.messages()
            if m["kind"] == "execute"
        ]

    # -- the usual first steps ------------------------------------------------------------------------

    def promise(self, id_: str, *, life: int = 60_000, **tags: str) -> dict[str, Any]:
        """Create a promise that lives ``life`` ms; tags are named by their last word, such as target."""
        named = {f"resonate:{name}": value for name, value in tags.items()}
        made = self.ok("promise.create", id=id_, timeoutAt=self.now + life, tags=named)
        found: dict[str, Any] = made["promise"]
        return found

    def task(self, id_: str, *, life: int = 60_000, ttl: int = 5_000, pid: str = "w1") -> int:
        """Create a promise and hold its task; return the version held."""
        action = create(id_, self.now + life, **{"resonate:target": TARGET})
        version: int = self.ok("task.create", pid=pid, ttl=ttl, action=action)["task"]["version"]
        return version

    def acquire(self, id_: str, version: int, *, pid: str = "w1", ttl: int = 5_000) -> Any:
        """Acquire an offered task."""
        return self.ok("task.acquire", id=id_, version=version, pid=pid, ttl=ttl)

    def suspend(self, id_: str, version: int, *awaited: str) -> Answer:
        """Suspend a held task on promises."""
        actions = [
            {"kind": "promise.register_callback", "head": {}, "data": {"awaited": one, "awaiter": id_}}
            for one in awaited
        ]
        return self.ask("task.suspend", id=id_, version=version, actions=actions)

    def settle(self, id_: str, state: str = "resolved", data: str | None = None) -> dict[str, Any]:
        """Settle a promise; return its record."""
        value = {} if data is None else {"data": data}
        record: dict[str, Any] = self.ok("promise.settle", id=id_, state=state, value=value)["promise"]
        return record

    def state(self, id_: str) -> str:
        """Return a promise's state as it reads now."""
        state: str = self.ok("promise.get", id=id_)["promise"]["state"]
        return state

    def task_state(self, id_: str) -> str:
        """Return a task's state as it reads now."""
        state: str = self.ok("task.get", id=id_)["task"]["state"]
        return state


def create(id_: str, timeout_at: int, **tags: str) -> dict[str, Any]:
    """Return a create to put inside another request."""
    return {"kind": "promise.create", "head": {}, "data": {"id": id_, "timeoutAt": timeout_at, "tags": tags}}


def settle(id_: str, state: str = "resolved") -> dict[str, Any]:
    """Return a settle to put inside another request."""
    return {"kind": "promise.settle", "head": {}, "data": {"id": id_, "state": state, "value": {"data": "v"}}}
