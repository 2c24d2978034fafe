"""The outbox: what a server's answer makes of a letter, and connections that are kept."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio
from aiosmtpd.smtp import SMTP, Envelope, Session

from service.conversation import MAX_TEXT, Accepted, Later, Undeliverable
from service.letters import Letter
from service.outbox import Outbox
from service.settings import SmtpServer
from service.smtpd import Listener
from tests.edge.smtp_house import HANG_UP, SILENCE, SmtpHouse, smtp_house

SIGNED = "r+" + "a2b3c4d5e6f7" * 4 + "abcd@replies.test"
DATA = b"Subject: one\r\n\r\nhello\r\n"
TAKEN = "250 2.0.0 kept"
REQUEST = Letter("request", SIGNED, "ann@corp.test", "<1@replies.test>", DATA)
RECEIPT = Letter("receipt", "", "ann@corp.test", "<2@replies.test>", DATA)

type Make = Callable[..., Outbox]


def _server(house: SmtpHouse) -> SmtpServer:
    return SmtpServer("127.0.0.1", house.port, "offered")


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    """Make outboxes that are closed at the end and leave no task."""
    async with AsyncExitStack() as stack:

        def open_outbox(server: SmtpHouse | SmtpServer, **settings: Any) -> Outbox:
            where = _server(server) if isinstance(server, SmtpHouse) else server
            settings = {
                "fallback_sender": "Approvals <approvals@corp.test>",
                "hostname": "us.test",
            } | settings
            outbox = Outbox(where, **settings)
            stack.push_async_callback(outbox.close)
            return outbox

        yield open_outbox
    assert asyncio.all_tasks() == {asyncio.current_task()}


OURS = ["connect", "EHLO", "MAIL"]
THEIRS = ["RCPT", "DATA", "dot"]


@pytest.mark.parametrize("stage", [*OURS, *THEIRS])
@pytest.mark.parametrize("code", [421, 450, 451, 452])
async def test_a_temporary_refusal_anywhere_means_later(make: Make, stage: str, code: int) -> None:
    """4xx is Later, and says where and what."""
    async with smtp_house(replies={stage: f"{code} 4.3.0 not now"}) as house:
        sent = await make(house).send(REQUEST)
    assert isinstance(sent, Later)
    assert f"{code} 4.3.0 not now" in sent.reason


@pytest.mark.parametrize("stage", OURS)
@pytest.mark.parametrize("code", [500, 530, 550, 554])
async def test_a_refusal_of_us_means_later(make: Make, stage: str, code: int) -> None:
    """5xx before RCPT is no fault of the recipient."""
    async with smtp_house(replies={stage: f"{code} 5.7.1 not you"}) as house:
        sent = await make(house).send(REQUEST)
    assert isinstance(sent, Later)
    assert f"{code} 5.7.1 not you" in sent.reason
    assert not house.letters


@pytest.mark.parametrize("stage", THEIRS)
@pytest.mark.parametrize("code", [500, 550, 552, 554])
async def test_a_refusal_of_recipient_or_letter_is_final(make: Make, stage: str, code: int) -> None:
    """5xx to RCPT, DATA or the letter will not change."""
    async with smtp_house(replies={stage: f"{code} 5.1.1 nobody"}) as house:
        assert await make(house).send(REQUEST) == Undeliverable(code, "5.1.1 nobody")


@pytest.mark.parametrize("stage", [*OURS, *THEIRS])
@pytest.mark.parametrize("reply", [HANG_UP, SILENCE, "what?", "999 what?", "354 what?", "199 what?"])
async def test_no_answer_or_nonsense_means_later(make: Make, stage: str, reply: str) -> None:
    """A server that hangs up, keeps silent or talks nonsense leaves the letter to be tried again."""
    if (stage, reply) == ("DATA", "354 what?"):
        reply = "250 what?"
    async with smtp_house(replies={stage: reply}) as house:
        sent = await make(house, patience=0.1, data_patience=0.1).send(REQUEST)
    assert isinstance(sent, Later)
    assert sent.reason


async def test_no_server_means_later(make: Make) -> None:
    """A port where nobody listens, and a name that nobody has, are Later."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = SmtpServer("127.0.0.1", unused.getsockname()[1], "offered")
        for server in nobody, SmtpServer("no such host", 25, "offered"):
            outbox = make(server)
            sent, probed = await outbox.send(REQUEST), await outbox.probe()
            assert isinstance(sent, Later)
            assert sent.reason.startswith("connect: ")
            assert probed == sent


