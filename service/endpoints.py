"""Where this service is reached, and where it hands its letters over."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

MAX_PORT = 65535
#: What a unix socket's address has room for, in octets (unix(7), less the closing NUL).
MAX_SOCKET_PATH = 107


@dataclass(frozen=True)
class Endpoint:
    """A host and a port to listen on; port 0 takes any free one (tests)."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        """Return host:port as a URL's authority spells it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class MailEndpoint(Endpoint):
    """Where mail is handed in. With a `path` it is a unix socket, and host and port mean nothing."""

    protocol: Literal["smtp", "lmtp"] = "smtp"
    path: Path | None = None

    def __str__(self) -> str:
        """Return what the setting says, ``smtp://`` left out."""
        if self.path is not None:
            return f"{'lmtp://' if self.protocol == 'lmtp' else 'unix:'}{self.path}"
        return f"{'lmtp://' if self.protocol == 'lmtp' else ''}{super().__str__()}"


@dataclass(frozen=True)
class SmtpServer:
    """Where letters leave. `tls`: from the first byte, after STARTTLS, or where offered."""

    host: str
    port: int
    tls: Literal["implicit", "required", "offered"]
    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ImapAccount:
    """A folder to watch; `move_to` names the folder for what was taken, if any."""

    host: str
    port: int
    tls: bool
    username: str
    password: str = field(repr=False)
    folder: str = "INBOX"
    move_to: str | None = None


def is_loopback(host: str) -> bool:
    """Tell whether `host` names this machine only, without asking any resolver."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_endpoint(text: str) -> Endpoint:
    """Return the endpoint that ``host:port`` names. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if not match or int(match[3]) > MAX_PORT:
        raise ValueError(f"{text!r} is not host:port, such as 127.0.0.1:5001")
    host = match[1] or match[2]
    if match[1] or re.fullmatch(r"[0-9.]+", host):
        ipaddress.ip_address(host)  # says itself what it is not
    return Endpoint(host, int(match[3]))


def socket_path(text: str) -> Path:
    """Return the absolute path that ``unix:/path`` names. Raises ValueError."""
    path = text.removeprefix("unix:")
    if not re.fullmatch(r"/[!-~]*[!-.0-~]", path) or len(path) > MAX_SOCKET_PATH:
        raise ValueError(f"{path!r} is not the absolute path of a socket, such as unix:/run/approvals/mail")
    return Path(path)


def read_mail_endpoint(text: str) -> MailEndpoint:
    """Return what ``host:port``, ``smtp://``, ``lmtp://`` or ``unix:/path`` names. Raises ValueError."""
    match = re.fullmatch(r"(?:(smtp|lmtp)://|(unix):)?(.*)", text, re.DOTALL)
    scheme, unix, rest = match.groups() if match else (None, None, text)
    protocol: Literal["smtp", "lmtp"] = "lmtp" if scheme == "lmtp" else "smtp"
    if unix or (scheme == "lmtp" and rest.startswith("/")):
        return MailEndpoint("localhost", 0, protocol, socket_path(f"unix:{rest}"))
    try:
        tcp = read_endpoint(rest)
    except ValueError as exc:
        raise ValueError(f"{exc}; nor lmtp://host:port, lmtp:///path or unix:/path") from exc
    return MailEndpoint(tcp.host, tcp.port, protocol)


def read_smtp_server(text: str) -> SmtpServer:
    """Return the server that an ``smtp://`` or ``smtps://`` URL names. Raises ValueError."""
    # The text is not repeated: it may hold a password.
    problem = "is not an SMTP URL such as smtp://mail.corp.example:587"
    url, port = _split(text, problem)
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    if url.scheme not in {"smtp", "smtps"} or not url.hostname or url.path not in {"", "/"} or url.fragment:
        raise ValueError(problem)
    if not re.fullmatch(r"[!-~]+", text) or port == 0:
        raise ValueError(problem)
    if options.keys() - {"starttls"} or options.get("starttls", "required") != "required":
        raise ValueError("knows one option: ?starttls=required")
    username = None if url.username is None else unquote(url.username)
    password = None if url.password is None else unquote(url.password)
    if "@" in url.netloc and not (username and password):
        raise ValueError("needs both a user and a password, or neither")
    implicit = url.scheme == "smtps"
    # A password goes only over TLS, or to this machine.
    required = "starttls" in options or (password is not None and not is_loopback(url.hostname))
    return SmtpServer(
        host=url.hostname,
        port=port or (465 if implicit else 25),
        tls="implicit" if implicit else "required" if required else "offered",
        username=username,
        password=password,
    )


def read_imap_account(text: str) -> ImapAccount:
    """Return what ``imaps://user:pass@host/INBOX?move=Done`` names. Raises ValueError."""
    # The text is not repeated: it holds a password.
    problem = "is not an IMAP URL such as imaps://user:password@imap.corp.example/INBOX"
    url, port = _split(text, problem)
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    names = [unquote(url.path.removeprefix("/")) or "INBOX", options.get("move", "-")]
    wrong = url.scheme not in {"imap", "imaps"} or not url.hostname or url.fragment or port == 0
    if wrong or not re.fullmatch(r"[!-~]+", text) or options.keys() - {"move"}:
        raise ValueError(problem)
    if not url.username or not url.password:
        raise ValueError("needs a user and a password")
    if not all(re.fullmatch(r"[ !#-\[\]-~]+", name) for name in names):
        raise ValueError("names a folder that is not of printable ASCII")
    if url.scheme == "imap" and not is_loopback(str(url.hostname)):
        raise ValueError("must be imaps: a password goes only over TLS, or to this machine")
    tls = url.scheme == "imaps"
    return ImapAccount(
        host=str(url.hostname),
        port=port or (993 if tls else 143),
        tls=tls,
        username=unquote(url.username),
        password=unquote(url.password),
        folder=names[0],
        move_to=options.get("move"),
    )


def _split(text: str, problem: str) -> tuple[SplitResult, int | None]:
    """Return a URL's parts and its port. Raises ValueError with `problem`, which hides the text."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as exc:
        raise ValueError(problem) from exc
    return url, port
