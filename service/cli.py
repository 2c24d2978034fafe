"""The `approvals` command."""

import asyncio
import logging
import os
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from service import demo as story
from service.app import DEVELOPMENT, Role, Running, running
from service.endpoints import read_mail_endpoint
from service.engine import backup as back_up
from service.engine import sqlite_path
from service.engine.schema import NotOurs
from service.errors import SettingsError
from service.receive import hand_in
from service.settings import Settings, fresh_key, load_engine, load_mailbox, load_settings

#: The exit code for a set-up that can't run, as opposed to 1 for what failed while running.
BAD_SETTING = 2

app = typer.Typer(
    help="Ask people for decisions by email, and let software wait for them as long as it takes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)


@app.command()
def demo(
    *,
    auto: Annotated[
        bool, typer.Option("--auto", help="Play the person too; exit 0 if all went well.")
    ] = False,
) -> None:
    """Show the whole story: a request, a letter, a click or a reply, and the workflow going on."""
    if auto:
        with tempfile.TemporaryDirectory(prefix="approvals-demo-") as folder:
            _run(lambda: story.played(story.rehearsal(Path(folder)), console))
    else:
        settings = _settings(lambda: load_settings("demo"))
        _run(lambda: _until_signal(story.watched(settings, console)))


@app.command()
def dev() -> None:
    """Run gateway, worker, mailbox and local inbox here, on loopback, until stopped."""
    settings = _settings(lambda: load_settings("dev"))
    _run(lambda: _until_signal(_stay_up(settings, DEVELOPMENT)))


@app.command()
def serve(
    roles: Annotated[
        list[str] | None, typer.Argument(help="gateway, worker, mailbox, engine; default: the first three.")
    ] = None,
) -> None:
    """Run for production: needs keys and a public URL."""
    known: dict[str, Role] = {
        "gateway": "gateway",
        "worker": "worker",
        "mailbox": "mailbox",
        "engine": "engine",
    }
    wanted = roles or ["gateway", "worker", "mailbox"]
    if unknown := [role for role in wanted if role not in known]:
        _stop(f"no such role: {', '.join(unknown)}; there are {', '.join(known)}")
    settings = _settings(lambda: load_settings("serve"))
    _run(lambda: _until_signal(_stay_up(settings, frozenset(known[role] for role in wanted))))


@app.command()
def keys() -> None:
    """Print a fresh secret for APPROVALS_SECRET_KEYS."""
    typer.echo(fresh_key())


@app.command()
def backup(target: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")]) -> None:
    """Copy the embedded engine's database while it runs."""
    if target.exists():
        _stop(f"{target} exists; a backup replaces nothing")
    try:
        source = sqlite_path(load_engine())
        if not source.is_file():
            _stop(f"{source} does not exist; APPROVALS_ENGINE names the database")
        back_up(source, target)
    except SettingsError as exc:
        _stop(str(exc))
    except (OSError, sqlite3.Error, NotOurs) as exc:
        _stop(f"no backup of {source} to {target}: {exc}")
    console.print(f"written: {target}")


@app.command()
def receive(
    recipient: Annotated[
        str, typer.Argument(envvar="ORIGINAL_RECIPIENT", help="The address that the message came to.")
    ] = "",
    *,
    sender: Annotated[str, typer.Option("-f", envvar="SENDER", help="The envelope sender.")] = "",
    mailbox: Annotated[
        str | None, typer.Option(help="Where the mailbox listens; default: APPROVALS_MAILBOX.")
    ] = None,
) -> None:
    """Hand a message from stdin to the running mailbox; for an alias of a mail server."""
    try:
        where = load_mailbox() if mailbox is None else read_mail_endpoint(mailbox)
    except (SettingsError, ValueError) as exc:
        typer.echo(f"approvals: {exc}", err=True)
        raise SystemExit(os.EX_CONFIG) from exc
    handed = hand_in(where, sender, recipient, sys.stdin.buffer)
    if handed.problem:
        typer.echo(f"approvals: {handed.problem}", err=True)
    raise SystemExit(handed.exit_code)


def main() -> None:
    """Run the command line."""
    app()


# ── Running and stopping ──────────────────────────────────────────────────────


async def _stay_up(settings: Settings, roles: frozenset[Role]) -> None:
    async with running(settings, roles) as service:
        _greet(service)
        await asyncio.Event().wait()


def _greet(service: Running) -> None:
    settings = service.settings
    rows: dict[str, object] = {}
    if service.inbox:
        rows["inbox"] = f"http://{service.inbox}"
    if service.http:
        rows["API and pages"] = f"http://{service.http}"
    if service.mailbox:
        rows["mailbox"] = f"{service.mailbox} for *@{settings.reply_domain}"
    if service.engine:
        rows["engine"] = f"http://{service.engine}"
    rows["letters by"] = f"{settings.smtp.host}:{settings.smtp.port}"
    for name, value in rows.items():
        console.print(f"[bold]{name:>14}[/]  {escape(str(value))}")
    if settings.reply_trust == "address":
        console.print(
            "[yellow]Replies are trusted by their signed address and From alone "
            "(APPROVALS_REPLY_TRUST=address): for development only.[/]"
        )


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
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


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work`, with one line for each event and one for a bad setting."""
    _log_to_terminal()
    try:
        asyncio.run(work())
    except SettingsError as exc:
        _stop(str(exc))
    except story.DemoFailed as exc:
        console.print(f"[red]failed:[/] {escape(str(exc))}")
        raise SystemExit(1) from exc


def _settings(load: Callable[[], Settings]) -> Settings:
    try:
        return load()
    except SettingsError as exc:
        _stop(str(exc))


def _stop(problem: str) -> NoReturn:
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
