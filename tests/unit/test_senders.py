"""A reply is trusted when a signature shows that its sender wrote it, and for nothing else."""

import base64
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import dkim  # type: ignore[import-untyped] # it ships no types
import pytest

from service.senders import DnsUnavailable, Doubted, Trust, Trusted, Unavailable, senders

ANN = "ann@corp.example"
BODY = b"approve\r\n\r\n> do you agree?\r\n"
HEADER = (
    b"From: Ann <ann@corp.example>\r\nTo: <reply+abc@approvals.example>\r\nSubject: Re: Invoice 7\r\n"
    b"Date: Tue, 24 Nov 2026 09:00:00 +0000\r\nMessage-ID: <1@corp.example>\r\n"
)
MAIL = HEADER + b"\r\n" + BODY
SIGNED = (b"from", b"to", b"subject", b"date", b"message-id")


@dataclass(frozen=True)
class Key:
    """A key pair: what the signer needs, and the record that it publishes."""

    private: bytes
    record: bytes
    algorithm: bytes = b"rsa-sha256"


@dataclass
class Zone:
    """DNS as a dict; a name with None under it does not answer. `asked` holds every question."""

    records: Mapping[str, tuple[bytes, ...] | None]
    asked: list[str] = field(default_factory=list)

    async def txt(self, name: str) -> tuple[bytes, ...]:
        """Return what the dict has."""
        self.asked.append(name)
        found = self.records.get(name, ())
        if found is None:
            raise DnsUnavailable(f"DNS has no answer for {name}: SERVFAIL")
        return found


