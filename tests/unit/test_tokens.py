"""Capabilities: what they prove, what they refuse, and that those in flight go on working."""

import contextlib
import string
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain import Ballot, BallotRecord, ballot_key
from service.errors import AddressInvalid, LinkInvalid
from service.requests import Approver, Ask
from service.tokens import MAX_TOKEN, NONCE_SECONDS, AddressClaim, Tokens, spell, unspell

OLD, NEW, OTHER = b"old-" * 8, b"new-" * 8, b"eve-" * 8
DUE = datetime(2026, 12, 8, 16, 0, tzinfo=UTC)
URL_SAFE = string.ascii_letters + string.digits + "-_.="
LOCAL = string.ascii_lowercase + string.digits + "+.-_="


def ring(*keys: bytes) -> Tokens:
    """Return tokens of one service with these keys, oldest first."""
    return Tokens(keys, public_url="https://approvals.corp.example", reply_domain="reply.corp.example")


def ballot(email: str = "ann@corp.com", approval_id: str = "refund-42", due: datetime = DUE) -> Ballot:
    """Return an open ballot of one approver."""
    ask = Ask(
        approval_id=approval_id,
        subject="Refund",
        message="",
        facts={},
        approvers=[Approver(email=email)],
        requester=None,
        created_at=DUE - timedelta(days=14),
        due_at=due,
    )
    promise = f"{approval_id}:1"
    record = BallotRecord(approval_id=approval_id, position=0, promise=promise, arbiter=promise)
    return Ballot(key=ballot_key(approval_id, email), ask=ask, record=record, end=None)


TOKENS, ANN = ring(NEW), ballot()
CAPABLE = TOKENS.capabilities(ANN)
TOKEN = CAPABLE.link.rpartition("/")[2]


def proved(address: str, asked: Ballot = ANN, tokens: Tokens = TOKENS) -> AddressClaim:
    """Return what `address` proves about `asked`. Raises AddressInvalid."""
    claim = tokens.read_address(address)
    tokens.verify_address(claim, asked)
    return claim


def refused(address: str, asked: Ballot = ANN, tokens: Tokens = TOKENS) -> bool:
    """Tell whether `address` is refused as an address, for `asked`."""
    try:
        proved(address, asked, tokens)
    except AddressInvalid:
        return True
    return False


# ── What is in flight stays good ──────────────────────────────────────────────


def test_capabilities_in_flight_never_change() -> None:
    """Letters sent by any earlier version go on working: these vectors may never be edited."""
    assert (
        CAPABLE.link
        == "https://approvals.corp.example/decide/ImRsNHBpamhuZ2hnajJ2eTNlbDZrNDdmbmFlIg.4UUYvVozBHPMg934pV8GY9LPJr3LHKPVlbvZhAApNfo"
    )
    assert CAPABLE.reply_to == "r+dmnpr5be5uy4zhkxdmrpzlt4vuatuzvuddixdbg2frel2uvywweq@reply.corp.example"
    assert CAPABLE.bounce_to == "b+dmnpr5be5uy4zhkxdmrpzlt4vuavcoemn5w5vflv6arg3onkvmlq@reply.corp.example"


def test_capabilities_are_the_same_each_time() -> None:
    """A letter written again is the same letter, in any process."""
    assert ring(NEW).capabilities(ballot()) == CAPABLE


def test_each_ballot_has_its_own() -> None:
    """Another approver or another approval has another link and other addresses."""
    all_of_them = [TOKENS.capabilities(b) for b in (ANN, ballot("bob@corp.com"), ballot(approval_id="r-2"))]
    assert len({text for c in all_of_them for text in (c.link, c.reply_to, c.bounce_to)}) == 9


def test_they_fit_where_they_travel() -> None:
    """A local part has 64 octets and may lose its case; a link survives a mail line."""
    for address in (CAPABLE.reply_to, CAPABLE.bounce_to):
        local = address.partition("@")[0]
        assert len(local) == 54
        assert local == local.lower()
        assert local.isascii()
    assert len(TOKEN) < 120


# ── Key rings ─────────────────────────────────────────────────────────────────


def test_a_rotation_keeps_letters_in_flight_and_signs_by_the_newest() -> None:
    """What the old key signed is good beside a new one, and what is signed needs only the new one."""
    rotated = ring(OLD, NEW)
    before = ring(OLD).capabilities(ANN)
    assert rotated.read_link(before.link.rpartition("/")[2]) == ANN.key
    assert proved(before.reply_to, tokens=rotated).ballot_key == ANN.key
    assert rotated.capabilities(ANN) == CAPABLE


