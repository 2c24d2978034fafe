"""`read_reply`: a mail's bytes into what it means."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from service.replies.lexicon import visible
from service.replies.markup import CUT, STRUCK, UNREAD, lines_of
from service.replies.mime import MAX_TEXT, Exceeded, Part, parse
from service.replies.newtext import Letter, NewText, new_text
from service.replies.objections import disclaims, excused, objects, retracts, sentences, takes_back
from service.replies.sender import message_id_of, sender_of
from service.replies.signals import ignored
from service.replies.thread import signs_of
from service.replies.values import Reading, Reason, Reply, Sent, Unverified, Why
from service.replies.verdict import Judgement, greets, judge

#: Characters of a comment, and of what a letter that asks back repeats.
MAX_COMMENT: Final = 4_000
MAX_READ: Final = 200
_READ_LINES: Final = 3
#: Sentences below a verdict that are looked at.
MAX_SENTENCES: Final = 2_000

#: Characters of a line that a mail program may have broken.
WRAPPED: Final = 60

_ENDS: Final = (".", "!", "?", ":", ";")
_NEWLINE: Final = re.compile(r"\r\n|\r|\n")
_REACTION: Final = "text/vnd.google.email-reaction+json"


def read_reply(raw: bytes, sent: Sent, *, envelope_from: str | None = None) -> Reading:
    """Return what the mail `raw`, an answer to the letter `sent`, means. Pure; never raises; linear time.

    `envelope_from` is the SMTP MAIL FROM where it is known; ``""`` and ``"<>"`` are the
    null sender.

    `Ignored` for every mail that `signals` lists: it is neither acted on nor answered.
    `Unverified` where the sender or the message breaks a rule: nothing is decided, and
    the known approver is asked to confirm. Else `Reply`, with a verdict only where the
    first new line is one from end to end.
    """
    try:
        mail = parse(raw)
    except Exceeded as exc:
        return Unverified(doubt=exc.doubt, detail=exc.detail)
    message_id = message_id_of(mail.headers)
    claimed = _sender(mail)
    sender = claimed if isinstance(claimed, str) else None
    if silence := ignored(
        mail, sent, sender=sender, envelope_from=envelope_from, verdict=lambda: _read(mail, sent)[0].verdict
    ):
        text = _out_of_office_text(mail, sent) if silence.reason is Reason.OUT_OF_OFFICE else ""
        return replace(silence, text=text, message_id=message_id)
    if isinstance(claimed, Exceeded):
        return Unverified(doubt=claimed.doubt, detail=claimed.detail, message_id=message_id)
    judgement, comment, read = _read(mail, sent)
    return Reply(
        sender=claimed,
        verdict=judgement.verdict,
        why=judgement.why,
        comment=comment,
        read=read,
        message_id=message_id,
        languages=judgement.languages,
        signs=signs_of(mail, sent),
    )


def _sender(mail: Part) -> str | Exceeded:
    try:
        return sender_of(mail.headers)
    except Exceeded as exc:
        return exc


def _read(mail: Part, sent: Sent) -> tuple[Judgement, str, str]:
    plain, marked_up = _bodies(mail)
    letter = Letter(sent)
    new, from_markup = new_text(plain, letter), new_text(marked_up, letter)
    judgement = _judged(new, sent)
    if not new.lines and (from_markup.lines or from_markup.below):
        new, judgement = from_markup, _judged(from_markup, sent)
    elif judgement.verdict and marked_up:
        other = _judged(from_markup, sent)
        if from_markup.lines and other.verdict != judgement.verdict:
            judgement = Judgement(None, Why.STRUCK if other.why is Why.STRUCK else Why.PARTS_DIFFER)
    if any(part.content_type == _REACTION for part in mail.walk()):
        judgement = Judgement(None, Why.REACTION)
    filled = [line for line in map(_clean, new.lines) if line]
    read = _capped("\n".join(filled[:_READ_LINES]), MAX_READ)
    rest = [_clean(line) for line in _after_greeting(new.lines)[1:]]
    comment = _capped("\n".join(rest).strip(), MAX_COMMENT) if judgement.verdict else ""
    return judgement, comment, read


def _judged(new: NewText, sent: Sent) -> Judgement:
    """Return what the first line says, unless what follows takes it back."""
    if not new.lines:
        return Judgement(None, Why.BELOW if new.below else Why.EMPTY)
    if any(STRUCK in line for line in new.lines):
        return Judgement(None, Why.STRUCK)
    if UNREAD in new.lines:
        return Judgement(None, Why.UNREAD)
    lines = _after_greeting(new.lines)
    said = judge(lines[0], sent.language, sent.names)
    back = _taken_back(said, lines, sent) if said.verdict else None
    return Judgement(None, back) if back else said


def _after_greeting(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Return `lines` without a paragraph that only greets, "Hi Bob,": it can't say yes, no or perhaps."""
    following = next((i for i, line in enumerate(lines) if i and line), 0)
    return lines[following:] if following > 1 and greets(lines[0]) else lines


