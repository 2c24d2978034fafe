"""A copy of the file while it is in use, complete and consistent."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from service.engine.schema import APPLICATION_ID, NotOurs

__all__ = ["backup"]


def backup(source: Path, target: Path) -> None:
    """Copy a database, in use or not, to ``target``, replacing it only once the copy is whole.

    The copy is one file and needs no other. Raises NotOurs if the source is no
    engine's, sqlite3.Error or OSError if either can't be read or written; then
    what was at ``target`` is still there.
    """
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))  # as the file itself
    uri = f"{source.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as db, closing(sqlite3.connect(part)) as copy:
            if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise NotOurs("it is another program's database")
            db.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
