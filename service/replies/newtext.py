"""What is new in a reply, told from our own letter that it quotes.

A general parser guesses at quoting; we know the letter that was sent. The quotation
begins at the first line that is marked (``>``, a separator, Outlook's header rows)
or ours (our address, the subject, words of the letter in their order); the attribution
above it goes too. Text above is new. Text below is new only where the quotation is
marked: below an unmarked copy, the letter's own buttons could pass for an answer.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from service.replies.lexicon import Lexicon, fold, lexicon, visible
from service.replies.markup import CUT
from service.replies.values import Sent
from service.replies.verdict import judge

#: Lines of a text, and characters of a line, that are looked at.
MAX_LINES: Final = 2_000
MAX_LINE: Final = 1_000
#: Words in a row that make a line ours: fewer are anybody's.
RUN: Final = 3
#: Lines within which Outlook's rows follow one another, and those of an attribution.
_ROWS, _ATTRIBUTION = 6, 4

_WORD: Final = re.compile(r"\w+")
_ROW: Final = re.compile(r"[*_ ]*([^\W\d_][^:*]{0,30}?)[*_ ]*:[*_ ]*(?=\s|\S)")
#: "-----Original Message-----" in any language, and a bare rule.
_SEPARATOR: Final = re.compile(
    r"[-\u2010\u2500_]{3,} ?[^-\u2010\u2500_ ][^-\u2010\u2500_]{1,60}[-\u2010\u2500_]{3,}"
)
_RULE: Final = re.compile(r"[-_=*\u2010\u2013\u2014\u2500~]{5,}")
_SIGNATURE: Final = re.compile(r"--|\u2014")
_CLOCK_OR_YEAR: Final = re.compile(r"\d{1,2}[:.h\u6642\u65f6\uc2dc]\d{2}|\d{4}|\d{1,2}[./]\d{1,2}")


@dataclass(frozen=True, slots=True)
class NewText:
    """The new lines in order, blank ones as empty strings; `below`: an unmarked copy, nothing above."""

    lines: tuple[str, ...]
    below: bool = False


class Letter:
    """The sent letter as it is recognised in a quotation."""

    def __init__(self, sent: Sent) -> None:
        local, _, domain = sent.reply_address.rpartition("@")
        token = local.rpartition("+")[2]
        self._marks = {
            mark
            for mark in map(
                fold, (sent.reply_address, *sent.own_addresses, token if len(token) >= RUN**3 else "")
            )
            if len(mark) > RUN and domain
        }
        self._runs: set[tuple[str, ...]] = set()
        words = [word for line in sent.text.split("\n") for word in _words(line)]
        self._runs |= set(_runs(words))
        subject = _words(sent.subject)
        self._runs |= set(_runs(subject))

    def names(self, folded: str) -> bool:
        """Tell whether a line holds an address of ours or the reply token."""
        return any(mark in folded for mark in self._marks)

    def wrote(self, words: Sequence[str]) -> bool:
        """Tell whether `words`, three at least, stand in the letter in this order."""
        return len(words) >= RUN and all(run in self._runs for run in _runs(words))


@dataclass(frozen=True, slots=True)
class _Line:
    """A line as given, and what is known of it."""

    text: str
    folded: str
    words: tuple[str, ...]
    quoted: bool
    label: frozenset[str]


def new_text(lines: Iterable[str], sent: Sent) -> NewText:
    """Return what of `lines` its sender wrote; linear in their length, never raises."""
    words, letter = lexicon(), Letter(sent)
    seen = [_seen(text, words) for text, _ in zip(lines, range(MAX_LINES), strict=False)]
    start = next((i for i in range(len(seen)) if _quotation_starts(seen, i, letter, words)), len(seen))
    above = _signed_off(seen[: _above_attribution(seen, start, words, letter, sent)], words)
    below, marked = _interleaved(seen, start, letter, words)
    if any(line.text for line in above):
        kept = [*above, *([] if not marked else below)]
    elif marked:
        kept = below
    else:
        return NewText((), below=start < len(seen))
    return NewText(_trimmed([line.text for line in kept]))


def _seen(text: str, words: Lexicon) -> _Line:
    text = visible(text[:MAX_LINE].replace("\xa0", " ")).strip()
    folded = fold(text)
    row = _ROW.match(folded)
    label = words.labels.get(row[1].strip(), frozenset()) if row else frozenset()
    return _Line(text, folded, tuple(_WORD.findall(folded)), folded.startswith(">"), label)


def _quotation_starts(seen: Sequence[_Line], at: int, letter: Letter, words: Lexicon) -> bool:
    line = seen[at]
    if line.quoted or line.text == CUT or _separates(line, words) or letter.names(line.folded):
        return True
    if line.label and _header_rows(seen, at):
        return True
    if not letter.wrote(line.words):
        return False
    # A comment may repeat a line of the letter; a quotation goes on.
    following = [other for other in seen[at + 1 : at + 1 + 2 * RUN] if other.text]
    first = not any(other.text for other in seen[:at])
    return first or any(
        _ours(other, letter) or other.quoted or other.text == CUT for other in following[:RUN]
    )


def _ours(line: _Line, letter: Letter) -> bool:
    return letter.wrote(line.words) or letter.names(line.folded)


def _separates(line: _Line, words: Lexicon) -> bool:
    return bool(_SEPARATOR.fullmatch(line.folded)) or line.folded.strip(" -_*:") in words.forwarded


def _header_rows(seen: Sequence[_Line], at: int) -> bool:
    """Tell whether Outlook's rows begin here: From or Sent, and others, on lines that follow one another."""
    rows = [line.label for line in seen[at : at + 2 * _ROWS] if line.text][:_ROWS]
    kinds = {kind for label in rows for kind in label}
    return sum(1 for label in rows if label) > 1 and len(kinds) > 1 and bool(kinds & {"from", "sent"})


