"""Each kind of request: what it does, what it refuses, and that a refusal changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from service.engine import rules
from service.engine.rules import ENDLESS, TASK_MOVES, Event, Task, TaskState
from tests.engine.bench import T0, TARGET, Bench, create, settle

# -- the tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "move"),
    [
        ("acquire", lambda task: rules.acquired(task, "w", 1, 2)),
        ("suspend", rules.suspended),
        ("resume", lambda task: rules.resumed(task, 1)),
        ("release", lambda task: rules.released(task, 1)),
        ("lapse", lambda task: rules.lapsed(task, 1)),
        ("offer", lambda task: rules.offered(task, 1)),
        ("halt", rules.halted),
        ("continue", lambda task: rules.continued(task, 1)),
        ("fulfill", rules.fulfilled),
    ],
)
@pytest.mark.parametrize("state", ["pending", "acquired", "suspended", "halted", "fulfilled"])
def test_a_task_moves_only_as_the_table_says(
    state: TaskState, event: Event, move: Callable[[Task], Task]
) -> None:
    """An event with a row leads to that row's state; one without is refused."""
    task = Task(state, 3, due=5, offers=2)
    if (state, event) in TASK_MOVES:
        moved = move(task)
        assert moved.state == TASK_MOVES[state, event]
        assert moved.version == (4 if event == "acquire" else 3)
        assert (moved.pid is not None) == (event == "acquire")
    else:
        with pytest.raises(KeyError):
            move(task)


def test_a_settled_promise_has_no_way_on() -> None:
    """No row of the promise table leaves a settled state."""
    assert {state for state, _ in rules.PROMISE_MOVES} == {"pending"}
    assert "pending" not in rules.PROMISE_MOVES.values()


# -- promises -----------------------------------------------------------------------------------------


def test_get_of_an_unknown_promise_is_404(bench: Bench) -> None:
    """Nothing is made by asking."""
    bench.refused(404, "promise.get", id="nobody")


def test_create_answers_the_first_record_whatever_the_second_says(bench: Bench) -> None:
    """An id is created once; a second create changes nothing."""
    first = bench.ok("promise.create", id="a", timeoutAt=T0 + 5, param={"data": "1"}, tags={"k": "v"})
    before = bench.stored()
    second = bench.ok("promise.create", id="a", timeoutAt=T0 + 9, param={"data": "2"}, tags={})
    assert second == first
    assert bench.stored() == before
    assert first["promise"] == {
        "id": "a",
        "state": "pending",
        "param": {"data": "1"},
        "value": {},
        "tags": {"k": "v"},
        "timeoutAt": T0 + 5,
        "createdAt": T0,
    }


@pytest.mark.parametrize("tags", [{}, {"external": "true"}, {"target": TARGET}])
def test_a_promise_born_past_its_deadline_is_born_timed_out(bench: Bench, tags: dict[str, str]) -> None:
    """Created, settled and due are then the same instant, and its task is done at version 0."""
    born = bench.promise("a", life=-10, **tags)
    assert born["state"] == "rejected_timedout"
    assert born["createdAt"] == born["settledAt"] == born["timeoutAt"] == T0 - 10
    if "target" in tags:
        assert bench.ok("task.get", id="a")["task"] == {
            "id": "a",
            "state": "fulfilled",
            "version": 0,
            "resumes": 0,
        }
    assert bench.offers() == []


def test_a_timer_born_past_its_deadline_is_born_resolved(bench: Bench) -> None:
    """A sleep that is over is over."""
    assert bench.promise("t", life=0, timer="true")["state"] == "resolved"


def test_a_deadline_at_this_very_millisecond_has_passed(bench: Bench) -> None:
    """Due at t means settled at t: ``timeoutAt <= now``."""
    bench.promise("a", life=10)
    bench.clock.now += 9
    assert bench.state("a") == "pending"
    bench.clock.now += 1
    assert bench.state("a") == "rejected_timedout"


