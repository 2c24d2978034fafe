"""What time it is, as the engine sees it: whole milliseconds since the epoch."""

import time
from collections.abc import Callable

__all__ = ["Clock", "Steady", "now_ms"]

#: Milliseconds since 1970-01-01 UTC; injected wherever time matters.
type Clock = Callable[[], int]

#: A wall clock set back by less than this is held still, so that an answer
#: that said 'timed out' is not followed by one that says 'pending'. A larger
#: step is an operator's correction and is obeyed.
STEP_MS = 60_000


def now_ms() -> int:
    """Return the wall clock in milliseconds."""
    return time.time_ns() // 1_000_000


class Steady:
    """A clock that does not run backwards when the wall clock is nudged."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = 0

    def __call__(self) -> int:
        """Return the time in milliseconds, not before any returned so far."""
        now = self._clock()
        if self._last - STEP_MS < now < self._last:
            return self._last
        self._last = now
        return now
