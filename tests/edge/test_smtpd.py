"""The listener under mailbox and inbox: bounded, loud when its port is taken, polite when it stops."""

import contextlib
import logging
import smtplib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from aiosmtpd.smtp import Envelope, Session

from service.errors import AddressInvalid, SettingsError
from service.smtpd import LMTP, SMTP, Listener

LETTER = b"Subject: one\r\n\r\nhello\r\n"


class Sink:
    """Keeps what arrives; some local parts ask for trouble."""

    def __init__(self) -> None:
        self.messages: list[Envelope] = []
        self.threads: set[int] = set()
        self.entered = threading.Event()
        self.leave = threading.Event()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Refuse what a handler may refuse, in each way that it can."""
        del session, options
        if address.startswith("forged"):
            raise AddressInvalid("the MAC is wrong: s3cret")
        if address.startswith("broken"):
            raise RuntimeError("s3cret")
        if address.startswith("stuck"):
            self.entered.set()
            await server.loop.run_in_executor(None, self.leave.wait, 10)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Keep the message, unless it asks for an exception or for patience."""
        del session
        self.threads.add(threading.get_ident())
        content = envelope.original_content or b""
        if b"explode" in content:
            raise ValueError("s3cret")
        if b"linger" in content:
            self.entered.set()
            await server.loop.run_in_executor(None, self.leave.wait, 10)
        self.messages.append(envelope)
        return "250 2.0.0 Kept"


type Start = Callable[..., Listener]


@pytest.fixture
def sink() -> Sink:
    """Return a handler that keeps what arrives."""
    return Sink()


@pytest.fixture
def start(sink: Sink) -> Iterator[Start]:
    """Start listeners on free ports and stop them afterwards."""
    listeners: list[Listener] = []

    def starter(**changes: object) -> Listener:
        settings: dict[str, object] = {"setting": "APPROVALS_MAILBOX", "host": "127.0.0.1", "port": 0}
        listener = Listener(sink, **(settings | changes))  # type: ignore[arg-type]
        listener.start()
        listeners.append(listener)
        return listener

    yield starter
    sink.leave.set()
    for listener in listeners:
        listener.stop(grace=1)


def connect(listener: Listener) -> smtplib.SMTP:
    """Return a client; one that is refused raises SMTPConnectError."""
    return smtplib.SMTP("127.0.0.1", listener.port, local_hostname="client.test", timeout=10)


def send(client: smtplib.SMTP, content: bytes = LETTER, to: str = "ann@corp.test") -> None:
    """Send one message to one recipient."""
    client.sendmail("bob@corp.test", [to], content)


def read_all(sock: socket.socket) -> bytes:
    """Read until the peer closes; a reset ends it, too."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            got += chunk
    return got


def test_a_message_arrives_as_sent_on_a_thread_of_its_own(start: Start, sink: Sink) -> None:
    """The handler gets envelope and bytes, away from the caller's thread."""
    listener = start()
    assert listener.port != 0
    with connect(listener) as client:
        send(client)
    (envelope,) = sink.messages
    assert (envelope.mail_from, envelope.rcpt_tos) == ("bob@corp.test", ["ann@corp.test"])
    assert envelope.original_content == LETTER
    assert threading.get_ident() not in sink.threads


def test_one_connection_carries_many_messages(start: Start, sink: Sink) -> None:
    """A pool's connection is not cut off by the limits on commands."""
    with connect(start()) as client:
        for _ in range(200):
            send(client)
    assert len(sink.messages) == 200


