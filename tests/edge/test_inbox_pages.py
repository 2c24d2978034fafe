"""The inbox's page over HTTP: letters are shown, nothing of them runs, replies go out by real SMTP."""

import email
import email.policy
import re
import time
from collections.abc import Iterator
from email.message import EmailMessage

import pytest

from tests.edge.inbox_house import House, letter, open_house

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'>"
#: Mail that breaks parsers. Whatever it is, its source is shown.
HOSTILE = {
    "empty": b"",
    "no headers": b"just text\r\n",
    "headers only": b"Subject: x\r\n",
    "octets": bytes(range(1, 256)).replace(b"\r", b"").replace(b"\n", b"") + b"\r\n",
    "unknown charset": b"Content-Type: text/html; charset=x-unknown\r\n\r\n<p>\xff\r\n",
    "codec that is no charset": b"Content-Type: text/plain; charset=hex\r\n\r\nzz\r\n",
    "slow codec": b"Content-Type: text/plain; charset=punycode\r\n\r\n" + b"a-" * 400 + b"\r\n",
    "utf-16 surrogates": b"Content-Type: text/html; charset=utf-16-le\r\n\r\n\x00\xd8\x01\x02\r\n",
    "bad base64": b"Content-Transfer-Encoding: base64\r\n\r\nQQQQQ=Q\r\n",
    "bad encoded words": b"Subject: =?utf-8?b?a?= =?x?q?=FF?=\r\nFrom: =?utf-8?q?=0D=0A?= <a@b.test>\r\n\r\n",
    "quotes": b"From: " + b'"' * 900 + b"\r\n\r\n",
    "half a multipart": b"Content-Type: multipart/x; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n",
    "deep": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(500)
    ),
    "many parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 19_000,
    "many headers": b"X: y\r\n" * 20_000 + b"\r\n",
    "dates": b"Date: Tue, 24 Nov 99999999999999999999 10:12:13 +99999999\r\n\r\n",
}


@pytest.fixture
def house() -> Iterator[House]:
    """Return a running inbox in memory."""
    with open_house() as opened:
        yield opened


def reply(house: House, text: str, *, number: int = 1, sender: str = "ann@corp.test") -> tuple[int, str]:
    """Send the reply box; return status and page."""
    form = {"text": text, "sender": sender}
    answer = house.http.post(f"/letters/{number}/reply", data=form, follow_redirects=True)
    return answer.status_code, answer.text


