"""HTTP: the API, and the page behind a letter's link. GET shows, POST decides."""

import asyncio
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from resonate.error import ResonateError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from service.approvals import Approvals
from service.decisions import Decisions
from service.domain import Ballot, Choice, Closed, End, Report, to_wire
from service.errors import ApprovalsError, BallotGone, EngineAway, FieldProblem, LinkInvalid, RequestInvalid
from service.lists import Lists, read_filter
from service.pages import MAX_COMMENT, Pages
from service.records import Clock, utc_now
from service.requests import clean_text
from service.responses import (
    HttpRefused,
    defect,
    form_fields,
    json_body,
    json_response,
    no_route,
    page_response,
    problem_response,
)
from service.settings import Settings, is_loopback
from service.tokens import NONCE_SECONDS, Tokens

log = logging.getLogger("approvals.web")

MAX_WAIT: Final = 60.0
_TEXTS: Final[dict[type[ApprovalsError], str]] = {
    LinkInvalid: (
        "It may have been cut by your mail program: open it from the letter, or reply to the letter."
    ),
    BallotGone: "This request was closed some time ago, and its record is no longer kept.",
    EngineAway: "Nothing was decided. Please try again in a minute.",
}
#: The engine may have taken the vote of a POST that it did not answer in time.
_UNKNOWN: Final = "It is not known yet whether your decision was recorded. Open the link again in a minute."
#: What mail programs and people put behind a link; no token ends with one.
_AFTER_LINKS: Final = ".,;:!?)]>\"'/"

type Endpoint = Callable[[HttpRequest], Awaitable[Response]]


