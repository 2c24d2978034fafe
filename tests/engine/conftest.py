"""What the engine's tests share."""

from collections.abc import Iterator

import pytest

from tests.engine.bench import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An engine in memory, its clock in the test's hand."""
    bench = Bench()
    yield bench
    bench.database.close()
