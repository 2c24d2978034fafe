"""What the engine's tests share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.engine import EmbeddedEngine
from tests.engine.bench import Bench
from tests.engine.live import serving
from tests.engine.real import postgres_url, server_url


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An engine in memory, its clock in the test's hand."""
    bench = Bench()
    yield bench
    bench.database.close()


@pytest.fixture(params=["sqlite", "http", "server", "postgres"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """An engine's address, to be opened by the test."""
    match request.param:
        case "server":
            yield server_url()
        case "postgres":
            yield postgres_url()
        case "http":
            engine = EmbeddedEngine(tmp_path / "a.db")
            await engine.start()
            async with serving(engine) as address:
                yield address
            await engine.close()
        case _:
            yield f"sqlite:///{tmp_path}/a.db"
