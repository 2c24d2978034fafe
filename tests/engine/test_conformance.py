"""The questions every implementation answers: C1 to C12, and where the SDK needs another answer.

Named as in ``docs/engine.md``. Source: ``spec/implementation-questions.md`` of
resonatehq/resonate-specification. L and P answers that can be observed are here too.
"""

import json

import pytest

from service.engine.database import Database
from tests.engine.bench import T0, TARGET, Bench, FakeClock, create, settle

LISTENER = "poll://uni@g/p"


@pytest.mark.parametrize(
    ("tags", "armed"),
    [
        ({"target": TARGET}, True),
        ({"external": "true"}, True),
        ({"timer": "true"}, True),
        ({"timer": "true", "target": TARGET}, True),
        ({}, False),
        ({"external": "false"}, False),
        ({"timer": "yes"}, False),
        ({"scope": "local"}, False),
    ],
)
def test_c1_only_external_promises_have_a_durable_timeout(
    bench: Bench, tags: dict[str, str], *, armed: bool
) -> None:
    """External, targeted and timers fire at their deadline; an internal one only reads as timed out."""
    bench.promise("a", life=100, **tags)
    snap = bench.ok("debug.snap")
    assert snap["promiseTimeouts"] == ([{"id": "a", "timeout": T0 + 100}] if armed else [])
    bench.pass_time(100)
    expected = "resolved" if tags.get("timer") == "true" else "rejected_timedout"
    assert bench.stored()["promises"][0][2] == (expected if armed else "pending")
    assert bench.state("a") == expected


@pytest.mark.parametrize("tags", [{"external": "true"}, {"timer": "true"}, {"target": TARGET}])
def test_c1_whatever_can_be_awaited_wakes_its_awaiter_at_its_deadline(
    bench: Bench, tags: dict[str, str]
) -> None:
    """No obligation is recorded that is never discharged."""
    version = bench.task("w")
    bench.promise("p", life=100, **tags)
    bench.ok("promise.register_listener", awaited="p", address=LISTENER)
    bench.suspend("w", version, "p")
    bench.messages()
    bench.pass_time(100)
    assert sorted(m["kind"] for m in bench.messages()) == ["execute", "unblock"]


def test_c2_no_callback_on_an_internal_promise(bench: Bench) -> None:
    """422, by register_callback and by suspend, pending or settled."""
    version = bench.task("w")
    bench.promise("p")
    bench.refused(422, "promise.register_callback", awaited="p", awaiter="w")
    assert bench.suspend("w", version, "p").status == 422
    bench.settle("p")
    bench.refused(422, "promise.register_callback", awaited="p", awaiter="w")
    assert bench.suspend("w", version, "p").status == 422


def test_c3_no_listener_on_an_internal_promise(bench: Bench) -> None:
    """422, pending or settled."""
    bench.promise("p")
    bench.refused(422, "promise.register_listener", awaited="p", address=LISTENER)
    bench.settle("p")
    bench.refused(422, "promise.register_listener", awaited="p", address=LISTENER)


def test_c4_create_halt_and_continue_see_the_projection(bench: Bench) -> None:
    """What is past its deadline is neither leased nor halted nor set going, stored or not."""
    for id_ in ("created", "halted", "continued"):
        bench.promise(id_, life=100, target=TARGET)
    bench.ok("task.halt", id="continued")
    bench.clock.now += 100
    action = create("created", T0 + 9999, **{"resonate:target": TARGET})
    made = bench.ok("task.create", pid="w", ttl=1, action=action)
    assert (made["task"]["state"], made["task"]["version"]) == ("fulfilled", 0)
    assert made["promise"]["state"] == "rejected_timedout"
    bench.refused(409, "task.halt", id="halted")
    bench.refused(409, "task.continue", id="continued")


def test_c5_leases_and_offers_skip_the_dead(bench: Bench) -> None:
    """A tick in which both the promise and its task's clock are due offers nothing."""
    bench.promise("waiting", life=30_000, target=TARGET)
    bench.task("held", life=30_000, ttl=30_000)
    bench.offers()
    bench.pass_time(30_000)
    assert bench.offers() == []
    assert {row[1] for row in bench.stored()["tasks"]} == {"fulfilled"}


