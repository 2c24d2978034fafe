"""Settings: each default, each refusal by name, secrets from files, and the key kept beside the database."""

import contextlib
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from threading import Barrier
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.endpoints import ImapAccount
from service.errors import SettingsError
from service.settings import (
    KNOWN,
    PREFIX,
    SECRETS,
    Endpoint,
    MailEndpoint,
    Mode,
    SmtpServer,
    fresh_key,
    load_settings,
)
from service.settings import Settings as Loaded
from service.tokens import MIN_KEY_BYTES

KEY, OTHER_KEY = "k" * MIN_KEY_BYTES, "o" * MIN_KEY_BYTES
SERVED: Final = {"SECRET_KEYS": KEY, "PUBLIC_URL": "https://approvals.corp.example"}


def load(folder: Path, mode: Mode = "serve", /, **own: str) -> Loaded:
    """Load the settings of an environment that holds `own` alone, beside what serving needs."""
    env = {PREFIX + name: text for name, text in ((SERVED if mode == "serve" else {}) | own).items()}
    return load_settings(mode, {"PATH": "/bin", **env}, folder)


def refused(folder: Path, mode: Mode = "serve", /, **own: str) -> str:
    """Return the problem for which the last of `own` is refused by its name."""
    with pytest.raises(SettingsError) as caught:
        load(folder, mode, **own)
    assert caught.value.name == PREFIX + list(own)[-1]
    assert str(caught.value).startswith(f"{caught.value.name}: ")
    return caught.value.problem


# ── Defaults ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["dev", "demo"])
def test_a_machine_of_ones_own_needs_no_settings(tmp_path: Path, mode: Mode) -> None:
    """Trying it out takes no environment at all, and reaches nothing but loopback."""
    loaded = load(tmp_path, mode)
    assert loaded == Loaded(
        engine="sqlite:///approvals.db",
        engine_http=None,
        engine_token=None,
        engine_debug=False,
        engine_lease=timedelta(seconds=30),
        retention=timedelta(days=30),
        http=Endpoint("127.0.0.1", 5001),
        public_url="http://localhost:5001",
        smtp=SmtpServer("localhost", 1025, "offered"),
        sender="Approvals <approvals@localhost>",
        mailbox=MailEndpoint("127.0.0.1", 2525),
        mailbox_tls=None,
        mailbox_proxy=False,
        imap=None,
        reply_domain="localhost",
        reply_trust="address",
        reply_peers=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
        reply_aliases={},
        arc_sealers=(),
        inbox=Endpoint("127.0.0.1", 8025),
        inbox_smtp=Endpoint("127.0.0.1", 1025),
        secret_keys=loaded.secret_keys,
        api_keys=(),
        default_approver="approver@localhost",
    )
    assert len(loaded.secret_keys) == 1
    assert all(e.loopback for e in (loaded.http, loaded.mailbox, loaded.inbox_smtp))


def test_serving_trusts_and_shows_less(tmp_path: Path) -> None:
    """In production senders are verified, there is no inbox page, and nobody is asked by default."""
    loaded = load(tmp_path)
    assert loaded.secret_keys == (KEY.encode(),)
    assert loaded.public_url == "https://approvals.corp.example"
    assert loaded.reply_trust == "verify"
    assert loaded.inbox is None
    assert loaded.default_approver is None
    assert loaded.engine == "sqlite:///approvals.db"
    assert loaded.http == Endpoint("127.0.0.1", 5001)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(SERVED))
def test_serving_needs_keys_and_a_public_url(tmp_path: Path, name: str) -> None:
    """Production never starts on a made-up key or address, not even where an empty value is passed on."""
    others = {PREFIX + each: text for each, text in SERVED.items() if each != name}
    for env in (others, others | {PREFIX + name: ""}, others | {PREFIX + name: " \n"}):
        with pytest.raises(SettingsError, match="must be set to serve") as caught:
            load_settings("serve", env, tmp_path)
        assert caught.value.name == PREFIX + name
    assert not list(tmp_path.iterdir())


