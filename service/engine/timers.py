"""Timers cost nothing while they sleep.

The SDK gives a timer a target, and engines elsewhere make a task for whatever has
one. Workers take that task up and drop it once a lease for as long as the timer
sleeps: with 100,000 sleepers and a minute's lease, 1,600 times a second. An engine
fires a timer without a target just as well, and wakes who waits for it.
"""

from typing import Final

import msgspec

__all__ = ["untargeted"]

#: As the SDK writes it; values are base64 there, so that it is nowhere else.
_TIMER: Final = '"resonate:timer":"true"'


def untargeted(req: str) -> str:
    """Return a request that creates a timer without the tag ``resonate:target``; any other as it is."""
    if _TIMER not in req:
        return req
    envelope = msgspec.json.decode(req)
    action = envelope["data"]["action"] if envelope["kind"] == "task.fence" else envelope
    if action["kind"] != "promise.create":
        return req
    action["data"]["tags"].pop("resonate:target", None)
    return msgspec.json.encode(envelope).decode()