@pytest.mark.parametrize("state", ["resolved", "rejected", "rejected_canceled"])
def test_the_first_settle_wins(bench: Bench, state: str) -> None:
    """A later settle reads back the first and changes nothing."""
    bench.promise("a")
    bench.clock.now += 7
    first = bench.settle("a", state, "first")
    assert (first["state"], first["value"], first["settledAt"]) == (state, {"data": "first"}, T0 + 7)
    before = bench.stored()
    assert bench.settle("a", "rejected", "second") == first
    assert bench.stored() == before


@pytest.mark.parametrize("state", ["pending", "rejected_timedout", "done", ""])
def test_settle_into_a_state_that_is_not_a_clients_is_400(bench: Bench, state: str) -> None:
    """Only the deadline times out."""
    bench.promise("a")
    bench.refused(400, "promise.settle", id="a", state=state, value={})
    bench.refused(400, "promise.settle", id="nobody", state=state, value={})


def test_settle_of_an_unknown_promise_is_404(bench: Bench) -> None:
    """A settle makes no promise."""
    bench.refused(404, "promise.settle", id="nobody", state="resolved", value={})


def test_settle_after_the_deadline_reads_back_the_timeout(bench: Bench) -> None:
    """A late click does not decide, whether or not the timeout was stored yet."""
    bench.promise("a", life=10)
    bench.clock.now += 10
    before = bench.stored()
    late = bench.settle("a")
    assert (late["state"], late["settledAt"]) == ("rejected_timedout", T0 + 10)
    assert bench.stored() == before


def test_settling_a_tasks_promise_from_outside_fulfills_the_task(bench: Bench) -> None:
    """The holder's version is worth nothing from then on."""
    version = bench.task("a")
    bench.settle("a")
    assert bench.task_state("a") == "fulfilled"
    bench.refused(409, "task.fulfill", id="a", version=version, action=settle("a", "rejected"))


def test_values_are_kept_as_they_came(bench: Bench) -> None:
    """Null reads as the empty value; headers and data are the client's own."""
    bench.ok("promise.create", id="a", timeoutAt=T0 + 5, param=None, tags={})
    assert bench.ok("promise.get", id="a")["promise"]["param"] == {}
    value = {"headers": {"h": "é"}, "data": "YQ==", "extra": [1]}
    assert bench.ok("promise.settle", id="a", state="resolved", value=value)["promise"]["value"] == value
    bench.refused(400, "promise.create", id="b", timeoutAt=T0 + 5, param="text", tags={})


@pytest.mark.parametrize("id_", ["root:1.1", "ballot.abcdefghijklmnopqrstuvwxyz", "é ✓", "a/b?c", ":", "."])
def test_any_string_that_is_not_empty_is_an_id(bench: Bench, id_: str) -> None:
    """Ids mean nothing to the engine."""
    assert bench.promise(id_)["id"] == id_
    assert bench.state(id_) == "pending"


@pytest.mark.parametrize(
    "data",
    [
        {"id": "", "timeoutAt": 1},
        {"timeoutAt": 1},
        {"id": "a"},
        {"id": "a", "timeoutAt": -1},
        {"id": "a", "timeoutAt": "1"},
        {"id": "a", "timeoutAt": 1, "tags": {"k": 1}},
        {"id": "a", "timeoutAt": 1 << 63},
    ],
)
def test_data_of_another_shape_is_400(bench: Bench, data: dict[str, Any]) -> None:
    """The reason names what is wrong."""
    assert "Invalid request" in bench.refused(400, "promise.create", **data)


def test_an_unknown_kind_is_400(bench: Bench) -> None:
    """The reason names the kind."""
    assert "promise.destroy" in bench.refused(400, "promise.destroy", id="a")


# -- subscriptions ------------------------------------------------------------------------------------


def test_register_callback_guards_in_order(bench: Bench) -> None:
    """Itself 400, no such awaited 404, an awaiter absent or without a task 422."""
    bench.promise("p", external="true")
    bench.promise("plain")
    bench.refused(400, "promise.register_callback", awaited="p", awaiter="p")
    bench.refused(404, "promise.register_callback", awaited="nobody", awaiter="nobody2")
    bench.refused(422, "promise.register_callback", awaited="p", awaiter="nobody")
    bench.refused(422, "promise.register_callback", awaited="p", awaiter="plain")


