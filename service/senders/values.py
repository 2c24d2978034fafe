"""What checking a sender can come to."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

type Method = Literal["address", "authserv-id", "dkim", "arc"]


@dataclass(frozen=True, slots=True)
class Trusted:
    """The mail is from whom its From names. `detail` is evidence, for the decision's record."""

    method: Method
    detail: str
    #: The fields whose every instance is as its sender wrote it, in lower case; None for all of them.
    covered: frozenset[str] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Doubted:
    """Nothing shows that the mail is from whom its From names. `reason` is one line for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """It could not be found out now: answer 451, and the sender's MTA tries again."""

    reason: str


#: What `Senders.check` answers; a caller's `match` ends in `assert_never`.
type Trust = Trusted | Doubted | Unavailable


class Senders(Protocol):
    """Tells whether a mail is from whom its From names."""

    async def check(self, raw: bytes, sender: str, peer: str) -> Trust:
        """Return whether `raw` is from `sender`; raises on no bytes.

        `sender` is the canonical From address, as `service.replies` read it. `peer` is the
        IP address of the SMTP client; a client on a unix socket is this machine's
        loopback address.
        """
        ...
