"""The service as several processes on one engine, and the mail servers that its workers send to."""

import asyncio
import email
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import default as default_policy
from pathlib import Path
from typing import override

import httpx
from aiosmtpd.smtp import SMTP, Envelope, Session

from service.demo import free_ports
from service.smtpd import Listener
from tests.engine.real import postgres_url, reachable, server_url
from tests.journey.house import Person

ROOT = Path(__file__).parents[2]
#: A cluster's engines; the first is ours, its role in a process of its own.
ENGINES = ["sqlite over HTTP", "server", "postgres"]
#: Seconds after which a dead worker's tasks are another's.
LEASE = 2
#: Seconds that a process may take to answer where many start at once.
PATIENCE = 40.0


@dataclass
class MailServer:
    """A worker's own mail server, so that a letter tells who sent it; it may hold back its answers."""

    letters: list[bytes] = field(default_factory=list)
    holds: bool = False

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """Note the letter; answer unless that is held back."""
        assert isinstance(envelope.content, bytes)
        self.letters.append(envelope.content)
        while self.holds:  # noqa: ASYNC110 - it is let go from another thread's loop
            await asyncio.sleep(0.1)
        return "250 OK"


@dataclass
class Recipient(Person):
    """A person whose mail is what the mail servers took."""

    servers: list[MailServer] = field(default_factory=list)

    @override
    async def letters(self, needle: str = "", to: str = "") -> list[EmailMessage]:
        taken = [raw for server in self.servers for raw in server.letters]
        mails = [email.message_from_bytes(raw, policy=default_policy) for raw in taken]
        return [m for m in reversed(mails) if needle in str(m["Subject"]) and to in str(m["To"])]

    def copies(self) -> dict[str, set[bytes]]:
        """Return the different forms of each letter, by its Message-ID."""
        found: dict[str, set[bytes]] = defaultdict(set)
        for raw in (raw for server in self.servers for raw in server.letters):
            found[re.findall(rb"(?im)^message-id:\s*(\S+)", raw)[0].decode()].add(raw)
        return found


@dataclass
class Cluster:
    """Processes by name, each with a log of its own."""

    folder: Path
    env: dict[str, str]
    person: Recipient
    engine_port: int = 0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    listeners: list[Listener] = field(default_factory=list)
    mail: dict[str, MailServer] = field(default_factory=dict)
    #: Ids of approvals that were asked for only to see who is at work.
    rounds: list[str] = field(default_factory=list)

    async def taken(self, needle: str, *workers: str) -> bool | None:
        """Return True if these workers' mail servers have taken a letter about `needle`, else None."""
        wanted = f"Subject: Refund {needle}".encode()
        return any(wanted in raw for worker in workers for raw in self.mail[worker].letters) or None

    def start(self, name: str, *roles: str, **settings: str) -> None:
        """Start a process; it is not waited for."""
        env = self.env | {f"APPROVALS_{key}": value for key, value in settings.items()}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", "service", "serve", *roles],
                cwd=self.folder,
                env={**os.environ, **env, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    def start_engine(self) -> None:
        """Start the role `engine` on the database of this cluster."""
        database = f"sqlite:///{self.folder}/approvals.db"
        self.start("engine", "engine", ENGINE=database, ENGINE_HTTP=f"127.0.0.1:{self.engine_port}")

    def lose_engine(self) -> None:
        """End the engine with -9, or let nobody into the database that it is."""
        if self.engine_port:
            self.kill("engine")
        else:
            reachable(self.env["APPROVALS_ENGINE"], yes=False)

    def regain_engine(self) -> None:
        """Have back what was lost."""
        if self.engine_port:
            self.start_engine()
        else:
            reachable(self.env["APPROVALS_ENGINE"], yes=True)

    def start_worker(self, name: str) -> None:
        """Start a worker with a mail server of its own."""
        if name not in self.mail:
            server = self.mail[name] = MailServer()
            listener = Listener(server, setting="TEST", host="127.0.0.1", port=0)
            listener.start()
            self.listeners.append(listener)
            self.person.servers.append(server)
        port = self.listeners[list(self.mail).index(name)].port
        self.start(name, "worker", SMTP=f"smtp://127.0.0.1:{port}")

    def kill(self, name: str) -> None:
        """End a process with -9."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def log(self, name: str) -> str:
        """Return what a process has said."""
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        """End every process by SIGTERM, workers before what they lean on; each must end well."""
        for name in sorted(self.processes, key=lambda name: name == "engine"):
            process = self.processes[name]
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, (name, self.log(name))

    def close(self) -> None:
        """Leave nothing behind."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        for server in self.mail.values():
            server.holds = False
        for listener in self.listeners:
            listener.stop(grace=0)


@contextmanager
def cluster(
    kind: str, folder: Path, *workers: str, engine_first: bool = True, **settings: str
) -> Iterator[Cluster]:
    """A gateway, a mailbox and workers on an engine of a kind, which skips where there is none.

    Without `engine_first` the engine is the test's to start, and nothing is waited for.
    """
    api, mailbox, engine = free_ports(3)
    match kind:
        case "server":
            url = server_url(empty=True)
        case "postgres":
            url = postgres_url()
        case _:
            url = f"http://127.0.0.1:{engine}"
    own = {
        "ENGINE": url,
        "ENGINE_LEASE": str(LEASE),
        "HTTP": f"127.0.0.1:{api}",
        "MAILBOX": f"127.0.0.1:{mailbox}",
        "PUBLIC_URL": f"http://127.0.0.1:{api}",
        "REPLY_TRUST": "address",
        "SECRET_KEYS": "k" * 43,
        **settings,
    }
    person = Recipient(f"http://127.0.0.1:{api}", "", ("127.0.0.1", mailbox))
    env = {f"APPROVALS_{name}": value for name, value in own.items()}
    here = Cluster(folder, env, person, engine_port=engine if kind == ENGINES[0] else 0)
    try:
        if here.engine_port and engine_first:
            here.start_engine()
        here.start("gateway", "gateway")
        here.start("mailbox", "mailbox")
        for worker in workers:
            here.start_worker(worker)
        if engine_first:
            ready(person.api)
        yield here
        here.stop()
    finally:
        here.close()


def ready(api: str) -> None:
    """Return once the gateway says that it is."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if httpx.get(f"{api}/readyz", timeout=20).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, f"{api} is not ready"
        time.sleep(0.05)
