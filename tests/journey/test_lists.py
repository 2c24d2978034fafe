"""GET /approvals: what waits, what is closed, who was asked, and approvals that other programs opened."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.app import Running
from service.demo import environment
from service.lists import PAGE
from service.records import APPROVAL, GROUP, start_function, utc_now
from tests.journey.house import Person, eventually, house, link_of, settings_of

ANN, BOB = "ann@corp.example", "bob@corp.example"


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[tuple[Running, Person]]:
    """A running service and whoever calls it."""
    async with house(settings_of(environment(tmp_path), tmp_path)) as (service, person):
        yield service, person


async def listed(person: Person, **query: str) -> list[dict[str, Any]]:
    """Return all that a list has, page by page."""
    items: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        after = {"cursor": cursor} if cursor else {}
        answer = await person.http.get(f"{person.api}/approvals", params=query | after)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page.keys() == {"items", "next_cursor"}
        items, cursor = items + page["items"], page["next_cursor"]
    return items


async def closed(person: Person, name: str, status: str) -> dict[str, Any]:
    """Return the one that is listed with `status`, once its workflow has closed it."""

    async def look() -> dict[str, Any] | None:
        return next((item for item in await listed(person, status=status) if item["id"] == name), None)

    return await eventually(look, f"{name} is listed as {status}")


def ids(items: list[dict[str, Any]]) -> list[str]:
    """Return their ids."""
    return [item["id"] for item in items]


async def test_lists_by_status_and_approver(live: tuple[Running, Person]) -> None:
    """An approval is in each list that it belongs in, as GET shows it, from the moment of its 201."""
    _, person = live
    await person.ask("l-1", ANN)
    await person.ask("l-2", ANN, BOB)
    await person.ask("l-3", BOB)
    assert ids(await listed(person)) == ids(await listed(person, status="pending")) == ["l-1", "l-2", "l-3"]
    await person.press(link_of(await person.letter("l-2", to=BOB)), "decline")
    ended = await closed(person, "l-2", "declined")
    assert ended == await person.report("l-2")
    await person.letter("l-1")
    await person.letter("l-3")
    assert await listed(person, status="declined") == [ended]
    assert ids(await listed(person, status="pending")) == ["l-1", "l-3"]
    assert await listed(person, status="approved") == []
    assert sorted(ids(await listed(person, approver=BOB))) == ["l-2", "l-3"]
    assert ids(await listed(person, approver="Bob@Corp.Example", status="pending")) == ["l-3"]
    assert ids(await listed(person, approver=BOB, status="declined")) == ["l-2"]
    assert await listed(person, approver="eve@corp.example") == []


async def test_pages_hold_everything_once(live: tuple[Running, Person]) -> None:
    """More than a page, with what is wanted far between."""
    _, person = live
    names = [f"p-{n:03}" for n in range(PAGE * 2 + 5)]
    for name in names:
        await person.ask(name)
    assert ids(await listed(person)) == names
    await person.press(link_of(await person.letter(names[-1])))
    await closed(person, names[-1], "approved")
    assert ids(await listed(person, status="approved")) == names[-1:]
    assert ids(await listed(person, status="pending")) == names[:-1]


async def test_what_a_workflow_of_another_program_asked_is_listed(live: tuple[Running, Person]) -> None:
    """Its promise bears no tag of ours; a worker makes the entry and closes it."""
    service, person = live
    request = {"subject": "Deploy wf-1", "approvers": [ANN]}
    promises, until = service.approvals.promises, utc_now() + timedelta(days=1)
    await start_function(promises, f"poll://any@{GROUP}", "wf-1:1", APPROVAL, request, timeout_at=until)
    letter = await person.letter("wf-1")
    assert ids(await listed(person)) == ids(await listed(person, status="pending")) == ["wf-1:1"]
    await person.press(link_of(letter))
    assert (await closed(person, "wf-1:1", "approved"))["approvers"][0]["channel"] == "link"
    assert await listed(person, status="pending") == []


@pytest.mark.parametrize(
    ("field", "query"),
    [
        ("status", {"status": "open"}),
        ("status", {"status": ""}),
        ("approver", {"approver": "nobody"}),
        ("approver", {"approver": ""}),
        ("cursor", {"cursor": ""}),
        ("cursor", {"cursor": "x" * 700}),
        ("state", {"state": "pending"}),
    ],
)
async def test_a_wrong_filter_is_refused(
    live: tuple[Running, Person], field: str, query: dict[str, str]
) -> None:
    """A parameter that is ignored would show what was not asked for."""
    answer = await live[1].http.get(f"{live[1].api}/approvals", params=query)
    assert answer.status_code == 422
    assert [each["field"] for each in answer.json()["errors"]] == [field]


async def test_an_engine_without_lists_says_so(tmp_path: Path) -> None:
    """The SDK's in-memory engine answers no search."""
    async with house(settings_of(environment(tmp_path, ENGINE="memory:"), tmp_path)) as (_, person):
        answer = await person.http.get(f"{person.api}/approvals")
    assert answer.status_code == 501
    assert "memory:" in answer.json()["detail"]
