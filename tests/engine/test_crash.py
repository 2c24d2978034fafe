"""The process killed at any moment, and the power cut: nothing acknowledged is lost, nothing is stuck."""

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import pytest

from service.engine.database import Database
from tests.engine.bench import T0, TARGET, Bench, FakeClock, create

#: Kills per file: the state that a kill leaves is what the next one starts from.
KILLS = 10

ROOT = Path(__file__).parents[2]


class Story:
    """What was acknowledged, over all the processes that worked on one file."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "approvals.db"
        self.letters = directory / "letters.txt"
        self.started: set[str] = set()
        self.decided: dict[str, str] = {}
        self.done: dict[str, str] = {}

    def run(self, round_: int, seed: int, kill_after: float | None) -> None:
        """Run a process on the file until it ends, or kill it so long after it is ready."""
        unfinished = sorted((self.started | set(self.decided)) - set(self.done))
        command = [sys.executable, "-m", "tests.engine.crashing", str(self.file), str(self.letters)]
        with subprocess.Popen(  # noqa: S603 - our own interpreter
            [*command, str(round_), str(seed), *unfinished],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        ) as child:
            # Whatever goes wrong, the child ends with the test.
            timer = threading.Timer(60, child.kill)
            timer.start()
            assert child.stdout is not None
            for line in child.stdout:
                self.note(line, complete=line.endswith("\n"))
                if line == "ready\n" and kill_after is not None:
                    killer = threading.Timer(kill_after, child.kill)
                    killer.start()
            timer.cancel()
            child.wait()
            assert child.returncode == (0 if kill_after is None else -9)

    def note(self, line: str, *, complete: bool) -> None:
        """Note what a process told, holding it against what was told before."""
        what, *rest = line.split()
        if not complete:
            return
        match what:
            case "started":
                self.started.add(rest[0])
            case "decided":
                assert self.decided.setdefault(rest[0], rest[1]) == rest[1], f"{rest[0]} was decided twice"
            case "done":
                assert self.decided[rest[0]] == rest[1], f"{rest[0]} came out otherwise than decided"
                self.done[rest[0]] = rest[1]

    def check(self) -> None:
        """Hold everything acknowledged against what is in the file and in the letters."""
        assert self.started
        assert set(self.done) >= self.started
        letters = defaultdict(set)
        for line in self.letters.read_text().splitlines():
            id_, kind, text = line.split(" ", 2)
            letters[id_, kind].add(text)
        for id_ in self.done:
            for kind in ("request", "closed"):
                assert len(letters[id_, kind]) == 1, f"{id_}: letters differ, or none was sent"
        with closing(sqlite3.connect(self.file)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            states = dict(db.execute("SELECT id, state FROM promises WHERE parent IS NULL").fetchall())
            assert all(states[id_] == "resolved" for id_ in self.done)
            held = (
                "SELECT count(*) FROM tasks t JOIN promises p USING (row)"
                " WHERE p.id = ? AND t.state <> 'fulfilled'"
            )
            assert all(db.execute(held, (id_,)).fetchone()[0] == 0 for id_ in self.done)


@pytest.mark.parametrize("seed", range(5))
def test_killed_again_and_again_nothing_acknowledged_is_lost(tmp_path: Path, seed: int) -> None:
    """Ten kills -9 under load on one file; then everything started is finished as decided."""
    rng = random.Random(seed)  # noqa: S311 - a seed, not a secret
    story = Story(tmp_path)
    for round_ in range(1, KILLS + 1):
        story.run(round_, rng.randrange(2**31), kill_after=rng.random() * 0.6)
    story.run(0, seed, kill_after=None)
    story.check()


@pytest.mark.parametrize("seed", range(20))
def test_a_power_cut_leaves_a_prefix_of_what_was_acknowledged(tmp_path: Path, seed: int) -> None:
    """The log cut at a random byte: the file opens, and holds each transaction whole up to some point.

    No later one is there without the earlier, and none in part: a workflow's
    promise, its task and its child stand or fall together.
    """
    rng = random.Random(seed)  # noqa: S311 - a seed, not a secret
    live = tmp_path / "live.db"
    bench = Bench(Database(live, clock=FakeClock()))
    assert bench.database._db is not None
    bench.database._db.execute("PRAGMA wal_autocheckpoint = 0")
    for number in range(60):
        version = bench.task(f"w{number}")
        child = create(f"w{number}:1", T0 + 60_000, **{"resonate:external": "true"})
        bench.ok("task.fence", id=f"w{number}", version=version, action=child)
        assert bench.suspend(f"w{number}", version, f"w{number}:1").status == 200
        bench.settle(f"w{number}:1")
    cut = tmp_path / "cut.db"
    shutil.copy(live, cut)
    wal = live.with_name("live.db-wal").read_bytes()
    bench.database.close()
    cut.with_name("cut.db-wal").write_bytes(wal[: rng.randrange(len(wal))])
    after = Bench(Database(cut, clock=FakeClock()))
    with contextlib.closing(after.database):
        db = after.database._db
        assert db is not None
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        stored = after.stored()
        states = {row[1]: row[2] for row in stored["promises"]}
        tasks = {row[0]: row[1] for row in stored["tasks"]}
        roots = [row for row in stored["promises"] if ":" not in row[1]]
        # Every task with its promise, and a prefix of the story: each step implies those before it.
        assert set(tasks) == {row[0] for row in roots}
        assert [row[1] for row in roots] == [f"w{n}" for n in range(len(roots))]
        for number, row in enumerate(roots):
            told = (f"w{number}:1" in states, tasks[row[0]], states.get(f"w{number}:1"))
            whole = (True, "pending", "resolved")
            assert told == whole or number == len(roots) - 1
            assert told in {
                (False, "acquired", None),
                (True, "acquired", "pending"),
                (True, "suspended", "pending"),
                whole,
            }
        # And it goes on from there.
        after.promise("next", target=TARGET)
        assert ("next", 0) in after.offers()
