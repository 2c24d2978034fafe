"""A process that works on the engine until it is killed, and tells what was acknowledged.

Run as ``python -m tests.engine.crashing FILE LETTERS ROUND SEED``. Each line it
prints was acknowledged by the engine before it was printed:
``started ID``, ``decided ID CHOICE``, ``done ID CHOICE``. A letter is appended to
LETTERS before its leaf returns, as SMTP would have it.
"""

import asyncio
import contextlib
import random
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from resonate.context import Context
from resonate.error import ServerError
from resonate.resonate import Resonate
from resonate.types import Value

from service.engine import open_engine

#: Approvals under way at a time.
WIDTH = 12


def tell(line: str) -> None:
    """Write a line that the test has even if we are killed right after."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _approve(r: Resonate, id_: str, rng: random.Random) -> None:
    handle = r.options(timeout=timedelta(days=30)).rpc(id_, "approval", id_)
    await handle.id()
    tell(f"started {id_}")
    await _decide(r, id_, rng)
    tell(f"done {id_} {await handle.result()}")


async def _decide(r: Resonate, id_: str, rng: random.Random) -> None:
    """Settle the approval's question as soon as it has been asked, as its person would."""
    question = f"{id_}:3"
    while True:
        with contextlib.suppress(ServerError):
            await r.promises.get(question)
            break
        await asyncio.sleep(0.002)
    choice = rng.choice(["approve", "decline"])
    settled = await r.promises.resolve(question, Value(data=choice))
    tell(f"decided {id_} {settled.value.data}")


async def work(file: Path, letters: Path, round_: int, seed: int, unfinished: list[str]) -> None:
    """Finish what earlier rounds left, then start more for as long as we live (round 0: finish only)."""
    rng = random.Random(seed)  # noqa: S311 - a seed, not a secret

    async def letter(_: Context, id_: str, kind: str) -> str:
        with letters.open("a") as out:
            out.write(f"{id_} {kind} Message-ID: <{id_}.{kind}@test>\n")
        await asyncio.sleep(rng.random() * 0.003)
        return kind

    async def approval(ctx: Context, id_: str) -> Any:
        await ctx.run(letter, id_, "request")
        await ctx.sleep(timedelta(milliseconds=5))
        choice = await ctx.promise(timeout=timedelta(days=20))
        await ctx.run(letter, id_, "closed")
        return choice

    engine = open_engine(f"sqlite:///{file}")
    await engine.start()
    r = Resonate(
        network=engine.network, sources=engine.sources, group=engine.group, pid=engine.pid,
        heartbeat=engine.heartbeat, env={}, autostart=False,
    )  # fmt: skip
    r.register(letter)
    r.register(approval)
    r.start()
    tell("ready")
    await asyncio.gather(*(_approve(r, id_, rng) for id_ in unfinished))
    if round_ == 0:
        await r.stop()
        await engine.close()
        return
    serial = 0
    while True:
        serial += WIDTH
        await asyncio.gather(*(_approve(r, f"a{round_}.{serial + n}", rng) for n in range(WIDTH)))


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