async def test_a_letter_that_may_be_taken_is_sent_once(make: Make) -> None:
    """The answer to the letter is lost: Later, without a second try on another connection."""
    async with smtp_house(replies={"dot": [TAKEN, HANG_UP]}) as house:
        outbox = make(house)
        assert isinstance(await outbox.send(REQUEST), Accepted)
        sent = await outbox.send(REQUEST)
    assert isinstance(sent, Later)
    assert "after the final dot" in sent.reason
    assert (house.connects, len(house.letters)) == (1, 2)


async def test_the_answer_to_a_letter_has_a_patience_of_its_own(make: Make) -> None:
    """A server that thinks about a letter for longer than about commands is waited for."""
    async with smtp_house() as house:
        house.answer_letters.clear()
        sending = asyncio.create_task(make(house, patience=0.01, data_patience=60).send(REQUEST))
        await house.reached["dot"].wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sending), 0.1)
        house.answer_letters.set()
        assert await sending == Accepted("2.0.0 kept")


async def test_the_octets_arrive_as_they_are(make: Make) -> None:
    """A real server gets the very octets of a letter, dots at line starts included."""
    got: list[Envelope] = []

    class Keep:
        async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
            del server, session
            got.append(envelope)
            return "250 kept"

    data = b"Subject: x\r\n\r\n.\r\n..two\r\n\tth=\r\n\r\n\xff\x00 8-bit \r\n.end\r\n\r\n"
    listener = Listener(Keep(), setting="TEST", host="127.0.0.1", port=0)
    listener.start()
    try:
        outbox = make(SmtpServer("127.0.0.1", listener.port, "offered"))
        letter = Letter("request", SIGNED, "ann@corp.test", "<1@x>", data)
        assert await outbox.send(letter) == Accepted("kept")
        await outbox.close()
    finally:
        listener.stop()
    assert [(e.mail_from, e.rcpt_tos, e.original_content) for e in got] == [(SIGNED, ["ann@corp.test"], data)]


@pytest.mark.parametrize(
    "data", [b"a\n.\nMAIL FROM:<x@y>\r\n", b"a\r.\rb", b"a\r\n.\n\r\n", b".\r\n", b"a\n.\r\nRSET"]
)
async def test_a_letter_can_not_end_early(make: Make, data: bytes) -> None:
    """Line ends that SMTP forbids are mended, so that no letter hides another."""
    async with smtp_house() as house:
        letter = Letter("request", SIGNED, "ann@corp.test", "<1@x>", data)
        assert isinstance(await make(house).send(letter), Accepted)
    (raw,) = house.letters
    body = raw.removesuffix(b".\r\n")
    assert b".\r\n" not in body.replace(b"..\r\n", b"")
    assert b"\n" not in body.replace(b"\r\n", b"")
    assert b"\r" not in body.replace(b"\r\n", b"")


async def test_the_null_sender_is_used_where_it_is_taken(make: Make) -> None:
    """A letter without sender is sent from ``<>``."""
    async with smtp_house() as house:
        assert isinstance(await make(house).send(RECEIPT), Accepted)
    assert "MAIL FROM:<>" in house.commands


async def test_a_refused_null_sender_is_replaced(make: Make) -> None:
    """MailHog answers 550 to ``<>``: the same connection hears our own address."""
    async with smtp_house(replies={"MAIL": ["550 Invalid sender", "250 ok"]}) as house:
        assert isinstance(await make(house).send(RECEIPT), Accepted)
    assert [c for c in house.commands if c.startswith("MAIL")] == [
        "MAIL FROM:<>",
        "MAIL FROM:<approvals@corp.test>",
    ]
    assert house.connects == 1


