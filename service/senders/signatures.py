"""DKIM signatures (RFC 6376): which are worth asking DNS about, and whether they hold.

The arithmetic is dkimpy's. Around it stands what it lets through or takes too long over:
``l=`` (a signed beginning lets anybody write the end), keys that are weak, revoked or
flagged, an ``x=`` ten hours past, and expressions that go quadratic on blanks.
"""

import base64
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import dkim  # type: ignore[import-untyped] # it ships no types

from service.senders.domains import aligned, read_domain
from service.senders.keys import ALGORITHMS, Refused, tags_of
from service.senders.mail import Field, Mail
from service.senders.results import Results, passed

#: Signatures that are tried; mail carries one to three. Each costs a question to DNS.
MAX_SIGNATURES: Final = 5
#: Octets of one signature field; with an RSA key of 4096 bits it has some 1,500.
MAX_FIELD: Final = 8 * 1024
#: Blanks in a row in one. A fold makes three; the library is quadratic in them.
MAX_BLANKS: Final = 64
#: Names in h=; 30 to 60 are seen.
MAX_SIGNED: Final = 200
#: Digits of a time. Twelve reach the year 33658 (RFC 6376 3.5 says as much).
_MAX_DIGITS: Final = 12
#: Seconds that clocks may differ.
CLOCK_SKEW: Final = 300

_BLANKS: Final = re.compile(rb"[\s]++")
_SIGNATURE_TAG: Final = re.compile(rb"[;\s]b\s*+=")
_OTHER_BODY: Final = "of another body"
_CANONICAL: Final = {b"simple", b"relaxed"}

#: The library logs what it refuses, with octets of the mail; the reason is our answer.
_SILENT: Final = logging.getLogger(f"{__name__}.dkimpy")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature that is worth a key. `index` counts DKIM-Signature fields from the top."""

    index: int
    domain: str
    key_name: str
    algorithm: bytes
    same_identity: bool
    #: The fields whose every instance in the mail it signs: of several, h= counts from below.
    covered: frozenset[str]


def candidates(mail: Mail, domain: str, now: float) -> tuple[list[Signature], list[str]]:
    """Return the signatures that could speak for `domain`, and why others can't."""
    found: list[Signature] = []
    reasons: list[str] = []
    for index in range(len(mail.all("dkim-signature"))):
        if len(found) == MAX_SIGNATURES:
            reasons.append("further signatures were not read")
            break
        try:
            found.append(_candidate(mail, index, domain, now))
        except Refused as exc:
            reasons.append(str(exc))
    return found, reasons


def checked_tags(field: Field, now: float) -> dict[bytes, bytes]:
    """Return a signature's tags: what holds for DKIM and ARC alike is checked. Raises Refused."""
    tags = _bounded_tags(field)
    if tags.get(b"a") not in ALGORITHMS:
        raise Refused("a signature is of an unknown or forbidden algorithm")
    # The library blanks every b= out before it hashes, also one within another tag.
    if len(_SIGNATURE_TAG.findall(field.value)) != 1:
        raise Refused("a signature does not have one b=")
    for tag in (b"t", b"x"):
        if tag in tags and not (tags[tag].isdigit() and len(tags[tag]) <= _MAX_DIGITS):
            raise Refused("a signature's time is malformed")
    if b"x" in tags and int(tags[b"x"]) < now - CLOCK_SKEW:
        raise Refused("a signature has expired")
    return tags


def _bounded_tags(field: Field) -> dict[bytes, bytes]:
    value = field.value
    if len(value) > MAX_FIELD or any(len(run) > MAX_BLANKS for run in _BLANKS.findall(value)):
        raise Refused("a signature is out of bounds")
    return tags_of(value)


def check_scope(tags: dict[bytes, bytes]) -> None:
    """Raise Refused unless the whole body is covered, and From."""
    if b"bh" not in tags:
        raise Refused("a signature does not cover the body")
    if b"l" in tags:
        raise Refused("a signature covers the beginning of the body only (l=)")
    signed = [name.strip().lower() for name in tags.get(b"h", b"").split(b":")]
    if len(signed) > MAX_SIGNED:
        raise Refused("a signature is out of bounds")
    if b"from" not in signed:
        raise Refused("a signature does not cover From")
    header, _, body = tags.get(b"c", b"simple/simple").partition(b"/")
    if not {header, body or b"simple"} <= _CANONICAL:
        raise Refused("a signature is of an unknown canonicalization")


def signer_of(tags: dict[bytes, bytes]) -> tuple[str, str]:
    """Return the signing domain and the name its key is at. Raises Refused."""
    domain = read_domain(tags.get(b"d", b"").decode("ascii", "replace"))
    selector = read_domain(tags.get(b"s", b"").decode("ascii", "replace"))
    name = read_domain(f"{selector}._domainkey.{domain}")
    if domain is None or selector is None or name is None:
        raise Refused("a signature names no domain or no selector")
    return domain, name


