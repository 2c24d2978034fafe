"""Lists on every engine: by state, by tags, a page at a time; and the one engine that has none."""

import sys
import time
import uuid

import pytest
from resonate.types import Value

from service.engine import Engine, open_engine
from service.errors import NoLists, SettingsError
from tests.engine.live import running, soon
from tests.engine.real import database, postgres_url, psql

FAR = 60_000


async def test_a_page_at_a_time_by_state_and_tags(url: str) -> None:
    """Those with every tag and that state as it reads now, in order, each once; values are read."""
    family = uuid.uuid4().hex[:8]
    now = time.time_ns() // 1_000_000
    async with running(url) as (engine, r):
        for n in range(7):
            tags = {"t:family": family, "t:odd": str(n % 2)}
            await r.promises.create(f"{family}-{n}", now + FAR, Value(data={"n": n}), tags)
        await r.promises.create(f"{family}-late", now + 1, Value(), {"t:family": family})
        await r.promises.resolve(f"{family}-3", Value(data="yes"))
        await soon(_expired(engine, family))

        assert await ids(engine, family, "pending") == [f"{family}-{n}" for n in (0, 1, 2, 4, 5, 6)]
        assert await ids(engine, family, "resolved") == [f"{family}-3"]
        assert await ids(engine, family, None, odd="1") == [f"{family}-{n}" for n in (1, 3, 5)]
        assert await ids(engine, family, "pending", odd="1") == [f"{family}-{n}" for n in (1, 5)]
        [third], cursor = await engine.search("resolved", {"t:family": family}, limit=1)
        assert cursor is None
        assert (third.param.data, third.value.data) == ({"n": 3}, "yes")
        assert third.settled_at is not None


async def ids(engine: Engine, family: str, state: str | None, odd: str | None = None) -> list[str]:
    """Return what a search finds, taken two at a time."""
    tags = {"t:family": family} | ({} if odd is None else {"t:odd": odd})
    found: list[str] = []
    cursor = None
    while True:
        page, cursor = await engine.search(state, tags, limit=2, cursor=cursor)
        found += [record.id for record in page]
        if cursor is None:
            return found
        assert len(page) == 2


async def _expired(engine: Engine, family: str) -> None:
    while await ids(engine, family, "rejected_timedout") != [f"{family}-late"]:
        pass


async def test_another_programs_odd_value_does_not_take_the_page_with_it(url: str) -> None:
    """What is no JSON in base64 is listed without its value."""
    tag = {"t:family": uuid.uuid4().hex}
    async with running(url) as (engine, r):
        record = (
            '{"kind":"promise.create","head":{"corrId":"c","version":"2026-04-01"},"data":{"id":"'
            f'{tag["t:family"]}","timeoutAt":{time.time_ns() // 1_000_000 + FAR},'
            f'"param":{{"data":"%%%"}},"tags":{{"t:family":"{tag["t:family"]}"}}}}}}'
        )
        await engine.network.send(record)
        await r.promises.create(f"{tag['t:family']}-2", time.time_ns() // 1_000_000 + FAR, Value(data=1), tag)
        page, _ = await engine.search(None, tag, limit=10)
    assert [found.param.data for found in page] == [None, 1]


async def test_the_in_memory_engine_says_that_it_has_none() -> None:
    """By an error that names an engine which has."""
    async with running("memory:") as (engine, _):
        with pytest.raises(NoLists, match="sqlite"):
            await engine.search("pending", limit=10)


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (None, "there is no resonate.resonate_rpc; apply resonate-pg's schema: psql -f resonate.sql"),
        ("", "nobody may not use resonate-pg's schema; GRANT resonate_worker TO nobody"),
    ],
)
async def test_a_database_without_schema_or_rights_stops_the_start(
    statements: str | None, problem: str
) -> None:
    """In one line that says what to do."""
    url = postgres_url() if statements is not None else _empty()
    if statements is not None:
        url = _as_role(url, "nobody", "")
    with pytest.raises(SettingsError) as refused:
        await open_engine(url).start()
    assert refused.value.problem == problem


def test_without_the_extra_postgres_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver is no dependency of those who don't use it."""
    monkeypatch.setitem(sys.modules, "service.engine.postgres", None)
    with pytest.raises(SettingsError, match=r"install email-approvals\[postgres\]"):
        open_engine("postgresql://user:secret@db/approvals")


async def test_a_role_that_may_work_but_not_read_the_table_hears_which_right_lists_need() -> None:
    """Everything else works for a plain member of resonate_worker."""
    url = _as_role(postgres_url(), "plain", "GRANT resonate_worker TO plain")
    async with running(url) as (engine, r):
        created = await r.promises.create("a", time.time_ns() // 1_000_000 + FAR, Value(data=1), {})
        assert created.state == "pending"
        with pytest.raises(NoLists, match=r"GRANT SELECT ON resonate\.promises"):
            await engine.search("pending", limit=10)


async def test_postgres_is_told_which_index_lists_want_and_uses_it() -> None:
    """Without it a person's ballots are sought in the whole table."""
    url = postgres_url()
    tags = {"approvals:kind": "ballot", "approvals:approver": "ann@corp.example"}
    async with running(url) as (engine, r):
        for name, person in (("b-1", "ann@corp.example"), ("b-2", "bob@corp.example")):
            own = tags | {"approvals:approver": person}
            await r.promises.create(name, time.time_ns() // 1_000_000 + FAR, Value(), own)
        [advice] = await engine.advice()
        psql(url, advice.removeprefix("lists by approver want an index: "))
        assert await engine.advice() == []
        page, _ = await engine.search(None, tags, limit=10)
        assert [found.id for found in page] == ["b-1"]
        nobody = {"approvals:approver": "nobody@corp.example"}
        assert (await engine.search(None, nobody, limit=10))[0] == []
    plan = psql(
        url,
        "SET enable_seqscan = off; EXPLAIN SELECT id FROM resonate.promises"
        " WHERE tags ? 'approvals:approver' AND tags->>'approvals:approver' = 'ann@corp.example'",
    )
    assert "approvals_by_approver" in plan


def _empty() -> str:
    postgres_url()  # skips where none is named
    return database(None)


def _as_role(url: str, role: str, grants: str) -> str:
    role_there = f"DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
    psql(url, role_there + grants)
    return url.replace("postgres:@", f"{role}:@")
