"""What `dev` and `serve` do: run roles until stopped, and say where they answer."""

import asyncio
import gc
from collections.abc import Collection, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from rich.markup import escape

from service.app import Role, Running, running
from service.errors import SettingsError
from service.settings import Settings, is_loopback
from service.terminal import console

#: The roles of `serve`; the local inbox is `dev`'s.
ROLES: tuple[Role, ...] = ("gateway", "worker", "mailbox", "engine")


def roles_named(names: Iterable[str]) -> frozenset[Role]:
    """Return the roles with these names. Raises SettingsError for a name that is none."""
    known = {str(role): role for role in ROLES}
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(", ".join(unknown), f"is no role; there are {', '.join(known)}")
    return frozenset(known[name] for name in names)


async def stay_up(settings: Settings, roles: Collection[Role]) -> None:
    """Run `roles` until cancelled."""
    async with running(settings, roles) as service:
        _greet(service, roles)
        # What the start has made stays for good: looking through it again and again for
        # garbage stops everything for tens of milliseconds.
        gc.collect()
        gc.freeze()
        await asyncio.Event().wait()


def _greet(service: Running, roles: Collection[Role]) -> None:
    settings, engine = service.settings, service.engine
    rows = {
        "inbox": service.inbox and f"http://{service.inbox}",
        "API and pages": service.http and f"http://{service.http}",
        "mailbox": service.mailbox and f"{service.mailbox} for *@{settings.reply_domain}",
        "engine": engine and (f"unix:{engine}" if isinstance(engine, Path) else f"http://{engine}"),
        "letters by": "worker" in roles and f"{settings.smtp.host}:{settings.smtp.port}",
    }
    for name, value in rows.items():
        if value:
            console.print(f"[bold]{name:>14}[/]  {escape(value)}")
    if "mailbox" in roles and settings.reply_trust == "address":
        console.print(
            "[yellow]Replies are trusted by their signed address and From alone "
            "(APPROVALS_REPLY_TRUST=address): for development only.[/]"
        )
    public = not is_loopback(urlsplit(settings.public_url).hostname or "")
    if "worker" in roles and public and is_loopback(settings.reply_domain):
        console.print(
            f"[yellow]Replies and bounces go to *@{settings.reply_domain}, "
            "which nobody's mail server reaches: set APPROVALS_REPLY_DOMAIN.[/]"
        )
