"""The file: opened, locked, brought forward, failing, copied, and what is forgotten."""

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.engine import EmbeddedEngine, schema
from service.engine.backup import backup
from service.engine.clock import now_ms
from service.engine.database import Database, Job, StorageFault
from service.engine.retention import OWNER_TAG
from service.engine.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION, NotOurs, migrate
from service.engine.transaction import Transaction
from service.engine.wire import Call, read_call
from service.errors import SettingsError
from tests.engine.bench import T0, TARGET, Bench, FakeClock, create, envelope, settle

DAY = 24 * 3600 * 1000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that is not there yet."""
    return tmp_path / "approvals.db"


@pytest.fixture
def opened(file: Path) -> Iterator[Callable[..., Bench]]:
    """A way to open the file, as often as wanted; what is left open is closed."""
    benches: list[Bench] = []

    def open_(clock: FakeClock | None = None) -> Bench:
        clock = clock or FakeClock()
        benches.append(Bench(Database(file, clock=clock, debug_verbs=True), clock))
        return benches[-1]

    yield open_
    for bench in benches:
        bench.database.close()


# -- opening ------------------------------------------------------------------------------------------


def test_the_file_is_in_wal_mode_and_fully_synchronous(opened: Callable[..., Bench]) -> None:
    """What is acknowledged is on disk."""
    db = opened().database._db
    assert db is not None
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID


async def test_only_leases_within_this_process_do_not_wait_for_the_disk(file: Path) -> None:
    """Their loss with the power is made good by the next start; nobody's but theirs is."""
    engine = EmbeddedEngine(file)
    await engine.start()
    version = 0

    async def forced(kind: str, *, endless: bool = True, **data: Any) -> bool:
        """Send a request; tell whether its commit waited for the disk."""
        nonlocal version
        answer = json.loads(await engine.send(envelope(kind, data), endless=endless))
        assert answer["head"]["status"] in {200, 300}, answer
        version = answer["data"].get("task", {}).get("version", version)
        assert engine._database._db is not None
        return bool(engine._database._db.execute("PRAGMA synchronous").fetchone()[0] == 2)

    def lease() -> dict[str, Any]:
        return {"id": "w", "version": version, "pid": "p", "ttl": 5_000}

    def fenced(action: dict[str, Any]) -> dict[str, Any]:
        return {"id": "w", "version": version, "action": action}

    def awaiting(awaited: str) -> dict[str, Any]:
        callback = {"awaited": awaited, "awaiter": "w"}
        return lease() | {"actions": [{"kind": "promise.register_callback", "head": {}, "data": callback}]}

    far = now_ms() + DAY
    leaf, seat = {"resonate:scope": "local"}, {"resonate:scope": "global", "resonate:external": "true"}
    assert await forced("promise.create", id="w", timeoutAt=far, tags={"resonate:target": TARGET})
    assert not await forced("task.acquire", **lease())
    assert not await forced("task.fence", **fenced(create("w:1", far, **leaf)))
    assert await forced("task.fence", **fenced(settle("w:1")))
    assert await forced("task.fence", **fenced(create("w:2", far, **seat)))
    assert not await forced("task.suspend", **awaiting("w:2"))
    assert await forced("promise.settle", id="w:2", state="resolved", value={})
    assert not await forced("task.acquire", **lease())
    assert not await forced("task.release", **lease())
    # Another process's lease outlives this one, and so it is on disk.
    assert await forced("task.acquire", **lease(), endless=False)
    await engine.close()


