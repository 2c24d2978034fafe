"""The environment, read once into typed settings.

`load_settings` knows every name; an unknown ``APPROVALS_*`` is an error, since a
misspelt setting that is silently ignored is how a service ends up unsigned.
"""

import ipaddress
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from email.errors import HeaderParseError, ObsoleteHeaderDefect
from email.headerregistry import Address
from email.policy import default as default_policy
from io import StringIO
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import msgspec
from dotenv import dotenv_values
from dotenv.parser import parse_stream

from service.endpoints import (
    Endpoint,
    ImapAccount,
    MailEndpoint,
    SmtpServer,
    is_loopback,
    read_endpoint,
    read_imap_account,
    read_mail_endpoint,
    read_smtp_server,
    socket_path,
)
from service.errors import SettingsError
from service.requests import MAX_ADDRESS, MAX_LOCAL_PART, canonical_address, clean_line
from service.tokens import MIN_KEY_BYTES

__all__ = ["KNOWN", "PREFIX", "SECRETS", "Endpoint", "MailEndpoint", "Mode", "Settings", "SmtpServer"]
__all__ += ["fresh_key", "is_loopback", "load_mailbox", "load_settings"]

PREFIX = "APPROVALS_"
#: The default engine.
ENGINE = "sqlite:///approvals.db"
MAILBOX = "127.0.0.1:2525"
#: An address and a name of the length that people have.
MAX_SENDER = MAX_ADDRESS + 100
#: Settings that hold a secret; each may also be given as NAME_FILE.
SECRETS = frozenset({"SECRET_KEYS", "API_KEYS", "SMTP", "ENGINE", "ENGINE_TOKEN", "IMAP"})

#: Settings that may be long, and so be files as secrets are.
FILES = SECRETS | {"REPLY_ALIASES"}

type Network = ipaddress.IPv4Network | ipaddress.IPv6Network
type Mode = Literal["demo", "dev", "serve"]


@dataclass(frozen=True)
class Settings:
    """Everything the environment decides; what may hold a secret is not in its repr."""

    engine: str = field(repr=False)
    engine_http: Endpoint | Path | None
    engine_token: str | None = field(repr=False)
    engine_debug: bool
    #: How long the embedded engine keeps what has ended.
    retention: timedelta
    engine_lease: timedelta
    http: Endpoint
    public_url: str
    smtp: SmtpServer
    sender: str
    mailbox: MailEndpoint
    #: Certificate and key, where the mailbox offers STARTTLS.
    mailbox_tls: tuple[Path, Path] | None
    mailbox_proxy: bool
    imap: ImapAccount | None = field(repr=False)
    reply_domain: str
    reply_trust: str
    reply_peers: tuple[Network, ...]
    #: An approver's address -> other addresses whose replies count as theirs.
    reply_aliases: Mapping[str, frozenset[str]]
    #: Domains of relays whose ARC seals count where senders are verified here.
    arc_sealers: tuple[str, ...]
    inbox: Endpoint | None
    inbox_smtp: Endpoint
    secret_keys: tuple[bytes, ...] = field(repr=False)
    api_keys: tuple[str, ...] = field(repr=False)
    default_approver: str | None


