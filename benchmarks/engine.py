# ruff: noqa: INP001 - run as python -m benchmarks.engine, from the root
"""How fast the engine is: ``python -m benchmarks.engine`` prints one JSON line.

Each engine is measured in a process of its own, under the stock SDK and the
same workflow: a step, then a wait for a decision. Beside the embedded engine
with 0, 10,000 and 100,000 approvals pending stands the SDK's in-memory
connection, and a server where ``RESONATE_URL`` names one.

starts_s     approvals started and blocked on their decision, per second, all at once
decides_s    approvals decided and done, per second, all at once
             (one burst lasts under a second; this is the median of several)
ack_ms       a decision until it is acknowledged, one at a time, p50 and p99
resumed_ms   a decision until the workflow runs on, one at a time, p50 and p99
open_ms      opening the file until requests are answered
restart_ms   `approvals serve` from its start, after a kill -9, until /readyz says so; the median
pending_kib  memory of the process per pending approval, over an empty engine
"""

import argparse
import asyncio
import dataclasses
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from resonate.context import Context
from resonate.resonate import Resonate
from resonate.retry import Never
from resonate.types import Value
from resonate_base import Network

from service.demo import free_ports
from service.engine import open_engine
from service.engine.database import Database, Job
from service.engine.wire import read_call

#: Approvals started and decided at once, how often, and clicks measured one by one.
BURST = 1000
BURSTS = 3
CLICKS = 200

#: How often each number of pending approvals is measured.
ROUNDS = 5

LIFE = timedelta(days=30)


class Counting:
    """A network that counts what it was asked."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.suspended = 0
        self.reached = asyncio.Event()
        self.target = 0

    async def start(self) -> None:
        """Start the network."""
        await self._network.start()

    async def stop(self) -> None:
        """Stop the network."""
        await self._network.stop()

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        """Pass a request on; note it if a task went to sleep."""
        answer = await self._network.send(req, headers)
        if req.startswith('{"kind":"task.suspend"') and '"status":200' in answer:
            self.suspended += 1
            if self.suspended == self.target:
                self.reached.set()
        return answer

    def expect(self, more: int) -> asyncio.Event:
        """Return an event that is set once so many more tasks sleep."""
        self.target = self.suspended + more
        self.reached = asyncio.Event()
        return self.reached


def fill(file: Path, pending: int) -> None:
    """Put pending approvals into a file, by the engine's own transactions."""
    database = Database(file)
    database.open()
    far = time.time_ns() // 1_000_000 + 30 * 24 * 3600 * 1000

    def request(kind: str, **data: Any) -> Job:
        body = json.dumps({"kind": kind, "head": {"corrId": "c"}, "data": data})
        return Job(partial(database.answer, read_call(body), endless=True), lambda _: None)

    def create(id_: str, parent: str, **tags: str) -> dict[str, Any]:
        named = {f"resonate:{name}": value for name, value in tags.items()}
        lineage = {"resonate:origin": parent, "resonate:parent": parent, "resonate:branch": parent}
        data = {"id": id_, "timeoutAt": far, "param": {"data": "x" * 120}, "tags": named | lineage}
        return {"kind": "promise.create", "head": {}, "data": data}

    jobs = []
    for number in range(pending):
        id_ = f"old{number}"
        action = create(id_, id_, target="poll://any@approvals", scope="global")
        jobs += [
            request("task.create", pid="p", ttl=60_000, action=action),
            request("task.fence", id=id_, version=1, action=create(f"{id_}:1", id_, scope="local")),
            request("task.fence", id=id_, version=1, action=create(f"{id_}:2", id_, external="true")),
            request(
                "task.suspend",
                id=id_,
                version=1,
                actions=[{"kind": "", "head": {}, "data": {"awaited": f"{id_}:2", "awaiter": id_}}],
            ),
        ]
        if len(jobs) >= 4000:
            assert all(b'"status":200' in outcome for outcome in database.run(jobs))
            jobs = []
    if jobs:
        database.run(jobs)
    database.close()


