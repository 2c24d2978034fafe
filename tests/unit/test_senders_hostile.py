"""No octets make the check raise, trust, or take long."""

import asyncio
import time
from hashlib import sha256

import dkim  # type: ignore[import-untyped] # it ships no types
import pytest
from dkim import canonicalization
from hypothesis import given, settings
from hypothesis import strategies as st

from service.senders import Doubted, Trust, Trusted, Unavailable, senders
from service.senders.mail import read_mail
from tests.unit.test_senders import ANN, HEADER, MAIL, Zone, check, reason, rsa, signed, zone

#: Seconds for one hostile mail, on a busy machine; undefended, these take from seconds to hours.
PATIENCE = 2.0

_TAGS = st.sampled_from(
    [
        b"v=1",
        b"a=rsa-sha256",
        b"d=corp.example",
        b"s=s1",
        b"h=from",
        b"h=from:to:subject",
        b"bh=",
        b"b=",
        b"l=0",
        b"bh=AAAA",
        b"b=AAAA",
        b"i=@corp.example",
        b"x=99999999999",
        b"t=1",
        b"c=relaxed/relaxed",
        b"c=",
        b"i=1",
        b"cv=none",
    ]
)
_FIELDS = st.tuples(
    st.sampled_from(
        [b"DKIM-Signature", b"ARC-Seal", b"ARC-Message-Signature", b"ARC-Authentication-Results"]
    ),
    st.lists(st.one_of(_TAGS, st.binary(max_size=10)), max_size=9).map(b"; ".join),
).map(b": ".join)


_OCTETS = st.one_of(
    st.binary(), st.binary().map(lambda tail: HEADER + tail), st.binary().map(lambda top: top + MAIL)
)


def verified(raw: bytes, records: tuple[bytes, ...] = (), sealers: tuple[str, ...] = ()) -> Trust:
    """Return what ``verify`` says, in a loop of its own."""
    dns = Zone({"s1._domainkey.corp.example": records or (rsa().record,)})
    return asyncio.run(senders("verify", (), dns, sealers=sealers).check(raw, ANN, "192.0.2.1"))


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(), st.binary().map(lambda tail: HEADER + tail), st.binary().map(lambda top: top + MAIL)
    )
)
def test_any_octets_are_doubted(raw: bytes) -> None:
    """Octets that nobody signed are never trusted and never raise."""
    assert isinstance(verified(raw), Doubted)


@settings(deadline=None)
@given(st.lists(_FIELDS, max_size=6))
def test_any_signature_fields_are_doubted(fields: list[bytes]) -> None:
    """Nor are fields that look like signatures, or chains of a relay that is trusted."""
    raw = b"".join(field + b"\r\n" for field in fields) + MAIL
    assert isinstance(verified(raw, sealers=("corp.example",)), Doubted)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 20))
def test_any_change_of_a_signed_mail_is_found(inserted: bytes, at: int, cut: int) -> None:
    """A mail is trusted only if what was signed, the body and the covered fields, is there unchanged."""
    genuine = signed()
    end = len(genuine) - len(MAIL) + at
    raw = genuine[:end] + inserted + genuine[end + cut :]
    trust = verified(raw)
    if isinstance(trust, Trusted):
        # What is left of canonicalization's freedom: case of names, blanks, fields that are not covered.
        squeezed = b"".join(raw.split()).lower()
        for line in MAIL.split(b"\r\n"):
            assert b"".join(line.split()).lower() in squeezed


@settings(deadline=None)
@given(st.binary(max_size=200).map(lambda tail: b"v=DKIM1; p=" + tail))
def test_any_key_record_is_refused(record: bytes) -> None:
    """A key record of any octets makes nobody trusted."""
    assert isinstance(verified(signed(), (record,)), Doubted)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"x", b" ", b"  ", b"\t", b"\r\n", b"\n", b"\r", b"\xff"]), max_size=30))
def test_bodies_are_hashed_as_the_library_does(pieces: list[bytes]) -> None:
    """Ours is linear, and the same."""
    raw = HEADER + b"\r\n" + b"".join(pieces)
    mail, theirs = read_mail(raw), dkim.DKIM(raw)
    assert mail.relaxed_hash == sha256(canonicalization.Relaxed.canonicalize_body(theirs.body)).digest()
    assert mail.simple_hash == sha256(canonicalization.Simple.canonicalize_body(theirs.body)).digest()


