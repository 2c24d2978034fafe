"""Lists of approvals, a page at a time, from what the engine keeps and nothing beside it.

Each approval has one entry, a promise tagged as such: its own, or, where a workflow
of another program asked and its promise bears that program's tags, one that our
worker makes for it. Ballots are tagged with their approver.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, get_args

import msgspec
from resonate.types import PromiseRecord

from service.approvals import Approvals
from service.domain import BallotRecord, Report, Status
from service.engine import Engine
from service.errors import FieldProblem, NotFound, RequestInvalid
from service.records import APPROVAL, APPROVER_TAG, KIND_TAG, engine_errors
from service.requests import canonical_address

#: Approvals in a page, at most.
PAGE: Final = 50
#: Pages of the engine that are looked through for one of ours.
LOOKS: Final = 5
MAX_CURSOR: Final = 600

_STATUSES: Final[tuple[Status, ...]] = get_args(Status.__value__)


class Filter(msgspec.Struct, frozen=True):
    """Which approvals are wanted, and after which."""

    status: Status | None = None
    approver: str | None = None
    cursor: str | None = None


def read_filter(query: Mapping[str, str]) -> Filter:
    """Return the filter that a query string asks for. Raises RequestInvalid."""
    problems = [
        FieldProblem(name, "unknown parameter") for name in query if name not in Filter.__struct_fields__
    ]
    status = next((each for each in _STATUSES if each == query.get("status")), None)
    if "status" in query and status is None:
        problems.append(FieldProblem("status", f"one of {', '.join(_STATUSES)}"))
    approver = query.get("approver")
    try:
        approver = approver and canonical_address(approver)
    except ValueError as exc:
        problems.append(FieldProblem("approver", str(exc)))
    cursor = query.get("cursor")
    if cursor is not None and not (cursor.isprintable() and 0 < len(cursor) <= MAX_CURSOR):
        problems.append(FieldProblem("cursor", "as next_cursor of the page before"))
    if approver == "":
        problems.append(FieldProblem("approver", "an email address"))
    if problems:
        raise RequestInvalid(*problems)
    return Filter(status, approver, cursor)


class Lists:
    """Pages of approvals."""

    def __init__(self, engine: Engine, approvals: Approvals) -> None:
        self._engine, self._approvals = engine, approvals

    async def page(self, wanted: Filter) -> tuple[list[Report], str | None]:
        """Return some approvals and the cursor of the next page, or None where there is none.

        A page may be short, or empty before the last: what it leaves out it has
        looked at. Closed ones are found once their workflow has closed them.
        Raises NoLists, EngineAway.
        """
        # Of a person, ballots alone: what is kept of their absences bears their tag too.
        of_person = {APPROVER_TAG: wanted.approver or "", KIND_TAG: "ballot"}
        tags = of_person if wanted.approver else {KIND_TAG: APPROVAL}
        # Of a person, records of ballots, which are never resolved. Nor is an approval whose worker was
        # away for long after its due time, or that an operator has cancelled.
        anyhow = wanted.approver or wanted.status in {None, "expired", "withdrawn"}
        state = "pending" if wanted.status == "pending" else None if anyhow else "resolved"
        cursor, found = wanted.cursor, list[Report]()
        for _ in range(LOOKS):
            async with engine_errors():
                promises, cursor = await self._engine.search(state, tags, limit=PAGE, cursor=cursor)
            reports = await asyncio.gather(*map(self._report, promises))
            found = [report for report in reports if report and wanted.status in {None, report.status}]
            if found or cursor is None:
                break
        return found, cursor

    async def _report(self, promise: PromiseRecord) -> Report | None:
        """Return the approval that a promise stands for; None for one that went meanwhile."""
        try:
            match promise.param.data:
                case {"func": _}:
                    return await self._approvals.report(promise)
                case str(approval_id):
                    return await self._approvals.show(approval_id)
                case ballot:
                    return await self._approvals.show(msgspec.convert(ballot, BallotRecord).approval_id)
        except (NotFound, msgspec.ValidationError):
            return None
