"""Mail that no person wrote, and what it tells all the same."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from typing import Final

from service.domain import Choice
from service.replies.lexicon import fold, lexicon
from service.replies.mime import Headers, Part, decoded
from service.replies.values import Bounce, Ignored, Reason, Sent
from service.requests import canonical_address

#: Characters of a subject that are decoded and looked at.
MAX_SUBJECT: Final = 1_000
_MAX_DIAGNOSTIC: Final = 500

_CHALLENGES: Final = (
    "x-boxbe-challenge",
    "x-bluebottle-request",
    "x-challenge-response",
    "x-spamarrest-challenge",
    "x-tmda-confirm",
    "x-qurb-challenge",
    "x-asksender",
    "x-choicemail-registration-request",
)
_CHALLENGE_SUBJECT: Final = re.compile(
    r"(?:re: )?(?:please confirm your (?:message|e-?mail)|confirm your e-?mail to |sender verification|"
    r"verification required|action required: verify your (?:e-?mail|message)|"
    r"your (?:message|e-?mail) (?:is|was) (?:being )?held)"
)
_AUTO: Final = ("x-autoreply", "x-autorespond", "x-autoresponder", "x-auto-reply", "x-vacation")
_VACATION: Final = ("x-vacation", "x-autoreply-from", "x-sieve-vacation")
_LISTS: Final = ("list-id", "list-post", "mailing-list", "x-mailing-list")
_ANSWERS: Final = {"reply", "counter", "declinecounter", "refresh"}
_ACTIONS: Final = {"failed", "delayed", "delivered", "relayed", "expanded"}
_STATUS: Final = re.compile(r"\s*([245]\.\d{1,3}\.\d{1,3})\b")
#: The last address of the way goes before the first.
_RECIPIENTS: Final = ("final-recipient", "original-recipient")
_SYSTEM: Final = {"mailer-daemon", "postmaster", "mail-daemon", "mailerdaemon"}


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the rules look at."""

    mail: Part
    sent: Sent
    envelope_from: str | None
    sender: str | None
    subject: str

    def header(self, *names: str) -> str:
        """Return the first of `names` that the mail has, or an empty string."""
        return next((name for name in names if self.mail.headers.all(name)), "")

    @property
    def report_type(self) -> str | None:
        """The type of a multipart/report, perhaps empty; None for other mail."""
        return self.mail.parameters.get("report-type", "").lower() if self._is_report else None

    @property
    def _is_report(self) -> bool:
        return self.mail.content_type == "multipart/report"

    @property
    def auto_submitted(self) -> str:
        """The first Auto-Submitted keyword other than ``no``, or an empty string."""
        words = map(_keyword, self.mail.headers.all("auto-submitted"))
        return next((word for word in words if word != "no"), "")

    @property
    def precedence(self) -> str:
        """The first Precedence, in lower case."""
        return _keyword(self.mail.headers.first("precedence"))


def ignored(
    mail: Part,
    sent: Sent,
    *,
    sender: str | None,
    envelope_from: str | None,
    verdict: Callable[[], Choice | None],
) -> Ignored | None:
    """Return why `mail` is neither acted on nor answered, or None where a person may have written it.

    `sender` is its one From, or None where that can't be told; `verdict` reads what its text decides.

    The first of these that holds:

    1. READ_RECEIPT: multipart/report of a disposition notification;
    2. REPORT: any other multipart/report but a delivery status, such as a complaint;
    3. BOUNCE: multipart/report, message/delivery-status, X-Failed-Recipients, a sender
       called mailer-daemon or postmaster, unless it is the approver's address and MAIL FROM is not empty;
    4. OUT_OF_OFFICE: a subject that begins as absent people's mail programs do
       (unless our letter's own subject does), vacation headers;
    5. CHALLENGE: "confirm that you are a person", by header or subject;
    6. AUTO_REPLY: Auto-Submitted other than ``no``, X-Autoreply and its kin, Precedence auto_reply;
    7. MAILING_LIST: List-Id, List-Post, Mailing-List, Precedence list;
    8. BULK: Precedence bulk or junk;
    9. CALENDAR: text/calendar that answers: a meeting's "Declined" is no decision;
    10. OWN_ADDRESS: from our own From or reply address;
    11. NULL_SENDER: an empty MAIL FROM, which a person's mail never has.

    X-Auto-Response-Suppress proves nothing: people's own mail carries it too.
    """
    facts = _Facts(mail, sent, envelope_from, sender, subject_of(mail.headers))
    told = [(reason, detail) for reason, holds in _RULES if (detail := holds(facts)) is not None]
    if not told:
        return None
    reason, detail = told[0]
    return Ignored(
        reason=reason,
        detail=detail,
        bounce=_bounce(facts) if reason is Reason.BOUNCE else None,
        sender=facts.sender,
        # A subject alone may be a person's: "Out of office until Monday, but approve".
        verdict=verdict() if reason is Reason.OUT_OF_OFFICE and len(told) == 1 else None,
    )


def _read_receipt(facts: _Facts) -> str | None:
    return "report-type" if facts.report_type == "disposition-notification" else None


def _report(facts: _Facts) -> str | None:
    return facts.report_type if facts.report_type not in {None, "", "delivery-status"} else None


def _bounced(facts: _Facts) -> str | None:
    if facts.report_type is not None or _delivery_status(facts.mail):
        return "report"
    if name := facts.header("x-failed-recipients"):
        return name
    approver = facts.sender in facts.sent.approver and _null_sender(facts) is None
    return facts.sender if (facts.sender or "").partition("@")[0] in _SYSTEM and not approver else None


