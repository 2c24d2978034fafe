"""What the lines below a verdict, or around a quotation, say against it.

Approving is what harms, so an approval stands only where nothing below objects: no
condition, denial, question or refusal in any sentence. A refusal keeps its reasons and
falls only to an approval that is meant. What companies and gateways put around every
mail is told from the writer's words by how it begins and what it is about.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from service.domain import Choice
from service.replies.lexicon import SPACELESS, fold, lexicon
from service.replies.values import Why
from service.replies.verdict import BETWEEN, MAX_LINE, PICTOGRAM, WRAPPING, Judgement

#: Characters of a paragraph that are looked at together.
MAX_PARAGRAPH: Final = 1_000
#: Words before a sentence that change nothing.
ASIDES: Final = {"ps", "nb", "edit", "update", "sorry", "and"}
#: Characters of a phrase that many sentences have by chance: it counts at either end of a clause.
SHORT: Final = 3
#: Words of a clause that says nothing but what it begins with.
FEW: Final = 3

_BULLETS: Final = " *_[(<#>|\u2022\u3010-"
_SENTENCE: Final = re.compile(r"(?<=[.!?;:\u061f\u3002])(?:\s+|(?<=\u3002))")
_CLAUSE: Final = re.compile(r"[,.;:!?()/\u2013\u2014\u060c\u3001\u3002]+| - ")
#: "No. 5" inside a line is a number.
_NUMBERED: Final = re.compile(r"\bno[.:]? ?(?=[a-z]{0,3}\d)")
#: "Max. 3,000" is a limit, and Max a name.
_MOST: Final = re.compile(r"\bmax(?:imum|imal|imo)?[.:]? ?(?=[\d\u20ac$\u00a3])")
_ASKS: Final = re.compile(r"[?\u061f\u055e][^\w?]*\Z|[\u0370-\u03ff] ?;\Z")


def sentences(line: str) -> Iterator[str]:
    """Yield the sentences of `line`, folded."""
    start = 0
    while start < len(line):
        end = start + MAX_PARAGRAPH
        if end < len(line) and (space := line.rfind(" ", start, end)) > start:
            end = space
        folded = fold(line[start:end]).replace("e-mail", "email")
        start = end
        folded = _NUMBERED.sub("nr ", _MOST.sub("at most ", folded))
        folded = PICTOGRAM.sub(r" \1 ", folded)
        yield from filter(None, (part.strip(_BULLETS) for part in _SENTENCE.split(folded)))


def disclaims(sentence: str) -> bool:
    """Tell whether a folded sentence begins what companies put below every mail."""
    return sentence.startswith(lexicon().disclaimers)


def excused(sentence: str, language: str) -> bool:
    """Tell whether a folded sentence that objects is a company's: about mail, and no refusal."""
    return any(word in sentence for word in lexicon().boilerplate) and not _refuses(sentence, language)


def warns(lines: Sequence[str], language: str) -> bool:
    """Tell whether the paragraph `lines` is what a gateway puts above a mail that came from outside.

    It begins as one, is whole, says nothing of the writer, refuses nothing, and objects
    to nothing but what comes from outside.
    """
    words = lexicon()
    opening = fold(lines[0][:MAX_LINE]).replace("e-mail", "email")
    if not opening.lstrip(_BULLETS + "=!\u26a0").startswith(words.banners) or lines[-1].endswith((":", ",")):
        return False
    every = list(sentences(" ".join(lines)))
    about = [any(word in sentence for word in words.banner_words) for sentence in every]
    said = Judgement("approve", None)
    return (
        any(about)
        and all(words.first_person.isdisjoint(_tokens(sentence)) for sentence in every)
        and all(
            not objects(sentence, said, language) or (named and not _refuses(sentence, language))
            for named, sentence in zip(about, every, strict=True)
        )
    )


def takes_back(line: str, languages: Collection[str]) -> bool:
    """Tell whether `line`, below a verdict in `languages`, begins a condition or is a bare denial."""
    words = lexicon()
    folded = fold(line[:MAX_LINE])
    return folded.strip(" .!") in words.negations(languages) or words.hedges(_tokens(folded), languages)


def retracts(line: str, languages: Collection[str]) -> bool:
    """Tell whether `line`, set apart from a refusal above, begins by taking it back."""
    words = lexicon()
    clauses = (_past_courtesies(_tokens(part), languages) for part in _CLAUSE.split(fold(line[:MAX_LINE])))
    clause = next(filter(None, clauses), ())
    # "Wait!", but "wait for the new budget" is a reason.
    return words.retracts(clause, languages) and (
        len(clause) <= FEW or not words.retracts(clause[:1], languages)
    )


