"""The stock SDK on the embedded engine, in one process: what a workflow may rely on."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from resonate.context import Context
from resonate.error import ServerError
from resonate.handle import ResonateHandle
from resonate.resonate import Resonate
from resonate.types import PromiseCreateReq, Value
from resonate_base import ConnectorError, Network, Source

from service.engine import Engine, Promises, open_engine, sqlite_path
from service.engine.clock import now_ms
from service.engine.embedded import OWED_S
from service.errors import SettingsError
from tests.engine.live import PATIENCE, running, sdk, serving, soon, sqlite_url, stored, until


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A file that is not there yet."""
    return sqlite_url(tmp_path / "approvals.db")


async def double(_: Context, number: int) -> int:
    """Return twice the number."""
    return number * 2


async def nap_and_double(ctx: Context, number: int) -> int:
    """Sleep durably, then call another workflow."""
    await ctx.sleep(timedelta(milliseconds=50))
    doubled: int = await ctx.rpc("double", number)
    return doubled + await ctx.run(double, number)


async def ask(ctx: Context) -> Any:
    """Wait for somebody to settle a promise of our own."""
    return await ctx.promise(timeout=timedelta(hours=1))


def embedded(engine: Engine) -> Any:
    """Return the embedded engine's database."""
    assert engine.embedded is not None
    return engine.embedded._database


async def pending_promise(r: Resonate, root: str) -> str:
    """Return the id of the promise that a workflow waits on, once it sleeps."""
    async with asyncio.timeout(PATIENCE):
        while True:
            page = await r.promises.search("pending", {"resonate:parent": root}, 10, None)
            external = [p.id for p in page.promises if p.tags.get("resonate:external") == "true"]
            if external:
                return external[0]
            await asyncio.sleep(0.005)


def test_the_connection_is_the_sdks_two_seams() -> None:
    """Its requests are a network, its messages a source."""
    engine = open_engine("sqlite:///never-opened.db")
    assert isinstance(engine.network, Network)
    [source] = engine.sources
    assert isinstance(source, Source)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///approvals.db", "approvals.db"),
        ("sqlite:///data/a%20b.db", "data/a b.db"),
        ("sqlite:////var/lib/approvals.db", "/var/lib/approvals.db"),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(url: str, path: str) -> None:
    """As in every other program that takes such URLs."""
    assert sqlite_path(url) == Path(path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://a.db",
        "sqlite:////",
        "redis://x",
        "a.db",
    ],
)
def test_a_url_that_names_no_engine_is_a_setting_gone_wrong(url: str) -> None:
    """The error names the setting."""
    with pytest.raises(SettingsError) as refused:
        open_engine(url)
    assert refused.value.name == "APPROVALS_ENGINE"


@pytest.mark.parametrize("engine_url", ["memory:", "sqlite"])
async def test_a_workflow_with_every_kind_of_step_runs(engine_url: str, url: str) -> None:
    """Local steps, sleeps and calls, on either engine of one process."""
    async with running(url if engine_url == "sqlite" else engine_url, double, nap_and_double) as (_, r):
        assert await soon(r.run("a", nap_and_double, 4).result()) == 16
        assert await soon(r.rpc("b", "nap_and_double", 5).result()) == 20
        # The same id again is the same invocation.
        assert await soon(r.run("a", nap_and_double, 99).result()) == 16


async def test_a_decision_resumes_the_workflow_at_once(url: str) -> None:
    """Settling what it awaits is all it takes."""
    async with running(url, ask) as (_, r):
        handle = r.run("a", ask)
        promise = await pending_promise(r, "a")
        settled = await r.promises.resolve(promise, Value(data="yes"))
        assert settled.state == "resolved"
        assert await soon(handle.result()) == "yes"
        late = await r.promises.resolve(promise, Value(data="no"))
        assert (late.state, late.value.data) == ("resolved", "yes")


