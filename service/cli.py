"""The `approvals` command."""

import asyncio
import logging
import os
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from service.endpoints import read_mail_endpoint
from service.errors import SettingsError
from service.settings import fresh_key, load_engine, load_mailbox, load_settings
from service.terminal import console, refuse, run, settled, until_signal

# What a command runs is imported in it: a mail server starts `receive` for each message.

app = typer.Typer(
    help="Ask people for decisions by email, and let software wait for them as long as it takes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    *,
    auto: Annotated[
        bool, typer.Option("--auto", help="Play the person too; exit 0 if all went well.")
    ] = False,
) -> None:
    """Show the whole story: a request, a letter, a click or a reply, and the workflow going on."""
    from service import demo as story

    if auto:
        with tempfile.TemporaryDirectory(prefix="approvals-demo-") as folder:
            run(lambda: story.played(story.rehearsal(Path(folder)), console))
    else:
        settings = settled(lambda: load_settings("demo"))
        run(lambda: until_signal(story.watched(settings, console)))


@app.command()
def dev() -> None:
    """Run gateway, worker, mailbox and local inbox here, on loopback, until stopped."""
    from service.app import DEVELOPMENT
    from service.serving import stay_up

    settings = settled(lambda: load_settings("dev"))
    run(lambda: until_signal(stay_up(settings, DEVELOPMENT)))


@app.command()
def serve(
    roles: Annotated[
        list[str] | None, typer.Argument(help="gateway, worker, mailbox, engine; default: the first three.")
    ] = None,
) -> None:
    """Run for production: needs keys and a public URL."""
    from service.serving import roles_named, stay_up

    wanted = settled(lambda: roles_named(roles or ["gateway", "worker", "mailbox"]))
    settings = settled(lambda: load_settings("serve"))
    run(lambda: until_signal(stay_up(settings, wanted)))


@app.command()
def keys() -> None:
    """Print a fresh secret for APPROVALS_SECRET_KEYS."""
    typer.echo(fresh_key())


@app.command()
def check() -> None:
    """Try the set-up of `serve` here: engine, mail server, links, reply domain. Exit 1 if a part fails."""
    from service.check import findings

    settings = settled(lambda: load_settings("serve"))
    logging.disable()  # what is found is told below, once

    async def told() -> bool:
        good = True
        async for found in findings(settings):
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[found.state]
            console.print(f"[{colour}]{found.state:>5}[/]  [bold]{found.part:>8}[/]  {escape(found.text)}")
            good = good and found.state != "fail"
        return good

    if not asyncio.run(told()):
        raise SystemExit(1)


@app.command()
def migrate(
    target: Annotated[str, typer.Argument(help="The new engine's URL, as APPROVALS_ENGINE will be.")],
    *,
    leave: Annotated[
        bool, typer.Option("--leave", help="Move what can be, and leave the rest behind.")
    ] = False,
) -> None:
    """Move pending approvals from the embedded engine to another; the service must be stopped."""
    from service.migrate import migrate as move

    source, token = settled(load_engine)
    done = run(lambda: move(source, target, token=token, leave=leave))
    for name, why in done.left.items():
        console.print(f"[yellow]left[/]   {escape(name)}: {escape(why)}")
    console.print(f"[bold]moved[/]  {done.moved}")
    if done.kept is None:
        refuse("not everything can be moved; see above, or leave it with --leave")
    console.print(f"Set APPROVALS_ENGINE to the new engine. What is closed stays in {done.kept}.")


@app.command()
def backup(target: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")]) -> None:
    """Copy the embedded engine's database while it runs."""
    from service.engine import backup as back_up
    from service.engine import sqlite_path
    from service.engine.schema import NotOurs

    if target.exists():
        refuse(f"{target} exists; a backup replaces nothing")
    try:
        source = sqlite_path(load_engine()[0])
        if not source.is_file():
            refuse(f"{source} does not exist; APPROVALS_ENGINE names the database")
        back_up(source, target)
    except SettingsError as exc:
        refuse(str(exc))
    except (OSError, sqlite3.Error, NotOurs) as exc:
        refuse(f"no backup of {source} to {target}: {exc}")
    console.print(f"written: {target}")


@app.command()
def receive(
    recipient: Annotated[
        str, typer.Argument(envvar="ORIGINAL_RECIPIENT", help="The address that the message came to.")
    ] = "",
    *,
    sender: Annotated[
        str | None, typer.Option("-f", envvar="SENDER", help="The envelope sender; default: its Return-Path.")
    ] = None,
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
    from service.receive import hand_in

    if sender is None:
        sender = os.environ.get("SENDER")  # empty is the null sender, and no option takes that from there
    handed = hand_in(where, sender, recipient, sys.stdin.buffer)
    if handed.problem:
        typer.echo(f"approvals: {handed.problem}", err=True)
    raise SystemExit(handed.exit_code)


def main() -> None:
    """Run the command line."""
    app()