def test_a_removed_key_opens_nothing() -> None:
    """Once the old key is gone, so is all that it signed."""
    before = ring(OLD).capabilities(ANN)
    with pytest.raises(LinkInvalid):
        TOKENS.read_link(before.link.rpartition("/")[2])
    assert refused(before.reply_to)
    assert refused(before.bounce_to)
    assert not TOKENS.nonce_holds(ring(OLD).form_nonce(ANN.key, "browser"), ANN.key, "browser")


def test_keys_whose_hints_collide_are_both_tried() -> None:
    """Four bits hint at the key; seventeen keys can't all differ in them, and all verify."""
    keys = [bytes([n]) * 32 for n in range(17)]
    together = ring(*keys)
    for key in keys:
        assert proved(ring(key).capabilities(ANN).reply_to, tokens=together).ballot_key == ANN.key


@pytest.mark.parametrize("keys", [[], [b""], [b"x" * 31], [b"x" * 32, b"short"], [b"short", b"x" * 32]])
def test_a_weak_ring_is_refused(keys: list[bytes]) -> None:
    """No key at all, or any key under 32 bytes."""
    with pytest.raises(ValueError, match="32 bytes"):
        ring(*keys)


# ── Links ─────────────────────────────────────────────────────────────────────


def test_a_link_proves_its_ballot() -> None:
    """What the letter's link carries is the ballot's key."""
    assert TOKENS.read_link(TOKEN) == ANN.key


def test_no_changed_link_proves_another_ballot() -> None:
    """Each change of one character is refused, but for the last one's spare bits: the same ballot."""
    same = set()
    for index, was in enumerate(TOKEN):
        for changed in set(URL_SAFE) - {was}:
            token = TOKEN[:index] + changed + TOKEN[index + 1 :]
            try:
                assert TOKENS.read_link(token) == ANN.key
            except LinkInvalid:
                continue
            same.add(index)
            assert token[:-1] == TOKEN[:-1]
    assert same == {len(TOKEN) - 1}


def test_a_padded_link_proves_the_same_ballot() -> None:
    """Base64 ignores padding: so nothing may ever be keyed on a token's own text."""
    assert {TOKENS.read_link(TOKEN + "=" * n) for n in range(1, 5)} == {ANN.key}


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        TOKEN[:-1],
        TOKEN[1:],
        TOKEN.partition(".")[0],
        TOKEN.partition(".")[2],
        TOKEN.upper(),
        TOKEN.lower(),
        TOKEN + "A",
        TOKEN + "ä",
        TOKEN + "\ud800",
        TOKEN + "\u212a",
        " " + TOKEN,
        TOKEN + "=" * MAX_TOKEN,
        "A" * 1_000_000,
        spell(ANN.key),
        CAPABLE.reply_to,
        ring(OTHER).link_token(ANN.key),
        TOKENS.form_nonce(ANN.key, "browser"),
    ],
    ids=range(19),
)
def test_what_is_no_link_of_ours_is_refused(token: str) -> None:
    """Cut, folded, forged, too long, not ASCII, or signed for something else: LinkInvalid, nothing worse."""
    with pytest.raises(LinkInvalid) as caught:
        TOKENS.read_link(token)
    assert caught.value.http_status == 404


@given(st.text(st.characters(exclude_categories=())) | st.text(URL_SAFE, max_size=150))
def test_any_text_as_a_link_is_refused(token: str) -> None:
    """Whatever stands in the path, the only error is LinkInvalid."""
    with pytest.raises(LinkInvalid):
        TOKENS.read_link(token)


@given(st.binary(min_size=16, max_size=16))
def test_any_ballot_key_survives_its_link_and_its_spelling(key: bytes) -> None:
    """A ballot's key comes back as it went."""
    assert TOKENS.read_link(TOKENS.link_token(key)) == key
    assert unspell(spell(key)) == key
    assert len(spell(key)) == 26


