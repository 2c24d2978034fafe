"""The protocol on a unix socket: who may use it, what is left of it, and the stock SDK over it."""

import asyncio
import socket
import stat
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from resonate.context import Context

from service.engine import EmbeddedEngine, open_engine
from service.engine.unix import unix_path, unix_socket
from service.errors import SettingsError
from tests.engine.bench import envelope
from tests.engine.live import running, serving_on, soon

SETTING = "APPROVALS_ENGINE_HTTP"


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path short enough for a socket, whatever the test is called."""
    return tmp_path_factory.mktemp("u") / "engine.sock"


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    """An engine without workers of its own."""
    engine = EmbeddedEngine(tmp_path / "approvals.db")
    await engine.start()
    yield engine
    await engine.close()


async def nap_and_double(ctx: Context, number: int) -> int:
    """Sleep durably, then call another workflow."""
    await ctx.sleep(timedelta(milliseconds=20))
    doubled: int = await ctx.rpc("double", number)
    return doubled


async def double(_: Context, number: int) -> int:
    """Return twice the number."""
    return number * 2


async def test_requests_are_answered_on_a_unix_socket(engine: EmbeddedEngine, path: Path) -> None:
    """As on a port, token and all."""
    with unix_socket(path, SETTING) as listening:
        async with (
            serving_on(listening, engine, token="s3cret"),
            httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path))) as client,
        ):
            asked = envelope("promise.get", {"id": "a"})
            assert (await client.post("http://localhost/", content=asked)).status_code == 401
            right = {"authorization": "Bearer s3cret"}
            assert (await client.post("http://localhost/", content=asked, headers=right)).status_code == 404
            async with client.stream("GET", "http://localhost/poll/g/p", headers=right) as stream:
                assert await soon(anext(stream.aiter_lines())) == ": attached"


async def test_a_stock_sdk_works_over_a_unix_socket(engine: EmbeddedEngine, path: Path) -> None:
    """``ENGINE=unix:/path`` is all that another process needs; a wrong token is refused."""
    with unix_socket(path, SETTING) as listening:
        async with serving_on(listening, engine, token="s3cret"):
            async with (
                running(f"unix:{path}", double, group="workers", token="s3cret"),
                running(f"unix:{path}", nap_and_double, double, token="s3cret") as (_, r),
            ):
                assert await soon(r.run("a", nap_and_double, 4).result()) == 8
                assert await soon(r.options(target="workers").rpc("b", "double", 21).result()) == 42
            with pytest.raises(SettingsError, match="_TOKEN"):
                await open_engine(f"unix:{path}", token="wrong").start()


def test_a_unix_socket_is_its_owners_alone(path: Path) -> None:
    """Whoever can connect can decide. Nothing is left of it at the end."""
    with unix_socket(path, SETTING):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_socket_that_a_killed_process_left_is_replaced(path: Path) -> None:
    """Nobody answers there, so it is no one's."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with unix_socket(path, SETTING) as listening:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
        assert listening.getsockname() == str(path)


def test_a_socket_in_use_is_refused_and_left_alone(path: Path) -> None:
    """Two services on one address would each get half of the calls."""
    with unix_socket(path, SETTING):
        with pytest.raises(SettingsError, match="somebody listens there"), unix_socket(path, SETTING):
            raise AssertionError("it listens")
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))


def test_what_is_no_socket_is_left_alone(path: Path) -> None:
    """A typing error must not cost anybody a file."""
    path.write_text("letters")
    with pytest.raises(SettingsError, match="is no socket"), unix_socket(path, SETTING):
        raise AssertionError("it listens")
    assert path.read_text() == "letters"


@pytest.mark.parametrize("name", ["missing/engine.sock", "x" * 120])
def test_where_no_socket_can_be_the_setting_is_named(path: Path, name: str) -> None:
    """No such directory, a path longer than sockets have."""
    with pytest.raises(SettingsError, match=SETTING), unix_socket(path.parent / name, SETTING):
        raise AssertionError("it listens")


def test_a_socket_that_took_our_place_is_left_alone(path: Path) -> None:
    """Somebody removed ours and put their own there."""
    with unix_socket(path, SETTING):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


@pytest.mark.parametrize("address", ["unix:", "unix:engine.sock", "unix://engine.sock", "unix:/dir/", "/x"])
def test_an_address_names_an_absolute_path(address: str) -> None:
    """Where a process was started must not decide what it talks to."""
    with pytest.raises(ValueError, match="names no socket"):
        unix_path(address)


def test_an_engine_without_a_path_is_refused() -> None:
    """By the setting that names it."""
    with pytest.raises(SettingsError, match=r"APPROVALS_ENGINE: 'unix:a.sock'"):
        open_engine("unix:a.sock")


async def test_an_engine_that_comes_later_is_waited_for(engine: EmbeddedEngine, path: Path) -> None:
    """The SDK tries again; nobody has to start things in order."""
    async with running(f"unix:{path}", double) as (_, r):
        result: asyncio.Future[int] = asyncio.ensure_future(soon(r.run("a", double, 4).result()))
        await asyncio.sleep(0.1)
        with unix_socket(path, SETTING) as listening:
            async with serving_on(listening, engine):
                assert await result == 8