async def test_a_timer_wakes_to_the_millisecond_without_polling(url: str) -> None:
    """A sleep ends when it is due and not before, well inside the sweep's second."""

    async def nap(ctx: Context) -> int:
        await ctx.sleep(timedelta(milliseconds=137))
        return time.time_ns() // 1_000_000

    async with running(url, nap) as (_, r):
        late = []
        for number in range(10):
            woke: int = await soon(r.run(f"n{number}", nap).result())
            timer = await r.promises.get(f"n{number}:1")
            late.append(woke - timer.timeout_at)
        assert min(late) >= 0
        assert sorted(late)[5] < 100


async def test_an_expired_promise_surfaces_and_does_not_hang(url: str) -> None:
    """A bare promise with a timeout expires on this engine."""

    async def wait_briefly(ctx: Context) -> str:
        try:
            await ctx.promise(timeout=timedelta(milliseconds=50))
        except Exception:  # noqa: BLE001 - the SDK has no type for it
            return "expired"
        return "settled"

    async with running(url, wait_briefly) as (_, r):
        assert await soon(r.run("a", wait_briefly).result()) == "expired"


async def test_a_clean_stop_runs_no_leaf_twice(url: str) -> None:
    """Requests are answered until close, so a leaf in flight at ``stop()`` keeps its result."""
    runs = 0
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Context) -> int:
        nonlocal runs
        runs += 1
        begun.set()
        await go_on.wait()
        return runs

    async def outer(ctx: Context) -> int:
        result: int = await ctx.run(slow)
        await ctx.sleep(timedelta(milliseconds=300))
        return result

    engine = open_engine(url)
    await engine.start()
    r = sdk(engine)
    r.register(outer)
    r.start()
    r.run("a", outer)
    await soon(begun.wait())
    stopping = asyncio.create_task(r.stop())
    await asyncio.sleep(0)
    go_on.set()
    await soon(stopping)
    await engine.close()
    async with running(url, outer) as (_, again):
        assert await soon(again.rpc("a", "outer").result()) == 1
    assert runs == 1


async def test_a_restart_goes_on_where_the_last_process_was(url: str) -> None:
    """The step that was done is not done again; the one that waited goes on."""
    sent = 0

    async def send(_: Context) -> int:
        nonlocal sent
        sent += 1
        return sent

    async def approval(ctx: Context) -> Any:
        await ctx.run(send)
        return await ctx.promise(timeout=timedelta(hours=1))

    async with running(url, approval) as (_, r):
        r.run("a", approval)
        promise = await pending_promise(r, "a")
    async with running(url, approval) as (_, r):
        await r.promises.resolve(promise, Value(data="yes"))
        handle: ResonateHandle[Any] = await soon(r.get("a"))
        assert await soon(handle.result()) == "yes"
    assert sent == 1


async def test_a_message_waits_for_a_listener_that_is_away(url: str) -> None:
    """An ``unblock`` sent while nobody listened is handed over when somebody does, once."""
    got: list[str] = []
    engine = open_engine(url, pid="me")
    await engine.start()
    [connection] = engine.sources
    r = sdk(engine)
    await r._sender.promise_create(_external("p"))
    await r._sender.promise_register_listener("p", connection.unicast())
    await r.promises.resolve("p", Value(data=1))
    connection.recv(got.append)
    await connection.start()
    assert len(got) == 1
    assert '"unblock"' in got[0]
    await connection.stop()
    await r.promises.get("p")
    await connection.start()
    await connection.stop()
    assert len(got) == 1
    await engine.close()


async def test_a_task_nobody_knows_does_not_storm(url: str) -> None:
    """An unregistered function is offered again with growing delay, and runs once it is known."""
    async with running(url) as (engine, r):
        handle = r.options(target="approvals").rpc("a", "double", 4)
        await until(lambda: stored(engine, "a") is not None)
        await asyncio.sleep(1.5)
        pair = stored(engine, "a")
        assert 2 <= pair[1].version <= 8
        r.register(double)
        assert await soon(handle.result()) == 8


async def test_a_failing_disk_reaches_the_caller_as_a_connector_error(url: str) -> None:
    """And once it works again the work goes on: what the SDK could not give back is released for it."""
    async with running(url, ask) as (engine, r):
        handle = r.run("a", ask)
        promise = await pending_promise(r, "a")
        database = embedded(engine)
        await until(lambda: stored(engine, "a")[1].state == "suspended")
        database._db.execute("PRAGMA query_only = 1")
        with pytest.raises(ConnectorError, match="can't be written"):
            await r.promises.resolve(promise, Value(data="yes"))
        database._db.execute("PRAGMA query_only = 0")
        await r.promises.resolve(promise, Value(data="yes"))
        assert await soon(handle.result()) == "yes"


