"""A real Postfix, of a folder and ports of its own, set up as docs/mail-recipes.md says."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiosmtplib
import pytest

from service.demo import free_ports
from tests.journey.house import eventually

DOMAIN = "reply.corp.example"

MAIN = """
compatibility_level = 3.6
queue_directory = {base}/queue
data_directory = {base}/data
maillog_file = {base}/log
maillog_file_prefixes = {base}
command_directory = /usr/sbin
daemon_directory = {daemons}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.corp.example
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
queue_run_delay = 1s
minimal_backoff_time = 1s
maximal_backoff_time = 2s
"""

TRANSPORT = """
mydestination =
alias_maps =
relay_domains = {domain}
transport_maps = texthash:{base}/transport
lmtp_destination_recipient_limit = 1
approvals_destination_recipient_limit = 1
"""

ALIAS = """
mydestination = {domain}
recipient_delimiter = +
alias_maps = hash:{base}/aliases
"""

#: Name, type, private, unprivileged and chroot as ``{n}``, wake-up, processes, command.
SERVICES = """
pickup unix n {n} 60 1 pickup
cleanup unix n {n} - 0 cleanup
qmgr unix n {n} 1 1 qmgr
rewrite unix - {n} - - trivial-rewrite
bounce unix - {n} - 0 bounce
defer unix - {n} - 0 bounce
trace unix - {n} - 0 bounce
flush unix n {n} 1000? 0 flush
proxymap unix - {n} - - proxymap
error unix - {n} - - error
retry unix - {n} - - error
local unix - n n - - local
anvil unix - {n} - 1 anvil
scache unix - {n} - 1 scache
postlog unix-dgram n {n} - 1 postlogd
"""


@dataclass(frozen=True)
class Postfix:
    """Where it takes mail; `base` is its folder."""

    port: int
    base: Path

    def log(self) -> str:
        """Return what it logged."""
        return (self.base / "log").read_text()


@asynccontextmanager
async def postfix(
    *, transport: str = "", pipe_to: str = "", chroot: bool = False, folder: Path | None = None
) -> AsyncIterator[Postfix]:
    """Run a Postfix that hands mail for `DOMAIN` on by `transport`, or by an alias where there is none.

    Alias and the transport ``approvals:`` run `approvals receive` for the mailbox at `pipe_to`.
    With `chroot` LMTP is spoken from the queue's folder, as Debian sets it up.
    """
    if shutil.which("postfix", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("postfix is not installed")
    if os.getuid() != 0:
        pytest.skip("postfix is started by root alone")
    [smtp] = free_ports(1)
    base = folder or new_folder()
    await asyncio.to_thread(_configured, base, smtp, transport, pipe_to, chroot)

    def control(word: str) -> None:
        subprocess.run(["postfix", "-c", str(base), word], check=True, capture_output=True)  # noqa: S603, S607

    await asyncio.to_thread(control, "start")
    try:

        async def up() -> bool | None:
            try:
                async with aiosmtplib.SMTP(hostname="127.0.0.1", port=smtp, start_tls=False):
                    return True
            except (aiosmtplib.SMTPException, OSError):
                return None

        await eventually(up, "postfix answers")
        yield Postfix(smtp, base)
    finally:
        await asyncio.to_thread(control, "abort")
        shutil.rmtree(base, ignore_errors=True)


def new_folder() -> Path:
    """Return a folder that Postfix's users can reach, which none of pytest's is, with a queue in it."""
    base = Path(tempfile.mkdtemp(prefix="postfix-"))
    base.chmod(0o755)
    (base / "queue").mkdir()
    return base


def _configured(base: Path, smtp: int, transport: str, pipe_to: str, chroot: bool) -> None:  # noqa: FBT001
    said = subprocess.run(["postconf", "-h", "daemon_directory"], check=True, capture_output=True)  # noqa: S607
    (base / "data").mkdir()
    shutil.chown(base / "data", "postfix")
    words = {"base": base, "daemons": said.stdout.decode().strip(), "domain": DOMAIN}
    (base / "main.cf").write_text((MAIN + (TRANSPORT if transport else ALIAS)).format(**words))
    jail = "y" if chroot else "n"
    lines = [f"127.0.0.1:{smtp} inet n - n - - smtpd", f"lmtp unix - - {jail} - - lmtp"]
    lines += [line.replace("{n}", "- n") for line in SERVICES.strip().splitlines()]
    if pipe_to:
        command = f"{_command(base)} receive --mailbox {pipe_to}"
        lines += [
            "approvals unix - n n - - pipe",
            f"  user=nobody argv={command} -f ${{sender}} ${{recipient}}",
        ]
        (base / "aliases").write_text("".join(f'{name}: "|{command}"\n' for name in "rb"))
        subprocess.run(["postalias", f"hash:{base}/aliases"], check=True, capture_output=True)  # noqa: S603, S607
    (base / "master.cf").write_text("\n".join(lines) + "\n")
    (base / "transport").write_text(f"{DOMAIN} {transport}\n")


def _command(base: Path) -> Path:
    """Return an `approvals` command that anybody may run, as an installed one is.

    Postfix runs nothing as root, and the interpreter here may lie in root's own folder: so
    there is a copy of it, with the libraries by their paths.
    """
    ours, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    unread = shutil.ignore_patterns(
        "test", "site-packages", "__pycache__", "idlelib", "config-*", "ensurepip"
    )
    shutil.copytree(ours / "lib" / version, base / "python" / "lib" / version, ignore=unread)
    (base / "python" / "bin").mkdir()
    shutil.copy(ours / "bin" / version, base / "python" / "bin" / version)
    for library in (ours / "lib").glob("libpython*.so*"):
        shutil.copy(library, base / "python" / "lib")
    packages = Path(pytest.__file__).parents[1]
    script = base / "approvals"
    script.write_text(
        f"#!/bin/sh\nexport LD_LIBRARY_PATH={base}/python/lib PYTHONPATH={packages}:{Path.cwd()}\n"
        f'exec {base}/python/bin/{version} -m service "$@"\n'
    )
    script.chmod(0o755)
    return script
