"""A mail's bytes as bounded parts, in linear time.

The standard library's parser goes line by line and takes seconds on hostile input
(350 KB of parts, 9 MB of short lines), so the bounds are checked on raw bytes and
bodies are found by regular expressions without backtracking. Nothing here raises
anything but `Exceeded`, on any bytes.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from service.replies.values import Doubt

#: Octets. No mail program comes near any of these.
MAX_MESSAGE: Final = 32 * 1024 * 1024
MAX_HEADER: Final = 64 * 1024
MAX_FIELD: Final = 8 * 1024
MAX_FROM: Final = 1024
MAX_PARTS: Final = 200
MAX_DEPTH: Final = 10
MAX_PART_HEADER: Final = 16 * 1024
#: Octets before a multipart's first part; the sentence for programs without MIME has some 150.
MAX_PREAMBLE: Final = 1024
#: Octets of one text read, after decoding; HTML carries its styles with it.
MAX_TEXT: Final = 64 * 1024
MAX_HTML: Final = 512 * 1024

#: The fields whose values are taken apart: these are bounded by `MAX_FIELD`.
_READ: Final = {
    "content-disposition",
    "content-transfer-encoding",
    "content-type",
    "from",
    "message-id",
    "subject",
}

#: Quoted-printable takes three octets for one.
_MAX_EXPANSION: Final = 3

_BLANK_LINE: Final = re.compile(rb"\r?\n\r?\n")
_LINE: Final = re.compile(rb"\r?\n")
#: What mbox files and some pipes put first. "From :" is a field and no such line.
_MBOX_LINE: Final = re.compile(rb"From [^\s:]+ [^\n]{0,100}\d{4}\r?\n")
_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
_PARAMETER: Final = re.compile(r';\s*([\w!#$%&\'*+.^`|~-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;"]*)')
_TOKEN: Final = re.compile(r"\s*([\w!#$&^.+-]+/[\w!#$&^.+-]+)\s*(?:;|$)")
#: A file's name, as written by RFC 2231 too.
_NAMES: Final = {"name", "name*", "name*0", "name*0*"}
_BOUNDARY: Final = re.compile(rb"[ -~]{0,199}[!-~]")
#: In whatever language: "This is a multi-part message in MIME format."
_FOR_OLD_PROGRAMS: Final = re.compile(rb"\bmime\b|multi-?part", re.IGNORECASE)
_PADDING: Final = re.compile(rb"=[=\s]*")
_NOT_BASE64: Final = bytes(
    set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
)

#: Charsets that mail is met in, by the names mail programs give them. Python knows
#: more, among them codecs that run code-like escapes or take quadratic time.
_CHARSETS: Final = {
    "ansi_x3.4-1968": "ascii",
    "ascii": "ascii",
    "big5": "big5",
    "big5-hkscs": "big5hkscs",
    "cp932": "cp932",
    "cp949": "cp949",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "gb18030": "gb18030",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "hz-gb-2312": "hz",
    "iso-2022-jp": "iso2022_jp_2",
    "iso-2022-kr": "iso2022_kr",
    "iso-8859-6-i": "iso8859-6",
    "iso-8859-8-i": "iso8859-8",
    "koi8-r": "koi8-r",
    "koi8-u": "koi8-u",
    "ks_c_5601-1987": "cp949",
    "macintosh": "mac_roman",
    "shift-jis": "cp932",
    "shift_jis": "cp932",
    "tis-620": "cp874",
    "us-ascii": "ascii",
    "utf-16": "utf-16",
    "utf-16be": "utf-16-be",
    "utf-16le": "utf-16-le",
    "utf-8": "utf-8",
    "utf8": "utf-8",
    "windows-874": "cp874",
    "windows-31j": "cp932",
    "x-mac-roman": "mac_roman",
    "x-sjis": "cp932",
    **{f"iso-8859-{n}": f"iso8859-{n}" for n in (*range(2, 12), *range(13, 17))},
    # As browsers do: bytes that ISO 8859-1 leaves to controls are Windows' quotes.
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    **{f"windows-{n}": f"cp{n}" for n in range(1250, 1259)},
    **{f"cp{n}": f"cp{n}" for n in range(1250, 1259)},
}


class Exceeded(Exception):
    """A bound is exceeded; caught by `read_reply`, never seen outside this package."""

    def __init__(self, doubt: Doubt, detail: str = "") -> None:
        super().__init__(doubt)
        self.doubt = doubt
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Headers:
    """Header fields as written, unfolded, names in lower case; order kept per name."""

    fields: dict[str, tuple[str, ...]]
    malformed: bool = False

    def all(self, name: str) -> tuple[str, ...]:
        """Return every value of `name`, perhaps none."""
        return self.fields.get(name, ())

    def first(self, name: str) -> str:
        """Return the first value of `name`, or an empty string."""
        return next(iter(self.all(name)), "")


@dataclass(frozen=True, slots=True)
class Part:
    """One node of a mail: its headers, its body's octets, its children."""

    headers: Headers
    content_type: str
    parameters: dict[str, str]
    body: bytes
    children: list["Part"] = field(default_factory=list)

    def walk(self) -> Iterator["Part"]:
        """Yield this part and all below it, in order."""
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def attached(self) -> bool:
        """Whether this is a file rather than the mail's own text."""
        disposition = self.headers.first("content-disposition").strip().lower()
        return (
            disposition.startswith("attachment")
            or "filename" in disposition
            or bool(_NAMES & self.parameters.keys())
        )

    def text(self) -> tuple[str, bool]:
        """Return the body as text, at most `MAX_TEXT` octets (`MAX_HTML`: HTML), and whether that is all."""
        limit = MAX_HTML if self.content_type == "text/html" else MAX_TEXT
        data = _transfer_decoded(self.body[: limit * _MAX_EXPANSION], self.headers)
        whole = len(self.body) <= limit * _MAX_EXPANSION and len(data) <= limit
        return decoded(data[:limit], self.parameters.get("charset", "")), whole


