"""ARC chains (RFC 8617): a relay that we trust says that the mail was authentic when it came in.

Forwarders and mailing lists change mail, so the author's signature breaks; what the
first relay saw is in its ARC-Authentication-Results. A chain counts only where *every* relay
that sealed it is named in our settings, since each of them could have written
whatever stands below its seal.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import dkim  # type: ignore[import-untyped] # it ships no types

from service.senders.keys import Refused
from service.senders.mail import Field, Mail
from service.senders.results import MalformedResults, read_results, speaks_for
from service.senders.signatures import (
    check_scope,
    checked_tags,
    covered_by,
    covered_fields,
    library,
    signer_of,
)

#: Relays in one chain, each with two keys to ask for.
MAX_SETS: Final = 5

#: First in each field, as everybody writes it: the library looks for the first ``i=`` anywhere.
_INSTANCE: Final = re.compile(rb"\s*i\s*=\s*([1-9][0-9]?)\s*;")
_NAMES: Final = ("arc-seal", "arc-message-signature", "arc-authentication-results")


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of trusted relays that is worth its keys. `keys` holds names with their algorithms."""

    keys: tuple[tuple[str, bytes], ...]
    detail: str
    #: What the last relay signed of that which was covered when the first one saw it.
    covered: frozenset[str]


def chain_of(mail: Mail, domain: str, sealers: frozenset[str], now: float) -> Chain | None:
    """Return the mail's ARC chain, or None where it has none or no relay is trusted. Raises Refused.

    The first relay's word on `domain` is read here already; whether it is that relay's
    word is for `verify_chain` to say.
    """
    if not sealers or not any(mail.all(name) for name in _NAMES):
        return None
    sets = _sets(mail)
    keys: list[tuple[str, bytes]] = []
    for _, found in sorted(sets.items()):
        seal, message = (checked_tags(found[name], now) for name in _NAMES[:2])
        for tags in (seal, message):
            signer, key_name = signer_of(tags)
            if signer not in sealers:
                raise Refused(f"ARC: {signer} is not among the trusted relays")
            keys.append((key_name, tags[b"a"]))
        check_scope(message)
    _, _, said = sets[1]["arc-authentication-results"].value.partition(b";")
    try:
        results = read_results(said)
    except MalformedResults as exc:
        raise Refused(f"ARC: the first relay's results are malformed: {exc}") from exc
    passes, detail = speaks_for(results, domain)
    if not passes:
        raise Refused(f"ARC: by the first relay: {detail}")
    covered, before = covered_fields(mail, message), covered_by(mail, results, domain)
    if before is not None:
        # Most relays leave signatures out of theirs: whoever has a copy could add one that covers all.
        covered = covered & before if "dkim-signature" in covered else frozenset()
    return Chain(tuple(dict.fromkeys(keys)), f"{detail}, sealed by {signer_of(seal)[0]}", covered)


def verify_chain(mail: Mail, keys: dict[str, bytes]) -> None:
    """Raise Refused, with the reason, unless the chain holds by `keys`."""
    verifier = library(dkim.ARC, mail)
    try:
        # As in DKIM: the library promises no set of errors.
        outcome: Any = verifier.verify(dnsfunc=lambda name, **_: keys[name.decode().rstrip(".").lower()])
    except Exception as exc:
        raise Refused("ARC: the chain is malformed") from exc
    if outcome[0] != dkim.CV_Pass:
        raise Refused("ARC: the chain does not hold")


def _sets(mail: Mail) -> dict[int, dict[str, Field]]:
    sets: dict[int, dict[str, Field]] = {}
    for name in _NAMES:
        for field in mail.all(name):
            match = _INSTANCE.match(field.value)
            instance = int(match[1]) if match else 0
            if not 1 <= instance <= MAX_SETS:
                raise Refused("ARC: an instance is missing or out of bounds")
            if name in sets.setdefault(instance, {}):
                raise Refused("ARC: an instance is there twice")
            sets[instance][name] = field
    if sorted(sets) != list(range(1, len(sets) + 1)) or any(
        len(found) != len(_NAMES) for found in sets.values()
    ):
        raise Refused("ARC: the chain has gaps")
    return sets