def _out_of_office(facts: _Facts) -> str | None:
    words = lexicon()
    absent = facts.subject.startswith(words.out_of_office)
    found = next(filter(facts.subject.startswith, words.out_of_office)) if absent else ""
    ours = fold(facts.sent.subject[:MAX_SUBJECT])
    rest = facts.subject[len(found) :].lstrip()
    # "Absent: ..." is a program's; "Absent next week, but yes" may be a person's new subject.
    marked = not rest or " " in found or rest.startswith((":", "-", "re:", "aw:", ours or ":"))
    if found and marked and not ours.startswith(found):
        return found
    vacation = facts.header(*_VACATION) or "vacation" in facts.mail.headers.first("auto-submitted").lower()
    return "vacation" if vacation and facts.auto_submitted else None


def _challenge(facts: _Facts) -> str | None:
    if name := facts.header(*_CHALLENGES):
        return name
    ours = _CHALLENGE_SUBJECT.match(fold(facts.sent.subject[:MAX_SUBJECT]))
    return "subject" if _CHALLENGE_SUBJECT.match(facts.subject) and not ours else None


def _auto_reply(facts: _Facts) -> str | None:
    if facts.auto_submitted:
        return f"auto-submitted: {facts.auto_submitted}"
    if (name := facts.header(*_AUTO)) and _keyword(facts.mail.headers.first(name)) not in {"no", "false"}:
        return name
    return "precedence" if facts.precedence in {"auto_reply", "auto-reply"} else None


def _mailing_list(facts: _Facts) -> str | None:
    return facts.header(*_LISTS) or ("precedence" if facts.precedence == "list" else None)


def _bulk(facts: _Facts) -> str | None:
    return "precedence" if facts.precedence in {"bulk", "junk"} else None


def _calendar(facts: _Facts) -> str | None:
    parts = (part for part in facts.mail.walk() if part.content_type == "text/calendar")
    methods = (part.parameters.get("method", "").lower() for part in parts)
    return next((method for method in methods if method in _ANSWERS), None)


def _own_address(facts: _Facts) -> str | None:
    ours = {*facts.sent.own_addresses, facts.sent.reply_address.lower()}
    return facts.sender if facts.sender in ours else None


def _null_sender(facts: _Facts) -> str | None:
    return (
        "mail from" if facts.envelope_from is not None and facts.envelope_from.strip() in {"", "<>"} else None
    )


_RULES: Final[tuple[tuple[Reason, Callable[[_Facts], str | None]], ...]] = (
    (Reason.READ_RECEIPT, _read_receipt),
    (Reason.REPORT, _report),
    (Reason.BOUNCE, _bounced),
    (Reason.OUT_OF_OFFICE, _out_of_office),
    (Reason.CHALLENGE, _challenge),
    (Reason.AUTO_REPLY, _auto_reply),
    (Reason.MAILING_LIST, _mailing_list),
    (Reason.BULK, _bulk),
    (Reason.CALENDAR, _calendar),
    (Reason.OWN_ADDRESS, _own_address),
    (Reason.NULL_SENDER, _null_sender),
)


def subject_of(headers: Headers) -> str:
    """Return the subject, decoded and folded, at most `MAX_SUBJECT` characters; never raises."""
    text = headers.first("subject")[:MAX_SUBJECT]
    with suppress(HeaderParseError, ValueError):  # else it is read as it stands
        chunks = decode_header(text) if "=?" in text else [(text, None)]
        text = "".join(
            chunk if isinstance(chunk, str) else decoded(chunk, charset or "") for chunk, charset in chunks
        )
    return fold(text[:MAX_SUBJECT])


def _keyword(value: str) -> str:
    return value.partition(";")[0].partition("(")[0].strip().lower()


def _delivery_status(mail: Part) -> Part | None:
    return next((part for part in mail.walk() if part.content_type == "message/delivery-status"), None)


def _bounce(facts: _Facts) -> Bounce:
    report = _delivery_status(facts.mail)
    if report is None:
        failed, _, _ = facts.mail.headers.first("x-failed-recipients").partition(",")
        return Bounce(final_recipient=_recipient(failed))
    text, _ = report.text()
    # The first block tells of the report, each further one of a recipient.
    blocks = [_fields(block) for block in re.split(r"\r?\n[ \t]*(?:\r?\n)+", text)]
    about = [fields for fields in blocks if {"action", *_RECIPIENTS} & fields.keys()]
    theirs = [fields for fields in about if _recipient(_named(fields)) in facts.sent.approver]
    fields = next(iter([*theirs, *about]), {})
    action = _keyword(fields.get("action", ""))
    status = _STATUS.match(fields.get("status", ""))
    return Bounce(
        action=action if action in _ACTIONS else None,
        status=status[1] if status else None,
        final_recipient=_recipient(_named(fields)),
        diagnostic=fields.get("diagnostic-code", "")[:_MAX_DIAGNOSTIC],
    )


def _fields(block: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in re.sub(r"\r?\n[ \t]+", " ", block).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _named(fields: dict[str, str]) -> str:
    """Return whom a report is about: where mail was forwarded, the address that it was forwarded to."""
    return next((fields[name] for name in _RECIPIENTS if fields.get(name)), "").rpartition(";")[2]


def _recipient(text: str) -> str | None:
    try:
        return canonical_address(text.strip().strip("<>"))
    except ValueError:
        return None
