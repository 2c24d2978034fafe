# ruff: noqa: INP001 - run as python -m benchmarks.crash, from the root
"""The engine killed for as long as you like: ``python -m benchmarks.crash --kills 500``.

The story of ``tests/engine/test_crash.py`` at length: a process works on one
file under load and is killed with -9 at random moments; then everything that
was acknowledged is held against the file and the letters. Prints one JSON line;
an acknowledgement that was lost ends it with an AssertionError.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from tests.engine.test_crash import Story


def main() -> None:
    """Kill, finish, check, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(2**31) if options.seed is None else options.seed  # noqa: S311 - not a secret
    rng = random.Random(seed)  # noqa: S311 - not a secret
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        story = Story(Path(directory))
        for round_ in range(1, options.kills + 1):
            story.run(round_, rng.randrange(2**31), kill_after=rng.random() * 0.6)
        story.run(0, seed, kill_after=None)
        story.check()
        size = story.file.stat().st_size
        letters = len(story.letters.read_text().splitlines())
    print(
        json.dumps(
            {
                "kills": options.kills,
                "seed": seed,
                "started": len(story.started),
                "decided": len(story.decided),
                "done": len(story.done),
                "letters": letters,
                "letters_sent_twice": letters - 2 * len(story.done),
                "file_bytes": size,
                "seconds": round(time.perf_counter() - begun, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