class Web:
    """The gateway's routes over approvals and decisions; `app` is the ASGI application."""

    def __init__(
        self,
        settings: Settings,
        *,
        approvals: Approvals,
        decisions: Decisions,
        lists: Lists,
        tokens: Tokens,
        pages: Pages,
        now: Clock = utc_now,
    ) -> None:
        self._settings = settings
        self._approvals = approvals
        self._decisions = decisions
        self._lists = lists
        self._tokens = tokens
        self._pages = pages
        self._now = now
        self._https = settings.public_url.startswith("https:")
        # A __Host- cookie is tied to this host and to TLS; browsers refuse one over http.
        self._cookie = "__Host-approvals" if self._https else "approvals"
        self.app = Starlette(
            routes=[
                Route("/approvals", self._api(self.open_approval), methods=["POST"]),
                Route("/approvals", self._api(self.list_approvals), methods=["GET"]),
                Route("/approvals/{id}", self._api(self.show_approval), methods=["GET"]),
                Route("/start-workflow", self._api(self.start_workflow), methods=["POST"]),
                Route("/decide/{token:path}", self._page(self.show_ballot), methods=["GET", "HEAD"]),
                Route("/decide/{token:path}", self._page(self.decide), methods=["POST"]),
                Route("/healthz", self.healthz, methods=["GET"]),
                Route("/readyz", self.readyz, methods=["GET"]),
            ],
            exception_handlers={HTTPException: no_route, Exception: defect},
        )
        self.app.router.redirect_slashes = False

    # ── The API ───────────────────────────────────────────────────────────────

    async def open_approval(self, request: HttpRequest) -> Response:
        """201 for a new approval, 200 for the same again, 409 for another under its id."""
        report, new = await self._approvals.open(await json_body(request))
        return json_response(to_wire(report), 201 if new else 200, {"Location": f"/approvals/{report.id}"})

    async def list_approvals(self, request: HttpRequest) -> Response:
        """List approvals by ``?status=`` and ``?approver=``, in the order of their ids."""
        reports, cursor = await self._lists.page(read_filter(request.query_params))
        return json_response({"items": [to_wire(report) for report in reports], "next_cursor": cursor})

    async def show_approval(self, request: HttpRequest) -> Response:
        """Tell how an approval stands, at once or as soon as it is closed within ``?wait=``."""
        if unknown := sorted(request.query_params.keys() - {"wait"}):
            raise RequestInvalid(*(FieldProblem(name, "unknown parameter") for name in unknown))
        seconds = _wait(request.query_params.get("wait", "0"))
        return json_response(to_wire(await self._approvals.wait(request.path_params["id"], seconds)))

    async def start_workflow(self, request: HttpRequest) -> Response:
        """Start or find a workflow by its id: the call of Resonate's own walk-through."""
        body = await json_body(request)
        if not isinstance(body, dict) or not isinstance(body.get("workflow_id"), str):
            raise RequestInvalid(FieldProblem("workflow_id", "must be given, as a string"))
        if unknown := sorted(body.keys() - {"workflow_id"}):
            raise RequestInvalid(*(FieldProblem(name, "unknown field") for name in unknown))
        workflow_id, approver = body["workflow_id"], self._settings.default_approver
        if approver is None:
            raise RequestInvalid(
                FieldProblem("workflow_id", "nobody to ask: APPROVALS_DEFAULT_APPROVER is not set")
            )
        wanted = {"id": workflow_id, "subject": f"Approve {workflow_id}", "approvers": [approver]}
        try:
            report, new = await self._approvals.open(wanted)
        except RequestInvalid as exc:
            renamed = [FieldProblem("workflow_id", p.message) for p in exc.problems if p.field == "id"]
            raise RequestInvalid(*(renamed or exc.problems)) from exc
        if report.status != "pending":
            return json_response({"message": _result(report)})
        state = "started" if new else "is waiting"
        return json_response({"message": f"workflow {workflow_id} {state}; {approver} has been asked"})

    # ── The page ──────────────────────────────────────────────────────────────

    async def show_ballot(self, request: HttpRequest) -> Response:
        """Show what is asked and the buttons, or how it ended. Scanners open links: this decides nothing."""
        ballot = await self._ballot(request)
        if (end := self._ended(ballot)) is not None:
            return self._closed(ballot, end)
        wanted = request.query_params.get("choice")
        return self._form(request, ballot, preselect=_choice(wanted))

    async def decide(self, request: HttpRequest) -> Response:
        """Cast the vote of the button that was pressed, on a page that this browser was shown."""
        ballot = await self._ballot(request)
        fields = await form_fields(request)
        comment = clean_text(fields.get("comment", ""))
        choice = _choice(fields.get("choice"))
        if (end := self._ended(ballot)) is not None:
            return self._closed(ballot, end, 409)
        browser = request.cookies.get(self._cookie, "")
        if not self._tokens.nonce_holds(fields.get("nonce", ""), ballot.key, browser):
            notice = "This page had been open for a while. Press the button once more."
            return self._form(request, ballot, 403, comment=comment, preselect=choice, notice=notice)
        if choice is None:
            notice = "Press one of the two buttons."
            return self._form(request, ballot, 422, comment=comment, notice=notice)
        if len(comment) > MAX_COMMENT:
            notice = f"The comment is too long: at most {MAX_COMMENT} characters."
            return self._form(request, ballot, 422, comment=comment, preselect=choice, notice=notice)
        evidence = {
            "peer": request.client.host if request.client else "",
            "user_agent": request.headers.get("user-agent", "")[:200],
        }
        cast = await self._decisions.cast(ballot, choice, "link", comment=comment, evidence=evidence)
        if cast.counted:
            return self._closed(cast.ballot, cast.end, just_decided=True)
        return self._closed(cast.ballot, cast.end, 409)

    async def _ballot(self, request: HttpRequest) -> Ballot:
        token = request.path_params["token"].rstrip(_AFTER_LINKS)
        return await self._approvals.ballot(self._tokens.read_link(token))

    def _ended(self, ballot: Ballot) -> End | None:
        """Return how the ballot ended; one past its due time has, even if its timer is late."""
        if ballot.end is None and self._now() > ballot.ask.due_at:
            return Closed(reason="expired", at=ballot.ask.due_at)
        return ballot.end

    def _form(
        self,
        request: HttpRequest,
        ballot: Ballot,
        status: int = 200,
        *,
        preselect: Choice | None = None,
        comment: str = "",
        notice: str | None = None,
    ) -> Response:
        # The browser's value is kept, so that a second tab does not spoil the first one's nonce.
        browser = request.cookies.get(self._cookie) or secrets.token_urlsafe(16)
        csp_nonce = secrets.token_urlsafe(16)
        page = self._pages.decide(
            ask=ballot.ask,
            approver=ballot.approver,
            form_nonce=self._tokens.form_nonce(ballot.key, browser),
            csp_nonce=csp_nonce,
            now=self._now(),
            preselect=preselect,
            comment=comment,
            notice=notice,
        )
        response = page_response(page, status, csp_nonce)
        response.set_cookie(
            self._cookie,
            browser,
            max_age=NONCE_SECONDS,
            path="/",
            secure=self._https,
            httponly=True,
            samesite="lax",
        )
        return response

    def _closed(self, ballot: Ballot, end: End, status: int = 200, *, just_decided: bool = False) -> Response:
        csp_nonce = secrets.token_urlsafe(16)
        page = self._pages.closed(
            ask=ballot.ask, approver=ballot.approver, end=end, csp_nonce=csp_nonce, just_decided=just_decided
        )
        return page_response(page, status, csp_nonce)

    # ── Health ────────────────────────────────────────────────────────────────

    async def healthz(self, _request: HttpRequest) -> Response:
        """200: the process answers."""
        return json_response({"status": "ok"})

    async def readyz(self, _request: HttpRequest) -> Response:
        """200 when the engine answers, else 503. Letters wait for SMTP; that is no reason not to serve."""
        try:
            async with asyncio.timeout(5):
                await self._approvals.ping()
        except (EngineAway, ResonateError, TimeoutError) as exc:
            log.warning("not ready: %s", exc)
            return json_response({"status": "engine away"}, 503)
        return json_response({"status": "ok"})

    # ── Who may call, and how refusals look ───────────────────────────────────

    def _api(self, endpoint: Endpoint) -> Endpoint:
        async def guarded(request: HttpRequest) -> Response:
            try:
                self._authorize(request)
                return await endpoint(request)
            except ApprovalsError as exc:
                return problem_response(exc)
            except asyncio.CancelledError:
                if not self._approvals.hung_up:
                    raise
                return problem_response(HttpRefused(503, "Stopping", "this process stops; send it again"))

        return guarded

    def _page(self, endpoint: Endpoint) -> Endpoint:
        async def shown(request: HttpRequest) -> Response:
            try:
                return await endpoint(request)
            except ApprovalsError as exc:
                refusal = exc
            except asyncio.CancelledError:
                if not self._approvals.hung_up:
                    raise
                refusal = EngineAway("this process stops")
            csp_nonce = secrets.token_urlsafe(16)
            text = _TEXTS.get(type(refusal), str(refusal))
            if isinstance(refusal, EngineAway) and request.method == "POST":
                text = _UNKNOWN
            page = self._pages.problem(title=refusal.title, text=text, csp_nonce=csp_nonce)
            return page_response(page, refusal.http_status, csp_nonce)

        return shown

    def _authorize(self, request: HttpRequest) -> None:
        if keys := self._settings.api_keys:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            known = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
            if scheme.lower() != "bearer" or not any(known):
                raise HttpRefused(401, "Unauthorized", "send Authorization: Bearer and an API key")
            return
        # Without keys the loopback address is the guard, and a browser on this machine must not
        # lend it to the pages it shows: neither by cross-site requests nor by rebound names.
        try:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        except ValueError as exc:
            raise HttpRefused(400, "Bad request", "the Host header is malformed") from exc
        if not is_loopback(host) and host != urlsplit(self._settings.public_url).hostname:
            raise HttpRefused(403, "Forbidden", f"the API without keys does not answer for {host!r}")
        if request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            raise HttpRefused(403, "Forbidden", "the API without keys does not answer other sites' pages")


# ── Small parts ───────────────────────────────────────────────────────────────


def _choice(text: str | None) -> Choice | None:
    return "approve" if text == "approve" else "decline" if text == "decline" else None


def _wait(text: str) -> float:
    seconds = float(text) if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?", text) else -1.0
    if not 0 <= seconds <= MAX_WAIT:
        raise RequestInvalid(FieldProblem("wait", f"0 to {MAX_WAIT:.0f} seconds"))
    return seconds


def _result(report: Report) -> str:
    """Say in a line how an approval ended, and by whom."""
    for approver in report.approvers:
        if approver.status == "decided":
            return f"{report.status} by {approver.email}, by {approver.channel}"
    return report.status
