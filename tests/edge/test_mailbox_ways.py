"""The ways into the mailbox: SMTP and LMTP, by TCP and unix socket, under TLS, behind a proxy."""

import asyncio
import smtplib
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import SettingsError
from tests.edge.mail_house import ANN, approval, lived, reply_to
from tests.edge.smtp_house import make_certificates
from tests.journey.house import Person

PASS = b"Authentication-Results: mx.corp.example; dmarc=pass header.from=corp.example\r\n"


class UnixSMTP(smtplib.SMTP):
    """The library's client, on a unix socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__("localhost", local_hostname="mta.test", timeout=10)

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        del host, port
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(str(self.path))
        return sock


def lmtp(where: str | Path, port: int = 0) -> smtplib.LMTP:
    """Return an LMTP client on a unix path, or on a host and port."""
    return smtplib.LMTP(str(where), port, local_hostname="mta.test", timeout=10)


async def decides(person: Person, connect: Callable[[], smtplib.SMTP], *, head: bytes = b"") -> None:
    """Answer an approval through `connect` and see it approved."""
    letter = await approval(person, "w-1")
    raw = head + reply_to(letter, "approve")

    def hand_in() -> None:
        with connect() as client:
            assert client.sendmail(ANN, [str(letter["Reply-To"])], raw) == {}

    await asyncio.to_thread(hand_in)
    assert (await person.report("w-1", wait=20))["status"] == "approved"


async def test_lmtp_by_tcp(tmp_path: Path) -> None:
    """An MTA hands replies over in LMTP."""
    async with lived(tmp_path, MAILBOX="lmtp://127.0.0.1:0") as (service, person):
        assert service.mailbox is not None
        assert service.mailbox.protocol == "lmtp"
        port = service.mailbox.port
        await decides(person, lambda: lmtp("127.0.0.1", port))


@pytest.mark.parametrize("scheme", ["lmtp://", "unix:"])
async def test_a_unix_socket_is_this_machine(tmp_path: Path, scheme: str) -> None:
    """LMTP or SMTP on a path; its client counts as loopback, and only owner and group get in."""
    path = tmp_path / "mail"
    trust = {"REPLY_TRUST": "authserv-id=mx.corp.example", "REPLY_PEERS": "127.0.0.0/8"}
    async with lived(tmp_path, dns=None, MAILBOX=f"{scheme}{path}", **trust) as (_, person):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        await decides(person, lambda: lmtp(path) if scheme == "lmtp://" else UnixSMTP(path), head=PASS)
    assert not path.exists()


async def test_a_socket_left_by_a_crash_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """A restart needs no one to clean up, and two mailboxes never share a path; nor is a file deleted."""
    path = tmp_path / "mail"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with lived(tmp_path, MAILBOX=f"unix:{path}") as (_, person):
        with pytest.raises(SettingsError, match=r"APPROVALS_MAILBOX.*in use"):
            async with lived(tmp_path, ENGINE="memory:", MAILBOX=f"unix:{path}"):
                pass
        await decides(person, lambda: UnixSMTP(path))
    path.write_text("precious")
    with pytest.raises(SettingsError, match="APPROVALS_MAILBOX"):
        async with lived(tmp_path, MAILBOX=f"unix:{path}"):
            pass
    assert path.read_text() == "precious"


async def test_starttls_is_offered_where_there_is_a_certificate(tmp_path: Path) -> None:
    """The same reply under TLS decides; a client that verifies is content."""
    certificates = make_certificates(tmp_path)
    tls = {"MAILBOX_TLS_CERT": f"{tmp_path}/certificate.pem", "MAILBOX_TLS_KEY": f"{tmp_path}/key.pem"}
    async with lived(tmp_path, dns=None, **tls) as (_, person):

        def connect() -> smtplib.SMTP:
            client = smtplib.SMTP(*person.mailbox, local_hostname="mta.test", timeout=10)
            client.starttls(context=certificates.believer)
            assert isinstance(client.sock, ssl.SSLSocket)
            return client

        await decides(person, connect)


async def test_a_failed_handshake_gives_its_place_back(tmp_path: Path) -> None:
    """Clients that do not believe the certificate, however many, keep nobody else out."""
    make_certificates(tmp_path)
    tls = {"MAILBOX_TLS_CERT": f"{tmp_path}/certificate.pem", "MAILBOX_TLS_KEY": f"{tmp_path}/key.pem"}
    async with lived(tmp_path, dns=None, **tls) as (_, person):

        def fail() -> None:
            for _ in range(60):  # more than one peer may have at once
                client = smtplib.SMTP(*person.mailbox, local_hostname="mta.test", timeout=10)
                with pytest.raises(ssl.SSLError):
                    client.starttls(context=ssl.create_default_context())
                client.close()

        await asyncio.to_thread(fail)
        await decides(person, lambda: smtplib.SMTP(*person.mailbox, local_hostname="mta.test", timeout=10))


async def test_a_certificate_that_is_none_stops_the_start(tmp_path: Path) -> None:
    """A mailbox never falls back to clear text in silence."""
    (tmp_path / "c.pem").write_text("nothing")
    own = {"MAILBOX_TLS_CERT": f"{tmp_path}/c.pem", "MAILBOX_TLS_KEY": f"{tmp_path}/c.pem"}
    with pytest.raises(SettingsError, match="APPROVALS_MAILBOX_TLS_CERT"):
        async with lived(tmp_path, dns=None, **own):
            pass


@pytest.mark.parametrize("where", ["127.0.0.1:0", "lmtp://127.0.0.1:0", "unix:{}/mail", "lmtp://{}/mail"])
async def test_the_reply_box_goes_the_mailboxs_own_way(tmp_path: Path, where: str) -> None:
    """However the mailbox is set, what is typed into the local inbox decides, and a refusal is told."""
    async with lived(tmp_path, MAILBOX=where.format(tmp_path)) as (service, person):
        stranger = b"From: eve@evil.example\r\nReply-To: r+x@localhost\r\nSubject: Hi\r\n\r\nHello\r\n"

        def spam() -> None:
            with smtplib.SMTP("127.0.0.1", service.settings.inbox_smtp.port, "mta.test", 10) as client:
                client.sendmail("eve@evil.example", [ANN], stranger)

        await asyncio.to_thread(spam)
        await approval(person, "w-2")
        form = {"sender": ANN, "text": "approve"}
        refused = await person.http.post(f"{person.inbox}/letters/1/reply", data=form)
        assert (refused.status_code, "550 5.1.1" in refused.text) == (502, True)
        assert (await person.report("w-2"))["status"] == "pending"
        taken = await person.http.post(f"{person.inbox}/letters/2/reply", data=form)
        assert taken.status_code == 303
        assert (await person.report("w-2", wait=20))["status"] == "approved"


class ProxiedSMTP(smtplib.SMTP):
    """A client whose connection begins with what a proxy says."""

    def __init__(self, header: bytes, host: str, port: int) -> None:
        self.header = header
        super().__init__(host, port, local_hostname="mta.test", timeout=10)

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        sock = socket.create_connection((host, port), timeout)
        sock.sendall(self.header)
        return sock


MTA = b"PROXY TCP4 192.0.2.7 127.0.0.1 40000 25\r\n"
UNKNOWN = b"PROXY UNKNOWN\r\n"
STRANGER = b"PROXY TCP4 203.0.113.9 127.0.0.1 40000 25\r\n"


@pytest.mark.parametrize("secured", [False, True], ids=["clear", "STARTTLS"])
async def test_behind_a_proxy_the_peer_is_whom_it_names(tmp_path: Path, *, secured: bool) -> None:
    """Authentication-Results count from an allowed server behind the proxy, not from a stranger behind it."""
    certificates = make_certificates(tmp_path)
    own = {
        "MAILBOX_PROXY": "on",
        "REPLY_PEERS": "127.0.0.0/8 192.0.2.0/24",
        "REPLY_TRUST": "authserv-id=mx.corp.example",
        "MAILBOX_TLS_CERT": f"{tmp_path}/certificate.pem",
        "MAILBOX_TLS_KEY": f"{tmp_path}/key.pem",
    }

    def connect(header: bytes, person: Person) -> smtplib.SMTP:
        client = ProxiedSMTP(header, *person.mailbox)
        if secured:
            client.starttls(context=certificates.believer)
        return client

    async with lived(tmp_path, dns=None, **own) as (_, person):
        letter = await approval(person, "p-1")

        def stranger(header: bytes) -> None:
            with connect(header, person) as client:
                client.sendmail(ANN, [str(letter["Reply-To"])], PASS + reply_to(letter, "decline"))

        await asyncio.to_thread(stranger, STRANGER)
        await asyncio.to_thread(stranger, UNKNOWN)
        await person.letter("p-1", kind="confirmation")
        assert (await person.report("p-1"))["status"] == "pending"
        await decides(person, lambda: connect(MTA, person), head=PASS)


@pytest.mark.parametrize("header", [b"EHLO x\r\n", b"PROXY TCP4 a b c d\r\n"], ids=["none", "malformed"])
async def test_without_a_proxys_word_there_is_no_session(tmp_path: Path, header: bytes) -> None:
    """Whoever comes past the proxy is not served."""
    async with lived(tmp_path, MAILBOX_PROXY="on") as (_, person):

        def refused() -> bytes:
            with socket.create_connection(person.mailbox, 10) as sock:
                sock.sendall(header)
                return sock.recv(100)

        assert await asyncio.to_thread(refused) == b""


async def test_only_the_proxies_networks_may_connect(tmp_path: Path) -> None:
    """A PROXY header from anywhere else could name any peer."""
    async with lived(tmp_path, MAILBOX_PROXY="on", REPLY_PEERS="192.0.2.0/24") as (_, person):

        def refused() -> bytes:
            with socket.create_connection(person.mailbox, 10) as sock:
                try:
                    sock.sendall(MTA)
                    return sock.recv(100)
                except ConnectionResetError:
                    return b"reset"

        assert await asyncio.to_thread(refused) in {b"reset", b""}