def test_a_ballot_key_has_one_spelling() -> None:
    """Spare bits, capitals, padding, other lengths, other types: refused, or never the same key."""
    text = spell(ANN.key)
    for wrong in [text.upper(), text + "=", text[:-1], text + "a", "", "ä" * 26, "\ud800", None, [text], 7]:
        with pytest.raises(LinkInvalid):
            unspell(wrong)
    for last in set(string.ascii_lowercase + "234567") - {text[-1]}:
        with contextlib.suppress(LinkInvalid):
            assert unspell(text[:-1] + last) != ANN.key


# ── Form nonces ───────────────────────────────────────────────────────────────


def test_a_nonce_holds_for_its_page_view() -> None:
    """The same ballot in the same browser, at once."""
    assert TOKENS.nonce_holds(TOKENS.form_nonce(ANN.key, "browser"), ANN.key, "browser")
    assert ring(OLD, NEW).nonce_holds(TOKENS.form_nonce(ANN.key, "browser"), ANN.key, "browser")


def test_a_nonce_holds_for_nothing_else() -> None:
    """Another browser, another ballot, another purpose, forged, cut, too long or not ASCII."""
    nonce = TOKENS.form_nonce(ANN.key, "browser")
    assert not TOKENS.nonce_holds(nonce, ANN.key, "other")
    assert not TOKENS.nonce_holds(nonce, ANN.key, "")
    assert not TOKENS.nonce_holds(nonce, ballot("bob@corp.com").key, "browser")
    assert not TOKENS.nonce_holds(TOKEN, ANN.key, "browser")
    assert not TOKENS.nonce_holds(ring(OTHER).form_nonce(ANN.key, "browser"), ANN.key, "browser")
    for wrong in (
        "",
        ".",
        "..",
        nonce[:-2],
        nonce[1:],
        nonce + "ä",
        nonce + "\ud800",
        nonce + "=" * MAX_TOKEN,
    ):
        assert not TOKENS.nonce_holds(wrong, ANN.key, "browser")


@pytest.mark.parametrize(
    ("later", "holds"), [(0, True), (NONCE_SECONDS, True), (NONCE_SECONDS + 1, False), (-1, False)]
)
def test_a_nonce_ages(monkeypatch: pytest.MonkeyPatch, later: int, holds: bool) -> None:  # noqa: FBT001
    """It holds for ten minutes, and not before it was made."""
    made = DUE.timestamp()
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: made)
    nonce = TOKENS.form_nonce(ANN.key, "browser")
    monkeypatch.setattr("itsdangerous.timed.time.time", lambda: made + later)
    assert TOKENS.nonce_holds(nonce, ANN.key, "browser") is holds


# ── Addresses ─────────────────────────────────────────────────────────────────


def test_an_address_proves_its_ballot_and_kind() -> None:
    """A reply and a bounce are told apart by what was signed."""
    assert (proved(CAPABLE.reply_to).kind, proved(CAPABLE.reply_to).ballot_key) == ("reply", ANN.key)
    assert (proved(CAPABLE.bounce_to).kind, proved(CAPABLE.bounce_to).ballot_key) == ("bounce", ANN.key)


def test_relays_may_fold_the_case() -> None:
    """Capitals, anywhere, prove the same."""
    assert proved(CAPABLE.reply_to.upper()) == proved(CAPABLE.reply_to)
    assert proved(CAPABLE.bounce_to.title()) == proved(CAPABLE.bounce_to)
    shouting = Tokens([NEW], public_url="https://approvals.corp.example/", reply_domain="REPLY.Corp.Example")
    assert shouting.capabilities(ANN) == CAPABLE


def test_a_reply_address_needs_no_prefix() -> None:
    """Hosts that can't route a ``+`` get the bare token on a subdomain; a bounce is never bare."""
    assert proved(CAPABLE.reply_to.removeprefix("r+")) == proved(CAPABLE.reply_to)
    assert refused(CAPABLE.bounce_to.removeprefix("b+"))


def test_no_changed_address_proves_anything() -> None:
    """Each change of one character is refused, or is a capital."""
    for address in (CAPABLE.reply_to, CAPABLE.bounce_to):
        for index, was in enumerate(address):
            for changed in set(LOCAL) - {was}:
                assert refused(address[:index] + changed + address[index + 1 :])


def test_kinds_are_not_exchanged() -> None:
    """A bounce address never decides, and a reply address never marks a ballot undeliverable."""
    assert refused("b+" + CAPABLE.reply_to.removeprefix("r+"))
    assert refused("r+" + CAPABLE.bounce_to.removeprefix("b+"))


