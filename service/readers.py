"""How each setting's value is read: text in, a value out, ValueError where it is none.

The error's text follows the setting's name in the line that stops the start, and
never repeats what may be a secret.
"""

import ipaddress
import re
from datetime import timedelta
from email.errors import HeaderParseError, ObsoleteHeaderDefect
from email.headerregistry import Address
from email.policy import default as default_policy
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from service.endpoints import Endpoint, is_loopback, read_endpoint, socket_path
from service.requests import MAX_ADDRESS, MAX_LOCAL_PART, canonical_address, clean_line
from service.tokens import MIN_KEY_BYTES

#: An address and a name of the length that people have.
MAX_SENDER = MAX_ADDRESS + 100

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_endpoint_or_off(text: str) -> Endpoint | Literal[False]:
    """Return the endpoint, or False for ``off``."""
    return False if text == "off" else read_endpoint(text)


def read_endpoint_or_socket(text: str) -> Endpoint | Path:
    """Return what ``host:port`` or ``unix:/path`` names."""
    return socket_path(text) if text.startswith("unix:") else read_endpoint(text)


def read_file(text: str) -> Path:
    """Return the path of a file that is there."""
    if not (path := Path(text)).is_file():
        raise ValueError(f"{text!r} is no file")
    return path


def read_engine_url(text: str) -> str:
    """Return an engine's URL, if it looks like one."""
    # The text is not repeated: it may hold a database's password.
    if not re.fullmatch(r"memory:|sqlite:///.+|https?://[^/\s]+\S*|unix:/.+|postgres(ql)?://\S+", text):
        raise ValueError("is not sqlite:///FILE, memory:, http(s)://HOST, unix:/SOCKET or postgresql://...")
    return text


def read_retention(text: str) -> timedelta:
    """Return an ISO 8601 duration of a day or more."""
    problem = f"{text!r} is not an ISO 8601 duration of a day or more, such as P30D"
    try:
        kept: timedelta = msgspec.convert(text, timedelta)
    except msgspec.ValidationError as exc:
        raise ValueError(problem) from exc
    if kept < timedelta(days=1):
        raise ValueError(problem)
    return kept


def read_public_url(text: str) -> str:
    """Return what links begin with, without a slash at its end."""
    problem = f"{text!r} is not an http(s) URL such as https://approvals.corp.example"
    # urlsplit drops line breaks, which the letter would still hold.
    if not re.fullmatch(r"https?://[A-Za-z0-9._~%:/\[\]-]+", text, re.IGNORECASE):
        raise ValueError(problem)
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as exc:
        raise ValueError(problem) from exc
    if not url.hostname or port == 0:
        raise ValueError(problem)
    if url.scheme == "http" and not is_loopback(url.hostname):
        raise ValueError(f"{text!r} must be https: links in letters are capabilities")
    return text.rstrip("/")


def read_sender(text: str) -> str:
    """Return a From value of exactly one address."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("must not hold control characters")
    problem = f"{text!r} is not an address such as Approvals <approvals@corp.example>"
    if len(text) > MAX_SENDER:
        raise ValueError(f"is longer than {MAX_SENDER} characters")
    try:
        header = default_policy.header_factory("From", text)
        (address,) = header.addresses
        # `a@corp.example <b@evil.example>` parses too, with a defect; a group of one has one address.
        odd = [d for d in header.defects if not isinstance(d, ObsoleteHeaderDefect)]
        grouped = header.groups[0].display_name is not None
        name = clean_line(address.display_name) if address.display_name else ""
        sender = Address(display_name=name, addr_spec=canonical_address(address.addr_spec))
    except (HeaderParseError, ValueError, IndexError, AttributeError) as exc:
        raise ValueError(problem) from exc
    if odd or grouped:
        raise ValueError(problem)
    return str(sender)


def read_domain(text: str) -> str:
    """Return a domain in punycode that reply addresses fit."""
    try:  # as the domain of the longest address there may be in it
        address = canonical_address(f"{'r' * MAX_LOCAL_PART}@{text}")
    except ValueError as exc:
        raise ValueError(f"{text!r} is not a domain") from exc
    return address.rpartition("@")[2]


def read_domains(text: str) -> tuple[str, ...]:
    """Return the domains of a list."""
    if not (words := read_words(text)):
        raise ValueError("names no domain")
    return tuple(map(read_domain, words))


def read_reply_trust(text: str) -> str:
    """Return a way to believe replies, by its name."""
    if text not in {"verify", "address"} and not re.fullmatch(r"authserv-id=[A-Za-z0-9.-]+", text):
        raise ValueError(f"{text!r} is not verify, address or authserv-id=NAME")
    return text


def read_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a list."""
    if not (words := read_words(text)):
        raise ValueError("names no network")
    return tuple(ipaddress.ip_network(word) for word in words)


def read_aliases(text: str) -> dict[str, frozenset[str]]:
    """Return each approver's other addresses."""
    aliases: dict[str, frozenset[str]] = {}
    for entry in re.split(r"[;\n]", re.sub(r"(?m)^\s*#.*", "", text)):
        if not entry.strip():
            continue
        approver, equals, others = entry.partition("=")
        if not equals or not (words := read_words(others)):
            raise ValueError(f"{entry.strip()!r} is not approver@corp.example=other@corp.example,...")
        address = canonical_address(approver.strip())
        more = frozenset(map(canonical_address, words))
        aliases[address] = aliases.get(address, frozenset()) | more
    return aliases


def read_token(text: str) -> str:
    """Return a bearer token."""
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be printable ASCII without spaces")
    return text


def read_seconds(text: str) -> timedelta:
    """Return a number of seconds."""
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise ValueError(f"{text!r} is no number of seconds from 1 to 9999")
    return timedelta(seconds=int(text))


def read_switch(text: str) -> bool:
    """Return True for ``on``, False for ``off``."""
    if text not in {"on", "off"}:
        raise ValueError(f"{text!r} is not on or off")
    return text == "on"


def read_words(text: str) -> tuple[str, ...]:
    """Return what commas and white space set apart."""
    return tuple(word for word in re.split(r"[\s,]+", text) if word)


def read_api_keys(text: str) -> tuple[str, ...]:
    """Return the API's keys."""
    keys = read_words(text)
    if not keys or not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise ValueError("needs one key or more, of printable ASCII")
    return keys


def read_secret_keys(text: str) -> tuple[bytes, ...]:
    """Return the signing keys, oldest to newest."""
    keys = tuple(word.encode() for word in read_words(text))
    if not keys or any(len(key) < MIN_KEY_BYTES for key in keys):
        raise ValueError(f"each key needs {MIN_KEY_BYTES} characters or more; `approvals keys` makes one")
    return keys
