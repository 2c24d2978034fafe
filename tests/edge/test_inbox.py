"""The inbox's sink: what SMTP brought is kept as it came, before the 250, until it is old."""

import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.inbox import InboxAway
from service.inbox.store import Store
from tests.edge.inbox_house import House, letter, open_house

#: A dev server that is killed: it prints its port and never ends by itself.
_KILLED = """
import sys, time
from service.endpoints import MailEndpoint
from service.inbox import Inbox, to_mailbox
from service.smtpd import Listener
inbox = Inbox(path=sys.argv[1], deliver=to_mailbox(MailEndpoint("127.0.0.1", 1)))
listener = Listener(inbox.handler, setting="APPROVALS_INBOX_SMTP", host="127.0.0.1", port=0)
listener.start()
print(listener.port, flush=True)
time.sleep(60)
"""


@pytest.fixture
def house() -> Iterator[House]:
    """Return a running inbox in memory."""
    with open_house() as opened:
        yield opened


def add(store: Store, subject: str) -> str:
    """Keep a small letter."""
    return store.add(
        received_at=datetime(2026, 11, 24, 9, 0, tzinfo=UTC),
        helo="client.test",
        sender="approvals@localhost",
        recipients=["ann@corp.test"],
        raw=f"Subject: {subject}\r\n\r\n".encode(),
    )


def test_a_letter_is_kept_byte_for_byte(house: House) -> None:
    """Dots, octets above 127 and blank lines at the end come out as they went in."""
    raw = b"Subject: a\r\nSubject: b\r\n\r\n.\r\n..two\r\ncaf\xc3\xa9 \xff\r\n\r\n\r\n"
    house.send(raw)
    (item,) = house.http.get("/api/v2/messages").json()["items"]
    assert house.http.get(f"/api/v1/messages/{item['ID']}/download").content == raw


def test_the_envelope_is_kept(house: House) -> None:
    """Sender, every recipient and the HELO name are the conversation's, not the headers'."""
    house.send(letter(), "ann@corp.test", "Eve@Corp.test", sender="b+1@localhost")
    (item,) = house.http.get("/api/v2/messages").json()["items"]
    assert item["Raw"]["From"] == "b+1@localhost"
    assert item["Raw"]["To"] == ["ann@corp.test", "Eve@Corp.test"]
    assert item["Raw"]["Helo"] == "client.test"


def test_a_null_sender_is_taken(house: House) -> None:
    """Automatic answers have no envelope sender."""
    house.send(letter(), sender="")
    (item,) = house.http.get("/api/v2/messages").json()["items"]
    assert item["Raw"]["From"] == ""


def test_addresses_beyond_ascii_are_taken(house: House) -> None:
    """The inbox offers SMTPUTF8, for letters to people who need it."""
    with smtplib.SMTP("127.0.0.1", house.smtp_port, local_hostname="client.test") as client:
        client.ehlo()
        client.mail("approvals@localhost", ["SMTPUTF8", "BODY=8BITMIME"])
        client.command_encoding = "utf-8"
        assert client.rcpt("änne@corp.test")[0] == 250
        assert client.data(letter())[0] == 250
    (item,) = house.http.get("/api/v2/messages").json()["items"]
    assert item["Raw"]["To"] == ["änne@corp.test"]


def test_recipients_are_bounded(house: House) -> None:
    """The hundred-and-first is put off to another message."""
    with smtplib.SMTP("127.0.0.1", house.smtp_port, local_hostname="client.test") as client:
        refused = client.sendmail("a@b.test", [f"p{n}@corp.test" for n in range(101)], letter())
    assert {address: code for address, (code, _) in refused.items()} == {"p100@corp.test": 452}
    (item,) = house.http.get("/api/v2/messages").json()["items"]
    assert len(item["Raw"]["To"]) == 100


def test_letters_survive_a_killed_process(tmp_path: Path) -> None:
    """After its 250, a letter is there whatever happens to the process."""
    path = str(tmp_path / "letters.db")
    command = [sys.executable, "-c", _KILLED, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with smtplib.SMTP("127.0.0.1", port, local_hostname="client.test") as client:
            client.sendmail("approvals@localhost", ["ann@corp.test"], letter("kept"))
        process.send_signal(signal.SIGKILL)
    with open_house(path) as house:
        house.send(letter("later"))
        items = house.http.get("/api/v2/messages").json()["items"]
    assert [item["Content"]["Headers"]["Subject"] for item in items] == [["later"], ["kept"]]


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Letters hold links that decide."""
    path = tmp_path / "letters.db"
    store = Store(str(path))
    add(store, "secret")
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}
    store.close()


def test_only_the_newest_are_kept() -> None:
    """Past the cap the oldest goes, and numbers are never used twice."""
    store = Store(":memory:", kept=3)
    ids = [add(store, f"{n}") for n in range(5)]
    assert [each.number for each in store.newest(limit=10)] == [5, 4, 3]
    assert store.by_id(ids[0]) is None
    store.delete_all()
    add(store, "again")
    assert [each.number for each in store.newest(limit=10)] == [6]
    store.close()


def test_a_file_that_can_not_be_opened_says_so(tmp_path: Path) -> None:
    """A missing folder and a file of something else are one clear error each."""
    other = tmp_path / "other.db"
    other.write_bytes(b"this is no database" * 100)
    for path in (tmp_path / "missing" / "letters.db", other):
        with pytest.raises(InboxAway, match=path.name):
            Store(str(path))


def test_a_letter_that_can_not_be_kept_is_a_451(house: House) -> None:
    """The sender tries again; the page says that the inbox is away."""
    house.inbox.close()
    with pytest.raises(smtplib.SMTPDataError) as caught:
        house.send(letter())
    assert caught.value.smtp_code == 451
    assert house.http.get("/").status_code == 503
