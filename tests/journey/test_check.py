"""`approvals check`: each part of a set-up that works, and of one that does not, by the command itself."""

import asyncio
import re
import sys
from pathlib import Path

from resonate.types import TaskData, Value

from service.demo import environment
from service.parked import KEPT
from service.records import GROUP, milliseconds, utc_now
from tests.journey.house import eventually, house, settings_of

KEYS = {"SECRET_KEYS": "k" * 43}


async def checked(env: dict[str, str], folder: Path) -> tuple[int | None, dict[str, list[str]]]:
    """Run the command; return its exit code, and each part's lines, every one beginning with its state."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "service", "check"),
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "500", **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert not err, err.decode()
    parts: dict[str, list[str]] = {}
    for line in out.decode().splitlines():
        found = re.fullmatch(r" *(ok|warn|fail) +(\S+) +(.+)", line)
        assert found, line
        parts.setdefault(found[2], []).append(f"{found[1]}: {found[3]}")
    return process.returncode, parts


async def test_a_fresh_set_up(tmp_path: Path) -> None:
    """Nothing runs yet: the engine is tried with workflows of its own, and what is missing is named."""
    env = environment(tmp_path, PUBLIC_URL="http://localhost:1", **KEYS)
    code, parts = await checked(env, tmp_path)
    assert code == 1
    assert [lines[0].partition(":")[0] for lines in parts.values()] == [
        *("ok", "ok", "ok", "ok", "ok"),
        *("fail", "warn", "ok", "ok"),
    ], parts
    assert re.search(r"SQLite 3\.\d+.*, protocol 2026-04-01", parts["engine"][0])
    assert "connect" in parts["letters"][0]
    assert "is a gateway up?" in parts["links"][0]


async def test_beside_the_running_service(tmp_path: Path) -> None:
    """Its database is read beside it: what no worker can run is shown with the reason."""
    env = environment(tmp_path, **KEYS)
    env["APPROVALS_PUBLIC_URL"] = f"http://{env['APPROVALS_HTTP']}"
    async with house(settings_of(env, tmp_path)) as (service, _):
        code, parts = await checked(env, tmp_path)
        assert code == 0
        assert "the service runs" in parts["engine"][0]
        assert parts["letters"][0].startswith("ok")
        assert parts["links"][0].endswith("answers 200")
        assert "tasks" not in parts
        tags = {f"resonate:{part}": "odd" for part in ("origin", "branch", "parent")}
        tags |= {"resonate:scope": "global", "resonate:target": f"poll://any@{GROUP}"}
        odd = Value(data=TaskData(func="nobody", args=()))
        await service.approvals.promises.create("odd", milliseconds(utc_now() + KEPT), odd, tags)

        async def shown() -> list[str] | None:
            return (await checked(env, tmp_path))[1].get("tasks")

        [line] = await eventually(shown, "the task is shown")
    assert line.startswith("warn: odd could not be run by a worker at ")
    assert "nobody" in line


async def test_an_engine_that_is_away(tmp_path: Path) -> None:
    """It is said within seconds, and the other parts are tried all the same."""
    away = {"ENGINE": "http://127.0.0.1:1", "PUBLIC_URL": "https://approvals.invalid"}
    env = environment(tmp_path, **away, **KEYS)
    code, parts = await checked(env, tmp_path)
    assert code == 1
    assert "no answer within 10 s" in parts["engine"][0]
    assert "letters" in parts
    assert "lists" not in parts
    assert parts["replies"][0].startswith("fail: to localhost, where nobody's mail server reaches us")
