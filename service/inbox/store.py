"""Letters in SQLite: durable once `Store.add` returns, the newest kept."""

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from service.errors import ApprovalsError

#: A development inbox is read from the top; older letters go.
KEPT = 2000

_SCHEMA = """
CREATE TABLE IF NOT EXISTS letters (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    received_at TEXT NOT NULL,
    helo TEXT NOT NULL,
    sender TEXT NOT NULL,
    recipients TEXT NOT NULL,
    raw BLOB NOT NULL
)
"""
_COLUMNS = "number, id, received_at, helo, sender, recipients"


class InboxAway(ApprovalsError):
    """The letters' file can't be opened, read or written."""

    http_status = 503
    title = "Inbox not available"


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it was received.

    `number` counts up and is never used twice; `id` is the one of MailHog's
    API. `sender` is empty for a null sender; `raw` may be cut where the
    method that returns it says so.
    """

    number: int
    id: str
    received_at: datetime
    helo: str
    sender: str
    recipients: tuple[str, ...]
    raw: bytes


class Store:
    """Letters in one SQLite file, or in memory for ``:memory:``; used from any thread."""

    def __init__(self, path: str, *, kept: int = KEPT) -> None:
        """Open or make the file.

        Raises `InboxAway` when it can't be opened or is something else.
        """
        self._kept = kept
        self._lock = threading.Lock()
        try:
            if path != ":memory:":
                # Letters hold links that decide: they are their owner's alone.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        except (OSError, sqlite3.Error) as exc:
            raise InboxAway(f"letters can't be kept in {path}: {exc}") from exc
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            # In WAL mode only FULL has a commit on the disk when it returns.
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)
        except sqlite3.Error as exc:
            self._db.close()
            raise InboxAway(f"letters can't be kept in {Path(path).name}: {exc}") from exc

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        with self._lock:
            self._db.close()

    def add(self, *, received_at: datetime, helo: str, sender: str, recipients: list[str], raw: bytes) -> str:
        """Keep a letter durably, drop what is past the newest `KEPT`, return its id."""
        letter_id = f"{secrets.token_urlsafe(24)}@inbox.localhost"
        row = (letter_id, received_at.isoformat(), helo, sender, json.dumps(recipients), raw)
        self._run(
            "INSERT INTO letters (id, received_at, helo, sender, recipients, raw) VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        self._run(
            "DELETE FROM letters WHERE number <="
            " (SELECT number FROM letters ORDER BY number DESC LIMIT 1 OFFSET ?)",
            (self._kept,),
        )
        return letter_id

    def count(self) -> int:
        """Return how many letters there are."""
        return int(self._run("SELECT count(*) FROM letters")[0][0])

    def state(self) -> str:
        """Return a word that changes when a letter comes or goes."""
        last, count = self._run("SELECT coalesce(max(number), 0), count(*) FROM letters")[0]
        return f"{last}-{count}"

    def newest(self, *, start: int = 0, limit: int, octets: int | None = None) -> list[Letter]:
        """Return letters, newest first, from ``start`` on; their raw bytes cut at ``octets``."""
        raw, bind = ("raw", ()) if octets is None else ("substr(raw, 1, ?)", (octets,))
        rows = self._run(
            f"SELECT {_COLUMNS}, {raw} FROM letters ORDER BY number DESC LIMIT ? OFFSET ?",  # noqa: S608 - constants
            (*bind, limit, start),
        )
        return [_letter(row) for row in rows]

    def scan(self) -> Iterator[Letter]:
        """Yield all letters, newest first, holding one at a time."""
        below = 2**62
        while rows := self._run(
            f"SELECT {_COLUMNS}, raw FROM letters WHERE number < ? ORDER BY number DESC LIMIT 1",  # noqa: S608
            (below,),
        ):
            letter = _letter(rows[0])
            below = letter.number
            yield letter

    def by_number(self, number: int) -> Letter | None:
        """Return the letter, or None."""
        # SQLite has no number above this, and the driver would raise.
        return self._one("number", number) if number < 2**63 else None

    def by_id(self, letter_id: str) -> Letter | None:
        """Return the letter that MailHog's API names so, or None."""
        return self._one("id", letter_id)

    def delete(self, letter_id: str) -> bool:
        """Delete one letter; False if there is none."""
        return bool(self._run("DELETE FROM letters WHERE id = ? RETURNING number", (letter_id,)))

    def delete_all(self) -> None:
        """Delete every letter."""
        self._run("DELETE FROM letters")

    def _one(self, column: str, value: int | str) -> Letter | None:
        rows = self._run(f"SELECT {_COLUMNS}, raw FROM letters WHERE {column} = ?", (value,))  # noqa: S608
        return _letter(rows[0]) if rows else None

    def _run(self, sql: str, bind: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._db.execute(sql, bind).fetchall()
            except sqlite3.Error as exc:
                raise InboxAway(str(exc)) from exc


def _letter(row: tuple[Any, ...]) -> Letter:
    number, letter_id, received_at, helo, sender, recipients, raw = row
    return Letter(
        number=number,
        id=letter_id,
        received_at=datetime.fromisoformat(received_at).astimezone(UTC),
        helo=helo,
        sender=sender,
        recipients=tuple(json.loads(recipients)),
        raw=raw,
    )