def test_a_taken_port_is_an_error_that_names_setting_and_address(start: Start, sink: Sink) -> None:
    """Links and reply addresses name a port, so no other is chosen in silence."""
    first = start()
    second = Listener(sink, setting="APPROVALS_INBOX_SMTP", host="127.0.0.1", port=first.port)
    with pytest.raises(SettingsError) as caught:
        second.start()
    assert caught.value.name == "APPROVALS_INBOX_SMTP"
    assert f"127.0.0.1:{first.port} is already in use" in str(caught.value)
    with connect(first) as client:
        send(client)
    assert len(sink.messages) == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_ours_is_an_error_that_names_the_setting(sink: Sink, host: str) -> None:
    """A host of another machine, or of none, stops the start."""
    with pytest.raises(SettingsError, match="APPROVALS_MAILBOX") as caught:
        Listener(sink, setting="APPROVALS_MAILBOX", host=host, port=0).start()
    assert host in str(caught.value)


def test_localhost_is_heard_on_one_port(start: Start, sink: Sink) -> None:
    """All addresses of a name share the port that was given."""
    listener = start(host="localhost")
    with smtplib.SMTP("localhost", listener.port, local_hostname="client.test") as client:
        send(client)
    assert len(sink.messages) == 1


def test_a_port_is_free_again_after_the_stop(start: Start, sink: Sink) -> None:
    """A restart gets its port back although connections were open."""
    first = start()
    client = connect(first)
    first.stop()
    client.close()
    second = start(port=first.port)
    with connect(second) as client:
        send(client)
    assert len(sink.messages) == 1


