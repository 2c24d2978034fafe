"""The words of each language, as data: ``languages/<BCP 47 tag>.toml``.

Every list is folded once, so that comparing is exact: width and case, accents,
typographic apostrophes and invisible characters make no difference.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Final

import msgspec

from service.domain import Choice

#: Combining marks that people leave out: Latin, Greek and Cyrillic accents, Hebrew
#: points, Arabic harakat. Not those of Thai or kana, which are letters, nor those that
#: strike a letter through.
_MARKS: Final = re.compile("[\u0300-\u0333\u0339-\u036f\u0591-\u05c7\u064b-\u0655\u0670]")
_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_SKIN_TONES: Final = re.compile("[\U0001f3fb-\U0001f3ff]")
_SPELLED: Final = str.maketrans({"\u2019": "'", "\u02bc": "'", "\u0131": "i", "\u0640": ""})


#: Characters of a folded line: one ligature can stand for eighteen letters.
MAX_FOLDED: Final = 2_000
#: Thai, Han, kana and Hangul sort after this: most are written without spaces.
SPACELESS: Final = "\u0e00"
#: Characters of a word that several languages are likely to share.
_SHORT: Final = 2


class Language(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One language's lists, as its file has them.

    `approve` and `decline` count in every letter, `..._here` only where the letter was in this language,
    and `doubtful` does not count there: those words are somebody else's yes or no. `negations`,
    `conditions` and `retractions` begin what takes a verdict back, `conditions_anywhere` need not even
    begin it, one of `musts` beside one of `firsts` is one, and a denial does with one of `acts`, "do not
    book"; `telling` are those of two letters that mean themselves in any mail before two more words.
    `harmless` and `farewells` have such words and take nothing back: "no problem", "if you have any
    questions", "bis bald". A word of `instead` tells the verdict that was meant from one that is told of,
    and one of `assents` is no decision and yes all the same. The rest is for finding what is new in a
    reply.
    """

    name: str
    approve: list[str] = []
    decline: list[str] = []
    approve_here: list[str] = []
    decline_here: list[str] = []
    doubtful: list[str] = []
    courtesies: list[str] = []
    regrets: list[str] = []
    greetings: list[str] = []
    negations: list[str] = []
    acts: list[str] = []
    assents: list[str] = []
    conditions: list[str] = []
    conditions_anywhere: list[str] = []
    conditions_last: list[str] = []
    musts: list[str] = []
    firsts: list[str] = []
    telling: list[str] = []
    harmless: list[str] = []
    farewells: list[str] = []
    retractions: list[str] = []
    ordinary: list[str] = []
    pointing: list[str] = []
    instead: list[str] = []
    wrote: list[str] = []
    label_from: list[str] = []
    label_sent: list[str] = []
    label_to: list[str] = []
    label_subject: list[str] = []
    forwarded: list[str] = []
    signatures: list[str] = []
    devices: list[str] = []
    disclaimers: list[str] = []
    boilerplate: list[str] = []
    banners: list[str] = []
    banner_words: list[str] = []
    first_person: list[str] = []
    out_of_office: list[str] = []


