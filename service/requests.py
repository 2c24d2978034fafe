"""What a caller asks for: its fields, their rules, and what it is made definite into.

`parse_request` is the only way in, for the API, for workflows in any language and
for the command line; every problem names its field.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.errors import HeaderParseError
from email.headerregistry import Address
from functools import cache, lru_cache
from typing import Annotated, Literal
from zoneinfo import available_timezones

import idna
import msgspec
from babel import Locale, UnknownLocaleError
from msgspec import Meta

from service.errors import FieldProblem, RequestInvalid

#: Ids that callers may give; ids made by workflows may also hold ``:``.
CALLER_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
#: Ids of our own records, named by a ballot's key: nobody may sit down there before them.
_OUR_ID = re.compile(r"(ballot|entry|answer|signal|mail|parked)\.[a-z2-7]{26}(\.|$)")
#: RFC 5321 4.5.3.1: the octets of a local part and of a path.
MAX_LOCAL_PART, MAX_ADDRESS = 64, 254
MAX_APPROVERS, MAX_FACTS = 50, 20
MIN_DUE, DEFAULT_DUE, MAX_DUE = timedelta(seconds=1), timedelta(days=14), timedelta(days=366)
#: How long a root promise outlives its due time, so that a worker which was away
#: at that moment can still close the approval itself.
GRACE = timedelta(days=1)
#: The share of a foreign root's life that is kept for closing, where its life
#: clamps ours: a root that times out first would take the outcome with it.
CLOSING_SHARE, MAX_CLOSING = 0.1, timedelta(minutes=1)

#: Characters that reorder or hide text: bidi embeddings, overrides and isolates,
#: line and paragraph separators.
_DECEPTIVE = re.compile("[\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Person(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Somebody with an address: a requester."""

    email: str
    name: Annotated[str, Meta(min_length=1, max_length=100)] | None = None

    @property
    def display(self) -> str:
        """The name where there is one, else the address."""
        return self.name or self.email