def load_settings(mode: Mode, env: Mapping[str, str] | None = None, folder: Path | None = None) -> Settings:
    """Read the environment and ``.env`` in `folder` (default: here), the environment first.

    A variable without a value counts as not set: compose files pass such on.
    Raises SettingsError naming the first setting that is missing or malformed.
    In `dev` and `demo` a fresh key is kept beside the database, readable by its owner only.
    """
    folder = folder or Path.cwd()
    raw = _own(_given(_dotenv(folder / ".env")) | _given(os.environ if env is None else env))
    dev = mode != "serve"

    def read[T](name: str, parse: Callable[[str], T], default: str | None = None) -> T | None:
        text = raw.get(name, default)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as exc:
            raise SettingsError(PREFIX + name, str(exc)) from exc

    def need[T](name: str, parse: Callable[[str], T], default: str | None = None) -> T:
        value = read(name, parse, default)
        if value is None:
            raise SettingsError(PREFIX + name, "must be set to serve")
        return value

    engine = need("ENGINE", _engine_url, ENGINE)
    http = need("HTTP", read_endpoint, "127.0.0.1:5001")
    engine_http = read("ENGINE_HTTP", _endpoint_or_socket)
    engine_debug = need("ENGINE_DEBUG", _switch, "off")
    if engine_debug and isinstance(engine_http, Endpoint) and not engine_http.loopback:
        raise SettingsError(PREFIX + "ENGINE_DEBUG", f"is refused: {engine_http} can be reached from outside")
    api_keys = read("API_KEYS", _api_keys) or ()
    if not api_keys and not http.loopback:
        raise SettingsError(
            PREFIX + "API_KEYS", f"must be set: the API on {http} can be reached from outside"
        )
    keys = read("SECRET_KEYS", _keys) or (_dev_keys(engine, folder) if dev else None)
    if keys is None:
        raise SettingsError(PREFIX + "SECRET_KEYS", "must be set to serve; `approvals keys` makes one")
    tls = _both(read("MAILBOX_TLS_CERT", _file), read("MAILBOX_TLS_KEY", _file))
    inbox = read("INBOX", _endpoint_or_off, "127.0.0.1:8025" if dev else "off")
    return Settings(
        engine=engine,
        engine_http=engine_http,
        engine_token=read("ENGINE_TOKEN", _token),
        engine_debug=engine_debug,
        retention=need("RETENTION", _retention, "P30D"),
        engine_lease=need("ENGINE_LEASE", _seconds, "30"),
        http=http,
        public_url=need("PUBLIC_URL", _public_url, f"http://localhost:{http.port}" if dev else None),
        smtp=need("SMTP", read_smtp_server, "smtp://localhost:1025"),
        sender=need("FROM", _sender, "Approvals <approvals@localhost>"),
        mailbox=need("MAILBOX", read_mail_endpoint, MAILBOX),
        mailbox_tls=tls,
        mailbox_proxy=need("MAILBOX_PROXY", _switch, "off"),
        imap=read("IMAP", read_imap_account),
        reply_domain=need("REPLY_DOMAIN", _domain, "localhost"),
        reply_trust=need("REPLY_TRUST", _reply_trust, "address" if dev else "verify"),
        reply_peers=need("REPLY_PEERS", _networks, "127.0.0.0/8 ::1/128"),
        reply_aliases=read("REPLY_ALIASES", _aliases) or {},
        arc_sealers=read("ARC_SEALERS", _domains) or (),
        inbox=inbox or None,
        inbox_smtp=need("INBOX_SMTP", read_endpoint, "127.0.0.1:1025"),
        secret_keys=keys,
        api_keys=api_keys,
        default_approver=read("DEFAULT_APPROVER", canonical_address, "approver@localhost" if dev else None),
    )


def load_engine(env: Mapping[str, str] | None = None, folder: Path | None = None) -> tuple[str, str | None]:
    """Return the engine's URL and the token; nothing else is read or made."""
    raw = _own(_given(_dotenv((folder or Path.cwd()) / ".env")) | _given(os.environ if env is None else env))
    try:
        return _engine_url(raw.get("ENGINE", ENGINE)), raw.get("ENGINE_TOKEN")
    except ValueError as exc:
        raise SettingsError(f"{PREFIX}ENGINE", str(exc)) from exc


def load_mailbox(env: Mapping[str, str] | None = None, folder: Path | None = None) -> MailEndpoint:
    """Return where the mailbox listens; nothing else is read, so that a pipe needs no key."""
    raw = _given(_dotenv((folder or Path.cwd()) / ".env")) | _given(os.environ if env is None else env)
    try:
        return read_mail_endpoint(raw.get("MAILBOX", MAILBOX))
    except ValueError as exc:
        raise SettingsError(f"{PREFIX}MAILBOX", str(exc)) from exc