def test_an_exception_in_a_handler_is_a_451_without_its_text(
    start: Start, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """The sender tries again, the log has the cause, the session goes on."""
    with connect(start()) as client:
        client.ehlo()
        client.mail("bob@corp.test")
        client.rcpt("ann@corp.test")
        with caplog.at_level(logging.ERROR):
            code, text = client.data(b"explode\r\n")
        assert (code, text.startswith(b"4.3.0 ")) == (451, True)
        assert b"s3cret" not in text
        assert "s3cret" in caplog.text
        # Without RSET: the failed transaction is over by itself.
        assert client.docmd("DATA")[0] == 503
        send(client)
    assert len(sink.messages) == 1


def test_an_error_of_ours_answers_with_its_own_reply(start: Start, sink: Sink) -> None:
    """AddressInvalid is a 550 to RCPT; a surprise there is a 451; neither tells why."""
    with connect(start()) as client:
        client.ehlo()
        client.mail("bob@corp.test")
        forged, broken = client.rcpt("forged@corp.test"), client.rcpt("broken@corp.test")
        assert (forged[0], broken[0]) == (550, 451)
        assert b"s3cret" not in forged[1] + broken[1]
        assert client.docmd("DATA")[0] == 503
    assert sink.messages == []


def test_connections_past_the_limit_hear_421(start: Start, sink: Sink) -> None:
    """The total is bounded, and a place is free again once a connection ends."""
    listener = start(max_connections=2)
    first, second = connect(listener), connect(listener)
    with pytest.raises(smtplib.SMTPConnectError) as caught:
        connect(listener)
    assert caught.value.smtp_code == 421
    first.quit()
    deadline = time.monotonic() + 5
    while True:
        with contextlib.suppress(smtplib.SMTPConnectError), connect(listener) as third:
            send(third)
            break
        assert time.monotonic() < deadline
    second.quit()
    assert len(sink.messages) == 1


def test_one_peer_has_a_limit_of_its_own(start: Start) -> None:
    """A peer past its share hears 421 while another is served."""
    listener = start(max_per_peer=1)
    with connect(listener), pytest.raises(smtplib.SMTPConnectError) as caught:
        connect(listener)
    assert caught.value.smtp_code == 421
    with (
        connect(listener),
        socket.create_connection(("127.0.0.1", listener.port), 5, source_address=("127.0.0.2", 0)) as other,
    ):
        assert other.recv(100).startswith(b"220 ")


def test_a_silent_client_is_told_and_dropped(start: Start) -> None:
    """An idle connection ends after the timeout, with a 421."""
    listener = start(timeout=0.2)
    with socket.create_connection(("127.0.0.1", listener.port), 10) as sock:
        heard = read_all(sock)
    assert heard.startswith(b"220 ")
    assert b"421 4.4.2" in heard


def drip(listener: Listener, message: bytes, pause: float) -> tuple[bytes, float]:
    """Send a message octet by octet; return what was heard after 354, and the seconds from there."""
    with socket.create_connection(("127.0.0.1", listener.port), 10) as sock:
        sock.sendall(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
        heard = b""
        while b"354" not in heard:
            heard += sock.recv(1000)
        started = time.monotonic()
        sock.settimeout(pause)
        answer = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for octet in message:
                sock.sendall(bytes([octet]))
                with contextlib.suppress(TimeoutError):
                    answer = sock.recv(1000)
                    break
        return answer, time.monotonic() - started


def test_a_message_has_an_end_however_it_drips(start: Start, sink: Sink) -> None:
    """Octet by octet does not keep a place: all of one message has its time, then it is 421."""
    answer, seconds = drip(start(timeout=0.5, data_timeout=1.0), b"x" * 500, 0.02)
    assert answer.startswith(b"421 4.4.2")
    assert 0.9 < seconds < 5
    assert sink.messages == []


def test_a_message_that_stops_is_given_up_before(start: Start, sink: Sink) -> None:
    """Silence in a message is silence, whatever time is left for it."""
    answer, seconds = drip(start(timeout=0.3, data_timeout=60), b"xx", 5)
    assert answer.startswith(b"421 4.4.2")
    assert seconds < 5
    assert sink.messages == []


def test_a_slow_message_that_goes_on_arrives(start: Start, sink: Sink) -> None:
    """A thin line may need longer than the time-out between two commands."""
    answer, seconds = drip(start(timeout=0.4), LETTER + b".\r\n", 0.04)
    assert answer.startswith(b"250")
    assert seconds > 0.8
    assert [envelope.original_content for envelope in sink.messages] == [LETTER]


def test_what_is_sent_to_a_busy_handler_wins_it_no_time(start: Start, sink: Sink) -> None:
    """The handler's time-out is its own; chatter behind the message does not move it."""
    listener = start(timeout=0.5)
    with socket.create_connection(("127.0.0.1", listener.port), 10) as sock:
        sock.sendall(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nlinger\r\n.\r\n")
        assert sink.entered.wait(10)
        started, heard = time.monotonic(), b""
        sock.settimeout(0.05)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while b"421" not in heard and time.monotonic() - started < 10:
                sock.sendall(b"NOOP\r\n")
                with contextlib.suppress(TimeoutError):
                    heard += sock.recv(1000)
    assert b"421 4.4.2" in heard
    assert time.monotonic() - started < 5


def test_a_message_past_the_size_is_refused_and_the_session_goes_on(start: Start, sink: Sink) -> None:
    """Declared or not, too much is a 552."""
    with connect(start(data_size_limit=1000)) as client:
        with pytest.raises(smtplib.SMTPSenderRefused) as declared:
            send(client, b"x" * 70 + b"\r\n" + LETTER * 60)
        assert declared.value.smtp_code == 552
        client.mail("bob@corp.test")
        client.rcpt("ann@corp.test")
        assert client.data((b"x" * 70 + b"\r\n") * 20)[0] == 552
        send(client)
    assert len(sink.messages) == 1


@pytest.mark.parametrize(
    ("flood", "size_limit"),
    [(b"x" * 65536, 1_000_000), (b"\r\n" * 32768, 100_000_000)],
    ids=["a line without end", "blank lines"],
)
def test_a_flood_is_cut_off_instead_of_kept(start: Start, sink: Sink, flood: bytes, size_limit: int) -> None:
    """Memory is bounded by the limits, not by the timeout."""
    listener = start(data_size_limit=size_limit)
    with socket.create_connection(("127.0.0.1", listener.port), 10) as sock:
        sock.sendall(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 50_000_000:
                sock.sendall(flood)
                sent += len(flood)
    assert sent < 50_000_000
    assert sink.messages == []


def test_a_slow_message_leaves_the_handler_its_own_time(start: Start, sink: Sink) -> None:
    """Two waits that are each within the timeout are no timeout together."""
    listener = start(timeout=1.5)
    with socket.create_connection(("127.0.0.1", listener.port), 10) as sock:
        sock.sendall(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nlinger\r\n")
        heard = b""
        while b"354" not in heard:
            heard += sock.recv(1000)
        sock.settimeout(1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.sendall(b".\r\n")
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sink.leave.set()
        sock.settimeout(10)
        assert sock.recv(100).startswith(b"250 ")
    assert len(sink.messages) == 1


def test_one_session_does_not_narrow_another(start: Start) -> None:
    """A new connection leaves the longer lines that EHLO allowed to those before it."""
    listener = start()
    with connect(listener) as first, connect(listener):
        first.ehlo()
        with connect(listener):
            assert first.docmd("MAIL", f"FROM:<{'a' * 500}@b.test>")[0] == 250


def test_commands_have_a_limit(start: Start) -> None:
    """A connection that only chatters is closed."""
    with connect(start()) as client:
        codes = [client.docmd("VRFY", "ann")[0] for _ in range(21)]
        assert codes == [252] * 20 + [421]
        client.close()


def test_stopping_lets_a_message_in_flight_finish(start: Start, sink: Sink) -> None:
    """The 250 that a sender waits for is not lost; idle sessions end with 421."""
    listener = start()
    idle = socket.create_connection(("127.0.0.1", listener.port), 10)
    assert idle.recv(100).startswith(b"220 ")
    outcome: list[object] = []

    def sender() -> None:
        client = connect(listener)
        try:
            send(client, b"linger\r\n")
            outcome.append("accepted")
        except smtplib.SMTPException as exc:
            outcome.append(exc)
        finally:
            client.close()

    sending = threading.Thread(target=sender)
    sending.start()
    assert sink.entered.wait(10)
    stopping = threading.Thread(target=lambda: listener.stop(grace=10))
    stopping.start()
    assert b"421 4.3.2" in read_all(idle)
    idle.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.port), 1)
    sink.leave.set()
    sending.join(10)
    stopping.join(10)
    assert outcome == ["accepted"]
    assert len(sink.messages) == 1


def test_stopping_waits_no_longer_than_its_grace(
    start: Start, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    """A sender that never ends its message does not hold the process."""
    listener = start()
    with socket.create_connection(("127.0.0.1", listener.port), 10) as sock:
        sock.sendall(b"EHLO c\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
        heard = b""
        while b"354" not in heard:
            heard += sock.recv(1000)
        before = time.monotonic()
        listener.stop(grace=0.2)
        assert time.monotonic() - before < 5
        read_all(sock)
    assert "cut off" in caplog.text
    assert sink.messages == []
    listener.stop()


def test_lmtp_greets_with_lhlo_and_takes_one_recipient(start: Start, sink: Sink) -> None:
    """One answer after DATA is right only for one recipient, so the second is put off."""
    listener = start(protocol=LMTP)
    with smtplib.LMTP("127.0.0.1", listener.port, local_hostname="mta.test") as client:
        client.ehlo()
        assert client.mail("bob@corp.test")[0] == 250
        assert client.rcpt("ann@corp.test")[0] == 250
        assert client.rcpt("eve@corp.test")[0] == 452
        assert client.docmd("HELO", "x")[0] == 500
        assert client.data(LETTER)[0] == 250
    assert [envelope.rcpt_tos for envelope in sink.messages] == [["ann@corp.test"]]


def test_smtputf8_is_offered_only_where_it_is_wanted(start: Start) -> None:
    """The mailbox's own addresses are ASCII; the inbox takes any."""
    for wanted in (False, True):
        with connect(start(smtputf8=wanted)) as client:
            client.ehlo()
            assert client.has_extn("smtputf8") is wanted


def test_commands_are_not_logged(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """A reply address is a capability: it stays out of the log."""
    with caplog.at_level(logging.INFO), connect(start()) as client:
        send(client, to="r+s3cret@corp.test")
    assert "s3cret" not in caplog.text