@pytest.mark.parametrize(
    ("letter", "reply", "tries"), [(RECEIPT, "450", 1), (RECEIPT, "550", 2), (REQUEST, "550", 1)]
)
async def test_only_a_finally_refused_null_sender_is_replaced(
    make: Make, letter: Letter, reply: str, tries: int
) -> None:
    """4xx to ``<>``, or any refusal of another sender, is Later."""
    async with smtp_house(replies={"MAIL": f"{reply} no"}) as house:
        assert await make(house).send(letter) == Later(f"MAIL FROM: {reply} no")
    assert sum(c.startswith("MAIL") for c in house.commands) == tries


@pytest.mark.parametrize(
    "address", ["ann smith@corp.test", "a>b@corp.test", "änn@corp.test", "a@b\r\nRSET", "<a@b>"]
)
async def test_an_address_that_is_no_word_is_not_sent(make: Make, address: str) -> None:
    """A recipient that could be read as a command is undeliverable, and no server hears of it."""
    async with smtp_house() as house:
        letter = Letter("request", SIGNED, address, "<1@x>", DATA)
        sent = await make(house).send(letter)
    assert isinstance(sent, Undeliverable)
    assert not any(c.startswith("RCPT") for c in house.commands)


# ── Connections that are kept ─────────────────────────────────────────────────


async def test_a_connection_is_used_again(make: Make) -> None:
    """Letters one after the other share a connection, refused ones too."""
    async with smtp_house(replies={"RCPT": ["250 ok", "550 no", "250 ok"]}) as house:
        outbox = make(house)
        sent = [type(await outbox.send(REQUEST)) for _ in range(5)]
    assert sent == [Accepted, Undeliverable, Accepted, Accepted, Accepted]
    assert house.connects == 1
    assert house.commands.count("RSET") == 1


async def test_fifty_letters_at_once_stay_in_the_pool(make: Make) -> None:
    """No more connections than allowed, and every letter is sent."""
    async with smtp_house() as house:
        outbox = make(house, connections=4)
        sent = await asyncio.gather(*(outbox.send(REQUEST) for _ in range(50)))
        assert sent == [Accepted("2.0.0 kept")] * 50
        assert house.connects == house.peak == 4


async def test_a_dead_connection_is_replaced_unseen(make: Make) -> None:
    """A server that restarted costs a connection and no letter."""
    async with smtp_house() as house:
        outbox = make(house)
        await outbox.send(REQUEST)
        await house.drop_all()
        assert isinstance(await outbox.send(REQUEST), Accepted)
    assert (house.connects, len(house.letters)) == (2, 2)


@pytest.mark.parametrize("reply", [HANG_UP, SILENCE, "421 4.4.2 idle too long", "nonsense"])
@pytest.mark.parametrize("stage", ["MAIL", "RSET"])
async def test_death_before_mail_is_accepted_is_replaced(make: Make, stage: str, reply: str) -> None:
    """A kept connection that fails at its first command is replaced, and the letter sent."""
    replies: dict[str, str | list[str]] = {
        "MAIL": ["250 ok", reply, "250 ok"] if stage == "MAIL" else "250 ok",
        "RCPT": ["550 no", "250 ok"],
        "RSET": reply if stage == "RSET" else "250 ok",
    }
    async with smtp_house(replies=replies) as house:
        outbox = make(house, patience=0.1)
        assert isinstance(await outbox.send(REQUEST), Undeliverable)
        assert isinstance(await outbox.send(REQUEST), Accepted)
        assert house.connects == 2


async def test_death_after_mail_is_later(make: Make) -> None:
    """A kept connection that fails once MAIL was accepted is not replaced within the attempt."""
    async with smtp_house(replies={"RCPT": ["250 ok", HANG_UP]}) as house:
        outbox = make(house)
        await outbox.send(REQUEST)
        assert isinstance(await outbox.send(REQUEST), Later)
    assert house.connects == 1


