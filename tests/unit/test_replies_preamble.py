"""Whoever rewrites Content-Type, which few sign, does not choose which of a mail's parts is the reply."""

import time

import pytest

from service.replies import Doubt, Reading, Reply, Sent, Unverified, read_reply
from tests.fixtures.replies.mails import FROM, LETTER, REPLY_TO, SUBJECT

SENT = Sent(subject=SUBJECT, text=LETTER, reply_address=REPLY_TO, own_addresses=frozenset({FROM}))
ATTACHED = (
    "--outer\nContent-Type: text/plain\n\nDecline\n\n--outer\nContent-Type: message/rfc822\n\n"
    'From: Bob <bob@corp.example>\nContent-Type: multipart/mixed; boundary="bobs"\n\n'
    "--bobs\n\nApprove\n--bobs--\n\n--outer--\n"
)
PART = "--b\n\nApprove\n--b--\n"


def read(body: str, boundary: str = "b") -> Reading:
    """Read a multipart with this body, as it comes by SMTP and as a pipe has it."""
    raw = f'From: ann@corp.example\nContent-Type: multipart/mixed; boundary="{boundary}"\n\n{body}'.encode()
    reading = read_reply(raw, SENT)
    assert read_reply(raw.replace(b"\n", b"\r\n"), SENT) == reading
    return reading


@pytest.mark.parametrize(
    "preamble",
    [
        "",
        "\n",
        " \n\t\n",
        "This is a multi-part message in MIME format.\n",
        "\nThis is a MIME-encapsulated message\n\n",
        (
            "This message is in MIME format.  Since your mail reader does not understand\n"
            "this format, some or all of this message may not be legible.\n\n"
        ),
        "Dies ist eine mehrteilige Nachricht im MIME-Format.\n",
        "This is an OpenPGP/MIME signed message (RFC 4880 and 3156)\n",
    ],
)
def test_the_sentence_for_old_programs_may_stand_first(preamble: str) -> None:
    """It is what mail programs write before the first part, if anything."""
    reading = read(preamble + PART)
    assert isinstance(reading, Reply)
    assert reading.verdict == "approve"


@pytest.mark.parametrize(
    ("body", "boundary"),
    [
        (ATTACHED, "bobs"),
        ("Decline\n\n" + PART, "b"),
        ("Decline, said the pantomime.\n\n" + PART, "b"),
        ("In MIME format\n--other\n\nDecline\n" + PART, "b"),
        ("--other\n\nDecline, in MIME\n" + PART, "b"),
        ("mime\n" * 1000 + PART, "b"),
        ("Decline\n", "b"),
        ("Decline\n\n-- \n\nApprove\n", " "),
        ("-- \n\nApprove\n", " "),
        ("--outer\n\nDecline\n--outer--\n\nApprove\n--outer----\n", "outer--"),
        ("--outer \n\nApprove\n", "outer "),
        (
            '--b\nContent-Type: multipart/mixed; boundary="c"\n\nDecline\n--c\n\nApprove\n--c--\n--b--\n',
            "b",
        ),
    ],
    ids=[
        "of an attached mail",
        "words",
        "words that hold others",
        "lines of another boundary",
        "lines of another first",
        "too long",
        "no delimiter",
        "a blank as boundary",
        "a blank, and nothing before",
        "an end as boundary",
        "a blank at its end",
        "in an inner multipart",
    ],
)
def test_anything_else_before_the_first_part_is_refused(body: str, boundary: str) -> None:
    """No mail program writes such a mail, so a server can refuse it."""
    reading = read(body, boundary)
    assert isinstance(reading, Unverified)
    assert (reading.doubt, reading.refusable) == (Doubt.PREAMBLE, True)


def test_an_empty_boundary_is_none() -> None:
    """Nothing is read of such a mail: its sender is asked."""
    reading = read("--\n\nApprove\n----\n", "")
    assert isinstance(reading, Reply)
    assert reading.verdict is None


@pytest.mark.parametrize("line", ["\n", " ", "mime\n", "\n--", "--b"])
def test_a_long_preamble_takes_no_time(line: str) -> None:
    """It is looked at in one go, however long."""
    begun = time.perf_counter()
    read(line * 1_000_000 + "\n" + PART)
    assert time.perf_counter() - begun < 2
