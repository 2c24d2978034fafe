"""What every command does at the terminal: run until a signal, one line for each event, one for a refusal."""

import asyncio
import logging
import signal
import traceback
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from service.errors import DemoFailed, SettingsError

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
        task.cancel()

    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop)
    try:
        await task
    except asyncio.CancelledError:
        console.print("stopped")


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work`, with one line for each event and one for a bad setting."""
    _log_to_terminal()
    try:
        asyncio.run(work())
    except SettingsError as exc:
        refuse(str(exc))
    except DemoFailed as exc:
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


class _Lines(logging.Handler):
    """One line an event, with its time; colour only where it is a terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        colour = (
            "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno > logging.INFO else ""
        )
        text = escape(record.getMessage())
        console.print(f"[dim]{at}[/]  " + (f"[{colour}]{text}[/]" if colour else text), soft_wrap=True)
        if record.exc_info:
            console.print(escape("".join(traceback.format_exception(*record.exc_info))), soft_wrap=True)


def _log_to_terminal() -> None:
    """Say what happens to approvals; of libraries, only what went wrong."""
    lines = _Lines()
    logging.basicConfig(level=logging.WARNING, handlers=[lines], force=True)
    logging.getLogger("approvals").setLevel(logging.INFO)
