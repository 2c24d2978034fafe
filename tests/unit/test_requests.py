"""Requests: what is refused by name, what is cleaned, and what two spellings have in common."""

import contextlib
import re
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from service.errors import RequestInvalid
from service.requests import (
    DEFAULT_DUE,
    GRACE,
    MAX_APPROVERS,
    MAX_FACTS,
    Approver,
    Person,
    Request,
    canonical_address,
    clean_line,
    definite,
    due_at,
    parse_due,
    parse_request,
    require_due,
)

NOW = datetime(2026, 11, 24, 16, 0, tzinfo=UTC)
SIMPLE: dict[str, object] = {"subject": "Refund 120.00 EUR", "approvers": ["ann@corp.com"]}


def body(**fields: object) -> dict[str, object]:
    """Return the simplest request with other `fields`."""
    return SIMPLE | fields


def refused(given: object) -> set[str]:
    """Return the fields that the refusal of `given` names."""
    with pytest.raises(RequestInvalid) as caught:
        parse_request(given)
    assert all(problem.message for problem in caught.value.problems)
    return {problem.field for problem in caught.value.problems}


# ── Fields ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("given", [None, True, 7, "subject", [], [SIMPLE]])
def test_a_body_that_is_no_object_is_refused(given: object) -> None:
    """What is no JSON object has no field to name, and is refused all the same."""
    assert refused(given) == {""}


@pytest.mark.parametrize("field", ["subject", "approvers"])
def test_a_missing_field_is_named(field: str) -> None:
    """A request says what is decided and who is asked."""
    assert refused({name: value for name, value in SIMPLE.items() if name != field}) == {field}


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("subject", None, "subject"),
        ("subject", 7, "subject"),
        ("subject", "", "subject"),
        ("subject", " \t\u00a0", "subject"),
        ("subject", "\x07\u202e", "subject"),
        ("subject", "x" * 201, "subject"),
        ("message", None, "message"),
        ("message", ["x"], "message"),
        ("message", "x" * 20_001, "message"),
        ("id", 7, "id"),
        ("id", "", "id"),
        ("id", "x" * 129, "id"),
        ("id", "root:0", "id"),
        ("id", "a/b", "id"),
        ("id", "a b", "id"),
        ("id", "a\n", "id"),
        ("id", "ä", "id"),
        ("approvers", None, "approvers"),
        ("approvers", [], "approvers"),
        ("approvers", "ann@corp.com", "approvers"),
        ("approvers", {"email": "ann@corp.com"}, "approvers"),
        ("approvers", [f"a{n}@corp.com" for n in range(MAX_APPROVERS + 1)], "approvers"),
        ("approvers", [None], "approvers[0]"),
        ("approvers", ["ann@corp.com", 7], "approvers[1]"),
        ("approvers", ["ann"], "approvers[0].email"),
        ("approvers", ["ann@corp.com", ""], "approvers[1].email"),
        ("approvers", [{}], "approvers[0].email"),
        ("approvers", [{"name": "Ann"}], "approvers[0].email"),
        ("approvers", [{"email": 7}], "approvers[0].email"),
        ("approvers", [{"email": "a@b.c", "name": ""}], "approvers[0].name"),
        ("approvers", [{"email": "a@b.c", "name": " "}], "approvers[0].name"),
        ("approvers", [{"email": "a@b.c", "name": "x" * 101}], "approvers[0].name"),
        ("approvers", [{"email": "a@b.c", "locale": "x-klingon"}], "approvers[0].locale"),
        ("approvers", [{"email": "a@b.c", "locale": "en_US"}], "approvers[0].locale"),
        ("approvers", [{"email": "a@b.c", "locale": "de-DE@euro"}], "approvers[0].locale"),
        ("approvers", [{"email": "a@b.c", "locale": ""}], "approvers[0].locale"),
        ("approvers", [{"email": "a@b.c", "locale": "e" * 36}], "approvers[0].locale"),
        ("approvers", [{"email": "a@b.c", "zone": "Mars/Base"}], "approvers[0].zone"),
        ("approvers", [{"email": "a@b.c", "zone": "../../etc/passwd"}], "approvers[0].zone"),
        ("approvers", [{"email": "a@b.c", "zone": "Europe"}], "approvers[0].zone"),
        ("approvers", [{"email": "a@b.c", "zone": "localtime"}], "approvers[0].zone"),
        ("approvers", [{"email": "a@b.c", "zone": "\ud800"}], "approvers[0].zone"),
        ("approvers", [{"email": "a@b.c", "zone": ""}], "approvers[0].zone"),
        ("requester", 7, "requester"),
        ("requester", "bob", "requester.email"),
        ("requester", {}, "requester.email"),
        ("requester", {"email": "bob@corp.com", "name": 7}, "requester.name"),
        ("requester", {"email": "bob@corp.com", "name": "a\r\nBcc: x"}, "requester.name"),
        ("policy", "all", "policy"),
        ("policy", {"quorum": 2}, "policy"),
        ("policy", None, "policy"),
        ("facts", [], "facts"),
        ("facts", {"Amount": 7}, "facts"),
        ("facts", {"x" * 61: "7"}, "facts"),
        ("facts", {"Amount": "x" * 501}, "facts"),
        ("facts", {str(n): "x" for n in range(MAX_FACTS + 1)}, "facts"),
        ("facts", {"": "7"}, "facts"),
        ("facts", {" ": "7"}, "facts"),
        ("facts", {"Amount": " "}, "facts.Amount"),
        ("facts", {"Amount": "7", "Amount ": "8"}, "facts.Amount"),
        ("due", 3, "due"),
        ("due", "", "due"),
        ("due", "tomorrow", "due"),
    ],
)
def test_a_bad_value_is_refused_by_its_field(field: str, value: object, named: str) -> None:
    """Malformed, too long, too many, blank, of another type: the refusal names that field alone."""
    assert refused(body(**{field: value})) == {named}


