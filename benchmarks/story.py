# ruff: noqa: INP001 - run as python -m benchmarks.story, from the root
"""How fast the story is: ``python -m benchmarks.story`` prints one JSON line.

The service runs in a process of its own, and this one is everybody else: callers
over HTTP, the mail server that takes the letters, and people's browsers, which
open the link of the letter that came, and press its button. Beside each engine
stands the floor: the same HTTP, pages, letters and SMTP over a dict, with nothing
durable. The embedded engine always; a server where ``RESONATE_URL`` names one,
Postgres where ``RESONATE_PG_SQL`` names its schema, any other with ``--engine URL``.
All processes share the machine's cores.

starts_s     approvals asked for, until the mail server has the last letter, per second
opens_s      links of the letters opened, until the last page is here, per second
decides_s    buttons of these pages pressed, until the last workflow has ended, per second
replies_s    replies by SMTP, until the last workflow has ended, per second
letter_ms    POST /approvals until the mail server has the letter, one at a time, p50 and p99
applied_ms   the button's POST until a caller who waits has the outcome, one at a time, p50 and p99
ended_ms     the button's POST until the workflow has ended, likewise; looked for every millisecond
"""

import argparse
import asyncio
import email
import email.policy
import json
import os
import re
import resource
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiohttp
import aiosmtplib
from resonate.promises import Promises

from service.demo import free_ports
from service.engine import open_engine
from tests.engine.real import POSTGRES, SERVER, database

#: Approvals in a burst, bursts (the median counts), callers at once, and stories one by one.
BURST, BURSTS, AT_ONCE, SINGLES = 1000, 3, 48, 300
APPROVER = "ann@corp.example"
#: A server that serves many runs has met the ids of the others.
RUN = secrets.token_hex(4)
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_NONCE = re.compile(r'name="nonce" value="([^"]+)"')
_LINK = re.compile(r"/decide/[\w.-]+")
_SUBJECT = re.compile(rb"Subject: .*?Refund (\S+)\r")


class MailServer:
    """Takes every letter at once, and keeps it by the approval that its subject names."""

    def __init__(self) -> None:
        self.letters: dict[str, bytes] = {}
        self._arrivals: dict[str, asyncio.Future[None]] = {}
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port."""
        server = await asyncio.start_server(self._session, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]

    async def letter(self, name: str) -> None:
        """Return once the letter of the approval `name` is here."""
        if name not in self.letters:
            self._arrivals[name] = asyncio.get_running_loop().create_future()
            await self._arrivals[name]

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail ESMTP\r\n")
        while line := await reader.readline():
            match line[:4].upper():
                case b"EHLO":
                    writer.write(b"250-mail\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                case b"DATA":
                    writer.write(b"354 go on\r\n")
                    self._take(await reader.readuntil(b"\r\n.\r\n"))
                    writer.write(b"250 taken\r\n")
                case b"QUIT":
                    break
                case _:
                    writer.write(b"250 fine\r\n")
        writer.close()

    def _take(self, raw: bytes) -> None:
        found = _SUBJECT.search(raw)
        assert found, raw[:500]
        name = found[1].decode()
        self.letters[name] = raw
        if (arrival := self._arrivals.pop(name, None)) is not None:
            arrival.set_result(None)

    def parsed(self, name: str) -> EmailMessage:
        """Return the letter as a mail program reads it."""
        return email.message_from_bytes(self.letters[name], policy=email.policy.default)

    def link(self, name: str) -> str:
        """Return the path of the letter's link."""
        part = self.parsed(name).get_body(("plain",))
        found = _LINK.search(str(part.get_content())) if part is not None else None
        assert found, name
        return found[0]