def received(house: House) -> EmailMessage:
    """Return the one reply that the mailbox got."""
    (envelope,) = house.mailbox.mails
    message = email.message_from_bytes(envelope.original_content or b"", policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message.defects == []
    return message


def body(message: EmailMessage) -> str:
    """Return the text with line feeds."""
    return str(message.get_content()).replace("\r\n", "\n")


def test_an_empty_inbox_says_so(house: House) -> None:
    """The first thing that a newcomer sees is what to expect."""
    assert "No letters yet" in house.http.get("/").text


def test_the_list_has_who_whom_what_and_the_newest_first(house: House) -> None:
    """Sender by name, recipient, decoded subject."""
    house.send(letter("Erste"), "ann@corp.test")
    house.send(letter("Größe & mehr"), "zoe@corp.test")
    page = house.http.get("/").text
    assert page.index("Größe &amp; mehr") < page.index("Erste")
    for shown in ("Bob Smith via Approvals", "ann@corp.test", "zoe@corp.test"):
        assert shown in page


def test_news_of_the_list_come_only_when_there_are_some(house: House) -> None:
    """The page's question is answered 204 until a letter comes or goes."""
    house.send(letter("one"))
    state = re.search(r'data-state="([^"]+)"', house.http.get("/").text)
    assert state
    assert house.http.get("/list", params={"state": state[1]}).status_code == 204
    house.send(letter("two"))
    news = house.http.get("/list", params={"state": state[1], "selected": "1"})
    assert (news.status_code, news.text.count("<li>")) == (200, 2)
    assert 'href="/letters/1" aria-current="page"' in news.text


def test_each_view_shows_its_part(house: House) -> None:
    """HTML in a sandboxed frame, text decoded, headers unfolded with the envelope, source as sent."""
    house.send(letter(html="<p>hello <b>Ann</b></p>"), sender="b+1@localhost")
    frame = house.http.get("/letters/1").text
    sandbox = "allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation"
    assert f'<iframe src="/letters/1/html" sandbox="{sandbox}"' in frame
    assert "approval: café." in house.http.get("/letters/1?view=text").text
    headers = house.http.get("/letters/1?view=headers").text
    assert "b+1@localhost" in headers
    assert "&lt;refund-42@localhost&gt;" in headers
    assert "approval: caf=C3=A9." in house.http.get("/letters/1?view=source").text


def test_a_plain_letter_opens_as_text(house: House) -> None:
    """No empty frame, no tab for a part that is not there."""
    house.send(letter())
    page = house.http.get("/letters/1").text
    assert "approval: café." in page
    assert "<iframe" not in page
    assert "view=html" not in page
    assert house.http.get("/letters/1/html").status_code == 404


def test_a_letter_that_is_gone_is_a_404_with_the_list(house: House) -> None:
    """An old tab leads back to what there is."""
    house.send(letter("still here"))
    for number in (7, 2**70):
        answer = house.http.get(f"/letters/{number}")
        assert answer.status_code == 404
        assert "still here" in answer.text
    assert house.http.post("/letters/7/reply", data={"text": "x"}).status_code == 404


def test_the_letters_html_has_a_sandbox_of_its_own(house: House) -> None:
    """Even opened by itself it has no scripts, no forms and no origin; links open beside it."""
    html = (
        f"<html><head lang=en><base href='http://evil.test'></head><body>{EVIL}<a href=/x>x</a></body></html>"
    )
    house.send(letter(html=html))
    answer = house.http.get("/letters/1/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-popups ")
    for denied in ("allow-scripts", "allow-same-origin", "allow-forms", "script-src"):
        assert denied not in policy
    for told in ("default-src 'none'", "form-action 'none'", "base-uri 'none'", "frame-ancestors 'self'"):
        assert told in policy
    assert '<head lang=en><base target="_blank"><base href' in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("view", ["html", "text", "headers", "source"])
def test_markup_in_a_letter_is_text_on_the_page(house: House, view: str) -> None:
    """Subject, names, headers, text and source are escaped in list and pane."""
    fields = [
        f"From: {EVIL} <a@b.test>",
        f'Reply-To: <"{EVIL}"@b.test>',
        f"Subject: {EVIL}",
        f"X-Evil: {EVIL}",
    ]
    house.send("\r\n".join([*fields, "", EVIL, ""]).encode())
    answer = house.http.get(f"/letters/1?view={view}")
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text


def test_the_page_allows_only_its_own_script(house: House) -> None:
    """A new nonce for each page, and nothing from anywhere else."""
    first, second = house.http.get("/"), house.http.get("/")
    policy = first.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)';", policy)
    assert nonce
    assert f'<script nonce="{nonce[1]}">' in first.text
    assert first.text.count("<script") == 1
    assert nonce[1] not in second.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_mail_breaks_the_page(house: House, raw: bytes) -> None:
    """Every view answers soon, the source is shown and the API tells of it."""
    house.send(raw)
    started = time.monotonic()
    for path in ("/", "/letters/1", "/api/v2/messages", "/api/v2/search?kind=containing&query=x"):
        assert house.http.get(path).status_code == 200
    for view in ("html", "text", "headers", "source"):
        assert house.http.get(f"/letters/1?view={view}").status_code == 200
    assert house.http.get("/letters/1/html").status_code in {200, 404}
    assert 'class="source"' in house.http.get("/letters/1?view=source").text
    assert reply(house, "approve")[0] in {200, 422}
    assert time.monotonic() - started < 10


def test_other_hosts_are_refused(house: House) -> None:
    """A name that someone points at 127.0.0.1 reads no letters."""
    house.send(letter("secret"))
    port = house.url.rpartition(":")[2]
    for host in (
        "evil.test",
        f"evil.test:{port}",
        "localhost.evil.test",
        "",
        "127.0.0.1.evil.test",
        "[::2]:1",
    ):
        for path in ("/", "/api/v2/messages", "/letters/1"):
            answer = house.http.get(path, headers={"Host": host})
            assert (answer.status_code, "secret" in answer.text) == (421, False), host
    for host in (f"localhost:{port}", "LOCALHOST", f"[::1]:{port}", "127.0.0.1:9"):
        assert house.http.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_other_sites_neither_reply_nor_delete(house: House, headers: dict[str, str]) -> None:
    """Another page in the same browser has no say here."""
    house.send(letter())
    form = {"text": "approve", "sender": "ann@corp.test"}
    assert house.http.post("/letters/1/reply", data=form, headers=headers).status_code == 403
    assert house.http.delete("/api/v1/messages", headers=headers).status_code == 403
    assert house.mailbox.mails == []
    assert house.http.get("/api/v2/messages").json()["total"] == 1