def test_a_callback_counts_a_resume_on_a_task_at_work(bench: Bench) -> None:
    """An acquired or halted task is not woken but told how much has happened."""
    version = bench.task("w")
    bench.promise("p", external="true")
    bench.promise("q", external="true")
    for awaited in ("p", "p", "q"):
        bench.ok("promise.register_callback", awaited=awaited, awaiter="w")
    bench.settle("p")
    bench.settle("q")
    task = bench.ok("task.get", id="w")["task"]
    assert (task["state"], task["version"], task["resumes"]) == ("acquired", version, 2)
    assert bench.offers() == []


def test_a_callback_of_a_settled_awaiter_is_not_kept(bench: Bench) -> None:
    """There is nothing left to resume."""
    bench.task("w")
    bench.settle("w")
    bench.promise("p", external="true")
    bench.ok("promise.register_callback", awaited="p", awaiter="w")
    assert bench.stored()["callbacks"] == []


@pytest.mark.parametrize("address", ["", "workers", "poll://workers", "ftp://x", "http:x"])
def test_a_listener_needs_an_address_that_can_be_reached(bench: Bench, address: str) -> None:
    """A poll address names its group after an @."""
    bench.promise("p", external="true")
    bench.refused(400, "promise.register_listener", awaited="p", address=address)


def test_a_listener_of_an_unknown_promise_is_404(bench: Bench) -> None:
    """The SDK takes that as: gone."""
    bench.refused(404, "promise.register_listener", awaited="nobody", address="poll://uni@g/p")


def test_a_listener_is_told_once_what_its_promise_became(bench: Bench) -> None:
    """Registered twice, told once; the message is kept until it was handed over."""
    bench.promise("p", external="true")
    for _ in range(2):
        bench.ok("promise.register_listener", awaited="p", address="poll://uni@g/p1")
    record = bench.settle("p", data="x")
    (message,) = bench.messages()
    assert message["kind"] == "unblock"
    assert message["address"] == "poll://uni@g/p1"
    assert message["data"]["promise"] == record
    assert bench.stored()["listeners"] == []
    assert len(bench.stored()["outbox"]) == 1


# -- tasks --------------------------------------------------------------------------------------------


def test_a_targeted_promise_is_offered_at_birth(bench: Bench) -> None:
    """At version 0, to its target."""
    bench.promise("a", target=TARGET)
    (message,) = bench.messages()
    assert message == {
        "address": TARGET,
        "kind": "execute",
        "head": {},
        "data": {"task": {"id": "a", "version": 0}},
    }


def test_a_delay_holds_back_the_first_offer(bench: Bench) -> None:
    """``resonate:delay`` is an instant in ms; the offer is not before it."""
    bench.promise("a", target=TARGET, delay=str(T0 + 1000))
    assert bench.offers() == []
    bench.pass_time(999)
    assert bench.offers() == []
    bench.pass_time(1)
    assert bench.offers() == [("a", 0)]


def test_task_create_holds_the_lease_at_version_one(bench: Bench) -> None:
    """And tells the promise, and offers it to nobody."""
    action = create("a", T0 + 5, **{"resonate:target": TARGET})
    made = bench.ok("task.create", pid="w1", ttl=9, action=action)
    assert made["task"] == {
        "id": "a",
        "state": "acquired",
        "version": 1,
        "resumes": 0,
        "ttl": 9,
        "pid": "w1",
    }
    assert (made["promise"]["state"], made["preload"]) == ("pending", [])
    assert bench.offers() == []


def test_task_create_takes_a_task_that_nobody_holds(bench: Bench) -> None:
    """Pending is acquired with the next version; held is 409; done is answered as done."""
    bench.promise("a", target=TARGET)
    action = create("a", T0 + 60_000, **{"resonate:target": TARGET})
    assert bench.ok("task.create", pid="w1", ttl=9000, action=action)["task"]["version"] == 1
    bench.refused(409, "task.create", pid="w2", ttl=9000, action=action)
    bench.settle("a")
    done = bench.ok("task.create", pid="w2", ttl=9000, action=action)
    assert (done["task"]["state"], done["promise"]["state"]) == ("fulfilled", "resolved")


