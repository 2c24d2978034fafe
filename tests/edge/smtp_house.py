"""An SMTP server that answers as it is told, in the test's own loop, and certificates for it."""

import asyncio
import base64
import ssl
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

#: Instead of a reply: close the connection, or never answer.
HANG_UP, SILENCE = "hang up", "silence"
USER, PASSWORD = "approvals", "Tr0ub4dor&3"

GOOD = {
    "connect": "220 house.test",
    "MAIL": "250 2.1.0 ok",
    "RCPT": "250 2.1.5 ok",
    "DATA": "354 go",
    "dot": "250 2.0.0 kept",
    "RSET": "250 2.0.0 ok",
    "NOOP": "250 2.0.0 ok",
    "QUIT": "221 2.0.0 bye",
    "STARTTLS": "220 2.0.0 ready",
}


@dataclass
class SmtpHouse:
    """What the server answers and what it saw.

    `replies` has a reply for a stage, or a list of them, of which the last stays.
    Stages are the keys of `GOOD`, EHLO and AUTH.
    """

    tls: ssl.SSLContext | None = None
    extensions: list[str] = field(default_factory=list)
    replies: dict[str, str | list[str]] = field(default_factory=dict)
    port: int = 0
    connects: int = 0
    open: int = 0
    peak: int = 0
    commands: list[str] = field(default_factory=list)
    letters: list[bytes] = field(default_factory=list)
    #: How many of them came over TLS.
    encrypted: int = 0
    reached: defaultdict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    #: While cleared, no letter is answered.
    answer_letters: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    deserted: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        self.connects += 1
        self.open += 1
        self.peak = max(self.peak, self.open)
        self.deserted.clear()
        self.writers.append(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                await self._talk(reader, writer)
        finally:
            self.open -= 1
            if not self.open:
                self.deserted.set()
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        going = await self._reply(reader, writer, "connect")
        while going and (line := await reader.readline()):
            command = line.decode().rstrip("\r\n")
            verb = command[:8] if command == "STARTTLS" else command[:4].upper()
            self.commands.append(command)
            if verb == "EHLO":
                going = await self._ehlo(reader, writer)
            elif verb == "AUTH":
                going = await self._auth(reader, writer, command)
            elif verb == "DATA" and self._next(verb).startswith("354"):
                going = await self._letter(reader, writer)
            else:
                going = await self._reply(reader, writer, verb)
            if verb == "STARTTLS" and going and self.tls is not None:
                await writer.start_tls(self.tls)
            going = going and verb != "QUIT"

    async def _letter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"354 go\r\n")
        self.letters.append(await reader.readuntil(b"\r\n.\r\n"))
        self.encrypted += writer.get_extra_info("sslcontext") is not None
        self.reached["dot"].set()
        await self.answer_letters.wait()
        return await self._reply(reader, writer, "dot")

    async def _ehlo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if "EHLO" in self.replies:
            return await self._reply(reader, writer, "EHLO")
        lines = ["house.test", *self.extensions]
        if self.tls is not None and writer.get_extra_info("sslcontext") is None:
            lines.append("STARTTLS")
        text = [f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"]
        writer.write("".join(f"{line}\r\n" for line in text).encode())
        return True

    async def _auth(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str) -> bool:
        """Check the password; a refusal quotes the command, as some servers do."""
        if "AUTH" in self.replies:
            return await self._reply(reader, writer, "AUTH")
        _, method, initial = command.split()
        given = base64.b64decode(initial).decode()
        if method == "LOGIN":
            writer.write(b"334 UGFzc3dvcmQ6\r\n")
            given = f"\0{given}\0{base64.b64decode(await reader.readline()).decode()}"
        right = given == f"\0{USER}\0{PASSWORD}"
        writer.write((b"235 2.7.0 welcome" if right else f"535 5.7.8 no: {command}".encode()) + b"\r\n")
        return True

    def _next(self, stage: str) -> str:
        told = self.replies.get(stage, GOOD.get(stage, "500 5.5.1 what?"))
        return told if isinstance(told, str) else told[0]

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stage: str) -> bool:
        """Answer as told; False at the end of the connection."""
        reply = self._next(stage)
        told = self.replies.get(stage)
        if isinstance(told, list) and len(told) > 1:
            del told[0]
        self.reached[stage].set()
        if reply == SILENCE:
            while await reader.read(1):
                pass
            return False
        if reply == HANG_UP:
            return False
        writer.write(reply.encode("utf-8", "surrogateescape") + b"\r\n")
        await writer.drain()
        return not reply.startswith("421")

    async def drop_all(self) -> None:
        """Drop every connection, as a server does that restarts."""
        for writer in self.writers:
            writer.transport.abort()
        await self.deserted.wait()


@asynccontextmanager
async def smtp_house(*, implicit: bool = False, **told: object) -> AsyncIterator[SmtpHouse]:
    """Run an `SmtpHouse` on a free port of the loopback."""
    house = SmtpHouse(**told)  # type: ignore[arg-type]
    house.answer_letters.set()
    house.deserted.set()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with suppress(asyncio.CancelledError):
            await house.serve(reader, writer)

    server = await asyncio.start_server(
        serve, "127.0.0.1", 0, ssl=house.tls if implicit else None, limit=2**22
    )
    house.port = server.sockets[0].getsockname()[1]
    try:
        yield house
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@dataclass(frozen=True)
class Certificates:
    """A throwaway certificate for 127.0.0.1, localhost and 127.1, and who believes it."""

    server: ssl.SSLContext
    believer: ssl.SSLContext


def make_certificates(folder: Path) -> Certificates:
    """Make a certificate that signs itself, by the openssl command."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(  # noqa: S603 - our own words
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
                "-keyout",
                str(key),
                "-out",
                str(certificate),
            ),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-addext", "basicConstraints=critical,CA:TRUE"),
            *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
        ],
        check=True,
        capture_output=True,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return Certificates(server, ssl.create_default_context(cafile=str(certificate)))
