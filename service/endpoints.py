"""Where this service can be reached: a host and a port, a unix socket, and for mail in which language."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


def read_mail_endpoint(text: str) -> MailEndpoint:
    """Return what ``host:port``, ``smtp://``, ``lmtp://`` or ``unix:/path`` names. Raises ValueError."""
    match = re.fullmatch(r"(?:(smtp|lmtp)://|(unix):)?(.*)", text, re.DOTALL)
    scheme, unix, rest = match.groups() if match else (None, None, text)
    protocol: Literal["smtp", "lmtp"] = "lmtp" if scheme == "lmtp" else "smtp"
    if unix or (scheme == "lmtp" and rest.startswith("/")):
        if not re.fullmatch(r"/[!-~]*[!-.0-~]", rest) or len(rest) > MAX_SOCKET_PATH:
            raise ValueError(
                f"{text!r} is not the absolute path of a socket, such as unix:/run/approvals/mail"
            )
        return MailEndpoint("localhost", 0, protocol, Path(rest))
    try:
        tcp = read_endpoint(rest)
    except ValueError as exc:
        raise ValueError(f"{exc}; nor lmtp://host:port, lmtp:///path or unix:/path") from exc
    return MailEndpoint(tcp.host, tcp.port, protocol)
