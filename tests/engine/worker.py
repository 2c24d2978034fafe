"""A worker in a process of its own: ``python -m tests.engine.worker URL LETTERS BEGUN``.

Its leaves say in BEGUN that they have begun, append a letter, and hold on for
a moment, so that a test can kill the worker there.
"""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from resonate.context import Context
from resonate.resonate import Resonate

from service.engine import open_engine

#: The lease a dead worker leaves behind, in seconds.
TTL = timedelta(seconds=2)


async def main(url: str, letters: Path, begun: Path, pid: str) -> None:
    """Work until killed."""

    async def letter(_: Context, id_: str, kind: str) -> str:
        with begun.open("a") as out:
            out.write(f"{pid} {id_} {kind}\n")
        with letters.open("a") as out:
            out.write(f"{id_} {kind} Message-ID: <{id_}.{kind}@test>\n")
        await asyncio.sleep(0.2)
        return kind

    async def approval(ctx: Context, id_: str) -> Any:
        await ctx.run(letter, id_, "request")
        choice = await ctx.promise(timeout=timedelta(days=20))
        await ctx.run(letter, id_, "closed")
        return choice

    engine = open_engine(url, group="workers", pid=pid)
    await engine.start()
    r = Resonate(
        network=engine.network, sources=engine.sources, group=engine.group, pid=engine.pid,
        heartbeat=engine.heartbeat, ttl=TTL, env={}, autostart=False,
    )  # fmt: skip
    r.register(letter)
    r.register(approval)
    r.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