class World:
    """Callers and people, over keep-alive connections."""

    def __init__(
        self, http: aiohttp.ClientSession, mail: MailServer, mailbox: int, promises: Promises | None
    ) -> None:
        self._http, self._mail, self._mailbox, self._promises = http, mail, mailbox, promises

    async def ask(self, name: str) -> None:
        """Ask for the approval `name`."""
        body = {"id": name, "subject": f"Refund {name}", "approvers": [APPROVER]}
        async with self._http.post("/approvals", json=body) as answer:
            assert answer.status == 201, await answer.text()

    async def started(self, name: str) -> None:
        """Ask, and have the letter."""
        await self.ask(name)
        await self._mail.letter(name)

    async def opened(self, link: str) -> tuple[bytes, dict[str, str]]:
        """Open the page; return the form that its button sends, and the headers with the page's cookie."""
        async with self._http.get(link) as page:
            nonce = _NONCE.search(await page.text())
            assert nonce, page.status
            cookie = page.headers["Set-Cookie"].partition(";")[0]
        return f"nonce={nonce[1]}&choice=approve&comment=".encode(), FORM | {"Cookie": cookie}

    async def pressed(self, link: str, form: bytes, headers: dict[str, str]) -> None:
        """Press the button."""
        async with self._http.post(link, data=form, headers=headers) as page:
            assert page.status == 200, await page.text()

    async def outcome(self, name: str, wait: int = 60) -> str:
        """Return the status, once it is closed."""
        async with self._http.get(f"/approvals/{name}?wait={wait}") as answer:
            return str((await answer.json())["status"])

    async def ended(self, names: Iterable[str]) -> None:
        """Return once the workflows have ended: callers hear of a decision before that."""
        if self._promises is not None:
            for name in names:
                while (await self._promises.get(name)).state == "pending":  # noqa: ASYNC110 - it is elsewhere
                    await asyncio.sleep(0.001)

    async def replied(self, names: Iterable[str]) -> None:
        """Answer `names` with approve, over one connection as a mail server's."""
        client = aiosmtplib.SMTP(hostname="127.0.0.1", port=self._mailbox, start_tls=False)
        async with client:
            for name in names:
                letter = self._mail.parsed(name)
                reply = EmailMessage()
                reply["From"], reply["To"], reply["Subject"] = APPROVER, letter["Reply-To"], "Re: Refund"
                reply["Message-ID"] = f"<{name}@corp.example>"
                reply.set_content("approve\n")
                await client.send_message(reply)


async def each(work: Callable[[str], Awaitable[None]], names: list[str]) -> None:
    """Do `work` for every name, some at once."""
    waiting = iter(names)

    async def hand() -> None:
        for name in waiting:
            await work(name)

    await asyncio.gather(*(hand() for _ in range(AT_ONCE)))


async def burst(world: World, mail: MailServer, tag: str, *, size: int, reply: bool) -> dict[str, float]:
    """Return what `size` approvals do per second, from the request to the outcome."""
    names = [f"{RUN}-{tag}-{n}" for n in range(size)]
    forms: dict[str, tuple[str, bytes, dict[str, str]]] = {}

    async def opened(name: str) -> None:
        link = mail.link(name)
        forms[name] = link, *await world.opened(link)

    async def pressed(name: str) -> None:
        await world.pressed(*forms[name])

    rates = {"starts_s": size / await timed(each(world.started, names))}
    if reply:
        answers = asyncio.gather(*(world.replied(names[n::8]) for n in range(8)))
        rates["replies_s"] = size / await timed(answers, world.ended(names[-AT_ONCE:]))
    else:
        rates["opens_s"] = size / await timed(each(opened, names))
        # The last ones end last; whether all did is looked at when the clock has stopped.
        rates["decides_s"] = size / await timed(each(pressed, names), world.ended(names[-AT_ONCE:]))
    await world.ended(names)
    still_open = [name for name in names if await world.outcome(name, wait=0) != "approved"]
    assert not still_open, still_open
    return rates


async def timed(first: Awaitable[Any], *then: Awaitable[Any]) -> float:
    """Return the seconds that `first` takes, and all of `then` after it."""
    begun = time.perf_counter()
    await first
    await asyncio.gather(*then)
    return time.perf_counter() - begun


async def singles(world: World, mail: MailServer, count: int) -> dict[str, list[float]]:
    """Return the milliseconds to the letter, the outcome and the end of `count` stories, one at a time."""
    letters, applied, ended = [], [], []
    for n in range(count):
        name = f"{RUN}-single-{n}"
        begun = time.perf_counter()
        await world.started(name)
        letters.append((time.perf_counter() - begun) * 1000)
        link = mail.link(name)
        form = await world.opened(link)
        waiting = asyncio.ensure_future(world.outcome(name))
        await asyncio.sleep(0.01)  # the caller waits before the button is pressed
        begun = time.perf_counter()
        pressing = asyncio.ensure_future(world.pressed(link, *form))
        assert await waiting == "approved"
        applied.append((time.perf_counter() - begun) * 1000)
        await world.ended([name])
        ended.append((time.perf_counter() - begun) * 1000)
        await pressing
    return {"letter_ms": p50_p99(letters), "applied_ms": p50_p99(applied), "ended_ms": p50_p99(ended)}


