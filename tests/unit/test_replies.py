"""Every fixture is read as its expectation says."""

import tomllib
from pathlib import Path
from typing import assert_never

import pytest

from service.replies import Bounce, Ignored, Reading, Reply, Sent, Unverified, read_reply
from tests.fixtures.replies import make
from tests.fixtures.replies.mails import FROM, LETTER, REPLY_TO, SUBJECT

FOLDER = Path(make.__file__).parent
EXPECTED: dict[str, dict[str, str]] = tomllib.loads(
    (FOLDER / "expectations.toml").read_text(encoding="utf-8")
)
SENT = Sent(
    subject=SUBJECT,
    text=LETTER,
    reply_address=REPLY_TO,
    own_addresses=frozenset({FROM}),
    names=frozenset({"Ann Lee", "bob"}),
)


def facts(reading: Reading) -> dict[str, str | None]:
    """Return a reading in the words of ``expectations.toml``."""
    match reading:
        case Reply():
            return {
                "kind": "reply",
                "verdict": reading.verdict,
                "why": reading.why,
                "comment": reading.comment,
                "read": reading.read,
                "sender": reading.sender,
            }
        case Unverified():
            return {"kind": "unverified", "doubt": reading.doubt}
        case Ignored():
            bounce = reading.bounce or Bounce()
            return {
                "kind": "ignored",
                "reason": reading.reason,
                "text": reading.text,
                "action": bounce.action,
                "status": bounce.status,
                "recipient": bounce.final_recipient,
            }
        case _:
            assert_never(reading)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fixture_is_read_as_expected(name: str) -> None:
    """A mail on disk gives what its section of expectations.toml says, in every field named there."""
    expected = dict(EXPECTED[name])
    envelope = expected.pop("envelope", "ann@corp.example")
    reading = read_reply((FOLDER / f"{name}.eml").read_bytes(), SENT, envelope_from=envelope)
    found = facts(reading)
    assert {key: found[key] for key in expected} == expected


def test_a_reply_has_a_verdict_or_a_reason_to_ask_back() -> None:
    """Exactly one of verdict and why is set, on every fixture that is a reply."""
    readings = [read_reply(path.read_bytes(), SENT) for path in FOLDER.glob("*.eml")]
    replies = [reading for reading in readings if isinstance(reading, Reply)]
    assert all((reply.verdict is None) != (reply.why is None) for reply in replies)
    assert all(reply.languages for reply in replies if reply.verdict)


def test_the_fixtures_are_what_their_maker_makes() -> None:
    """No fixture was edited by hand, forgotten or left over."""
    made = make.files()
    assert {path.name for path in FOLDER.glob("*.eml")} == {name for name in made if name.endswith(".eml")}
    assert all((FOLDER / name).read_bytes() == data for name, data in made.items())
    assert len(made) > 150
