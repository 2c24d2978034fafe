"""A message from a pipe to the running mailbox, for mail servers that can't route to it.

The pipe speaks SMTP or LMTP to the mailbox instead of deciding by itself: it needs no
engine, no key and no second copy of the rules, and an embedded engine has one process.
What it says is an exit code of sysexits.h, which every mail server knows:

=====  ===========  ===================================================
0      EX_OK        taken: what it decided is durable
64     EX_USAGE     no recipient was given
65     EX_DATAERR   refused: it can't be read, is too big, or was asked back before
67     EX_NOUSER    no such address
75     EX_TEMPFAIL  mailbox, engine or DNS are away: keep it, try again
=====  ===========  ===================================================
"""

import os
import re
import smtplib
import socket
from dataclasses import dataclass
from typing import BinaryIO

from service.endpoints import MailEndpoint
from service.smtpd import DATA_SIZE_LIMIT

#: Seconds for each answer of the mailbox, which itself waits for the engine and DNS.
TIMEOUT = 60.0
#: How mail servers name the null sender to programs.
_NULL = {"", "<>", "MAILER-DAEMON"}
#: Stands for a sender that is not known or can't be written; the mailbox asks only whether there is one.
_SOMEBODY = "unknown@localhost"
_PLAIN = re.compile(r"[!-~]+")
_MAX_HEADER = 64 * 1024
_RETURN_PATH = re.compile(rb"(?im)^return-path[ \t]*:(?:[ \t]|\r?\n[ \t])*<?([^>\s]*)")
_PERMANENT = 500


@dataclass(frozen=True)
class Handed:
    """What became of a message: the exit code, and one line for the mail server's log."""

    exit_code: int
    problem: str = ""


def hand_in(where: MailEndpoint, sender: str | None, recipient: str, message: BinaryIO) -> Handed:
    """Give the message to the mailbox at `where`; whatever can't be told is 75, so nothing is lost.

    Where `sender` is None the message's Return-Path tells it; without one it is unknown, which
    is not the null sender: that one's mail is a machine's.
    """
    if not recipient:
        return Handed(os.EX_USAGE, "no recipient; give it as an argument or in ORIGINAL_RECIPIENT")
    if not _PLAIN.fullmatch(recipient):
        return Handed(os.EX_NOUSER, "no such address")
    raw = message.read(DATA_SIZE_LIMIT + 1)
    if len(raw) > DATA_SIZE_LIMIT:
        return Handed(os.EX_DATAERR, "the message is too big")
    raw = re.sub(rb"\r?\n", b"\r\n", raw)
    sender = return_path(raw) if sender is None else sender
    mail_from = "" if sender in _NULL else sender if sender and _PLAIN.fullmatch(sender) else _SOMEBODY
    return _delivered(where, mail_from, recipient, raw)


def return_path(raw: bytes) -> str | None:
    """Return the envelope sender as the last server wrote it down; None where it did not."""
    head = re.split(rb"\r?\n\r?\n", raw[:_MAX_HEADER], maxsplit=1)[0]
    found = _RETURN_PATH.search(head)
    return found[1].decode("utf-8", "replace") if found else None


def _delivered(where: MailEndpoint, mail_from: str, recipient: str, raw: bytes) -> Handed:
    try:
        with _connected(where) as client:
            client.sendmail(mail_from, [recipient], raw)
    except smtplib.SMTPRecipientsRefused as exc:
        code, text = next(iter(exc.recipients.values()))
        return _refused(code, text, os.EX_NOUSER)
    except smtplib.SMTPResponseException as exc:
        # 5xx to the connection or to MAIL FROM is about us, but for a size that was declared.
        about_message = isinstance(exc, smtplib.SMTPDataError) or exc.smtp_code == 552  # noqa: PLR2004
        return _refused(exc.smtp_code, exc.smtp_error, os.EX_DATAERR if about_message else os.EX_TEMPFAIL)
    except (OSError, smtplib.SMTPException) as exc:
        return Handed(os.EX_TEMPFAIL, f"the mailbox at {where} does not answer: {exc}")
    return Handed(os.EX_OK)


def _refused(code: int, text: bytes | str, permanent: int) -> Handed:
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return Handed(permanent if code >= _PERMANENT else os.EX_TEMPFAIL, f"{code} {said}")


def _connected(where: MailEndpoint) -> smtplib.SMTP:
    if where.protocol == "lmtp":
        return smtplib.LMTP(str(where.path or where.host), where.port, "localhost", timeout=TIMEOUT)
    if where.path is None:
        return smtplib.SMTP(where.host, where.port, "localhost", TIMEOUT)
    return _UnixSMTP(str(where.path))


class _UnixSMTP(smtplib.SMTP):
    """SMTP on a unix socket, which the library has for LMTP alone."""

    def __init__(self, path: str) -> None:
        self._path = path
        super().__init__("localhost", local_hostname="localhost", timeout=TIMEOUT)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        del host, port
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout)
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock
