"""What every command does at the terminal: run until a signal, one line for each event, one for a refusal."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import typer
import uvloop
from rich.console import Console
from rich.markup import escape

from service.errors import ApprovalsError, SettingsError

#: The exit code for a set-up that can't run, as opposed to 1 for what failed while running.
BAD_SETTING = 2

console = Console(highlight=False)


async def until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until it ends or a signal asks to stop; a second signal stops at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)

    def stop() -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)
            signal.signal(name, signal.SIG_DFL)
        console.print("stopping: what is in hand is finished first; a second signal stops at once")
        task.cancel()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop)
    try:
        await task
    except asyncio.CancelledError:
        console.print("stopped")


def run[T](work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work`, with one line for each event and one for a bad setting."""
    _log_to_terminal()
    try:
        return asyncio.run(work(), loop_factory=uvloop.new_event_loop)
    except SettingsError as exc:
        refuse(str(exc))
    except ApprovalsError as exc:
        console.print(f"[red]failed:[/] {escape(str(exc))}")
        raise SystemExit(1) from exc


def settled[T](load: Callable[[], T]) -> T:
    """Return what was set, or end with the line that names the wrong one."""
    try:
        return load()
    except SettingsError as exc:
        refuse(str(exc))


def refuse(problem: str) -> NoReturn:
    """End with one line that says why this set-up can't run."""
    typer.echo(f"approvals: {problem}", err=True)
    raise SystemExit(BAD_SETTING)


class _Lines(logging.Formatter):
    """One line an event, with its time; colour only where it is a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback of a defect."""
        text = super().format(record)
        if not console.is_terminal or record.levelno <= logging.INFO:
            return text
        return f"\x1b[{31 if record.levelno >= logging.ERROR else 33}m{text}\x1b[0m"


def _log_to_terminal() -> None:
    """Say what happens to approvals; of libraries, only what went wrong."""
    lines = logging.StreamHandler(sys.stdout)
    lines.setFormatter(_Lines("%(asctime)s  %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[lines], force=True)
    logging.getLogger("approvals").setLevel(logging.INFO)
