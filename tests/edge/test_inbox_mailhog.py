"""MailHog's API: its clients find in the inbox what they would find in MailHog."""

import os
import smtplib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.edge.inbox_house import House, letter, open_house

#: Odd on purpose: repeated, folded and unspaced headers, nested parts, a preamble.
ODD = (
    b"Received: a\r\nReceived: b\r\nSubject:\r\n folded away\r\nX-Long: one\r\n\ttwo\r\nX-Tight:three\r\n"
    b'Content-Type: multipart/mixed; boundary="BB"\r\n\r\npreamble\r\n'
    b"--BB\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nhello caf\xc3\xa9\r\n"
    b"--BB\r\nContent-Type: multipart/alternative; boundary=CC\r\n\r\n"
    b"--CC\r\n\r\nno headers\r\n\r\nhere\r\n--CC\r\nContent-Type: text/html\r\n\r\n<p>hi</p>\r\n--CC--\r\n"
    b"--BB--\r\nepilogue\r\n"
)


@pytest.fixture
def house() -> Iterator[House]:
    """Return a running inbox in memory."""
    with open_house() as opened:
        yield opened


def subjects(answer: httpx.Response) -> list[str]:
    """Return the first subject of each item."""
    assert answer.status_code == 200
    return [item["Content"]["Headers"]["Subject"][0] for item in answer.json()["items"]]


def test_letters_are_listed_newest_first_in_windows(house: House) -> None:
    """``start`` and ``limit`` cut a window; the total is of all."""
    for number in range(4):
        house.send(letter(f"s{number}"))
    answer = house.http.get("/api/v2/messages", params={"start": 1, "limit": 2})
    assert subjects(answer) == ["s2", "s1"]
    assert {key: answer.json()[key] for key in ("total", "count", "start")} == {
        "total": 4,
        "count": 2,
        "start": 1,
    }
    assert len(house.http.get("/api/v1/messages").json()) == 4


@pytest.mark.parametrize(
    "query", ["", "start=-1", "limit=0", "limit=x&start=y", "limit=1_0", "limit=99999999"]
)
def test_odd_windows_fall_back_to_the_default(house: House, query: str) -> None:
    """What is no number above nought is ignored."""
    house.send(letter("one"))
    assert subjects(house.http.get(f"/api/v2/messages?{query}")) == ["one"]


def test_a_limit_is_at_most_250(house: House) -> None:
    """As in MailHog, a larger limit is cut."""
    with smtplib.SMTP("127.0.0.1", house.smtp_port, local_hostname="client.test") as client:
        for _ in range(255):
            client.sendmail("a@b.test", ["ann@corp.test"], b"Subject: x\r\n\r\n")
    assert house.http.get("/api/v2/messages?limit=1000").json()["count"] == 250
    assert house.http.get("/api/v2/messages").json()["count"] == 50


def test_search_finds_by_sender_recipient_and_content(house: House) -> None:
    """Envelope and headers count, case does not; the total is of what was found."""
    house.send(letter("for Ann", To="Ann Lee <ann@corp.test>"), "ann@corp.test", sender="b+1@localhost")
    house.send(letter("for Zoe", To="Zoe <zoe@corp.test>", html="<p>the Lever</p>"), "zoe@corp.test")

    def search(kind: str, query: str) -> list[str]:
        return subjects(house.http.get("/api/v2/search", params={"kind": kind, "query": query}))

    assert search("to", "ANN@corp") == ["for Ann"]
    assert search("to", "lee") == ["for Ann"]
    assert search("from", "b+1@") == ["for Ann"]
    assert search("from", "bob smith") == ["for Zoe", "for Ann"]
    assert search("containing", "the lever") == ["for Zoe"]
    assert search("containing", "for zoe") == ["for Zoe"]
    assert search("containing", "nowhere") == []
    window = house.http.get("/api/v2/search?kind=from&query=bob&start=1&limit=1")
    assert (subjects(window), window.json()["total"]) == (["for Ann"], 2)


@pytest.mark.parametrize("query", ["kind=subject&query=x", "kind=to", "kind=to&query=", "query=x", ""])
def test_a_bad_search_is_a_400(house: House, query: str) -> None:
    """An unknown kind or an empty query finds nothing, loudly."""
    assert house.http.get(f"/api/v2/search?{query}").status_code == 400


def test_one_letter_is_read_and_deleted_by_its_id(house: House) -> None:
    """Deleting takes that letter only; twice is a 404; then all go."""
    for subject in ("one", "two", "three"):
        house.send(letter(subject))
    two = house.http.get("/api/v2/messages").json()["items"][1]
    path = f"/api/v1/messages/{two['ID']}"
    assert house.http.get(path).json() == two
    assert [house.http.delete(path).status_code for _ in range(2)] == [200, 404]
    assert house.http.get(path).status_code == 404
    assert subjects(house.http.get("/api/v2/messages")) == ["three", "one"]
    assert house.http.delete("/api/v1/messages").status_code == 200
    assert house.http.get("/api/v2/messages").json() == {"total": 0, "count": 0, "start": 0, "items": []}


