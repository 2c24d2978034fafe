"""The inbox's reading of mail: right for what mail programs send, bounded and unbroken for the rest."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inbox import mime

#: What each would take seconds or all memory without its bound.
FLOODS = {
    "quotes in From": b"From: " + b'"' * 1_000_000 + b"\r\n\r\nx",
    "addresses in From": b"From: " + b"a@b.test," * 100_000 + b"\r\n\r\nx",
    "comments in From": b"From: " + b"(" * 100_000 + b"\r\n\r\nx",
    "encoded words": b"Subject: " + b"=?utf-8?q?=?=" * 50_000 + b"\r\n\r\nx",
    "folded lines": b"Subject: a" + b"\r\n b" * 1_000_000 + b"\r\n\r\nx",
    "fields": b"X: y\r\n" * 1_000_000 + b"\r\nx",
    "parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 1_000_000,
    "depth": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(5000)
    ),
    "spaces after boundaries": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + (b"--b" + b" " * 3000 + b"x\r\n") * 1000,
    "parameters": b"Content-Type: multipart/mixed" + b"; boundary" * 6000 + b"\r\n\r\nx",
    "spaces in parameters": b"Content-Type: multipart/mixed;" + b" " * 60_000 + b"\r\n\r\nx",
    "slow charset": b"Content-Type: text/plain; charset=punycode\r\n\r\n" + b"a-" * 1_000_000,
}

FRAGMENTS = st.sampled_from(
    [
        *(
            b"\r\n",
            b"\n",
            b"--b",
            b"--",
            b" ",
            b"\t",
            b";",
            b":",
            b"=",
            b'"',
            b"<",
            b">",
            b"@",
            b",",
            b"\x00",
        ),
        *(b"Content-Type: multipart/mixed; boundary=b", b"Content-Type: text/html; charset=utf-16", b"\xff"),
        *(b"Content-Transfer-Encoding: base64", b"Content-Transfer-Encoding: quoted-printable", b"From: "),
        *(b"Subject: ", b"=?utf-8?b?", b"=?iso-2022-jp?q?", b"?=", b"a@b.test", b"=0A", b"Q"),
    ]
)


def read_all(raw: bytes) -> mime.Part:
    """Read a message in every way that the inbox does."""
    message = mime.parse(raw)
    for media_type in ("text/plain", "text/html"):
        part = mime.leaf(message, media_type)
        if part is not None:
            mime.text(part).encode()
    for _, value in message.fields[:1000]:
        mime.words(value).encode()
    for name in ("from", "to", "reply-to"):
        mime.addresses(message.first(name))
    return message


@pytest.mark.parametrize("raw", FLOODS.values(), ids=FLOODS.keys())
def test_floods_take_no_time(raw: bytes) -> None:
    """Each bound holds: megabytes of one thing are read in well under the seconds that parsers take."""
    started = time.process_time()
    read_all(raw)
    assert time.process_time() - started < 2


@given(st.lists(FRAGMENTS, max_size=40).map(b"".join))
def test_any_octets_are_a_message(raw: bytes) -> None:
    """Nothing raises, nothing is lost, and all text can be shown."""
    message = read_all(raw)
    assert message.size == len(raw)
    assert message.body in raw


@pytest.mark.parametrize(
    ("fields", "body", "shown"),
    [
        ("Content-Type: text/plain; charset=iso-8859-1", b"caf\xe9", "café"),
        (
            "Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: Quoted-Printable",
            b"caf=E9=\r\n!",
            "café!",
        ),
        ("Content-Type: text/plain\r\nContent-Transfer-Encoding: base64", b"Y2Fm\r\nw6k", "café"),
        ("Content-Type: text/plain; charset=x-unknown", "café".encode(), "café"),
        ("Content-Type: text/plain; charset=us-ascii", b"caf\xff", "caf�"),
        ("Content-Type: text/plain; charset=unicode_escape", rb"\x41", rb"\x41".decode()),
        ("Subject: none", b"a\r\nb", "a\nb"),
    ],
)
def test_text_is_decoded_by_what_the_part_says(fields: str, body: bytes, shown: str) -> None:
    """Encoding and charset are honoured where mail has them, guessed where not."""
    part = mime.leaf(mime.parse(fields.encode() + b"\r\n\r\n" + body), "text/plain")
    assert part is not None
    assert mime.text(part) == shown


def test_an_attachment_is_not_the_letter() -> None:
    """An attached HTML file is not shown instead of the text."""
    raw = (
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/html\r\nContent-Disposition: attachment; filename=x\r\n\r\n<b>\r\n"
        b"--b\r\n\r\ntext\r\n--b--\r\n"
    )
    message = mime.parse(raw)
    assert mime.leaf(message, "text/html") is None
    text = mime.leaf(message, "text/plain")
    assert text is not None
    assert text.body == b"text"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=?utf-8?q?Gr=C3=B6=C3=9Fe?= und =?utf-8?b?bWVocg==?=", "Größe und mehr"),
        ("=?utf-8?q?a=0D=0ABcc:_x?=", "a Bcc: x"),
        ("=?utf-8?b?a?=", "=?utf-8?b?a?="),
        ("safe\u202eevil\u2028\x00", "safe evil"),
        ("  many   blanks ", "many blanks"),
    ],
)
def test_header_words_are_one_clean_line(value: str, shown: str) -> None:
    """Encoded words are decoded; breaks, control and bidi characters never reach page or reply."""
    assert mime.words(value) == shown


def test_a_boundary_must_stand_in_its_own_line() -> None:
    """Text that only starts like the boundary does not end a part."""
    body = b"--b\r\n\r\nx --b\r\n--bb\r\n--b  \r\n\r\ny\r\n--b--"
    parts = mime.parse(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + body).parts
    assert parts is not None
    assert [each.body for each in parts] == [b"x --b\r\n--bb", b"y"]


def test_depth_has_an_end() -> None:
    """A part that is too deep keeps its own parts in its body."""
    raw = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(50)
    )
    part, depth = mime.parse(raw), 0
    while part.parts:
        (part,) = part.parts
        depth += 1
    assert depth == mime.MAX_DEPTH
    assert b"--b49" in part.body


def test_a_shown_header_has_an_end() -> None:
    """A subject of a megabyte does not fill the page."""
    assert len(mime.words("x" * 1_000_000)) == mime.MAX_SHOWN
