"""The road from SQLite to another engine: letters that were sent before decide after."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.approvals import Approvals
from service.decisions import Decisions
from service.demo import environment, free_ports
from service.domain import ballot_key
from service.migrate import migrate
from tests.durable.test_clocks import Mail, at_work
from tests.durable.test_kill import service, started
from tests.engine.live import until
from tests.engine.real import postgres_url, server_url
from tests.journey.house import link_of, reachable

ANN, BOB = "ann@corp.example", "bob@corp.example"


async def command(env: dict[str, str], folder: Path, *arguments: str) -> tuple[int | None, str]:
    """Run `approvals migrate`; return its exit code and what it said."""
    process = await started(env, folder, "migrate", *arguments)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    said = re.sub(r"\s+", " ", (out + err).decode())
    assert "Traceback" not in said
    return process.returncode, said


async def bounced(approvals: Approvals, name: str, *people: str) -> None:
    """Have these people's letters come back."""
    for email in people:
        await Decisions(approvals).bounced(
            await approvals.ballot(ballot_key(name, email)), "5.1.1 no such user"
        )


@asynccontextmanager
async def engine(folder: Path, port: int) -> AsyncIterator[str]:
    """Run another engine in a process of its own; give its URL."""
    env = {
        "APPROVALS_ENGINE": f"sqlite:///{folder}/other.db",
        "APPROVALS_ENGINE_HTTP": f"127.0.0.1:{port}",
        "APPROVALS_PUBLIC_URL": "http://localhost:1",
        "APPROVALS_SECRET_KEYS": "k" * 43,
    }
    process = await started(env, folder, "serve", "engine")
    try:
        await reachable(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def test_old_letters_decide_on_the_new_engine(tmp_path: Path) -> None:
    """Same links, same reply addresses, same times, no second letter; the old file is out of the way."""
    [port] = free_ports(1)
    env = environment(tmp_path, SECRET_KEYS="k" * 43)
    async with service(env, tmp_path, how=signal.SIGTERM) as person:
        await person.ask("m-link", ANN, due="P3D")
        await person.ask("m-reply", ANN, BOB, due="P3D")
        link = link_of(await person.letter("m-link"))
        await person.letter("m-reply", to=ANN)
        letter = await person.letter("m-reply", to=BOB)
        await person.ask("m-done", ANN)
        await person.press(link_of(await person.letter("m-done")))
        before = [await person.report(name) for name in ("m-link", "m-reply")]
        code, said = await command(env, tmp_path, f"http://127.0.0.1:{port}")
        assert code == 2
        assert "is in use by process" in said
    async with engine(tmp_path, port) as url:
        code, said = await command(env, tmp_path, url)
        assert (code, "moved 2" in said) == (0, True), said
        # A second run, as after a failure, finds what the first one made.
        (tmp_path / "approvals.db.moved").rename(tmp_path / "approvals.db")
        code, said = await command(env, tmp_path, url)
        assert (code, "moved 2" in said) == (0, True), said
        assert not (tmp_path / "approvals.db").exists()
        async with service(env | {"APPROVALS_ENGINE": url}, tmp_path, how=signal.SIGTERM) as person:
            assert [await person.report(name) for name in ("m-link", "m-reply")] == before
            again = await person.ask("m-link", ANN, due="P3D")
            assert again.status_code == 200
            assert (await person.press(link)).status_code == 200
            assert (await person.report("m-link", wait=20))["status"] == "approved"
            assert (await person.reply(letter, "decline", sender=BOB)).startswith("250")
            assert (await person.report("m-reply", wait=20))["status"] == "declined"
            await person.ended("m-link", "m-reply")
            receipt = await person.letter("m-reply", kind="receipt")
            # This run's inbox is a fresh one: nobody was asked again.
            assert [mail["Message-ID"] for mail in await person.letters()] == [receipt["Message-ID"]]


@pytest.mark.parametrize("kind", ["sqlite", "server", "postgres"])
async def test_each_approver_goes_along_as_they_stand(kind: str, tmp_path: Path) -> None:
    """Whom no letter reaches stays out of reach, who decided has decided, and nobody is asked again."""
    source = f"sqlite:///{tmp_path}/a.db"
    match kind:
        case "server":
            target = server_url(empty=True)
        case "postgres":
            target = postgres_url()
        case _:
            target = f"sqlite:///{tmp_path}/b.db"
    mail = Mail("takes")
    async with at_work(tmp_path, mail) as approvals:
        for name in ("one-bounced", "all-bounced", "decided"):
            await approvals.open({"id": name, "subject": "Refund", "approvers": [ANN, BOB], "due": "P3D"})
        await until(lambda: len(mail.tries) == 6)
        await bounced(approvals, "one-bounced", ANN)
    async with at_work(tmp_path, mail, works=False) as approvals:
        await bounced(approvals, "all-bounced", ANN, BOB)
        ballot = await approvals.ballot(ballot_key("decided", BOB))
        assert (await Decisions(approvals).cast(ballot, "decline", "link")).counted
        before = [await approvals.show(name) for name in ("one-bounced", "all-bounced", "decided")]
    assert (await migrate(source, target, token=None, leave=False)).moved == 3
    async with at_work(tmp_path, mail, url=target, works=False) as approvals:
        assert [await approvals.show(name) for name in ("one-bounced", "all-bounced", "decided")] == before
    async with at_work(tmp_path, mail, url=target) as approvals:
        assert (await approvals.wait("all-bounced", 20)).status == "undeliverable"
        await bounced(approvals, "one-bounced", BOB)
        assert (await approvals.wait("one-bounced", 20)).status == "undeliverable"
        while (await approvals.promises.get("decided")).state == "pending":  # noqa: ASYNC110 - as there is none
            await asyncio.sleep(0.01)
        assert (await approvals.show("decided")).status == "declined"
    assert len(mail.tries) == 6


async def test_nothing_is_moved_while_something_cannot_be(tmp_path: Path) -> None:
    """A letter in answer that still waits is named; --leave moves the rest."""
    env = environment(tmp_path, SECRET_KEYS="k" * 43)
    async with service(env, tmp_path, how=signal.SIGTERM) as person:
        await person.ask("m-1", ANN)
        letter = await person.letter("m-1")
    away = env | {"APPROVALS_SMTP": f"smtp://127.0.0.1:{free_ports(1)[0]}"}
    async with service(away, tmp_path, how=signal.SIGTERM) as person:
        assert (await person.reply(letter, "perhaps")).startswith("250")
    code, said = await command(env, tmp_path, f"sqlite:///{tmp_path}/approvals.db")
    assert (code, "is the file to move from" in said) == (2, True), said
    target = f"sqlite:///{tmp_path}/other.db"
    code, said = await command(env, tmp_path, target)
    assert code == 2
    assert "let it end here" in said
    assert "moved 0" in said
    assert (tmp_path / "approvals.db").exists()
    code, said = await command(env, tmp_path, target, "--leave")
    assert code == 0, said
    assert "moved 1" in said
    async with service(env | {"APPROVALS_ENGINE": target}, tmp_path) as person:
        assert (await person.press(link_of(letter))).status_code == 200
