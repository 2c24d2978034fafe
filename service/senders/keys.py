"""Signing keys from DNS (RFC 6376 3.6.1, RFC 8301, RFC 8463), taken apart here.

The library's own reading skips the flags, and does arithmetic with whatever number the
record holds: a modulus of 64 KB keeps the interpreter busy for minutes.
"""

import base64
import binascii
from typing import Any, Final

from dkim import crypto  # type: ignore[import-untyped] # it ships no types
from dkim.util import InvalidTagValueList, parse_tag_value  # type: ignore[import-untyped] # likewise

from service.senders.dns import Answers, DnsUnavailable

MIN_RSA_BITS: Final = 1024
MAX_RSA_BITS: Final = 8192
#: 65537 is what keys have; this lets every exponent through that takes no time.
MAX_EXPONENT: Final = 2**32
_ED25519_OCTETS: Final = 32

#: Algorithm of a signature to type of key. RFC 8301 forbids rsa-sha1.
ALGORITHMS: Final = {b"rsa-sha256": b"rsa", b"ed25519-sha256": b"ed25519"}


class Refused(Exception):
    """This signature or key counts for nothing; the message is the reason."""


def tags_of(value: bytes) -> dict[bytes, bytes]:
    """Return a tag list (RFC 6376 3.2) as a dict. Raises Refused."""
    try:
        tags: Any = parse_tag_value(value)
    except InvalidTagValueList as exc:
        raise Refused("its tags are malformed") from exc
    return {bytes(tag): bytes(found) for tag, found in tags.items()}


def key_at(name: str, answers: Answers, algorithm: bytes, *, same_identity: bool) -> bytes:
    """Return the key record at `name`, checked and written anew, for the library.

    `same_identity` says that the signature's i= is in its very domain, which keys
    flagged t=s demand. Raises Refused, and DnsUnavailable where DNS had no answer.
    """
    records = answers[name]
    if isinstance(records, DnsUnavailable):
        raise records
    if not records:
        raise Refused(f"there is no key at {name}")
    # Beside the key there may be other records, by wildcard.
    keys = [tags for record in records if b"p" in (tags := _tags_or_none(record))]
    if len(keys) != 1:
        raise Refused(f"there are {len(keys)} keys at {name}")
    (tags,) = keys
    public = b"".join(tags[b"p"].split())
    kind = tags.get(b"k", b"rsa").lower()
    if not public:
        raise Refused(f"the key at {name} is revoked")
    if tags.get(b"v", b"DKIM1") != b"DKIM1" or kind != ALGORITHMS[algorithm]:
        raise Refused(f"the key at {name} is of another kind")
    if not {b"*", b"email"} & _list(tags.get(b"s", b"*")) or b"sha256" not in _list(
        tags.get(b"h", b"sha256")
    ):
        raise Refused(f"the key at {name} is not for this")
    flags = _list(tags.get(b"t", b""))
    if b"y" in flags:
        # RFC 6376 3.6.1: as though the mail were not signed.
        raise Refused(f"the key at {name} is flagged as a test")
    if b"s" in flags and not same_identity:
        raise Refused(f"the key at {name} does not sign for subdomains")
    _check_size(name, kind, public)
    return b"v=DKIM1; k=%s; p=%s" % (kind, public)


def _check_size(name: str, kind: bytes, public: bytes) -> None:
    try:
        octets = base64.b64decode(public, validate=True)
    except binascii.Error as exc:
        raise Refused(f"the key at {name} is malformed") from exc
    if kind == b"ed25519":
        if len(octets) != _ED25519_OCTETS:
            raise Refused(f"the key at {name} is malformed")
        return
    try:
        # The library promises no set of errors for octets that are no ASN.1.
        key: Any = crypto.parse_public_key(octets)
        modulus, exponent = int(key["modulus"]), int(key["publicExponent"])
    except Exception as exc:
        raise Refused(f"the key at {name} is malformed") from exc
    if modulus.bit_length() < MIN_RSA_BITS:
        raise Refused(f"the key at {name} is weak: {modulus.bit_length()} bits")
    if modulus.bit_length() > MAX_RSA_BITS or not 3 <= exponent <= MAX_EXPONENT:  # noqa: PLR2004 - RFC 8017 3.1
        raise Refused(f"the key at {name} is out of bounds")


def _tags_or_none(record: bytes) -> dict[bytes, bytes]:
    try:
        return tags_of(record)
    except Refused:
        return {}


def _list(value: bytes) -> set[bytes]:
    return {item.strip().lower() for item in value.split(b":")}