KNOWN = SECRETS | {
    "ARC_SEALERS",
    "DEFAULT_APPROVER",
    "ENGINE_DEBUG",
    "ENGINE_HTTP",
    "ENGINE_LEASE",
    "FROM",
    "HTTP",
    "INBOX",
    "INBOX_SMTP",
    "MAILBOX",
    "MAILBOX_PROXY",
    "MAILBOX_TLS_CERT",
    "MAILBOX_TLS_KEY",
    "PUBLIC_URL",
    "RETENTION",
    "REPLY_ALIASES",
    "REPLY_DOMAIN",
    "REPLY_PEERS",
    "REPLY_TRUST",
}


def _dotenv(path: Path) -> Mapping[str, str | None]:
    """Return what ``.env`` says. A line that makes no sense is an error: it may be the one that matters."""
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(str(path), f"can't be read: {exc}") from exc
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            raise SettingsError(str(path), f"line {binding.original.line} is not NAME=value")
    return dotenv_values(stream=StringIO(text))


def _given(env: Mapping[str, str | None]) -> dict[str, str]:
    """Return our variables that have a value, by bare name."""
    given: dict[str, str] = {}
    for full, text in env.items():
        name = full.removeprefix(PREFIX)
        if name == full:
            continue
        if name not in KNOWN and name.removesuffix("_FILE") not in FILES:
            raise SettingsError(full, "is not a setting of this service")
        if value := (text or "").strip():
            given[name] = value
    return given


def _own(given: Mapping[str, str]) -> dict[str, str]:
    """Return the settings, those given as files read."""
    own = dict(given)
    for name in sorted(FILES):
        full, path = f"{PREFIX}{name}_FILE", own.pop(f"{name}_FILE", None)
        if path is None:
            continue
        if name in own:
            raise SettingsError(full, f"is set beside {PREFIX}{name}; keep one of the two")
        try:
            own[name] = Path(path).read_text("utf-8").strip()
        except (OSError, ValueError) as exc:
            raise SettingsError(full, f"can't be read: {exc}") from exc
        # Whoever mounts a secret means it to be there: an empty API_KEYS would open the API.
        if not own[name]:
            raise SettingsError(full, f"{path} is empty")
    return own


# ── How each value is read; every ValueError becomes the setting's message ────


def _endpoint_or_off(text: str) -> Endpoint | Literal[False]:
    return False if text == "off" else read_endpoint(text)


def _endpoint_or_socket(text: str) -> Endpoint | Path:
    return socket_path(text) if text.startswith("unix:") else read_endpoint(text)


def _file(text: str) -> Path:
    if not (path := Path(text)).is_file():
        raise ValueError(f"{text!r} is no file")
    return path


