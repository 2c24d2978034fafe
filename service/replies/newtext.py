"""What is new in a reply, told from our own letter that it quotes.

A general parser guesses at quoting; we know the letter that was sent. The quotation
begins at the first line that is marked (``>``, a separator, Outlook's header rows, an
attribution that names us) and, where none is, at several lines of the letter; the
attribution above it goes too. Text above is new. Text below is new only where the
quotation is marked: below an unmarked copy, the letter's own buttons could pass for an
answer, and below two attributions somebody else's.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from service.replies.lexicon import Lexicon, fold, lexicon, visible
from service.replies.markup import CUT, UNREAD
from service.replies.objections import hedges, warns, weighs
from service.replies.values import Sent
from service.replies.verdict import decides

#: Lines of a text that are read, and characters of a line by which it is recognised.
MAX_LINES: Final = 2_000
MAX_LINE: Final = 1_000
#: Words in a row that make a line ours: fewer are anybody's.
RUN: Final = 3
#: Characters of a reply token that is looked for by itself, without its domain.
MIN_TOKEN: Final = 20
#: Lines within which Outlook's rows follow one another, and those of an attribution.
_ROWS, _ATTRIBUTION = 6, 4
#: Characters of a quoted line from which on a program may have broken it.
_WRAPPED: Final = 50
#: Lines with text at the end of a reply among which a phone's signature is looked for.
_SIGNED: Final = 3

_WORD: Final = re.compile(r"\w+")
_ROW: Final = re.compile(r"[*_ ]*([^\W\d_][^:*]{0,30}?)[*_ ]*:[*_ ]*(?=\s|\S)")
#: "-----Original Message-----" in any language, and a bare rule.
_SEPARATOR: Final = re.compile(
    r"[-\u2010\u2500_]{3,} ?[^-\u2010\u2500_ ][^-\u2010\u2500_]{1,60}[-\u2010\u2500_]{3,}"
)
_RULE: Final = re.compile(r"[-_=*\u2010\u2013\u2014\u2500~]{5,}")
_SIGNATURE: Final = re.compile(r"--|\u2014")
_TIMED: Final = re.compile(r"(?<![\d.])\d{1,2}[:.h\u6642\u65f6\uc2dc]\d{2}(?![\d.])")
_YEAR: Final = re.compile(r"(?<!\d)20\d\d(?!\d)")
_DATED: Final = re.compile(r"\d{1,2}[:.h\u6642\u65f6\uc2dc]\d{2}|\d{4}|\d{1,2}[./]\d{1,2}")


@dataclass(frozen=True, slots=True)
class NewText:
    """The new lines in order, blank ones as empty strings; `below`: an unmarked copy, nothing above."""

    lines: tuple[str, ...]
    below: bool = False


class Letter:
    """The sent letter as it is recognised in a quotation; made once a mail."""

    def __init__(self, sent: Sent) -> None:
        local, _, _ = sent.reply_address.rpartition("@")
        token = fold(local.rpartition("+")[2])
        self.language = sent.language
        self._token = token if len(token) >= MIN_TOKEN else "\0"
        self._marks = {fold(mark) for mark in (sent.reply_address, *sent.own_addresses) if "@" in mark}
        text = [word for line in sent.text.split("\n") for word in _words(line)]
        self._runs = {*_runs(text), *_runs(_words(sent.subject))}

    def names(self, folded: str) -> bool:
        """Tell whether a line holds an address of ours or the reply token."""
        return self.holds_token(folded) or any(mark in folded for mark in self._marks)

    def holds_token(self, folded: str) -> bool:
        """Tell whether a line holds the reply token, which nobody writes by hand."""
        return self._token in folded

    def names_another(self, folded: str) -> bool:
        """Tell whether a line holds an address that is not ours."""
        for mark in self._marks:
            folded = folded.replace(mark, "")
        return "@" in folded

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


def new_text(lines: Iterable[str], letter: Letter) -> NewText:
    """Return what of `lines` its sender wrote; linear in their length, never raises."""
    return _Quotation(lines, letter).new()


def _seen(text: str, words: Lexicon) -> _Line:
    text = visible(text.replace("\xa0", " ")).strip()
    folded = fold(text[:MAX_LINE])
    row = _ROW.match(folded)
    label = words.labels.get(row[1].strip(), frozenset()) if row else frozenset()
    return _Line(text, folded, tuple(_WORD.findall(folded)), folded.startswith(">"), label)


class _Quotation:
    """The lines of one text, and where in them our letter is quoted."""

    def __init__(self, lines: Iterable[str], letter: Letter) -> None:
        self.words = lexicon()
        self.letter = letter
        given = iter(lines)
        self.lines = [_seen(text, self.words) for text in islice(given, MAX_LINES)]
        if next(given, None) is not None:
            self.lines.append(_seen(UNREAD, self.words))
        self.first = next((i for i, line in enumerate(self.lines) if line.text), len(self.lines))
        places = range(self.first, len(self.lines))
        # Whoever writes a letter's text could have an approver's words in it: where the
        # quotation is marked, what stands above is hers even so.
        start = next(filter(self._marks, places), None)
        self.start = next(filter(self._copied, places), len(self.lines)) if start is None else start

    def new(self) -> NewText:
        """Return the lines that are not ours."""
        end = self._above_attribution()
        above = _signed_off(self.lines[:end], self.words, self.letter.language)
        quoted = next((i for i in range(self.start, len(self.lines)) if self.lines[i].quoted), None)
        alone = not any(line.text for line in above)
        attributed = quoted is not None and self._attributed(end, quoted, alone=alone)
        if alone and not attributed:
            return NewText((), below=self.start < len(self.lines))
        below = self._below(quoted) if quoted is not None and attributed else []
        return NewText(_trimmed(_unwarned([line.text for line in (*above, *below)], self.letter.language)))

    def _marks(self, at: int) -> bool:
        """Tell whether a quotation begins at a line, as programs mark them."""
        line = self.lines[at]
        if line.quoted or self._separates(at):
            return True
        return self._names_us(line)

    def _copied(self, at: int) -> bool:
        """Tell whether an unmarked copy begins at a line: it goes on, a comment that repeats us does not."""
        line = self.lines[at]
        if self.letter.holds_token(line.folded):
            return not weighs(line.text, self.letter.language)
        if not self.letter.wrote(line.words):
            return False
        if at == self.first:
            return True
        following = [i for i in range(at + 1, min(at + 1 + 2 * RUN, len(self.lines))) if self.lines[i].text]
        ours = [i for i in following[:RUN] if self.letter.wrote(self.lines[i].words) or self._broken_off(i)]
        if len(ours) < RUN - 1:
            return False
        # Up to where it is out of order these may be the writer's last words.
        together = [line]
        for i in following:
            if not self.letter.wrote([*together[-1].words[1 - RUN :], *self.lines[i].words][:RUN]):
                doubted = any(weighs(other.text, self.letter.language) for other in together)
                return self.letter.wrote(self.lines[i].words) and not doubted
            together.append(self.lines[i])
        return True

    def _separates(self, at: int) -> bool:
        """Tell whether a line parts the new from the old: a marker, a separator, Outlook's rows.

        Only where it heads something: a writer may draw lines and write rows too.
        """
        line = self.lines[at]
        if line.text == CUT:
            return True
        forwarded = line.folded.strip(" -_*:") in self.words.forwarded
        if not forwarded and not _SEPARATOR.fullmatch(line.folded):
            return self._rows(at)
        below = next(
            (i for i in range(at + 1, min(at + 2 * _ROWS, len(self.lines))) if self.lines[i].text), at
        )
        other = self.lines[below]
        return (
            at == self.first
            or other.quoted
            or self._attributes(other)
            or self.letter.wrote(other.words)
            or (bool(other.label) if forwarded else self._rows(below))
        )

    def _rows(self, at: int) -> bool:
        """Tell whether Outlook's rows begin at a line, and not rows that a writer made."""
        if not self.lines[at].label:
            return False
        near = [other for other in self.lines[at : at + 2 * _ROWS] if other.text and not other.quoted][:_ROWS]
        kinds = {kind for row in near for kind in row.label}
        if len(kinds) < 2 or not kinds & {"from", "sent"} or sum(bool(row.label) for row in near) < 2:  # noqa: PLR2004
            return False
        known = any(
            (row.label and self.letter.names(row.folded)) or self.letter.wrote(row.words) for row in near
        )
        return at == self.first or "subject" in kinds or known

    def _attributes(self, line: _Line) -> bool:
        """Tell whether a line ends "On ... X wrote:", by two signs of it and no word of the writer's."""
        folded = line.folded
        sure = self._wrote(line) or folded.startswith("<") or bool(_TIMED.search(folded))
        signs = (folded.endswith(":"), folded.startswith("<"), bool(_DATED.search(folded)), self._wrote(line))
        return sure and sum(signs) > 1 and not weighs(line.text, self.letter.language)

    def _names_us(self, line: _Line) -> bool:
        """Tell whether a line ends an attribution with an address of ours."""
        return self.letter.names(line.folded) and self._attributes(line)

    def _above_attribution(self) -> int:
        """Return where the new text above the quotation ends: before "On ... X wrote:" and bare rules."""
        end = self.start
        if end == len(self.lines):
            return end
        while end and self._spacer(self.lines[end - 1]):
            end -= 1
        named = not self.lines[self.start].quoted and self._names_us(self.lines[self.start])
        if named and end < self.start:
            return end
        reach = end = self.start + 1 if named else end
        when = who = False
        while reach and end - reach < _ATTRIBUTION:
            line = self.lines[reach - 1]
            last = named or line.folded.endswith(":") or self._wrote(line)
            if self._spacer(line) or not (reach < end or last):
                break
            if weighs(line.text, self.letter.language) or self._decides(line):
                break
            reach -= 1
            when = when or bool(_TIMED.search(line.folded))
            who = who or self._wrote(line) or self.letter.names(line.folded)
            # Once it is whole, what stands above it is the writer's.
            if when and who and not line.folded.startswith("<"):
                return reach
        return end - 1 if end and (named or self._attributes(self.lines[end - 1])) else end

    def _spacer(self, line: _Line) -> bool:
        return not line.text or bool(_RULE.fullmatch(line.folded))

    def _decides(self, line: _Line) -> bool:
        """Tell a line that is a verdict or begins with one: never an attribution."""
        if decides(line.text, self.letter.language):
            return True
        return bool(line.words) and self.words.verdict(line.words[0], self.letter.language) is not None

    def _wrote(self, line: _Line) -> bool:
        return any(word in self.words.wrote for word in line.words)

    def _below(self, quoted: int) -> list[_Line]:
        """Return the unmarked lines between and below quoted ones.

        Stops where a copy of ours stands unmarked: from there on nothing can be told apart.
        """
        kept: list[_Line] = []
        # A piece of a quoted line stands below it, or below another piece.
        ours = True
        for at in range(quoted, len(self.lines)):
            line = self.lines[at]
            if not line.text:
                kept.append(line)
            elif line.quoted:
                ours = True
            elif line.text != UNREAD:
                if _SIGNATURE.fullmatch(line.text) or self._separates(at) or self._copied(at):
                    break
                broken_off = ours and self._broken_off(at)
                ours = broken_off or self._names_us(line) or self._perhaps_broken_off(at)
                if not ours:
                    kept.append(line)
        return _signed_off(kept, self.words, self.letter.language)

    def _attributed(self, end: int, quoted: int, *, alone: bool) -> bool:
        """Tell whether what stands below a quotation is the writer's own.

        With nothing above it, somebody else may have written it below a quotation of their
        own: one attribution must stand there, of a letter of ours, and nothing else.
        """
        head = [line for line in self.lines[end:quoted] if line.text and not _RULE.fullmatch(line.folded)]
        inside = [line for line in self.lines[quoted : quoted + _ATTRIBUTION] if line.quoted]
        quotes_another = any(
            (self.letter.names(line.folded) or self._wrote(line)) and not self.letter.wrote(line.words)
            for line in inside
        )
        if not head:
            # HTML has nothing to show of what it quotes.
            return not alone or quotes_another or not any(line.words for line in inside)
        joined = " ".join(line.folded for line in head)
        closed = head[-1].folded.endswith(":") or any(map(self._wrote, head))
        return (
            closed
            and len(head) <= _ATTRIBUTION
            and "\0" not in joined
            and not quotes_another
            and not self.letter.names_another(joined)
            and len(_YEAR.findall(joined)) <= 1
            and sum(line.folded.endswith(":") for line in head) <= 1
            and not any(line.label or self._decides(line) for line in head)
        )

    def _broken_off(self, at: int) -> bool:
        """Tell whether an unmarked line is a piece of a quoted one: ours, with a neighbour."""
        words = self.lines[at].words
        before = [word for line in self.lines[max(at - 2 * RUN, 0) : at] for word in line.words][1 - RUN :]
        after = [word for line in self.lines[at + 1 : at + 1 + 2 * RUN] for word in line.words][: RUN - 1]
        around = ([*before, *words], [*words, *after], [*before[-1:], *words, *after[:1]])
        return any(len(joined) > len(words) and self.letter.wrote(joined) for joined in around)

    def _perhaps_broken_off(self, at: int) -> bool:
        """Tell a verdict directly below a long quoted line: its end, perhaps, in another letter of ours."""
        above = self.lines[at - 1]
        return above.quoted and len(above.text) >= _WRAPPED and self._decides(self.lines[at])