def rss_kib() -> float:
    """Return the memory of this process now, in KiB."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return pages * resource.getpagesize() / 1024


async def measure(url: str, pending: int, bursts: int, burst: int, clicks: int) -> dict[str, float]:
    """Measure one engine."""
    begun = time.perf_counter()
    engine = open_engine(url)
    await engine.start()
    figures = {"pending": float(pending), "open_ms": (time.perf_counter() - begun) * 1000}
    network = Counting(engine.network)
    engine = dataclasses.replace(engine, network=network)
    r = Resonate(
        network=network, sources=engine.sources, group=engine.group, pid=engine.pid,
        heartbeat=engine.heartbeat, retry_policy=Never(), env={}, autostart=False,
    )  # fmt: skip
    resumed: dict[str, float] = {}

    async def step(_: Context) -> str:
        return "letter sent"

    async def approval(ctx: Context, id_: str) -> Any:
        await ctx.run(step)
        decision = await ctx.promise(timeout=LIFE)
        resumed[id_] = time.perf_counter()
        return decision

    r.register(approval)
    r.start()
    await r.options(timeout=LIFE).rpc("warm", "approval", "warm").id()
    start = partial(_start, r)
    starts, decides = [], []
    for number in range(bursts):
        ids = [f"b{number}-{n}" for n in range(burst)]
        blocked = network.expect(burst)
        begun = time.perf_counter()
        handles = [start(id_) for id_ in ids]
        await blocked.wait()
        starts.append(burst / (time.perf_counter() - begun))
        begun = time.perf_counter()
        await _at_most(64, [partial(r.promises.resolve, f"{id_}:2", Value(data="approve")) for id_ in ids])
        await asyncio.gather(*(handle.result() for handle in handles))
        decides.append(burst / (time.perf_counter() - begun))
    figures |= {"starts_s": statistics.median(starts), "decides_s": statistics.median(decides)}

    acknowledged, ran_on = [], []
    for number in range(clicks):
        id_ = f"c{number}"
        blocked = network.expect(1)
        handle = start(id_)
        await blocked.wait()
        clicked = time.perf_counter()
        await r.promises.resolve(f"{id_}:2", Value(data="approve"))
        acknowledged.append((time.perf_counter() - clicked) * 1000)
        await handle.result()
        ran_on.append((resumed[id_] - clicked) * 1000)
    for name, values in (("ack_ms", acknowledged), ("resumed_ms", ran_on)):
        cuts = statistics.quantiles(values, n=100)
        figures |= {f"{name}_p50": cuts[49], f"{name}_p99": cuts[98]}
    await r.stop()
    await engine.close()
    return {name: round(value, 2) for name, value in figures.items()}


def _start(r: Resonate, id_: str) -> Any:
    return r.options(timeout=LIFE).rpc(id_, "approval", id_)


async def _at_most(width: int, calls: list[Callable[[], Coroutine[Any, Any, Any]]]) -> None:
    gate = asyncio.Semaphore(width)

    async def one(call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        async with gate:
            await call()

    await asyncio.gather(*(one(call) for call in calls))


async def resting(url: str) -> float:
    """Return the memory of a process that has an engine open and does nothing, in KiB."""
    engine = open_engine(url)
    await engine.start()
    network = engine.network
    await network.start()
    kib = rss_kib()
    await engine.close()
    return kib


def child(*arguments: str) -> Any:
    """Run a part of this in a process of its own; return what it prints."""
    command = [sys.executable, "-m", "benchmarks.engine", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 - ourselves
    return json.loads(done.stdout)


def restart(file: Path) -> float:
    """Return the milliseconds that the whole service takes to be ready on a file, killed each time."""
    taken = []
    for _ in range(ROUNDS):
        http, mailbox = free_ports(2)
        own = {
            "ENGINE": f"sqlite:///{file}",
            "HTTP": f"127.0.0.1:{http}",
            "MAILBOX": f"127.0.0.1:{mailbox}",
            "PUBLIC_URL": f"http://127.0.0.1:{http}",
            "SECRET_KEYS": "k" * 43,
        }
        env = os.environ | {f"APPROVALS_{name}": value for name, value in own.items()}
        begun = time.perf_counter()
        command = [sys.executable, "-m", "service", "serve"]
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)  # noqa: S603 - ourselves
        while not ready(http):
            time.sleep(0.002)
        taken.append((time.perf_counter() - begun) * 1000)
        process.kill()
        process.wait()
    return statistics.median(taken)


def ready(port: int) -> bool:
    """Tell whether a gateway answers that it is."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except OSError:
        return False


def embedded(directory: Path, counts: list[int], bursts: int, sizes: list[str]) -> list[dict[str, float]]:
    """Measure the embedded engine with each number of approvals pending: in turns, medians of all.

    In turns since a machine is seldom as fast now as it was a minute ago.
    """
    for pending in counts:
        fill(directory / f"{pending}.db", pending)
    resting_kib = {pending: child("--resting", f"sqlite:///{directory}/{pending}.db") for pending in counts}
    rounds: dict[int, list[dict[str, float]]] = {pending: [] for pending in counts}
    file = directory / "bench.db"
    for _ in range(ROUNDS):
        for pending in counts:
            shutil.copy(directory / f"{pending}.db", file)
            given = ["--measure", f"sqlite:///{file}", "--pending", str(pending), "--bursts", str(bursts)]
            rounds[pending].append(child(*given, *sizes))
            file.unlink()
    found = []
    for pending, figures in rounds.items():
        one = {name: round(statistics.median(f[name] for f in figures), 2) for name in figures[0]}
        one["restart_ms"] = round(restart(directory / f"{pending}.db"))
        if pending and 0 in counts:
            one["pending_kib"] = round((resting_kib[pending] - resting_kib[0]) / pending, 2)
        found.append(one)
    return found


def main() -> None:
    """Measure every engine in turn and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pending", type=int, nargs="*", default=[0, 10_000, 100_000])
    parser.add_argument("--burst", type=int, default=BURST)
    parser.add_argument("--bursts", type=int, default=BURSTS)
    parser.add_argument("--clicks", type=int, default=CLICKS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--resting", help=argparse.SUPPRESS)
    parser.add_argument(
        "--directory", type=Path, help="where the file is made (default: the temporary directory)"
    )
    options = parser.parse_args()
    if options.measure:
        given = (options.pending[0], options.bursts, options.burst, options.clicks)
        print(json.dumps(asyncio.run(measure(options.measure, *given))))
        return
    if options.resting:
        print(json.dumps(asyncio.run(resting(options.resting))))
        return
    sizes = ["--burst", str(options.burst), "--clicks", str(options.clicks)]
    figures: dict[str, Any] = {"cores": os.cpu_count(), "python": sys.version.split()[0]}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        figures["embedded"] = embedded(Path(directory), options.pending, options.bursts, sizes)
    # Its operations cost as much as there are promises, so it is spared the repetitions.
    once = ["--bursts", "1", *sizes]
    figures["sdk_memory"] = child("--measure", "memory:", "--pending", "0", *once)
    server = os.environ.get("RESONATE_URL")
    if server:
        figures["server"] = child("--measure", server, "--pending", "0", *once)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