def test_c5_even_when_the_deadline_has_not_been_stored(bench: Bench) -> None:
    """The guard reads the projection, not the row."""
    bench.promise("a", life=50, target=TARGET)
    bench.ok("debug.start")
    bench.clock.now += 60_000
    db = bench.database._db
    assert db is not None
    db.execute("UPDATE promises SET external = 0")  # as if its timeout had been lost
    bench.offers()
    bench.ok("debug.stop")
    for _ in range(3):
        bench.pass_time(60_000)
    assert bench.offers() == []


def test_c6_resume_skips_an_awaiter_past_its_own_deadline(bench: Bench) -> None:
    """Settled after the awaiter's deadline, from outside: nothing is dispatched."""
    version = bench.task("w", life=100)
    bench.promise("p", life=1000, external="true")
    bench.suspend("w", version, "p")
    bench.clock.now += 100
    bench.settle("p")
    assert bench.offers() == []
    assert bench.stored()["tasks"][0][1] == "suspended"
    assert bench.task_state("w") == "fulfilled"


@pytest.mark.parametrize("order", [("w", "p"), ("p", "w")])
def test_c6_also_in_a_tick_that_expires_both(bench: Bench, order: tuple[str, str]) -> None:
    """Whichever of the two deadlines comes first."""
    lives = {order[0]: 100, order[1]: 101}
    version = bench.task("w", life=lives["w"])
    bench.promise("p", life=lives["p"], external="true")
    bench.suspend("w", version, "p")
    bench.pass_time(500)
    assert bench.offers() == []


def test_c7_heartbeat_leaves_a_dead_promises_lease_alone(bench: Bench) -> None:
    """Its lease stays as it was stored."""
    version = bench.task("w", life=100, ttl=1000)
    bench.clock.now += 100
    before = bench.stored()
    bench.ok("task.heartbeat", pid="w1", tasks=[{"id": "w", "version": version}])
    assert bench.stored() == before


def test_c8_every_answer_is_projected(bench: Bench) -> None:
    """Every kind reads the deadline as passed while nothing of it is stored; searches: test_search."""
    version = bench.task("w", life=10_000, ttl=20_000)
    bench.promise("dead", life=100, target=TARGET)
    bench.promise("plain", life=100)
    bench.clock.now += 100
    before = bench.stored()
    dead = "rejected_timedout"
    assert bench.state("dead") == bench.state("plain") == dead
    assert bench.promise("dead")["state"] == bench.promise("plain")["state"] == dead
    assert bench.settle("dead")["state"] == dead
    subscribed = bench.ok("promise.register_listener", awaited="dead", address=LISTENER)
    assert subscribed["promise"]["state"] == dead
    called = bench.ok("promise.register_callback", awaited="dead", awaiter="w")
    assert called["promise"]["state"] == dead
    fenced = bench.ok("task.fence", id="w", version=version, action=settle("plain"))
    assert fenced["action"]["data"]["promise"]["state"] == dead
    assert bench.task_state("dead") == "fulfilled"
    assert bench.suspend("w", version, "dead").status == 300
    bench.refused(409, "task.acquire", id="dead", version=0, pid="x", ttl=1)
    assert bench.stored() == before


def test_c9_no_version_is_offered_that_was_not_issued(bench: Bench) -> None:
    """An offer names the version the task has, never one ahead."""
    bench.promise("a", life=10**9, target=TARGET)
    for version in range(4):
        assert set(bench.offers()) == {("a", version)}
        bench.acquire("a", version)
        bench.pass_time(5000)


def test_c10_one_valid_claim_per_task(bench: Bench) -> None:
    """After a lapse only the new holder's version is good for anything."""
    bench.task("a", ttl=100)
    bench.pass_time(100)
    bench.acquire("a", 1, pid="w2")
    bench.refused(409, "task.fulfill", id="a", version=1, action=settle("a"))
    bench.refused(409, "task.release", id="a", version=1)
    bench.refused(409, "task.fence", id="a", version=1, action=create("b", T0 + 5))
    bench.refused(409, "task.acquire", id="a", version=1, pid="w3", ttl=9)
    bench.ok("task.fulfill", id="a", version=2, action=settle("a"))


