"""What no worker can run waits on every engine, and storms on none."""

import asyncio
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from resonate.context import Context
from resonate.types import Value

from service.engine import Engine
from tests.engine.live import running, soon, until

LEASE = timedelta(seconds=4)
#: Seconds that a storm is looked for; one without a bound brings hundreds of offers in them.
LOOK = 2.0


def acquisitions(engine: Engine) -> Counter[str]:
    """Count from now on how often each task is taken up."""
    counted: Counter[str] = Counter()
    send: Callable[..., Awaitable[str]] = engine.parking._send

    async def counting(req: str, headers: dict[str, str] | None = None) -> str:
        if req.startswith('{"kind":"task.acquire"'):
            counted[json.loads(req)["data"]["id"]] += 1
        return await send(req, headers)

    engine.parking._send = counting
    return counted


async def ask(r: Any, target: str, data: object, seconds: float = 60) -> str:
    """Create a durable function's promise as some other language's SDK might."""
    name = uuid.uuid4().hex
    tags = {f"resonate:{part}": name for part in ("origin", "branch", "parent")}
    tags |= {"resonate:scope": "global", "resonate:target": target}
    await r.promises.create(name, int((time.time() + seconds) * 1000), Value(data=data), tags)
    return name


async def double(_: Context, number: int) -> int:
    """Return twice the number."""
    return number * 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"func": "double", "args": "4"}, "Expected `array`, got `str` - at `$.args`"),
        ({"func": "nobody", "args": [4]}, "nobody"),
        ("no function at all", "Expected `object`, got `str`"),
    ],
)
async def test_what_cannot_be_run_is_offered_ever_more_rarely(
    url: str, data: object, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A few times instead of hundreds, logged once, and shown with its reason; other work goes on."""
    group = uuid.uuid4().hex
    with caplog.at_level(logging.WARNING):
        async with running(url, double, group=group, lease=LEASE) as (engine, r):
            taken = acquisitions(engine)
            name = await ask(r, engine.sources[0].resolve_target(group), data)
            # A server offers nothing to a stream that is just being opened, and again only later.
            await until(lambda: taken[name] > 0, 35)
            await asyncio.sleep(LOOK)
            assert 3 <= taken[name] <= 7
            [parked] = engine.parked.values()
            assert parked.task == name
            # An offer may come twice, to be told that the task is taken.
            assert 0 <= taken[name] - parked.times <= 2
            assert reason in parked.reason
            assert engine.parking.knows(parked.reason)
            assert await soon(r.run(uuid.uuid4().hex, double, 4).result()) == 8
    core = [r for r in caplog.records if name in r.getMessage() and r.exc_info]
    ours = [r for r in caplog.records if name in r.getMessage() and r.name == "approvals.engine"]
    assert (len(core), len(ours)) == (1, 1)


async def test_it_runs_once_it_can(url: str) -> None:
    """The function was registered after all: the next turn brings its result, and nothing stays parked."""
    group = uuid.uuid4().hex
    async with running(url, group=group, lease=LEASE) as (engine, r):
        name = await ask(r, engine.sources[0].resolve_target(group), {"func": "double", "args": [4]})
        await until(lambda: name in engine.parked)
        r.register(double)
        handle = await r.get(name)
        assert await soon(handle.result(), 15) == 8
        await until(lambda: not engine.parked)


async def test_at_a_stop_others_get_what_was_parked_at_once(url: str) -> None:
    """A worker that can run it need not wait for the lease of one that could not."""
    group = uuid.uuid4().hex
    async with running(url, group=group, lease=timedelta(seconds=120)) as (engine, r):
        name = await ask(r, engine.sources[0].resolve_target(group), {"func": "double", "args": [4]})
        # By now its next turn is seconds away.
        await until(lambda: name in engine.parked and engine.parked[name].times > 3)
    async with running(url, double, group=group, lease=LEASE) as (_, r):
        # Postgres and the server offer again after five seconds and more where nobody listened.
        assert await soon((await r.get(name)).result(), 35) == 8


async def nap(ctx: Context) -> str:
    """Sleep for longer than a lease."""
    await ctx.sleep(timedelta(seconds=2.5))
    return "rested"


async def test_a_timer_costs_no_turns_while_it_sleeps(url: str) -> None:
    """No worker takes it up, however many leases it sleeps for."""
    group = uuid.uuid4().hex
    async with running(url, nap, group=group, lease=timedelta(seconds=0.5)) as (engine, r):
        taken = acquisitions(engine)
        began = time.monotonic()
        name = uuid.uuid4().hex
        assert await soon(r.run(name, nap).result()) == "rested"
        assert 2.4 < time.monotonic() - began < 4
        assert set(taken) <= {name}, taken
        assert taken[name] <= 2


async def slow(_: Context) -> str:
    """Take longer than a lease."""
    RUNS.append(1)
    await asyncio.sleep(2.5)
    return "done"


RUNS: list[int] = []


async def test_a_lease_holds_while_its_worker_lives(url: str) -> None:
    """Work that takes many leases is done once: signs of life renew them."""
    RUNS.clear()
    group = uuid.uuid4().hex
    options: dict[str, Any] = {"group": group, "lease": timedelta(seconds=0.6)}
    async with running(url, slow, **options) as (_, r):
        assert await soon(r.run(uuid.uuid4().hex, slow).result()) == "done"
    assert len(RUNS) == 1