def test_every_broken_rule_is_named_at_once() -> None:
    """A caller reads all that is wrong in one answer."""
    assert refused(
        body(id="a b", subject="a\nb", due="soon", approvers=["ann", "a@b.c", "A@B.C"], facts={"a": "\0"})
    ) == {"id", "subject", "due", "approvers[0].email", "approvers[2]", "facts.a"}


def test_every_unknown_field_is_named() -> None:
    """A misspelt field is never ignored, wherever it stands, and a strange name can't hide another."""
    assert refused(
        body(
            subjekt="x",
            **{"a` - at `$.b": 1, "c\nd": 2},
            requester={"email": "bob@corp.com", "zone": "UTC"},
            approvers=["ann@corp.com", {"email": "a@b.c", "nmae": "A"}],
        )
    ) == {"subjekt", "a` - at `$.b", "c\nd", "requester.zone", "approvers[1].nmae"}


@pytest.mark.parametrize("field", ["webhook", "choices", "reminders"])
def test_a_field_of_a_later_version_is_refused(field: str) -> None:
    """Whoever asks for what this version can't do is told, not half served."""
    assert refused(body(**{field: None})) == {field}


def test_the_limits_themselves_are_allowed() -> None:
    """What is exactly as long as a rule says passes."""
    request = parse_request(
        body(
            id="Az09._-" + "x" * 121,
            subject="x" * 200,
            message="x" * 20_000,
            approvers=[{"email": f"a{n}@corp.com", "name": "x" * 100} for n in range(MAX_APPROVERS)],
            facts={f"{n:060}": "x" * 500 for n in range(MAX_FACTS)},
        )
    )
    assert len(request.approvers) == MAX_APPROVERS
    assert len(request.facts) == MAX_FACTS


# ── Text that would break a header or deceive a reader ────────────────────────


