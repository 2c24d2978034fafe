"""One process per file: a lock that the kernel lets go of however its holder ends."""

import contextlib
import fcntl
import os
from pathlib import Path

from service.errors import InUse, SettingsError

__all__ = ["FileLock"]


class FileLock:
    """An exclusive lock beside a database file, in ``<file>.lock``.

    Not on the file itself: closing any handle of it would drop SQLite's own locks.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = database.with_name(database.name + ".lock")
        self._fd: int | None = None

    def take(self) -> None:
        """Take the lock, or raise SettingsError that names who has it and what to do."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise SettingsError(
                "APPROVALS_ENGINE", f"{self._database} can't be opened: {exc.strerror} ({self._path})"
            ) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            os.close(fd)
            raise InUse(
                "APPROVALS_ENGINE",
                f"{self._database} is in use by process {holder or 'unknown'}; stop that one, "
                "or give it the role `engine` and attach to it with http://",
                holder or "unknown",
            ) from exc
        with contextlib.suppress(OSError):  # A full disk: the lock holds, only its note is missing.
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Let go. The file stays: removing it could remove another's lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
