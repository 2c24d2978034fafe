"""The resolver, against a server that answers by UDP on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast, override

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from service.senders import Dns, DnsUnavailable, Trusted, Unavailable, senders
from tests.unit.test_senders import ANN, rsa, signed

RECORD = rsa().record.decode()
ZONE = {
    "s1._domainkey.corp.example.": [f'"{RECORD[:200]}" "{RECORD[200:]}"'],
    "two.example.": ['"one"', '"two" "three"'],
}
FAILS = "fails.example."
SILENT = "silent.example."


class Server(asyncio.DatagramProtocol):
    """Answers TXT from `ZONE`, SERVFAIL for one name, and nothing for another. `asked` counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.transport: asyncio.DatagramTransport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    @override
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text()
        if name.endswith(SILENT):
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if name.endswith(FAILS):
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif name in ZONE:
            answer.answer.append(dns.rrset.from_text(name, 300, "IN", "TXT", *ZONE[name]))
        elif not name.startswith("empty."):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        if self.transport:
            self.transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def running() -> AsyncIterator[tuple[Server, int]]:
    """Run a server and yield it with its port."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    try:
        yield server, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def test_records_are_joined_and_kept() -> None:
    """A record's strings are one record; an answer is not asked for again within its time to live."""
    async with running() as (server, port):
        resolver = Dns(["127.0.0.1"], port)
        assert sorted(await resolver.txt("two.example")) == [b"one", b"twothree"]
        assert sorted(await resolver.txt("two.example")) == [b"one", b"twothree"]
        assert server.asked == 1


async def test_what_is_not_there_is_no_record() -> None:
    """Neither a name that doesn't exist, nor one without TXT, nor one that can't be a name, is a failure."""
    async with running() as (_, port):
        resolver = Dns(["127.0.0.1"], port)
        for name in ("missing.example", "empty.example", "a." * 130 + "example", "x" * 70 + ".example"):
            assert await resolver.txt(name) == ()


async def test_what_does_not_answer_is_unavailable() -> None:
    """SERVFAIL, silence and nobody there are the same: later."""
    async with running() as (_, port):
        resolver = Dns(["127.0.0.1"], port, lifetime=0.3)
        for name in ("fails.example", "silent.example"):
            with pytest.raises(DnsUnavailable, match=f"DNS has no answer for {name}"):
                await resolver.txt(name)
    with pytest.raises(DnsUnavailable, match=r"DNS has no answer for two\.example"):
        await Dns(["127.0.0.1"], port, lifetime=0.3).txt("two.example")


async def test_a_signed_mail_is_checked_through_it() -> None:
    """From the mail's octets to the key on the wire."""
    async with running() as (_, port):
        checked = senders("verify", (), Dns(["127.0.0.1"], port), budget=0.3)
        trust = await checked.check(signed(), ANN, "")
        expected = "key s1._domainkey.corp.example, rsa-sha256, no dmarc record"
        assert trust == Trusted("dkim", expected)
        for domain in ("fails.example", "silent.example"):
            raw = signed(domain=domain.encode())
            assert isinstance(await checked.check(raw, f"ann@{domain}", ""), Unavailable)