def parse(raw: bytes) -> Part:
    """Return the mail as a tree of parts. Raises Exceeded where it breaks a bound."""
    if len(raw) > MAX_MESSAGE:
        raise Exceeded(Doubt.TOO_BIG, f"{len(raw)} octets")
    envelope = _MBOX_LINE.match(raw)
    start = envelope.end() if envelope else 0
    end, body = _split(raw, start, len(raw), MAX_HEADER)
    block = raw[start:end]
    if b"\0" in block or b"\r" in block.replace(b"\r\n", b""):
        raise Exceeded(Doubt.MALFORMED_HEADER, "NUL or a lone CR")
    headers = _headers(block)
    if headers.malformed:
        # Programs differ in whether the header block ends here: so would From and what was signed.
        raise Exceeded(Doubt.MALFORMED_HEADER, "a line that is no field")
    return _Tree(raw).part(headers, body, len(raw), 0)


def decoded(data: bytes, charset: str) -> str:
    """Return `data` as text: by its charset where that is known and fits, else UTF-8, else Windows-1252."""
    known = _CHARSETS.get(charset.strip().strip("\"'").lower())
    for name in filter(None, (known, "utf-8")):
        try:
            return data.decode(name)
        except UnicodeDecodeError as exc:
            # The cap may have cut the last character in two: that is no other charset.
            if len(data) >= MAX_TEXT and exc.start >= len(data) - 4:
                return data[: exc.start].decode(name, "replace")
    return data.decode(known if known not in {None, "ascii", "utf-8"} else "cp1252", "replace")


def parameters(value: str) -> dict[str, str]:
    """Return the parameters of a structured header field, names in lower case; the first of a name counts."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(value):
        text = match[2]
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        found.setdefault(match[1].lower(), text)
    return found


class _Tree:
    """The parts of one mail; `left` more may be found."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.left = MAX_PARTS

    def part(self, headers: Headers, start: int, end: int, depth: int, default: str = "text/plain") -> Part:
        """Return the part whose body's octets are `start` to `end`, with all below it."""
        if depth > MAX_DEPTH:
            raise Exceeded(Doubt.TOO_DEEP, f"over {MAX_DEPTH}")
        value = headers.first("content-type")
        match = _TOKEN.match(value)
        content_type = match[1].lower() if match else default
        given = parameters(value)
        boundary = given.get("boundary", "").encode("utf-8", "surrogateescape")
        if not content_type.startswith("multipart/") or not boundary:
            return Part(headers, content_type, given, self.raw[start:end])
        if not _BOUNDARY.fullmatch(boundary):  # blanks alone are where a signature begins
            raise Exceeded(Doubt.PREAMBLE, "a boundary that nobody writes")
        within = "message/rfc822" if content_type == "multipart/digest" else "text/plain"
        spans = _between(self.raw, boundary, start, end)
        children = [self._child(*span, depth + 1, within) for span in spans]
        return Part(headers, content_type, given, b"", children)

    def _child(self, start: int, end: int, depth: int, default: str) -> Part:
        self.left -= 1
        if self.left < 0:
            raise Exceeded(Doubt.TOO_MANY_PARTS, f"over {MAX_PARTS}")
        header_end, body = _split(self.raw, start, end, MAX_PART_HEADER)
        return self.part(_headers(self.raw[start:header_end]), body, end, depth, default)