def test_headers_keep_what_mailhog_loses(house: House) -> None:
    """All values of a repeated header, and a value that was folded after the name."""
    house.send(ODD)
    (item,) = house.http.get("/api/v2/messages").json()["items"]
    headers = item["Content"]["Headers"]
    assert headers["Received"][:2] == ["a", "b"]
    assert headers["Received"][2].startswith("from client.test by ")
    assert (headers["Subject"], headers["X-Long"], headers["X-Tight"]) == (
        ["folded away"],
        ["one\ttwo"],
        ["three"],
    )
    assert headers["Message-ID"] == [item["ID"]]
    assert headers["Return-Path"] == ["<approvals@localhost>"]


def test_parts_are_the_parts(house: House) -> None:
    """Nested multiparts are nested; preamble and closing line are no parts."""
    house.send(ODD)
    (item,) = house.http.get("/api/v2/messages").json()["items"]
    text, nested = item["MIME"]["Parts"]
    assert (text["Headers"], text["Body"]) == ({"Content-Type": ["text/plain; charset=utf-8"]}, "hello café")
    bare, html = nested["MIME"]["Parts"]
    assert (bare["Headers"], bare["Body"]) == ({}, "no headers\r\n\r\nhere")
    assert (html["Body"], html["MIME"]) == ("<p>hi</p>", None)
    assert item["Content"]["MIME"] is None
    house.send(letter())
    assert house.http.get("/api/v2/messages").json()["items"][0]["MIME"] is None


def test_chaos_is_off(house: House) -> None:
    """Jim is never here: 404, as in a MailHog without him."""
    assert house.http.get("/api/v2/jim").status_code == 404


@pytest.fixture(scope="module")
def mailhog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """Return SMTP port and URL of a real MailHog."""
    binary = os.environ.get("MAILHOG")
    if not binary:
        pytest.skip("MAILHOG names no binary")
    # MailHog can't tell a port that it chose, so it is given two that were free just now.
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        smtp_port, http_port = one.getsockname()[1], two.getsockname()[1]
    log: Path = tmp_path_factory.mktemp("mailhog") / "log"
    web = f"127.0.0.1:{http_port}"
    command = [
        binary,
        "-smtp-bind-addr",
        f"127.0.0.1:{smtp_port}",
        "-api-bind-addr",
        web,
        "-ui-bind-addr",
        web,
    ]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:  # noqa: S603
        try:
            deadline = time.monotonic() + 15
            while True:
                try:
                    httpx.get(f"http://{web}/api/v2/messages").raise_for_status()
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline, log.read_text()
            yield smtp_port, f"http://{web}"
        finally:
            process.kill()


def shape(value: Any) -> Any:
    """Return the names and kinds of a JSON value, lists by what is in them."""
    match value:
        case dict():
            return {key: shape(each) for key, each in value.items()}
        case list():
            return [shape(each) for each in value]
        case _:
            return type(value).__name__


def test_the_same_letters_look_the_same_as_in_mailhog(house: House, mailhog: tuple[int, str]) -> None:
    """Names, kinds, order, windows, searches and statuses; values where MailHog loses none."""
    smtp_port, url = mailhog
    with httpx.Client(base_url=url) as real:
        real.delete("/api/v1/messages")
        for number, html in enumerate((None, "<p>hi</p>", None)):
            raw = letter(f"subject {number}", html=html)
            house.send(raw, "ann@corp.test", "eve@corp.test")
            with smtplib.SMTP("127.0.0.1", smtp_port, local_hostname="client.test") as client:
                client.sendmail("approvals@localhost", ["ann@corp.test", "eve@corp.test"], raw)
        for path in (
            "/api/v2/messages",
            "/api/v2/messages?start=1&limit=1",
            "/api/v2/messages?start=-1&limit=x",
            "/api/v2/messages?start=9",
            "/api/v2/search?kind=to&query=EVE",
            "/api/v2/search?kind=containing&query=subject+1",
            "/api/v2/search?kind=from&query=nobody",
            "/api/v2/search?kind=subject&query=x",
            "/api/v2/search?kind=to",
            "/api/v2/jim",
        ):
            ours, theirs = house.http.get(path), real.get(path)
            assert ours.status_code == theirs.status_code, path
            if theirs.status_code != 200:
                continue
            assert ours.headers["content-type"].split(";")[0] == theirs.headers["content-type"]
            mine, hers = ours.json(), theirs.json()
            assert {key: mine[key] for key in ("total", "count", "start")} == {
                key: hers[key] for key in ("total", "count", "start")
            }, path
            for left, right in zip(mine["items"], hers["items"], strict=True):
                if right["MIME"]:
                    # MailHog takes the closing line for a part.
                    assert right["MIME"]["Parts"].pop()["Body"] == "--"
                assert shape(left) == shape(right)
                for key in ("From", "To"):
                    assert left[key] == right[key]
                # MailHog drops the last line's end.
                assert left["Raw"] | {"Data": left["Raw"]["Data"].removesuffix("\r\n")} == right["Raw"]
                assert left["Content"]["Body"].removesuffix("\r\n") == right["Content"]["Body"]
                for name in ("Subject", "From", "To", "Reply-To", "Message-ID", "Date", "Return-Path"):
                    assert left["Content"]["Headers"][name] == right["Content"]["Headers"][name]
        assert (
            real.delete("/api/v1/messages").status_code == house.http.delete("/api/v1/messages").status_code
        )