def test_the_public_url_follows_the_port_in_dev(tmp_path: Path) -> None:
    """Links lead to where the gateway listens."""
    assert load(tmp_path, "dev", HTTP="127.0.0.1:5999").public_url == "http://localhost:5999"


# ── Values ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ENGINE", "approvals.db"),
        ("ENGINE", "sqlite://"),
        ("ENGINE", "sqlite:///"),
        ("ENGINE", "memory:x"),
        ("ENGINE", "http://"),
        ("ENGINE", "http://a b"),
        ("ENGINE", "mysql://localhost/a"),
        ("ENGINE", "postgresql://"),
        ("HTTP", "5001"),
        ("HTTP", ":5001"),
        ("HTTP", "localhost"),
        ("HTTP", "localhost:"),
        ("HTTP", "localhost:http"),
        ("HTTP", "localhost:65536"),
        ("HTTP", "localhost:-1"),
        ("HTTP", "localhost:5001/"),
        ("HTTP", "http://localhost:5001"),
        ("HTTP", "*:5001"),
        ("HTTP", "::1:5001"),
        ("HTTP", "[::1]"),
        ("HTTP", "[::::]:5001"),
        ("HTTP", "300.0.0.1:5001"),
        ("HTTP", "local host:5001"),
        ("HTTP", "a\nb:5001"),
        ("HTTP", "localhost:\u0665"),
        ("PUBLIC_URL", "approvals.corp.example"),
        ("PUBLIC_URL", "ftp://approvals.corp.example"),
        ("PUBLIC_URL", "https://"),
        ("PUBLIC_URL", "https:///decide"),
        ("PUBLIC_URL", "https://a.example?x=1"),
        ("PUBLIC_URL", "https://a.example?"),
        ("PUBLIC_URL", "https://a.example#x"),
        ("PUBLIC_URL", "https://user:pass@a.example"),
        ("PUBLIC_URL", "https://a.example:99999"),
        ("PUBLIC_URL", "https://a.example:0"),
        ("PUBLIC_URL", "https://a.example:x"),
        ("PUBLIC_URL", "https://[::1"),
        ("PUBLIC_URL", "https://a.example\r\nBcc: x"),
        ("PUBLIC_URL", "https://a.exam\tple"),
        ("PUBLIC_URL", 'https://a.example/"onclick='),
        ("PUBLIC_URL", "http://approvals.corp.example"),
        ("PUBLIC_URL", "http://192.0.2.1"),
        ("PUBLIC_URL", "http://localhost.evil.example"),
        ("SMTP", "localhost"),
        ("SMTP", "localhost:25"),
        ("SMTP", "http://localhost"),
        ("SMTP", "smtp://"),
        ("SMTP", "smtp://:25"),
        ("SMTP", "smtp://localhost:0"),
        ("SMTP", "smtp://localhost:99999"),
        ("SMTP", "smtp://localhost:x"),
        ("SMTP", "smtp://[::1"),
        ("SMTP", "smtp://localhost/mail"),
        ("SMTP", "smtp://localhost#x"),
        ("SMTP", "smtp://local host"),
        ("SMTP", "smtp://local\nhost"),
        ("SMTP", "smtp://user@localhost"),
        ("SMTP", "smtp://user:@localhost"),
        ("SMTP", "smtp://:pass@localhost"),
        ("SMTP", "smtp://:@localhost"),
        ("SMTP", "smtp://@localhost"),
        ("SMTP", "smtp://localhost?starttls=never"),
        ("SMTP", "smtp://localhost?starttls"),
        ("SMTP", "smtp://localhost?tls=required"),
        ("SMTP", "smtp://localhost?starttls=required&x=1"),
        ("FROM", "Approvals"),
        ("FROM", "@corp.example"),
        ("FROM", "Approvals <>"),
        ("FROM", "Approvals <a@corp.example"),
        ("FROM", "a@corp.example, b@corp.example"),
        ("FROM", "a@corp.example <eve@evil.example>"),
        ("FROM", "team: a@corp.example;"),
        ("FROM", "team:;"),
        ("FROM", "änn@corp.example"),
        ("FROM", "A <a@corp.example>\nBcc: eve@evil.example"),
        ("FROM", "=?utf-8?q?a=0ABcc=3A_x=40y?= <a@corp.example>"),
        ("FROM", "A\0 <a@corp.example>"),
        ("FROM", '"' * 20_000),
        ("ENGINE", "unix:engine.sock"),
        ("ENGINE_HTTP", "8001"),
        ("ENGINE_HTTP", "unix:engine.sock"),
        ("ENGINE_DEBUG", "yes"),
        ("ENGINE_LEASE", "0"),
        ("RETENTION", "30"),
        ("RETENTION", "PT23H"),
        ("RETENTION", "-P30D"),
        ("ENGINE_LEASE", "PT1M"),
        ("ENGINE_TOKEN", "a b"),
        ("ENGINE_TOKEN", "tökén"),
        ("REPLY_PEERS", ","),
        ("REPLY_PEERS", "localhost"),
        ("REPLY_PEERS", "10.0.0.1/8"),
        ("REPLY_PEERS", "10.0.0.0/8, 10.0.0.0/33"),
        ("MAILBOX", "2525"),
        ("MAILBOX", "imap://127.0.0.1:24"),
        ("MAILBOX", "smtp:///run/mail"),
        ("MAILBOX", "lmtp://"),
        ("MAILBOX", "lmtp:///"),
        ("MAILBOX", "unix:mail"),
        ("MAILBOX", "unix:/run/"),
        ("MAILBOX", "unix:/" + "x" * 107),
        ("MAILBOX_PROXY", "yes"),
        ("MAILBOX_TLS_CERT", "/no/such/file"),
        ("MAILBOX_TLS_CERT", __file__),
        ("MAILBOX_TLS_KEY", __file__),
        ("REPLY_DOMAIN", "a@corp.example"),
        ("REPLY_DOMAIN", "corp..example"),
        ("REPLY_DOMAIN", "corp.example."),
        ("REPLY_DOMAIN", "corp example"),
        ("REPLY_DOMAIN", "[127.0.0.1]"),
        ("REPLY_DOMAIN", "127.0.0.1"),
        ("REPLY_DOMAIN", ".".join(["x" * 60] * 4)),
        ("REPLY_ALIASES", "ann@corp.example"),
        ("REPLY_ALIASES", "ann@corp.example="),
        ("REPLY_ALIASES", "ann=a@corp.example"),
        ("REPLY_ALIASES", "ann@corp.example=a"),
        ("ARC_SEALERS", ","),
        ("ARC_SEALERS", "list.example, a@b.example"),
        ("REPLY_TRUST", "yes"),
        ("REPLY_TRUST", "Verify"),
        ("REPLY_TRUST", "authserv-id="),
        ("REPLY_TRUST", "authserv-id=a b"),
        ("IMAP", "imap.corp.example"),
        ("IMAP", "imaps://"),
        ("IMAP", "imaps://imap.corp.example"),
        ("IMAP", "imaps://u@imap.corp.example"),
        ("IMAP", "imap://u:p@imap.corp.example"),
        ("IMAP", "imaps://u:p@h:0"),
        ("IMAP", "imaps://u:p@h:x"),
        ("IMAP", "imaps://u:p@h/a%22b"),
        ("IMAP", "imaps://u:p@h/INBOX?delete=yes"),
        ("INBOX", "no"),
        ("INBOX", "8025"),
        ("INBOX", "0.0.0.0:8025"),
        ("INBOX_SMTP", "off"),
        ("INBOX_SMTP", "localhost"),
        ("SECRET_KEYS", "short"),
        ("SECRET_KEYS", f"{KEY},short"),
        ("SECRET_KEYS", ","),
        ("API_KEYS", ","),
        ("API_KEYS", "schlüssel"),
        ("API_KEYS", "a\0b"),
        ("DEFAULT_APPROVER", "ann"),
        ("DEFAULT_APPROVER", "Ann <ann@corp.example>"),
    ],
)
def test_a_malformed_value_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    """The start stops with the variable as the user wrote it, and nothing is made."""
    for mode in ("serve", "dev"):
        problem = refused(tmp_path, mode, **{name: text})
        assert problem
        if name in SECRETS:
            assert repr(text) not in problem, "a secret must not be repeated in a log"
    assert {path.suffix for path in tmp_path.iterdir()} <= {".keys"}