def p50_p99(sample: list[float]) -> list[float]:
    """Return the median and the 99th percentile."""
    return [round(statistics.median(sample), 2), round(statistics.quantiles(sample, n=100)[98], 2)]


async def measure(
    engine: str | None, folder: Path, *, size: int, bursts: int, count: int, replies: bool
) -> dict[str, Any]:
    """Run the service on `engine`, or the floor for None, and measure it."""
    mail = MailServer()
    await mail.start()
    http, mailbox, protocol = free_ports(3)
    env = {
        "HTTP": f"127.0.0.1:{http}",
        "PUBLIC_URL": f"http://127.0.0.1:{http}",
        "MAILBOX": f"127.0.0.1:{mailbox}",
        "SMTP": f"smtp://127.0.0.1:{mail.port}",
        "SECRET_KEYS": "k" * 43,
        "REPLY_TRUST": "address",
        "ENGINE": engine or "memory:",
    }
    embedded = engine is not None and engine.startswith("sqlite:")
    if embedded:
        env["ENGINE_HTTP"] = f"127.0.0.1:{protocol}"
    command = [
        sys.executable,
        *os.environ.get("PROFILE", "").split(),
        "-m",
        *(["service", "serve"] if engine else ["benchmarks.floor"]),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - started once, before anything is measured
            command,
            env=os.environ | {f"APPROVALS_{name}": value for name, value in env.items()},
            stdout=log,
            stderr=log,
        )
    try:
        session = aiohttp.ClientSession(
            f"http://127.0.0.1:{http}",
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        async with session:
            await ready(session)
            looking = open_engine(f"http://127.0.0.1:{protocol}" if embedded else engine or "memory:")
            await looking.start()
            world = World(session, mail, mailbox, looking.client().promises if engine else None)
            await burst(world, mail, "warm", size=100, reply=False)
            rates = [await burst(world, mail, f"b{n}", size=size, reply=False) for n in range(bursts)]
            if replies:
                rates += [await burst(world, mail, f"r{n}", size=size, reply=True) for n in range(bursts)]
            times = await singles(world, mail, count)
            await looking.close()
    except Exception:
        print((folder / "log").read_text()[-3000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    figures: dict[str, Any] = {
        name: round(statistics.median(rate[name] for rate in rates if name in rate))
        for name in ("starts_s", "opens_s", "decides_s", "replies_s")
        if any(name in rate for rate in rates)
    }
    return figures | times


async def ready(session: aiohttp.ClientSession) -> None:
    """Return once the service answers."""
    for _ in range(600):
        try:
            async with session.get("/readyz") as answer:
                if answer.ok:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
    raise TimeoutError("the service did not start")


def main() -> None:
    """Measure the floor and every engine, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--burst", type=int, default=BURST)
    parser.add_argument("--bursts", type=int, default=BURSTS)
    parser.add_argument("--singles", type=int, default=SINGLES)
    parser.add_argument("--engine", action="append", default=[], help="another engine's URL")
    options = parser.parse_args()
    servers = [*options.engine, *filter(None, [os.environ.get(SERVER)])]
    if schema := os.environ.get(POSTGRES):
        servers.append(database(Path(schema)))
    figures: dict[str, Any] = {"cores": os.cpu_count(), "python": sys.version.split()[0]}
    sizes = {"size": options.burst, "bursts": options.bursts, "count": options.singles}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        figures["floor"] = asyncio.run(measure(None, folder, replies=False, **sizes))
        embedded = f"sqlite:///{folder}/story.db"
        figures["embedded"] = asyncio.run(measure(embedded, folder, replies=True, **sizes))
        for url in servers:
            name = url.partition("://")[0]
            figures[name] = asyncio.run(measure(url, folder, replies=True, **sizes))
    figures["load_cpu_s"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_utime, 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