@pytest.mark.parametrize("broken", ["a\rb", "a\nb", "a\r\nBcc: eve@evil.example", "a\0b", "\n", "a\n"])
def test_line_breaks_and_nul_are_refused(broken: str) -> None:
    """Nothing that could begin a header of its own gets in."""
    assert refused(body(subject=broken)) == {"subject"}
    assert refused(body(approvers=[{"email": "a@b.c", "name": broken}])) == {"approvers[0].name"}
    assert refused(body(requester={"email": "a@b.c", "name": broken})) == {"requester.name"}
    assert refused(body(facts={broken: "x"})) == {"facts"}
    assert refused(body(facts={"x": broken})) == {"facts.x"}
    assert refused(body(approvers=[broken + "@corp.com"])) == {"approvers[0].email"}
    assert refused(body(approvers=["ann@corp.com" + broken])) == {"approvers[0].email"}
    assert refused(body(requester=broken + "@corp.com")) == {"requester.email"}


def test_an_encoded_word_is_only_text() -> None:
    """What looks like RFC 2047 passes as it is; the letter neutralises it."""
    text = "=?utf-8?q?a=0ABcc=3A_x=40y?="
    request = parse_request(body(subject=text, requester={"email": "bob@corp.com", "name": text}))
    assert request.subject == text
    assert isinstance(request.requester, Person)
    assert request.requester.name == text


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("a\x07b\x1bc\x7fd\x9fe", "a b c d e"),
        ("a\tb\x0bc\x0cd", "a b c d"),
        ("invoice\u202egpj.exe\u202c", "invoice gpj.exe"),
        ("\u2066a\u2069\u2028b\u2029c", "a b c"),
        ("  a \u00a0 b  ", "a b"),
        ("a\ud800b", "a b"),
        ("café — 日本 👍", "café — 日本 👍"),
    ],
)
def test_other_control_and_reordering_characters_become_spaces(given: str, cleaned: str) -> None:
    """Bells, escapes, bidi overrides and half surrogates are blanked out; letters of any script stay."""
    assert clean_line(given) == cleaned
    assert parse_request(body(subject=given)).subject == cleaned


def test_a_message_keeps_its_lines_and_nothing_worse() -> None:
    """Lines and tabs stay, however they were ended; controls and overrides do not."""
    request = parse_request(body(message="\r\n a\r\n\tb\rc\0d\u202ee\ud800\n\n"))
    assert request.message == "a\n\tb c d e"


@given(st.text(st.characters(exclude_categories=())))
def test_a_clean_line_is_one_line(text: str) -> None:
    """Whatever is accepted holds no control character, can be encoded, and is clean already."""
    try:
        line = clean_line(text)
    except ValueError:
        return
    assert line
    assert line == " ".join(line.split())
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", line)
    line.encode("utf-8")
    assert clean_line(line) == line


# ── Addresses ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("Ann@Corp.COM", "ann@corp.com"),
        ("ann@bücher.example", "ann@xn--bcher-kva.example"),
        ("ann@BÜCHER.example", "ann@xn--bcher-kva.example"),
        ("ann@straße.example", "ann@xn--strae-oqa.example"),
        ("ann@corp。com", "ann@corp.com"),
        ("ann@xn--bcher-kva.example", "ann@xn--bcher-kva.example"),
        ("ann@localhost", "ann@localhost"),
        ("o'neil+tag.x_y%z!#$&*-/=^`{|}~@corp.com", "o'neil+tag.x_y%z!#$&*-/=^`{|}~@corp.com"),
        ("x" * 64 + "@corp.com", "x" * 64 + "@corp.com"),
    ],
)
def test_an_address_has_one_form(given: str, canonical: str) -> None:
    """Lower case, the domain in punycode: two spellings of one mailbox are equal."""
    assert canonical_address(given) == canonical