def _above_attribution(seen: Sequence[_Line], start: int, words: Lexicon, letter: Letter, sent: Sent) -> int:
    """Return where the new text above a quotation ends: before "On ... X wrote:" and bare rules.

    No line that decides is ever taken for an attribution.
    """
    end = start
    while end and start < len(seen) and (not seen[end - 1].text or _RULE.fullmatch(seen[end - 1].folded)):
        end -= 1
    if start == len(seen) or (start < len(seen) and letter.names(seen[start].folded) and end < start):
        return end
    joined = "" if not letter.names(seen[start].folded) or seen[start].quoted else seen[start].folded
    closed = bool(joined)
    for count in range(1, min(_ATTRIBUTION, end) + 1):
        line = seen[end - count]
        if not line.text or judge(line.text, sent.language).verdict:
            break
        if not closed and not _closes_attribution(line, words):
            break
        closed, joined = True, f"{line.folded} {joined}"
        if _CLOCK_OR_YEAR.search(line.folded) or "@" in line.folded:
            above = seen[end - count - 1] if end > count else None
            # The date may stand on a line of its own above the name.
            if (
                above
                and above.text
                and _CLOCK_OR_YEAR.search(above.folded)
                and not _CLOCK_OR_YEAR.search(joined)
            ):
                continue
            return end - count
    return end


def _closes_attribution(line: _Line, words: Lexicon) -> bool:
    if line.folded.endswith(":"):
        return True
    return bool(_CLOCK_OR_YEAR.search(line.folded)) and any(word in words.wrote for word in line.words)


def _interleaved(
    seen: Sequence[_Line], start: int, letter: Letter, words: Lexicon
) -> tuple[list[_Line], bool]:
    """Return the unmarked lines between and below quoted ones, and whether the quotation is marked.

    Stops where anything of ours stands unmarked: from there on nothing can be told apart.
    """
    kept: list[_Line] = []
    marked = False
    attribution = 0
    for at in range(start, len(seen)):
        line = seen[at]
        if line.quoted:
            marked = True
        elif not line.text:
            kept.append(line)
        elif not marked:
            attribution += 1
            if attribution > _ATTRIBUTION or line.text == CUT or line.label or _separates(line, words):
                return [], False
        elif _SIGNATURE.fullmatch(line.text) or _unmarked_copy(seen, at, letter, words):
            break
        elif not _wrapped_quotation(seen, at, letter) and not _mobile(line, words):
            kept.append(line)
    return kept, marked


def _unmarked_copy(seen: Sequence[_Line], at: int, letter: Letter, words: Lexicon) -> bool:
    line = seen[at]
    if line.text == CUT or _separates(line, words) or _ours(line, letter):
        return True
    return bool(line.label) and _header_rows(seen, at)


def _wrapped_quotation(seen: Sequence[_Line], at: int, letter: Letter) -> bool:
    """Tell whether an unmarked line is the broken-off end or beginning of a quoted one."""
    words = seen[at].words
    before = next((line.words for line in reversed(seen[max(at - RUN, 0) : at]) if line.words), ())
    after = next((line.words for line in seen[at + 1 : at + 1 + RUN] if line.words), ())
    return letter.wrote([*before[-2:], *words]) or letter.wrote([*words, *after[:2]])


def _signed_off(lines: Sequence[_Line], words: Lexicon) -> list[_Line]:
    """Return `lines` without signature: all below ``-- ``, and "Sent from my phone"."""
    end = next((i for i, line in enumerate(lines) if _SIGNATURE.fullmatch(line.text)), len(lines))
    return [line for line in lines[:end] if not _mobile(line, words)]


def _mobile(line: _Line, words: Lexicon) -> bool:
    return line.folded.lstrip("*_<[ ").startswith(words.signatures)


def _trimmed(lines: Sequence[str]) -> tuple[str, ...]:
    filled = [i for i, text in enumerate(lines) if text]
    return tuple(lines[filled[0] : filled[-1] + 1]) if filled else ()


def _words(text: str) -> list[str]:
    return _WORD.findall(fold(visible(text[:MAX_LINE])))


def _runs(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(RUN)), strict=False)
