"""What a reply is read into. Everything here is a value; nothing here reads."""

from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from service.domain import Choice

#: A header field, or the body, that names a letter of ours, and whether it is the one that was sent.
type Sign = tuple[str, bool]

#: Signs that come to one: a mail may name several letters, so it is enough that one of them is ours.
_KINDS = (("to", "cc"), ("in-reply-to", "references"), ("body",), ("date",), ("elsewhere",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What we know of the letter that is being answered.

    `text` is its plain-text part; where it is not known which of our letters is being
    answered, all of theirs, joined by line breaks. `reply_address` is the full signed one;
    `own_addresses` ours in canonical form (From, envelope sender); `language` the
    BCP 47 primary subtag that the letter was written in: a word that means
    something else there does not count. `thread` is what every Message-ID of its thread has,
    `link` the signed link in it, `made` the instant from which on it could be answered;
    `approver` holds the addresses, canonical, of whom it asks, `names` what they and whoever
    had it sent are called.
    """

    subject: str
    text: str
    reply_address: str
    own_addresses: frozenset[str] = frozenset()
    language: str = "en"
    thread: str = ""
    link: str = ""
    made: datetime | None = None
    approver: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


class Why(StrEnum):
    """What made a person's reply no decision: they are asked back."""

    EMPTY = "empty"  #: no new text at all
    BELOW = "below"  #: new text, if any, stands below an unmarked copy of our letter
    QUESTION = "question"  #: "approve?"
    BOTH = "both"  #: words of both verdicts, or a second line that says the opposite
    NEGATED = "negated"  #: "do not approve"
    CONDITION = "condition"  #: "approve if ..."
    REACTION = "reaction"  #: an emoji reaction by mail: as often "seen" as "yes"
    STRUCK = "struck"  #: some of the new text is struck through, or hardly to be seen
    UNREAD = "unread"  #: more than is read stands below, and may say otherwise
    PARTS_DIFFER = "parts differ"  #: the plain and the HTML part do not say the same
    UNKNOWN_WORDS = "unknown words"  #: anything else


class Doubt(StrEnum):
    """What keeps a mail from having one known sender, or from being read at all."""

    NO_SENDER = "no From"
    SEVERAL_SENDERS = "more than one From or address"
    MALFORMED_SENDER = "malformed From"
    MALFORMED_HEADER = "malformed header block"
    HEADER_TOO_LONG = "header block too long"
    FIELD_TOO_LONG = "header field too long"
    TOO_BIG = "message too big"
    TOO_MANY_PARTS = "too many parts"
    TOO_DEEP = "parts nested too deep"
    PREAMBLE = "text before the first part"


class Reason(StrEnum):
    """Why a mail is neither acted on nor answered, in the order they are looked for."""

    READ_RECEIPT = "read receipt"
    REPORT = "report"
    BOUNCE = "bounce"
    OUT_OF_OFFICE = "out of office"
    CHALLENGE = "challenge-response"
    AUTO_REPLY = "auto-reply"
    MAILING_LIST = "mailing list"
    BULK = "bulk"
    CALENDAR = "calendar"
    OWN_ADDRESS = "own address"
    NULL_SENDER = "null sender"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounce:
    """What a bounce says of its delivery; each field is None where it says nothing usable.

    `action` is one of RFC 3464's (failed, delayed, delivered, relayed, expanded),
    `status` an RFC 3463 code such as ``5.1.1``, `final_recipient` canonical.
    """

    action: str | None = None
    status: str | None = None
    final_recipient: str | None = None
    diagnostic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A person's answer.

    Exactly one of `verdict` and `why` is set: a decision, or what made it none.
    `sender` is the canonical address of the one From, which is a claim until it is
    authenticated. `read` is the first of the new text, for a letter that asks back:
    clean, at most 200 characters, perhaps empty. `comment` is what follows the
    verdict, clean, perhaps empty. `languages` are the BCP 47 tags whose phrase it was.
    `signs` are what it says of the letter that it answers.
    """

    sender: str
    verdict: Choice | None
    why: Why | None
    comment: str = ""
    read: str = ""
    message_id: str | None = None
    languages: tuple[str, ...] = ()
    signs: tuple[Sign, ...] = ()

    def names_letter(self, covered: Container[str] | None = None) -> bool:
        """Tell whether it shows that this letter is answered, by `covered` fields, or by any.

        A kind of sign that names only other letters disproves it, whoever may have written it.
        The body is covered by whatever covers anything; who has a copy of a letter that it
        quotes has the letter's link, and could press the button.
        """
        for kind in _KINDS:
            told = [ours for name, ours in self.signs if name in kind]
            if told and not any(told):
                return False
        return any(
            ours and (covered is None or name == "body" or name in covered) for name, ours in self.signs
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unverified:
    """A mail that may be a person's, but whose sender or body can't be relied on.

    It decides nothing. The known approver, never anybody that the mail names, is
    asked to confirm by link. Where `refusable`, no mail program writes such a mail,
    and an SMTP server can refuse it with a 5xx instead.
    """

    doubt: Doubt
    detail: str = ""
    message_id: str | None = None

    @property
    def refusable(self) -> bool:
        """Tell a bound that was exceeded from a sender that could not be told."""
        return self.doubt not in {Doubt.NO_SENDER, Doubt.SEVERAL_SENDERS, Doubt.MALFORMED_SENDER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """A machine's mail: silence.

    `bounce` is set for BOUNCE alone. `text` holds an out-of-office's own words, clean,
    at most 4,000 characters, and `verdict` its decision where nothing but its subject shows
    that it is one. `sender` is the canonical From where there is exactly one.
    """

    reason: Reason
    detail: str = ""
    text: str = ""
    bounce: Bounce | None = None
    sender: str | None = None
    message_id: str | None = None
    verdict: Choice | None = None


#: What `read_reply` answers; a caller's `match` ends in `assert_never`.
type Reading = Reply | Unverified | Ignored
