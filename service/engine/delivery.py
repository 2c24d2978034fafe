"""Who listens, and which of them a message is for.

Addresses are the protocol's: ``poll://any@group`` reaches one member of the
group, ``poll://any@group/pid`` that one by preference, ``poll://uni@group/pid``
that one alone. A bare name reads as a group.
"""

import itertools
from collections.abc import Callable

import msgspec

__all__ = ["Address", "Listener", "Switchboard", "parse"]

#: Called with a message, and with what to call once it has been handed over.
type Deliver = Callable[[str, Callable[[], None]], None]


class Address(msgspec.Struct, frozen=True):
    """A parsed address. `only` forbids any member but `pid`."""

    group: str
    pid: str | None = None
    only: bool = False


class Listener(msgspec.Struct, frozen=True, eq=False):
    """One process that takes messages."""

    group: str
    pid: str
    deliver: Deliver

    def addresses(self) -> list[str]:
        """Return every address that this listener answers to, as tasks and listeners may name it."""
        names = [self.group]
        for scheme in ("poll", "local"):
            any_ = f"{scheme}://any@{self.group}"
            names += [any_, f"{any_}/{self.pid}", f"{scheme}://uni@{self.group}/{self.pid}"]
        return names

    def beginnings(self) -> list[str]:
        """Return how addresses begin that prefer a member by name, and fall to this one if that is away."""
        return [f"{scheme}://any@{self.group}/" for scheme in ("poll", "local")]


def parse(address: str) -> Address | None:
    """Read an address; None for one that nobody here can have (``http://`` and the like)."""
    scheme, sep, rest = address.partition("://")
    if not sep:
        return Address(address) if address else None
    cast, at, place = rest.partition("@")
    group, _, pid = place.partition("/")
    if scheme not in {"poll", "local"} or not at or cast not in {"any", "uni"} or not group:
        return None
    return Address(group, pid or None, cast == "uni")


class Switchboard:
    """The listeners of each group. For the event loop's thread alone."""

    def __init__(self) -> None:
        self._groups: dict[str, list[Listener]] = {}
        self._turns: dict[str, itertools.count[int]] = {}

    def attach(self, listener: Listener) -> None:
        """Add a listener."""
        self._groups.setdefault(listener.group, []).append(listener)

    def detach(self, listener: Listener) -> None:
        """Remove a listener; again is the same."""
        members = self._groups.get(listener.group, [])
        if listener in members:
            members.remove(listener)
        if not members:
            self._groups.pop(listener.group, None)
            self._turns.pop(listener.group, None)

    def find(self, address: str) -> Listener | None:
        """Return the listener that a message to ``address`` goes to now; a group's members take turns."""
        wanted = parse(address)
        members = [] if wanted is None else self._groups.get(wanted.group, [])
        if wanted is None or not members:
            return None
        if wanted.pid is not None:
            # The latest: a process that attached again has left its older line.
            named = [member for member in members if member.pid == wanted.pid]
            if named or wanted.only:
                return named[-1] if named else None
        if wanted.only:
            return None
        turn = next(self._turns.setdefault(wanted.group, itertools.count()))
        return members[turn % len(members)]
