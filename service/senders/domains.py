"""Which domains are one organisation's, and what a domain's DMARC record says of that."""

import functools
import importlib.resources
import re
from dataclasses import dataclass
from typing import Any, Final

import idna
from publicsuffix2 import PublicSuffixList  # type: ignore[import-untyped] # it ships no types

from service.senders.dns import Answers, DnsUnavailable

#: A name that a signature or header may give: letters, digits, hyphens, and underscores
#: for selectors.
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62}))*")
#: RFC 6761 and RFC 6762: these are in no public DNS, so nobody can publish a key there.
_UNPUBLISHED: Final = ("localhost", "localdomain", "local", "invalid")


def domain_of(address: str) -> str:
    """Return the domain of a canonical address."""
    return address.rpartition("@")[2]


def read_domain(text: str) -> str | None:
    """Return a domain in lower case and punycode, or None where it is none."""
    lowered = text.strip().lower().removesuffix(".")
    if not lowered.isascii():
        try:
            lowered = idna.encode(lowered, uts46=True).decode("ascii")
        except idna.IDNAError:
            return None
    return lowered if _NAME.fullmatch(lowered) else None


def published(domain: str) -> bool:
    """Whether the public DNS can know this domain: ``localhost`` and bare names it can't."""
    return "." in domain and domain.rpartition(".")[2] not in _UNPUBLISHED


def organisation(domain: str) -> str:
    """Return the organisational domain: one label below the public suffix (RFC 7489 3.2).

    A suffix that the list doesn't have is its last label. (The library's own answer then
    is that label itself, which would make one organisation of all of ``*.internal``.)
    """
    labels = domain.split(".")
    suffix: Any = _suffixes().get_tld(domain)
    size = str(suffix).count(".") + 1 if suffix else 1
    return ".".join(labels[-(size + 1) :])


def aligned(signer: str, domain: str, *, strict: bool = False) -> bool:
    """Whether a signature by `signer` speaks for mail from `domain` (RFC 7489 3.1.1)."""
    return signer == domain or (not strict and organisation(signer) == organisation(domain))


@functools.cache
def _suffixes() -> Any:
    # authheaders carries a list that is kept; the one in publicsuffix2 is of 2019.
    path = importlib.resources.files("authheaders") / "public_suffix_list.txt"
    with path.open(encoding="utf-8") as lines:
        return PublicSuffixList(lines)


@dataclass(frozen=True, slots=True)
class Policy:
    """A domain's DMARC record, as far as it matters here."""

    policy: str
    strict: bool


def policy_names(domain: str) -> tuple[str, ...]:
    """Return the names under which the DMARC record of `domain` may be."""
    return tuple(dict.fromkeys((f"_dmarc.{domain}", f"_dmarc.{organisation(domain)}")))


def policy_of(domain: str, answers: Answers) -> Policy | DnsUnavailable | None:
    """Return the DMARC policy of `domain`: its own, or else its organisation's, or none."""
    for name in policy_names(domain):
        records = answers[name]
        if isinstance(records, DnsUnavailable):
            return records
        found = [tags for record in records if (tags := _dmarc(record)) is not None]
        # RFC 7489 6.6.3: two records are none.
        if len(found) == 1:
            (tags,) = found
            return Policy(tags.get("p", "none"), strict=tags.get("adkim", "r") == "s")
    return None


def _dmarc(record: bytes) -> dict[str, str] | None:
    text = record.decode("ascii", "replace").lower()
    version, _, rest = text.partition(";")
    if re.fullmatch(r"v\s*=\s*dmarc1", version.strip()) is None:
        return None
    pairs = [(part.partition("=")) for part in rest.split(";")]
    tags: dict[str, str] = {}
    for tag, _, value in pairs:
        tags.setdefault(tag.strip(), value.strip())
    # The policy is quoted as evidence, so only what it may be is taken over.
    if tags.get("p") not in {"none", "quarantine", "reject"}:
        tags["p"] = "none"
    return tags
