"""What another server saw pass is believed, and no more of the mail than what passed covers."""

import ipaddress
import re

import pytest

from service.senders import Doubted, Trust, Trusted, senders
from tests.unit.test_senders import ANN, MAIL, Zone, reason, rsa, signed
from tests.unit.test_senders_arc import RELAY, listed, sealed

PEERS = (ipaddress.ip_network("127.0.0.0/8"),)
DMARC = "dmarc=pass header.from=corp.example"
DKIM = "dkim=pass header.d=corp.example"
SPF = "spf=pass smtp.mailfrom=ann@corp.example"
#: What Exchange Online signs of the mail, and what Google does.
FEW, MANY = [b"from", b"subject"], [b"from", b"to", b"subject", b"date"]
_FEW, _MANY = {"from", "subject"}, {"from", "to", "subject", "date"}


async def judged(raw: bytes, results: str) -> Trust:
    """Return what the server in front makes of a mail that it found so."""
    raw = f"Authentication-Results: mx.corp.example; {results}\r\n".encode() + raw
    return await senders("authserv-id=mx.corp.example", PEERS).check(raw, ANN, "127.0.0.1")


def covered(trust: Trust) -> set[str] | None:
    """Return the fields that count; None for all."""
    assert isinstance(trust, Trusted), trust
    return None if trust.covered is None else set(trust.covered)


def b_of(raw: bytes) -> str:
    """Return the beginning of the topmost signature's b=."""
    found = re.search(rb"[;\s]b=\s*(\S{8})", raw)
    assert found
    return found[1].decode()


async def test_what_the_signature_covers_counts() -> None:
    """Whether or not the result says which it was; a field above the signed one is anybody's."""
    raw = signed(include_headers=FEW)
    for results in (f"{DKIM}; {DMARC}", DKIM, DMARC, "dkim=pass header.i=@corp.example", f"spf=fail; {DKIM}"):
        assert covered(await judged(raw, results)) == _FEW
    assert covered(await judged(b"To: x@y.example\r\n" + signed(include_headers=MANY), DKIM)) == _MANY - {
        "to"
    }


async def test_where_spf_passed_too_the_mail_is_as_it_was() -> None:
    """It came from a server of their own; SPF of another domain proves nothing."""
    raw = signed(include_headers=FEW)
    assert covered(await judged(raw, f"{SPF}; {DKIM}; {DMARC}")) is None
    assert covered(await judged(raw, f"{SPF}; {DMARC}")) is None
    for other in (
        SPF.replace("corp", "evil"),
        SPF.replace("pass", "softfail"),
        "spf=pass smtp.helo=corp.example",
    ):
        assert covered(await judged(raw, f"{other}; {DKIM}; {DMARC}")) == _FEW


async def test_a_mail_that_is_not_signed_can_only_have_passed_by_spf() -> None:
    """A server that tells of DMARC alone is believed; of a signature that isn't there, nothing."""
    assert covered(await judged(MAIL, DMARC)) is None
    assert covered(await judged(signed(domain=b"evil.example"), DMARC)) is None
    assert covered(await judged(MAIL, f"{DKIM}; {DMARC}")) == set()


async def test_of_several_signatures_the_result_tells_which() -> None:
    """By domain, selector or the signature's beginning; else what all that it can be about cover."""
    few = signed(include_headers=FEW)
    raw = signed(few, include_headers=MANY, selector=b"s2", domain=b"mail.corp.example")
    assert covered(await judged(raw, DMARC)) == _FEW
    assert covered(await judged(raw, "dkim=pass header.d=mail.corp.example")) == _MANY
    assert covered(await judged(raw, "dkim=pass header.i=@mail.corp.example")) is not None
    assert covered(await judged(raw, f"{DKIM}; dkim=pass header.d=mail.corp.example")) == _MANY
    same = signed(few, include_headers=MANY, selector=b"s2")
    assert covered(await judged(same, DKIM)) == _FEW
    assert covered(await judged(same, f"{DKIM} header.s=s2")) == _MANY
    assert covered(await judged(same, f"{DKIM} header.b={b_of(same)}")) == _MANY
    assert covered(await judged(same, f"{DKIM} header.b={b_of(few)}")) == _FEW
    assert covered(await judged(same, f"{DKIM} header.b=AAAAAAAA")) == set()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (signed(length=True), "(l=)"),
        (signed().replace(b"; c=", b"; c=\r\n" + b" " * 70, 1), "out of bounds"),
        (signed().replace(b"; c=", b"; a=rsa-sha256; c=", 1), "malformed"),
        (signed().replace(b"rsa-sha256", b"rsa-sha1"), "forbidden algorithm"),
        (b"DKIM-Signature: d=corp.example; s=s1\r\n" * 6 + signed(), "too many"),
    ],
    ids=["part of the body", "blanks", "a tag twice", "an old algorithm", "too many"],
)
async def test_a_signature_that_is_read_in_two_ways_is_doubted(raw: bytes, expected: str) -> None:
    """What let it pass there may cover less than it seems to here; SPF makes it no matter."""
    trust = await judged(raw, f"{DKIM}; {DMARC}")
    assert isinstance(trust, Doubted)
    assert expected in trust.reason
    assert covered(await judged(raw, f"{SPF}; {DMARC}")) is None


async def test_a_signature_of_somebody_elses_is_no_matter() -> None:
    """A provider's own, however old its algorithm."""
    raw = signed(include_headers=FEW)
    other = signed(domain=b"esp.example").partition(b"\r\nFrom:")[0].replace(b"rsa-sha256", b"rsa-sha1")
    assert covered(await judged(other + b"\r\n" + raw, DKIM)) == _FEW


@pytest.mark.parametrize(
    ("seen", "also", "expected"),
    [
        (DMARC, True, {"from", "subject"}),
        (DMARC, False, set()),
        (f"{SPF}; {DMARC}", False, {"from", "to", "subject", "date", "message-id"}),
    ],
    ids=["by signature", "by a signature that anybody could add", "by SPF"],
)
async def test_what_was_covered_when_the_first_relay_saw_it_counts(
    seen: str, expected: set[str], *, also: bool
) -> None:
    """And of that what the last relay signed: both could be written anew, before or after."""
    fields = [b"from", b"to", b"subject", b"date", b"message-id", *([b"dkim-signature"] if also else [])]
    raw = sealed(listed(signed(include_headers=FEW)), seen=seen, fields=fields)
    keys = Zone({f"s1._domainkey.{name}": (rsa().record,) for name in ("corp.example", RELAY)})
    trust = await senders("verify", (), keys, sealers=[RELAY]).check(raw, ANN, "")
    assert isinstance(trust, Trusted)
    assert trust.method == "arc"
    assert (covered(trust) or set()) - {"dkim-signature"} == expected


async def test_by_a_relay_too_a_body_that_anybody_can_write_is_doubted() -> None:
    """The first relay saw a signature pass that covers the beginning only."""
    raw = sealed(listed(signed(length=True)), seen=DMARC)
    keys = Zone({f"s1._domainkey.{name}": (rsa().record,) for name in ("corp.example", RELAY)})
    assert "(l=)" in reason(await senders("verify", (), keys, sealers=[RELAY]).check(raw, ANN, ""))
