"""A mail as its header fields, in order and as written, and its body.

Signatures cover octets, so nothing is decoded or unfolded. Where programs differ in
what a field is (a blank before the colon, a line that is no field, a second From),
the mail is refused: one reading was signed, another would be believed.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final

from service.replies import MAX_MESSAGE

#: Octets of the header block, as in `service.replies`.
MAX_HEADER: Final = 64 * 1024
#: Mail through many relays has some 150; matching h= against them takes their product.
MAX_FIELDS: Final = 1000

#: Fields of which a mail has one at most (RFC 5322 3.6, RFC 2045), and which change what is
#: read. A signature covers the lowest of two, while a reader takes the first.
_SINGLE: Final = frozenset(
    {
        "content-transfer-encoding",
        "content-type",
        "date",
        "from",
        "message-id",
        "mime-version",
        "sender",
        "subject",
    }
)

#: What mbox files and some pipes put first, as in `service.replies`.
_MBOX_LINE: Final = re.compile(rb"From [^\s:]+ [^\n]{0,100}\d{4}\r?\n")
_BLANK_LINE: Final = re.compile(rb"\r?\n\r?\n")
_LINE: Final = re.compile(rb"\r?\n")
_FIELD: Final = re.compile(rb"([!-9;-~]+):(.*)", re.DOTALL)
#: Blank lines at the end are dropped so many at a time.
_SLAB: Final = b"\r\n" * 1024


class MalformedMail(Exception):  # noqa: D101 - never leaves this package
    pass


@dataclass(frozen=True, slots=True)
class Field:
    """One header field: its name as written, its value with its folds, without the last line end."""

    written: bytes
    value: bytes

    @property
    def name(self) -> str:
        """The name in lower case."""
        return self.written.decode("ascii").lower()


@dataclass(frozen=True)
class Mail:
    """The fields from the top, and the body with CRLF line ends."""

    fields: tuple[Field, ...]
    body: bytes

    def all(self, name: str) -> tuple[Field, ...]:
        """Return every field of this name, from the top."""
        return tuple(field for field in self.fields if field.name == name)

    @cached_property
    def simple_hash(self) -> bytes:
        """SHA-256 of the body as simple canonicalization (RFC 6376 3.4.3) leaves it."""
        return sha256(_without_blank_end(self.body) + b"\r\n").digest()

    @cached_property
    def relaxed_hash(self) -> bytes:
        """SHA-256 of the body as relaxed canonicalization (RFC 6376 3.4.4) leaves it."""
        body = self.body.replace(b"\t", b" ")
        # Each pass halves every run, at memory speed; an expression takes seconds on short lines.
        while b"  " in body:
            body = body.replace(b"  ", b" ")
        body = _without_blank_end(body.replace(b" \r\n", b"\r\n"))
        return sha256(body + b"\r\n" if body else b"").digest()


def read_mail(raw: bytes) -> Mail:
    """Return `raw` as fields and body. Raises MalformedMail for what is not one plain mail."""
    if len(raw) > MAX_MESSAGE:
        raise MalformedMail(f"the mail is over {MAX_MESSAGE} octets")
    envelope = _MBOX_LINE.match(raw)
    start = envelope.end() if envelope else 0
    blank = _BLANK_LINE.search(raw, start, start + MAX_HEADER + 4)
    end, body = (blank.start(), blank.end()) if blank else (len(raw), len(raw))
    if end - start > MAX_HEADER:
        raise MalformedMail(f"the header is over {MAX_HEADER} octets")
    block = raw[start:end]
    if b"\0" in block or b"\r" in block.replace(b"\r\n", b""):
        raise MalformedMail("the header holds a NUL or a lone CR")
    fields = _fields(block)
    names = [field.name for field in fields]
    if "from" not in names:
        raise MalformedMail("there is no From")
    if twice := sorted(name for name in _SINGLE if names.count(name) > 1):
        raise MalformedMail(f"there are several fields {', '.join(twice)}")
    return Mail(fields, raw[body:].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def _fields(block: bytes) -> tuple[Field, ...]:
    unfolded: list[list[bytes]] = []
    # A line end after the last field, with no blank line and no body, leaves an empty line.
    for line in _LINE.split(block.removesuffix(b"\n").removesuffix(b"\r")):
        if line[:1] in {b" ", b"\t"} and unfolded:
            unfolded[-1].append(line)
        else:
            unfolded.append([line])
    if len(unfolded) > MAX_FIELDS:
        raise MalformedMail(f"there are over {MAX_FIELDS} header fields")
    found = []
    for lines in unfolded:
        match = _FIELD.fullmatch(b"\r\n".join(lines))
        if match is None:
            raise MalformedMail("the header holds a line that is no field")
        found.append(Field(match[1], match[2]))
    return tuple(found)


def _without_blank_end(body: bytes) -> bytes:
    end = len(body)
    while body.endswith(_SLAB, 0, end):
        end -= len(_SLAB)
    while body.endswith(b"\r\n", 0, end):
        end -= 2
    return body[:end]
