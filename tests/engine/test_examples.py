"""The examples in Python and Rust, each a caller's own workflow in a process of its own on our engine."""

import asyncio
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.demo import environment, free_ports
from tests.engine.live import soon
from tests.journey.house import Person, house, link_of, settings_of

EXAMPLES = Path(__file__).parents[2] / "examples"
TOKEN = "s3cret"
#: Cargo builds the SDK and its TLS library from their sources, in seconds.
BUILDING = 900


@pytest.fixture(scope="module", params=["python", "rust"])
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command of an example, built where it must be and is wanted."""
    if request.param == "python":
        return [sys.executable, str(EXAMPLES / "python" / "refund.py")]
    wanted = os.environ.get("RUST_EXAMPLE", "")
    if not wanted:
        pytest.skip("RUST_EXAMPLE is not set")
    if wanted != "1":
        return [wanted]
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.fail("RUST_EXAMPLE is set, and cargo is missing: install Rust")
    folder = tmp_path_factory.mktemp("rust")
    shutil.copytree(EXAMPLES / "rust", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("target"))
    subprocess.run([cargo, "build"], cwd=folder, check=True, timeout=BUILDING)  # noqa: S603 - found above
    return [str(folder / "target" / "debug" / "refund")]


@dataclass(frozen=True)
class House:
    """A person before the service, whose engine other processes may use."""

    person: Person
    run: Callable[..., AbstractAsyncContextManager[Process]]


@pytest.fixture
async def at_home(command: list[str], tmp_path: Path) -> AsyncIterator[House]:
    """The service as it is run, and the example beside it."""
    [port] = free_ports(1)
    env = environment(tmp_path, ENGINE_HTTP=f"127.0.0.1:{port}", ENGINE_TOKEN=TOKEN)

    @asynccontextmanager
    async def run(*arguments: str) -> AsyncIterator[Process]:
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            env=os.environ | {"ENGINE_URL": f"http://127.0.0.1:{port}", "ENGINE_TOKEN": TOKEN},
            stdout=PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async with house(settings_of(env, tmp_path)) as (_, person):
        yield House(person, run)


async def last_line(process: Process) -> str:
    """Return what a process printed last, once it has ended well."""
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0
    return out.decode().splitlines()[-1]


async def test_it_asks_and_is_resumed_by_a_click(at_home: House) -> None:
    """The example, whole: the service's worker serves it, and the click ends it."""
    async with at_home.run("r-1", "ann@corp.example") as refund:
        letter = await at_home.person.letter("Ana Lima")
        assert (await at_home.person.press(link_of(letter), "approve")).status_code == 200
        assert await last_line(refund) == "r-1: paid 120.00 EUR"


async def test_one_that_was_killed_goes_on_in_the_next(at_home: House) -> None:
    """Decided while nobody was there to hear it; nobody is asked twice."""
    async with at_home.run("r-2", "ann@corp.example") as refund:
        letter = await at_home.person.letter("Ana Lima")
        refund.kill()
        await soon(refund.wait())
    await at_home.person.press(link_of(letter), "decline")
    async with at_home.run("r-2", "ann@corp.example") as again:
        assert await last_line(again) == "r-2: not paid: declined"
    assert len(await at_home.person.letters("Ana Lima")) == 1
