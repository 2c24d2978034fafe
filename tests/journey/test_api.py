"""The API's refusals and promises: what a caller is told, and that nothing was half-done."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import running
from service.demo import environment
from tests.journey.house import Person, house, link_of, settings_of

GOOD = {"id": "good-1", "subject": "Refund", "approvers": ["ann@corp.example"]}


@pytest.fixture
async def person(tmp_path: Path) -> AsyncIterator[Person]:
    """A caller in front of a running service."""
    env = environment(tmp_path)
    async with house(settings_of(env, tmp_path)) as (_, someone):
        yield someone


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("subject", {"approvers": ["ann@corp.example"]}),
        ("subject", GOOD | {"subject": "a\r\nBcc: eve@evil.example"}),
        ("subject", GOOD | {"subject": "x" * 201}),
        ("subject", GOOD | {"subject": 5}),
        ("approvers", GOOD | {"approvers": []}),
        ("approvers", GOOD | {"approvers": [f"a{n}@corp.example" for n in range(51)]}),
        ("approvers[0].email", GOOD | {"approvers": ["Ann <ann@corp.example>"]}),
        ("approvers[1].email", GOOD | {"approvers": ["ann@corp.example", "no address"]}),
        ("approvers[0].name", GOOD | {"approvers": [{"email": "ann@corp.example", "name": "A\nB"}]}),
        ("approvers[0].phone", GOOD | {"approvers": [{"email": "ann@corp.example", "phone": "1"}]}),
        ("id", GOOD | {"id": "a/b"}),
        ("id", GOOD | {"id": "x" * 129}),
        ("id", GOOD | {"id": f"ballot.{'a' * 26}"}),
        ("policy", GOOD | {"policy": "all"}),
        ("choices", GOOD | {"choices": ["a", "b"]}),
        ("webhook", GOOD | {"webhook": "https://corp.example/hook"}),
        ("due", GOOD | {"due": "tomorrow"}),
        ("due", GOOD | {"due": "2020-01-01T00:00:00Z"}),
        ("message", GOOD | {"message": "x" * 20_001}),
    ],
)
async def test_a_bad_field_is_named_and_nothing_is_done(person: Person, field: str, body: Any) -> None:
    """Every field that breaks its rule is a 422 problem document that names it; no approval, no letter."""
    answer = await person.http.post(f"{person.api}/approvals", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in [problem["field"] for problem in answer.json()["errors"]]
    assert (await person.http.get(f"{person.api}/approvals/good-1")).status_code == 404
    assert await person.letters() == []


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [
        (400, b"{", "application/json"),
        (400, b'{"subject": NaN}', "application/json"),
        (400, b"[" * 100_000, "application/json"),
        (413, b" " * 300_000, "application/json"),
        (415, b"{}", "text/plain"),
        (422, b"[]", "application/json"),
        (422, b"null", "application/json"),
    ],
)
async def test_a_bad_body_is_refused(person: Person, status: int, content: bytes, kind: str) -> None:
    """What is no JSON object of the right type and size is a problem document."""
    answer = await person.http.post(
        f"{person.api}/approvals", content=content, headers={"Content-Type": kind}
    )
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status


@pytest.mark.parametrize(
    "body", [{}, {"workflow_id": 5}, {"workflow_id": "a b"}, {"workflow_id": "a", "x": 1}]
)
async def test_start_workflow_names_what_is_wrong(person: Person, body: dict[str, Any]) -> None:
    """The walk-through's call names its one field, or the one that it does not know."""
    answer = await person.http.post(f"{person.api}/start-workflow", json=body)
    assert answer.status_code == 422
    assert [problem["field"] for problem in answer.json()["errors"]] == [
        "x" if "x" in body else "workflow_id"
    ]


@pytest.mark.parametrize("wait", ["-1", "61", "soon", "nan", "inf"])
async def test_wait_is_bounded(person: Person, wait: str) -> None:
    """A wait that is no number from 0 to 60 is a 422 that names it."""
    await person.ask("wait-1")
    answer = await person.http.get(f"{person.api}/approvals/wait-1", params={"wait": wait})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "wait")
    # A name that is mistyped would be an answer at once, and a caller that asks without end.
    answer = await person.http.get(f"{person.api}/approvals/wait-1", params={"wiat": "30"})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "wiat")