def _signed_off(lines: Sequence[_Line], words: Lexicon, language: str) -> list[_Line]:
    """Return `lines` without signature: all below ``-- ``, and "Sent from my phone" near the end.

    Below words of the writer's, what begins with a condition is no signature.
    """
    end = next((i for i, line in enumerate(lines) if _SIGNATURE.fullmatch(line.text)), len(lines))
    below = next((line.text for line in lines[end + 1 :] if line.text), "")
    if any(line.text for line in lines[:end]) and hedges(below, language):
        end = len(lines)
    last = [i for i in range(end) if lines[i].text][-_SIGNED:]
    mobile = {i for i in last if _names_device(lines[i], words) and not weighs(lines[i].text, language)}
    return [line for i, line in enumerate(lines[:end]) if i not in mobile]


def _names_device(line: _Line, words: Lexicon) -> bool:
    """Tell whether a line begins as a phone's signature, and has a phone or a program in it."""
    folded = line.folded.lstrip("*_<[ ")
    return folded.startswith(words.signatures) and any(device in folded for device in words.devices)


def _unwarned(lines: Sequence[str], language: str) -> Sequence[str]:
    """Return `lines` without the paragraphs above them that a gateway put there.

    A line that decides ends such a paragraph too, but not one that breaks off in a sentence.
    """
    lines = _trimmed(lines)
    while lines:
        end = next((i for i, line in enumerate(lines) if not line or decides(line, language)), len(lines))
        if end in {0, len(lines)} or (lines[end] and lines[end - 1][-1].isalnum()):
            break
        if not warns(lines[:end], language):
            break
        lines = _trimmed(lines[end:])
    return lines


def _trimmed(lines: Sequence[str]) -> tuple[str, ...]:
    filled = [i for i, text in enumerate(lines) if text]
    return tuple(lines[filled[0] : filled[-1] + 1]) if filled else ()


def _words(text: str) -> list[str]:
    return _WORD.findall(fold(visible(text[:MAX_LINE])))


def _runs(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(RUN)), strict=False)
