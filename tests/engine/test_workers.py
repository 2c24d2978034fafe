"""Three workers in processes of their own on one engine, one of them killed: the others finish."""

import asyncio
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from resonate.types import Value

from service.engine import EmbeddedEngine
from tests.engine.live import running, serving, until

ROOT = Path(__file__).parents[2]
COUNT = 20


@contextmanager
def worker(url: str, directory: Path, pid: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process that ends with its test."""
    command = [sys.executable, "-m", "tests.engine.worker", url]
    files = [str(directory / "letters.txt"), str(directory / "begun.txt"), pid]
    with subprocess.Popen([*command, *files], cwd=ROOT, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            yield process
        finally:
            process.kill()


def lines(path: Path) -> list[str]:
    """Return what has been written so far, whole lines only."""
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("moment", ["mid-letter", "mid-block"])
async def test_twenty_approvals_finish_on_the_survivors(tmp_path: Path, moment: str) -> None:
    """One of three workers is killed while it sends a letter, or while its approvals wait for a decision."""
    engine = EmbeddedEngine(tmp_path / "approvals.db")
    await engine.start()
    begun = tmp_path / "begun.txt"
    with ExitStack() as stack:
        async with serving(engine) as url, running(url, group="gateway") as (_, r):
            workers = [stack.enter_context(worker(url, tmp_path, f"w{n}")) for n in range(3)]
            await until(lambda: len(engine._switchboard._groups.get("workers", [])) == 3)
            far = r.options(target="workers", timeout=timedelta(days=30))
            handles = {f"a{n}": far.rpc(f"a{n}", "approval", f"a{n}") for n in range(COUNT)}
            if moment == "mid-letter":
                await until(lambda: any(line.startswith("w0 ") for line in lines(begun)))
                workers[0].kill()
            await until(lambda: _asked(engine) == COUNT)
            if moment == "mid-block":
                workers[0].kill()
            for id_ in handles:
                await r.promises.resolve(f"{id_}:2", Value(data=f"yes {id_}"))
            async with asyncio.timeout(40):
                results = {id_: await handle.result() for id_, handle in handles.items()}
    await engine.close()
    assert results == {id_: f"yes {id_}" for id_ in handles}
    assert {line.split()[0] for line in lines(begun)} == {"w0", "w1", "w2"}
    letters = defaultdict(set)
    for line in lines(tmp_path / "letters.txt"):
        id_, kind, text = line.split(" ", 2)
        letters[id_, kind].add(text)
    assert set(letters) == {(id_, kind) for id_ in handles for kind in ("request", "closed")}
    assert all(len(texts) == 1 for texts in letters.values())


def _asked(engine: EmbeddedEngine) -> int:
    """Return how many approvals have asked their question."""
    # Not over the engine's own connection: that is its writer's thread's.
    with closing(sqlite3.connect(f"{engine.path.resolve().as_uri()}?mode=ro", uri=True)) as db:
        count: int = db.execute("SELECT count(*) FROM promises WHERE id LIKE 'a%:2'").fetchone()[0]
    return count