_VALUE = b"v=1; a=rsa-sha256; c=relaxed/relaxed; d=corp.example; s=s1; bh=AAAA; "


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            signed(
                HEADER + b"\r\n" + b" " * 1_000_000 + b"x\r\n", canonicalize=(b"relaxed", b"simple")
            ).replace(b"relaxed/simple", b"relaxed/relaxed"),
            "is of another body",
        ),
        (
            b"DKIM-Signature: " + _VALUE + b"h=from; b=AAAA\r\n" + MAIL + b"\r\n" * 5_000_000,
            "is of another body",
        ),
        (
            b"DKIM-Signature: " + _VALUE + b"h=from; b" + b"\r\n " * 2000 + b"=AAAA\r\n" + MAIL,
            "out of bounds",
        ),
        (b"DKIM-Signature: " + _VALUE + b"h=" + b"a:" * 3500 + b"from; b=AAAA\r\n" + MAIL, "out of bounds"),
        (b"DKIM-Signature: " + _VALUE + b"h=from; b=" + b"A" * 9000 + b"\r\n" + MAIL, "out of bounds"),
        (
            b"DKIM-Signature: " + _VALUE + b"h=from; b=AAAA; t=" + b"9" * 5000 + b"\r\n" + MAIL,
            "time is malformed",
        ),
        (
            (b"DKIM-Signature: " + _VALUE + b"h=from; b=AAAA\r\n") * 5 + MAIL + b"x \r\n" * 5_000_000,
            "of another body",
        ),
        (
            (b"DKIM-Signature: " + _VALUE + b"h=from; b=AAAA\r\n") * 5 + MAIL + b"\t " * 10_000_000,
            "of another body",
        ),
        (b"a:\r\n" * 16000 + MAIL, "over 1000 header fields"),
        (b"a: " + b"b" * 70000 + b"\r\n" + MAIL, "the header is over 65536 octets"),
        (b"a" * 33 * 1024 * 1024, "the mail is over"),
        (
            (b"DKIM-Signature: " + _VALUE + b"h=from; b=AAAA\r\n") * 400 + MAIL,
            "further signatures were not read",
        ),
    ],
    ids=[
        "blanks",
        "blank-lines",
        "folds",
        "names",
        "long",
        "digits",
        "short",
        "tabs",
        "fields",
        "header",
        "big",
        "many",
    ],
)
async def test_what_takes_the_library_long_is_refused_soon(raw: bytes, expected: str) -> None:
    """Bounds stand before whatever is not linear."""
    start = time.monotonic()
    assert expected in reason(await check(raw))
    assert time.monotonic() - start < PATIENCE


async def test_a_long_run_of_blanks_that_was_signed_is_trusted() -> None:
    """The bound on blanks is on time, not on what a body may hold."""
    body = (b"approve" + b" \t" * 300 + b"\r\n") * 20 + b" \r\n\r\n" * 3000
    for canon in ((b"relaxed", b"relaxed"), (b"relaxed", b"simple")):
        raw = signed(HEADER + b"\r\n" + body, canonicalize=canon)
        assert dkim.verify(raw, dnsfunc=lambda _name, **_: rsa().record)
        assert isinstance(await check(raw), Trusted)
    for empty in (b"", b"\r\n", b"\r\n" * 5000, b"   ", b" \r\n"):
        for canon in ((b"relaxed", b"relaxed"), (b"relaxed", b"simple")):
            assert isinstance(await check(signed(HEADER + b"\r\n" + empty, canonicalize=canon)), Trusted)


class Silent:
    """DNS that never answers."""

    async def txt(self, name: str) -> tuple[bytes, ...]:
        """Wait for ever."""
        await asyncio.Event().wait()
        return (name.encode(),)


async def test_silent_dns_is_tried_again_within_the_budget() -> None:
    """The SMTP client is told to come again before it loses patience."""
    start = time.monotonic()
    trust = await senders("verify", (), Silent(), budget=0.1).check(signed(), ANN, "")
    assert trust == Unavailable("DNS has no answer for s1._domainkey.corp.example: Timeout")
    assert time.monotonic() - start < PATIENCE


async def test_the_loop_is_free_meanwhile() -> None:
    """Hashing ten megabytes is done elsewhere."""
    raw = signed(HEADER + b"\r\n" + b"x" * 78 * 128 * 1024)
    task = asyncio.create_task(check(raw, zone()))
    longest = 0.0
    while not task.done():
        start = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - start)
    assert isinstance(await task, Trusted)
    assert longest < PATIENCE / 2
