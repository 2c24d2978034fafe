"""The file: its tables, how an older file comes forward, and how a newer one is refused.

One row per promise; its task, if it has one, in a row beside it, since a task
moves often and a promise's param can be long. Deadlines, offers and leases
are found by two partial indexes that hold only what is still to happen.
"""

import sqlite3
from typing import Final

__all__ = ["APPLICATION_ID", "MIGRATIONS", "SCHEMA_VERSION", "NotOurs", "TooNew", "migrate"]

#: "Appr" in the file's header, so that ``file`` and we can tell what it is.
APPLICATION_ID: Final = 0x41707072

_V1: Final = """
CREATE TABLE promises (
    row        INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    state      TEXT    NOT NULL,
    param      BLOB    NOT NULL,
    value      BLOB    NOT NULL,
    tags       TEXT    NOT NULL,
    external   INTEGER NOT NULL,
    timer      INTEGER NOT NULL,
    target     TEXT,
    timeout_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    settled_at INTEGER,
    parent     INTEGER
) STRICT;
CREATE INDEX promises_due ON promises (timeout_at) WHERE external = 1 AND state = 'pending';
CREATE INDEX promises_parent ON promises (parent) WHERE parent IS NOT NULL;

CREATE TABLE tasks (
    row     INTEGER PRIMARY KEY,
    state   TEXT    NOT NULL,
    version INTEGER NOT NULL,
    pid     TEXT,
    ttl     INTEGER,
    due     INTEGER,
    resumes INTEGER NOT NULL,
    offers  INTEGER NOT NULL
) STRICT;
CREATE INDEX tasks_due ON tasks (due) WHERE due IS NOT NULL;

CREATE TABLE callbacks (
    awaited INTEGER NOT NULL,
    awaiter INTEGER NOT NULL,
    PRIMARY KEY (awaited, awaiter)
) STRICT, WITHOUT ROWID;

CREATE TABLE listeners (
    awaited INTEGER NOT NULL,
    address TEXT    NOT NULL,
    PRIMARY KEY (awaited, address)
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    promise INTEGER NOT NULL,
    kind    TEXT    NOT NULL,
    address TEXT    NOT NULL,
    version INTEGER NOT NULL,
    since   INTEGER NOT NULL,
    PRIMARY KEY (promise, kind, address)
) STRICT, WITHOUT ROWID;

CREATE TABLE tags (
    name       TEXT NOT NULL,
    value      TEXT NOT NULL,
    promise_id TEXT NOT NULL,
    PRIMARY KEY (name, value, promise_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE schedules (
    id              TEXT    NOT NULL PRIMARY KEY,
    cron            TEXT    NOT NULL,
    promise_id      TEXT    NOT NULL,
    promise_timeout INTEGER NOT NULL,
    promise_param   BLOB    NOT NULL,
    promise_tags    TEXT    NOT NULL,
    created_at      INTEGER NOT NULL,
    next_run_at     INTEGER NOT NULL,
    last_run_at     INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX schedules_due ON schedules (next_run_at);
"""

#: What brings a file of version n to n + 1, in order; the last makes it ours.
MIGRATIONS: Final[tuple[str, ...]] = (_V1,)

#: The version this program writes and the newest it reads.
SCHEMA_VERSION: Final = len(MIGRATIONS)


class TooNew(Exception):
    """The file was written by a later program; `found` is its version."""

    def __init__(self, found: int) -> None:
        super().__init__(f"schema version {found} is newer than {SCHEMA_VERSION}")
        self.found = found


class NotOurs(Exception):
    """The file is a database, but of something else."""


def migrate(db: sqlite3.Connection, migrations: tuple[str, ...] = MIGRATIONS) -> int:
    """Bring the file to the newest version in one transaction; return the version it had.

    Raises TooNew or NotOurs before anything is written.
    """
    found = _pragma(db, "user_version")
    if found > len(migrations):
        raise TooNew(found)
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if tables and _pragma(db, "application_id") != APPLICATION_ID:
        raise NotOurs
    if found < len(migrations):
        steps = ";\n".join(migrations[found:])
        # executescript would commit what is open, so the transaction is part of the script.
        db.executescript(
            f"BEGIN IMMEDIATE;\n{steps};\n"
            f"PRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {len(migrations)};\nCOMMIT;"
        )
    return found


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value