@cache
def rsa(bits: int = 2048) -> Key:
    """Return a key pair that is the same in every run."""
    numbers = random.Random(bits)  # noqa: S311 - a test's key need not be secret
    exponent = 65537
    while True:
        p, q = (_prime(numbers, bits // 2) for _ in range(2))
        if (p * q).bit_length() == bits:
            break
    d = pow(exponent, -1, (p - 1) * (q - 1))
    parts = [0, p * q, exponent, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p)]
    private = _der(parts)
    bits_of = _tlv(0x03, b"\0" + _der(parts[1:3]))
    public = _tlv(0x30, bytes.fromhex("300d06092a864886f70d0101010500") + bits_of)
    pem = b"-----BEGIN KEY-----\n%s\n-----END KEY-----\n" % base64.b64encode(private)
    return Key(pem, b"v=DKIM1; k=rsa; p=" + base64.b64encode(public))


def _der(numbers: list[int]) -> bytes:
    """Return numbers as an ASN.1 sequence."""
    octets = (number.to_bytes(number.bit_length() // 8 + 1) for number in numbers)
    return _tlv(0x30, b"".join(_tlv(0x02, number) for number in octets))


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    return bytes([tag]) + (bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2)) + content


def _prime(numbers: random.Random, bits: int) -> int:
    small = [n for n in range(3, 2000, 2) if all(n % m for m in range(3, int(n**0.5) + 1, 2))]
    while True:
        number = numbers.getrandbits(bits) | 1 | (3 << (bits - 2))
        # Fermat's test is enough for numbers that nobody chose.
        if all(number % n for n in small) and pow(2, number - 1, number) == 1:
            return number


def signed(
    mail: bytes = MAIL,
    key: Key | None = None,
    domain: bytes = b"corp.example",
    selector: bytes = b"s1",
    **options: Any,
) -> bytes:
    """Return `mail` with a DKIM signature on top, by the library's signer."""
    key = key or rsa()
    given = {"include_headers": list(SIGNED), "signature_algorithm": key.algorithm, **options}
    line: Any = dkim.sign(mail, selector, domain, key.private, **given)
    return bytes(line) + mail


def resigned(mail: bytes, change: Callable[[bytes], bytes], key: Key | None = None) -> bytes:
    """Return `mail`, signed over a signature field whose tags `change` altered first.

    The library's signer offers no x=, so the field is hashed here, relaxed.
    """
    header, _, rest = signed(mail, key).partition(b"From: Ann")
    rest = b"From: Ann" + rest
    value = b"".join(header.split(b":", 1)[1].replace(b"\r\n", b"").split())
    value = change(value[: value.index(b";b=") + 3])
    fields = dict(line.split(b":", 1) for line in HEADER.strip().split(b"\r\n"))
    lower = {name.lower(): text.strip() for name, text in fields.items()}
    names = value.partition(b";h=")[2].partition(b";")[0].split(b":")
    hashed = b"".join(b"%s:%s\r\n" % (n, lower[n]) for n in names) + b"dkim-signature:" + value
    hasher = dkim.HASH_ALGORITHMS[b"rsa-sha256"](hashed)
    private = dkim.parse_pem_private_key((key or rsa()).private)
    made = base64.b64encode(bytes(dkim.RSASSA_PKCS1_v1_5_sign(hasher, private)))
    return b"DKIM-Signature: " + value + made + b"\r\n" + rest


def _replaced(tags: bytes, new: bytes) -> bytes:
    return tags.replace(b";t=", new)


def zone(key: Key | None = None, **records: tuple[bytes, ...] | None) -> Zone:
    """Return the zone of corp.example with one key, `records` added; in names ``__`` stands for a dot."""
    more = {name.replace("__", "."): found for name, found in records.items()}
    return Zone({"s1._domainkey.corp.example": ((key or rsa()).record,), **more})


async def check(raw: bytes, dns: Zone | None = None, sender: str = ANN, **options: Any) -> Trust:
    """Return what ``verify`` says."""
    return await senders("verify", (), dns or zone(), **options).check(raw, sender, "192.0.2.1")


def reason(trust: Trust) -> str:
    """Return why a mail is doubted; it must be."""
    assert isinstance(trust, Doubted), trust
    return trust.reason


async def test_an_aligned_signature_is_trusted() -> None:
    """The library's own signature, relaxed or simple, is evidence that names its key."""
    for canon in ((b"relaxed", b"relaxed"), (b"relaxed", b"simple"), (b"simple", b"simple")):
        trust = await check(signed(canonicalize=canon))
        assert trust == Trusted("dkim", "key s1._domainkey.corp.example, rsa-sha256, no dmarc record")


async def test_the_evidence_names_the_policy() -> None:
    """A DMARC record is quoted by its policy, of which only the known words are taken over."""
    trust = await check(signed(), zone(_dmarc__corp__example=(b"v=DMARC1; p=reject; adkim=s",)))
    assert isinstance(trust, Trusted)
    assert trust.detail.endswith("dmarc p=reject")
    trust = await check(signed(), zone(_dmarc__corp__example=(b"v=DMARC1; p=<script>",)))
    assert isinstance(trust, Trusted)
    assert trust.detail.endswith("dmarc p=none")


async def test_ed25519_is_trusted() -> None:
    """RFC 8463 signatures hold where the library's extra is installed."""
    signing = pytest.importorskip("nacl.signing")
    private = signing.SigningKey(bytes(range(32)))
    public = base64.b64encode(bytes(private.verify_key))
    key = Key(base64.b64encode(bytes(range(32))), b"v=DKIM1; k=ed25519; p=" + public, b"ed25519-sha256")
    assert isinstance(await check(signed(key=key), zone(key)), Trusted)
    altered = signed(key=key).replace(b"Invoice 7", b"Invoice 8")
    assert "of other header fields" in reason(await check(altered, zone(key)))


async def test_line_ends_of_a_pipe_are_trusted() -> None:
    """What comes by LF, or under an mbox line, is the same mail."""
    assert isinstance(await check(signed().replace(b"\r\n", b"\n")), Trusted)
    assert isinstance(await check(b"From ann@corp.example Tue Nov 24 2026\n" + signed()), Trusted)


async def test_relays_may_add_fields_on_top() -> None:
    """Received, Return-Path and results from relays change nothing, nor does a copy sent again."""
    added = (
        b"Return-Path: <ann@corp.example>\r\nReceived: from a by b; x\r\nAuthentication-Results: mx; none\r\n"
    )
    trust = await check(added + signed())
    assert isinstance(trust, Trusted)
    assert trust == await check(added + added[36:] + signed())


async def test_an_unsigned_mail_is_doubted() -> None:
    """Nothing signed: nothing known, and DNS is not asked."""
    dns = zone()
    assert reason(await check(MAIL, dns)) == "the mail is not signed"
    assert dns.asked == []


async def test_a_stranger_s_signature_is_doubted() -> None:
    """A signature that holds, by a domain that From is not of, is no evidence; its key is not asked for."""
    dns = Zone({"s1._domainkey.evil.example": (rsa().record,)})
    trust = await check(signed(domain=b"evil.example"), dns)
    assert reason(trust) == "evil.example signed, which does not speak for corp.example"
    assert dns.asked == []


@pytest.mark.parametrize(
    ("signer", "sender"),
    [
        (b"mail.corp.example", ANN),
        (b"corp.example", "ann@sales.corp.example"),
        (b"a.my-corp.co.uk", "ann@b.my-corp.co.uk"),
    ],
)
async def test_subdomains_are_one_organisation_unless_strict(signer: bytes, sender: str) -> None:
    """Relaxed alignment is by organisational domain; adkim=s wants the very domain."""
    mail = signed(MAIL.replace(ANN.encode(), sender.encode()), domain=signer)
    domain = sender.rpartition("@")[2]
    key = {f"s1._domainkey.{signer.decode()}": (rsa().record,)}
    assert isinstance(await check(mail, Zone(key), sender), Trusted)
    own = {**key, f"_dmarc.{domain}": (b"v=DMARC1; p=none; adkim=s",)}
    assert reason(await check(mail, Zone(own), sender)).endswith(f"{domain} wants strict alignment")
    above = ".".join(domain.split(".")[-2 - (".co." in domain) :])
    other = {**key, f"_dmarc.{above}": (b"unrelated", b"v=DMARC1;p=none;adkim=s")}
    assert "wants strict alignment" in reason(await check(mail, Zone(other), sender))
    # Two records are none.
    two = {**key, f"_dmarc.{domain}": (b"v=DMARC1; p=none; adkim=s",) * 2}
    assert isinstance(await check(mail, Zone(two), sender), Trusted)


@pytest.mark.parametrize(
    ("signer", "sender"),
    [
        (b"evil.co.uk", "ann@corp.co.uk"),
        (b"co.uk", "ann@corp.co.uk"),
        (b"evil.github.io", "ann@ann.github.io"),
        (b"b.internal", "ann@a.internal"),
        (b"my", "ann@my-corp.example"),
        (b"xcorp.example", ANN),
    ],
)
async def test_neighbours_below_a_public_suffix_are_strangers(signer: bytes, sender: str) -> None:
    """Whoever may register beside a domain does not speak for it, nor does the suffix."""
    mail = signed(MAIL.replace(ANN.encode(), sender.encode()), domain=signer)
    dns = Zone({f"s1._domainkey.{signer.decode()}": (rsa().record,)})
    assert "does not speak for" in reason(await check(mail, dns, sender))


async def test_what_was_altered_is_doubted() -> None:
    """One octet of the body or of a signed field is enough."""
    said = reason(await check(signed(BODY_DECLINES).replace(b"decline", b"approve")))
    assert said == "the signature of corp.example is of another body"
    for old, new in ((b"Invoice 7", b"Invoice 8"), (b"Ann <ann@", b"Anne <ann@")):
        said = reason(await check(signed().replace(old, new)))
        assert said == "the signature of corp.example is of other header fields, or by another key"
    assert "another body" in reason(await check(signed() + b"approve\r\n"))


BODY_DECLINES = HEADER + b"\r\ndecline\r\n"


async def test_a_signed_beginning_is_doubted() -> None:
    """l= lets anybody go on writing: it is refused with and without an end that was added."""
    mail = signed(length=True)
    assert dkim.verify(mail + b"approve\r\n", dnsfunc=lambda _name, **_: rsa().record)
    for raw in (mail, mail + b"approve\r\n"):
        assert reason(await check(raw)) == "a signature covers the beginning of the body only (l=)"


async def test_from_must_be_signed() -> None:
    """A signature that leaves From out says nothing of the sender, and there is only one From."""
    bodiless = signed().replace(b"bh=", b"bx=")
    assert reason(await check(bodiless)) == "a signature does not cover the body"
    without = signed().replace(b"h=from", b"h=form")
    assert reason(await check(without)) == "a signature does not cover From"
    for second in (b"From: <eve@evil.example>\r\n", b"from: Ann <ann@corp.example>\r\n"):
        assert reason(await check(second + signed())) == "there are several fields from"
    assert "no field" in reason(await check(b"From : <eve@evil.example>\r\n" + signed()))
    assert reason(await check(b"Subject: x\r\n" + signed())) == "there are several fields subject"
    assert reason(await check(b"To: x\r\n\r\n")) == "there is no From"


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ((), "there is no key at s1._domainkey.corp.example"),
        ((b"v=DKIM1; p=",), "revoked"),
        ((b"v=DKIM1; k=rsa; p=%%%",), "malformed"),
        ((b"v=DKIM1; k=rsa; p=AAAA",), "malformed"),
        ((b"v=spf1 -all",), "there are 0 keys"),
        ((rsa().record, rsa().record), "there are 2 keys"),
        ((rsa().record + b"; t=y",), "flagged as a test"),
        ((rsa().record + b"; h=sha1",), "not for this"),
        ((rsa().record + b"; s=tlsrpt",), "not for this"),
        ((rsa().record.replace(b"k=rsa", b"k=ed25519"),), "another kind"),
        ((rsa().record.replace(b"DKIM1", b"DKIM2"),), "another kind"),
        ((rsa(1024).record,), "by another key"),
        ((rsa().record + b"; n=" + b"x" * 5000,), "there is no key"),
    ],
)
async def test_a_bad_key_is_doubted(records: tuple[bytes, ...], expected: str) -> None:
    """Each way in which a key record does not vouch has its reason."""
    assert expected in reason(await check(signed(), Zone({"s1._domainkey.corp.example": records})))


