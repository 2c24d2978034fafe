"""The workflow and its clocks: one behind the engine's, a worker away for days, and a defect waited out."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from resonate.retry import Never
from resonate.types import TaskData, Value

from service import workflow
from service.approvals import Approvals
from service.conversation import Accepted, Later, Sent
from service.engine import open_engine
from service.engine.clock import now_ms
from service.letters import Letter, Letters
from service.records import APPROVAL, GROUP, utc_now
from service.tokens import Tokens
from service.workflow import Ports, register
from tests.engine.live import soon, until

ASKED = {"id": "x", "subject": "Refund", "approvers": ["ann@corp.example"]}


@dataclass
class Mail:
    """A mail server: it takes letters, puts them off, hangs, or breaks."""

    how: str
    tries: list[float] = field(default_factory=list)

    async def send(self, _: Letter) -> Sent:
        """Do with a letter what this server does."""
        self.tries.append(time.monotonic())
        match self.how:
            case "hangs":
                await asyncio.Event().wait()
            case "breaks once" if len(self.tries) == 1:
                raise RuntimeError("a defect")
            case "puts off":
                return Later(reason="try later")
        return Accepted(response="250 taken")


@asynccontextmanager
async def at_work(
    folder: Path,
    mail: Mail,
    *,
    engine_ahead: timedelta = timedelta(0),
    ahead: timedelta = timedelta(0),
    url: str | None = None,
    works: bool = True,
) -> AsyncIterator[Approvals]:
    """A worker, unless none `works`, whose clock is `ahead`, on an engine whose clock is that much more."""

    def engines_ms() -> int:
        return now_ms() + int((ahead + engine_ahead).total_seconds() * 1000)

    def ours_ms() -> int:
        return now_ms() + int(ahead.total_seconds() * 1000)

    group = GROUP if works else "others"
    engine = open_engine(url or f"sqlite:///{folder}/a.db", clock=engines_ms, group=group)
    await engine.start()
    resonate = engine.client(clock=ours_ms)
    letters = Letters(sender="approvals@localhost", reply_domain="localhost")
    tokens = Tokens([b"k" * 32], public_url="http://localhost", reply_domain="localhost")
    now = lambda: utc_now() + ahead  # noqa: E731 - a clock
    resonate.with_dependency(Ports(resonate.promises, mail, letters, tokens, now))
    if works:
        register(resonate)
    resonate.start()
    yield Approvals(resonate.promises, engine.sources[0].resolve_target(GROUP), now)
    if mail.how == "hangs":  # as if killed: its leaf has no end
        await engine.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
    else:
        await resonate.stop()
        await engine.close()


async def test_an_engine_ahead_of_us_does_not_have_a_letter_tried_in_a_storm(tmp_path: Path) -> None:
    """Tries stay as far apart as they are meant to, and it closes when it is due."""
    mail = Mail("puts off")
    async with at_work(tmp_path, mail, engine_ahead=timedelta(seconds=2.5)) as approvals:
        began = time.monotonic()
        await approvals.open(ASKED | {"due": "PT5S"})
        assert (await approvals.wait("x", 20)).status == "expired"
        assert time.monotonic() - began < 6
    assert len(mail.tries) <= 4


async def test_an_engine_hours_ahead_of_us_still_closes_when_it_is_due(tmp_path: Path) -> None:
    """Each pause is over as it begins; the deadline is seen all the same, by the engine's clock."""
    async with at_work(tmp_path, Mail("puts off"), engine_ahead=timedelta(hours=2)) as approvals:
        await approvals.open(ASKED | {"due": "PT2S"})
        assert (await soon(approvals.wait("x", 20))).status == "expired"


@pytest.mark.parametrize(
    ("due", "lives_until"),
    [("PT1S", 2**53 - 1), ("1960-01-01T00:00:00Z", now_ms() + 3_600_000)],
    ids=["a root without end", "due before there were clocks"],
)
async def test_times_that_no_caller_of_the_api_could_give_end_too(
    tmp_path: Path, due: str, lives_until: int
) -> None:
    """Another program's workflow may give them."""
    request = {name: value for name, value in ASKED.items() if name != "id"} | {"due": due}
    async with at_work(tmp_path, Mail("takes")) as approvals:
        made = Value(data=TaskData(func=APPROVAL, args=(request,)))
        await approvals.promises.create(
            "far:1", lives_until, made, {"resonate:target": "poll://any@approvals"}
        )
        await soon(approvals.wait("far:1", 20))
        assert (await approvals.show("far:1")).status == "expired"


async def test_a_worker_away_for_longer_than_a_day_sends_the_letter_after_all(tmp_path: Path) -> None:
    """What was under way when it went is done by the next one, and the deadline holds."""
    began = Mail("hangs")
    async with at_work(tmp_path, began) as approvals:
        await approvals.open(ASKED | {"due": "PT90003S"})
        await until(lambda: len(began.tries) == 1)
    mail = Mail("takes")
    async with at_work(tmp_path, mail, ahead=timedelta(hours=25)) as approvals:
        assert (await soon(approvals.wait("x", 20))).status == "expired"
    assert len(mail.tries) == 1


async def test_a_letter_that_a_defect_stopped_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits as one does that the mail server put off; the approval is not lost."""
    monkeypatch.setattr(workflow, "LEAF_RETRIES", Never())  # half a minute of tries, passed over
    mail = Mail("breaks once")
    async with at_work(tmp_path, mail) as approvals:
        await approvals.open(ASKED | {"due": "PT30S"})
        await until(lambda: len(mail.tries) == 2)
        assert (await approvals.show("x")).status == "pending"


async def test_who_waits_where_no_worker_is_asks_the_engine_seldom(tmp_path: Path) -> None:
    """Ever more rarely, and for one record, however many are asked."""
    engine = open_engine(f"sqlite:///{tmp_path}/a.db")
    await engine.start()
    resonate = engine.client()
    resonate.start()
    approvals = Approvals(resonate.promises, "poll://any@nobody")
    approvers = [f"p{n}@corp.example" for n in range(50)]
    await approvals.open(ASKED | {"approvers": approvers})
    asked: list[str] = []
    get = resonate.promises.get

    async def counted(promise_id: str) -> object:
        asked.append(promise_id)
        return await get(promise_id)

    resonate.promises.get = counted  # type: ignore[method-assign, assignment]
    assert (await approvals.wait("x", 2)).status == "pending"
    # Two looks at all of it, at the beginning and at the end, and a few between.
    assert len(asked) < 2 * (2 * len(approvers) + 1) + 10
    await resonate.stop()
    await engine.close()