def objects(sentence: str, said: Judgement, language: str) -> Why | None:
    """Return why a folded `sentence` below a verdict in answer to a letter in `language` leaves it none.

    Approving is what harms: an approval stands where no clause below begins with a condition, or has one
    that can't be mistaken or with a phrase that approves, and no sentence begins with a denial or denies
    such a phrase or an act, asks, or declines: in its first clause in any language. A refusal is often
    explained by what a condition, a denial or an approval says ("I would approve two nights"), and falls
    to one that is meant: not denied, in few words, at the beginning of a clause or after "I meant".
    """
    words = lexicon()
    languages = {*said.languages, language, "en", "zxx"}
    clauses = [_tokens(clause) for clause in _CLAUSE.split(sentence)]
    if said.verdict == "approve" and not _ASKS.search(sentence):
        clauses = _telling(clauses, language, languages)
    every = [token for clause in clauses for token in clause]
    denied = [token for token in every if words.negation(token, languages)]
    if said.verdict == "approve":
        approving = [_says("approve", clause, language, languages) for clause in clauses]
        if any(
            _hedges(_past_courtesies(clause, languages), languages)
            # "All good if Max agrees": no decision by itself, and yes all the same.
            or words.limits(clause, languages, approving=says or not words.assents.isdisjoint(clause))
            or (1 < len(clause) <= FEW + 1 and clause[-1] in words.conditions_last)
            or words.demands(clause)
            for clause, says in zip(clauses, approving, strict=True)
        ):
            return Why.CONDITION
        # "Rather not", "I can't approve it"; but "looks good, not too dear".
        if words.denies(_past_courtesies(every, languages), languages) or (
            denied and (every[-1] in denied or any(approving) or not words.acts.isdisjoint(every))
        ):
            return Why.NEGATED
        first = words.verdict(" ".join(next(filter(None, clauses), ())), language)
        if (first and first[0] == "decline") or any(
            _says("decline", clause, language, languages) for clause in clauses
        ):
            return Why.BOTH
        return Why.QUESTION if _ASKS.search(sentence) else None
    told = denied or not any(_means("approve", clause, every, language, languages) for clause in clauses)
    return None if told else Why.BOTH


def hedges(line: str, language: str) -> bool:
    """Tell whether `line`, below an approval, takes it back."""
    said = Judgement("approve", None)
    return any(
        objects(sentence, said, language) and not (disclaims(sentence) and excused(sentence, language))
        for sentence in sentences(line)
    )


def weighs(line: str, language: str) -> bool:
    """Tell whether `line` says yes, no or perhaps anywhere: then it is its writer's own."""
    languages = {language, "en", "zxx"}
    return any(
        objects(sentence, Judgement("approve", None), language)
        or any(_says("approve", _tokens(clause), language, languages) for clause in _CLAUSE.split(sentence))
        for sentence in sentences(line)
    )


def _tokens(folded: str) -> list[str]:
    return [token for part in BETWEEN.split(folded) if (token := part.strip(WRAPPING + "'~"))]


def _past_courtesies(tokens: Sequence[str], languages: Collection[str]) -> Sequence[str]:
    """Return `tokens` from the first that is more than politeness: "please don't", "PS only if"."""
    words = lexicon()
    start = 0
    while start < len(tokens) and (tokens[start] in ASIDES or words.courtesy(tokens[start], languages)):
        start += 1
    return tokens[start:]


def _says(side: Choice, clause: Sequence[str], language: str, languages: Collection[str]) -> bool:
    """Tell whether a clause has a phrase of one side in it: to decline, a long one of any language."""
    words = lexicon()
    for start, head in enumerate(clause):
        for end in (
            range(start + 1, min(start + words.longest, len(clause)) + 1) if head in words.heads else ()
        ):
            phrase = " ".join(clause[start:end])
            found = words.verdict(phrase, language)
            if found is None or found[0] != side:
                continue
            long = len(phrase) > SHORT
            known = not set(found[1]).isdisjoint(languages) and (long or start == 0 or end == len(clause))
            if known or (long and side == "decline"):
                return True
    joined = "".join(clause)
    return joined > SPACELESS and any(
        phrase in joined for phrase in words.phrases[side] if phrase > SPACELESS and len(phrase) > 1
    )


def _hedges(clause: Sequence[str], languages: Collection[str]) -> bool:
    """Tell whether a clause begins with a condition; a verb that many do, in few words or about the reply."""
    words = lexicon()
    aside = len(clause) > FEW and clause[0] in words.ordinary and words.pointing.isdisjoint(clause)
    return not aside and words.hedges(clause, languages)


def _telling(clauses: list[list[str]], language: str, languages: Collection[str]) -> list[list[str]]:
    """Return the clauses of a sentence up to "no problem", "but next time", if nothing after it objects."""
    words = lexicon()
    for at, clause in enumerate(clauses):
        opening = _past_courtesies(clause, languages)
        if not opening or opening[0] not in words.idle_heads or words.past_harmless(opening) is None:
            continue
        every = [token for clause in clauses[at:] for token in clause]
        rest = words.past_harmless(_past_courtesies(every, languages))
        if rest is not None:
            objects = (
                words.limits(rest, languages, approving=True)
                or any(words.negation(token, languages) for token in rest)
                or _says("decline", rest, language, languages)
            )
            return clauses if objects else clauses[:at]
    return clauses


def _refuses(sentence: str, language: str) -> bool:
    """Tell whether a folded sentence has a phrase that declines and is no word by chance."""
    return any(_says("decline", _tokens(clause), language, ()) for clause in _CLAUSE.split(sentence))


def _means(
    side: Choice, clause: Sequence[str], every: Sequence[str], language: str, languages: Collection[str]
) -> bool:
    """Tell whether a clause of the sentence `every` says a side of its own, and does not tell of one."""
    words = lexicon()
    clause = _past_courtesies(clause, languages)
    if (found := words.verdict(" ".join(clause), language)) and found[0] == side:
        return True
    if not _says(side, clause, language, languages):
        return False
    return (
        len(clause) <= FEW
        or not words.instead.isdisjoint(every)
        or any(
            (found := words.verdict(phrase, language)) and found[0] == side and len(phrase) > SHORT
            for phrase in (" ".join(clause[:end]) for end in range(1, words.longest + 1))
        )
    )
