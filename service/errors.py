"""Every error this service raises, as one tree.

::

    ApprovalsError
    ├── SettingsError         a setting is missing or malformed: stops the start
    │   └── InUse             another process has the database
    ├── RequestInvalid        422  a field of a request breaks its rule
    ├── IdTaken               409  the id already names something else
    ├── NotFound              404  no such approval
    ├── LinkInvalid           404  the link's token is forged, cut or not ours
    ├── AddressInvalid        550  the reply address is forged, cut or not ours
    ├── BallotGone            410  authentic, but its record is no longer kept
    ├── EngineAway            503  durable promises can't be reached: try again
    ├── NoLists               501  this engine can't list what it holds
    └── DemoFailed            a step of the played story was not observed

Each knows what an HTTP client and an SMTP peer are told. What a person did in
time or too late is no error: those are values (`service.decisions.Cast`).
"""

from typing import ClassVar

import msgspec


class ApprovalsError(Exception):
    """The root: anything this service refuses, with the answer for each edge."""

    http_status: ClassVar[int] = 500
    smtp_reply: ClassVar[str] = "451 4.3.0 Temporary failure, try again"
    title: ClassVar[str] = "Internal error"


class SettingsError(ApprovalsError):
    """A setting is missing or malformed.

    `name` is the environment variable as the user wrote it.
    """

    title = "Bad setting"

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


class FieldProblem(msgspec.Struct, frozen=True):
    """One field and what is wrong with it; `field` is a path such as ``approvers[0].email``."""

    field: str
    message: str


class InUse(SettingsError):
    """Another process has the database; `holder` is its number, as far as is known."""

    def __init__(self, name: str, problem: str, holder: str) -> None:
        super().__init__(name, problem)
        self.holder = holder


class RequestInvalid(ApprovalsError):
    """A request breaks the rules of its fields."""

    http_status = 422
    title = "Invalid request"

    def __init__(self, *problems: FieldProblem) -> None:
        super().__init__("; ".join(f"{p.field}: {p.message}" if p.field else p.message for p in problems))
        self.problems = problems


class IdTaken(ApprovalsError):
    """The id names an approval with another body, or something that is no approval."""

    http_status = 409
    title = "Id already taken"

    def __init__(self, approval_id: str) -> None:
        super().__init__(f"{approval_id!r} already names a different request")
        self.approval_id = approval_id


class NotFound(ApprovalsError):
    """No approval has this id."""

    http_status = 404
    title = "Not found"

    def __init__(self, approval_id: str) -> None:
        super().__init__(f"no approval {approval_id!r}")
        self.approval_id = approval_id


class LinkInvalid(ApprovalsError):
    """A link's token did not verify. `reason` is for the log, never for the page."""

    http_status = 404
    title = "This link does not work"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AddressInvalid(ApprovalsError):
    """An envelope recipient is not a reply address that we signed."""

    http_status = 404
    smtp_reply = "550 5.1.1 No such address"
    title = "No such address"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class BallotGone(ApprovalsError):
    """The capability is authentic, but the ballot's record is no longer kept."""

    http_status = 410
    smtp_reply = "550 5.1.1 No such address"
    title = "No longer kept"


class EngineAway(ApprovalsError):
    """The engine did not answer, so nothing was decided and nothing was lost."""

    http_status = 503
    smtp_reply = "451 4.3.0 Temporarily unavailable, try again"
    title = "Temporarily unavailable"


class NoLists(ApprovalsError):
    """This engine, or the rights that we have there, can't list promises; the text says what would."""

    http_status = 501
    title = "No lists on this engine"


class DemoFailed(ApprovalsError):
    """A step of the played story was not observed."""

    title = "The demo failed"
