"""Raw bytes into parts and text, in linear time and never an exception.

The inbox shows whatever was sent to it, so the parser has a bound for each
thing that a hostile message can have too much of, and a reading for each
thing that is broken. What it makes of a message is for the eyes of a developer;
nothing is decided by it.
"""

import binascii
import re
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.header import decode_header
from email.utils import getaddresses

import msgspec

#: Past these, header lines stay in the source and parts stay in their parent's body.
MAX_HEADER_OCTETS, MAX_DEPTH, MAX_PARTS = 64 * 1024, 8, 100
#: One header's characters that are decoded and shown.
MAX_SHOWN = 8 * 1024

#: Charsets that mail has. Others of Python's, such as punycode, take quadratic time.
_CHARSET = re.compile(
    r"(utf-?(8|16|32)(-?[bl]e)?|(us-)?ascii|iso-?8859-?\d+|latin-?1|(windows|cp)-?\d+|koi8-[ru]"
    r"|gb(k|2312|18030)|big5(-?hkscs)?|shift[-_]jis|sjis|euc-(jp|kr)|iso-2022-(jp|kr)[-\d]*|macintosh)",
    re.IGNORECASE,
)
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(r"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
_FIELD_START = re.compile(rb"[!-9;-~]+[ \t]*:")


class Part(msgspec.Struct, frozen=True):
    """A message or a part of one.

    `fields` are name and unfolded value in their order, still encoded; `body`
    is as it was received; `size` is octets of both. `parts` is None unless
    this is a multipart.
    """

    fields: tuple[tuple[str, str], ...]
    body: bytes
    size: int
    parts: "tuple[Part, ...] | None" = None

    def all(self, name: str) -> list[str]:
        """Return every value of a header, in order."""
        return [value for field, value in self.fields if field.lower() == name]

    def first(self, name: str) -> str:
        """Return a header's first value, or an empty string."""
        return next(iter(self.all(name)), "")

    def content_type(self) -> str:
        """Return the media type in lower case; ``text/plain`` where there is none."""
        return self.first("content-type").partition(";")[0].strip().lower() or "text/plain"


def parse(raw: bytes) -> Part:
    """Return the message's parts; whatever is no MIME is one part."""
    return _parse(raw, 0, [MAX_PARTS])


def _parse(raw: bytes, depth: int, left: list[int]) -> Part:
    head, body = _split(raw)
    part = Part(_fields(head), body, len(raw))
    boundary = _parameter(part.first("content-type"), "boundary")
    if not (part.content_type().startswith("multipart/") and boundary and depth < MAX_DEPTH):
        return part
    found: list[Part] = []
    for piece in _pieces(body, boundary.encode("utf-8", "replace")):
        if not left[0]:
            break
        left[0] -= 1
        found.append(_parse(piece, depth + 1, left))
    return Part(part.fields, body, len(raw), tuple(found))


def _split(raw: bytes) -> tuple[bytes, bytes]:
    """Return header block and body; a message without headers is all body."""
    if raw.startswith((b"\r\n", b"\n")):
        return b"", raw[2 if raw.startswith(b"\r\n") else 1 :]
    if _FIELD_START.match(raw[:1000]) is None:
        return b"", raw
    blank = _BLANK_LINE.search(raw)
    return (raw, b"") if blank is None else (raw[: blank.start()], raw[blank.end() :])


def _fields(head: bytes) -> tuple[tuple[str, str], ...]:
    lines: list[list[str]] = []
    for line in head[:MAX_HEADER_OCTETS].decode("utf-8", "replace").split("\n"):
        text = line.removesuffix("\r")
        if text.startswith((" ", "\t")) and lines:
            lines[-1].append(text)
        else:
            lines.append([text])
    matches = (_FIELD.fullmatch("".join(line)) for line in lines)
    return tuple((match[1], match[2].strip()) for match in matches if match)


def _parameter(value: str, name: str) -> str:
    match = re.search(rf';\s*{name}\s*=\s*(?:"([^"]{{1,200}})"|([^\s;"]{{1,200}}))', value, re.IGNORECASE)
    return (match[1] or match[2]) if match else ""


def _pieces(body: bytes, boundary: bytes) -> Iterator[bytes]:
    """Yield what stands between boundary lines, without preamble and epilogue."""
    line = re.compile(rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    start: int | None = None
    for match in line.finditer(body):
        if start is not None:
            yield body[start : match.start()]
        if match[1]:
            return
        start = match.end() + (2 if body.startswith(b"\r\n", match.end()) else 1)
    if start is not None:
        # Cut off before its end: what there is, is shown.
        yield body[start:]


def leaf(part: Part, media_type: str) -> Part | None:
    """Return the first part of this type that is not an attachment."""
    if part.parts is None:
        attached = part.first("content-disposition").lower().startswith("attachment")
        return part if part.content_type() == media_type and not attached else None
    return next((found for each in part.parts if (found := leaf(each, media_type))), None)


def text(part: Part) -> str:
    """Return a part's body as text, with line feeds, by its encoding and charset or the next best."""
    body = part.body
    match part.first("content-transfer-encoding").lower():
        case "quoted-printable":
            body = binascii.a2b_qp(body)
        case "base64":
            body = _base64(body)
    decoded = decode(body, _parameter(part.first("content-type"), "charset"))
    return decoded.replace("\r\n", "\n")


def _base64(body: bytes) -> bytes:
    digits = re.sub(rb"[^A-Za-z0-9+/]", b"", body)
    # A last group of one digit has no octet; missing padding is put back.
    digits = digits[: len(digits) - (len(digits) % 4 == 1)]
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def decode(octets: bytes, charset: str | None) -> str:
    """Return text in any case: an unknown charset is read as UTF-8, bad octets become U+FFFD."""
    if charset and _CHARSET.fullmatch(charset):
        try:
            return octets.decode(charset, "replace")
        except (LookupError, ValueError):
            pass
    return octets.decode("utf-8", "replace")


def words(value: str) -> str:
    """Return a header's value with its encoded words decoded, on one line, cut at `MAX_SHOWN`."""
    value = value[:MAX_SHOWN]
    try:
        chunks = decode_header(value)
    except HeaderParseError:
        chunks = [(value, None)]
    joined = "".join(chunk if isinstance(chunk, str) else decode(chunk, charset) for chunk, charset in chunks)
    return " ".join("".join(char if char.isprintable() else " " for char in joined).split())


def addresses(value: str) -> list[tuple[str, str]]:
    """Return display name and address of each mailbox in a header's value, as far as it is shown."""
    return [(words(name), address) for name, address in getaddresses([value[:MAX_SHOWN]]) if "@" in address]