async def test_a_release_that_failed_with_the_disk_is_made_good(url: str) -> None:
    """The SDK asks once; the engine tries again and again, since only this process can end the lease."""
    async with running(url) as (engine, r):
        created = await r._sender.task_create("me", 1000, _external("a", target="poll://any@elsewhere"))
        database = embedded(engine)
        database._db.execute("PRAGMA query_only = 1")
        with pytest.raises(ConnectorError):
            await r._sender.task_release("a", created.task.version)
        await asyncio.sleep(2 * OWED_S)  # the disk fails once more
        database._db.execute("PRAGMA query_only = 0")
        await until(lambda: stored(engine, "a")[1].state == "pending")


async def test_a_closed_file_is_whole_without_its_log(url: str) -> None:
    """Whoever copies, moves or renames the one file after a stop has everything."""
    async with running(url, ask) as (engine, r):
        r.run("a", ask)
        await pending_promise(r, "a")  # has been read, by a connection that only reads
        await r.promises.search(None, None, None, None)
        path = embedded(engine).path
        assert path is not None
    assert {file.suffix for file in path.parent.iterdir()} <= {".db", ".lock"}


async def test_what_goes_past_the_protocol_is_what_the_protocol_answers(url: str) -> None:
    """In every state a promise can be in, and for one that there is not."""
    async with running(url) as (_, r):
        by_protocol = Promises(r)
        far, value = now_ms() + 60_000, Value(data={"n": 1})
        await r.promises.create("pending", far, value, {"t:a": "b", "resonate:external": "true"})
        await r.promises.create("late", now_ms() - 1, Value(), {})
        await r.promises.create("slept", now_ms() - 1, Value(), {"resonate:timer": "true"})
        for state in ("resolve", "reject", "cancel"):
            await r.promises.create(state, far, value, {})
            await getattr(r.promises, state)(state, Value(data=[state]))
        states = set()
        for name in ("pending", "late", "slept", "resolve", "reject", "cancel"):
            read = await r.promises.get(name)
            assert read == await by_protocol.get(name)
            states.add(read.state)
        for promises in (r.promises, by_protocol):
            found = await promises.find("nothing", "pending")
            assert found == [None, await by_protocol.get("pending")]
            assert await promises.read("pending") == found[1:]
            with pytest.raises(ServerError):
                await promises.read("pending", "nothing")
            for name in ("pending", "late", "slept", "reject"):
                assert await promises.create(name, far + 1, Value(), {}) == await by_protocol.get(name)
            for name in ("late", "slept", "reject"):
                assert await promises.resolve(name, Value(data=2)) == await by_protocol.get(name)
            for ending in (promises.resolve, promises.reject, promises.cancel):
                with pytest.raises(ServerError) as none:
                    await ending("nothing", Value())
                assert none.value.code == 404
        assert states == {"pending", "rejected_timedout", "resolved", "rejected", "rejected_canceled"}
        for promises in (r.promises, by_protocol):
            with pytest.raises(ServerError) as missing:
                await promises.get("nothing")
            assert missing.value.code == 404


@pytest.mark.parametrize("nearby", [True, False], ids=["nearby", "by protocol"])
async def test_whoever_watches_hears_of_every_end(url: str, *, nearby: bool) -> None:
    """Of a decision, a deadline and one that was there before; whoever stopped watching is forgotten."""
    async with running(url) as (engine, r):
        promises = r.promises if nearby else Promises(r)
        far = now_ms() + 60_000
        for name, due in (("decided", far), ("late", now_ms() + 80), ("ended", far), ("open", far)):
            await r.promises.create(name, due, Value(), {"resonate:external": "true"})
        await r.promises.cancel("ended", Value())
        watches = [await promises.watch(name) for name in ("decided", "decided", "late", "ended", "open")]
        watches.pop(1).cancel()
        await r.promises.reject("decided", Value(data="no"))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*watches[:3])
        assert not watches[3].done()
        watches[3].cancel()
        with pytest.raises(ServerError):
            await promises.watch("nothing")
        await asyncio.sleep(0)
        assert engine.embedded is not None
        assert engine.embedded._watches == {}