@pytest.mark.parametrize(
    ("name", "text", "field", "expected"),
    [
        ("ENGINE", "memory:", "engine", "memory:"),
        ("ENGINE", "sqlite:////var/lib/my approvals.db", "engine", "sqlite:////var/lib/my approvals.db"),
        ("ENGINE", "https://resonate:8001", "engine", "https://resonate:8001"),
        ("ENGINE", "postgresql://u:p@db/x?sslmode=on", "engine", "postgresql://u:p@db/x?sslmode=on"),
        ("HTTP", "[::1]:5001", "http", Endpoint("::1", 5001)),
        ("HTTP", "LocalHost:0", "http", Endpoint("LocalHost", 0)),
        ("HTTP", "127.9.9.9:65535", "http", Endpoint("127.9.9.9", 65535)),
        ("MAILBOX", "0.0.0.0:25", "mailbox", MailEndpoint("0.0.0.0", 25)),  # noqa: S104
        ("MAILBOX", "mail_box.local:25", "mailbox", MailEndpoint("mail_box.local", 25)),
        ("MAILBOX", "smtp://[::1]:25", "mailbox", MailEndpoint("::1", 25)),
        ("MAILBOX", "lmtp://127.0.0.1:24", "mailbox", MailEndpoint("127.0.0.1", 24, "lmtp")),
        ("MAILBOX", "lmtp:///run/a", "mailbox", MailEndpoint("localhost", 0, "lmtp", Path("/run/a"))),
        ("MAILBOX", "unix:/run/a.b", "mailbox", MailEndpoint("localhost", 0, "smtp", Path("/run/a.b"))),
        ("MAILBOX_PROXY", "on", "mailbox_proxy", True),
        (
            "IMAP",
            "imaps://a%40b:p%2F@h/",
            "imap",
            ImapAccount("h", 993, tls=True, username="a@b", password="p/"),
        ),
        (
            "IMAP",
            "imap://u:p@localhost/Mail?move=Done",
            "imap",
            ImapAccount("localhost", 143, False, "u", "p", "Mail", "Done"),
        ),
        ("PUBLIC_URL", "https://a.example/", "public_url", "https://a.example"),
        ("PUBLIC_URL", "https://a.example:8443/approvals/", "public_url", "https://a.example:8443/approvals"),
        ("PUBLIC_URL", "http://127.0.0.1:5001", "public_url", "http://127.0.0.1:5001"),
        ("PUBLIC_URL", "http://[::1]:5001", "public_url", "http://[::1]:5001"),
        ("FROM", "approvals@corp.example", "sender", "approvals@corp.example"),
        ("FROM", "Corp. Ltd <a@Corp.Example>", "sender", '"Corp. Ltd" <a@corp.example>'),
        ("FROM", '"Bücher, AG" <a@bücher.example>', "sender", '"Bücher, AG" <a@xn--bcher-kva.example>'),
        ("FROM", "=?utf-8?q?B=C3=BCcher?= <a@corp.example>", "sender", "Bücher <a@corp.example>"),
        ("REPLY_DOMAIN", "Reply.Corp.Example", "reply_domain", "reply.corp.example"),
        ("REPLY_DOMAIN", "bücher.example", "reply_domain", "xn--bcher-kva.example"),
        (
            "ARC_SEALERS",
            "List.example, bücher.example",
            "arc_sealers",
            ("list.example", "xn--bcher-kva.example"),
        ),
        ("REPLY_TRUST", "address", "reply_trust", "address"),
        ("REPLY_TRUST", "authserv-id=mx.corp.example", "reply_trust", "authserv-id=mx.corp.example"),
        (
            "REPLY_PEERS",
            "10.0.0.0/8, 192.0.2.1",
            "reply_peers",
            (ip_network("10.0.0.0/8"), ip_network("192.0.2.1")),
        ),
        (
            "REPLY_ALIASES",
            "# people\nann@Corp.example=a@corp.example, b@corp.example; bob@corp.example=c@corp.example;",
            "reply_aliases",
            {
                "ann@corp.example": frozenset({"a@corp.example", "b@corp.example"}),
                "bob@corp.example": frozenset({"c@corp.example"}),
            },
        ),
        ("ENGINE_HTTP", "127.0.0.1:8001", "engine_http", Endpoint("127.0.0.1", 8001)),
        ("ENGINE_HTTP", "unix:/run/engine.sock", "engine_http", Path("/run/engine.sock")),
        ("ENGINE", "unix:/run/engine.sock", "engine", "unix:/run/engine.sock"),
        ("ENGINE_DEBUG", "on", "engine_debug", True),
        ("ENGINE_LEASE", "90", "engine_lease", timedelta(seconds=90)),
        ("RETENTION", "P90D", "retention", timedelta(days=90)),
        ("ENGINE_TOKEN", "bearer", "engine_token", "bearer"),
        ("INBOX", "off", "inbox", None),
        ("INBOX", "127.0.0.1:8026", "inbox", Endpoint("127.0.0.1", 8026)),
        ("SECRET_KEYS", f"{KEY} {OTHER_KEY}", "secret_keys", (KEY.encode(), OTHER_KEY.encode())),
        ("SECRET_KEYS", f"\n{KEY},\n{OTHER_KEY},\n", "secret_keys", (KEY.encode(), OTHER_KEY.encode())),
        ("API_KEYS", "one, two,", "api_keys", ("one", "two")),
        ("DEFAULT_APPROVER", "Ann@Corp.Example", "default_approver", "ann@corp.example"),
    ],
)
def test_a_value_is_read(tmp_path: Path, name: str, text: str, field: str, expected: object) -> None:
    """Each setting in the forms its users write, made canonical."""
    assert getattr(load(tmp_path, **{name: f" {text}\n"}), field) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example", SmtpServer("mail.example", 25, "offered")),
        ("smtp://mail.example:587/", SmtpServer("mail.example", 587, "offered")),
        ("smtp://mail.example?starttls=required", SmtpServer("mail.example", 25, "required")),
        ("smtp://localhost?starttls=required", SmtpServer("localhost", 25, "required")),
        ("smtps://mail.example", SmtpServer("mail.example", 465, "implicit")),
        ("smtps://u:p@mail.example:1465", SmtpServer("mail.example", 1465, "implicit", "u", "p")),
        ("smtp://u:p@mail.example", SmtpServer("mail.example", 25, "required", "u", "p")),
        ("smtp://u:p@192.0.2.1", SmtpServer("192.0.2.1", 25, "required", "u", "p")),
        ("smtp://u:p@localhost:1025", SmtpServer("localhost", 1025, "offered", "u", "p")),
        ("smtp://u:p@127.0.0.1", SmtpServer("127.0.0.1", 25, "offered", "u", "p")),
        ("smtp://u:p@[::1]:2525", SmtpServer("::1", 2525, "offered", "u", "p")),
        ("smtp://u:p@localhost.evil.example", SmtpServer("localhost.evil.example", 25, "required", "u", "p")),
        (
            "smtp://ann%40corp.example:p%3A%2F%40%25@mail.example",
            SmtpServer("mail.example", 25, "required", "ann@corp.example", "p:/@%"),
        ),
    ],
)
def test_a_password_goes_only_over_tls_or_to_this_machine(
    tmp_path: Path, url: str, expected: SmtpServer
) -> None:
    """TLS from the first byte, required, or where offered; a password for elsewhere requires it."""
    assert load(tmp_path, SMTP=url).smtp == expected


