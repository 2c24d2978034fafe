"""A gateway, a mailbox and workers in processes of their own, on every engine that outlives them."""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.durable.cluster import ENGINES, Cluster, Recipient, cluster
from tests.journey.house import eventually, link_of

ANN = "ann@corp.example"


@pytest.fixture(scope="module", params=ENGINES)
def people(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipient]:
    """A person before a cluster of one worker that several tests share."""
    with cluster(request.param, tmp_path_factory.mktemp("cluster"), "worker") as here:
        yield here.person


@pytest.fixture
async def person(people: Recipient) -> Recipient:
    """The same person, with an HTTP client for this test's event loop."""
    return Recipient(people.api, "", people.mailbox, servers=people.servers)


async def test_a_link_decides(person: Recipient) -> None:
    """Asked at the gateway, written by the worker, decided at the gateway, closed by the worker."""
    async with person.http:
        assert (await person.ask("c-link")).status_code == 201
        assert (await person.press(link_of(await person.letter("c-link")), "decline")).status_code == 200
        report = await person.report("c-link", wait=20)
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
        assert 3.9 < time.monotonic() - began < 6
        assert (await person.press(link)).status_code == 409


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
