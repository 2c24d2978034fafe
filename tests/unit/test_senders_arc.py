"""A relay that is trusted vouches for mail that it changed; no other relay does."""

from collections.abc import Sequence
from typing import Any

import dkim  # type: ignore[import-untyped] # it ships no types
import pytest

from service.senders import Doubted, Trust, Trusted, Unavailable, senders
from tests.unit.test_senders import ANN, MAIL, Key, Zone, reason, rsa, signed

RELAY, OTHER = "list.example", "other.example"
SEEN = "dmarc=pass header.from=corp.example"
HEADERS = [b"from", b"to", b"subject", b"date", b"message-id"]


def sealed(
    mail: bytes,
    relay: str = RELAY,
    seen: str = SEEN,
    key: Key | None = None,
    fields: Sequence[bytes] = HEADERS,
) -> bytes:
    """Return `mail` as `relay` hands it on: with its results, and sealed."""
    results = f"Authentication-Results: {relay}; {seen}\r\n".encode()
    private, name = (key or rsa()).private, relay.encode()
    sealer: Any = dkim.ARC(results + mail)
    sealer.should_not_sign = set()  # the library would leave signatures out, as most do
    made: Any = sealer.sign(b"s1", name, private, name, include_headers=list(fields))
    return b"".join(bytes(line) for line in made) + mail


def listed(mail: bytes) -> bytes:
    """Return a mail as a list sends it on: its subject and body changed, the author's signature broken."""
    return mail.replace(b"Subject: ", b"Subject: [list] ") + b"-- \r\nthe list\r\n"


async def check(raw: bytes, *sealers: str, dns: Zone | None = None) -> Trust:
    """Return what ``verify`` says while `sealers` are trusted."""
    keys = {f"s1._domainkey.{name}": (rsa().record,) for name in ("corp.example", RELAY, OTHER)}
    return await senders("verify", (), dns or Zone(keys), sealers=sealers).check(raw, ANN, "")


async def test_a_trusted_relay_vouches() -> None:
    """The author's signature broke on the way; the relay saw it whole."""
    raw = sealed(listed(signed()))
    assert await check(raw, RELAY) == Trusted("arc", f"{SEEN}, sealed by {RELAY}")
    assert await check(raw, RELAY.upper(), OTHER) == Trusted("arc", f"{SEEN}, sealed by {RELAY}")


async def test_nobody_is_trusted_by_default() -> None:
    """A chain that holds proves who sealed it, and anybody may seal."""
    raw = sealed(listed(signed()))
    assert "of another body" in reason(await check(raw))
    assert f"ARC: {RELAY} is not among the trusted relays" in reason(await check(raw, OTHER))


async def test_a_relay_may_change_what_another_sealed() -> None:
    """Of the messages' signatures only the last must still fit; of the seals every one."""
    raw = sealed(listed(sealed(listed(MAIL), OTHER)), RELAY, "arc=pass; dmarc=fail header.from=corp.example")
    assert await check(raw, RELAY, OTHER) == Trusted("arc", f"{SEEN}, sealed by {RELAY}")
    broken = raw.replace(b"i=1; other.example;", b"i=1; other.example; x=y;")
    assert broken != raw
    assert "ARC: the chain does not hold" in reason(await check(broken, RELAY, OTHER))


async def test_every_relay_of_a_chain_must_be_trusted() -> None:
    """One below could have written the results that the one on top sealed."""
    raw = sealed(sealed(listed(MAIL), OTHER), RELAY, "arc=pass; dmarc=fail header.from=corp.example")
    assert f"ARC: {OTHER} is not among the trusted relays" in reason(await check(raw, RELAY))
    assert await check(raw, RELAY, OTHER) == Trusted("arc", f"{SEEN}, sealed by {RELAY}")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"approve", b"decline", "ARC: the chain does not hold"),
        (b"[list]", b"[lost]", "ARC: the chain does not hold"),
        (b"Ann <", b"Anne <", "ARC: the chain does not hold"),
        (b"ARC-Seal: i=1", b"ARC-Seal: i=2", "ARC: the chain has gaps"),
        (b"ARC-Seal: i=1", b"ARC-Seal: j=1", "ARC: an instance is missing"),
        (b"ARC-Seal: i=1", b"ARC-Seal: i=6", "ARC: an instance is missing"),
        (b"ARC-Seal: ", b"X-Seal: ", "ARC: the chain has gaps"),
        (b"ARC-Seal: i=1;", b"ARC-Seal: i=1; x\r\nARC-Seal: i=1;", "ARC: an instance is there twice"),
        (b"ARC-Seal: i=1;", b"ARC-Seal: i=1; l=3;", "ARC: the chain does not hold"),
    ],
)
async def test_a_broken_chain_is_doubted(old: bytes, new: bytes, expected: str) -> None:
    """Whatever was altered after the seal, the chain is worth nothing."""
    raw = sealed(listed(MAIL))
    assert old in raw
    assert expected in reason(await check(raw.replace(old, new), RELAY))


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ("dmarc=fail header.from=corp.example", "ARC: by the first relay: DMARC: fail"),
        ("dmarc=pass header.from=evil.example", "ARC: by the first relay: DMARC passes for another From"),
        ("none", "ARC: by the first relay: neither DMARC"),
    ],
)
async def test_a_relay_that_saw_nothing_does_not_vouch(seen: str, expected: str) -> None:
    """A seal is not an opinion: the results under it are."""
    assert expected in reason(await check(sealed(listed(MAIL), seen=seen), RELAY))


async def test_a_relay_must_cover_from_and_the_whole_body() -> None:
    """As for DKIM."""
    raw = sealed(listed(MAIL)).replace(b"h=from", b"h=form")
    assert reason(await check(raw, RELAY)) == "a signature does not cover From"
    begun = sealed(listed(MAIL)).replace(b"Message-Signature: i=1;", b"Message-Signature: i=1; l=1;")
    assert "(l=)" in reason(await check(begun, RELAY))


async def test_keys_of_relays_are_held_to_the_same() -> None:
    """No key, a weak one, one that DNS does not give now."""
    raw = sealed(listed(MAIL), key=rsa(512))
    name = f"s1._domainkey.{RELAY}"
    assert reason(await check(raw, RELAY, dns=Zone({name: (rsa(512).record,)}))).endswith("weak: 512 bits")
    assert reason(await check(raw, RELAY, dns=Zone({}))) == f"there is no key at {name}"
    assert isinstance(await check(raw, RELAY, dns=Zone({name: None})), Unavailable)
    assert isinstance(await check(MAIL, RELAY), Doubted)
