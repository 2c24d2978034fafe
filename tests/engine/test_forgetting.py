"""Forgetting, end to end: what the real service keeps of an approval, and when the last of it goes."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from service.answers import Answers
from service.approvals import Approvals
from service.conversation import Accepted
from service.decisions import Decisions
from service.domain import Report, ballot_key
from service.engine import Engine, open_engine, writer
from service.engine.clock import now_ms
from service.errors import BallotGone, IdTaken, NotFound
from service.letters import Letter, Letters
from service.records import GROUP, instant
from service.tokens import Tokens
from service.workflow import Ports, register
from tests.engine.live import until

ANN, BOB = "ann@corp.example", "bob@corp.example"
KEPT = timedelta(days=30)


@dataclass
class Mail:
    """A mail server that takes everything."""

    letters: list[Letter] = field(default_factory=list)

    async def send(self, letter: Letter) -> Accepted:
        """Take a letter."""
        self.letters.append(letter)
        return Accepted(response="250 taken")


class House:
    """A worker and what asks it, on a clock that days can be added to."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "approvals.db"
        self._shift = 0
        self.mail = Mail()
        self.engine: Engine = open_engine(
            f"sqlite:///{self._file}", group=GROUP, retention=KEPT, clock=self.now_ms
        )
        self.resonate = self.engine.client(clock=self.now_ms)
        target = self.engine.sources[0].resolve_target(GROUP)
        self.approvals = Approvals(self.resonate.promises, target, self.now)
        self.decisions = Decisions(self.approvals, self.now)
        self.answers = Answers(self.resonate.promises, target, self.now)
        tokens = Tokens([b"k" * 32], public_url="http://localhost", reply_domain="localhost")
        letters = Letters(sender="approvals@localhost", reply_domain="localhost")
        ports = Ports(self.resonate.promises, self.mail, letters, tokens, self.now)
        self.resonate.with_dependency(ports)
        register(self.resonate)

    def now_ms(self) -> int:
        """Return the house's time, in ms."""
        return now_ms() + self._shift

    def now(self) -> datetime:
        """Return the house's time."""
        return instant(self.now_ms())

    async def ask(self, approval_id: str, due: str, *approvers: str) -> None:
        """Open an approval and wait for its letters."""
        had = len(self.mail.letters)
        body = {"id": approval_id, "subject": approval_id, "approvers": list(approvers), "due": due}
        await self.approvals.open(body)
        await until(lambda: len(self.mail.letters) == had + len(approvers))

    async def decide(self, approval_id: str, email: str, channel: Literal["link", "reply"]) -> Report:
        """Decide it and wait for its end."""
        cast = await self.decisions.cast(
            await self.approvals.ballot(ballot_key(approval_id, email)), "approve", channel
        )
        assert cast.counted
        return await self.approvals.wait(approval_id, 20)

    async def pass_days(self, days: float) -> None:
        """Let what is in hand end, then move the clock."""
        await until(lambda: not self._in_hand())
        self._shift += int(timedelta(days=days).total_seconds() * 1000)
        assert self.engine.embedded is not None
        self.engine.embedded.nudge()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as db:
            yield db

    def _in_hand(self) -> list[str]:
        with self._reading() as db:
            return db.execute("SELECT row FROM tasks WHERE state IN ('pending', 'acquired')").fetchall()

    def kept(self) -> list[str]:
        """Return the roots of what is kept: ids up to the first ``:`` or ``.``, each once."""
        with self._reading() as db:
            ids = [id_ for (id_,) in db.execute("SELECT id FROM promises")]
        return sorted({id_.partition(":")[0].partition(".")[0] for id_ in ids})

    def rows(self) -> dict[str, int]:
        """Return how many rows each table has."""
        tables = ("promises", "tasks", "callbacks", "listeners", "tags", "outbox")
        with self._reading() as db:
            return {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}  # noqa: S608

    def pending(self) -> list[str]:
        """Return the ids of what is pending."""
        with self._reading() as db:
            return [
                id_ for (id_,) in db.execute("SELECT id FROM promises WHERE state = 'pending' ORDER BY id")
            ]

    async def swept(self, *kept: str) -> None:
        """Wait until just this is kept."""
        await until(lambda: self.kept() == sorted(kept))


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """A house that reclaims with every commit instead of every ten seconds."""
    monkeypatch.setattr(writer, "RECLAIM_S", 0.0)
    async with _started(House(tmp_path)) as house:
        yield house


@asynccontextmanager
async def _started(house: House) -> AsyncIterator[House]:
    await house.engine.start()
    house.resonate.start()
    yield house
    await house.resonate.stop()
    await house.engine.close()


async def test_what_ended_is_forgotten_whole_and_what_is_pending_is_not_touched(house: House) -> None:
    """Decided by link, by reply, by one of two, expired; beside them one that waits for most of a year."""
    await house.ask("by-link", "P3D", ANN)
    await house.ask("by-reply", "P3D", ANN)
    await house.ask("of-two", "P3D", ANN, BOB)
    await house.ask("expired", "P5D", ANN)
    await house.ask("waiting", "P300D", ANN, BOB)
    assert (await house.decide("by-link", ANN, "link")).status == "approved"
    assert (await house.decide("by-reply", ANN, "reply")).status == "approved"
    assert (await house.decide("of-two", BOB, "link")).status == "approved"
    await house.answers.ask(ballot_key("waiting", ANN), "clarification", read="hm")
    # Seven requests, a receipt for the reply, and what was asked back.
    await until(lambda: len(house.mail.letters) == 9)
    all_of_it = ["answer", "ballot", "by-link", "by-reply", "expired", "of-two", "waiting"]
    await house.swept(*all_of_it)
    await house.pass_days(5.5)
    assert (await house.approvals.wait("expired", 20)).status == "expired"
    await house.swept(*all_of_it)
    # The clarification and what it made ended on the first day, approvals count from their due time:
    # whoever opens a link until then is told how it ended, and no other approval has the id.
    await house.pass_days(24.6)
    await until(lambda: "answer" not in house.kept())
    assert house.kept() == [kept for kept in all_of_it if kept != "answer"]
    with pytest.raises(IdTaken):
        await house.ask("by-link", "P3D", BOB, ANN)
    before = house.pending()
    await house.pass_days(9)
    await house.swept("ballot", "waiting")
    for gone in ("by-link", "by-reply", "of-two", "expired"):
        with pytest.raises(NotFound):
            await house.approvals.show(gone)
        with pytest.raises(BallotGone):
            await house.approvals.ballot(ballot_key(gone, ANN))
    # Of the pending, only the records of ballots whose day has passed went.
    after = house.pending()
    assert [id_ for id_ in before if not id_.startswith("ballot.")] == [
        id_ for id_ in after if not id_.startswith("ballot.")
    ]
    assert sum(id_.startswith("ballot.") for id_ in after) == 2
    # What waits is whole: both may decide still, and then it goes too.
    assert (await house.approvals.show("waiting")).status == "pending"
    assert (await house.decide("waiting", BOB, "link")).status == "approved"
    await house.pass_days(31)
    await house.swept("ballot", "waiting")
    await house.pass_days(300)
    await house.swept()
    assert set(house.rows().values()) == {0}
