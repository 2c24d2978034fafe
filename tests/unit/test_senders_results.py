"""The server in front of us is believed about what it says on top, and nobody else is."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.senders import Doubted, Trust, Trusted, senders
from service.senders.results import MalformedResults, read_results

PEERS = tuple(ipaddress.ip_network(text) for text in ("127.0.0.0/8", "::1/128", "10.1.0.0/16"))
_COMMENTS = (
    '(a (b \\) c; dmarc=fail)) mx.corp.example (x) ; (y) dkim/1=fail reason="a; b=" ;\r\n'
    " dmarc=pass header.from=corp.example"
)
_GOOGLE = (
    "mx.corp.example; dkim=pass header.i=@corp.example header.s=s1 header.b=a/b+c=;\r\n"
    "       spf=pass (google.com: domain of ann@corp.example) smtp.mailfrom=ann@corp.example"
)
PASS = "mx.corp.example; dmarc=pass (p=REJECT sp=REJECT dis=NONE) header.from=corp.example"


async def check(*fields: str, peer: str = "127.0.0.1", name: str = "mx.corp.example", top: str = "") -> Trust:
    """Return what ``authserv-id=name`` says of a mail of ann@corp.example with these fields, from the top."""
    lines = "".join(f"Authentication-Results: {text}\r\n" for text in fields)
    raw = f"{top}{lines}From: Ann <ann@corp.example>\r\nSubject: x\r\n\r\napprove\r\n".encode()
    return await senders(f"authserv-id={name}", PEERS).check(raw, "ann@corp.example", peer)


def reason(trust: Trust) -> str:
    """Return why a mail is doubted; it must be."""
    assert isinstance(trust, Doubted), trust
    return trust.reason


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (PASS, "dmarc=pass header.from=corp.example"),
        (
            "MX.corp.example 1;\r\n\tdmarc=pass\r\n header.from=Corp.Example",
            "dmarc=pass header.from=corp.example",
        ),
        (
            '"mx.corp.example"; dmarc = pass header . from = corp.example;',
            "dmarc=pass header.from=corp.example",
        ),
        (
            _COMMENTS,
            "dmarc=pass header.from=corp.example",
        ),
        (
            _GOOGLE,
            "dkim=pass header.i=corp.example",
        ),
        (
            "mx.corp.example; dkim=fail header.d=corp.example; dkim=pass header.d=m.corp.example; dmarc=none",
            "dkim=pass header.d=m.corp.example",
        ),
        (
            "mx.corp.example; dkim=none; spf=pass smtp.mailfrom=corp.example",
            "spf=pass smtp.mailfrom=corp.example",
        ),
    ],
)
async def test_what_the_server_says_is_believed(text: str, detail: str) -> None:
    """Shapes of OpenDMARC, Google, rspamd; comments, quotes and folds are read as RFC 8601 has them."""
    assert await check(text) == Trusted("authserv-id", detail)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mx.corp.example; none", "neither DMARC, nor DKIM or SPF aligned with corp.example, passes"),
        ("mx.corp.example", "neither DMARC"),
        (
            "mx.corp.example; dmarc=fail header.from=corp.example; dkim=pass header.d=corp.example",
            "DMARC: fail",
        ),
        ("mx.corp.example; dmarc=temperror header.from=corp.example", "DMARC: temperror"),
        ("mx.corp.example; dmarc=pass header.from=evil.example", "DMARC passes for another From"),
        ("mx.corp.example; dmarc=pass", "DMARC passes for another From"),
        ("mx.corp.example; dmarc=pass header.from=evil.example header.from=corp.example", "another From"),
        (
            "mx.corp.example; dmarc=pass header.from=corp.example; dmarc=fail",
            "there are several DMARC results",
        ),
        ("mx.corp.example; dkim=pass header.d=evil.example", "neither DMARC"),
        ("mx.corp.example; dkim=pass header.d=evil.example header.i=@corp.example", "neither DMARC"),
        ("mx.corp.example; spf=pass smtp.helo=corp.example", "neither DMARC"),
        ("mx.corp.example; spf=softfail smtp.mailfrom=corp.example", "neither DMARC"),
        ("mx.corp.example; (dmarc=pass header.from=corp.example)", "neither DMARC"),
        (
            'mx.corp.example; spf=pass smtp.mailfrom="a; dmarc=pass header.from=corp.example"@evil.example',
            "neither DMARC",
        ),
        ('mx.corp.example; dkim=fail reason="; dmarc=pass header.from=corp.example"', "neither DMARC"),
        ("mx.corp.example; (dmarc=pass header.from=corp.example", "unclosed comment"),
        ('mx.corp.example; spf=pass smtp.mailfrom="a; dmarc=pass', "unclosed quote"),
        ("mx.corp.example 2; dmarc=pass header.from=corp.example", "malformed: no ;"),
        ("mx.corp.example; none; dmarc=pass header.from=corp.example", "none among results"),
        ("mx.corp.example; dmarc=pass header.from=corp.example junk", "malformed: no ="),
        ("mx.corp.example; dmarc=pass header.from=corp.example)", "malformed: no value"),
        ("mx.corp.example; " + "(" * 50, "comments nest too deep"),
        ("mx.corp.example; dmarc=pass header.from=corp.example (" + "x" * 20000 + ")", "over 16384 octets"),
    ],
)
async def test_anything_less_is_doubted(text: str, expected: str) -> None:
    """No pass, a pass for somebody else, or a field that breaks the grammar: the reason says which."""
    assert expected in reason(await check(text))


async def test_only_the_topmost_field_counts() -> None:
    """A field below is the sender's to write, whatever name it bears."""
    assert isinstance(await check(PASS, "mx.corp.example; dmarc=fail header.from=corp.example"), Trusted)
    assert reason(await check("mx.corp.example; dmarc=fail header.from=corp.example", PASS)) == "DMARC: fail"
    other = reason(await check("relay.example; none", PASS))
    assert other == "the topmost Authentication-Results is another server's"
    assert "malformed" in reason(await check("mx.corp.example; ?", PASS))
    assert reason(await check()) == "there is no Authentication-Results"