@pytest.mark.parametrize("tags", [{}, {"resonate:timer": "true", "resonate:target": TARGET}])
def test_task_create_without_work_is_400(bench: Bench, tags: dict[str, str]) -> None:
    """No target, or a timer: nothing to execute."""
    bench.refused(400, "task.create", pid="w", ttl=1, action=create("a", T0 + 5, **tags))


def test_task_create_of_a_promise_without_a_task_is_422(bench: Bench) -> None:
    """The id is another thing's."""
    bench.promise("a")
    action = create("a", T0 + 5, **{"resonate:target": TARGET})
    bench.refused(422, "task.create", pid="w", ttl=1, action=action)


def test_task_create_born_dead_is_fulfilled_at_version_zero(bench: Bench) -> None:
    """Nobody works on what is over."""
    action = create("a", T0 - 1, **{"resonate:target": TARGET})
    born = bench.ok("task.create", pid="w", ttl=1, action=action)
    assert (born["task"]["state"], born["task"]["version"]) == ("fulfilled", 0)
    assert born["promise"]["state"] == "rejected_timedout"


def test_acquire_guards(bench: Bench) -> None:
    """Unknown 404; not pending, or another version than offered: 409."""
    bench.refused(404, "task.acquire", id="a", version=0, pid="w", ttl=1)
    bench.promise("a", target=TARGET)
    bench.refused(409, "task.acquire", id="a", version=1, pid="w", ttl=1)
    assert bench.acquire("a", 0)["task"]["version"] == 1
    bench.refused(409, "task.acquire", id="a", version=1, pid="w", ttl=1)
    bench.promise("plain")
    bench.refused(404, "task.acquire", id="plain", version=0, pid="w", ttl=1)
    bench.refused(400, "task.acquire", id="a", version=0, pid="w", ttl=0)


def test_acquire_brings_along_what_the_task_has_made(bench: Bench) -> None:
    """A replay then asks for nothing: its own promises come with the lease, as they read now."""
    version = bench.task("w")
    for number in (1, 2):
        tags = {"resonate:external": "true"}
        bench.ok("task.fence", id="w", version=version, action=create(f"w:{number}", T0 + 500, **tags))
    bench.promise("other")
    bench.settle("w:1")
    bench.ok("task.release", id="w", version=version)
    bench.clock.now += 500
    preload = bench.acquire("w", version)["preload"]
    states = [(one["id"], one["state"]) for one in preload]
    assert states == [("w:1", "resolved"), ("w:2", "rejected_timedout")]


def test_fence_lets_only_the_holder_act(bench: Bench) -> None:
    """Its own id 400, unknown 404, not acquired or another version 409."""
    bench.refused(404, "task.fence", id="a", version=1, action=create("b", T0 + 5))
    bench.promise("a", target=TARGET)
    bench.refused(400, "task.fence", id="a", version=0, action=settle("a"))
    bench.refused(409, "task.fence", id="a", version=0, action=create("b", T0 + 5))
    bench.acquire("a", 0)
    bench.refused(409, "task.fence", id="a", version=2, action=create("b", T0 + 5))
    bench.refused(400, "task.fence", id="a", version=1, action={"kind": "promise.get", "data": {"id": "b"}})
    named = create("b", T0 + 5) | {"head": {"corrId": "inner"}}
    made = bench.ok("task.fence", id="a", version=1, action=named)["action"]
    assert made["kind"] == "promise.create"
    # The TypeScript SDK takes a head without a version for no reply at all.
    assert made["head"] == {"corrId": "inner", "status": 200, "version": "2026-04-01"}
    assert made["data"]["promise"]["id"] == "b"


def test_fence_answers_200_around_whatever_is_inside(bench: Bench) -> None:
    """The guard held; what the inner request came to is inside."""
    version = bench.task("a")
    inner = bench.ok("task.fence", id="a", version=version, action=settle("nobody"))["action"]
    assert (inner["head"]["status"], inner["data"]) == (404, "Promise not found")
    bench.promise("b")
    bad = bench.ok("task.fence", id="a", version=version, action=settle("b", "pending"))["action"]
    assert bad["head"]["status"] == 400
    assert bench.state("b") == "pending"


