"""The engine against the abstract machine: whatever is asked, in whatever order, they agree."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.engine.bench import T0, TARGET, Bench, create, settle
from tests.engine.model import Model

IDS = ("a", "b", "c", "d", "e")
TAGS = {
    "internal": {},
    "external": {"resonate:external": "true"},
    "timer": {"resonate:timer": "true"},
    "sleep": {"resonate:timer": "true", "resonate:target": TARGET},
    "target": {"resonate:target": TARGET},
}
ids = st.sampled_from(IDS)
kinds = st.sampled_from(sorted(TAGS))
states = st.sampled_from(["resolved", "rejected", "rejected_canceled", "pending", "rejected_timedout"])
versions = st.integers(0, 4)
lives = st.sampled_from([-5, 0, 1, 50, 100, 500, 5000])
pids = st.sampled_from(["w1", "w2"])
ttls = st.sampled_from([1, 50, 400])


class Machine(RuleBasedStateMachine):
    """Sends each request to both, and compares all that can be read after each."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.model = Model(T0)

    def teardown(self) -> None:
        """Close the engine."""
        self.bench.database.close()

    def both(self, expected: int, kind: str, **data: Any) -> None:
        """Hold the engine's status against the model's; a refusal must have changed nothing."""
        before = self.bench.stored()
        answer = self.bench.ask(kind, **data)
        assert answer.status == expected, (kind, data, answer)
        if expected >= 400:
            assert self.bench.stored() == before

    @rule(ms=st.sampled_from([0, 1, 49, 50, 400, 1000]))
    def time_passes(self, ms: int) -> None:
        """The clock moves, and what is due fires."""
        self.model.now += ms
        self.bench.pass_time(ms)
        self.model.fire()

    @rule(ms=st.sampled_from([1, 50, 400]))
    def time_passes_unnoticed(self, ms: int) -> None:
        """The clock moves, and nothing has fired yet."""
        self.model.now += ms
        self.bench.clock.now += ms

    @rule(id_=ids, kind=kinds, life=lives)
    def promise_create(self, id_: str, kind: str, life: int) -> None:
        """Create."""
        at = self.model.now + life
        self.both(self.model.create(id_, kind, at), "promise.create", id=id_, timeoutAt=at, tags=TAGS[kind])

    @rule(id_=ids, state=states)
    def promise_settle(self, id_: str, state: str) -> None:
        """Settle."""
        self.both(self.model.settle(id_, state), "promise.settle", id=id_, state=state, value={})

    @rule(awaited=ids, awaiter=ids)
    def register_callback(self, awaited: str, awaiter: str) -> None:
        """Register a callback."""
        expected = self.model.callback(awaited, awaiter)
        self.both(expected, "promise.register_callback", awaited=awaited, awaiter=awaiter)

    @rule(id_=ids, kind=kinds, life=lives, pid=pids, ttl=ttls)
    def task_create(self, id_: str, kind: str, life: int, pid: str, ttl: int) -> None:
        """Create and acquire."""
        at = self.model.now + life
        expected = self.model.task_create(id_, kind, at, pid, ttl)
        self.both(expected, "task.create", pid=pid, ttl=ttl, action=create(id_, at, **TAGS[kind]))

    @rule(id_=ids, version=versions, pid=pids, ttl=ttls)
    def task_acquire(self, id_: str, version: int, pid: str, ttl: int) -> None:
        """Acquire."""
        expected = self.model.acquire(id_, version, pid, ttl)
        self.both(expected, "task.acquire", id=id_, version=version, pid=pid, ttl=ttl)

    @rule(id_=ids, version=versions, pid=pids)
    def task_heartbeat(self, id_: str, version: int, pid: str) -> None:
        """Heartbeat."""
        expected = self.model.heartbeat(id_, version, pid)
        self.both(expected, "task.heartbeat", pid=pid, tasks=[{"id": id_, "version": version}])

    @rule(id_=ids, version=versions, awaited=st.lists(ids, max_size=3))
    def task_suspend(self, id_: str, version: int, awaited: list[str]) -> None:
        """Suspend."""
        actions = [{"kind": "", "head": {}, "data": {"awaited": one, "awaiter": id_}} for one in awaited]
        expected = self.model.suspend(id_, version, awaited)
        self.both(expected, "task.suspend", id=id_, version=version, actions=actions)

    @rule(id_=ids, version=versions, state=states)
    def task_fulfill(self, id_: str, version: int, state: str) -> None:
        """Fulfill."""
        expected = self.model.fulfill(id_, version, state)
        self.both(expected, "task.fulfill", id=id_, version=version, action=settle(id_, state))

    @rule(id_=ids, version=versions)
    def task_release(self, id_: str, version: int) -> None:
        """Release."""
        self.both(self.model.release(id_, version), "task.release", id=id_, version=version)

    @rule(id_=ids, version=versions, inner=ids, state=states)
    def task_fence(self, id_: str, version: int, inner: str, state: str) -> None:
        """Fence a settle."""
        expected = self.model.fence(id_, version, inner, state)
        self.both(expected, "task.fence", id=id_, version=version, action=settle(inner, state))

    @rule(id_=ids)
    def task_halt(self, id_: str) -> None:
        """Halt."""
        self.both(self.model.halt(id_), "task.halt", id=id_)

    @rule(id_=ids)
    def task_continue(self, id_: str) -> None:
        """Continue."""
        self.both(self.model.resume_halted(id_), "task.continue", id=id_)

    @invariant()
    def all_that_can_be_read_agrees(self) -> None:
        """Every promise's state, every task's state, version and resumes."""
        for id_ in IDS:
            found = self.bench.ask("promise.get", id=id_)
            told = found.data["promise"]["state"] if found.status == 200 else None
            assert told == (self.model.state(id_) if id_ in self.model.promises else None), id_
            answer = self.bench.ask("task.get", id=id_)
            task = answer.data["task"] if answer.status == 200 else None
            read = None if task is None else (task["state"], task["version"], task["resumes"])
            assert read == self.model.task(id_), id_

    @invariant()
    def offers_are_of_live_tasks_at_versions_issued(self) -> None:
        """No offer is ahead of its task, and a settled promise has no callbacks (C9, C11)."""
        for id_, version in self.bench.offers():
            task = self.model.task(id_)
            assert task is not None
            assert version <= task[1]
        stored = self.bench.stored()
        settled = {row[0] for row in stored["promises"] if row[2] != "pending"}
        assert not settled & {row[0] for row in stored["callbacks"]}


Machine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEngineAgreesWithTheAbstractMachine = Machine.TestCase