def test_an_address_is_bound_to_approver_due_time_and_ballot() -> None:
    """The ballot it is held against is the one it was signed for, to the millisecond."""
    assert refused(CAPABLE.reply_to, ballot("bob@corp.com"))
    assert refused(CAPABLE.reply_to, msgspec.structs.replace(ballot("bob@corp.com"), key=ANN.key))
    assert refused(CAPABLE.reply_to, ballot(due=DUE + timedelta(milliseconds=1)))
    assert refused(CAPABLE.reply_to, ballot(due=DUE - timedelta(milliseconds=1)))
    # The same approver and due time, but another approval: the caller looked up the wrong ballot.
    assert refused(CAPABLE.reply_to, ballot(approval_id="refund-43"))


@pytest.mark.parametrize("zone_ahead", [1, -11])
def test_a_due_time_is_an_instant(zone_ahead: int) -> None:
    """The zone in which the due time is written, and what is below a millisecond, change nothing."""
    moved = DUE.astimezone(datetime.strptime(f"{zone_ahead:+03}00", "%z").tzinfo)
    assert not refused(CAPABLE.reply_to, ballot(due=moved + timedelta(microseconds=999)))


def test_every_millisecond_has_its_own_address() -> None:
    """A due time counts in whole milliseconds exactly, where floating point would run two together."""
    dues = [DUE + timedelta(milliseconds=n) for n in range(1_000)]
    assert len({TOKENS.capabilities(ballot(due=due)).reply_to for due in dues}) == 1_000


@pytest.mark.parametrize(
    "address",
    [
        "",
        "@",
        "r+@reply.corp.example",
        "@reply.corp.example",
        "postmaster@reply.corp.example",
        CAPABLE.reply_to.partition("@")[0],
        CAPABLE.reply_to.replace("@reply.corp", "@corp"),
        CAPABLE.reply_to.replace("@", "@x."),
        CAPABLE.reply_to + ".",
        "r+" + CAPABLE.reply_to,
        CAPABLE.reply_to.replace("@", "=@"),
        CAPABLE.reply_to.replace("@", "a@"),
        CAPABLE.reply_to.replace("@", "@evil.example@"),
        f"<{CAPABLE.reply_to}>",
        f"r+{'a' * 52}@reply.corp.example",
        f"r+{'k' * 51}\u212a@reply.corp.example",
        f"r+{'ä' * 52}@reply.corp.example",
        f"r+{'\ud800' * 52}@reply.corp.example",
        f"r+{'a' * 1_000_000}@reply.corp.example",
        ring(OTHER).capabilities(ANN).reply_to,
    ],
    ids=range(20),
)
def test_what_is_no_address_of_ours_is_refused(address: str) -> None:
    """Another domain, another length, not ASCII, padded, forged: AddressInvalid, nothing worse."""
    assert refused(address)


def test_what_folds_to_our_letters_is_refused() -> None:
    """The Kelvin sign folds to a k and the long s to an s; neither is in an address of ours."""
    for letter, double in (("k", "\u212a"), ("s", "\u017f")):
        mine = next(c for n in range(99) if letter in (c := ballot_address(n)).partition("@")[0])
        assert refused(mine.replace(letter, double, 1))
        with pytest.raises(AddressInvalid):
            TOKENS.read_address(mine.replace(letter, double, 1))


def ballot_address(number: int) -> str:
    """Return the reply address of one of many ballots."""
    return TOKENS.capabilities(ballot(approval_id=f"r-{number}")).reply_to


@given(
    st.text(st.characters(exclude_categories=()))
    | st.text(LOCAL, min_size=50, max_size=60).map(lambda local: f"{local}@reply.corp.example")
    | st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=52, max_size=52).map(
        lambda local: f"r+{local}@reply.corp.example"
    )
)
@settings(max_examples=500)
def test_any_text_as_an_address_is_refused(address: str) -> None:
    """Whatever an envelope says, the only error is AddressInvalid."""
    assert refused(address)


@given(st.emails(), st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_any_ballots_addresses_verify(email: str, due: datetime) -> None:
    """What is signed is read, for any approver and due time."""
    asked = ballot(email, due=due)
    capable = TOKENS.capabilities(asked)
    assert proved(capable.reply_to, asked).ballot_key == asked.key
    assert proved(capable.bounce_to.upper(), asked).kind == "bounce"
