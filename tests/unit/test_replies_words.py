"""The word lists hold nothing that means two things."""

from itertools import product
from typing import Final

import pytest

from service.domain import Choice
from service.replies.lexicon import fold, lexicon
from service.replies.objections import disclaims, objects, retracts, sentences, takes_back, warns
from service.replies.values import Why
from service.replies.verdict import Judgement, decides, greets, judge

WORDS: Final = lexicon()
CHOICES: Final[tuple[Choice, ...]] = ("approve", "decline")
REQUIRED: Final = {
    "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb", "fi", "pl", "cs", "ru", "uk", "tr", "el",
    "he", "ar", "ja", "zh", "ko",
}  # fmt: skip


def spaceless(phrase: str) -> bool:
    """Tell Thai, Han, kana and Hangul, which are searched without spaces."""
    return phrase > "\u0e00"


def holds(phrase: str, other: str) -> bool:
    """Tell whether `phrase` has `other` inside, as words."""
    return other in phrase if spaceless(other) else f" {other} " in f" {phrase} "


def test_the_required_languages_have_words() -> None:
    """Each language that is promised has words to approve and to decline, and the rest of its lists."""
    assert set(WORDS.languages) >= REQUIRED
    assert len(WORDS.languages) - 1 >= 25
    for tag in set(WORDS.languages) - {"zxx"}:
        words = WORDS.languages[tag]
        assert words.approve, tag
        assert words.decline, tag
        assert all((words.label_from, words.label_sent, words.label_to, words.label_subject)), tag
        assert all((words.forwarded, words.signatures, words.out_of_office, words.wrote)), tag
        assert all((words.courtesies, words.greetings, words.negations, words.conditions)), tag


def test_no_phrase_says_both() -> None:
    """What approves in one language declines in none, however it is written."""
    assert not WORDS.phrases["approve"] & WORDS.phrases["decline"]


def test_no_phrase_holds_one_of_the_other_side() -> None:
    """No phrase is a longer one of the other side, cut short: a denied verdict is on no list."""
    sides = product(WORDS.phrases["approve"], WORDS.phrases["decline"])
    assert not [(a, d) for a, d in sides if holds(a, d) or holds(d, a)]


def test_no_approval_holds_a_denial() -> None:
    """No phrase that approves has a word in it that denies in its own language."""
    found = [
        (tag, phrase, word)
        for tag, words in WORDS.languages.items()
        for phrase in map(fold, words.approve + words.approve_here)
        for word in map(fold, words.negations)
        if holds(phrase, word)
    ]
    assert not found


def test_no_phrase_is_another_languages_condition_unless_known() -> None:
    """A word that decides somewhere and means "if" elsewhere is on this list, with what was decided."""
    both = {p for side in CHOICES for p in WORDS.phrases[side]} & set(WORDS.conditions(list(WORDS.languages)))
    # "sí" and "sì" without accent, asked back in a French letter; Latvian "ja", likewise.
    assert both == {"si", "ja"}
    assert WORDS.verdict("si", "fr") is None
    assert WORDS.verdict("ja", "lv") is None


def test_no_courtesy_decides_in_a_language_it_is_mixed_with() -> None:
    """A word that is polite in one language and a verdict in another counts only in letters of the latter."""
    everywhere = {
        phrase
        for side in CHOICES
        for phrase in WORDS.phrases[side]
        if WORDS.courtesy(phrase, list(WORDS.languages)) and WORDS.verdict(phrase, "en")
    }
    assert not everywhere


@pytest.mark.parametrize("choice", CHOICES)
def test_every_phrase_is_read_as_it_is_listed(choice: Choice) -> None:
    """Each phrase decides where it should: plain, in capitals, with a stop, with thanks of its language."""
    for tag, words in WORDS.languages.items():
        everywhere, here = getattr(words, choice), getattr(words, f"{choice}_here")
        for phrase in everywhere + here:
            language = tag if phrase in here else "en"
            for written in (phrase, phrase.upper(), f"{phrase}.", f"  {phrase}! "):
                judgement = judge(written, language)
                assert judgement.verdict == choice, (tag, written)
                assert tag in judgement.languages, (tag, written)
            for thanks in words.courtesies if tag != "zxx" else ():
                assert judge(f"{phrase}, {thanks}.", language).verdict == choice, (tag, phrase, thanks)
                named = judge(
                    f"Hi Bob, {phrase}. {thanks}, Zo\u00eb Zirkel", language, ["Zo\u00eb Zirkel", "bob.smith"]
                )
                assert named.verdict == choice, (tag, phrase, thanks)