@pytest.mark.parametrize(
    "http", ["0.0.0.0:5001", "[::]:5001", "192.0.2.1:5001", "approvals.corp.example:5001"]
)
@pytest.mark.parametrize("mode", ["dev", "demo", "serve"])
def test_an_api_in_reach_of_others_needs_keys(tmp_path: Path, http: str, mode: Mode) -> None:
    """Off loopback the API is never open, whatever the mode."""
    with pytest.raises(SettingsError, match="must be set") as caught:
        load(tmp_path, mode, HTTP=http)
    assert caught.value.name == PREFIX + "API_KEYS"
    assert load(tmp_path, mode, HTTP=http, API_KEYS="one").api_keys == ("one",)


def test_debug_verbs_are_for_this_machine_only(tmp_path: Path) -> None:
    """Whoever can reach the engine's clock can end every approval."""
    assert load(tmp_path, ENGINE_DEBUG="on", ENGINE_HTTP="127.0.0.1:8001").engine_debug
    problem = refused(tmp_path, ENGINE_HTTP="0.0.0.0:8001", ENGINE_DEBUG="on")
    assert "can be reached from outside" in problem


def test_secrets_are_not_in_a_repr(tmp_path: Path) -> None:
    """Settings that end up in a log or a traceback give nothing away."""
    secret = {"SMTP": "smtps://u:hush1@h", "API_KEYS": "hush2", "ENGINE": "postgresql://u:hush3@h/x"}
    loaded = load(tmp_path, "serve", **secret, ENGINE_TOKEN="hush4")
    assert "hush" not in repr(loaded)
    assert KEY not in repr(loaded)