def test_a_power_cut_among_leases_loses_nothing_that_was_forced(file: Path, tmp_path: Path) -> None:
    """The log ends where it was last forced: what that acknowledged is there, and its work is offered."""
    live = Bench(Database(file, clock=FakeClock()))
    cut = tmp_path / "cut.db"
    with closing(live.database):

        def lazy(kind: str, **data: Any) -> None:
            call = read_call(envelope(kind, data))
            work = partial(live.database.answer, call, endless=True)
            [answer] = live.database.run([Job(work, lambda _: None, lazy=True)], fire=False)
            assert json.loads(answer)["head"]["status"] == 200

        lease = {"id": "w", "version": 0, "pid": "p", "ttl": 5_000}
        live.promise("w", target=TARGET)
        lazy("task.acquire", **lease)
        leaf = create("w:1", T0 + 60_000, **{"resonate:scope": "local"})
        lazy("task.fence", id="w", version=1, action=leaf)
        live.ok("task.fence", id="w", version=1, action=settle("w:1"))
        forced = file.with_name("approvals.db-wal").stat().st_size
        lazy("task.release", id="w", version=1)
        lazy("task.acquire", **lease | {"version": 1})
        wal = file.with_name("approvals.db-wal").read_bytes()
        assert len(wal) > forced
        shutil.copy(file, cut)
        cut.with_name("cut.db-wal").write_bytes(wal[:forced])
    after = Bench(Database(cut, clock=FakeClock()))
    with closing(after.database):
        assert [(row[1], row[2]) for row in after.stored()["promises"]] == [
            ("w", "pending"),
            ("w:1", "resolved"),
        ]
        after.pass_time()
        assert after.offers() == [("w", 1)]


def test_after_a_fault_what_was_not_forced_goes_into_the_file_first(file: Path, tmp_path: Path) -> None:
    """A force that failed may have lost it: what is acknowledged next must not stand behind it in the log."""
    live = Bench(Database(file, clock=FakeClock()))
    cut = tmp_path / "cut.db"

    def broken(_: Transaction) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with closing(live.database):
        live.promise("w", target=TARGET)
        lease = read_call(envelope("task.acquire", {"id": "w", "version": 0, "pid": "p", "ttl": 5_000}))
        lazy = Job(partial(live.database.answer, lease, endless=True), lambda _: None, lazy=True)
        live.database.run([lazy], fire=False)
        assert isinstance(live.database.run([Job(broken, lambda _: None)], fire=False)[0], StorageFault)
        live.promise("after")
        shutil.copy(file, cut)  # without its log
    after = Bench(Database(cut, clock=FakeClock()))
    with closing(after.database):
        assert [row[1] for row in after.stored()["promises"]] == ["w"]
        assert after.stored()["tasks"][0][2] == 1


def test_what_was_stored_is_there_after_a_restart(opened: Callable[..., Bench]) -> None:
    """Every table, row by row."""
    first = opened()
    version = first.task("w")
    first.promise("p", external="true")
    first.suspend("w", version, "p")
    first.ok("promise.register_listener", awaited="p", address="poll://uni@g/p")
    stored = first.stored()
    first.database.close()
    again = opened()
    assert again.stored() == stored
    again.settle("p")
    assert again.offers() == [("w", version)]


def test_what_was_in_hand_is_offered_at_once_after_a_restart(opened: Callable[..., Bench]) -> None:
    """A lease held in the engine's own process ended with it; one of another process did not."""
    first = opened()
    mine = create("mine", T0 + 10**6, **{"resonate:target": TARGET})
    first.ask("task.create", endless=True, pid="me", ttl=60_000, action=mine)
    first.task("theirs", life=10**6, ttl=60_000)
    first.database.close()
    again = opened()
    assert again.task_state("mine") == "pending"
    assert again.task_state("theirs") == "acquired"
    again.pass_time()
    assert again.offers() == [("mine", 1)]
    again.refused(409, "task.fulfill", id="mine", version=1, action=settle("mine"))


def test_a_deadline_that_passed_while_down_fires_at_the_start(opened: Callable[..., Bench]) -> None:
    """And its awaiter is woken."""
    first = opened()
    version = first.task("w")
    first.promise("p", life=1000, external="true")
    first.suspend("w", version, "p")
    first.database.close()
    again = opened(FakeClock(T0 + 5000))
    assert again.database.next_due == T0 + 1000
    again.pass_time()
    assert again.offers() == [("w", version)]
    assert again.ok("promise.get", id="p")["promise"]["settledAt"] == T0 + 1000


