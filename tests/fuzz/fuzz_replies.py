"""Fuzzes the reader of replies.

``python -m tests.fuzz.fuzz_replies [options of libFuzzer]`` runs until it is stopped,
until ``-max_total_time=SECONDS`` has passed or until a mail breaks a promise, which is
then written to a file in ``found``, beside this one, where what it learns is kept too. It
begins with the seeds. Needs atheris; ``--once`` reads the seeds without it.

The promises: nothing is raised, a reply has exactly one of a verdict and a reason for
none, what it repeats is bounded and clean, and none takes longer than a second.
"""

import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from service.replies import MAX_COMMENT, MAX_READ, Reply, Sent, read_reply

SEEDS: Final = Path(__file__).parent / "replies_seeds"
FOUND: Final = Path(__file__).parent / "found"
SENT: Final = Sent(
    subject="Team trip to Paris in May",
    text="Bob Smith asks for your approval:\n\n  Team trip to Paris in May\n\nReply: approve or decline.\n",
    reply_address="r+aeqx4m7c2p5t6wkzj3hdn4vyb2@reply.corp.example",
    own_addresses=frozenset({"approvals@corp.example"}),
)
#: Seconds; the bound for real machines is the benchmark's, this one allows for instruments.
SLOW: Final = 1.0


class PromiseBroken(Exception):
    """A mail for which a promise does not hold."""


def read_one(data: bytes) -> None:
    """Read `data` and raise PromiseBroken where a promise does not hold."""
    start = perf_counter()
    reading = read_reply(data, SENT)
    if (taken := perf_counter() - start) > SLOW:
        raise PromiseBroken(f"took {taken:.1f} s")
    if not isinstance(reading, Reply):
        return
    if (reading.verdict is None) == (reading.why is None):
        raise PromiseBroken("not exactly one of verdict and why")
    if len(reading.read) > MAX_READ or len(reading.comment) > MAX_COMMENT:
        raise PromiseBroken("too much repeated")
    if any(ord(c) < ord(" ") and c != "\n" for c in reading.read + reading.comment):
        raise PromiseBroken("control characters repeated")


def main() -> None:
    """Fuzz with atheris, or read the seeds once."""
    if sys.argv[1:] == ["--once"]:
        for seed in sorted(SEEDS.iterdir()):
            read_one(seed.read_bytes())
        return
    try:
        atheris: Any = import_module("atheris")  # only this command needs it
    except ImportError:
        sys.exit("fuzz_replies needs atheris: install it into this environment, or give --once")
    FOUND.mkdir(exist_ok=True)
    atheris.instrument_all()
    atheris.Setup(
        [sys.argv[0], f"-artifact_prefix={FOUND}/", str(FOUND), str(SEEDS), *sys.argv[1:]], read_one
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