@pytest.mark.parametrize(
    "given",
    [
        "",
        "ann",
        "@",
        "@corp.com",
        "ann@",
        "ann@@corp.com",
        "a@b@corp.com",
        "ann@corp..com",
        "ann@.corp.com",
        "ann@corp.com.",
        "ann@-corp.com",
        "ann@corp_x.com",
        "ann@[127.0.0.1]",
        "ann@127.0.0.1",
        "ann@xn--a.example",
        ".ann@corp.com",
        "ann.@corp.com",
        "a..b@corp.com",
        " ann@corp.com",
        "ann@corp.com ",
        "a nn@corp.com",
        "ann,bob@corp.com",
        "ann;bob@corp.com",
        "<ann@corp.com>",
        "Ann <ann@corp.com>",
        "ann@corp.com <eve@evil.example>",
        "ann(x)@corp.com",
        "mailto:ann@corp.com",
        '"ann"@corp.com',
        '"a b"@corp.com',
        '"a@b"@corp.com',
        "änn@corp.com",
        "\u212aate@corp.com",
        "ann@cor\u200dp.com",
        "ann@corp\u00ad.com",
        "ann@corp.com\u2028",
        "ann\x7f@corp.com",
        "ann@corp.\ud800com",
        "=?utf-8?q?ann?=@corp.com",
        "x" * 65 + "@corp.com",
        "ann@" + "x" * 64 + ".com",
        "ann@" + ".".join(["x" * 60] * 5),
        # 195 characters as written, 326 in punycode.
        "x" * 64 + "@" + ".".join(["日本語日本語日本語"] * 13),
    ],
)
def test_what_is_not_one_plain_address_is_refused(given: str) -> None:
    """No list, no group, no name, no comment, no quoted or non-ASCII local part, no host's number."""
    with pytest.raises(ValueError, match=r"address|ASCII"):
        canonical_address(given)
    assert refused(body(approvers=[given])) == {"approvers[0].email"}


@given(st.text() | st.from_regex(r"[!-~]{1,20}@[a-z.\-ü]{1,20}", fullmatch=True))
def test_a_canonical_address_is_fit_for_an_envelope(text: str) -> None:
    """Whatever is accepted is a dot-atom of bounded length at an ASCII domain, and canonical already."""
    try:
        address = canonical_address(text)
    except ValueError:
        return
    assert re.fullmatch(r"[a-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[a-z0-9.-]+", address)
    assert len(address) <= 254
    assert canonical_address(address) == address


@pytest.mark.parametrize(
    "pair",
    [
        ["ann@corp.com", "Ann@CORP.com"],
        ["ann@corp.com", {"email": "ann@corp.com", "name": "Ann"}],
        ["ann@bücher.example", "ann@xn--bcher-kva.example"],
    ],
)
def test_who_is_named_twice_is_refused(pair: list[object]) -> None:
    """One person has one vote, however the address is written."""
    assert refused(body(approvers=["bob@corp.com", *pair])) == {"approvers[2]"}


# ── Equal requests ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"approvers": ["ann@corp.com"]}, {"approvers": [{"email": "Ann@Corp.com"}]}),
        ({"approvers": ["ann@corp.com"]}, {"approvers": [{"email": "ann@corp.com", "name": None}]}),
        ({"requester": "bob@corp.com"}, {"requester": {"email": "BOB@corp.com"}}),
        ({}, {"policy": "any", "message": "", "facts": {}, "due": None, "requester": None}),
        ({"subject": "a b"}, {"subject": " a \x07 b "}),
        ({"message": "a\nb"}, {"message": "a\r\nb\r\n"}),
        ({"due": "P1D"}, {"due": "PT24H"}),
        ({"due": "P1D"}, {"due": "+P1D"}),
        ({"due": "2026-12-01T12:00:00Z"}, {"due": "2026-12-01T13:00:00.000+01:00"}),
        ({"facts": {"a": "1", "b": "2"}}, {"facts": {"b": "2", " a": "1 "}}),
    ],
)
def test_equal_requests_are_equal_values(one: dict[str, object], other: dict[str, object]) -> None:
    """A repeated request is told from another one by its meaning, not its spelling."""
    assert parse_request(body(**one)) == parse_request(body(**other))


@pytest.mark.parametrize(
    "other",
    [
        {"subject": "Refund 120.01 EUR"},
        {"message": "x"},
        {"approvers": ["ann@corp.com", "bob@corp.com"]},
        {"approvers": [{"email": "ann@corp.com", "name": "Ann"}]},
        {"requester": "bob@corp.com"},
        {"due": "P14D"},
        {"facts": {"a": "1"}},
    ],
)
def test_other_requests_are_other_values(other: dict[str, object]) -> None:
    """Whatever a person would read differently makes another request."""
    assert parse_request(SIMPLE) != parse_request(body(**other))


