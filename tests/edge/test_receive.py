"""The pipe: `approvals receive` as a mail server runs it, with its exit codes."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from service.demo import free_ports
from service.mailbox import UNCLEAR
from tests.edge.mail_house import ANN, approval, lived, reply_to
from tests.journey.house import Person


async def piped(raw: bytes, *arguments: str, **env: str) -> tuple[int, str]:
    """Run the command with `raw` on stdin; return its exit code and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "receive", *arguments),
        stdin=PIPE,
        stderr=PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), **env},
    )
    _, said = await process.communicate(raw)
    assert process.returncode is not None
    return process.returncode, said.decode()


def at(person: Person) -> str:
    """Return the mailbox's address as the option has it."""
    return f"--mailbox={person.mailbox[0]}:{person.mailbox[1]}"


@pytest.mark.parametrize("scheme", ["", "lmtp://", "unix:"])
async def test_a_piped_reply_decides(tmp_path: Path, scheme: str) -> None:
    """Recipient and sender from the environment, as Postfix gives them; line ends as the pipe has them."""
    [port] = free_ports(1)
    where = f"{scheme}{tmp_path}/mail" if scheme == "unix:" else f"{scheme}127.0.0.1:{port}"
    async with lived(tmp_path, MAILBOX=where) as (_, person):
        letter = await approval(person, "q-1")
        raw = b"From ann@corp.example Mon Nov 23 10:00:00 2026\n" + reply_to(letter, "approve").replace(
            b"\r\n", b"\n"
        )
        env = {"ORIGINAL_RECIPIENT": str(letter["Reply-To"]), "SENDER": ANN, "APPROVALS_MAILBOX": where}
        assert await piped(raw, **env) == (os.EX_OK, "")
        assert (await person.report("q-1", wait=20))["status"] == "approved"


async def test_arguments_go_before_the_environment(tmp_path: Path) -> None:
    """What the alias says in its command is what counts."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "q-2")
        wrong = {"ORIGINAL_RECIPIENT": "nobody@localhost", "SENDER": "", "APPROVALS_MAILBOX": "127.0.0.1:1"}
        arguments = ["-f", ANN, at(person), str(letter["Reply-To"])]
        assert (await piped(reply_to(letter, "decline"), *arguments, **wrong))[0] == os.EX_OK
        assert (await person.report("q-2", wait=20))["status"] == "declined"


@pytest.mark.parametrize("sender", ["", "<>", "MAILER-DAEMON"])
async def test_the_null_sender_by_any_name_is_a_machine(tmp_path: Path, sender: str) -> None:
    """A person's mail has an envelope sender, so this decides nothing."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "q-3")
        done = await piped(reply_to(letter, "approve"), at(person), "-f", sender, str(letter["Reply-To"]))
        assert done == (os.EX_OK, "")
        assert (await person.report("q-3"))["status"] == "pending"


@pytest.mark.parametrize(
    ("top", "env", "decides"),
    [
        (b"", {}, True),
        (b"Return-Path: <ann@corp.example>\r\n", {}, True),
        (b"Received: by x\r\n\tfor y\r\nRETURN-PATH:\r\n <ann@corp.example>\r\n", {}, True),
        (b"Return-Path: <>\r\n", {}, False),
        (b"Return-Path:\r\n", {}, False),
        (b"Return-Path: <>\r\n", {"SENDER": ANN}, True),
        (b"", {"SENDER": ""}, False),
        (b"", {"SENDER": "ann@b\u00fccher.example"}, True),
        (b"", {"SENDER": "\u00e4nn@corp.example"}, True),
        (b"", {"SENDER": "a b"}, True),
    ],
    ids=[
        *("unknown", "Return-Path", "folded", "null there", "empty there", "null there, but given"),
        *("null by the server", "a domain in letters", "a name in letters", "no address"),
    ],
)
async def test_a_sender_that_is_not_known_is_not_the_null_one(
    tmp_path: Path, top: bytes, env: dict[str, str], *, decides: bool
) -> None:
    """Nothing of a person's reply is lost for want of its envelope sender, or for how that is written."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "q-5")
        raw = top + reply_to(letter, "approve")
        assert await piped(raw, at(person), str(letter["Reply-To"]), **env) == (os.EX_OK, "")
        if decides:
            assert (await person.report("q-5", wait=20))["status"] == "approved"
        else:
            assert (await person.report("q-5"))["status"] == "pending"


async def test_what_was_asked_back_today_is_refused_with_the_line_that_says_why(tmp_path: Path) -> None:
    """The mail server bounces it to its sender, who would wait for an answer in vain."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "q-6")
        said = []
        for number in range(2):
            raw = reply_to(letter, f"why {number}?", message_id=f"<{number}@corp.example>")
            said.append(await piped(raw, at(person), "-f", ANN, str(letter["Reply-To"])))
        assert said[0] == (os.EX_OK, "")
        assert (said[1][0], UNCLEAR.partition(" ")[2] in said[1][1]) == (os.EX_DATAERR, True)


async def test_refusals_are_told_by_their_codes(tmp_path: Path) -> None:
    """The mail server bounces what can't succeed, and says why."""
    async with lived(tmp_path) as (_, person):
        letter = await approval(person, "q-4")
        to, raw = str(letter["Reply-To"]), reply_to(letter, "approve")
        code, said = await piped(raw, at(person), "nobody@localhost")
        assert (code, "550 5.1.1" in said) == (os.EX_NOUSER, True)
        assert (await piped(raw, at(person), "r+änn@localhost"))[0] == os.EX_NOUSER
        bomb = b"X-Long: x\r\n" * 10_000 + raw
        assert (await piped(bomb, at(person), "-f", ANN, to))[0] == os.EX_DATAERR
        assert (await piped(raw + b"x\n" * 6_000_000, at(person), "-f", ANN, to))[0] == os.EX_DATAERR
        assert (await piped(raw, at(person)))[0] == os.EX_USAGE
        assert (await piped(raw, "--mailbox=nowhere", to))[0] == os.EX_CONFIG
        assert (await person.report("q-4"))["status"] == "pending"


async def test_a_mailbox_that_is_away_is_a_temporary_failure(tmp_path: Path) -> None:
    """The mail server keeps the message and tries again."""
    [port] = free_ports(1)
    for where in (f"127.0.0.1:{port}", f"lmtp://127.0.0.1:{port}", f"unix:{tmp_path}/none"):
        code, said = await piped(b"approve\n", f"--mailbox={where}", "r+x@localhost")
        assert (code, "does not answer" in said) == (os.EX_TEMPFAIL, True)
