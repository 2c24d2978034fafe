"""A database file, looked at beside the process that has it: lists and nothing else."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from resonate_base import ConnectorError

from service.engine.clock import now_ms
from service.engine.database import explain
from service.engine.lists import Search, searching
from service.engine.search import search
from service.engine.wire import encode_reply, read_call

__all__ = ["search_aside"]


def search_aside(path: Path) -> Search:
    """Return the search of a file that another process may have open."""
    return searching(_Aside(path))


class _Aside:
    """A network that answers searches from the file."""

    def __init__(self, path: Path) -> None:
        self._uri = f"{path.resolve().as_uri()}?mode=ro"

    async def start(self) -> None:
        """Open nothing before it is asked."""

    async def stop(self) -> None:
        """Keep nothing open."""

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:  # noqa: ARG002 - the seam's
        """Answer a search. Raises ConnectorError where the file can't be read."""
        try:
            return await asyncio.to_thread(self._answer, req)
        except sqlite3.Error as exc:
            raise ConnectorError(RuntimeError(explain(exc))) from exc

    def _answer(self, req: str) -> str:
        call = read_call(req)
        with closing(sqlite3.connect(self._uri, uri=True)) as db:
            return encode_reply(call.kind, call.corr_id, search(db, call, now_ms())).decode()