def test_heartbeat_extends_only_what_the_caller_holds(bench: Bench) -> None:
    """Another pid, another version, an unknown task: let be, and 200 all the same."""
    version = bench.task("a", ttl=1000)
    bench.clock.now += 900
    before = bench.stored()
    refs = [{"id": "a", "version": version}]
    bench.ok("task.heartbeat", pid="other", tasks=refs)
    bench.ok("task.heartbeat", pid="w1", tasks=[{"id": "a", "version": 9}, {"id": "nobody", "version": 1}])
    bench.ok("task.heartbeat", pid="w1", tasks=[])
    assert bench.stored() == before
    bench.ok("task.heartbeat", pid="w1", tasks=refs)
    bench.pass_time(900)
    assert bench.task_state("a") == "acquired"
    bench.pass_time(100)
    assert bench.task_state("a") == "pending"


def test_suspend_guards_in_order(bench: Bench) -> None:
    """Nothing, itself or twice the same: 400; unknown 404; not held 409; awaited absent or internal 422."""
    bench.promise("p", external="true")
    bench.promise("internal")
    assert bench.suspend("a", 1).status == 400
    assert bench.suspend("a", 1, "a").status == 400
    assert bench.suspend("a", 1, "p", "p").status == 400
    assert bench.suspend("a", 1, "p").status == 404
    version = bench.task("a")
    before = bench.stored()
    assert bench.suspend("a", version + 1, "p").status == 409
    assert bench.suspend("a", version, "p", "nobody").status == 422
    assert bench.suspend("a", version, "p", "internal").status == 422
    assert bench.stored() == before


def test_suspend_sleeps_until_one_awaited_is_settled(bench: Bench) -> None:
    """Then the task is offered at once, at its own version, once."""
    version = bench.task("a")
    bench.promise("p", external="true")
    bench.promise("q", external="true")
    assert bench.suspend("a", version, "p", "q").status == 200
    assert bench.task_state("a") == "suspended"
    bench.settle("q")
    assert bench.offers() == [("a", version)]
    bench.settle("p")
    assert bench.offers() == []
    task = bench.ok("task.get", id="a")["task"]
    assert (task["state"], task["resumes"]) == ("pending", 2)
    assert bench.acquire("a", version)["task"]["resumes"] == 0


def test_suspend_on_something_settled_goes_on_at_once(bench: Bench) -> None:
    """300: still acquired, no callback left behind, what it made comes along."""
    version = bench.task("a")
    action = create("a:1", T0 + 99, **{"resonate:external": "true"})
    bench.ok("task.fence", id="a", version=version, action=action)
    bench.promise("q", external="true")
    bench.settle("a:1")
    answer = bench.suspend("a", version, "q", "a:1")
    assert answer.status == 300
    assert [(one["id"], one["state"]) for one in answer.data["preload"]] == [("a:1", "resolved")]
    assert bench.task_state("a") == "acquired"
    assert bench.stored()["callbacks"] == []


def test_fulfill_settles_the_promise_and_ends_the_task(bench: Bench) -> None:
    """Whoever awaited it is woken in the same step."""
    outer = bench.task("outer")
    bench.promise("inner", target=TARGET)
    bench.offers()
    assert bench.suspend("outer", outer, "inner").status == 200
    bench.acquire("inner", 0)
    record = bench.ok("task.fulfill", id="inner", version=1, action=settle("inner", "rejected"))["promise"]
    assert (record["state"], record["value"]) == ("rejected", {"data": "v"})
    assert bench.task_state("inner") == "fulfilled"
    assert bench.offers() == [("outer", outer)]


def test_fulfill_guards(bench: Bench) -> None:
    """A state that is not a client's 400, unknown 404, not held 409."""
    bench.refused(400, "task.fulfill", id="a", version=1, action=settle("a", "rejected_timedout"))
    bench.refused(404, "task.fulfill", id="a", version=1, action=settle("a"))
    bench.promise("a", target=TARGET)
    bench.refused(409, "task.fulfill", id="a", version=0, action=settle("a"))
    bench.acquire("a", 0)
    bench.refused(409, "task.fulfill", id="a", version=0, action=settle("a"))


