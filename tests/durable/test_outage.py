"""The engine's process is lost and comes back, or comes late, while all the others run."""

import asyncio
import itertools
import time
from pathlib import Path

import httpx
import pytest

from tests.durable.cluster import ENGINES, Cluster, Recipient, cluster, ready
from tests.engine.live import until
from tests.journey.house import eventually, form_of, link_of

ANN = "ann@corp.example"
#: Approvals that are accepted before the engine is lost, and again once it is back.
LOAD = 20


@pytest.mark.parametrize("kind", [ENGINES[0], "postgres"])
async def test_the_engine_lost_and_back_under_load(kind: str, tmp_path: Path) -> None:
    """Callers hear 503 or were accepted, mail 451; nothing acknowledged is lost, and nobody is restarted."""
    with cluster(kind, tmp_path, "w0", "w1") as here:
        person = here.person
        async with person.http, httpx.AsyncClient(timeout=30) as browser:
            await person.ask("e-link")
            await person.ask("e-reply")
            link, letter = link_of(await person.letter("e-link")), await person.letter("e-reply")
            form = form_of((await browser.get(link)).text) | {"choice": "approve", "comment": ""}
            pids = {name: process.pid for name, process in here.processes.items()}
            accepted: list[str] = []
            load = [asyncio.create_task(asking(person, caller, accepted)) for caller in "abcd"]
            await until(lambda: len(accepted) >= LOAD)
            said = here.log("w0")
            here.lose_engine()

            gone = asyncio.gather(
                person.ask("e-away"),
                browser.post(link, data=form),
                person.reply(letter, "approve", message_id="<away@corp.example>"),
                person.http.get(f"{person.api}/readyz"),
            )
            api, page, mail, readiness = await asyncio.wait_for(gone, 30)
            assert (api.status_code, api.headers["retry-after"]) == (503, "5")
            assert page.status_code == 503
            assert mail.startswith("451")
            assert readiness.status_code == 503

            here.regain_engine()
            ready(person.api)
            until_now = len(accepted)
            await until(lambda: len(accepted) >= until_now + LOAD)
            for caller in load:
                caller.cancel()
            assert all(
                isinstance(end, asyncio.CancelledError)
                for end in await asyncio.gather(*load, return_exceptions=True)
            )
            # The same mail again, as the sender's server does, and the same click.
            assert (await person.reply(letter, "approve", message_id="<away@corp.example>")).startswith("250")
            assert (await browser.post(link, data=form)).status_code == 200
            for name in ("e-link", "e-reply"):
                assert (await person.report(name, wait=30))["status"] == "approved"
            for name in accepted:
                assert (await person.press(link_of(await person.letter(name)))).status_code == 200
            reports = await asyncio.gather(*[person.report(name, wait=30) for name in accepted])
            await person.ended(*accepted)
            assert {report["status"] for report in reports} == {"approved"}
            # Both workers have gone on: each sends some of what is new.
            sent = {name: len(server.letters) for name, server in here.mail.items()}
            await eventually(lambda: more_from_each(here, sent), "letters of both workers")
        assert {name: pid for name, pid in pids.items() if name != "engine"} == {
            name: process.pid for name, process in here.processes.items() if name != "engine"
        }
        assert all(len(forms) == 1 for forms in person.copies().values())
        assert here.log("w0").removeprefix(said).count("does not answer, waiting for it") == 1


async def asking(person: Recipient, caller: str, accepted: list[str]) -> None:
    """Ask for one approval after another until cancelled; note those that were accepted."""
    async with httpx.AsyncClient(timeout=60) as http:
        for number in itertools.count():
            name = f"l-{caller}-{number:03}"
            body = {"id": name, "subject": f"Refund {name}", "approvers": [ANN]}
            answer = await http.post(f"{person.api}/approvals", json=body)
            assert answer.status_code in {201, 503}, answer.text
            if answer.status_code == 201:
                accepted.append(name)
            await asyncio.sleep(0.03)


async def more_from_each(here: Cluster, sent: dict[str, int]) -> bool | None:
    """Ask for something new; return True once each worker has sent more than it had."""
    here.rounds.append(f"m-{len(here.rounds)}")
    await here.person.ask(here.rounds[-1])
    await asyncio.sleep(0.1)
    return all(len(server.letters) > sent[name] for name, server in here.mail.items()) or None


async def test_an_engine_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    """Started before it, the others stay up, say once that it is away, are not ready, and then go on."""
    with cluster(ENGINES[0], tmp_path, "w0", engine_first=False) as here:
        person = here.person
        async with person.http:

            async def answers() -> int | None:
                try:
                    return (await person.http.get(f"{person.api}/readyz")).status_code
                except httpx.HTTPError:
                    return None

            assert await eventually(answers, "the gateway") == 503
            assert (await person.http.get(f"{person.api}/healthz")).status_code == 200
            await asyncio.sleep(2)
            assert {name: process.poll() for name, process in here.processes.items()} == dict.fromkeys(
                here.processes
            )
            here.start_engine()
            ready(person.api)
            await person.ask("late-1")
            await person.press(link_of(await person.letter("late-1")))
            assert (await person.report("late-1", wait=20))["status"] == "approved"
            await person.ended("late-1")
        for name in ("gateway", "mailbox", "w0"):
            assert here.log(name).count("does not answer, waiting for it") == 1, here.log(name)


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_slow_mail_server_costs_no_second_letter(kind: str, tmp_path: Path) -> None:
    """An answer that takes three leases comes to the one worker that waits for it: its lease holds."""
    with cluster(kind, tmp_path, "w0", "w1") as here:
        person = here.person
        async with person.http:
            for server in here.mail.values():
                server.holds = True
            began = time.monotonic()
            await person.ask("slow-1")
            await person.letter("slow-1")
            await asyncio.sleep(6.5 - (time.monotonic() - began))
            for server in here.mail.values():
                server.holds = False
            await person.press(link_of(await person.letter("slow-1")))
            assert (await person.report("slow-1", wait=20))["status"] == "approved"
            assert len(await person.letters("slow-1")) == 1