async def test_who_gives_up_early_takes_nobody_elses_watch_along(url: str) -> None:
    """By the protocol all watches of a promise are one registration, which the first to come sends."""
    async with running(url) as (engine, r):
        assert engine.embedded is not None
        async with serving(engine.embedded) as http, running(http) as (_, elsewhere):
            await r.promises.create("a", now_ms() + 60_000, Value(), {"resonate:external": "true"})
            first = asyncio.create_task(elsewhere.promises.watch("a"))
            for _ in range(2):
                await asyncio.sleep(0)
            first.cancel()
            watch = await elsewhere.promises.watch("a")
            await asyncio.sleep(0.2)  # whoever sends the registration has sent it by now
            await r.promises.resolve("a", Value())
            await asyncio.wait_for(watch, PATIENCE)


async def test_whoever_watches_hears_before_whoever_decided_goes_on(url: str) -> None:
    """Software that waits for a decision has it before the page that thanks for it is made."""
    heard: list[str] = []
    async with running(url) as (_, r):
        await r.promises.create("a", now_ms() + 60_000, Value(), {"resonate:external": "true"})

        async def waits() -> None:
            await (await r.promises.watch("a"))
            heard.append((await r.promises.get("a")).state)

        waiting = asyncio.create_task(waits())
        await asyncio.sleep(0)
        await r.promises.resolve("a", Value())
        heard.append("decided")
        await waiting
    assert heard == ["resolved", "decided"]


async def test_after_close_every_request_is_refused(url: str) -> None:
    """With the error the SDK expects of a network."""
    engine = open_engine(url)
    await engine.start()
    await engine.close()
    await engine.close()
    r = sdk(engine)
    with pytest.raises(ConnectorError, match="closed"):
        await r.promises.get("a")
    with pytest.raises(ConnectorError, match="closed"):
        await r.promises.search(None, None, None, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_writer_that_dies_leaves_nobody_waiting(url: str) -> None:
    """A defect that ends the thread: what was in hand and what comes is refused."""
    engine = open_engine(url)
    await engine.start()
    r = sdk(engine)
    database = embedded(engine)

    def die(*_: Any, **__: Any) -> None:
        raise MemoryError

    database.run = die
    for id_ in ("in hand", "after"):
        with pytest.raises(ConnectorError, match="closed"):
            await soon(r.promises.create(id_, now_ms() + 60_000, Value(), {}))
    with pytest.raises(ConnectorError, match="closed"):
        await soon(r.promises.get("a"))
    await engine.close()


async def test_requests_together_share_a_commit(url: str) -> None:
    """A thousand creates at once take far fewer transactions than a thousand."""
    async with running(url) as (engine, r):
        database = embedded(engine)
        batches = 0
        run = database.run

        def count(jobs: Any, **options: Any) -> Any:
            nonlocal batches
            batches += 1
            return run(jobs, **options)

        database.run = count
        await asyncio.gather(*(r._sender.promise_create(_external(f"p{n}")) for n in range(1000)))
        assert batches < 100
        page = await r.promises.search("pending", None, 1000, None)
        assert len(page.promises) == 1000


async def test_a_backup_of_a_running_engine_opens(url: str, tmp_path: Path) -> None:
    """With everything acknowledged so far."""
    async with running(url) as (engine, r):
        await r._sender.promise_create(_external("p"))
        assert engine.embedded is not None
        await engine.embedded.backup(tmp_path / "copy.db")
    async with running(sqlite_url(tmp_path / "copy.db")) as (_, r):
        assert (await r.promises.get("p")).state == "pending"


def _external(id_: str, **tags: str) -> PromiseCreateReq:
    named = {f"resonate:{name}": value for name, value in ({"external": "true"} | tags).items()}
    return PromiseCreateReq(id=id_, timeout_at=(time.time_ns() // 1_000_000) + 3_600_000, tags=named)
