# ruff: noqa: S608 - statements are put together from this module's constants; values are always bound
"""What is forgotten, and when: settled roots with all they made, a while after the last of it ended.

Walks the promises in slices, so that reclaiming never holds up a request for
long and needs no index of its own. What is pending is never touched, nor is
anything whose tree holds something pending or a message not yet handed over.
A promise that nothing fires for (an internal one, such as a ballot's record)
counts as ended at its deadline. A timer holds up nothing: once its root has
ended it wakes nobody, whether it has fired or not.

A record that no task made says by `OWNER_TAG` to whose tree it belongs. Without
that an id could come back before the records of its first life have gone.
"""

from typing import Final

from service.engine.transaction import Transaction

__all__ = ["KEPT_MS", "OWNER_TAG", "Reaper"]

#: Names the promise that this one is kept and forgotten with.
OWNER_TAG: Final = "approvals:owner"

#: How long a settled root is kept by default: thirty days.
KEPT_MS: Final = 30 * 24 * 3600 * 1000

#: Promises looked at in one step: were all of them roots to forget, requests
#: would wait some ten milliseconds. Every ten seconds that is 1.7 million a day.
SLICE: Final = 200

#: When a promise ended or will have ended, in ms; a null is far from over.
_ENDED: Final = "CASE WHEN state = 'pending' THEN timeout_at ELSE settled_at END"

_OWNED: Final = f"""(SELECT 1 FROM promises o WHERE o.id = json_extract(p.tags, '$."{OWNER_TAG}"'))"""
_ROOTS: Final = (
    f"SELECT row, parent IS NULL AND {_ENDED} <= ?2 AND NOT EXISTS {_OWNED}"
    f" FROM promises p WHERE row > ?1 ORDER BY row LIMIT {SLICE}"
)
_TREE: Final = (
    "WITH RECURSIVE tree(row, id) AS (SELECT row, id FROM promises WHERE row = ?1"
    " UNION SELECT p.row, p.id FROM tree JOIN promises p ON p.parent = tree.row"
    " UNION SELECT p.row, p.id FROM tree"
    f" JOIN tags t ON t.name = '{OWNER_TAG}' AND t.value = tree.id JOIN promises p ON p.id = t.promise_id)"
)
_ALIVE: Final = (
    f"{_TREE} SELECT EXISTS (SELECT 1 FROM tree JOIN promises USING (row, id)"
    f" WHERE NOT timer AND {_ENDED} > ?2)"
    " OR EXISTS (SELECT 1 FROM tree JOIN outbox o ON o.promise = tree.row)"
)
#: In this order: the promises say which other rows go, and the tags which promises.
_FORGET: Final = (
    f"{_TREE} DELETE FROM callbacks WHERE awaited IN (SELECT row FROM tree)",
    f"{_TREE} DELETE FROM listeners WHERE awaited IN (SELECT row FROM tree)",
    f"{_TREE} DELETE FROM tasks WHERE row IN (SELECT row FROM tree)",
    f"{_TREE} DELETE FROM promises WHERE row IN (SELECT row FROM tree)",
)
_TAGGED: Final = (
    f"{_TREE} SELECT e.key, e.value, p.id FROM tree JOIN promises p USING (row, id), json_each(p.tags) e"
    " WHERE e.key NOT LIKE 'resonate:%'"
)


class Reaper:
    """Reclaims what ended longer than ``kept_ms`` ago, a slice at a time."""

    def __init__(self, kept_ms: int) -> None:
        self._kept_ms = kept_ms
        self._after = 0

    def step(self, tx: Transaction) -> int:
        """Look at the next slice; return how many roots were forgotten."""
        before = tx.now - self._kept_ms
        run = tx.rows.execute
        slice_ = run(_ROOTS, (self._after, before)).fetchall()
        self._after = slice_[-1][0] if len(slice_) == SLICE else 0
        forgotten = 0
        for row, ended in slice_:
            if not ended or run(_ALIVE, (row, before)).fetchone()[0]:
                continue
            tags = run(_TAGGED, (row,)).fetchall()
            for statement in _FORGET:
                run(statement, (row,))
            for tag in tags:
                run("DELETE FROM tags WHERE name = ? AND value = ? AND promise_id = ?", tag)
            forgotten += 1
        return forgotten