@pytest.mark.parametrize("text", ["[::1]:25", "lmtp://127.0.0.1:24", "lmtp:///run/a", "unix:/run/a"])
def test_where_mail_is_handed_in_is_written_as_it_is_read(tmp_path: Path, text: str) -> None:
    """What the start says can be pasted into the setting."""
    assert str(load(tmp_path, MAILBOX=text).mailbox) == text


def test_a_certificate_comes_with_its_key(tmp_path: Path) -> None:
    """Both files are read, or neither."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.touch()
    key.touch()
    both = load(tmp_path, MAILBOX_TLS_CERT=str(certificate), MAILBOX_TLS_KEY=str(key))
    assert both.mailbox_tls == (certificate, key)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:5001", "[::1]:0", "localhost:80"])
def test_an_endpoint_is_written_as_it_is_read(tmp_path: Path, endpoint: str) -> None:
    """A URL or a log line spells it as the user did."""
    assert str(load(tmp_path, HTTP=endpoint).http) == endpoint


setting_texts = st.text(max_size=40) | st.from_regex(
    r"((smtps?|https?|sqlite|postgresql)://)?[a-z@:/\[\]<>\" ,;.?=%0-9é\t-]{0,30}", fullmatch=True
)


@given(st.sampled_from(sorted(KNOWN - {"SECRET_KEYS"})), setting_texts)
@settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    """Whatever a setting holds, there are settings or one clear error that names it."""
    with contextlib.suppress(SettingsError):
        load(tmp_path, **{name: text})
        return
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, **{name: text})
    assert caught.value.name in {PREFIX + name, PREFIX + "API_KEYS"}


# ── Names ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["SECRET_KEY", "HTTP_FILE", "FROM_FILE", "", "http", "SMTP_FILE_FILE"])
@pytest.mark.parametrize("text", ["x", ""])
def test_an_unknown_name_is_refused(tmp_path: Path, name: str, text: str) -> None:
    """A misspelt setting is never ignored, not even an empty one."""
    assert refused(tmp_path, **{name: text}) == "is not a setting of this service"


def test_other_variables_are_none_of_our_business(tmp_path: Path) -> None:
    """Only the prefix is ours."""
    env = {"SMTP": "x", "MY_APPROVALS_HTTP": "x", "approvals_http": "x"}
    assert load_settings("dev", env, tmp_path) == load(tmp_path, "dev")


@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_an_empty_value_counts_as_not_set(tmp_path: Path, empty: str) -> None:
    """What a compose file passes on without a value leaves every default as it was."""
    kept = load(tmp_path, "dev")
    files = [f"{name}_FILE" for name in SECRETS]
    assert load(tmp_path, "dev", **dict.fromkeys([*sorted(KNOWN), *files], empty)) == kept


# ── Secrets in files ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "text", "field", "expected"),
    [
        ("SECRET_KEYS", f"{OTHER_KEY}\n{KEY}\n", "secret_keys", (OTHER_KEY.encode(), KEY.encode())),
        ("API_KEYS", "one\n", "api_keys", ("one",)),
        ("ENGINE_TOKEN", "bearer\n", "engine_token", "bearer"),
        ("SMTP", "smtps://u:p@h\n", "smtp", SmtpServer("h", 465, "implicit", "u", "p")),
        ("ENGINE", "memory:\n", "engine", "memory:"),
        ("IMAP", "imaps://u:p@h\n", "imap", ImapAccount("h", 993, tls=True, username="u", password="p")),
        (
            "REPLY_ALIASES",
            "ann@corp.example=a@corp.example\n",
            "reply_aliases",
            {"ann@corp.example": frozenset({"a@corp.example"})},
        ),
    ],
)
def test_a_secret_can_be_a_file(tmp_path: Path, name: str, text: str, field: str, expected: object) -> None:
    """Every secret can be mounted instead of being in the environment; an empty plain one is no second."""
    path = tmp_path / "secret"
    path.write_text(text, "utf-8")
    env = {PREFIX + each: value for each, value in SERVED.items() if each != name}
    env |= {f"{PREFIX}{name}_FILE": f"{path}\n", PREFIX + name: ""}
    assert getattr(load_settings("serve", env, tmp_path), field) == expected


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_given_twice_is_refused(tmp_path: Path, name: str) -> None:
    """Which of two would hold is nobody's guess."""
    assert "keep one of the two" in refused(tmp_path, **{name: KEY, f"{name}_FILE": "x"})