async def test_a_weak_key_is_doubted() -> None:
    """512 bits are broken in hours; 1,024 are the least that RFC 8301 lets through."""
    weak = await check(signed(key=rsa(512)), zone(rsa(512)))
    assert reason(weak) == "the key at s1._domainkey.corp.example is weak: 512 bits"
    assert isinstance(await check(signed(key=rsa(1024)), zone(rsa(1024))), Trusted)


async def test_a_huge_key_is_not_reckoned_with() -> None:
    """A number as long as a record may be is refused, not raised to a power."""
    huge = _der([(1 << 20000) + 1, (1 << 2000) + 1])
    for octets in (huge, _der([(1 << 4000) + 1, (1 << 4000) + 1]), _der([(1 << 2048) + 1, 1])):
        key = Zone({"s1._domainkey.corp.example": (b"p=" + base64.b64encode(octets),)})
        assert reason(await check(signed(), key)).startswith(("the key at", "there is no key"))


async def test_a_key_for_one_domain_does_not_sign_for_its_subdomains() -> None:
    """t=s in a key wants i= in the very domain (RFC 6376 3.6.1)."""
    strict = Zone({"s1._domainkey.corp.example": (rsa().record + b"; t=s",)})
    assert isinstance(await check(signed(), strict), Trusted)
    below = signed(identity=b"@sales.corp.example")
    assert "does not sign for subdomains" in reason(await check(below, strict))
    assert isinstance(await check(below), Trusted)


