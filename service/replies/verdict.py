"""What one line says: a closed grammar, matched whole.

A line is a decision where it is, from end to end, a phrase of the lists, set apart
by ``,`` ``.`` or ``!`` from other phrases of the same side and from courtesies::

    line     = segment (stop segment)* end?       every segment of the same side
    segment  = phrase courtesy* | courtesy+       courtesies only after a phrase, of its language
             | regret                             only in a line that declines: "sorry, no"
    stop     = "," | " - " | end                  and their Arabic and CJK forms; none before a thumb
    end      = "." | "!"+

The name of somebody who is known to ask or to answer may be greeted before it, "Hi Bob,",
or thanked or signed after a courtesy, "thanks, Ann". Any other word there is one too many:
in German every noun looks like a name.

Nothing is searched for: "no rechazo" is "I do not decline" though both its words
decline. All else is asked back, and the words found only explain why.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from service.domain import Choice
from service.replies.lexicon import SPACELESS, Lexicon, fold, lexicon
from service.replies.values import Why

#: Characters; a longer line is no phrase, and its beginning tells why.
MAX_LINE: Final = 200
#: Words after a greeting: "Dr. Anna Maria" and no sentence.
MAX_NAMES: Final = 3

_STOPS: Final = re.compile("!+|[.,\u060c\u3001\u3002]| [-\u2013\u2014] |(?= [\U0001f44d\U0001f44e])")
#: Emphasis and quotation marks that mail programs and careful people put around a word.
WRAPPING: Final = ' *_"`\u201c\u201d\u201e\u00ab\u00bb'
BETWEEN: Final = re.compile(r"[\s.,!?;:()\"\u3001\u3002\u060c-]+")
_QUESTION: Final = re.compile("[?\u061f\u055e]|[\u0370-\u03ff] ?;")
PICTOGRAM: Final = re.compile("([\u2600-\u27bf\U0001f300-\U0001faff])")
_UNFINISHED: Final = re.compile(r"[,\u060c\u3001][\s*_]*\Z")
_HESITATION: Final = re.compile(r"\.\s*\.|!\s*\.|\.\s*!")


@dataclass(frozen=True, slots=True)
class Judgement:
    """A line's verdict, or why it has none; `languages` of the phrase where it has one."""

    verdict: Choice | None
    why: Why | None
    languages: tuple[str, ...] = ()


def judge(line: str, language: str, names: Collection[str] = ()) -> Judgement:
    """Return what `line` decides in answer to a letter in `language`, or why nothing; never raises.

    `names` are of people known, as they write them.
    """
    line = _unaddressed(line, names)
    said = _said(line, language)
    if isinstance(said, Why):
        return Judgement(None, said)
    return said or Judgement(None, _likely(_folded(line), language))


def decides(line: str, language: str) -> Choice | None:
    """Return the verdict of `judge` alone, which takes a hundredth of its time on a line without one."""
    said = _said(line, language)
    return said.verdict if isinstance(said, Judgement) else None


def _unaddressed(line: str, names: Collection[str]) -> str:
    """Return `line` without a greeting of somebody known before it and their name after a courtesy."""
    words = lexicon()
    known = {word for name in names for word in BETWEEN.split(fold(name)) if len(word) > 1} - words.weighty
    if not known or len(line) > MAX_LINE or _HESITATION.search(_folded(line)):
        return line
    greeting, comma, rest = line.partition(",")
    tokens = fold(greeting).split()
    greeted = _last_of(tokens, known)
    # "Lieber Bob" may be "rather Bob".
    if comma and greeted and " ".join(tokens[:-greeted]) in words.greetings - words.weighty:
        line = rest
    tokens = line.rstrip(" .!").split(" ")
    named = _last_of(list(map(fold, tokens)), known)
    before = " ".join(tokens[: len(tokens) - named]).rstrip(" ,-\u2013\u2014")
    said = fold(before).split()
    thanks = any(words.courtesy(" ".join(said[at:]), words.languages) for at in range(1, len(said)))
    return before if named and thanks else line


def _last_of(tokens: Sequence[str], known: Collection[str]) -> int:
    """Return how many of the last `tokens` are `known`, up to `MAX_NAMES`."""
    return next((n for n in range(MAX_NAMES) if n == len(tokens) or tokens[-1 - n] not in known), MAX_NAMES)


def _folded(line: str) -> str:
    return " ".join(PICTOGRAM.sub(r" \1 ", fold(line[:MAX_LINE])).split())


def _said(line: str, language: str) -> Judgement | Why | None:
    """Return a verdict, a certain reason for none, or None where the line is of no known form."""
    words, folded = lexicon(), _folded(line)
    if _QUESTION.search(folded):
        return Why.QUESTION
    if folded.startswith("\u00bb") and not folded.endswith("\u00ab"):
        return None  # some mark quoted lines so
    # Only the beginning of a long line was looked at, and a comma says that more is to come.
    if len(line) > MAX_LINE or _HESITATION.search(folded) or _UNFINISHED.search(folded):
        return None
    found: Judgement | None = None
    regret = False
    for segment in filter(None, (part.strip(WRAPPING) for part in _STOPS.split(folded.strip(WRAPPING)))):
        if segment in words.regrets:
            regret = True
            continue
        opening = next((word for word in words.regrets if segment.startswith(f"{word} ")), "")
        regret = regret or bool(opening)
        said = _segment(segment.removeprefix(opening), language, words)
        if said is None:
            if found is None or not words.courtesy(segment, found.languages):
                return None
        elif found is not None and found.verdict != said.verdict:
            return Why.BOTH
        else:
            found = found or said
    return None if regret and found and found.verdict == "approve" else found


def greets(line: str) -> bool:
    """Tell whether `line` is a greeting and at most three more words, none of them of any list."""
    words = lexicon()
    folded = fold(line[:MAX_LINE]).rstrip(" ,!")
    greeting = max(
        (g for g in words.greetings if folded == g or folded.startswith(f"{g} ")), key=len, default=""
    )
    names = folded[len(greeting) :].split()
    plain = all(name.replace("-", "").rstrip(".").isalpha() for name in names)
    return bool(greeting) and plain and len(names) <= MAX_NAMES and not words.weighty & {*names}


def _segment(segment: str, language: str, words: Lexicon) -> Judgement | None:
    """Return what a segment says: a phrase that at most courtesies follow."""
    tokens = segment.split()
    for end in range(len(tokens), 0, -1):
        said = words.verdict(" ".join(tokens[:end]), language)
        if said and (end == len(tokens) or words.courtesy(" ".join(tokens[end:]), said[1])):
            return Judgement(said[0], None, said[1])
    return None


def _likely(folded: str, language: str) -> Why:
    """Return the likeliest reason why a line is no decision; a help for its writer, nothing rests on it."""
    words = lexicon()
    line = " ".join(BETWEEN.split(folded[:MAX_LINE]))
    if all(any(_holds(line, phrase) for phrase in words.phrases[side]) for side in words.phrases):
        return Why.BOTH
    if any(_holds(line, word) for word in words.conditions({language})):
        return Why.CONDITION
    if any(_holds(line, word) for word in words.negations({language})):
        return Why.NEGATED
    return Why.UNKNOWN_WORDS


def _holds(line: str, phrase: str) -> bool:
    # Han, kana and Thai are written without spaces.
    return phrase in line if phrase > SPACELESS else f" {phrase} " in f" {line} "