def library(kind: Any, mail: Mail) -> Any:
    """Return dkimpy's verifier of `kind` on this mail's fields. It never sees the body.

    It would canonicalize the body once per signature, by expressions that are quadratic on
    blanks and take seconds on short lines. The hash is compared here instead, made once;
    without ``bh=`` the library checks the fields alone, as it does for a seal.
    """
    verifier: Any = kind(None, logger=_SILENT)
    verifier.headers = [[field.written, field.value + b"\r\n"] for field in mail.fields]
    verifier.body = b""
    of_fields: Any = verifier.verify_sig

    def verify_sig(tags: dict[bytes, bytes], *rest: Any) -> Any:
        if b"bh" in tags:
            _check_body(mail, tags)
        return of_fields({tag: value for tag, value in tags.items() if tag != b"bh"}, *rest)

    verifier.verify_sig = verify_sig
    return verifier


def _check_body(mail: Mail, tags: dict[bytes, bytes]) -> None:
    _, _, body = tags[b"c"].partition(b"/") if b"c" in tags else (b"", b"", b"simple")
    made = mail.relaxed_hash if body == b"relaxed" else mail.simple_hash
    if base64.b64decode(b"".join(tags[b"bh"].split()), validate=True) != made:
        # The library's own error: in a chain, only the last relay's hash must still fit.
        raise dkim.ValidationError(_OTHER_BODY)


def verify(mail: Mail, signature: Signature, key: bytes) -> None:
    """Raise Refused, with the reason, unless `signature` holds by `key`. Takes milliseconds."""
    verifier = library(dkim.DKIM, mail)
    who = f"the signature of {signature.domain}"
    try:
        # The library promises no set of errors: a number too long is a ValueError.
        holds: Any = verifier.verify(signature.index, dnsfunc=lambda _name, **_: key)
    except dkim.NaClNotFoundError as exc:
        raise Refused(f"{who} is Ed25519, which is not installed here") from exc
    except dkim.ValidationError as exc:
        raise Refused(f"{who} is {_OTHER_BODY if str(exc) == _OTHER_BODY else 'malformed'}") from exc
    except Exception as exc:
        raise Refused(f"{who} is malformed") from exc
    if holds is not True:
        raise Refused(f"{who} is of other header fields, or by another key")


def covered_by(mail: Mail, results: Results, domain: str) -> frozenset[str] | None:
    """Return the fields that are covered by what another server saw pass for `domain`; None for all.

    Where SPF passed the mail came from a server of the domain's own, as it is. Else it may be a
    copy, of which only what was signed is as it was. A result mostly tells which signature
    it is about; what could be either of two is covered where both cover it. Raises Refused
    for a signature that lets anybody write the body, or that programs may read differently.
    """
    if passed(results, "spf", domain):
        return None
    found = [field for field in mail.all("dkim-signature") if aligned(_signer(field)[0], domain)]
    told = [result.properties for result in passed(results, "dkim", domain)]
    if not found and not told:  # DMARC passed, so it was by SPF
        return None
    if len(found) > MAX_SIGNATURES:
        raise Refused("there are too many signatures")
    covered: frozenset[str] = frozenset()
    for properties in told or [{}]:
        sets = [_covered_soundly(mail, field) for field in found if _is_about(properties, field)]
        covered |= frozenset.intersection(*sets) if sets else frozenset()
    return covered


def _signer(field: Field) -> tuple[str, str]:
    return signer_of(_bounded_tags(field))


def _is_about(properties: Mapping[str, str], field: Field) -> bool:
    """Tell whether a result with these properties can be about this signature."""
    signer, name = _signer(field)
    selector, _, _ = name.partition("._domainkey.")
    identity = properties.get("header.i", signer).rpartition("@")[2]
    made = b"".join(_bounded_tags(field).get(b"b", b"").split()).decode("ascii", "replace").lower()
    return (
        read_domain(properties.get("header.d", signer)) == signer
        and f".{identity}".endswith(f".{signer}")
        and properties.get("header.s", selector) == selector
        and made.startswith(properties.get("header.b", ""))
    )


def _covered_soundly(mail: Mail, field: Field) -> frozenset[str]:
    tags = checked_tags(field, 0.0)  # whether it has expired was for the other server to tell
    check_scope(tags)
    return covered_fields(mail, tags)


def _candidate(mail: Mail, index: int, domain: str, now: float) -> Signature:
    tags = checked_tags(mail.all("dkim-signature")[index], now)
    signer, key_name = signer_of(tags)
    if not aligned(signer, domain):
        raise Refused(f"{signer} signed, which does not speak for {domain}")
    check_scope(tags)
    identity = tags.get(b"i", b"@" + signer.encode()).rpartition(b"@")[2]
    return Signature(
        index=index,
        domain=signer,
        key_name=key_name,
        algorithm=tags[b"a"],
        same_identity=identity.lower() == signer.encode(),
        covered=covered_fields(mail, tags),
    )


def covered_fields(mail: Mail, tags: dict[bytes, bytes]) -> frozenset[str]:
    """Return the fields whose every instance is signed: of several, h= counts from below."""
    signed = Counter(name.strip().lower().decode("ascii", "replace") for name in tags[b"h"].split(b":"))
    return frozenset(name for name, times in signed.items() if times >= len(mail.all(name)))
