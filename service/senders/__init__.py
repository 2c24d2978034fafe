"""Checking senders: is a reply from whom its From names?

::

    values       what it can come to: Trusted, Doubted, Unavailable
    checks       the three ways: by address, by the server in front, by signature
    mail         a mail as fields and body, as written
    results      Authentication-Results, read strictly
    signatures   DKIM
    arc          chains of relays that are trusted
    keys         signing keys
    domains      alignment, DMARC records
    dns          TXT records, in time or not at all

What a check can't show is `Doubted`: the known approver is asked to confirm by link.
Signatures don't cover everything: most signers leave Content-Type out, and To shows
the reply address but needn't, so that the signed reply address stays the key.
"""

import time
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from service.senders.checks import WITHOUT_ID, ByAddress, ByServer, BySignature, Clock
from service.senders.dns import BUDGET, Dns, DnsUnavailable, Resolver
from service.senders.values import Doubted, Senders, Trust, Trusted, Unavailable

__all__ = [
    "BUDGET",
    "WITHOUT_ID",
    "Dns",
    "DnsUnavailable",
    "Doubted",
    "Resolver",
    "Senders",
    "Trust",
    "Trusted",
    "Unavailable",
    "senders",
]


def senders(
    reply_trust: str,
    peers: Sequence[IPv4Network | IPv6Network] = (),
    resolver: Resolver | None = None,
    *,
    sealers: Sequence[str] = (),
    budget: float = BUDGET,
    now: Clock = time.time,
) -> Senders:
    """Return the check that `reply_trust` names: ``address``, ``authserv-id=NAME`` or ``verify``.

    `peers` are the networks of SMTP clients whose Authentication-Results count. The name
    ``exchange-online`` stands for servers that write these fields without one. `sealers` are the
    domains of relays whose ARC seals count; `budget` is in seconds, for all DNS of one mail.
    Nothing is asked or read before the first mail. Raises ValueError for another `reply_trust`.
    """
    way, _, name = reply_trust.partition("=")
    if reply_trust == "address":
        return ByAddress()
    if way == "authserv-id" and name:
        return ByServer(name, peers)
    if reply_trust == "verify":
        trusted = frozenset(sealer.lower() for sealer in sealers)
        return BySignature(resolver or Dns(), trusted, budget, now)
    raise ValueError(f"{reply_trust!r} is not verify, address or authserv-id=NAME")