async def test_a_fresh_connection_that_dies_is_not_replaced(make: Make) -> None:
    """One attempt opens one fresh connection at most."""
    async with smtp_house(replies={"MAIL": HANG_UP}) as house:
        assert isinstance(await make(house).send(REQUEST), Later)
    assert house.connects == 1


async def test_a_connection_whose_sender_was_refused_is_not_kept(make: Make) -> None:
    """A server that counts letters a connection gets a new one."""
    async with smtp_house(replies={"MAIL": ["452 too many here", "250 ok"]}) as house:
        outbox = make(house)
        assert isinstance(await outbox.send(REQUEST), Later)
        assert isinstance(await outbox.send(REQUEST), Accepted)
    assert house.connects == 2


@pytest.mark.parametrize(("limit", "connects"), [({"max_letters": 2}, 3), ({"max_age": 0}, 5)])
async def test_a_worn_connection_is_replaced(make: Make, limit: dict[str, int], connects: int) -> None:
    """A connection ends with QUIT after its letters or its age."""
    async with smtp_house() as house:
        outbox = make(house, **limit)
        for _ in range(5):
            assert isinstance(await outbox.send(REQUEST), Accepted)
        await outbox.close()
        await house.deserted.wait()
    assert house.connects == house.commands.count("QUIT") == connects


async def test_an_idle_connection_is_closed(make: Make) -> None:
    """A connection that nobody needs says QUIT by itself."""
    async with smtp_house() as house:
        outbox = make(house, idle=0.02)
        await outbox.send(REQUEST)
        await house.deserted.wait()
        assert house.commands[-1] == "QUIT"
        assert isinstance(await outbox.send(REQUEST), Accepted)


# ── Cancelling and closing ────────────────────────────────────────────────────


async def test_a_cancelled_send_drops_its_connection(make: Make) -> None:
    """Nobody else gets a connection in the middle of a letter, and its slot is free again."""
    async with smtp_house() as house:
        outbox = make(house, connections=1)
        house.answer_letters.clear()
        sending = asyncio.create_task(outbox.send(REQUEST))
        await house.reached["dot"].wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        house.answer_letters.set()
        await house.deserted.wait()
        assert isinstance(await outbox.send(REQUEST), Accepted)
        assert house.connects == 2


@pytest.mark.parametrize("stage", ["connect", "EHLO", "MAIL", "RCPT", "DATA", "dot"])
async def test_cancelling_anywhere_leaves_nothing(make: Make, stage: str) -> None:
    """Cancelled at any stage, a send leaves no connection behind."""
    async with smtp_house(replies={stage: SILENCE}) as house:
        sending = asyncio.create_task(make(house).send(REQUEST))
        await house.reached[stage].wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await house.deserted.wait()


async def test_close_says_goodbye(make: Make) -> None:
    """Every kept connection hears QUIT, and later letters are Later."""
    async with smtp_house() as house:
        outbox = make(house, connections=3)
        await asyncio.gather(*(outbox.send(REQUEST) for _ in range(3)))
        await outbox.close()
        await outbox.close()
        await house.deserted.wait()
        assert house.commands.count("QUIT") == 3
        assert await outbox.send(REQUEST) == await outbox.probe() == Later("the outbox is closing")
        assert house.connects == 3


async def test_close_lets_letters_finish(make: Make) -> None:
    """A letter under way is answered before its connection is closed; those that wait are Later."""
    async with smtp_house() as house:
        outbox = make(house, connections=1, grace=60)
        house.answer_letters.clear()
        first, second = (asyncio.create_task(outbox.send(REQUEST)) for _ in range(2))
        await house.reached["dot"].wait()
        closing = asyncio.create_task(outbox.close())
        await asyncio.sleep(0)
        house.answer_letters.set()
        await closing
        assert await first == Accepted("2.0.0 kept")
        assert await second == Later("the outbox is closing")
        await house.deserted.wait()


