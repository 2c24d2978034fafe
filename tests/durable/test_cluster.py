"""A gateway, a mailbox and workers in processes of their own, on every engine that outlives them."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from resonate.types import PromiseRecord, Value

from tests.durable.cluster import ENGINES, Cluster, Recipient, cluster
from tests.engine.live import running
from tests.journey.house import eventually, link_of

ANN = "ann@corp.example"


@pytest.fixture(scope="module", params=ENGINES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one worker that several tests share."""
    with cluster(request.param, tmp_path_factory.mktemp("cluster"), "worker") as here:
        yield here


@pytest.fixture
async def person(shared: Cluster) -> Recipient:
    """The person before it, with an HTTP client for this test's event loop."""
    return Recipient(shared.person.api, "", shared.person.mailbox, servers=shared.person.servers)


async def test_a_link_decides(person: Recipient) -> None:
    """Asked at the gateway, written by the worker, decided at the gateway, closed by the worker."""
    async with person.http:
        assert (await person.ask("c-link")).status_code == 201
        assert (await person.press(link_of(await person.letter("c-link")), "decline")).status_code == 200
        report = await person.report("c-link", wait=20)
        await person.ended("c-link")
    assert (report["status"], report["approvers"][0]["channel"]) == ("declined", "link")


async def test_a_reply_decides(person: Recipient) -> None:
    """Taken by the mailbox, answered by the worker with a receipt."""
    async with person.http:
        await person.ask("c-reply")
        letter = await person.letter("c-reply")
        assert (await person.reply(letter, "approve\nGo ahead.")).startswith("250")
        report = await person.report("c-reply", wait=20)
        assert (report["status"], report["approvers"][0]["comment"]) == ("approved", "Go ahead.")
        await person.letter("c-reply", kind="receipt")


async def test_a_repeated_request_is_one_approval(person: Recipient) -> None:
    """Sent many times at once and again after it was closed: one of them made it, one letter went out."""
    async with person.http:
        answers = await asyncio.gather(*[person.ask("c-same") for _ in range(8)])
        assert sorted(a.status_code for a in answers) == [200] * 7 + [201]
        assert (await person.ask("c-same", "bob@corp.example")).status_code == 409
        await person.press(link_of(await person.letter("c-same")))
        await person.report("c-same", wait=20)
        assert (await person.ask("c-same")).json()["status"] == "approved"
        assert len(await person.letters("c-same")) == 1


async def test_the_deadline_closes_it(person: Recipient) -> None:
    """Within a second of its due time, whoever waits hears so; the page says it."""
    async with person.http:
        began = time.monotonic()
        await person.ask("c-due", due="PT4S")
        link = link_of(await person.letter("c-due"))
        report = await person.report("c-due", wait=20)
        assert report["status"] == "expired"
        await person.ended("c-due")
        assert 3.9 < time.monotonic() - began < 6
        assert (await person.press(link)).status_code == 409


async def test_a_decision_is_told_while_no_worker_is_up(tmp_path: Path) -> None:
    """Whoever waits hears of a vote when it is durable; the workflow ends once there is a worker again."""
    with cluster(ENGINES[0], tmp_path, "w0") as here:
        person = here.person
        async with person.http:
            await person.ask("c-alone", ANN, "bob@corp.example")
            link = link_of(await person.letter("c-alone", to="bob"))
            here.kill("w0")
            waiting = asyncio.create_task(person.report("c-alone", wait=60))
            await asyncio.sleep(0.5)
            assert not waiting.done()
            assert (await person.press(link, "decline")).status_code == 200
            told = await asyncio.wait_for(waiting, 5)
            assert (told["status"], [a["status"] for a in told["approvers"]]) == (
                "declined",
                ["moot", "decided"],
            )
            assert await person.listed("declined") == []
            here.start_worker("w1")
            await person.ended("c-alone")
            assert await person.report("c-alone") == told


