"""The road from the embedded engine to another: pending approvals are opened anew there, as they are.

The same id, request, birth and deadline give the same ballots, so that links and
reply addresses of letters already sent decide on the new engine. What is closed stays
in the old file.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from resonate.codec import Codec, NoopEncryptor
from resonate.error import ServerError
from resonate.promises import Promises
from resonate.send import Sender
from resonate.transport import Transport
from resonate.types import PromiseRecord, Value

from service.approvals import (
    APPROVAL,
    ASKED_TAG,
    CREATED_TAG,
    GROUP,
    KIND_TAG,
    engine_errors,
    find_record,
    read_ask,
    read_end,
)
from service.domain import ballot_key
from service.engine import Engine, open_engine, sqlite_path
from service.engine.lists import MAX_PAGE
from service.errors import SettingsError

SETTING = "APPROVALS_ENGINE"
#: Promises in flight to the new engine at once.
AT_ONCE = 16


@dataclass
class Moved:
    """What was done: how many were opened there, and what can't be, with the reason."""

    moved: int = 0
    left: dict[str, str] = field(default_factory=dict)
    kept: Path | None = None


async def migrate(source_url: str, target_url: str, *, token: str | None, leave: bool) -> Moved:
    """Open the pending approvals of one engine on another, and put the old file out of the way.

    Nothing is moved while something can't be, unless it is to be left. To be run with
    the service stopped; again after a failure is safe. Raises SettingsError, EngineAway.
    """
    path = sqlite_path(source_url)
    if not path.is_file():
        raise SettingsError(SETTING, f"{path} does not exist; it names the file to move from")
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
        done.kept = path.rename(path.with_name(f"{path.name}.moved"))
    return done


async def _moved(source: Engine, target: Engine, *, leave: bool) -> Moved:
    done, ours, theirs = Moved(), _promises(source), _promises(target)
    wanted: list[PromiseRecord] = []
    for root in await _pending(source):
        if (why := await _stays(ours, root)) is None:
            wanted.append(root)
        else:
            done.left[root.id] = why
    if done.left and not leave:
        return done
    address, gate = target.sources[0].resolve_target(GROUP), asyncio.Semaphore(AT_ONCE)

    async def move(root: PromiseRecord) -> None:
        tags = root.tags | {CREATED_TAG: str(root.created_at), "resonate:target": address}
        async with gate, engine_errors():
            if await _letters_are_out(ours, root):
                tags[ASKED_TAG] = "all"
            there = await theirs.create(root.id, root.timeout_at, Value(data=root.param.data), tags)
        if there.param.data != root.param.data:
            done.left[root.id] = "the other engine has another approval of this id"
        else:
            done.moved += 1

    await asyncio.gather(*map(move, wanted))
    return done


async def _pending(engine: Engine) -> list[PromiseRecord]:
    """Return every durable function that has not ended."""
    found: list[PromiseRecord] = []
    cursor: str | None = None
    while True:
        page, cursor = await engine.search("pending", limit=MAX_PAGE, cursor=cursor)
        found += [
            promise
            for promise in page
            if "resonate:target" in promise.tags and promise.tags.get("resonate:timer") != "true"
        ]
        if cursor is None:
            return found


async def _stays(promises: Promises, root: PromiseRecord) -> str | None:
    """Return why this can't be moved, or None."""
    if root.tags.get(KIND_TAG) != APPROVAL:
        return "not an approval opened by the API: let it end here"
    ask = read_ask(root)
    for approver in ask.approvers:
        record = await find_record(promises, ballot_key(ask.approval_id, approver.email))
        if record is not None and read_end(await promises.get(record.arbiter)) is not None:
            return "decided, and not closed yet: run the service once more"
    return None


async def _letters_are_out(promises: Promises, root: PromiseRecord) -> bool:
    """Tell whether every approver has been sent their letter, by the results that the workflow keeps."""
    sent, number = 0, 1
    with suppress(ServerError):  # the first that there is not
        while True:
            step = await promises.get(f"{root.id}:{number}")
            sent, number = sent + (step.value.data == "sent"), number + 1
    return sent >= len(read_ask(root).approvers)


def _promises(engine: Engine) -> Promises:
    return Promises(Sender(Transport(engine.network), engine.token), Codec(NoopEncryptor()))