async def test_unknown_paths_and_methods_are_problem_documents(person: Person) -> None:
    """404 and 405 outside the pages are problem documents too."""
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("DELETE", "/approvals", 405),
        ("GET", "/approvals/x", 404),
        ("GET", "/approvals/%00", 404),
        ("GET", "/approvals/a%20b", 404),
    ]:
        answer = await person.http.request(method, f"{person.api}{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_a_passed_instant_opens_nothing_but_finds_what_was_opened(person: Person) -> None:
    """The same body after its due instant is the same approval, as it was before."""
    due = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    assert (await person.ask("inst-1", due=due)).status_code == 201
    assert (await person.report("inst-1", wait=20))["status"] == "expired"
    again = await person.ask("inst-1", due=due)
    assert (again.status_code, again.json()["status"]) == (200, "expired")


async def test_api_keys_guard_the_api_and_not_the_page(tmp_path: Path) -> None:
    """With keys set, the API wants one of them; the approver's page needs none."""
    env = environment(tmp_path, API_KEYS="one-key another-key")
    async with house(settings_of(env, tmp_path)) as (_, person):
        assert (await person.ask("key-1")).status_code == 401
        wrong = {"Authorization": "Bearer nope"}
        assert (await person.http.get(f"{person.api}/approvals/key-1", headers=wrong)).status_code == 401
        person.http.headers["Authorization"] = "Bearer another-key"
        assert (await person.ask("key-1")).status_code == 201
        del person.http.headers["Authorization"]
        assert (await person.press(link_of(await person.letter("key-1")))).status_code == 200


async def test_a_page_in_a_browser_can_not_borrow_the_keyless_api(person: Person) -> None:
    """Without keys, rebound names and other sites' requests are refused."""
    for headers in ({"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = await person.http.post(f"{person.api}/approvals", json=GOOD, headers=headers)
        assert answer.status_code == 403
    assert (await person.http.get(f"{person.api}/approvals/good-1")).status_code == 404


async def test_a_bare_post_decides_nothing(person: Person) -> None:
    """A POST without the page's nonce, or with another browser's, shows the page again."""
    await person.ask("bare-1")
    link = link_of(await person.letter("bare-1"))
    bare = await person.http.post(link, data={"choice": "approve", "comment": "kept"})
    assert bare.status_code == 403
    assert "kept" in bare.text
    assert "<button" in bare.text
    assert (await person.report("bare-1"))["status"] == "pending"


async def test_a_form_that_is_not_ours_is_refused(person: Person) -> None:
    """A form with too many fields is a 400 page, and decides nothing."""
    await person.ask("form-1")
    link = link_of(await person.letter("form-1"))
    answer = await person.http.post(link, content="&".join(f"a{n}=1" for n in range(50)))
    assert answer.status_code == 400
    assert "content-security-policy" in answer.headers
    assert (await person.report("form-1"))["status"] == "pending"


async def test_a_comment_is_cleaned_and_counted_as_browsers_count(person: Person) -> None:
    """CRLF counts as the one character that the page's field counted; nothing in a comment acts or hides."""
    await person.ask("c-1")
    link = link_of(await person.letter("c-1"))
    long = "\r\n".join(["x" * 79] * 50)
    assert (await person.press(link, "approve", f"a\0\x1b[31m\u202eb\r\n{long[:3990]}")).status_code == 200
    comment = (await person.report("c-1", wait=20))["approvers"][0]["comment"]
    assert comment.startswith("a  [31m b\nx")
    assert not set("\0\x1b\r\u202e") & set(comment)


async def test_what_mail_programs_put_behind_a_link_is_no_part_of_it(person: Person) -> None:
    """A link with a full stop, a bracket or a slash behind it opens all the same."""
    await person.ask("l-1")
    link = link_of(await person.letter("l-1"))
    for behind in (".", ")", ">", "/", ",", "%3E."):
        assert (await person.http.get(link + behind)).status_code == 200


async def test_a_malformed_host_is_refused(person: Person) -> None:
    """A Host header that is no host is a 400, and nothing fails."""
    answer = await person.http.get(f"{person.api}/approvals/x", headers={"Host": "[::1"})
    assert answer.status_code == 400


async def test_pages_carry_their_headers(person: Person) -> None:
    """Every page, a refusal too, is uncached, unframed, unindexed and runs nothing."""
    await person.ask("head-1")
    link = link_of(await person.letter("head-1"))
    for answer in (
        await person.http.get(link),
        await person.http.head(link),
        await person.http.get(link[:-9]),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-robots-tag"] == "noindex, nofollow"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["referrer-policy"] == "same-origin"


async def test_other_processes_attach_by_a_unix_socket(tmp_path: Path) -> None:
    """The engine's socket is its owner's alone; a gateway behind it serves the same approvals."""
    keys, socket = {"SECRET_KEYS": "k" * 40}, tmp_path / "engine.sock"
    env = environment(tmp_path, ENGINE_HTTP=f"unix:{socket}", **keys)
    async with house(settings_of(env, tmp_path)) as (_, person):
        assert socket.stat().st_mode & 0o777 == 0o600
        apart = settings_of(environment(tmp_path, ENGINE=f"unix:{socket}", **keys), tmp_path)
        async with running(apart, {"gateway"}) as other, httpx.AsyncClient(timeout=30) as http:
            answer = await http.post(f"http://{other.http}/approvals", json=GOOD | {"id": "u-1"})
            assert answer.status_code == 201, answer.text
        assert (await person.report("u-1"))["status"] == "pending"
    assert not socket.exists()