async def test_another_name_is_doubted() -> None:
    """The name must be the configured one, whole."""
    for name in ("mx.corp.example.evil.example", "corp.example", "mx"):
        said = reason(await check(PASS.replace("mx.corp.example", name, 1)))
        assert said == "the topmost Authentication-Results is another server's"


async def test_another_peer_is_doubted() -> None:
    """Whoever connects directly may write any field."""
    for peer in ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "", "unix", "10.2.0.1"):
        said = reason(await check(PASS, peer=peer))
        assert said == "the SMTP client is not among the peers whose Authentication-Results count"
    for peer in ("127.0.0.1", "::1", "::ffff:10.1.2.3", "10.1.2.3"):
        assert isinstance(await check(PASS, peer=peer), Trusted)


M365 = (
    "spf=pass (sender IP is 192.0.2.1)\r\n smtp.mailfrom=corp.example; dkim=pass (signature was verified)\r\n"
    " header.d=corp.example;dmarc=pass action=none\r\n header.from=corp.example;compauth=pass reason=100"
)


async def test_exchange_online_is_believed_under_its_own_name() -> None:
    """Its fields bear no name, so that only a setting that says so takes them."""
    said = Trusted("authserv-id", "dmarc=pass header.from=corp.example")
    assert await check(M365, name="exchange-online") == said
    assert await check(f"mx.corp.example; {M365}") == said
    guess = M365.replace("dmarc=pass", "dmarc=bestguesspass")
    assert await check(guess, name="exchange-online") == Trusted(
        "authserv-id", "dkim=pass header.d=corp.example"
    )
    none = "dkim=none (message not signed)\r\n header.d=none;dmarc=none action=none header.from=corp.example;"
    assert "neither DMARC" in reason(await check(none, name="exchange-online"))
    failed = M365.replace("dmarc=pass action=none", "dmarc=fail action=oreject")
    assert reason(await check(failed, name="exchange-online")) == "DMARC: fail"
    assert "another server's" in reason(await check(M365))
    assert "another server's" in reason(await check(PASS, name="exchange-online"))


async def test_two_from_fields_are_doubted() -> None:
    """The server may have checked the one that is not shown."""
    said = reason(await check(PASS, top="From: eve@evil.example\r\n"))
    assert said == "there are several fields from"


async def test_by_address_everything_is_trusted() -> None:
    """The setting for development checks nothing, and its evidence says so."""
    trust = await senders("address").check(b"\xff", "ann@corp.example", "")
    assert trust == Trusted("address", "From is ann@corp.example; nothing else was checked")


def test_an_unknown_way_is_refused() -> None:
    """A misspelt setting does not fall back to any check."""
    for text in ("", "verified", "authserv-id=", "authserv-id", "verify=1", "address="):
        with pytest.raises(ValueError, match="is not verify, address or authserv-id=NAME"):
            senders(text)


@given(
    st.one_of(st.binary(max_size=300), st.text(alphabet='ab=;.()"\\ \r\n1none', max_size=80).map(str.encode))
)
def test_any_octets_are_read_or_refused(value: bytes) -> None:
    """The parser ends on anything with results or its one error."""
    try:
        read = read_results(value)
    except MalformedResults:
        return
    assert all(result.method and result.result for result in read.results)