def _taken_back(said: Judgement, lines: Sequence[str], sent: Sent) -> Why | None:
    """Return why the lines below a verdict leave it none: "?", "if ...", the other verdict."""
    first = next((line for line in lines[1:] if line), "")
    if not first.strip("?\u061f\uff1f "):
        return Why.QUESTION if first else None
    if said.verdict == "decline":
        # Set apart by a stop or a blank line, "only two nights are in the budget" is the reason.
        apart = not lines[1] or lines[0].endswith((".", "!"))
        if (retracts if apart else takes_back)(first, {*said.languages, sent.language}):
            return Why.CONDITION
        # "rejected" and below it "by Bob?": no stop, no blank line, no capital, so it may be one sentence.
        if lines[1][:1].islower() and lines[1].endswith("?") and not lines[0].endswith((".", "!")):
            return Why.QUESTION
    read, disclaimed = 0, False
    for line in _unwrapped(lines[1:]):
        # What a company puts below every mail goes on to the end of its paragraph, and is about mail.
        disclaimed = disclaimed and bool(line)
        for sentence in sentences(line):
            read += 1
            disclaimed = disclaimed or disclaims(sentence)
            why = objects(sentence, said, sent.language)
            if why and not (disclaimed and excused(sentence, sent.language)):
                return why
            if read > MAX_SENTENCES:
                return Why.UNREAD
    return None


def _unwrapped(lines: Sequence[str]) -> Iterator[str]:
    """Yield `lines`, those joined that a mail program broke inside a sentence."""
    whole, above = "", ""
    for line in lines:
        broken = len(above) >= WRAPPED or any(map(disclaims, islice(sentences(whole[:WRAPPED]), 1)))
        if broken and line[:1].islower() and not above.endswith(_ENDS):
            whole += f" {line}"
        else:
            yield whole
            whole = line
        above = line
    yield whole


def _bodies(mail: Part) -> tuple[list[str], list[str]]:
    """Return the lines of the plain text and of the HTML, each of all parts that are not files.

    The bounds of one text hold for all of them together.
    """
    own = _own_parts(mail)
    plain: list[str] = []
    room = MAX_TEXT
    for part in own:
        if part.content_type == "text/plain":
            if room <= 0:
                plain.append(UNREAD)
                break
            text, whole = part.text()
            plain += _lines(part, text[:room], whole=whole and len(text) <= room)
            room -= len(text)
    return plain, lines_of(part.text() for part in own if part.content_type == "text/html")


def _own_parts(part: Part) -> list[Part]:
    if part.content_type.startswith("multipart/"):
        return [own for child in part.children for own in _own_parts(child)]
    # A message that is attached is somebody else's words.
    return [] if part.attached or not part.content_type.startswith("text/") else [part]


def _lines(part: Part, text: str, *, whole: bool) -> list[str]:
    lines = _NEWLINE.split(text.replace("\0", ""))
    if part.parameters.get("format", "").lower() == "flowed":
        lines = _unflowed(lines, delsp=part.parameters.get("delsp", "").lower() == "yes")
    # A line that the bound cut off may say more than is seen of it.
    return lines if whole else [*lines[:-1], UNREAD]


def _unflowed(lines: list[str], *, delsp: bool) -> list[str]:
    """Return the lines that RFC 3676 `lines` flow into, quote marks kept."""
    whole: list[str] = []
    flowing: list[str] = []
    flowing_depth = -1
    for line in lines:
        content = line.lstrip(">")
        depth = len(line) - len(content)
        content = content.removeprefix(" ")
        signature = content == "-- "
        if flowing and (depth != flowing_depth or signature):
            whole.append("".join(flowing))
            flowing = []
        if not flowing:
            flowing, flowing_depth = [">" * depth], depth
        if content.endswith(" ") and not signature:
            flowing.append(content[:-1] if delsp else content)
        else:
            whole.append("".join([*flowing, content]))
            flowing = []
    if flowing:
        whole.append("".join(flowing))
    return whole


def _out_of_office_text(mail: Part, sent: Sent) -> str:
    plain, marked_up = _bodies(mail)
    letter = Letter(sent)
    new = new_text(plain, letter).lines or new_text(marked_up, letter).lines
    return _capped("\n".join(map(_clean, new)).strip(), MAX_COMMENT)


def _clean(line: str) -> str:
    """Return `line` without control, private or unpaired characters, nor any that reorder or hide text."""
    line = visible(line.replace(STRUCK, "").replace(CUT, "").replace(UNREAD, ""))
    return "".join(
        " " if category == "Cc" else c
        for c in line
        if (category := unicodedata.category(c)) not in {"Cs", "Co", "Zl", "Zp"}
    ).strip()


def _capped(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "\u2026"
