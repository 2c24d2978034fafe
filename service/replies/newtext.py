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
from itertools import islice
from typing import Final

from service.replies.lexicon import Lexicon, fold, lexicon, visible
from service.replies.markup import CUT, UNREAD
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
        token = local.rpartition("+")[2]
        self.language = sent.language
        self._marks = {fold(mark) for mark in (sent.reply_address, *sent.own_addresses) if "@" in mark}
        self._marks |= {fold(token)} if len(token) >= MIN_TOKEN else set()
        text = [word for line in sent.text.split("\n") for word in _words(line)]
        self._runs = {*_runs(text), *_runs(_words(sent.subject))}

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
        self.start = next((i for i in range(self.first, len(self.lines)) if self._starts(i)), len(self.lines))

    def new(self) -> NewText:
        """Return the lines that are not ours."""
        above = _signed_off(self.lines[: self._above_attribution()], self.words)
        below, marked = self._below()
        if not marked and not any(line.text for line in above):
            return NewText((), below=self.start < len(self.lines))
        return NewText(_trimmed([line.text for line in (*above, *below)]))

    def _starts(self, at: int) -> bool:
        line = self.lines[at]
        if line.quoted or self.letter.names(line.folded) or self._separates(at):
            return True
        if not self.letter.wrote(line.words):
            return False
        # A comment may repeat a line of the letter; a quotation goes on.
        following = [other for other in self.lines[at + 1 : at + 1 + 2 * RUN] if other.text][:RUN]
        return at == self.first or any(self._ours(other) or other.quoted for other in following)

    def _ours(self, line: _Line) -> bool:
        return self.letter.wrote(line.words) or self.letter.names(line.folded)

    def _separates(self, at: int) -> bool:
        """Tell whether a line parts the new from the old: a marker, a separator, Outlook's rows."""
        line = self.lines[at]
        if line.text == CUT or _SEPARATOR.fullmatch(line.folded):
            return True
        if line.folded.strip(" -_*:") in self.words.forwarded:
            return True
        if not line.label:
            return False
        rows = [other.label for other in self.lines[at : at + 2 * _ROWS] if other.text][:_ROWS]
        kinds = {kind for label in rows for kind in label}
        return sum(map(bool, rows)) > 1 and len(kinds) > 1 and bool(kinds & {"from", "sent"})

    def _above_attribution(self) -> int:
        """Return where the new text above the quotation ends: before "On ... X wrote:" and bare rules."""
        end = self.start
        if end == len(self.lines):
            return end
        while end and self._spacer(self.lines[end - 1]):
            end -= 1
        # The line that names us may be the attribution's own last; what is above it then adjoins.
        named = not self.lines[self.start].quoted and self.letter.names(self.lines[self.start].folded)
        if named and end < self.start:
            return end
        paragraph: list[_Line] = [self.lines[self.start]] if named else []
        reach = end
        while end - reach < _ATTRIBUTION and reach and not self._spacer(line := self.lines[reach - 1]):
            if self._decides(line) or not (paragraph or self._closes(line)):
                break
            paragraph.insert(0, line)
            reach -= 1
            above = self.lines[reach - 1] if reach else None
            if any(_DATED.search(other.folded) for other in paragraph) and not (
                above and _DATED.search(above.folded)
            ):
                return reach
        undated = len(paragraph) == 1 and not named and self._wrote(paragraph[0])
        return end - 1 if undated else end

    def _spacer(self, line: _Line) -> bool:
        return not line.text or bool(_RULE.fullmatch(line.folded))

    def _decides(self, line: _Line) -> bool:
        """Tell a line that is a verdict or begins with one: never an attribution."""
        if decides(line.text, self.letter.language):
            return True
        return bool(line.words) and self.words.verdict(line.words[0], self.letter.language) is not None

    def _closes(self, line: _Line) -> bool:
        return line.folded.endswith(":") or (bool(_DATED.search(line.folded)) and self._wrote(line))

    def _wrote(self, line: _Line) -> bool:
        return any(word in self.words.wrote for word in line.words)

    def _below(self) -> tuple[list[_Line], bool]:
        """Return the unmarked lines between and below quoted ones, and whether the quotation is marked.

        Stops where anything of ours stands unmarked: from there on nothing can be told apart.
        """
        quoted = next((i for i in range(self.start, len(self.lines)) if self.lines[i].quoted), None)
        if quoted is None or not self._attributed(quoted):
            return [], False
        kept: list[_Line] = []
        for at in range(quoted, len(self.lines)):
            line = self.lines[at]
            if not line.text:
                kept.append(line)
            elif not line.quoted and line.text != UNREAD:
                if _SIGNATURE.fullmatch(line.text) or self._separates(at) or self._ours(line):
                    break
                if not self._broken_off(at) and not self._perhaps_broken_off(at):
                    kept.append(line)
        return _signed_off(kept, self.words), True

    def _attributed(self, quoted: int) -> bool:
        """Tell whether nothing but an attribution stands between the start and the first quoted line."""
        between = [line for line in self.lines[self.start : quoted] if line.text]
        if not between:
            return True
        joined = " ".join(line.folded for line in between)
        decides = any(self._decides(line) for line in between)
        closed = between[-1].folded.endswith(":") or any(map(self._wrote, between))
        return len(between) <= _ATTRIBUTION and closed and not decides and "\0" not in joined

    def _broken_off(self, at: int) -> bool:
        """Tell whether an unmarked line is a piece of a quoted one: ours, with its neighbours."""
        words = self.lines[at].words
        before = [word for line in self.lines[max(at - 2 * RUN, 0) : at] for word in line.words][1 - RUN :]
        after = [word for line in self.lines[at + 1 : at + 1 + 2 * RUN] for word in line.words][: RUN - 1]
        around = ([*before, *words], [*words, *after], [*before[-1:], *words, *after[:1]])
        return any(map(self.letter.wrote, around))

    def _perhaps_broken_off(self, at: int) -> bool:
        """Tell a verdict directly below a long quoted line: its end, perhaps, in another letter of ours."""
        above = self.lines[at - 1]
        return above.quoted and len(above.text) >= _WRAPPED and self._decides(self.lines[at])


def _signed_off(lines: Sequence[_Line], words: Lexicon) -> list[_Line]:
    """Return `lines` without signature: all below ``-- ``, and "Sent from my phone" near the end."""
    end = next((i for i, line in enumerate(lines) if _SIGNATURE.fullmatch(line.text)), len(lines))
    last = [i for i in range(end) if lines[i].text][-_SIGNED:]
    mobile = {i for i in last if lines[i].folded.lstrip("*_<[ ").startswith(words.signatures)}
    return [line for i, line in enumerate(lines[:end]) if i not in mobile]


def _trimmed(lines: Sequence[str]) -> tuple[str, ...]:
    filled = [i for i, text in enumerate(lines) if text]
    return tuple(lines[filled[0] : filled[-1] + 1]) if filled else ()


def _words(text: str) -> list[str]:
    return _WORD.findall(fold(visible(text[:MAX_LINE])))


def _runs(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(RUN)), strict=False)