def test_the_order_of_approvers_counts() -> None:
    """Approvers are a list: positions name ballots."""
    one, other = ["ann@corp.com", "bob@corp.com"], ["bob@corp.com", "ann@corp.com"]
    assert parse_request(body(approvers=one)) != parse_request(body(approvers=other))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
addresses = st.sampled_from(["ann@corp.com", "Ann@Corp.com", "bob@bücher.example", "ann", "a\n@b.c"])
lines = st.text(st.characters(exclude_categories=()), max_size=30)
names = lines | st.none()
people = addresses | st.fixed_dictionaries({"email": addresses}, optional={"name": names})
approvers = people | st.fixed_dictionaries(
    {"email": addresses},
    optional={
        "name": names,
        "locale": st.sampled_from(["en", "pt-BR", "xx-", "-", "EN-us"]) | lines,
        "zone": st.sampled_from(["UTC", "Europe/Madrid", "Europe"]) | lines,
    },
)
dues = (
    st.sampled_from(
        ["P1D", "PT1S", "PT0.5S", "P1M", "2026-12-01T00:00:00+23:59", "0001-01-01T00:00:00+01:00"]
    )
    | st.timedeltas().map(msgspec.to_builtins)
    | st.datetimes(timezones=st.just(UTC)).map(msgspec.to_builtins)
    | lines
)
near_requests = st.fixed_dictionaries(
    {
        "subject": lines | json_values,
        "approvers": st.lists(approvers | json_values, max_size=4) | json_values,
    },
    optional={
        "id": st.from_regex(r"[a-z0-9._-]{1,9}", fullmatch=True) | json_values,
        "message": lines | json_values,
        "facts": st.dictionaries(lines, lines, max_size=3) | json_values,
        "requester": people | json_values,
        "policy": st.just("any") | json_values,
        "due": dues | json_values,
        "other": json_values,
    },
)
good_requests = st.fixed_dictionaries(
    {"subject": lines, "approvers": st.lists(approvers, min_size=1, max_size=3)},
    optional={
        "message": lines,
        "facts": st.dictionaries(lines, lines, max_size=3),
        "requester": people,
        "due": dues,
    },
)


@given(json_values | near_requests | st.dictionaries(st.sampled_from(Request.__struct_fields__), json_values))
@settings(max_examples=1_000, deadline=None)
def test_any_json_is_parsed_or_refused(given: object) -> None:
    """Whatever arrives, the only error is RequestInvalid, with a problem in it that can be sent back."""
    with contextlib.suppress(RequestInvalid):
        assert isinstance(parse_request(given), Request)
        return
    assert refused(given) is not None


@given(good_requests)
@example(body(due="PT36H", message="a\r\nb", facts={"a ": " b"}, requester="Bob@Corp.com"))
@settings(max_examples=1_000, deadline=None)
def test_parsing_again_changes_nothing(given: object) -> None:
    """A request that was stored and is read again is equal, so that a repeated call finds it."""
    try:
        request = parse_request(given)
    except RequestInvalid:
        assume(condition=False)
    stored = msgspec.json.decode(msgspec.json.encode(request))
    assert parse_request(stored) == request
    assert parse_request(msgspec.to_builtins(request)) == request