ASKED = {"subject": "Refund", "approvers": [ANN]}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"args": ["ann@corp.example"]}, "Expected `object`, got `str`"),
        ({"args": [[ASKED]]}, "Expected `object`, got `array`"),
        ({"args": []}, "missing a required argument: 'request'"),
        ({"args": [ASKED, 2]}, "too many positional arguments"),
        ({"args": [{"subject": "Refund"}]}, "approvers"),
        ({"args": [ASKED | {"colour": "red"}]}, "colour"),
    ],
)
async def test_a_request_of_the_wrong_shape_is_told_so(
    shared: Cluster, data: dict[str, Any], told: str
) -> None:
    """From any language, at once and by name: a result or a rejection, never a retry."""
    promise = await asked_from_elsewhere(shared, {"func": "approval"} | data, wait=True)
    assert promise.state != "pending"
    assert told in str(promise.value.data)


@pytest.mark.parametrize("data", [{"func": "approval", "args": "ann"}, {"func": "refund", "args": []}])
async def test_what_nobody_can_run_is_said_once(shared: Cluster, data: dict[str, Any]) -> None:
    """Arguments that are no list, a function that is not ours: parked, in one line; the rest goes on."""
    before = shared.log("worker")
    promise = await asked_from_elsewhere(shared, data, wait=False)
    await asyncio.sleep(2)
    said = shared.log("worker").removeprefix(before)
    assert said.count(f"task {promise.id} can't be run here") == 1
    assert said.count("Traceback (most recent call last)") <= 3  # one, with its causes


async def asked_from_elsewhere(here: Cluster, data: dict[str, Any], *, wait: bool) -> PromiseRecord:
    """Create a durable function's promise as another language's SDK might; return how it stands."""
    async with running(here.env["APPROVALS_ENGINE"], group="callers", works=False) as (engine, r):
        name = f"x-{uuid.uuid4().hex}"
        tags = {f"resonate:{part}": name for part in ("origin", "branch", "parent")}
        tags |= {"resonate:scope": "global", "resonate:target": engine.sources[0].resolve_target("approvals")}
        await r.promises.create(name, int((time.time() + 60) * 1000), Value(data=data), tags)

        async def look() -> PromiseRecord | None:
            promise = await r.promises.get(name)
            return promise if promise.state != "pending" or not wait else None

        return await eventually(look, "its end")


@pytest.mark.parametrize("kind", ENGINES)
async def test_twenty_approvals_survive_two_kills(kind: str, tmp_path: Path) -> None:
    """One of three workers is killed mid-letter, one mid-block: the last finishes all; new work is shared."""
    with cluster(kind, tmp_path, "w0", "w1", "w2") as here:
        person, mail = here.person, here.mail
        names = [f"s-{n:02}" for n in range(20)]
        async with person.http:
            await all_work(here, "w0", "w1", "w2")
            mail["w0"].holds = True
            answers = await asyncio.gather(*[person.ask(name) for name in names])
            assert {answer.status_code for answer in answers} == {201}
            # Its mail server has letters whole and has not said so.
            await eventually(partial(here.taken, "s-", "w0"), "a letter of w0")
            here.kill("w0")
            for name in names:
                await eventually(partial(here.taken, name, "w1", "w2"), f"{name} from a survivor")

            # Everything is written, and waits for people: nobody holds anything.
            here.kill("w1")
            links = [link_of(await person.letter(name)) for name in names]
            pressed = await asyncio.gather(*[person.press(link) for link in links])
            assert {page.status_code for page in pressed} == {200}
            reports = await asyncio.gather(*[person.report(name, wait=30) for name in names])
            assert {report["status"] for report in reports} == {"approved"}
            await person.ended(*names)

            here.start_worker("w3")
            await all_work(here, "w2", "w3")
        copies = person.copies()
    assert all(len(forms) == 1 for forms in copies.values())
    assert len(copies) == len(names) + len(here.rounds)


async def all_work(here: Cluster, *workers: str) -> None:
    """Return once each of these workers has sent a letter of something new: it listens, and has its share."""
    round_ = len(here.rounds)

    async def look() -> bool | None:
        name = f"w-{round_}-{len(here.rounds)}"
        here.rounds.append(name)
        await here.person.ask(name)
        await asyncio.sleep(0.1)
        shares = [await here.taken(f"w-{round_}-", worker) for worker in workers]
        return all(shares) or None

    await eventually(look, f"letters of {workers}")
    for name in here.rounds[round_:]:
        await here.person.letter(name)