def test_release_offers_the_task_again_at_its_version(bench: Bench) -> None:
    """Unknown 404, not held 409."""
    bench.refused(404, "task.release", id="a", version=1)
    version = bench.task("a")
    bench.refused(409, "task.release", id="a", version=version + 1)
    bench.ok("task.release", id="a", version=version)
    assert bench.offers() == [("a", version)]
    bench.refused(409, "task.release", id="a", version=version)


def test_a_task_released_again_and_again_is_offered_ever_later(bench: Bench) -> None:
    """One that can't be decoded does not storm: a dozen offers in a minute, not thousands."""
    bench.promise("poison", life=3_600_000, target=TARGET)
    offers = 0
    for _ in range(60_000 // 50):
        for id_, version in bench.offers():
            offers += 1
            bench.acquire(id_, version)
            bench.ok("task.release", id=id_, version=version + 1)
        bench.pass_time(50)
    assert 5 <= offers <= 12


def test_progress_ends_the_delay(bench: Bench) -> None:
    """A task that slept in between is offered at once when it is released."""
    bench.promise("a", life=3_600_000, target=TARGET)
    bench.promise("p", life=3_600_000, external="true")
    for version in range(6):
        bench.acquire("a", version)
        bench.ok("task.release", id="a", version=version + 1)
        bench.pass_time(60_000)
    bench.offers()
    bench.acquire("a", 6)
    bench.suspend("a", 7, "p")
    bench.settle("p")
    assert bench.offers() == [("a", 7)]
    bench.acquire("a", 7)
    bench.ok("task.release", id="a", version=8)
    assert bench.offers() == [("a", 8)]


def test_halt_and_continue(bench: Bench) -> None:
    """A halted task is offered to nobody until it is continued; twice halted is once."""
    bench.refused(404, "task.halt", id="a")
    bench.refused(404, "task.continue", id="a")
    version = bench.task("a")
    bench.refused(409, "task.continue", id="a")
    bench.ok("task.halt", id="a")
    bench.ok("task.halt", id="a")
    bench.refused(409, "task.fulfill", id="a", version=version, action=settle("a"))
    bench.pass_time(50_000)
    assert bench.offers() == []
    bench.ok("task.continue", id="a")
    assert bench.offers() == [("a", version)]
    bench.settle("a")
    bench.refused(409, "task.halt", id="a")
    bench.refused(409, "task.continue", id="a")


def test_a_halted_task_counts_what_it_awaited_and_is_not_woken(bench: Bench) -> None:
    """Halting outlasts the resume."""
    version = bench.task("a")
    bench.promise("p", external="true")
    bench.suspend("a", version, "p")
    bench.ok("task.halt", id="a")
    bench.settle("p")
    task = bench.ok("task.get", id="a")["task"]
    assert (task["state"], task["resumes"], bench.offers()) == ("halted", 1, [])


# -- what fires by itself -----------------------------------------------------------------------------


def test_a_lease_that_runs_out_is_offered_at_its_version(bench: Bench) -> None:
    """Not a millisecond early; the next holder gets the next version."""
    version = bench.task("a", ttl=1000)
    bench.pass_time(999)
    assert bench.offers() == []
    bench.pass_time(1)
    assert bench.offers() == [("a", version)]
    assert bench.acquire("a", version, pid="w2")["task"]["version"] == version + 1
    bench.refused(409, "task.fulfill", id="a", version=version, action=settle("a"))


def test_an_endless_lease_outlives_any_ttl(bench: Bench) -> None:
    """A holder in the engine's own process ends with it, not with a clock."""
    action = create("a", T0 + 10**12, **{"resonate:target": TARGET})
    assert bench.ask("task.create", endless=True, pid="me", ttl=1, action=action).status == 200
    bench.ok("task.heartbeat", pid="me", tasks=[{"id": "a", "version": 1}])
    bench.pass_time(10**9)
    assert bench.task_state("a") == "acquired"
    assert bench.stored()["tasks"][0][5] == ENDLESS


def test_an_offer_that_nobody_takes_is_repeated(bench: Bench) -> None:
    """After half a minute, then ever more rarely."""
    bench.promise("a", life=10**9, target=TARGET)
    assert bench.offers() == [("a", 0)]
    bench.pass_time(29_999)
    assert bench.offers() == []
    bench.pass_time(1)
    assert bench.offers() == [("a", 0)]
    bench.pass_time(59_999)
    assert bench.offers() == []
    bench.pass_time(1)
    assert bench.offers() == [("a", 0)]


def test_a_sleep_with_timer_and_target_wakes_its_sleeper(bench: Bench) -> None:
    """The SDK's ``ctx.sleep`` sends both tags; the timer resolves at its deadline and is nobody's task."""
    version = bench.task("w")
    tags = {"resonate:timer": "true", "resonate:target": TARGET}
    fenced = bench.ok("task.fence", id="w", version=version, action=create("w:1", T0 + 100, **tags))
    assert fenced["action"]["head"]["status"] == 200
    bench.refused(404, "task.get", id="w:1")
    assert bench.suspend("w", version, "w:1").status == 200
    bench.pass_time(99)
    assert bench.offers() == []
    bench.pass_time(1)
    assert bench.offers() == [("w", version)]
    assert bench.state("w:1") == "resolved"


# -- schedules ----------------------------------------------------------------------------------------


def schedule(bench: Bench, **changes: object) -> dict[str, object]:
    """Create a schedule that occurs each minute."""
    data = {
        "id": "s",
        "cron": "* * * * *",
        "promiseId": "{{.id}}-{{.timestamp}}",
        "promiseTimeout": 90_000,
        "promiseParam": {"data": "x"},
        "promiseTags": {"resonate:target": TARGET},
    }
    made: dict[str, object] = bench.ok("schedule.create", **(data | changes))["schedule"]
    return made


def test_a_schedule_creates_a_promise_at_each_occurrence(bench: Bench) -> None:
    """Named by its template, living from the occurrence, offered like any other."""
    made = schedule(bench)
    first = T0 // 60_000 * 60_000 + 60_000
    assert (made["nextRunAt"], made["createdAt"]) == (first, T0)
    bench.pass_time(first - T0 - 1)
    assert bench.stored()["promises"] == []
    bench.pass_time(1)
    record = bench.ok("promise.get", id=f"s-{first}")["promise"]
    assert (record["createdAt"], record["timeoutAt"]) == (first, first + 90_000)
    assert record["param"] == {"data": "x"}
    assert bench.offers() == [(f"s-{first}", 0)]
    again = bench.ok("schedule.get", id="s")["schedule"]
    assert (again["lastRunAt"], again["nextRunAt"]) == (first, first + 60_000)


def test_a_schedule_makes_up_for_every_occurrence_it_missed(bench: Bench) -> None:
    """Down for an hour: sixty promises, of which only those still alive are offered."""
    schedule(bench)
    bench.pass_time(3_600_000)
    assert len(bench.offers()) == 1
    bench.pass_time()
    states = [row[2] for row in bench.stored()["promises"]]
    assert len(states) == 60
    assert states.count("pending") == 1


def test_a_schedule_missed_for_long_is_made_up_in_batches(bench: Bench) -> None:
    """Every occurrence, more than one transaction takes."""
    schedule(bench)
    bench.pass_time(60_000 * 500)
    for _ in range(5):
        bench.pass_time()
    assert len(bench.stored()["promises"]) == 500


def test_a_schedule_that_exists_is_answered_as_it_is(bench: Bench) -> None:
    """The first record stands."""
    first = schedule(bench)
    before = bench.stored()
    assert schedule(bench, cron="0 0 * * *") == first
    assert bench.stored() == before


def test_schedule_refusals(bench: Bench) -> None:
    """No cron 400; one that never comes 400; unknown 404."""
    data = {"id": "s", "promiseId": "x", "promiseTimeout": 1}
    assert "cron" in bench.refused(400, "schedule.create", cron="never", **data)
    bench.refused(400, "schedule.create", cron="0 0 30 2 *", **data)
    bench.refused(404, "schedule.get", id="s")
    bench.refused(404, "schedule.delete", id="s")


def test_a_deleted_schedule_occurs_no_more(bench: Bench) -> None:
    """What it has made stays."""
    schedule(bench)
    bench.pass_time(60_000)
    bench.ok("schedule.delete", id="s")
    bench.pass_time(600_000)
    assert len(bench.stored()["promises"]) == 1