class Approver(Person, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Somebody who is asked; `locale` is a BCP 47 tag, `zone` an IANA time zone."""

    locale: Annotated[str, Meta(max_length=35)] | None = None
    zone: Annotated[str, Meta(max_length=64)] | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A caller's request, canonical: equal requests are equal values, however written."""

    subject: Annotated[str, Meta(min_length=1, max_length=200)]
    approvers: Annotated[list[Approver | str], Meta(min_length=1, max_length=MAX_APPROVERS)]
    id: str | None = None
    message: Annotated[str, Meta(max_length=20_000)] = ""
    facts: Annotated[
        dict[Annotated[str, Meta(max_length=60)], Annotated[str, Meta(max_length=500)]],
        Meta(max_length=MAX_FACTS),
    ] = {}
    requester: Person | str | None = None
    policy: Literal["any"] = "any"
    due: str | None = None


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A request made definite: everybody a person, every time an instant (UTC)."""

    approval_id: str
    subject: str
    message: str
    facts: dict[str, str]
    approvers: list[Approver]
    requester: Person | None
    created_at: datetime
    due_at: datetime


def parse_request(body: object) -> Request:
    """Return the request that `body`, decoded JSON, states; cleaned and canonical.

    Raises RequestInvalid, naming every field that breaks a rule.
    """
    try:
        raw = msgspec.convert(body, Request)
    except msgspec.ValidationError as exc:
        # msgspec stops at the first; a caller who misspells two fields reads both.
        raise RequestInvalid(*(list(_unknown_fields(body)) or [field_problem(exc)])) from exc
    problems = _Problems()
    check = problems.check

    def person(where: str, given: Approver | Person) -> tuple[str, str | None]:
        email = check(f"{where}.email", canonical_address, given.email)
        return email or "", check(f"{where}.name", clean_line, given.name)

    check("id", _caller_id, raw.id)
    due = check("due", _canonical_due, raw.due)
    subject = check("subject", clean_line, raw.subject)
    facts = _clean_facts(raw.facts, problems)

    approvers: list[Approver | str] = []
    seen: set[str] = set()
    for index, entry in enumerate(raw.approvers):
        given = Approver(email=entry) if isinstance(entry, str) else entry
        email, name = person(f"approvers[{index}]", given)
        check(f"approvers[{index}].locale", _known_locale, given.locale)
        check(f"approvers[{index}].zone", _known_zone, given.zone)
        if email in seen:
            problems.append(FieldProblem(f"approvers[{index}]", "named twice"))
        seen |= {email} - {""}
        approvers.append(msgspec.structs.replace(given, email=email, name=name))
    requester = Person(email=raw.requester) if isinstance(raw.requester, str) else raw.requester
    if requester is not None:
        email, name = person("requester", requester)
        requester = Person(email=email, name=name)

    if problems:
        raise RequestInvalid(*problems)
    return msgspec.structs.replace(
        raw,
        subject=subject,
        message=clean_text(raw.message),
        facts=facts,
        approvers=approvers,
        requester=requester,
        due=due,
    )


def definite(request: Request, approval_id: str, created_at: datetime, timeout_at: datetime) -> Ask:
    """Make `request` definite, given its root promise's birth and deadline.

    The due time is the one asked for, or less where a foreign root's life is
    shorter; it always leaves time for closing. It is not before the birth.
    """
    requester, life = request.requester, timeout_at - created_at
    latest = timeout_at - min(MAX_CLOSING, life * CLOSING_SHARE)
    return Ask(
        approval_id=approval_id,
        subject=request.subject,
        message=request.message,
        facts=request.facts,
        approvers=people(request),
        requester=Person(email=requester) if isinstance(requester, str) else requester,
        created_at=created_at,
        due_at=max(created_at, min(due_at(request, created_at), latest)),
    )


def people(request: Request) -> list[Approver]:
    """Return the approvers, each as a person."""
    return [Approver(email=a) if isinstance(a, str) else a for a in request.approvers]


def due_at(request: Request, created_at: datetime) -> datetime:
    """Return the instant that `request` names, counted from `created_at` where it is a duration."""
    due = DEFAULT_DUE if request.due is None else parse_due(request.due)
    return due if isinstance(due, datetime) else created_at + due


def require_due(request: Request, now: datetime) -> datetime:
    """Return the instant that `request`, new `now`, is due: a second to a year ahead.

    Only for a request that opens something: a repeated one may name an instant
    that has passed since. Raises RequestInvalid naming `due`.
    """
    due = due_at(request, now)
    if not now + MIN_DUE <= due <= now + MAX_DUE:
        raise RequestInvalid(FieldProblem("due", "from one second to 366 days ahead"))
    return due


def parse_due(text: str) -> timedelta | datetime:
    """Read an ISO 8601 duration (``P3D``, ``PT30M``) or an instant with a zone. Raises ValueError."""
    try:
        if text[:1] in {"P", "+", "-"}:
            duration = msgspec.convert(text, timedelta)
            if not MIN_DUE <= duration <= MAX_DUE:
                raise ValueError("from one second (PT1S) to a year (P366D)")
            return duration
        instant: datetime = msgspec.convert(text, Annotated[datetime, Meta(tz=True)])
        return instant.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError) as exc:
        raise ValueError("an ISO 8601 duration such as P3D, or an instant with its zone") from exc


@lru_cache(maxsize=4096)  # the same few people are asked again and again
def canonical_address(text: str) -> str:
    """Return an address in the one form we compare: lower case, the domain in punycode.

    Mail hosts that tell ``Ann@`` from ``ann@`` are not met any more, while people
    write both. Raises ValueError for anything that is not one plain address.
    """
    problem = "not an email address"
    if not text or len(text) > MAX_ADDRESS or _has_control(text):
        raise ValueError(problem)
    local, _, domain = text.rpartition("@")
    if not local.isascii() or len(local) > MAX_LOCAL_PART:
        raise ValueError("the part before @ must be ASCII, at most 64 characters")
    try:
        domain = idna.encode(domain, uts46=True).decode("ascii").lower()
        parsed = Address(addr_spec=f"{local}@{domain}")
    except (idna.IDNAError, HeaderParseError, ValueError, IndexError, AttributeError) as exc:
        raise ValueError(problem) from exc
    address = f"{local.lower()}@{domain}"
    # A quoted local part is legal and unseen; refusing it keeps comparing simple.
    if parsed.addr_spec != f"{local}@{domain}" or '"' in local or " " in local:
        raise ValueError(problem)
    # Punycode is longer than what was written, and a number is a host's, not a domain's, last label.
    if len(address) > MAX_ADDRESS or domain.rpartition(".")[2].isdigit():
        raise ValueError(problem)
    return address


def clean_line(text: str) -> str:
    """Return `text` fit for a header or heading. CR, LF and NUL are refused: ValueError."""
    if re.search("[\r\n\0]", text):
        raise ValueError("must not hold line breaks or NUL")
    if not (line := " ".join(_clean(text).split())):
        raise ValueError("must not be blank")
    return line


def clean_text(text: str) -> str:
    """Return lines of text, a comment or a message: LF alone ends them, nothing in them acts or hides."""
    return _clean(text.replace("\r\n", "\n")).strip()


def _clean(text: str) -> str:
    """Blank out control characters (not tab or newline), half surrogates and characters that reorder text."""
    spaced = _DECEPTIVE.sub(" ", text)
    return "".join(" " if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t" else c for c in spaced)


def _has_control(text: str) -> bool:
    return any(unicodedata.category(c) in {"Cc", "Zl", "Zp", "Cf"} for c in text)


def _caller_id(text: str) -> str:
    if not CALLER_ID.fullmatch(text):
        raise ValueError("1 to 128 of A-Z a-z 0-9 . _ -")
    if _OUR_ID.match(text):
        raise ValueError("has the form of this service's own records")
    return text


class _Problems(list[FieldProblem]):
    """What is wrong so far."""

    def check[T](self, field: str, read: Callable[[str], T], given: str | None) -> T | None:
        """Return `given` as `read` has it, or note that it breaks the rule of `field`."""
        try:
            return None if given is None else read(given)
        except ValueError as exc:
            self.append(FieldProblem(field, str(exc)))
            return None


def _clean_facts(given: dict[str, str], problems: _Problems) -> dict[str, str]:
    facts: dict[str, str] = {}
    for given_label, text in given.items():
        label = problems.check("facts", clean_line, given_label)
        if label in facts:
            problems.append(FieldProblem(f"facts.{label}", "named twice"))
        facts[label or ""] = problems.check(f"facts.{label}" if label else "facts", clean_line, text) or ""
    return facts


def _canonical_due(text: str) -> str:
    return str(msgspec.to_builtins(parse_due(text)))


def _known_locale(text: str) -> Locale:
    problem = "not a known language tag such as en or pt-BR"
    if not re.fullmatch("[A-Za-z0-9-]+", text):  # Babel reads POSIX names such as de_DE@euro too
        raise ValueError(problem)
    try:
        return Locale.parse(text, sep="-")
    except (UnknownLocaleError, ValueError) as exc:
        raise ValueError(problem) from exc


def _known_zone(text: str) -> str:
    if text not in _zones():
        raise ValueError("not a known time zone such as Europe/Madrid")
    return text


@cache
def _zones() -> frozenset[str]:
    """Return every IANA name; not the likes of ``localtime``, which differ from host to host."""
    return frozenset(available_timezones() - {"Factory", "localtime", "posixrules"})


def _unknown_fields(body: object) -> Iterator[FieldProblem]:
    """Name every field that a request or a person in it does not have."""

    def unknown(where: str, value: object, kind: type[msgspec.Struct]) -> Iterator[FieldProblem]:
        for name in value if isinstance(value, dict) else ():
            if name not in kind.__struct_fields__:
                yield FieldProblem(f"{where}{_clean(str(name))}", "is not a field of this version")

    yield from unknown("", body, Request)
    if isinstance(body, dict):
        yield from unknown("requester.", body.get("requester"), Person)
        approvers = body.get("approvers")
        for index, entry in enumerate(approvers if isinstance(approvers, list) else ()):
            yield from unknown(f"approvers[{index}].", entry, Approver)


def field_problem(exc: msgspec.ValidationError) -> FieldProblem:
    """Turn msgspec's ``Expected ... - at `$.a[0].b` `` into a field and a message."""
    text, _, path = str(exc).partition(" - at `")
    if unknown := re.search(r"(?:unknown|required) field `([^`]*)`", text):
        return FieldProblem(".".join(filter(None, [_dotted(path), unknown[1]])), text)
    if text.startswith("Invalid enum value"):
        text += "; this version knows any"
    return FieldProblem(_dotted(path), text)


def _dotted(path: str) -> str:
    return (
        path.removeprefix("key` in `").rstrip("`").removeprefix("$").removeprefix(".").removesuffix("[...]")
    )