def test_c11_a_settled_promise_takes_no_callback_listener_or_change(bench: Bench) -> None:
    """Nothing is stored, and a task asleep on something else sleeps on."""
    version = bench.task("w")
    bench.promise("p", external="true")
    bench.promise("other", external="true")
    bench.settle("p")
    bench.suspend("w", version, "other")
    before = bench.stored()
    bench.ok("promise.register_callback", awaited="p", awaiter="w")
    bench.ok("promise.register_listener", awaited="p", address=LISTENER)
    bench.settle("p", "rejected")
    bench.pass_time()
    assert bench.stored() == before
    assert bench.messages() == []
    assert bench.task_state("w") == "suspended"


@pytest.mark.parametrize("kind", ["debug.start", "debug.stop", "debug.reset", "debug.snap", "debug.tick"])
def test_c12_debug_verbs_are_off_unless_switched_on(kind: str) -> None:
    """403, nothing changed, and a debug time is not believed; the token before it is tested over HTTP."""
    bench = Bench(Database(None, clock=(clock := FakeClock())), clock)
    bench.promise("a", life=100)
    bench.refused(403, kind, time=T0 + 10**6)
    assert bench.ask("promise.get", at=T0 + 10**6, id="a").data["promise"]["state"] == "pending"
    bench.database.close()


# -- debug, for checkers ------------------------------------------------------------------------------


def test_debug_time_is_now(bench: Bench) -> None:
    """A checker's time stands in for the clock, request by request."""
    bench.ok("debug.start")
    bench.ask("promise.create", at=100, id="a", timeoutAt=200, tags={})
    assert bench.ask("promise.get", at=199, id="a").data["promise"]["state"] == "pending"
    assert bench.ask("promise.get", at=200, id="a").data["promise"]["state"] == "rejected_timedout"


def test_debug_tick_fires_what_is_due_and_delivers_nothing(bench: Bench) -> None:
    """Offers and unblocks are in the snapshot; the latest version of an offer replaces the earlier."""
    bench.ok("debug.start")
    bench.promise("a", life=10**6, target=TARGET)
    bench.promise("p", life=100, external="true")
    bench.ok("promise.register_listener", awaited="p", address=LISTENER)
    snap = bench.ok("debug.snap")
    assert snap["messages"] == []
    assert snap["taskTimeouts"] == [{"id": "a", "type": 0, "timeout": T0}]
    assert snap["listeners"] == [{"id": "p", "address": LISTENER}]
    assert bench.ok("debug.tick", time=T0 + 100) == []
    snap = bench.ok("debug.snap")
    kinds = sorted((m["message"]["kind"], m["address"]) for m in snap["messages"])
    assert kinds == [("execute", TARGET), ("unblock", LISTENER)]
    assert snap["listeners"] == []
    bench.acquire("a", 0)
    bench.ok("task.release", id="a", version=1)
    bench.ok("debug.tick", time=T0 + 10**5)
    offers = [m["message"]["data"] for m in bench.ok("debug.snap")["messages"] if m["address"] == TARGET]
    assert offers == [{"task": {"id": "a", "version": 1}}]
    assert bench.messages() == []
    bench.ok("debug.reset")
    assert all(rows == [] for rows in bench.stored().values())


def test_debug_start_stops_what_fires_by_itself(bench: Bench) -> None:
    """Until ``debug.stop``."""
    bench.ok("debug.start")
    bench.promise("a", life=100, target=TARGET)
    bench.pass_time(500)
    assert bench.stored()["promises"][0][2] == "pending"
    bench.ok("debug.stop")
    bench.pass_time()
    assert bench.stored()["promises"][0][2] == "rejected_timedout"


# -- the envelope -------------------------------------------------------------------------------------


def test_replies_leave_out_what_is_unset(bench: Bench) -> None:
    """No nulls: an ``unblock`` with one is lost by the SDK."""
    bench.promise("p", external="true")
    bench.ok("promise.register_listener", awaited="p", address=LISTENER)
    bench.task("w")
    record = bench.settle("p")
    (message,) = bench.messages()
    assert "null" not in json.dumps([message, record, bench.ok("task.get", id="w"), bench.ok("debug.snap")])
