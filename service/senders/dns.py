"""TXT records, by a resolver that is passed in, all of one mail's within one budget."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.resolver

#: Seconds for everything one mail asks of DNS: the SMTP client waits for our answer to
#: DATA, and five mails that wait must not keep a sixth out for long.
BUDGET: Final = 8.0
#: Octets of one record. An RSA key of 8192 bits takes 1,500.
MAX_RECORD: Final = 4096
#: Records read of one name.
MAX_RECORDS: Final = 20
_CACHED: Final = 1000


class DnsUnavailable(Exception):
    """DNS gave no answer: a time-out, SERVFAIL, no server. Another time it may."""


class Resolver(Protocol):
    """Where TXT records come from."""

    async def txt(self, name: str) -> tuple[bytes, ...]:
        """Return each TXT record of `name`, its strings joined; none where the name or type isn't there.

        Raises DnsUnavailable where that could not be found out.
        """
        ...


class Dns:
    """The machine's resolver, or the `nameservers` given; answers are cached for their time to live."""

    def __init__(self, nameservers: Iterable[str] = (), port: int = 53, lifetime: float = BUDGET) -> None:
        self._nameservers = list(nameservers)
        self._port = port
        self._lifetime = lifetime
        self._made: dns.asyncresolver.Resolver | None = None

    async def txt(self, name: str) -> tuple[bytes, ...]:
        """Return each TXT record of `name`; raises DnsUnavailable."""
        try:
            answer = await self._resolver().resolve(
                f"{name}.", dns.rdatatype.TXT, raise_on_no_answer=False, search=False
            )
        except (dns.resolver.NXDOMAIN, dns.resolver.YXDOMAIN, dns.name.NameTooLong, dns.name.LabelTooLong):
            return ()
        except (dns.exception.DNSException, OSError) as exc:
            raise DnsUnavailable(f"DNS has no answer for {name}: {type(exc).__name__}") from exc
        records = [item for item in answer.rrset or () if isinstance(item, dns.rdtypes.ANY.TXT.TXT)]
        return tuple(b"".join(record.strings) for record in records[:MAX_RECORDS])

    def _resolver(self) -> dns.asyncresolver.Resolver:
        # Made at the first question: construction does no I/O, and this reads resolv.conf.
        if self._made is None:
            self._made = dns.asyncresolver.Resolver(configure=not self._nameservers)
            if self._nameservers:
                self._made.nameservers = list(self._nameservers)
            self._made.port = self._port
            self._made.lifetime = self._lifetime
            self._made.cache = dns.resolver.LRUCache(_CACHED)
        return self._made


type Answers = Mapping[str, tuple[bytes, ...] | DnsUnavailable]


async def look_up(resolver: Resolver, names: Iterable[str], budget: float) -> Answers:
    """Return what DNS has under each name, asked all at once; after `budget` seconds it is unavailable."""
    asked = {name: asyncio.create_task(_one(resolver, name)) for name in dict.fromkeys(names)}
    if not asked:
        return {}
    try:
        await asyncio.wait(asked.values(), timeout=budget)
        return {
            name: task.result() if task.done() else DnsUnavailable(f"DNS has no answer for {name}: Timeout")
            for name, task in asked.items()
        }
    finally:
        for task in asked.values():
            task.cancel()


async def _one(resolver: Resolver, name: str) -> tuple[bytes, ...] | DnsUnavailable:
    try:
        records = await resolver.txt(name)
    except DnsUnavailable as exc:
        return exc
    return tuple(record for record in records[:MAX_RECORDS] if len(record) <= MAX_RECORD)
