"""The environment, read once into typed settings.

`load_settings` knows every name; an unknown ``APPROVALS_*`` is an error, since a
misspelt setting that is silently ignored is how a service ends up unsigned.
"""

import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

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
)
from service.errors import SettingsError
from service.readers import (
    Network,
    read_aliases,
    read_api_keys,
    read_domain,
    read_domains,
    read_endpoint_or_off,
    read_endpoint_or_socket,
    read_engine_url,
    read_file,
    read_networks,
    read_public_url,
    read_reply_trust,
    read_retention,
    read_seconds,
    read_secret_keys,
    read_sender,
    read_switch,
    read_token,
)
from service.requests import canonical_address

__all__ = ["KNOWN", "PREFIX", "SECRETS", "Endpoint", "MailEndpoint", "Mode", "Settings", "SmtpServer"]
__all__ += ["fresh_key", "is_loopback", "load_mailbox", "load_settings"]

PREFIX = "APPROVALS_"
#: The default engine.
ENGINE = "sqlite:///approvals.db"
MAILBOX = "127.0.0.1:2525"
#: Settings that hold a secret; each may also be given as NAME_FILE.
SECRETS = frozenset({"SECRET_KEYS", "API_KEYS", "SMTP", "ENGINE", "ENGINE_TOKEN", "IMAP"})

#: Settings that may be long, and so be files as secrets are.
FILES = SECRETS | {"REPLY_ALIASES"}

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

    engine = need("ENGINE", read_engine_url, ENGINE)
    http = need("HTTP", read_endpoint, "127.0.0.1:5001")
    engine_http = read("ENGINE_HTTP", read_endpoint_or_socket)
    engine_debug = need("ENGINE_DEBUG", read_switch, "off")
    if engine_debug and isinstance(engine_http, Endpoint) and not engine_http.loopback:
        raise SettingsError(PREFIX + "ENGINE_DEBUG", f"is refused: {engine_http} can be reached from outside")
    api_keys = read("API_KEYS", read_api_keys) or ()
    if not api_keys and not http.loopback:
        raise SettingsError(
            PREFIX + "API_KEYS", f"must be set: the API on {http} can be reached from outside"
        )
    keys = read("SECRET_KEYS", read_secret_keys) or (_dev_keys(engine, folder) if dev else None)
    if keys is None:
        raise SettingsError(PREFIX + "SECRET_KEYS", "must be set to serve; `approvals keys` makes one")
    tls = _both(read("MAILBOX_TLS_CERT", read_file), read("MAILBOX_TLS_KEY", read_file))
    inbox = read("INBOX", read_endpoint_or_off, "127.0.0.1:8025" if dev else "off")
    if inbox and not inbox.loopback:
        raise SettingsError(
            PREFIX + "INBOX",
            f"{inbox}: the inbox has links that decide and asks for no password; loopback only",
        )
    return Settings(
        engine=engine,
        engine_http=engine_http,
        engine_token=read("ENGINE_TOKEN", read_token),
        engine_debug=engine_debug,
        retention=need("RETENTION", read_retention, "P30D"),
        engine_lease=need("ENGINE_LEASE", read_seconds, "30"),
        http=http,
        public_url=need("PUBLIC_URL", read_public_url, f"http://localhost:{http.port}" if dev else None),
        smtp=need("SMTP", read_smtp_server, "smtp://localhost:1025"),
        sender=need("FROM", read_sender, "Approvals <approvals@localhost>"),
        mailbox=need("MAILBOX", read_mail_endpoint, MAILBOX),
        mailbox_tls=tls,
        mailbox_proxy=need("MAILBOX_PROXY", read_switch, "off"),
        imap=read("IMAP", read_imap_account),
        reply_domain=need("REPLY_DOMAIN", read_domain, "localhost"),
        reply_trust=need("REPLY_TRUST", read_reply_trust, "address" if dev else "verify"),
        reply_peers=need("REPLY_PEERS", read_networks, "127.0.0.0/8 ::1/128"),
        reply_aliases=read("REPLY_ALIASES", read_aliases) or {},
        arc_sealers=read("ARC_SEALERS", read_domains) or (),
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
        return read_engine_url(raw.get("ENGINE", ENGINE)), raw.get("ENGINE_TOKEN")
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


# ── Values that need more than their own text ────────────────────────────────


def _both(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if certificate and key:
        return certificate, key
    if certificate or key:
        given, wanted = ("CERT", "KEY") if certificate else ("KEY", "CERT")
        raise SettingsError(f"{PREFIX}MAILBOX_TLS_{given}", f"needs {PREFIX}MAILBOX_TLS_{wanted} beside it")
    return None


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
        return read_secret_keys(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise SettingsError(PREFIX + "SECRET_KEYS", f"{path} can't be used: {exc}") from exc
