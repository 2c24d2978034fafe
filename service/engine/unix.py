"""The protocol over HTTP on a unix socket: on this machine, and for its owner alone.

`unix_socket` is what the HTTP surface is served on.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.errors import SettingsError

__all__ = ["SCHEME", "unix_path", "unix_socket"]

#: What a unix socket's address begins with: ``unix:/run/approvals/engine.sock``.
SCHEME: Final = "unix:"

#: Whoever may connect may do anything; a token is asked for besides, where one is set.
_OWNER_ONLY: Final = 0o600

_BACKLOG: Final = 512


def unix_path(address: str) -> Path:
    """Return the absolute path that ``unix:/path`` names. Raises ValueError."""
    path = address.removeprefix(SCHEME)
    if path == address or not path.startswith("/") or path.startswith("//") or path.endswith("/"):
        raise ValueError(f"{address!r} names no socket; use unix:/path/engine.sock")
    return Path(path)


@contextmanager
def unix_socket(path: Path, setting: str) -> Iterator[socket.socket]:
    """Listen at ``path``, and remove the socket again at the end.

    One that a killed process left is replaced. Raises SettingsError naming
    ``setting`` if somebody listens there, or something else is there.
    """
    _clear(path, setting)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            listening.bind(str(path))
            # Nobody can connect before it listens, so there is no moment with other rights.
            path.chmod(_OWNER_ONLY)
            listening.listen(_BACKLOG)
            ours = _identity(path)
        except OSError as exc:
            raise SettingsError(setting, f"can't listen on {path}: {exc.strerror or exc}") from exc
        try:
            yield listening
        finally:
            # By now it may be another's: one that took this place has removed ours.
            with contextlib.suppress(OSError):
                if _identity(path) == ours:
                    path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    # A number alone is given away again at once.
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns


def _clear(path: Path, setting: str) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SettingsError(setting, f"{path} is there and is no socket; name another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
            code = trial.connect_ex(str(path))
        if code != errno.ECONNREFUSED:
            problem = "somebody listens there already" if code == 0 else os.strerror(code)
            raise SettingsError(setting, f"can't listen on {path}: {problem}")
        path.unlink()
    except FileNotFoundError:
        return
    except OSError as exc:
        raise SettingsError(setting, f"can't listen on {path}: {exc.strerror or exc}") from exc