@pytest.mark.parametrize("choice", CHOICES)
def test_no_phrase_decides_when_asked_denied_or_conditional(choice: Choice) -> None:
    """A question mark, a denial before or a condition after leaves no phrase of any language a verdict."""
    for tag, words in WORDS.languages.items():
        for phrase in getattr(words, choice):
            assert judge(f"{phrase}?", tag).why is Why.QUESTION
            for word in words.negations:
                assert decides(f"{word} {phrase}", tag) is None, (tag, word, phrase)
                assert decides(f"{phrase} {word}", tag) is None, (tag, word, phrase)
            for word in words.conditions + words.retractions:
                assert decides(f"{phrase} {word} x", tag) is None, (tag, word, phrase)
                assert decides(f"{phrase}, {word} x", tag) is None, (tag, word, phrase)


def test_a_condition_or_a_bare_denial_below_takes_a_verdict_back() -> None:
    """Every language's "if", "but", "only" begins a line that does, and its "not" alone is one."""
    for tag, words in WORDS.languages.items():
        assert all(takes_back(f"{word} x", [tag]) for word in words.conditions + words.retractions), tag
        assert all(retracts(f"{word}!", [tag]) for word in words.retractions), tag
        assert all(takes_back(f"{word}.", [tag]) for word in words.negations), tag
    assert not takes_back("Not urgent.", ["en"])
    assert not takes_back("De acuerdo.", ["es"])


def test_a_condition_a_denial_or_a_refusal_below_takes_an_approval_back() -> None:
    """Every language's condition, denial and refusal begins a sentence that does."""
    for tag, words in WORDS.languages.items():
        said = Judgement("approve", None, (tag,))
        refusals = words.decline if tag != "zxx" else []
        for word in (*words.conditions, *words.retractions, *words.negations, *refusals):
            assert objects(next(sentences(f"{word} x")), said, tag), (tag, word)
    good = Judgement("approve", None, ("en",))
    for line in ("Looks good, not too dear.", "There is no rush.", "Jen", "Street No. 5, Paris", "All good."):
        assert not any(objects(sentence, good, "en") for sentence in sentences(line)), line
    for tag, words in WORDS.languages.items():
        for assent, condition in product(words.assents, words.conditions):
            sentence = next(sentences(f"{assent} {condition} x"))
            assert objects(sentence, Judgement("approve", None, (tag,)), tag), sentence
    for line in (
        "all good if max agrees.",
        "max must agree first",
        "first of all finance has to look at it",
        "finanzen müssen das erst noch prüfen",
        "max doit valider cela avant",
        "finance moet dit eerst goedkeuren",
        "max deve approvare prima.",
    ):
        assert objects(next(sentences(line)), good, "en") is Why.CONDITION, line
    for line in ("Prima, das muss sein!", "First class, please.", "Max looked at it first of all."):
        assert not any(objects(sentence, good, "en") for sentence in sentences(line)), line


def test_a_refusal_keeps_its_reasons() -> None:
    """A condition, denial or question below a refusal explains it; an approval takes it back."""
    said = Judgement("decline", None, ("en",))
    for line in ("Only two nights are in the budget.", "I can't approve it.", "Ask again in May?", "No."):
        assert not any(objects(sentence, said, "en") for sentence in sentences(line)), line
    assert objects("i meant to approve it.", said, "en") is Why.BOTH