class Lexicon:
    """All languages together, folded."""

    def __init__(self, languages: dict[str, Language]) -> None:
        self.languages = languages
        self._everywhere: dict[str, tuple[Choice, tuple[str, ...]]] = {}
        self._here: dict[str, dict[str, Choice]] = {tag: {} for tag in languages}
        for tag, words in languages.items():
            sides: tuple[tuple[Choice, list[str], list[str]], ...] = (
                ("approve", words.approve, words.approve_here),
                ("decline", words.decline, words.decline_here),
            )
            for choice, everywhere, here in sides:
                for phrase in map(fold, everywhere):
                    _, tags = self._everywhere.get(phrase, (choice, ()))
                    self._everywhere[phrase] = (choice, (*tags, tag) if tag not in tags else tags)
                for phrase in map(fold, here):
                    self._here[tag][phrase] = choice
        self._doubtful = {tag: frozenset(map(fold, words.doubtful)) for tag, words in languages.items()}
        self._courtesies = self._by_word("courtesies")
        #: What may stand before or after a refusal: "sorry, no".
        self.regrets = self._union("regrets")
        self._negations = self._by_word("negations")
        self._retractions = self._by_word("retractions")
        self._conditions = self._by_word("conditions") | self._retractions
        self._anywhere = self._by_word("conditions_anywhere")
        #: A few words that end with one are a limit: "two nights only".
        self.conditions_last = self._union("conditions_last")
        self._musts, self._firsts = self._by_word("musts"), self._by_word("firsts")
        self._telling = self._union("telling")
        self.acts = self._union("acts")
        self.assents = self._union("assents")
        self._harmless = self._by_word("harmless")
        self._farewells = self._by_word("farewells")
        #: "Cancel that" takes back, "cancel my seat in the train" does not.
        self.ordinary = self._union("ordinary")
        self.pointing = self._union("pointing")
        self.instead = self._union("instead")
        self.greetings = self._union("greetings")
        self.wrote = self._union("wrote")
        self.forwarded = self._union("forwarded")
        self.signatures = tuple(sorted(self._union("signatures")))
        #: A phone, a mail program: what a phone's signature names, by itself or after its first words.
        self.devices = tuple(sorted(self._union("devices")))
        #: How what a company puts below every mail begins, and what a gateway puts above.
        self.disclaimers = tuple(sorted(self._union("disclaimers")))
        #: What its sentences are about, as beginnings of words.
        self.boilerplate = tuple(sorted(self._union("boilerplate")))
        self.banners = tuple(sorted(self._union("banners")))
        self.banner_words = tuple(sorted(self._union("banner_words")))
        self.first_person = self._union("first_person")
        #: The longest first, so that a word does not hide one that begins with it.
        self.out_of_office = tuple(sorted(self._union("out_of_office"), key=len, reverse=True))
        said = [*self._everywhere.items(), *((p, (c, ())) for t in self._here.values() for p, c in t.items())]
        #: Every phrase of each side, of all languages.
        self.phrases: dict[Choice, frozenset[str]] = {
            "approve": frozenset(phrase for phrase, (choice, _) in said if choice == "approve"),
            "decline": frozenset(phrase for phrase, (choice, _) in said if choice == "decline"),
        }
        spoken = (*(phrase for phrase, _ in said), *self._negations, *self._conditions, *self._anywhere)
        idle = (*self._harmless, *self._farewells)
        self.idle_heads = frozenset(phrase.split()[0] for phrase in idle)
        #: Every word of a phrase, a denial or a condition.
        self.weighty = frozenset(word for phrase in spoken for word in phrase.split())
        #: The most words of one of these.
        self.longest = max(len(phrase.split()) for phrase in (*spoken, *idle))
        self._opening = frozenset(word.split()[0] for word in (*self._conditions, *self._anywhere))
        #: The first words of phrases.
        self.heads = frozenset(phrase.split()[0] for phrase, _ in said)
        self.labels: dict[str, frozenset[str]] = {}
        for kind in ("from", "sent", "to", "subject"):
            for label in self._union(f"label_{kind}"):
                self.labels[label] = self.labels.get(label, frozenset()) | {kind}

    def verdict(self, phrase: str, language: str) -> tuple[Choice, tuple[str, ...]] | None:
        """Return what a folded phrase says in answer to a letter in `language`, and in which languages."""
        here = self._here.get(language, {}).get(phrase)
        if here is not None:
            return here, (language,)
        if phrase in self._doubtful.get(language, frozenset()):
            return None
        return self._everywhere.get(phrase)

    def courtesy(self, words: str, languages: Collection[str]) -> bool:
        """Tell whether folded `words` are politeness in one of `languages`, in English or in no language.

        Not in any: "no tak" is no Spaniard's thank you in Danish but a Pole's "well, yes".
        """
        allowed = {*languages, "en", "zxx"}
        return bool(self._courtesies.get(words, set()) & allowed) or all(
            self._courtesies.get(word, set()) & allowed for word in words.split()
        )

    def negations(self, languages: Collection[str]) -> set[str]:
        """Return the words that deny in `languages`, and those of all others that can't be mistaken."""
        return _of(self._negations, languages)

    def conditions(self, languages: Collection[str]) -> set[str]:
        """Return the words that begin a condition, likewise."""
        return _of(self._conditions, languages)

    def negation(self, word: str, languages: Collection[str]) -> bool:
        """Tell whether a folded word is among `negations`."""
        tags = self._negations.get(word)
        return tags is not None and (_telling(word) or not tags.isdisjoint(languages))

    def denies(self, sentence: Sequence[str], languages: Collection[str]) -> bool:
        """Tell whether the words of a sentence begin with a denial, likewise."""
        return self._begins(sentence, self._negations, languages)

    def hedges(self, sentence: Sequence[str], languages: Collection[str]) -> bool:
        """Tell whether they begin with a condition, likewise."""
        return self._begins(sentence, self._conditions, languages)

    def retracts(self, sentence: Sequence[str], languages: Collection[str]) -> bool:
        """Tell whether they begin by taking back what was said, likewise."""
        return self._begins(sentence, self._retractions, languages)

    def past_harmless(self, words: Sequence[str]) -> Sequence[str] | None:
        """Return what follows the harmless phrase that `words` begin with, None where they do not.

        After a farewell at most a name: "bis Montag zwei Nächte" is a limit.
        """
        for end in range(min(len(words), self.longest), 0, -1):
            opener = " ".join(words[:end])
            if opener in self._harmless or (opener in self._farewells and len(words) <= end + 1):
                return words[end:]
        return None

    def limits(self, clause: Sequence[str], languages: Collection[str], *, approving: bool) -> bool:
        """Tell whether the words of a clause have a condition among them; `approving`: any of the lists."""
        starts = (clause[start:] for start, word in enumerate(clause) if word in self._opening)
        return any(
            self._begins(rest, self._anywhere, self.languages)
            or (approving and self._begins(rest, self._conditions, languages))
            for rest in starts
        )

    def demands(self, clause: Sequence[str]) -> bool:
        """Tell whether the words of a clause want something done before: "Max must agree first"."""
        first, must = self._tags_of(clause, self._firsts), self._tags_of(clause, self._musts)
        return not first.isdisjoint(must)

    def _tags_of(self, clause: Sequence[str], phrases: dict[str, set[str]]) -> set[str]:
        """Return the languages that any of `phrases`, of one or two words, in a clause is of."""
        pairs = map(" ".join, pairwise(clause))
        return {tag for words in (*clause, *pairs) for tag in phrases.get(words, ())}

    def _begins(
        self, sentence: Sequence[str], openers: dict[str, set[str]], languages: Collection[str]
    ) -> bool:
        for end in range(1, min(len(sentence), self.longest) + 1):
            opener = " ".join(sentence[:end])
            # A word alone is as likely somebody's name: Jen is Czech for "only".
            if (tags := openers.get(opener)) and (
                not tags.isdisjoint(languages)
                or (len(sentence) > 1 and _telling(opener))
                or (len(sentence) > _SHORT and opener in self._telling)
            ):
                return True
        joined = "".join(sentence)
        # Han and kana are written without spaces, and put conditions last.
        return joined > SPACELESS and any(
            joined.startswith(opener) or joined.endswith(opener) for opener in openers if opener > SPACELESS
        )

    def _by_word(self, name: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for tag, words in self.languages.items():
            for word in getattr(words, name):
                found.setdefault(fold(word), set()).add(tag)
        return found

    def _union(self, name: str) -> frozenset[str]:
        return frozenset(fold(word) for words in self.languages.values() for word in getattr(words, name))


def _of(words: dict[str, set[str]], languages: Collection[str]) -> set[str]:
    return {word for word, tags in words.items() if _telling(word) or not tags.isdisjoint(languages)}


def _telling(word: str) -> bool:
    """Tell a word that means itself in any mail from a short one: "de" is Hungarian for "but"."""
    return not word.isascii() or len(word) > _SHORT


@cache
def lexicon() -> Lexicon:
    """Return the words of all languages; read from the package once."""
    folder = files(__package__).joinpath("languages")
    return Lexicon(
        {
            entry.name.removesuffix(".toml"): msgspec.toml.decode(entry.read_bytes(), type=Language)
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
            if entry.name.endswith(".toml")
        }
    )


def fold(text: str) -> str:
    """Return `text` in the form in which phrases are compared.

    Takes quadratic time on long runs of combining marks: callers pass lines of
    bounded length.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    # NFKC makes "No" of the sign that stands before numbers.
    text = visible(unicodedata.normalize("NFKC", text.replace("\u2116", "nr")))[:MAX_FOLDED]
    text = unicodedata.normalize("NFKD", text.translate(_SPELLED).casefold())
    text = _SKIN_TONES.sub("", _MARKS.sub("", text)).translate(_SPELLED)
    return " ".join(unicodedata.normalize("NFC", text).split())


def visible(text: str) -> str:
    """Return `text` without characters that show nothing: bidi controls, zero widths, variation selectors."""
    return text if text.isascii() else _INVISIBLE.sub("", text)
