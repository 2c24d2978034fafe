"""Who listens, which of them a message is for, and what time it is."""

from collections.abc import Callable

import pytest

from service.engine.clock import Steady
from service.engine.delivery import Address, Listener, Switchboard, parse


def _deliver(_: str, __: Callable[[], None]) -> None:
    """Take a message and do nothing."""


@pytest.mark.parametrize(
    ("address", "read"),
    [
        ("poll://any@workers", Address("workers")),
        ("poll://any@workers/w1", Address("workers", "w1")),
        ("poll://uni@workers/w1", Address("workers", "w1", only=True)),
        ("local://uni@workers/w1", Address("workers", "w1", only=True)),
        ("workers", Address("workers")),
        ("", None),
        ("poll://workers", None),
        ("poll://all@workers", None),
        ("poll://any@", None),
        ("http://any@workers", None),
    ],
)
def test_addresses_are_the_protocols(address: str, read: Address | None) -> None:
    """What nobody here can have reads as none."""
    assert parse(address) == read


def test_a_group_takes_turns_and_a_name_is_preferred() -> None:
    """Any member for the group, the named one where it is there, only the named one for unicast."""
    board = Switchboard()
    one, two = Listener("g", "1", _deliver), Listener("g", "2", _deliver)
    for listener in (one, two):
        board.attach(listener)
    assert [board.find("poll://any@g") for _ in range(4)] == [one, two, one, two]
    assert board.find("poll://any@g/2") is two
    assert board.find("poll://uni@g/1") is one
    board.detach(two)
    board.detach(two)
    assert board.find("poll://any@g/2") is one
    assert board.find("poll://uni@g/2") is None
    assert board.find("poll://uni@g") is None
    board.detach(one)
    assert board.find("poll://any@g") is None
    assert board.find("http://x") is None


def test_a_process_that_attached_again_is_reached_on_its_newer_line() -> None:
    """The older one may be dead and not yet noticed."""
    board = Switchboard()
    old, new = Listener("g", "1", _deliver), Listener("g", "1", _deliver)
    board.attach(old)
    board.attach(new)
    assert board.find("poll://uni@g/1") is new


def test_a_listener_answers_to_every_address_that_finds_it() -> None:
    """What waits for it is looked up by these."""
    board = Switchboard()
    listener = Listener("g", "1", _deliver)
    board.attach(listener)
    others = [f"{beginning}gone" for beginning in listener.beginnings()]
    assert all(board.find(address) is listener for address in [*listener.addresses(), *others])


def test_a_small_step_back_is_held_and_a_large_one_obeyed() -> None:
    """What read as timed out does not read as pending a moment later."""
    times = iter([1_000_000, 999_990, 1_000_001, 900_000])
    clock = Steady(lambda: next(times))
    assert [clock() for _ in range(4)] == [1_000_000, 1_000_000, 1_000_001, 900_000]