@pytest.mark.parametrize("name", sorted(SECRETS - {"SECRET_KEYS"}))
def test_a_secret_file_that_gives_nothing_is_refused(tmp_path: Path, name: str) -> None:
    """Missing, a folder, not text, empty: an error that names the variable, never an open door."""
    file, binary, blank = f"{name}_FILE", tmp_path / "binary", tmp_path / "blank"
    binary.write_bytes(b"\xff\xfe")
    blank.write_text(" \n")
    assert "can't be read" in refused(tmp_path, **{file: str(tmp_path / "none")})
    assert "can't be read" in refused(tmp_path, **{file: str(tmp_path)})
    assert "can't be read" in refused(tmp_path, **{file: str(binary)})
    assert "can't be read" in refused(tmp_path, **{file: "a\0b"})
    assert "is empty" in refused(tmp_path, **{file: str(blank)})


# ── .env ──────────────────────────────────────────────────────────────────────


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    """What `.env` says holds, unless the environment says something."""
    (tmp_path / ".env").write_text(
        "# ours\nAPPROVALS_HTTP=127.0.0.1:6001\nexport APPROVALS_MAILBOX='127.0.0.1:6025'\n"
        "OTHER=x\nAPPROVALS_FROM=\nAPPROVALS_INBOX\n"
    )
    assert load(tmp_path, "dev").http.port == 6001
    assert load(tmp_path, "dev").mailbox.port == 6025
    assert load(tmp_path, "dev", HTTP="127.0.0.1:7001").http.port == 7001
    assert load(tmp_path, "dev", HTTP="").http.port == 6001
    assert load(tmp_path, "dev").sender == "Approvals <approvals@localhost>"


