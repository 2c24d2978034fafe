"""A stock SDK on the engine, in this process or over HTTP, for tests that run workflows."""

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvicorn
from resonate.retry import Never

from service.engine import Client, EmbeddedEngine, Engine, open_engine, sqlite_path
from service.engine.http import HttpSurface
from service.engine.rows import Rows

#: Longer than anything here takes on a slow machine, in seconds.
PATIENCE = 20.0


def sdk(engine: Engine, ttl: timedelta | None = None) -> Client:
    """Return the SDK on an engine, as `service.app` builds it; not started."""
    return replace(engine, ttl=ttl or engine.ttl).client(retry_policy=Never())


@asynccontextmanager
async def running(
    url: str, *functions: Callable[..., Any], ttl: timedelta | None = None, **options: Any
) -> AsyncIterator[tuple[Engine, Client]]:
    """An engine and the SDK with functions registered by name, started, and stopped in order."""
    engine = open_engine(url, **options)
    await engine.start()
    r = sdk(engine, ttl)
    for function in functions:
        r.register(function)
    r.start()
    try:
        yield engine, r
    finally:
        await r.stop()
        await engine.close()


@asynccontextmanager
async def serving(engine: EmbeddedEngine, *, token: str | None = None) -> AsyncIterator[str]:
    """The engine's HTTP surface on a free port; yields its URL."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        async with serving_on(listening, engine, token=token):
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@asynccontextmanager
async def serving_on(
    listening: socket.socket, engine: EmbeddedEngine, *, token: str | None = None
) -> AsyncIterator[None]:
    """The engine's HTTP surface on a socket."""
    surface = HttpSurface(engine, token=token)
    server = uvicorn.Server(uvicorn.Config(surface.app, log_level="warning", lifespan="off"))
    # Ours is the only event loop here, and its signals are pytest's.
    serve = asyncio.create_task(server._serve([listening]))
    await until(lambda: server.started)
    try:
        yield
    finally:
        surface.hang_up()
        server.should_exit = True
        await serve


async def until(holds: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until something holds; fail if it does not within ``patience`` seconds."""
    async with asyncio.timeout(patience):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event to set
            await asyncio.sleep(0.005)


async def soon[T](result: Any, patience: float = PATIENCE) -> T:
    """Return an awaitable's result; fail if it takes longer than ``patience`` seconds."""
    value: T = await asyncio.wait_for(result, patience)
    return value


def sqlite_url(path: Path) -> str:
    """Return the URL of a file."""
    return f"sqlite:///{path}"


def stored(engine: Engine, id_: str) -> Any:
    """Return a promise and its task as they are on disk, or None.

    Over a connection of its own: the engine's belongs to its writer's thread, and a
    cached statement that two threads step at once is an error to both.
    """
    path = sqlite_path(engine.url).resolve()
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        return Rows(db).pair(id_)
