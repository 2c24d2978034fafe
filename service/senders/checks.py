"""The three ways to check a sender."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from service.senders.arc import Chain, chain_of, verify_chain
from service.senders.dns import Answers, DnsUnavailable, Resolver, look_up
from service.senders.domains import Policy, aligned, domain_of, policy_names, policy_of, published
from service.senders.keys import Refused, key_at
from service.senders.mail import Mail, MalformedMail, read_mail
from service.senders.results import MalformedResults, read_results, speaks_for
from service.senders.signatures import Signature, candidates, covered_by, verify
from service.senders.values import Doubted, Trust, Trusted, Unavailable

type Networks = Sequence[IPv4Network | IPv6Network]
#: Seconds since the epoch.
type Clock = Callable[[], float]

#: The NAME for servers that write Authentication-Results without one: Exchange Online.
WITHOUT_ID: Final = "exchange-online"
_MAX_REASON: Final = 500


class ByAddress:
    """``address``: the signed reply address and From suffice. For development, and said loudly at start."""

    async def check(self, raw: bytes, sender: str, peer: str) -> Trust:
        """Trust `sender`."""
        del raw, peer
        return Trusted("address", f"From is {sender}; nothing else was checked")


class ByServer:
    """``authserv-id=NAME``: the mail server in front of us has checked, and wrote down what it found.

    Only the topmost Authentication-Results is read, since each server adds its own on top
    (RFC 8601 4); whatever a sender wrote is below. The server must remove fields from outside
    that bear its name (RFC 8601 5), and must add one to every mail that it hands on. What a
    signature that it saw pass leaves out counts only where SPF passed too.
    """

    def __init__(self, name: str, peers: Networks) -> None:
        self._name = None if name.lower() == WITHOUT_ID else name.lower()
        self._peers = tuple(peers)

    async def check(self, raw: bytes, sender: str, peer: str) -> Trust:
        """Return what the server in front of us found."""
        if not self._allowed(peer):
            return Doubted("the SMTP client is not among the peers whose Authentication-Results count")
        return await asyncio.to_thread(self._judge, raw, domain_of(sender))

    def _judge(self, raw: bytes, domain: str) -> Trust:
        try:
            mail = read_mail(raw)
            fields = mail.all("authentication-results")
            if not fields:
                return Doubted("there is no Authentication-Results")
            results = read_results(fields[0].value)
            passes, detail = speaks_for(results, domain)
            covered = covered_by(mail, results, domain) if passes else None
        except (MalformedMail, Refused) as exc:
            return Doubted(str(exc))
        except MalformedResults as exc:
            return Doubted(f"the topmost Authentication-Results is malformed: {exc}")
        if results.authserv_id != self._name:
            return Doubted("the topmost Authentication-Results is another server's")
        return Trusted("authserv-id", detail, covered) if passes else Doubted(detail)

    def _allowed(self, peer: str) -> bool:
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._peers)


class BySignature:
    """``verify``: DKIM and DMARC are checked here, and ARC where relays are trusted.

    A valid signature whose domain is aligned with From's is what counts: of the same
    organisation, or the very same where the domain's DMARC record says ``adkim=s``. Without a
    DMARC record it counts too: DMARC says what to do with mail that fails, and this mail does
    not. SPF is left out: behind a relay the client's address is the relay's.

    DNS is asked between two steps off the event loop: which signatures are worth a key, and
    whether they hold. A mail that needs no DNS to be doubted causes none.
    """

    def __init__(self, resolver: Resolver, sealers: frozenset[str], budget: float, now: Clock) -> None:
        self._resolver = resolver
        self._sealers = sealers
        self._budget = budget
        self._now = now

    async def check(self, raw: bytes, sender: str, peer: str) -> Trust:
        """Return whether a signature shows that the mail is from `sender`."""
        del peer
        domain = domain_of(sender)
        if not published(domain):
            return Doubted(f"{domain} is in no public DNS, so nothing it signs can be verified")
        claim = await asyncio.to_thread(_Claim.read, raw, domain, self._sealers, self._now())
        if isinstance(claim, Doubted):
            return claim
        answers = await look_up(self._resolver, claim.names(), self._budget)
        return await asyncio.to_thread(claim.judge, answers)


class _Claim:
    """What of one mail could show that it is from `domain`; `reasons` tell of what could not."""

    def __init__(
        self, mail: Mail, domain: str, signatures: list[Signature], chain: Chain | None, reasons: list[str]
    ) -> None:
        self.mail = mail
        self.domain = domain
        self.signatures = signatures
        self.chain = chain
        self.reasons = reasons
        self.unavailable: list[str] = []

    @classmethod
    def read(cls, raw: bytes, domain: str, sealers: frozenset[str], now: float) -> "_Claim | Doubted":
        """Return what is worth asking DNS about, or why nothing is."""
        try:
            mail = read_mail(raw)
        except MalformedMail as exc:
            return Doubted(str(exc))
        chain = None
        signatures, reasons = candidates(mail, domain, now)
        try:
            chain = chain_of(mail, domain, sealers, now)
        except Refused as exc:
            reasons.append(str(exc))
        if not signatures and chain is None:
            return Doubted(_line(reasons or ["the mail is not signed"]))
        return cls(mail, domain, signatures, chain, reasons)

    def names(self) -> list[str]:
        """Return the DNS names that `judge` needs."""
        keys = [signature.key_name for signature in self.signatures]
        if self.chain:
            keys += [name for name, _ in self.chain.keys]
        return [*keys, *policy_names(self.domain)]

    def judge(self, answers: Answers) -> Trust:
        """Return what the first signature that holds shows, or else the chain."""
        policy = policy_of(self.domain, answers)
        for signature in self.signatures:
            if self._tried(partial(self._verify, signature, answers, policy)):
                said = f"dmarc p={policy.policy}" if isinstance(policy, Policy) else "no dmarc record"
                if isinstance(policy, DnsUnavailable):
                    said = "dmarc record not known"
                algorithm = signature.algorithm.decode()
                detail = f"key {signature.key_name}, {algorithm}, {said}"
                return Trusted("dkim", detail, signature.covered)
        chain = self.chain
        if chain and self._tried(partial(self._verify_chain, chain, answers)):
            return Trusted("arc", chain.detail, chain.covered)
        if self.unavailable:
            return Unavailable(_line(self.unavailable))
        return Doubted(_line(self.reasons))

    def _tried(self, verified: Callable[[], None]) -> bool:
        try:
            verified()
        except Refused as exc:
            self.reasons.append(str(exc))
        except DnsUnavailable as exc:
            self.unavailable.append(str(exc))
        else:
            return True
        return False

    def _verify(self, signature: Signature, answers: Answers, policy: Policy | DnsUnavailable | None) -> None:
        key = key_at(signature.key_name, answers, signature.algorithm, same_identity=signature.same_identity)
        verify(self.mail, signature, key)
        # Between the very same domains no policy can part them, known or not.
        if signature.domain == self.domain:
            return
        if isinstance(policy, DnsUnavailable):
            raise policy
        if not aligned(signature.domain, self.domain, strict=policy is not None and policy.strict):
            raise Refused(f"{signature.domain} signed, and {self.domain} wants strict alignment")

    def _verify_chain(self, chain: Chain, answers: Answers) -> None:
        keys = {name: key_at(name, answers, algorithm, same_identity=True) for name, algorithm in chain.keys}
        verify_chain(self.mail, keys)


def _line(reasons: list[str]) -> str:
    return "; ".join(dict.fromkeys(reasons))[:_MAX_REASON]