def test_the_working_folder_is_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without arguments: the process's environment, and `.env` here."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APPROVALS_MAILBOX", "127.0.0.1:7025")
    (tmp_path / ".env").write_text("APPROVALS_HTTP=127.0.0.1:6001\nAPPROVALS_MAILBOX=127.0.0.1:6025\n")
    loaded = load_settings("dev")
    assert (loaded.http.port, loaded.mailbox.port) == (6001, 7025)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"APPROVALS_HTPP=127.0.0.1:6001\n", "APPROVALS_HTPP"),
        (b"APPROVALS_HTTP=6001\n", "APPROVALS_HTTP"),
        (b"A=b\nAPPROVALS_SECRET_KEYS='unfinished\n", "{folder}/.env"),
        (b"A=\xff\n", "{folder}/.env"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: bytes, name: str) -> None:
    """A line that can't be read is an error, since it may be the one that matters."""
    (tmp_path / ".env").write_bytes(text)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, "dev")
    assert caught.value.name == name.format(folder=tmp_path)


def test_a_folder_by_that_name_is_no_file(tmp_path: Path) -> None:
    """Some keep a virtual environment in `.env`."""
    (tmp_path / ".env").mkdir()
    assert load(tmp_path, "dev").http.port == 5001


# ── The key beside the database ───────────────────────────────────────────────


