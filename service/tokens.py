"""Capabilities: signed links, signed addresses, form nonces. Keys are passed in.

A capability only names a ballot, by its 16-byte key, and proves that we said so;
what a page shows comes from the ballot's own record. Keys are a ring, oldest to
newest: the newest signs, all verify, so that letters in flight outlive a rotation.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Literal

from itsdangerous import BadData, URLSafeSerializer, URLSafeTimedSerializer

from service.domain import Ballot
from service.errors import AddressInvalid, LinkInvalid

#: Ours are under 120 characters; a longer one is not worth verifying.
MAX_TOKEN = 512
#: HMAC-SHA-256 wants its full width; itsdangerous would accept shorter in silence.
MIN_KEY_BYTES = 32
#: How long an open page can be submitted, in seconds, before it asks once more.
NONCE_SECONDS = 600

_ADDRESS_VERSION = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEY_BYTES, _MAC_BYTES = 16, 15
#: Base32 of version byte, ballot key and MAC: no padding, since 32 * 8 bits fill 52 characters of 5.
_ADDRESS_CHARS = 52

type AddressKind = Literal["reply", "bounce"]
_PREFIX: dict[AddressKind, str] = {"reply": "r+", "bounce": "b+"}


@dataclass(frozen=True)
class Capabilities:
    """What one ballot's letter carries: its link, its reply address, its envelope sender."""

    link: str
    reply_to: str
    bounce_to: str


@dataclass(frozen=True)
class AddressClaim:
    """An address that has our form; `Tokens.verify_address` tells whether we signed it."""

    kind: AddressKind
    ballot_key: bytes
    head: int
    mac: bytes