@pytest.mark.parametrize("stage", ["connect", "EHLO", "MAIL", "dot"])
async def test_close_does_not_wait_for_ever(make: Make, stage: str) -> None:
    """Out of grace, what is under way or waits becomes Later, and the connection is dropped."""
    async with smtp_house(replies={stage: SILENCE}) as house:
        outbox = make(house, connections=1, grace=0.05)
        sending = [asyncio.create_task(outbox.send(REQUEST)) for _ in range(3)]
        await house.reached[stage].wait()
        await outbox.close()
        await house.deserted.wait()
    assert [await each for each in sending] == [Later("the outbox is closing")] * 3


async def test_close_does_not_wait_for_an_answer_to_quit(make: Make) -> None:
    """A server that keeps silent at QUIT is left."""
    async with smtp_house(replies={"QUIT": SILENCE}) as house:
        outbox = make(house, grace=0.05)
        await outbox.send(REQUEST)
        await outbox.close()
        await house.deserted.wait()


# ── What is told ──────────────────────────────────────────────────────────────


async def test_a_probe_sends_nothing(make: Make) -> None:
    """A probe connects, asks NOOP and leaves."""
    async with smtp_house() as house:
        assert await make(house).probe() is None
        await house.deserted.wait()
    assert house.commands == ["EHLO us.test", "NOOP", "QUIT"]


@pytest.mark.parametrize(("stage", "code"), [("connect", 554), ("EHLO", 550), ("NOOP", 421), ("NOOP", 500)])
async def test_a_probe_says_what_is_wrong(make: Make, stage: str, code: int) -> None:
    """A probe that fails says where."""
    async with smtp_house(replies={stage: f"{code} no"}) as house:
        assert await make(house).probe() == Later(f"{stage}: {code} no")


async def test_a_sender_that_is_no_word_is_not_sent(make: Make) -> None:
    """A sender that could be read as a command is a defect of ours, and no server hears of it."""
    async with smtp_house() as house:
        letter = Letter("request", "a> SIZE=1 <b@x.test", "ann@corp.test", "<1@x>", DATA)
        assert await make(house).send(letter) == Later("MAIL FROM: not an address that SMTP can carry")
        assert house.commands == ["EHLO us.test"]


async def test_an_answer_may_quote_queue_ids_but_no_signed_address(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """A long queue id is kept to find the letter by; a signed address is not."""
    caplog.set_level(logging.DEBUG, "approvals")
    queue_id = "0100018c2e3f4a5b-12345678-abcd-ef01-2345-6789abcdef01-000000"
    async with smtp_house(replies={"dot": f"250 Ok {queue_id} from {SIGNED}"}) as house:
        assert await make(house).send(REQUEST) == Accepted(f"Ok {queue_id} from …@replies.test")
    assert SIGNED not in caplog.text


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "dot"])
async def test_signed_parts_are_not_told(make: Make, caplog: pytest.LogCaptureFixture, stage: str) -> None:
    """A server that quotes signed addresses and links puts them neither into outcomes nor into logs."""
    link = "https://approvals.test/d/" + "Ab3_-x." * 20
    caplog.set_level(logging.DEBUG, "approvals")
    async with smtp_house(replies={stage: f"550 no: <{SIGNED}> {link} id 4f5WxY1234z"}) as house:
        sent = await make(house).send(REQUEST)
    for told in repr(sent), caplog.text:
        assert SIGNED.partition("@")[0] not in told
        assert link[30:] not in told
        assert "id 4f5WxY1234z" in told


async def test_a_text_is_one_bounded_line(make: Make) -> None:
    """What a server says can be stored and shown: one line, no control characters, no half characters."""
    text = "550-5.1.1 no\x1b[31m\r\n550-\udcff caf\u00e9 \0\r\n550 " + "long " * 1000
    async with smtp_house(replies={"RCPT": text}) as house:
        sent = await make(house).send(REQUEST)
    assert isinstance(sent, Undeliverable)
    assert sent.text.startswith("5.1.1 no [31m \ufffd caf\u00e9 long long")
    assert len(sent.text) == MAX_TEXT
