"""Lists: by state as it reads now, by tags, a page at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.engine.database import Database
from service.engine.search import search
from service.engine.wire import encode_reply, read_call
from tests.engine.bench import T0, TARGET, Bench, FakeClock, create, envelope


class Lists:
    """A bench whose searches are answered as well."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def ask(self, kind: str, **data: Any) -> Any:
        """Return a search's status and data."""
        call = read_call(envelope(kind, data))
        db = self.bench.database._db
        assert db is not None
        reply = json.loads(encode_reply(kind, "c1", search(db, call, self.bench.now)))
        return reply["head"]["status"], reply["data"]

    def ids(self, kind: str = "promise.search", **data: Any) -> list[str]:
        """Return the ids of one page."""
        status, found = self.ask(kind, **data)
        assert status == 200, found
        return [one["id"] for one in found[kind.split(".", maxsplit=1)[0] + "s"]]


@pytest.fixture
def lists(tmp_path: Path) -> Iterator[Lists]:
    """Six approvals of two people, one settled, one past its deadline."""
    clock = FakeClock()
    bench = Bench(Database(tmp_path / "a.db", clock=clock), clock)
    for number in range(6):
        tags = {"kind": "approval", "who": "ann" if number % 2 else "bob", "resonate:external": "true"}
        life = 10 if number == 4 else 1000
        bench.ok("promise.create", id=f"a{number}", timeoutAt=T0 + life, tags=tags)
    bench.ok("promise.create", id="other", timeoutAt=T0 + 1000, tags={"kind": "x"})
    bench.settle("a3")
    clock.now += 10
    yield Lists(bench)
    bench.database.close()


def test_by_tags_all_of_them(lists: Lists) -> None:
    """Every tag must be there, with its value."""
    assert lists.ids(tags={"kind": "approval", "who": "ann"}) == ["a1", "a3", "a5"]
    assert lists.ids(tags={"kind": "approval", "resonate:external": "true", "who": "bob"}) == [
        "a0",
        "a2",
        "a4",
    ]
    assert lists.ids(tags={"resonate:external": "false"}) == []
    assert lists.ids(tags={"resonate:external": "true"}, limit=2) == ["a0", "a1"]
    assert lists.ids(tags={'"; --': "x"}) == []


def test_c8_by_state_as_it_reads_now(lists: Lists) -> None:
    """What is past its deadline is no longer pending, stored or not."""
    assert lists.bench.stored()["promises"][4][2] == "pending"
    assert lists.ids(state="pending", tags={"kind": "approval"}) == ["a0", "a1", "a2", "a5"]
    assert lists.ids(state="rejected_timedout") == ["a4"]
    assert lists.ids(state="resolved") == ["a3"]
    _, found = lists.ask("promise.search", state="rejected_timedout")
    assert found["promises"][0]["settledAt"] == T0 + 10


def test_pages_hold_everything_once(lists: Lists) -> None:
    """The cursor leads from page to page, and is absent on the last."""
    for tags in ({}, {"kind": "approval"}):
        seen: list[str] = []
        cursor = None
        while True:
            status, page = lists.ask(
                "promise.search", limit=2, tags=tags, **({"cursor": cursor} if cursor else {})
            )
            assert status == 200
            assert len(page["promises"]) <= 2
            seen += [one["id"] for one in page["promises"]]
            cursor = page.get("cursor")
            if cursor is None:
                break
        assert seen == [f"a{n}" for n in range(6)] + ([] if tags else ["other"])


@pytest.mark.parametrize("data", [{"state": "open"}, {"limit": 0}, {"limit": 1001}, {"tags": [1]}])
def test_a_search_of_another_shape_is_400(lists: Lists, data: dict[str, Any]) -> None:
    """As on the server."""
    assert lists.ask("promise.search", **data)[0] == 400


def test_tasks_and_schedules_can_be_listed(lists: Lists) -> None:
    """Tasks by state as it reads now, schedules by the tags of what they make."""
    bench = lists.bench
    bench.promise("t1", target=TARGET)
    bench.promise("t2", target=TARGET, life=5)
    action = create("t3", bench.now + 1000, **{"resonate:target": TARGET})
    bench.ok("task.create", pid="w", ttl=1000, action=action)
    bench.clock.now += 5
    assert lists.ids("task.search") == ["t1", "t2", "t3"]
    assert lists.ids("task.search", state="pending") == ["t1"]
    assert lists.ids("task.search", state="fulfilled") == ["t2"]
    assert lists.ids("task.search", limit=1, cursor="t1") == ["t2"]
    for name, tags in (("s1", {"k": "a"}), ("s2", {"k": "b"})):
        data = {"cron": "0 9 * * *", "promiseId": "x", "promiseTimeout": 1, "promiseTags": tags}
        bench.ok("schedule.create", id=name, **data)
    assert lists.ids("schedule.search") == ["s1", "s2"]
    assert lists.ids("schedule.search", tags={"k": "b"}) == ["s2"]
    assert lists.ids("schedule.search", limit=1) == ["s1"]
