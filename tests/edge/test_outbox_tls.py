"""The outbox and what must not be overheard: TLS, and the password."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from service.conversation import Accepted, Later
from service.letters import Letter
from service.outbox import Outbox
from service.settings import SmtpServer
from tests.edge.smtp_house import PASSWORD, USER, Certificates, SmtpHouse, make_certificates, smtp_house

LETTER = Letter(
    "request", "r+a@replies.test", "ann@corp.test", "<1@replies.test>", b"Subject: one\r\n\r\nhi\r\n"
)
#: An address of the loopback that does not look like one: to us a remote host.
REMOTE = "127.1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Make a throwaway certificate once."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def opened(
    house: SmtpHouse,
    tls: Literal["implicit", "required", "offered"],
    *,
    host: str = "127.0.0.1",
    password: str | None = None,
    **settings: Any,
) -> AsyncIterator[Outbox]:
    """Open an outbox to `house`, close it at the end."""
    user = None if password is None else USER
    outbox = Outbox(
        SmtpServer(host, house.port, tls, user, password),
        fallback_sender="approvals@corp.test",
        hostname="us.test",
        **settings,
    )
    try:
        yield outbox
    finally:
        await outbox.close()
        await house.deserted.wait()


@pytest.mark.parametrize("tls", ["implicit", "required", "offered"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_letters_travel_encrypted(
    certificates: Certificates, tls: Literal["implicit", "required", "offered"], host: str
) -> None:
    """With each setting a server that can encrypt is spoken to encrypted, in a connection that is kept."""
    async with (
        smtp_house(implicit=tls == "implicit", tls=certificates.server) as house,
        opened(house, tls, host=host, tls_context=certificates.believer) as outbox,
    ):
        assert [await outbox.send(LETTER) for _ in range(3)] == [Accepted("2.0.0 kept")] * 3
        assert house.connects == 1
        assert house.commands.count("STARTTLS") == (tls != "implicit")
        assert house.encrypted == 3


@pytest.mark.parametrize("tls", ["implicit", "required", "offered"])
async def test_a_certificate_nobody_vouches_for_is_never_a_downgrade(
    certificates: Certificates, tls: Literal["implicit", "required", "offered"]
) -> None:
    """A bad certificate is Later with the reason, and the server hears nothing more."""
    async with (
        smtp_house(implicit=tls == "implicit", tls=certificates.server) as house,
        opened(house, tls) as outbox,
    ):
        for told in await outbox.send(LETTER), await outbox.probe():
            assert isinstance(told, Later)
            assert "the server's certificate does not hold: self-signed certificate" in told.reason
        assert not any(command.startswith("MAIL") for command in house.commands)


async def test_a_certificate_of_another_host_does_not_hold(certificates: Certificates) -> None:
    """A certificate must name the host that we were told."""
    async with (
        smtp_house(tls=certificates.server) as house,
        opened(house, "offered", host=REMOTE, tls_context=certificates.believer) as outbox,
    ):
        sent = await outbox.send(LETTER)
        assert isinstance(sent, Later)
        assert "STARTTLS: the server's certificate does not hold" in sent.reason
        assert not any(command.startswith("MAIL") for command in house.commands)


@pytest.mark.parametrize(("host", "password"), [("127.0.0.1", None), (REMOTE, PASSWORD)])
async def test_required_tls_that_is_not_offered_means_later(host: str, password: str | None) -> None:
    """Where TLS is required, a server without STARTTLS gets neither a letter nor a password."""
    async with (
        smtp_house(extensions=["AUTH PLAIN LOGIN"]) as house,
        opened(house, "offered" if password else "required", host=host, password=password) as outbox,
    ):
        expected = Later("STARTTLS: required here, and the server does not offer it")
        assert await outbox.send(LETTER) == await outbox.probe() == expected
        assert set(house.commands) == {"EHLO us.test"}


@pytest.mark.parametrize("reply", ["454 4.7.0 TLS not available", "500 what?", "hang up", "silence"])
@pytest.mark.parametrize("tls", ["required", "offered"])
async def test_offered_and_refused_tls_means_later(
    certificates: Certificates, tls: Literal["required", "offered"], reply: str
) -> None:
    """A server that offers TLS and then fails at it is not spoken to in the clear."""
    async with (
        smtp_house(tls=certificates.server, replies={"STARTTLS": reply}) as house,
        opened(house, tls, patience=0.1) as outbox,
    ):
        sent = await outbox.send(LETTER)
        assert isinstance(sent, Later)
        assert sent.reason.startswith("STARTTLS: ")
        assert house.commands == ["EHLO us.test", "STARTTLS"]


async def test_a_handshake_that_never_ends_means_later(certificates: Certificates) -> None:
    """A server that agrees to TLS and then says nothing is given up."""
    async with (
        smtp_house(extensions=["STARTTLS"]) as house,
        opened(house, "offered", patience=0.1, tls_context=certificates.believer) as outbox,
    ):
        assert isinstance(await outbox.send(LETTER), Later)


async def test_a_plain_server_is_taken_where_tls_is_only_offered() -> None:
    """MailHog has no TLS: letters go all the same."""
    async with smtp_house() as house, opened(house, "offered") as outbox:
        assert isinstance(await outbox.send(LETTER), Accepted)


@pytest.mark.parametrize("methods", ["PLAIN", "LOGIN", "LOGIN PLAIN CRAM-MD5"])
@pytest.mark.parametrize("encrypted", [True, False])
async def test_the_right_password_signs_in(
    certificates: Certificates, methods: str, *, encrypted: bool
) -> None:
    """The password goes over TLS or to the loopback, by what the server knows, once a connection."""
    async with (
        smtp_house(tls=certificates.server if encrypted else None, extensions=[f"AUTH {methods}"]) as house,
        opened(house, "offered", password=PASSWORD, tls_context=certificates.believer) as outbox,
    ):
        assert await outbox.probe() is None
        assert [await outbox.send(LETTER) for _ in range(2)] == [Accepted("2.0.0 kept")] * 2
        assert sum(command.startswith("AUTH") for command in house.commands) == 2


@pytest.mark.parametrize("methods", ["PLAIN LOGIN", "LOGIN"])
async def test_a_wrong_password_is_tried_once_and_never_told(
    caplog: pytest.LogCaptureFixture, methods: str
) -> None:
    """5xx to AUTH is our own fault; a server that quotes the command puts no secret into a log."""
    caplog.set_level(logging.DEBUG, "approvals")
    async with (
        smtp_house(extensions=[f"AUTH {methods}"]) as house,
        opened(house, "offered", password="wr0ng word") as outbox,
    ):
        sent = await outbox.send(LETTER)
        (command,) = (command for command in house.commands if command.startswith("AUTH"))
    assert isinstance(sent, Later)
    assert sent.reason.startswith("AUTH: 535 5.7.8 no")
    assert command.split()[2] not in repr(sent) + caplog.text


@pytest.mark.parametrize(
    ("reply", "reason"),
    [("454 4.7.0 later", "AUTH: 454 4.7.0 later"), ("504 5.5.4 unknown", "AUTH: 504 5.5.4 unknown")],
)
async def test_a_refusal_to_sign_in_means_later(reply: str, reason: str) -> None:
    """4xx and 5xx to AUTH are Later."""
    async with (
        smtp_house(extensions=["AUTH PLAIN LOGIN"], replies={"AUTH": reply}) as house,
        opened(house, "offered", password=PASSWORD) as outbox,
    ):
        assert await outbox.send(LETTER) == Later(reason)
        assert not house.letters


@pytest.mark.parametrize("extensions", [[], ["AUTH GSSAPI NTLM"]])
async def test_no_way_to_sign_in_means_later(extensions: list[str]) -> None:
    """A server without a method we know is not sent to unsigned."""
    async with (
        smtp_house(extensions=extensions) as house,
        opened(house, "offered", password=PASSWORD) as outbox,
    ):
        assert await outbox.send(LETTER) == Later("AUTH: the server offers no way to sign in that we know")
        assert not house.letters


async def test_a_plain_answer_where_tls_is_spoken_means_later(certificates: Certificates) -> None:
    """TLS from the first byte to a port that speaks plain SMTP, and the reverse, are Later."""
    async with (
        smtp_house() as plain,
        smtp_house(implicit=True, tls=certificates.server) as encrypted,
        opened(plain, "implicit", patience=1) as first,
        opened(encrypted, "offered", patience=0.1) as second,
    ):
        assert isinstance(await first.send(LETTER), Later)
        assert isinstance(await second.send(LETTER), Later)