class Tokens:
    """Makes and reads capabilities with one key ring. Raises ValueError for a weak ring."""

    def __init__(self, keys: Sequence[bytes], *, public_url: str, reply_domain: str) -> None:
        if not keys or any(len(key) < MIN_KEY_BYTES for key in keys):
            raise ValueError(f"at least one key, each of {MIN_KEY_BYTES} bytes or more")
        self._keys = tuple(keys)
        self._public_url = public_url.rstrip("/")
        self._reply_domain = reply_domain.lower()
        # itsdangerous defaults to SHA-1 and a salted hash; both are said outright here.
        signer = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        self._links = URLSafeSerializer(list(keys), salt="approvals.link", signer_kwargs=signer)
        self._nonces = URLSafeTimedSerializer(list(keys), salt="approvals.form", signer_kwargs=signer)

    def capabilities(self, ballot: Ballot) -> Capabilities:
        """Return the ballot's capabilities: the same ones each time, for the same ring."""
        key, email, due = ballot.key, ballot.approver.email, ballot.ask.due_at
        return Capabilities(
            link=f"{self._public_url}/decide/{self.link_token(key)}",
            reply_to=self._address("reply", key, email, due),
            bounce_to=self._address("bounce", key, email, due),
        )

    # ── Links ─────────────────────────────────────────────────────────────────

    def link_token(self, ballot_key: bytes) -> str:
        """Return the token of a ballot's link, fit for a URL path."""
        return str(self._links.dumps(spell(ballot_key)))

    def read_link(self, token: str) -> bytes:
        """Return the ballot key that `token` proves. Raises LinkInvalid."""
        if len(token) > MAX_TOKEN or not token.isascii():
            raise LinkInvalid("not of our form")
        try:
            payload = self._links.loads(token)
        except BadData as exc:
            raise LinkInvalid(type(exc).__name__) from exc
        return unspell(payload)

    # ── Form nonces ───────────────────────────────────────────────────────────

    def form_nonce(self, ballot_key: bytes, browser: str) -> str:
        """Return a nonce for one view of a ballot's page in one browser (its cookie's value)."""
        return str(self._nonces.dumps([spell(ballot_key), browser]))

    def nonce_holds(self, nonce: str, ballot_key: bytes, browser: str) -> bool:
        """Tell whether `nonce` came from a recent view of this ballot in this browser."""
        if len(nonce) > MAX_TOKEN or not nonce.isascii():
            return False
        try:
            payload = self._nonces.loads(nonce, max_age=NONCE_SECONDS)
        except BadData:
            return False
        return bool(payload == [spell(ballot_key), browser])

    # ── Addresses ─────────────────────────────────────────────────────────────

    def read_address(self, address: str) -> AddressClaim:
        """Return what an envelope address claims, not yet verified. Raises AddressInvalid.

        Relays may fold the case. The bare token is accepted too, for hosts that
        can route a whole subdomain but not a ``+``.
        """
        if not address.isascii():  # before folding: the Kelvin sign folds to a k
            raise AddressInvalid("not of our form")
        local, _, domain = address.lower().rpartition("@")
        if domain != self._reply_domain:
            raise AddressInvalid("not our domain")
        kind: AddressKind = "bounce" if local.startswith(_PREFIX["bounce"]) else "reply"
        text = local.removeprefix(_PREFIX[kind])
        if len(text) != _ADDRESS_CHARS:
            raise AddressInvalid("not of our form")
        try:
            raw = base64.b32decode(text + "====", casefold=True)
        except binascii.Error as exc:
            raise AddressInvalid("not base32") from exc
        # 52 characters hold 4 bits more than 32 bytes: only one spelling is ours.
        if _base32(raw) != text or raw[0] >> 4 != _ADDRESS_VERSION:
            raise AddressInvalid("not of our form")
        return AddressClaim(kind, raw[1 : 1 + _KEY_BYTES], raw[0], raw[1 + _KEY_BYTES :])

    def verify_address(self, claim: AddressClaim, ballot: Ballot) -> None:
        """Raise AddressInvalid unless we signed this address for this ballot."""
        email, due = ballot.approver.email, ballot.ask.due_at
        for key in self._keys:
            if claim.ballot_key == ballot.key and claim.head == _head(key):
                mac = _mac(key, claim.kind, claim.ballot_key, email, due)
                if hmac.compare_digest(mac, claim.mac):
                    return
        raise AddressInvalid("signature does not match")

    def _address(self, kind: AddressKind, ballot_key: bytes, email: str, due: datetime) -> str:
        key = self._keys[-1]
        raw = bytes([_head(key)]) + ballot_key + _mac(key, kind, ballot_key, email, due)
        return f"{_PREFIX[kind]}{_base32(raw)}@{self._reply_domain}"


@lru_cache(maxsize=1024)  # a ballot's key is spelt a dozen times while its letter goes out
def spell(ballot_key: bytes) -> str:
    """Return the key as 26 lower-case base32 characters, as ids and tokens carry it."""
    return _base32(ballot_key)


def unspell(text: object) -> bytes:
    """Return the key that `spell` spelt, from that one spelling. Raises LinkInvalid."""
    try:
        raw = base64.b32decode(f"{text}======", casefold=True)
    except (binascii.Error, ValueError) as exc:
        raise LinkInvalid("not a ballot key") from exc
    if len(raw) != _KEY_BYTES or spell(raw) != text:
        raise LinkInvalid("not a ballot key")
    return raw


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def _head(key: bytes) -> int:
    """Return the address's first byte: four bits of version, four that hint at the key."""
    return _ADDRESS_VERSION << 4 | hashlib.sha256(b"approvals.keyid" + key).digest()[0] & 0x0F


def _mac(key: bytes, kind: AddressKind, ballot_key: bytes, email: str, due: datetime) -> bytes:
    expiry_ms = (due - _EPOCH) // timedelta(milliseconds=1)
    # The ballot's key has a fixed width and an address holds no NUL, so the parts can't run into one another.
    tag = f"approvals.{kind}.{_ADDRESS_VERSION}"
    message = b"\0".join([tag.encode(), ballot_key, email.encode(), str(expiry_ms).encode()])
    return hmac.digest(key, message, "sha256")[:_MAC_BYTES]
