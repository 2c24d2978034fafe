# ruff: noqa: INP001 - run as python -m benchmarks.replies, from the root
"""How fast replies are read, and how long the worst mail takes: ``python -m benchmarks.replies``.

Prints one JSON line: messages a second over the fixtures (one process, one core, best
of five rounds), the slowest hostile mail in milliseconds (best of three), and where
time grows faster than size: the exponent of time over size from half of each hostile
mail to the whole, for those that take a millisecond or more (1.0 is linear).
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Final

from service.replies import Sent, read_reply
from tests.fixtures.replies import hostile
from tests.fixtures.replies.mails import FROM, LETTER, REPLY_TO, SUBJECT

FIXTURES: Final = Path(hostile.__file__).parent
SENT: Final = Sent(subject=SUBJECT, text=LETTER, reply_address=REPLY_TO, own_addresses=frozenset({FROM}))
#: The promise: no mail takes longer, in seconds.
BOUND: Final = 0.2
#: Seconds under which a ratio of times is noise.
MEASURABLE: Final = 0.001


def seconds(raw: Iterable[bytes], rounds: int) -> float:
    """Return the least time in which all of `raw` were read, of `rounds`."""
    mails, best = list(raw), math.inf
    for _ in range(rounds):
        start = perf_counter()
        for mail in mails:
            read_reply(mail, SENT)
        best = min(best, perf_counter() - start)
    return best


def main() -> None:
    """Measure and print."""
    fixtures = [path.read_bytes() for path in sorted(FIXTURES.glob("*.eml"))]
    read_reply(fixtures[0], SENT)  # the word lists are read once
    per_second = len(fixtures) / seconds(fixtures, 5)
    whole = {name: seconds([raw], 3) for name, raw in hostile.mails().items()}
    half = {name: seconds([raw], 3) for name, raw in hostile.mails(scale=2).items()}
    growth = {
        name: math.log2(taken / half[name])
        for name, taken in whole.items()
        if min(taken, half[name]) >= MEASURABLE
    }
    worst = max(whole, key=lambda name: whole[name])
    steepest = max(growth, key=lambda name: growth[name])
    figures = {
        "benchmark": "replies",
        "messages": len(fixtures),
        "messages_per_second": round(per_second),
        "hostile": len(whole),
        "worst": worst,
        "worst_ms": round(whole[worst] * 1000, 1),
        "bound_ms": BOUND * 1000,
        "within_bound": whole[worst] <= BOUND,
        "steepest": steepest,
        "steepest_exponent": round(growth[steepest], 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