def _between(raw: bytes, boundary: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where each part between `boundary` lines starts and ends; an unclosed last part is one."""
    # A literal prefix lets the search skip at memory speed through attachments.
    line = re.compile(rb"\n--" + re.escape(boundary) + rb"(--)?[ \t]*+\r?(?=\n|\Z)")
    opened: int | None = None
    first = True
    for match in line.finditer(raw, max(start - 1, 0), end):
        if first:
            _check_preamble(raw[start : match.start()])
            first = False
        if opened is not None:
            before_cr = match.start() - (raw[match.start() - 1 : match.start()] == b"\r")
            yield opened, max(opened, before_cr)
        opened = None if match[1] else match.end() + 1
        if match[1]:
            return
    if first:
        _check_preamble(raw[start:end])
    if opened is not None and opened <= end:
        yield opened, end


def _check_preamble(preamble: bytes) -> None:
    """Raise Exceeded unless nothing that anybody wrote stands before a multipart's first part.

    Content-Type is mostly not signed: whoever has a copy of a mail could name the boundary of a
    mail that is attached to it, and all that its sender wrote would stand before that.
    """
    text = preamble.strip()
    if text and (len(text) > MAX_PREAMBLE or b"\n--" in b"\n" + text or not _FOR_OLD_PROGRAMS.search(text)):
        raise Exceeded(Doubt.PREAMBLE)


def _split(raw: bytes, start: int, end: int, limit: int) -> tuple[int, int]:
    """Return where the header block that begins at `start` ends and where its body begins."""
    newline = _LINE.match(raw, start, end)
    if newline:  # no header at all
        return start, newline.end()
    blank = _BLANK_LINE.search(raw, start, min(end, start + limit + 4))
    if blank:
        return blank.start(), blank.end()
    if end - start > limit:
        raise Exceeded(Doubt.HEADER_TOO_LONG, f"over {limit} octets")
    return end, end


def _headers(block: bytes) -> Headers:
    malformed = False
    unfolded: list[list[bytes]] = []
    for line in _LINE.split(block):
        if line[:1] in {b" ", b"\t"} and unfolded:
            unfolded[-1].append(line)
        elif line:
            unfolded.append([line])
    collected: dict[str, list[str]] = {}
    for lines in unfolded:
        joined = b"".join(lines)
        match = _FIELD.fullmatch(joined)
        if match is None:
            malformed = True
            continue
        name, value = match[1].decode("ascii").lower(), match[2].decode("utf-8", "surrogateescape").strip()
        # Mail servers write long fields of their own; those that are not read can't harm.
        if len(joined) > MAX_FIELD and name in _READ:
            raise Exceeded(Doubt.FIELD_TOO_LONG, name)
        collected.setdefault(name, []).append(value)
    return Headers({name: tuple(values) for name, values in collected.items()}, malformed)


def _transfer_decoded(data: bytes, headers: Headers) -> bytes:
    encoding = headers.first("content-transfer-encoding").strip().lower()
    if encoding == "quoted-printable":
        return binascii.a2b_qp(data)
    if encoding == "base64":
        # Gateways append what they have to say after the padding: it is read too.
        return b"".join(map(_base64_decoded, _PADDING.split(data)))
    return data


def _base64_decoded(data: bytes) -> bytes:
    clean = data.translate(None, _NOT_BASE64)
    # One character over a group of four holds no whole octet.
    clean = clean[: len(clean) - (len(clean) % 4 == 1)]
    return binascii.a2b_base64(clean + b"=" * (-len(clean) % 4))
