"""Will this set-up work? Each part is tried as the service would use it, and said in a line."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import dns.asyncresolver
import dns.exception
import httpx
from resonate.context import Context
from resonate.error import ResonateError
from resonate.resonate import Resonate
from resonate.types import Value

from service.engine import Engine, open_engine, sqlite_path
from service.engine.aside import search_aside
from service.engine.lists import Search
from service.errors import InUse, NoLists, SettingsError
from service.outbox import Outbox
from service.parked import parked_tasks
from service.settings import Settings, is_loopback

#: Seconds within which an engine has to do what is asked of it.
PATIENCE: Final = 10.0
#: What a server answers slower than this, in milliseconds, it polls for too rarely.
PROMPT_MS, ON_TIME_MS, IN_STEP_MS = 100.0, 500.0, 1_000.0
NAP: Final = timedelta(milliseconds=200)

type State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, and what to do about it."""

    state: State
    part: str
    text: str


async def findings(settings: Settings) -> AsyncIterator[Finding]:
    """Try every part in turn."""
    async for finding in _engine(settings):
        yield finding
    for look in (_smtp, _public_url, _reply_domain):
        yield await look(settings)
    yield _trust(settings)


async def _engine(settings: Settings) -> AsyncIterator[Finding]:
    name = settings.engine.partition(":")[0]
    group, token = f"check-{uuid4().hex[:8]}", settings.engine_token
    try:
        engine = open_engine(settings.engine, group=group, token=token)
        async with asyncio.timeout(PATIENCE):
            await engine.start()
    except InUse as exc:
        yield Finding("ok", "engine", f"{name}: the service runs, as process {exc.holder}")
        async for finding in _lists(search_aside(sqlite_path(settings.engine))):
            yield finding
        return
    except (SettingsError, TimeoutError) as exc:
        yield Finding("fail", "engine", str(exc) or _silent(name))
        return
    try:
        async for finding in _tried(engine, name):
            yield finding
    finally:
        await engine.close()


async def _tried(engine: Engine, name: str) -> AsyncIterator[Finding]:
    """Run two small workflows on the engine, and read what it keeps."""
    resonate = engine.client()
    resonate.register(_at_once, name="at_once")
    resonate.register(_nap, name="nap")
    resonate.start()
    try:
        async with asyncio.timeout(PATIENCE):
            ahead = await _ahead(resonate)
            yield Finding("ok", "engine", f"{name}: answers; {await engine.about()}")
            message = await _taken(resonate, engine.group, "at_once")
            late = max(
                0.0, await _taken(resonate, engine.group, "nap") - message - NAP.total_seconds() * 1000
            )
    except (ResonateError, TimeoutError) as exc:
        yield Finding("fail", "engine", str(exc) or _silent(name))
        return
    finally:
        await resonate.stop()
    side = "ahead of" if ahead > 0 else "behind"
    yield _judged("clock", f"the engine's is {abs(ahead):.0f} ms {side} ours", abs(ahead) < IN_STEP_MS)
    yield _judged("messages", f"a workflow ran in {message:.0f} ms", message < PROMPT_MS, engine.slow)
    yield _judged("timers", f"one was {late:.0f} ms late", late < ON_TIME_MS, engine.slow)
    for advice in await engine.advice():
        yield Finding("warn", "engine", advice)
    async for finding in _lists(engine.search_):
        yield finding


async def _lists(search: Search) -> AsyncIterator[Finding]:
    try:
        async with asyncio.timeout(PATIENCE):
            parked = await parked_tasks(search)
    except (ResonateError, NoLists, TimeoutError) as exc:
        yield Finding("warn", "lists", str(exc) or "no answer in time")
        return
    yield Finding("ok", "lists", "the engine answers searches")
    for task in parked:
        at = datetime.fromtimestamp(task.last, UTC).isoformat(timespec="seconds")
        yield Finding("warn", "tasks", f"{task.task} could not be run by a worker at {at}: {task.reason}")


async def _ahead(resonate: Resonate) -> float:
    """Return how far the engine's clock is ahead of ours, in milliseconds."""
    before = time.time() * 1000
    made = await resonate.promises.create(f"check.{uuid4().hex}", int(before) + 1000, Value(), {})
    return made.created_at - (before + time.time() * 1000) / 2


async def _taken(resonate: Resonate, group: str, function: str) -> float:
    """Return the milliseconds that a durable function takes, from the call to its result."""
    begun = time.perf_counter()
    life = resonate.options(timeout=timedelta(minutes=1), target=group)
    await life.rpc(f"check-{uuid4().hex}", function).result()
    return (time.perf_counter() - begun) * 1000


async def _at_once(_: Context) -> None:
    """Do nothing."""


async def _nap(ctx: Context) -> None:
    await ctx.sleep(NAP)


async def _smtp(settings: Settings) -> Finding:
    server = f"{settings.smtp.host}:{settings.smtp.port}"
    outbox = Outbox(settings.smtp, fallback_sender="")
    try:
        problem = await outbox.probe()
    finally:
        await outbox.close()
    if problem is None:
        return Finding("ok", "letters", f"{server} takes us")
    return Finding("fail", "letters", f"{server}: {problem.reason}")


async def _public_url(settings: Settings) -> Finding:
    """Links must lead to a gateway; from this machine the way may be another than people's."""
    try:
        async with httpx.AsyncClient(timeout=PATIENCE) as http:
            answer = await http.get(f"{settings.public_url}/healthz")
    except httpx.HTTPError as exc:
        return Finding(
            "warn", "links", f"{settings.public_url}: {str(exc) or type(exc).__name__}; is a gateway up?"
        )
    reached = answer.is_success
    return _judged("links", f"{settings.public_url}/healthz answers {answer.status_code}", reached)


async def _reply_domain(settings: Settings) -> Finding:
    """Replies come to the domain's mail exchangers, unless an IMAP account is asked."""
    domain = settings.reply_domain
    if is_loopback(domain) and not is_loopback(urlsplit(settings.public_url).hostname or ""):
        told = f"to {domain}, where nobody's mail server reaches us: set APPROVALS_REPLY_DOMAIN and FROM"
        return Finding("fail", "replies", told)
    if settings.imap is not None or is_loopback(domain):
        return Finding("ok", "replies", f"to {domain}: no MX record is needed")
    try:
        found = await dns.asyncresolver.resolve(domain, "MX", lifetime=PATIENCE)
    except dns.exception.DNSException as exc:
        problem = str(exc) or type(exc).__name__
        return Finding("warn", "replies", f"no MX record of {domain} is found here: {problem}")
    return Finding("ok", "replies", f"to {domain}: by {', '.join(sorted(str(mx.exchange) for mx in found))}")


def _trust(settings: Settings) -> Finding:
    told = f"replies are believed by {settings.reply_trust}"
    return _judged("trust", told, settings.reply_trust != "address", "for development only")


def _judged(part: str, told: str, good: object, advice: str = "") -> Finding:
    if good:
        return Finding("ok", part, told)
    return Finding("warn", part, f"{told}: {advice}" if advice else told)


def _silent(name: str) -> str:
    return f"{name}: no answer within {PATIENCE:.0f} s"