async def test_an_expired_signature_is_doubted() -> None:
    """x= is held to, which the library does ten hours late."""
    now = int(time.time())
    assert isinstance(await check(resigned(MAIL, lambda tags: tags)), Trusted)
    for end, expected in ((now + 60, Trusted), (now - 3600, Doubted)):
        later = b";x=%d;t=" % end
        raw = resigned(MAIL, partial(_replaced, new=later))
        trust = await check(raw)
        assert isinstance(trust, expected), trust
    assert reason(trust) == "a signature has expired"


async def test_forbidden_algorithms_are_doubted() -> None:
    """RFC 8301: rsa-sha1 must not be relied on."""
    raw = signed(signature_algorithm=b"rsa-sha1")
    assert reason(await check(raw)) == "a signature is of an unknown or forbidden algorithm"


async def test_one_good_signature_is_enough() -> None:
    """A list's signature or a broken one beside it does no harm."""
    raw = signed(signed(), domain=b"list.example")
    assert isinstance(await check(raw), Trusted)
    assert isinstance(await check(b"DKIM-Signature: nonsense\r\n" + raw), Trusted)


async def test_no_more_than_five_signatures_are_tried() -> None:
    """What stands below five others is not read, and its key is not asked for."""
    raw = signed()
    for number in range(5):
        raw = signed(raw, selector=b"x%d" % number)
    dns = zone()
    said = reason(await check(raw, dns))
    assert "further signatures were not read" in said
    assert "s1._domainkey.corp.example" not in dns.asked
    assert len(dns.asked) == 6


async def test_dns_that_does_not_answer_is_tried_again() -> None:
    """SERVFAIL for the key means later, not no."""
    trust = await check(signed(), Zone({"s1._domainkey.corp.example": None}))
    assert trust == Unavailable("DNS has no answer for s1._domainkey.corp.example: SERVFAIL")


async def test_an_unknown_policy_matters_only_between_subdomains() -> None:
    """The very domain's signature needs no policy; a parent's waits until it is known whether it may."""
    assert isinstance(await check(signed(), zone(_dmarc__corp__example=None)), Trusted)
    sender = "ann@sales.corp.example"
    raw = signed(MAIL.replace(ANN.encode(), sender.encode()))
    trust = await check(raw, zone(_dmarc__corp__example=None), sender)
    assert trust == Unavailable("DNS has no answer for _dmarc.corp.example: SERVFAIL")


async def test_a_domain_without_public_dns_is_doubted() -> None:
    """Mail from this machine has no key that anybody could publish; DNS is not asked."""
    for domain in ("localhost", "mail.localhost", "printer.local", "intranet"):
        dns = zone()
        said = reason(await check(signed(), dns, f"ann@{domain}"))
        assert said == f"{domain} is in no public DNS, so nothing it signs can be verified"
        assert dns.asked == []
