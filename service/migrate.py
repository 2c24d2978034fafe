"""The road from the embedded engine to another: pending approvals are opened anew there, as they are.

All that an approval is goes along under the same ids: its steps, so that its workflow
goes on where it was, and the records of its ballots, so that links and reply addresses
of letters already sent decide. What is closed stays in the old file.
"""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from resonate.send import Sender
from resonate.transport import Transport
from resonate.types import PromiseCreateReq, PromiseRecord, PromiseSettleReq

from service.engine import OWNER_TAG, Engine, open_engine, sqlite_path
from service.engine.lists import MAX_PAGE
from service.errors import NotFound, SettingsError
from service.records import APPROVAL, CREATED_TAG, GROUP, KIND_TAG, engine_errors

SETTING = "APPROVALS_ENGINE"
#: Approvals in flight to the new engine at once.
AT_ONCE = 16


@dataclass
class Moved:
    """What was done: how many were opened there, and what can't be, with the reason."""

    moved: int = 0
    left: dict[str, str] = field(default_factory=dict)
    kept: Path | None = None


@dataclass
class _Found:
    """What the old engine holds: pending approvals, what belongs to each, and what stays; all by id."""

    approvals: set[str] = field(default_factory=set)
    parts: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    others: list[str] = field(default_factory=list)


async def migrate(source_url: str, target_url: str, *, token: str | None, leave: bool) -> Moved:
    """Open the pending approvals of one engine on another, and put the old file out of the way.

    Nothing is moved while something can't be, unless it is to be left. To be run with
    the service stopped; again after a failure is safe. Raises SettingsError, EngineAway.
    """
    path = sqlite_path(source_url)
    if not path.is_file():
        raise SettingsError(SETTING, f"{path} does not exist; it names the file to move from")
    if target_url.startswith("sqlite:") and sqlite_path(target_url).resolve() == path.resolve():
        raise SettingsError("URL", f"{target_url} is the file to move from; name another engine")
    source, target = open_engine(source_url), open_engine(target_url, token=token, works=False)
    await source.start()
    try:
        await target.start()
        try:
            done = await _moved(source, target, leave=leave)
        finally:
            await target.close()
    finally:
        await source.close()
    if leave or not done.left:
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise SettingsError(
                SETTING, f"{path} is still open in another process; close that, and run again"
            )
        done.kept = path.rename(path.with_name(f"{path.name}.moved"))
    return done


async def _moved(source: Engine, target: Engine, *, leave: bool) -> Moved:
    ours, theirs = _sender(source), _sender(target)
    found = await _find(ours)
    done = Moved(left=dict.fromkeys(found.others, "not an approval opened by the API: let it end here"))
    if done.left and not leave:
        return done
    address, gate = target.sources[0].resolve_target(GROUP), asyncio.Semaphore(AT_ONCE)

    async def move(approval_id: str) -> None:
        async with gate:
            if await _copied(ours, theirs, approval_id, found.parts[approval_id], address):
                done.moved += 1
            else:
                done.left[approval_id] = "the other engine has another approval of this id"

    await asyncio.gather(*map(move, found.approvals))
    return done


async def _find(ours: Sender) -> _Found:
    """Look through all promises, which come by id: an approval before its steps."""
    found, cursor = _Found(), None
    while True:
        page = await ours.promise_search(None, None, MAX_PAGE, cursor)
        for promise in page.promises:
            root, _, step = promise.id.partition(":")
            if promise.tags.get(OWNER_TAG):
                found.parts[promise.tags[OWNER_TAG]].append(promise.id)
            elif step and root in found.approvals and not _is_task(promise):
                found.parts[root].append(promise.id)
            elif promise.state == "pending" and _is_task(promise):
                if promise.tags.get(KIND_TAG) == APPROVAL:
                    found.approvals.add(promise.id)
                else:
                    found.others.append(promise.id)
        cursor = page.cursor
        if cursor is None:
            return found


def _is_task(promise: PromiseRecord) -> bool:
    return "resonate:target" in promise.tags and promise.tags.get("resonate:timer") != "true"


async def _copied(ours: Sender, theirs: Sender, approval_id: str, parts: list[str], address: str) -> bool:
    """Open an approval there, last of all it is, since work on it then begins; False if its id is taken."""
    root = await ours.promise_get(approval_id)
    try:
        async with engine_errors(missing=NotFound(approval_id)):
            there = await theirs.promise_get(approval_id)
    except NotFound:
        for part in parts:
            await _copy(theirs, await ours.promise_get(part), {OWNER_TAG: approval_id})
        born = root.tags.get(CREATED_TAG, str(root.created_at))
        there = await _copy(theirs, root, {CREATED_TAG: born, "resonate:target": address})
    return there.param.data == root.param.data


async def _copy(theirs: Sender, promise: PromiseRecord, tags: dict[str, str]) -> PromiseRecord:
    """Create a promise there as it is here, `tags` added, its value as it is encoded."""
    # Its own patience for each: strangers' mails may have left an approval very many records.
    async with engine_errors():
        there = await theirs.promise_create(
            PromiseCreateReq(
                id=promise.id, timeout_at=promise.timeout_at, param=promise.param, tags=promise.tags | tags
            )
        )
        if promise.state != "pending" and promise.state != "rejected_timedout":  # noqa: PLR1714 - for mypy
            await theirs.promise_settle(
                PromiseSettleReq(id=promise.id, state=promise.state, value=promise.value)
            )
    return there


def _sender(engine: Engine) -> Sender:
    return Sender(Transport(engine.network), engine.token)