def test_a_reply_is_what_a_mail_program_would_send(house: House) -> None:
    """Addresses, thread and quotation as a person's answer has them, over real SMTP."""
    house.send(letter(References="<first@localhost> <second@localhost>"))
    status, page = reply(house, "approve\r\nfine by me — go\r\n")
    assert (status, "Reply handed to the mailbox." in page) == (200, True)
    (envelope,) = house.mailbox.mails
    assert (envelope.mail_from, envelope.rcpt_tos) == (
        "ann@corp.test",
        ["r+afqwcmrtgy3tqnbvgu3dombr@localhost"],
    )
    message = received(house)
    assert message["From"] == "Ann Lee <ann@corp.test>"
    assert message["To"] == "r+afqwcmrtgy3tqnbvgu3dombr@localhost"
    assert message["Subject"] == "Re: Refund 120.00 EUR"
    assert message["In-Reply-To"] == "<refund-42@localhost>"
    assert message["References"] == "<first@localhost> <second@localhost> <refund-42@localhost>"
    assert message["Message-ID"] not in {None, "<refund-42@localhost>"}
    assert body(message) == (
        "approve\nfine by me — go\n"
        "\n"
        "On Tue, 24 Nov 2026 10:12, Bob Smith via Approvals <approvals@localhost> wrote:\n"
        "> Bob asks for your approval: café.\n"
        ">\n"
        ">> an old line\n"
    )


def test_a_reply_goes_to_from_and_keeps_one_re(house: House) -> None:
    """Without Reply-To it goes to the author; 'Re:' is not repeated; no id, no thread."""
    house.send(letter("RE: again", Reply_To="", Message_ID=""))
    assert reply(house, "ok")[0] == 200
    message = received(house)
    assert (message["To"], message["Subject"]) == ("approvals@localhost", "RE: again")
    assert message["In-Reply-To"] is None


def test_a_letter_to_several_is_answered_as_one_of_them(house: House) -> None:
    """The box offers each recipient, and nobody else."""
    house.send(letter(), "ann@corp.test", "zoe@corp.test")
    assert house.http.get("/letters/1").text.count("<option>") == 2
    assert reply(house, "approve", sender="eve@corp.test")[0] == 422
    assert reply(house, "approve", sender="zoe@corp.test")[0] == 200
    assert received(house)["From"] == "zoe@corp.test"


def test_the_mailboxs_refusal_is_shown_in_its_words(house: House) -> None:
    """What was typed stays in the box, and nothing is said to be sent."""
    house.send(letter())
    house.mailbox.answer = "550 5.1.1 No such address <b>"
    status, page = reply(house, "approve & go")
    assert status == 502
    assert "550 5.1.1 No such address &lt;b&gt;" in page
    assert ">approve &amp; go</textarea>" in page
    assert "handed to" not in page


def test_a_mailbox_that_is_away_is_told(house: House) -> None:
    """A refused connection is an outcome, not an error page."""
    house.send(letter())
    house.mailbox_listener.stop()
    status, page = reply(house, "approve")
    assert status == 502
    assert "Not accepted: " in page


def test_nothing_and_too_much_are_not_sent(house: House) -> None:
    """An empty box and half a megabyte are named as such."""
    house.send(letter())
    assert reply(house, " \r\n")[0] == 422
    assert reply(house, "x" * 500_000)[0] == 413
    assert house.mailbox.mails == []


def test_a_letter_can_not_write_the_replys_headers(house: House) -> None:
    """Line breaks hidden in encoded words stay inside one value."""
    hidden = "=?utf-8?q?x=0D=0ABcc=3A_eve=40evil.test=0D=0A=0D=0Abody?="
    house.send(
        f"From: {hidden} <approvals@localhost>\r\nTo: {hidden} <ann@corp.test>\r\nSubject: {hidden}\r\n"
        f"Message-ID: <a\x0bb@c>\r\nReferences: {hidden} <ok@c>\r\n\r\nhi\r\n".encode()
    )
    assert reply(house, "approve")[0] == 200
    message = received(house)
    assert set(message.keys()) <= {
        *("From", "To", "Subject", "Date", "Message-ID", "Content-Type", "Content-Transfer-Encoding"),
        "MIME-Version",
    }
    assert body(message).startswith("approve\n\nOn ")


def test_a_letter_without_an_address_can_not_be_answered(house: House) -> None:
    """The box says so instead of failing later."""
    house.send(b"Subject: nobody\r\n\r\nhi\r\n")
    assert "names nobody to reply to" in house.http.get("/letters/1").text
    assert reply(house, "approve")[0] == 422


def test_style_sheets_are_served_and_nothing_else_is(house: House) -> None:
    """The two sheets of the page, by name."""
    for name in ("style", "inbox"):
        assert house.http.get(f"/{name}.css").headers["content-type"] == "text/css; charset=utf-8"
    assert house.http.get("/other.css").status_code == 404
    assert house.http.get("/..%2Finbox.html.css").status_code == 404