# ── Due times ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("PT1S", timedelta(seconds=1)),
        ("PT30M", timedelta(minutes=30)),
        ("P3D", timedelta(days=3)),
        ("P1DT12H", timedelta(hours=36)),
        ("PT1.5S", timedelta(seconds=1.5)),
        ("P366D", timedelta(days=366)),
        ("2026-12-01T12:00:00Z", datetime(2026, 12, 1, 12, tzinfo=UTC)),
        ("2026-12-01T12:00:00.250+05:45", datetime(2026, 12, 1, 6, 15, 0, 250_000, tzinfo=UTC)),
        ("2001-01-01T00:00:00Z", datetime(2001, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_due_time_is_a_duration_or_an_instant(text: str, due: timedelta | datetime) -> None:
    """ISO 8601 with a zone is read to the instant; one that has passed is the opener's to refuse."""
    assert parse_due(text) == due


@pytest.mark.parametrize(
    "text",
    [
        "PT0S",
        "PT0.999S",
        "-P1D",
        "P366DT1S",
        "P99999999999999999999D",
        "P1M",
        "P1Y",
        "P1W",
        "P",
        "PT",
        "p1d",
        " P1D",
        "3 days",
        "86400",
        "2026-12-01",
        "2026-12-01T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-12-01T25:00:00Z",
        "0001-01-01T00:00:00+10:00",
        "9999-12-31T23:59:59-10:00",
        "P1D\0",
    ],
)
def test_what_is_no_due_time_is_refused(text: str) -> None:
    """Out of bounds, of no fixed length, without a zone, or out of the calendar."""
    assert refused(body(due=text)) == {"due"}


def test_fourteen_days_are_the_default() -> None:
    """Who does not say gets two weeks."""
    assert due_at(parse_request(SIMPLE), NOW) == NOW + DEFAULT_DUE == NOW + timedelta(days=14)


@pytest.mark.parametrize("ahead", [timedelta(seconds=1), timedelta(days=1), timedelta(days=366)])
def test_an_instant_within_bounds_can_be_opened(ahead: timedelta) -> None:
    """From a second to a year ahead, both included."""
    request = parse_request(body(due=(NOW + ahead).isoformat()))
    assert require_due(request, NOW) == NOW + ahead


@pytest.mark.parametrize(
    "ahead", [timedelta(days=-1), timedelta(0), timedelta(seconds=0.999), timedelta(days=366, seconds=1)]
)
def test_an_instant_past_or_too_far_is_not_opened(ahead: timedelta) -> None:
    """Nothing opens closed: the refusal names `due`, while the same text parses on."""
    request = parse_request(body(due=(NOW + ahead).isoformat()))
    with pytest.raises(RequestInvalid) as caught:
        require_due(request, NOW)
    assert [problem.field for problem in caught.value.problems] == ["due"]
    assert due_at(request, NOW) == NOW + ahead


@given(st.timedeltas(timedelta(seconds=1), timedelta(days=366)))
def test_a_duration_can_always_be_opened(due: timedelta) -> None:
    """A duration that parses needs no second look at the clock."""
    request = parse_request(body(due=msgspec.to_builtins(due)))
    assert require_due(request, NOW) == NOW + due


# ── Made definite ─────────────────────────────────────────────────────────────


def test_a_definite_request_has_people_and_instants() -> None:
    """Everybody is a person, the due time is the one asked for where the root lives long enough."""
    request = parse_request(body(due="P3D", requester="bob@corp.com", facts={"Amount": "120.00 EUR"}))
    ask = definite(request, "refund-42", NOW, NOW + timedelta(days=3) + GRACE)
    assert ask.approval_id == "refund-42"
    assert ask.approvers == [Approver(email="ann@corp.com")]
    assert ask.requester == Person(email="bob@corp.com")
    assert ask.facts == {"Amount": "120.00 EUR"}
    assert (ask.created_at, ask.due_at) == (NOW, NOW + timedelta(days=3))


@pytest.mark.parametrize(
    ("life", "due"),
    [
        (timedelta(days=1), timedelta(days=1) - timedelta(minutes=1)),
        (timedelta(minutes=10), timedelta(minutes=9)),
        (timedelta(seconds=10), timedelta(seconds=9)),
    ],
)
def test_a_shorter_root_clamps_the_due_time(life: timedelta, due: timedelta) -> None:
    """An approval in a foreign workflow is due before its root ends, with time left to close."""
    ask = definite(parse_request(SIMPLE), "root:0", NOW, NOW + life)
    assert ask.due_at == NOW + due


def test_a_person_is_shown_by_name_where_there_is_one() -> None:
    """Who gave no name is shown by address."""
    assert Person(email="bob@corp.com", name="Bob").display == "Bob"
    assert Person(email="bob@corp.com").display == "bob@corp.com"
