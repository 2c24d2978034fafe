"""A real dovecot with one user, and a wire to it that can be cut."""

import asyncio
import getpass
import grp
import imaplib
import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from service.demo import free_ports
from tests.journey.house import eventually

USER, PASSWORD = "approvals", "s3cret"

CONFIG = """
protocols = imap
listen = 127.0.0.1
base_dir = {base}/run
state_dir = {base}/state
log_path = {base}/log
{tls}
disable_plaintext_auth = no
default_internal_user = {system}
default_login_user = {system}
default_internal_group = {group}
first_valid_uid = 1
mail_location = maildir:{base}/mail
mail_access_groups =
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={base}
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {secure}
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
namespace inbox {{
  inbox = yes
}}
"""


class Ports(NamedTuple):
    """Where it listens; `secure` is for IMAP over TLS, 0 without a certificate."""

    clear: int
    secure: int


@asynccontextmanager
async def dovecot(certificates: Path | None = None) -> AsyncIterator[Ports]:
    """Run dovecot until the block ends, with the certificate of `make_certificates` in a folder."""
    binary = shutil.which("dovecot", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        pytest.skip("dovecot is not installed")
    port, secure = free_ports(2)
    ports = Ports(port, secure if certificates else 0)
    base = _configured(ports, certificates)
    process = await asyncio.create_subprocess_exec(
        binary, "-F", "-c", str(base / "dovecot.conf"), stdout=DEVNULL, stderr=DEVNULL
    )
    try:

        async def up() -> bool | None:
            try:
                await asyncio.to_thread(lambda: client(port).logout())
            except (OSError, imaplib.IMAP4.error):
                return None
            return True

        await eventually(up, "dovecot answers")
        yield ports
    finally:
        process.terminate()
        await process.wait()
        shutil.rmtree(base, ignore_errors=True)


def _configured(ports: Ports, certificates: Path | None) -> Path:
    """Return a folder with a configuration that needs no rights of root."""
    # Not below pytest's folder: root's dovecot serves mail as another user, who must get there.
    base = Path(tempfile.mkdtemp(prefix="dovecot-"))
    uid, gid = os.getuid(), os.getgid()
    system = getpass.getuser()
    if uid == 0:
        uid, gid, system = 65534, 65534, "nobody"
        os.chown(base, uid, gid)
    base.chmod(0o755)
    tls = "ssl = no"
    if certificates is not None:
        files = f"ssl_cert = <{certificates}/certificate.pem\nssl_key = <{certificates}/key.pem"
        tls = f"ssl = yes\n{files}"
    told = {"base": base, "system": system, "group": grp.getgrgid(gid).gr_name, "uid": uid, "gid": gid}
    (base / "dovecot.conf").write_text(
        CONFIG.format(**told, tls=tls, password=PASSWORD, port=ports.clear, secure=ports.secure)
    )
    return base


def client(port: int) -> imaplib.IMAP4:
    """Return a person's view of the mailbox."""
    imap = imaplib.IMAP4("127.0.0.1", port, timeout=10)
    imap.login(USER, PASSWORD)
    return imap


class Wire:
    """A TCP forwarder whose connections can be cut, or held without a word."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.made = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward both ways until either end closes."""
        self.made += 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers += [writer, far_writer]

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    def cut(self) -> None:
        """Drop every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def wire(port: int) -> AsyncIterator[Wire]:
    """Run a `Wire` to `port`."""
    made = Wire(port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut()