def _both(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if certificate and key:
        return certificate, key
    if certificate or key:
        given, wanted = ("CERT", "KEY") if certificate else ("KEY", "CERT")
        raise SettingsError(f"{PREFIX}MAILBOX_TLS_{given}", f"needs {PREFIX}MAILBOX_TLS_{wanted} beside it")
    return None


def _engine_url(text: str) -> str:
    # The text is not repeated: it may hold a database's password.
    if not re.fullmatch(r"memory:|sqlite:///.+|https?://[^/\s]+\S*|unix:/.+|postgres(ql)?://\S+", text):
        raise ValueError("is not sqlite:///FILE, memory:, http(s)://HOST, unix:/SOCKET or postgresql://...")
    return text


def _retention(text: str) -> timedelta:
    problem = f"{text!r} is not an ISO 8601 duration of a day or more, such as P30D"
    try:
        kept: timedelta = msgspec.convert(text, timedelta)
    except msgspec.ValidationError as exc:
        raise ValueError(problem) from exc
    if kept < timedelta(days=1):
        raise ValueError(problem)
    return kept


def _public_url(text: str) -> str:
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


def _sender(text: str) -> str:
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


def _domain(text: str) -> str:
    try:  # as the domain of the longest address there may be in it
        address = canonical_address(f"{'r' * MAX_LOCAL_PART}@{text}")
    except ValueError as exc:
        raise ValueError(f"{text!r} is not a domain") from exc
    return address.rpartition("@")[2]


def _domains(text: str) -> tuple[str, ...]:
    if not (words := _words(text)):
        raise ValueError("names no domain")
    return tuple(map(_domain, words))


def _reply_trust(text: str) -> str:
    if text not in {"verify", "address"} and not re.fullmatch(r"authserv-id=[A-Za-z0-9.-]+", text):
        raise ValueError(f"{text!r} is not verify, address or authserv-id=NAME")
    return text


def _networks(text: str) -> tuple[Network, ...]:
    if not (words := _words(text)):
        raise ValueError("names no network")
    return tuple(ipaddress.ip_network(word) for word in words)


def _aliases(text: str) -> dict[str, frozenset[str]]:
    aliases: dict[str, frozenset[str]] = {}
    for entry in re.split(r"[;\n]", re.sub(r"(?m)^\s*#.*", "", text)):
        if not entry.strip():
            continue
        approver, equals, others = entry.partition("=")
        if not equals or not (words := _words(others)):
            raise ValueError(f"{entry.strip()!r} is not approver@corp.example=other@corp.example,...")
        address = canonical_address(approver.strip())
        more = frozenset(map(canonical_address, words))
        aliases[address] = aliases.get(address, frozenset()) | more
    return aliases


def _token(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be printable ASCII without spaces")
    return text


def _seconds(text: str) -> timedelta:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise ValueError(f"{text!r} is no number of seconds from 1 to 9999")
    return timedelta(seconds=int(text))


def _switch(text: str) -> bool:
    if text not in {"on", "off"}:
        raise ValueError(f"{text!r} is not on or off")
    return text == "on"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split(r"[\s,]+", text) if word)


def _api_keys(text: str) -> tuple[str, ...]:
    keys = _words(text)
    if not keys or not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise ValueError("needs one key or more, of printable ASCII")
    return keys


def _keys(text: str) -> tuple[bytes, ...]:
    keys = tuple(word.encode() for word in _words(text))
    if not keys or any(len(key) < MIN_KEY_BYTES for key in keys):
        raise ValueError(f"each key needs {MIN_KEY_BYTES} characters or more; `approvals keys` makes one")
    return keys


def fresh_key() -> str:
    """Return a new secret key: 256 bits of randomness as 43 characters."""
    return secrets.token_urlsafe(32)


def _dev_keys(engine: str, folder: Path) -> tuple[bytes, ...]:
    """Return the keys kept beside the database, making the file if need be.

    The file is linked to its name once it is whole, and only where there is none:
    two processes that start at once agree on one key, and none reads half a file.
    """
    embedded = engine.startswith("sqlite:///")
    database = Path(unquote(engine.removeprefix("sqlite:///")) if embedded else "approvals")
    if not database.name:
        raise SettingsError(PREFIX + "ENGINE", f"{engine!r} names no file")
    path = folder / database.with_suffix(".keys")
    try:
        if not os.path.lexists(path):
            # mkstemp, beneath, makes files that only their owner can read.
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, prefix=path.name, encoding="utf-8"
            ) as file:
                file.write(fresh_key() + "\n")
                file.flush()
                os.fsync(file.fileno())
                with suppress(FileExistsError):
                    os.link(file.name, path)
    except (OSError, ValueError) as exc:
        raise SettingsError(PREFIX + "SECRET_KEYS", f"not set, and {path} can't be made: {exc}") from exc
    return _keys_of(path)


def _keys_of(path: Path) -> tuple[bytes, ...]:
    try:
        return _keys(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise SettingsError(PREFIX + "SECRET_KEYS", f"{path} can't be used: {exc}") from exc