@pytest.mark.parametrize(
    ("engine", "file"),
    [
        ("sqlite:///approvals.db", "approvals.keys"),
        ("sqlite:///data/my%20own.sqlite", "data/my own.keys"),
        ("memory:", "approvals.keys"),
    ],
)
def test_a_key_is_made_once_and_kept(tmp_path: Path, engine: str, file: str) -> None:
    """Beside the database, for its owner's eyes only, and the same at the next start."""
    (tmp_path / "data").mkdir()
    first = load(tmp_path, "dev", ENGINE=engine)
    path = tmp_path / file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == first.secret_keys[0] + b"\n"
    assert load(tmp_path, "demo", ENGINE=engine) == first
    assert sorted(each.name for each in path.parent.glob("*.keys*")) == [path.name]


def test_keys_that_are_given_make_no_file(tmp_path: Path) -> None:
    """Whoever has a key gets no other beside it."""
    assert load(tmp_path, "dev", SECRET_KEYS=KEY).secret_keys == (KEY.encode(),)
    assert not list(tmp_path.iterdir())


def test_two_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    """The file appears whole or not at all: nobody reads half a key or signs with a lost one."""
    many = 8
    with ThreadPoolExecutor(many) as pool:
        for turn in range(25):
            (folder := tmp_path / str(turn)).mkdir()
            start = Barrier(many)

            def begin(folder: Path = folder, start: Barrier = start) -> tuple[bytes, ...]:
                start.wait()
                return load(folder, "dev").secret_keys

            begun = [pool.submit(begin) for _ in range(many)]
            assert len({each.result() for each in begun}) == 1
            assert [each.name for each in folder.iterdir()] == ["approvals.keys"]


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_key_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    """Too short or not text: named with its path, and left as it is."""
    path = tmp_path / "approvals.keys"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=re.escape(str(path))) as caught:
        load(tmp_path, "dev")
    assert caught.value.name == PREFIX + "SECRET_KEYS"
    assert path.read_bytes() == content


def test_a_key_file_that_cant_be_read_or_made_is_refused(tmp_path: Path) -> None:
    """A folder in its place, a link to nowhere, a folder that is not there, a name that can't be."""
    (tmp_path / "approvals.keys").mkdir()
    (tmp_path / "b.keys").symlink_to(tmp_path / "nowhere" / "b.keys")
    for engine in ("memory:", "sqlite:///b.db", "sqlite:///none/a.db", "sqlite:///a%00b.db"):
        with pytest.raises(SettingsError, match=r"can't be (used|made)") as caught:
            load(tmp_path, "dev", ENGINE=engine)
        assert caught.value.name == PREFIX + "SECRET_KEYS"


@pytest.mark.parametrize("engine", ["sqlite:////", "sqlite:///."])
def test_a_database_without_a_name_is_refused(tmp_path: Path, engine: str) -> None:
    """There is no place beside it."""
    assert "names no file" in refused(tmp_path, "dev", ENGINE=engine)


def test_a_fresh_key_is_strong_and_fits(tmp_path: Path) -> None:
    """What `approvals keys` prints is a key that is accepted, and never the same twice."""
    keys = [fresh_key() for _ in range(20)]
    assert len(set(keys)) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", key) for key in keys)
    assert load(tmp_path, SECRET_KEYS=",".join(keys)).secret_keys == tuple(key.encode() for key in keys)
