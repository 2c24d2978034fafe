"""What people and callers see when the engine is away or the process stops, and the commands beside."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default as default_policy
from pathlib import Path

import httpx

from service.demo import environment, free_ports
from service.smtpd import Listener
from tests.durable.cluster import MailServer
from tests.durable.test_kill import service, started
from tests.journey.house import Person, eventually, link_of, reachable


async def test_with_the_engine_away_callers_hear_so(tmp_path: Path) -> None:
    """A killed engine process: the API answers 503, the page says so, and both work again with it."""
    [port] = free_ports(1)
    env = environment(tmp_path)
    engine_env = env | {
        "APPROVALS_ENGINE_HTTP": f"127.0.0.1:{port}",
        "APPROVALS_PUBLIC_URL": "http://localhost:1",
    }
    engine_env["APPROVALS_SECRET_KEYS"] = "k" * 43

    async def engine() -> asyncio.subprocess.Process:
        process = await started(engine_env, tmp_path, "serve", "engine")
        await reachable(f"http://127.0.0.1:{port}/health")
        return process

    first = await engine()
    client = env | {"APPROVALS_ENGINE": f"http://127.0.0.1:{port}"}
    async with service(client, tmp_path) as person:
        await person.ask("e-1")
        link = link_of(await person.letter("e-1"))
        first.kill()
        await first.wait()
        api, page = await asyncio.gather(
            person.http.get(f"{person.api}/approvals/e-1"), person.http.get(link)
        )
        assert (api.status_code, api.headers["retry-after"]) == (503, "5")
        assert page.status_code == 503
        assert "Nothing was decided" in page.text
        second = await engine()
        assert (await person.press(link)).status_code == 200
    second.terminate()
    await second.wait()


async def test_a_stop_answers_those_who_wait(tmp_path: Path) -> None:
    """SIGTERM with a caller waiting: they hear how it stands, and the stop is quick and quiet."""
    env = environment(tmp_path)
    process = await started(env, tmp_path)
    api = f"http://{env['APPROVALS_HTTP']}"
    await reachable(f"{api}/readyz")
    person = Person(api, f"http://{env['APPROVALS_INBOX']}", ("127.0.0.1", 0))
    async with person.http:
        await person.ask("s-1")
        await person.letter("s-1")
        waiting = asyncio.create_task(person.report("s-1", wait=60))
        await asyncio.sleep(0.5)  # long enough for the request to be waiting
        process.send_signal(signal.SIGTERM)
        assert (await asyncio.wait_for(waiting, 5))["status"] == "pending"
        out, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 0
    assert b"Traceback" not in out + err


async def suspended(port: int, task: str) -> bool | None:
    """Tell whether the engine on this port has a task put aside; None while it has not."""
    ask = {"kind": "task.get", "head": {"corrId": "c", "version": "2026-04-01"}, "data": {"id": task}}
    async with httpx.AsyncClient() as http:
        answer = (await http.post(f"http://127.0.0.1:{port}/", json=ask)).json()
    return answer["data"]["task"]["state"] == "suspended" or None


async def test_a_stop_answers_a_page_that_waits_for_the_engine(tmp_path: Path) -> None:
    """SIGTERM while the engine is away and somebody opens a link: a page, and no traceback."""
    [port] = free_ports(1)
    env = environment(tmp_path)
    engine = await started(
        env
        | {
            "APPROVALS_ENGINE_HTTP": f"127.0.0.1:{port}",
            "APPROVALS_PUBLIC_URL": "http://localhost:1",
            "APPROVALS_SECRET_KEYS": "k" * 43,
        },
        *(tmp_path, "serve", "engine"),
    )
    await reachable(f"http://127.0.0.1:{port}/health")
    process = await started(env | {"APPROVALS_ENGINE": f"http://127.0.0.1:{port}"}, tmp_path)
    person = Person(f"http://{env['APPROVALS_HTTP']}", f"http://{env['APPROVALS_INBOX']}", ("127.0.0.1", 0))
    await reachable(f"{person.api}/readyz")
    async with person.http:
        await person.ask("p-1")
        link = link_of(await person.letter("p-1"))
        # A stop finishes what is in hand, however long the engine is away: let it be none of that.
        await eventually(lambda: suspended(port, "p-1"), "the workflow waits and holds nothing")
        engine.kill()
        await engine.wait()
        opening = asyncio.create_task(person.http.get(link))
        await asyncio.sleep(0.5)  # long enough for the page to wait
        process.send_signal(signal.SIGTERM)
        page = await asyncio.wait_for(opening, 10)
        assert page.status_code == 503
        assert "Nothing was decided" in page.text
        out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert b"Traceback" not in out + err


async def test_an_engine_elsewhere_is_not_offered_a_second_time(tmp_path: Path) -> None:
    """The line names the setting, and not the port, which that engine itself may have."""
    [port] = free_ports(1)
    url, keys = f"http://127.0.0.1:{port}", "k" * 43
    env = environment(
        tmp_path,
        ENGINE=url,
        ENGINE_HTTP=f"127.0.0.1:{port}",
        PUBLIC_URL="http://localhost:1",
        SECRET_KEYS=keys,
    )
    process = await started(env, tmp_path, "serve", "gateway")
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert b"APPROVALS_ENGINE_HTTP: only an engine on a file" in err


async def test_backup_replaces_nothing_and_fails_in_a_line(tmp_path: Path) -> None:
    """No database, another file, a target that exists: a line and exit code 2; then a real copy."""
    env = environment(tmp_path)
    precious = tmp_path / "precious"
    precious.write_text("keep")

    async def backup(target: Path, **over: str) -> tuple[int | None, bytes]:
        process = await started(env | over, tmp_path, "backup", str(target))
        out, err = await process.communicate()
        assert b"Traceback" not in out + err
        return process.returncode, err

    assert (await backup(tmp_path / "copy.db"))[0] == 2
    assert (await backup(tmp_path / "copy.db", APPROVALS_ENGINE=f"sqlite:///{precious}"))[0] == 2
    async with service(env, tmp_path, how=signal.SIGTERM) as person:
        await person.ask("b-1")
        assert (await backup(precious))[0] == 2
        assert precious.read_text() == "keep"
        assert (await backup(tmp_path / "copy.db"))[0] == 0
    async with service(
        env | {"APPROVALS_ENGINE": f"sqlite:///{tmp_path}/copy.db"}, tmp_path, how=signal.SIGTERM
    ) as person:
        assert (await person.report("b-1"))["status"] == "pending"


async def test_a_stop_finishes_what_is_in_hand(tmp_path: Path) -> None:
    """SIGTERM while a mail server thinks about a letter: its answer is waited for, and counts."""
    server = MailServer(holds=True)
    with listening(server) as port:
        env = environment(tmp_path, SMTP=f"smtp://127.0.0.1:{port}", INBOX="off")
        process = await asked(env, tmp_path, server)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(1.0)  # a stop that does not wait would have ended by now
        ended_early = process.returncode
        assert ended_early is None
        server.holds = False
        out, err = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 0, err
        assert b"stopping" in out
        async with service(env, tmp_path) as person:
            await person.press(link_of(letter_of(server)))
            assert (await person.report("s-2", wait=20))["status"] == "approved"
            await person.ended("s-2")
        assert len(server.letters) == 1


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Whoever can't wait loses nothing: the letter goes out again, byte for byte."""
    server = MailServer(holds=True)
    with listening(server) as port:
        env = environment(tmp_path, SMTP=f"smtp://127.0.0.1:{port}", INBOX="off")
        process = await asked(env, tmp_path, server)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)  # two signals in one moment are one
        await asyncio.wait_for(process.communicate(), 5)
        assert process.returncode == -signal.SIGTERM
        server.holds = False

        async def again() -> bool | None:
            return len(server.letters) == 2 or None

        async with service(env, tmp_path):
            await eventually(again, "the letter goes out again")
        assert server.letters[0] == server.letters[1]


async def asked(env: dict[str, str], folder: Path, server: MailServer) -> asyncio.subprocess.Process:
    """Start the service and ask; return it once the mail server has the letter, and thinks."""
    process = await started(env, folder)
    api = f"http://{env['APPROVALS_HTTP']}"
    await reachable(f"{api}/readyz")
    person = Person(api, "", ("127.0.0.1", 0))
    async with person.http:
        assert (await person.ask("s-2")).status_code == 201

    async def taken() -> bool | None:
        return bool(server.letters) or None

    await eventually(taken, "the letter is at the mail server")
    return process


@contextmanager
def listening(server: MailServer) -> Iterator[int]:
    """Run a mail server; give its port."""
    listener = Listener(server, setting="TEST", host="127.0.0.1", port=0)
    listener.start()
    try:
        yield listener.port
    finally:
        server.holds = False
        listener.stop()


def letter_of(server: MailServer) -> EmailMessage:
    """Return the first letter."""
    return message_from_bytes(server.letters[0], policy=default_policy)
