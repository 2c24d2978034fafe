"""HTTP bodies in, HTTP responses out: JSON, problem documents (RFC 9457), and pages that leak nothing."""

import logging
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from service.errors import ApprovalsError, EngineAway, RequestInvalid

log = logging.getLogger("approvals.web")

#: A request's message has at most 20,000 characters; a form's comment 4,000.
MAX_BODY: Final = 256 * 1024


class HttpRefused(ApprovalsError):
    """A request that HTTP itself can refuse: its size, type, credentials or origin."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.http_status, self.title = status, title  # type: ignore[misc]  # each refusal has its own


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HttpRefused(413, "Too large", f"at most {MAX_BODY} bytes")
    return bytes(body)


async def form_fields(request: Request) -> dict[str, str]:
    """Return the fields of a form, the last of each name. Raises HttpRefused."""
    try:
        return dict(parse_qsl((await _body(request)).decode("utf-8", "replace"), max_num_fields=20))
    except ValueError as exc:
        raise HttpRefused(400, "Malformed form", "this is not the form of the page") from exc


async def json_body(request: Request) -> object:
    """Return a body of JSON, decoded. Raises HttpRefused."""
    # Only this type: a browser asks before it sends it to another site, so no page can call us unseen.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpRefused(415, "Unsupported media type", "send Content-Type: application/json")
    try:
        value: object = msgspec.json.decode(await _body(request))
    except (msgspec.DecodeError, RecursionError) as exc:
        raise HttpRefused(400, "Malformed JSON", str(exc)) from exc
    return value


def problem_response(exc: ApprovalsError) -> Response:
    """Answer with a problem document (RFC 9457)."""
    status = exc.http_status
    document: dict[str, object] = {
        "type": "about:blank",
        "title": exc.title,
        "status": status,
        "detail": str(exc),
    }
    if isinstance(exc, RequestInvalid):
        document["errors"] = exc.problems
    headers = {"Retry-After": "5"} if isinstance(exc, EngineAway) else {}
    if status == 401:  # noqa: PLR2004 - RFC 9110 wants the challenge with it
        headers["WWW-Authenticate"] = "Bearer"
    return Response(msgspec.json.encode(document), status, headers, "application/problem+json")


async def no_route(_request: Request, exc: Exception) -> Response:
    """Answer a path or method that is not ours as every other refusal is answered."""
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    refusal = problem_response(HttpRefused(status, HTTPStatus(status).phrase, "no such path or method here"))
    if isinstance(exc, HTTPException) and exc.headers:
        refusal.headers.update(exc.headers)
    return refusal


async def defect(_request: Request, exc: Exception) -> Response:
    """Answer a defect of ours without its text; the server logs it."""
    log.error("a request failed", exc_info=exc)
    return problem_response(
        HttpRefused(500, "Internal error", "nothing was changed that was not acknowledged")
    )


def json_response(document: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON that nobody keeps."""
    no_store = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(msgspec.json.encode(document), status, no_store | (headers or {}), "application/json")


def page_response(page: str, status: int, csp_nonce: str) -> Response:
    """Answer with a page that loads nothing, runs nothing, leaks nothing and can't be framed."""
    policy = (
        f"default-src 'none'; style-src 'nonce-{csp_nonce}'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    return HTMLResponse(
        page,
        status,
        {
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy,
            # Not no-referrer: with that, browsers send Origin: null from our own form.
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "X-Robots-Tag": "noindex, nofollow",
        },
    )