def test_a_second_process_is_told_who_has_the_file(file: Path) -> None:
    """One line, with the holder's pid and what to do."""
    program = (
        "import sys, pathlib; from service.engine.database import Database;"
        "d = Database(pathlib.Path(sys.argv[1])); d.open(); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(SettingsError, match=f"in use by process {holder.pid};") as refused:
            Database(file).open()
        assert "\n" not in str(refused.value)
        assert refused.value.name == "APPROVALS_ENGINE"
        holder.kill()
    database = Database(file)
    database.open()
    database.close()


def test_a_second_engine_in_the_same_process_is_refused_too(opened: Callable[..., Bench], file: Path) -> None:
    """The lock is the file's, not the process's."""
    opened()
    with pytest.raises(SettingsError, match=f"in use by process {os.getpid()};"):
        Database(file).open()


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda file: file.write_bytes(b"not a database, but long enough to be read as one" * 99), "damaged"),
        (lambda file: file.mkdir(), "can't be opened"),
    ],
)
def test_a_file_that_is_no_database_is_refused_in_one_line(
    file: Path, prepare: Callable[[Path], object], says: str
) -> None:
    """With what is wrong, and the file left as it was."""
    prepare(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(SettingsError, match=says) as refused:
        Database(file).open()
    assert "\n" not in str(refused.value)
    assert before is None or file.read_bytes() == before


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    """We make no directories."""
    with pytest.raises(SettingsError, match="no directory"):
        Database(tmp_path / "nowhere" / "a.db").open()


def test_another_programs_database_is_left_alone(file: Path) -> None:
    """It may have tables of our names."""
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE promises (kept)")
    with pytest.raises(SettingsError, match="another program"):
        Database(file).open()
    with closing(sqlite3.connect(file)) as db:
        assert [row[0] for row in db.execute("SELECT name FROM sqlite_schema")] == ["promises"]


def test_a_newer_file_is_refused_and_unchanged(file: Path, opened: Callable[..., Bench]) -> None:
    """A later program's file is not ours to write."""
    opened().database.close()
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(SettingsError, match=f"version {SCHEMA_VERSION + 1} is newer than {SCHEMA_VERSION}"):
        Database(file).open()
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION + 1


def test_an_older_file_comes_forward(opened: Callable[..., Bench], file: Path) -> None:
    """In one transaction, its rows kept; a step that fails leaves the file at its version."""
    bench = opened()
    bench.promise("a")
    bench.database.close()
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        broken = (*MIGRATIONS, "CREATE TABLE extra (x); CREATE TABLE promises (x)")
        with pytest.raises(sqlite3.OperationalError):
            migrate(db, broken)
        db.rollback()
        assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
        assert migrate(db, (*MIGRATIONS, "ALTER TABLE promises ADD COLUMN extra TEXT")) == SCHEMA_VERSION
        assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION + 1
        assert db.execute("SELECT id, extra FROM promises").fetchall() == [("a", None)]


def test_the_version_is_the_number_of_migrations() -> None:
    """A migration that is added raises it."""
    assert len(schema.MIGRATIONS) == SCHEMA_VERSION


# -- failing ------------------------------------------------------------------------------------------


def job(bench: Bench, id_: str) -> Job:
    """Return the job of creating a promise."""

    def work(tx: Transaction) -> bytes:
        call = create_call(id_, bench.now + 1000)
        return bench.database.answer(call, tx)

    return Job(work, lambda _: None)


def create_call(id_: str, timeout_at: int) -> Call:
    """Return a create, read."""
    return read_call(envelope("promise.create", {"id": id_, "timeoutAt": timeout_at, "tags": {}}))


def test_one_jobs_failure_is_not_anothers(opened: Callable[..., Bench]) -> None:
    """A batch that fails is done again one by one: the others are stored, the failing one is not."""
    bench = opened()

    def fail(tx: Transaction) -> None:
        tx.rows.execute("INSERT INTO schedules (id) VALUES ('half')")

    outcomes = bench.database.run([job(bench, "a"), Job(fail, lambda _: None), job(bench, "b")])
    assert [isinstance(outcome, StorageFault) for outcome in outcomes] == [False, True, False]
    assert [row[1] for row in bench.stored()["promises"]] == ["a", "b"]
    assert bench.stored()["schedules"] == []


def test_a_full_disk_refuses_and_changes_nothing(opened: Callable[..., Bench]) -> None:
    """Nothing is acknowledged that is not on disk; reading goes on; with room again, writing does."""
    bench = opened()
    bench.promise("a", external="true")
    db = bench.database._db
    assert db is not None
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    before = bench.stored()

    def fill() -> None:
        nonlocal before
        for number in range(999):
            bench.ok("promise.create", id=f"b{number}", timeoutAt=T0 + 5, param={"data": "x" * 4000})
            before = bench.stored()

    with pytest.raises(StorageFault, match="the disk is full"):
        fill()
    assert bench.stored() == before
    faulty = bench.database.faulty
    assert faulty
    assert bench.state("a") == "pending"
    db.execute("PRAGMA max_page_count = 1073741823")
    bench.promise("c")
    recovered = not bench.database.faulty
    assert recovered


def test_a_file_that_became_read_only_refuses(opened: Callable[..., Bench]) -> None:
    """The reason says so, and the promise stays as it was."""
    bench = opened()
    bench.promise("a")
    db = bench.database._db
    assert db is not None
    db.execute("PRAGMA query_only = 1")
    with pytest.raises(StorageFault, match="can't be written"):
        bench.settle("a")
    assert bench.state("a") == "pending"
    db.execute("PRAGMA query_only = 0")
    assert bench.settle("a")["state"] == "resolved"


def test_damage_is_told_and_nothing_is_acknowledged(opened: Callable[..., Bench], file: Path) -> None:
    """Pages overwritten under us: refused, with what to do."""
    bench = opened()
    for number in range(200):
        bench.promise(f"p{number}", external="true")
    bench.database.close()
    size = file.stat().st_size
    with file.open("r+b") as raw:
        raw.seek(4096 * 2)
        raw.write(b"\xff" * (size - 4096 * 2))

    def open_and_write() -> None:
        opened().promise("new", external="true")

    with pytest.raises((StorageFault, SettingsError), match="damaged"):
        open_and_write()


def test_a_fault_is_waited_out_and_not_hammered(opened: Callable[..., Bench]) -> None:
    """What is due stays due, and fires once the file can be written again."""
    bench = opened()
    bench.promise("p", life=10, external="true")
    db = bench.database._db
    assert db is not None
    db.execute("PRAGMA query_only = 1")
    bench.clock.now += 10
    bench.database.run([])
    faulty = bench.database.faulty
    assert faulty
    db.execute("PRAGMA query_only = 0")
    bench.database.run([])
    recovered = not bench.database.faulty
    assert recovered
    assert bench.stored()["promises"][0][2] == "rejected_timedout"


# -- copying ------------------------------------------------------------------------------------------


def test_a_backup_is_whole_while_the_engine_writes_on(opened: Callable[..., Bench], tmp_path: Path) -> None:
    """One file, opened like any other, with what had been acknowledged."""
    bench = opened()
    for number in range(50):
        bench.promise(f"p{number}", external="true")
    target = tmp_path / "copy.db"
    assert bench.database.path is not None
    backup(bench.database.path, target)
    bench.promise("later")
    copy = Bench(Database(target, clock=FakeClock()))
    assert len(copy.stored()["promises"]) == 50
    copy.database.close()
    assert not target.with_name("copy.db.part").exists()


def test_only_its_owner_reads_the_file_and_its_copies(
    opened: Callable[..., Bench], file: Path, tmp_path: Path
) -> None:
    """Whatever the mask of whoever starts us: people's addresses and words are in it."""
    before = os.umask(0)
    try:
        opened().promise("p")
        backup(file, tmp_path / "copy.db")
    finally:
        os.umask(before)
    for path in (file, file.with_name("approvals.db-wal"), tmp_path / "copy.db"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_backup_of_something_else_leaves_the_target_alone(tmp_path: Path) -> None:
    """The old copy is better than none."""
    other, target = tmp_path / "other.db", tmp_path / "copy.db"
    with closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE x (y)")
    target.write_bytes(b"the last good copy")
    with pytest.raises(NotOurs):
        backup(other, target)
    with pytest.raises(sqlite3.OperationalError):
        backup(tmp_path / "nowhere.db", target)
    assert target.read_bytes() == b"the last good copy"


# -- forgetting ---------------------------------------------------------------------------------------


def test_a_settled_root_is_forgotten_with_all_it_made_after_thirty_days(bench: Bench) -> None:
    """Not a millisecond earlier; tags and tasks go with it."""
    action = create("w", T0 + DAY, **{"resonate:target": TARGET, "subject": "x"})
    bench.ok("task.create", pid="w1", ttl=5000, action=action)
    bench.ok("task.fence", id="w", version=1, action=create("w:1", T0 + DAY, **{"resonate:external": "true"}))
    bench.settle("w:1")
    bench.settle("w")
    bench.pass_time(30 * DAY - 1)
    assert len(bench.stored()["promises"]) == 2
    bench.pass_time(1)
    assert all(rows == [] for rows in bench.stored().values())
    assert bench.promise("w")["state"] == "pending"


def test_what_is_pending_is_never_forgotten(bench: Bench) -> None:
    """However old it is, nor the settled parts of its tree."""
    bench.promise("old", life=400 * DAY, external="true")
    bench.ok(
        "task.create", pid="w", ttl=DAY, action=create("w", T0 + 400 * DAY, **{"resonate:target": TARGET})
    )
    for id_ in ("w:1", "w:2"):
        bench.ok("task.fence", id="w", version=1, action=create(id_, T0 + 400 * DAY))
    bench.settle("w:1")
    bench.pass_time(399 * DAY)
    assert [row[1] for row in bench.stored()["promises"]] == ["old", "w", "w:1", "w:2"]


def test_a_settled_root_with_a_pending_child_is_kept(bench: Bench) -> None:
    """A detached child outlives its maker."""
    bench.task("w", life=DAY)
    detached = create("w:1", T0 + 100 * DAY, **{"resonate:target": TARGET})
    bench.ok("task.fence", id="w", version=1, action=detached)
    bench.settle("w")
    bench.pass_time(99 * DAY)
    assert len(bench.stored()["promises"]) == 2
    bench.pass_time(32 * DAY)
    assert bench.stored()["promises"] == []


def test_a_ballots_record_is_forgotten_only_after_its_own_deadline(bench: Bench) -> None:
    """Internal, never settled by anyone: it counts as ended when it was due."""
    bench.promise("ballot.abcdefghijklmnopqrstuvwxyz", life=10 * DAY)
    bench.pass_time(40 * DAY - 1)
    assert len(bench.stored()["promises"]) == 1
    bench.pass_time(1)
    assert bench.stored()["promises"] == []


def test_a_record_is_kept_and_forgotten_with_its_owner(bench: Bench) -> None:
    """Whichever was made first and ends last, none is left to meet another life of the other's id."""

    def record(id_: str, owner: str, life: int) -> None:
        bench.ok("promise.create", id=id_, timeoutAt=bench.now + life, tags={OWNER_TAG: owner})

    def left() -> list[str]:
        return [row[1] for row in bench.stored()["promises"]]

    for owner, life, record_life in (("short", DAY, 10 * DAY), ("long", 2 * DAY, DAY)):
        record(f"before.{owner}", owner, record_life)
        bench.task(owner, life=life)
        record(f"after.{owner}", owner, record_life)
    bench.settle("short")
    record("orphan", "nobody", DAY)
    bench.pass_time(31 * DAY)
    assert left() == ["before.short", "short", "after.short", "before.long", "long", "after.long"]
    bench.pass_time(DAY)
    assert left() == ["before.short", "short", "after.short"]
    bench.pass_time(9 * DAY)
    assert all(rows == [] for rows in bench.stored().values())


def test_a_message_not_handed_over_keeps_its_promise_for_a_day(bench: Bench) -> None:
    """Then it is given up: its listener has asked again, or is gone."""
    bench.promise("p", external="true")
    bench.ok("promise.register_listener", awaited="p", address="poll://uni@g/gone")
    bench.settle("p")
    bench.pass_time(DAY)
    assert len(bench.stored()["outbox"]) == 1
    bench.pass_time(1)
    assert bench.stored()["outbox"] == []


def test_forgetting_goes_through_a_large_file_slice_by_slice(bench: Bench) -> None:
    """Each step looks at some; all of what is old goes in the end, and nothing else."""
    for number in range(1200):
        bench.promise(f"p{number}", life=DAY if number % 2 else 100 * DAY)
    bench.clock.now += 60 * DAY
    bench.pass_time()
    assert len(bench.stored()["promises"]) > 600
    for _ in range(8):
        bench.pass_time()
    assert len(bench.stored()["promises"]) == 600


def test_the_file_can_be_opened_in_a_spawned_process(file: Path) -> None:
    """Nothing of an engine is made at import."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_open_and_close, args=(file,))
    process.start()
    process.join(30)
    assert process.exitcode == 0


def _open_and_close(file: Path) -> None:
    database = Database(file)
    database.open()
    database.close()