def test_a_known_opening_is_told_however_it_is_written() -> None:
    """What companies put below and gateways put above every mail is known in any case, set off or not."""
    for tag, words in WORDS.languages.items():
        for opener in words.disclaimers:
            assert disclaims(next(sentences(f"* {opener.upper()}x"))) or ":" in opener, (tag, opener)
        banners = [f"*** {opener.upper()} x" for opener in words.banners]
        assert all(warns([line, "External sender."], tag) for line in banners), tag
    assert disclaims(next(sentences("This e-mail and any files are confidential.")))
    assert not disclaims(next(sentences("If you are not sure, ask Max.")))
    assert not warns(["External costs are too high"], "en")
    assert not warns(["This message came from outside, says Bob:"], "en")


def test_two_verdicts_are_none() -> None:
    """Every pair of an approval and a refusal, however joined, is asked back."""
    counted = ({p for p in WORDS.phrases[side] if WORDS.verdict(p, "en")} for side in CHOICES)
    approvals, refusals = (sorted(phrases)[::7] for phrases in counted)
    for a, d in product(approvals, refusals):
        assert all(decides(line, "en") is None for line in (f"{a} {d}", f"{d}, {a}", f"{a}. {d}."))


@pytest.mark.parametrize(
    ("phrase", "language", "verdict"),
    [
        ("no", "en", "decline"),
        ("no", "pl", None),
        ("no", "cs", None),
        ("ne", "cs", "decline"),
        ("ne", "en", None),
        ("tak", "pl", "approve"),
        ("tak", "da", None),
        ("igen", "hu", "approve"),
        ("igen", "sv", None),
        ("nu", "ro", "decline"),
        ("nu", "sv", None),
        ("так", "uk", "approve"),
        ("так", "ru", None),
        ("si", "fr", None),
        ("sí", "es", "approve"),
    ],
)
def test_a_word_counts_where_it_can_mean_one_thing(phrase: str, language: str, verdict: str | None) -> None:
    """Words that two languages share count only in letters of the language that means them."""
    assert judge(phrase, language).verdict == verdict


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("Approved. Thanks, Ann", "approve"),
        ("Approved, thanks - Ann Lee", "approve"),
        ("no, thanks bob!", "decline"),
        ("Hi Bob, approved.", "approve"),
        ("Dear Bob Smith, no", "decline"),
        ("Genehmigt. Viele Gr\u00fc\u00dfe, Ann", "approve"),
        ("Approved Bob", None),
        ("Approved, thanks Max", None),
        ("Approved, thanks. Half", None),
        ("Approved, thanks Bob...", None),
        ("Approved, thanks Bob?", None),
        ("Approved, thanks Bob" + " " * 185 + "but only if Max agrees", None),
        ("Approved, thanks Bob" + "!" * 185 + " wait", None),
        ("Ja, danke Einzelzimmer", None),
        ("Lieber Bahn, genehmigt", None),
        ("Lieber Bob, genehmigt", None),
        ("Dag later, akkoord", None),
        ("Hi Bob sorry, approved", None),
        ("Hi Bob, approved?", None),
        ("Hi Bob..., approved", None),
        ("Hi Bob, thanks", None),
        ("Hi Bob, approved if cheap", None),
        ("Bob", None),
        ("Approve Best Western", None),
    ],
)
def test_somebody_known_who_is_greeted_or_thanked_changes_nothing(line: str, verdict: Choice | None) -> None:
    """Their name is no word of the verdict; anything else there still is."""
    assert judge(line, "en", ["Ann Lee", "bob.smith", "ann"]).verdict == verdict
    assert judge(line, "en").verdict is None


@pytest.mark.parametrize(
    "line", ["Hi Bob,", "Hello", "Liebe Anna-Maria!", "Dear Dr. Smith,", "안녕하세요", "Bonjour Zoé"]
)
def test_a_greeting_is_no_answer_and_is_passed_over(line: str) -> None:
    """A greeting and a name or three say nothing about the request."""
    assert greets(line)
    assert judge(line, "en").verdict is None


@pytest.mark.parametrize(
    "line", ["Hi, no", "Hello if", "Hi Bob, this one we had before", "Bob,", "Hi 3", "Hey?", "Dear not,", ""]
)
def test_a_greeting_with_anything_else_is_not_passed_over(line: str) -> None:
    """A word of any list, a number or a sentence makes a greeting the first line."""
    assert not greets(line)
