"""Processes that are really killed: what was acknowledged goes on in the next one."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from aiosmtpd.smtp import SMTP, Envelope, Session

from service.demo import environment
from service.smtpd import Listener
from tests.journey.house import Person, eventually, link_of, reachable


async def started(
    env: dict[str, str], folder: Path, *command: str, stdout: Any = PIPE, stderr: Any = PIPE
) -> Process:
    """Start ``approvals`` as a process of its own."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service",
        *(command or ("dev",)),
        cwd=folder,
        env={**os.environ, **env, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=stdout,
        stderr=stderr,
    )


@asynccontextmanager
async def service(
    env: dict[str, str], folder: Path, *command: str, how: int = signal.SIGKILL
) -> AsyncIterator[Person]:
    """Run ``approvals`` as a process of its own; end it with the signal `how`."""
    with (folder / "log").open("ab") as log:
        process = await started(env, folder, *command, stdout=log, stderr=log)
    api = f"http://{env['APPROVALS_HTTP']}"
    host, port = env["APPROVALS_MAILBOX"].split(":")
    person = Person(api, f"http://{env['APPROVALS_INBOX']}", (host, int(port)))
    try:
        await reachable(f"{api}/readyz")
        async with person.http:
            yield person
    finally:
        process.send_signal(how)
        code = await process.wait()
        assert code == (-how if how == signal.SIGKILL else 0), (folder / "log").read_text()


async def test_killed_after_the_letter_the_old_link_still_decides(tmp_path: Path) -> None:
    """Killed with -9 while a person thinks: the link in the old letter decides, no second letter comes."""
    env = environment(tmp_path)
    async with service(env, tmp_path) as person:
        assert (await person.ask("k-1")).status_code == 201
        link = link_of(await person.letter("k-1"))
    async with service(env, tmp_path, how=signal.SIGTERM) as person:
        assert (await person.report("k-1"))["status"] == "pending"
        assert (await person.press(link)).status_code == 200
        assert (await person.report("k-1", wait=20))["status"] == "approved"
        await person.ended("k-1")
        assert len(await person.letters("k-1")) == 1


async def test_the_demo_killed_while_it_waits_goes_on(tmp_path: Path) -> None:
    """The same: the approval of before, its old letter and no second one, and the terminal tells the end."""
    env = environment(tmp_path)
    person = Person(f"http://{env['APPROVALS_HTTP']}", f"http://{env['APPROVALS_INBOX']}", ("127.0.0.1", 0))
    async with person.http:
        first = await started(env, tmp_path, "demo")
        await reachable(f"{person.api}/readyz")
        link = link_of(await person.letter("Refund"))
        first.kill()
        await first.wait()
        second = await started(env, tmp_path, "demo")
        await reachable(f"{person.api}/readyz")
        assert len(await person.letters("Refund")) == 1
        assert (await person.press(link)).status_code == 200
        out, _ = await asyncio.wait_for(second.communicate(), 20)
    assert second.returncode == 0
    assert b"demo-1" in out
    assert b"Its result: approved" in out


async def test_killed_right_after_the_acknowledgement_nothing_is_lost(tmp_path: Path) -> None:
    """Every request that was answered 201 before the kill gets its letter from the next process."""
    env = environment(tmp_path)
    asked = 0
    async with service(env, tmp_path) as person:
        answers = await asyncio.gather(*[person.ask(f"k-{n}") for n in range(20)], return_exceptions=True)
        asked = sum(isinstance(a, httpx.Response) and a.status_code == 201 for a in answers)
    assert asked == 20
    async with service(env, tmp_path, how=signal.SIGTERM) as person:
        letters = [await person.letter(f"k-{n}") for n in range(20)]
        assert {link_of(mail) for mail in letters}
        for n in range(20):
            copies = {
                bytes(mail) for mail in await person.letters(f"k-{n}") if mail["Subject"] == f"Refund k-{n}"
            }
            assert len(copies) == 1


async def test_killed_after_the_decision_the_workflow_goes_on(tmp_path: Path) -> None:
    """A decision that was shown as recorded stands after a kill, by page and by reply."""
    env = environment(tmp_path)
    async with service(env, tmp_path) as person:
        await person.ask("d-1")
        await person.ask("d-2")
        first, second = await person.letter("d-1"), await person.letter("d-2")
        answers = await asyncio.gather(
            person.press(link_of(first), "decline"), person.reply(second, "approve\nGo ahead.")
        )
        assert answers[0].status_code == 200
        assert answers[1].startswith("250")
    async with service(env, tmp_path, how=signal.SIGTERM) as person:
        assert (await person.report("d-1", wait=20))["status"] == "declined"
        assert (await person.report("d-2", wait=20))["status"] == "approved"
        await person.ended("d-1", "d-2")
        assert "Go ahead." in str(await person.letter("d-2", kind="receipt"))


class Slow:
    """A mail server that takes a letter whole and never answers, until it is told to."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.answers = False

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Note the letter; answer only once that is switched on."""
        assert isinstance(envelope.content, bytes)
        self.seen.append(envelope.content)
        if not self.answers:
            await asyncio.sleep(3600)
        return "250 OK"


async def test_killed_mid_letter_the_copy_has_the_same_bytes(tmp_path: Path) -> None:
    """Killed while the mail server is about to answer: the letter goes out again, byte for byte."""
    slow = Slow()
    server = Listener(slow, setting="TEST", host="127.0.0.1", port=0)
    await asyncio.to_thread(server.start)
    try:
        env = environment(tmp_path, SMTP=f"smtp://127.0.0.1:{server.port}")

        async def seen(count: int) -> None:
            async def look() -> bool | None:
                return len(slow.seen) >= count or None

            await eventually(look, f"{count} letters at the mail server")

        async with service(env, tmp_path) as person:
            await person.ask("m-1")
            await seen(1)
        slow.answers = True
        async with service(env, tmp_path, how=signal.SIGTERM):
            await seen(2)
        assert slow.seen[0] == slow.seen[1]
    finally:
        await asyncio.to_thread(lambda: server.stop(grace=0))


async def test_a_second_process_on_the_same_database_says_so(tmp_path: Path) -> None:
    """Two processes can't have one database: a line, exit code not 0, no traceback."""
    env = environment(tmp_path)
    async with service(env, tmp_path, how=signal.SIGTERM):
        second = await started(environment(tmp_path), tmp_path)
        out, err = await asyncio.wait_for(second.communicate(), 20)
        assert second.returncode not in {0, None}
        assert b"Traceback" not in out + err
        assert err.strip().count(b"\n") == 0
        assert b"APPROVALS_ENGINE" in err


async def test_a_taken_port_names_its_setting(tmp_path: Path) -> None:
    """Each port that is taken stops the start with a line that names the setting."""
    env = environment(tmp_path)
    for name in ("HTTP", "MAILBOX", "INBOX", "INBOX_SMTP"):
        host, port = env[f"APPROVALS_{name}"].split(":")
        squatter = await asyncio.start_server(lambda _r, _w: None, host, int(port))
        async with squatter:
            refused = await started(env, tmp_path)
            out, err = await asyncio.wait_for(refused.communicate(), 20)
            assert refused.returncode == 2
            assert f"APPROVALS_{name}:".encode() in err
            assert b"Traceback" not in out + err
