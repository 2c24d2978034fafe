"""The inbox's page: letters on the left, one of them to read and answer on the right.

Nothing of a letter runs here. Its HTML has a URL of its own whose policy is a
sandbox without scripts, shown in a frame that is one, too; everything else of
it is text, which the templates escape.
"""

import re
import secrets
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from service.inbox import mime, replying
from service.inbox.replying import Deliver
from service.inbox.store import Letter, Store

#: Letters in the list, and how much of each is read for it.
LISTED, HEAD_OCTETS = 200, 16 * 1024
#: Characters of text or source on the page; the rest is in the download.
MAX_TEXT = 1024 * 1024
#: Octets of a form.
MAX_FORM = 256 * 1024
VIEWS = ("html", "text", "headers", "source")

_FILES = Path(__file__).parent.parent / "pages"
#: What the frame may do: open links in a tab of their own, and no more.
SANDBOX = "allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation"
_LETTER_POLICY = (
    f"sandbox {SANDBOX}; default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
    " form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src data:; script-src 'nonce-{nonce}';"
    " connect-src 'self'; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEAD = re.compile(r"<head(\s[^>]{0,500})?>", re.IGNORECASE)


class Row(msgspec.Struct, frozen=True):
    """A letter in the list."""

    number: int
    author: str
    recipients: str
    subject: str
    at: datetime
    shown_at: str


class Outcome(msgspec.Struct, frozen=True):
    """What became of a reply: accepted, or `problem` in words; `typed` goes back into the box."""

    problem: str = ""
    typed: str = ""
    status: int = 200


class Pages:
    """The page over a store; `deliver` sends what the reply box makes."""

    def __init__(self, store: Store, deliver: Deliver, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._deliver = deliver
        self._clock = clock
        self._templates = Environment(
            loader=FileSystemLoader(_FILES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )

    def routes(self) -> list[Route]:
        """Return the routes, to be mounted at the root."""
        return [
            Route("/", self.index),
            Route("/list", self.listing),
            Route("/letters/{number:int}", self.letter),
            Route("/letters/{number:int}/html", self.letter_html),
            Route("/letters/{number:int}/reply", self.reply, methods=["POST"]),
            Route("/{sheet}.css", _sheet),
        ]

    def index(self, _: Request) -> Response:
        """Show the list."""
        return self._page(None, "", None)

    def listing(self, request: Request) -> Response:
        """Return the list alone; 204 while it is as the page that asks already has it."""
        state = self._store.state()
        if request.query_params.get("state") == state:
            return Response(status_code=204)
        selected = request.query_params.get("selected", "")
        return HTMLResponse(
            self._templates.get_template("inbox_list.html").render(
                **self._list(), selected=int(selected) if re.fullmatch(r"[0-9]{1,18}", selected) else None
            )
        )

    def letter(self, request: Request) -> Response:
        """Show one letter; ``view`` is one of `VIEWS`."""
        letter = self._store.by_number(request.path_params["number"])
        if letter is None:
            return self._page(None, "", None, gone=True)
        outcome = Outcome() if request.query_params.get("replied") else None
        return self._page(letter, request.query_params.get("view", ""), outcome)

    def letter_html(self, request: Request) -> Response:
        """Return a letter's HTML part as it is, in a sandbox of its own."""
        letter = self._store.by_number(request.path_params["number"])
        part = mime.leaf(mime.parse(letter.raw), "text/html") if letter else None
        if part is None:
            return PlainTextResponse("No HTML here.", status_code=404)
        # Links open beside the inbox. A letter can undo this; it only leaves its frame then.
        html, base = mime.text(part), '<base target="_blank">'
        head = _HEAD.search(html[:4096])
        html = html[: head.end()] + base + html[head.end() :] if head else base + html
        headers = {"Content-Security-Policy": _LETTER_POLICY, "Referrer-Policy": "no-referrer"}
        return HTMLResponse(html, headers=headers)

    async def reply(self, request: Request) -> Response:
        """Send a reply, then show the letter with what became of it."""
        letter = await run_in_threadpool(self._store.by_number, request.path_params["number"])
        if letter is None:
            return await run_in_threadpool(self._page, None, "", None, gone=True)
        form = await _form(request)
        if form is None:
            outcome = Outcome("The reply is too long.", status=413)
        else:
            outcome = await self._send(letter, form.get("sender", ""), form.get("text", ""))
        view = request.query_params.get("view", "")
        if not outcome.problem:
            # So that a reload does not send it again.
            where = f"/letters/{letter.number}?replied=1" + (f"&view={view}" if view in VIEWS else "")
            return RedirectResponse(where, status_code=303)
        return await run_in_threadpool(self._page, letter, view, outcome)

    async def _send(self, letter: Letter, sender: str, typed: str) -> Outcome:
        if not typed.strip():
            return Outcome("Type a reply first.", status=422)
        if sender not in letter.recipients:
            return Outcome("The letter did not go to this address.", typed, 422)
        try:
            reply = replying.compose(letter, sender, typed, now=self._clock())
            await self._deliver(reply.sender, reply.recipient, reply.message)
        except replying.Unanswerable as exc:
            return Outcome(f"Not sent: {exc}.", typed, 422)
        except replying.Undelivered as exc:
            return Outcome(f"Not accepted: {exc}", typed, 502)
        return Outcome()

    def _page(
        self, letter: Letter | None, view: str, outcome: Outcome | None, *, gone: bool = False
    ) -> Response:
        nonce = secrets.token_urlsafe(16)
        html = self._templates.get_template("inbox.html").render(
            **self._list(),
            selected=letter and letter.number,
            letter=letter and _reading(letter, view),
            outcome=outcome,
            gone=gone,
            nonce=nonce,
            sandbox=SANDBOX,
        )
        status = 404 if gone else outcome.status if outcome else 200
        headers = {"Content-Security-Policy": _PAGE_POLICY.format(nonce=nonce)}
        return HTMLResponse(html, status_code=status, headers=headers)

    def _list(self) -> dict[str, object]:
        # Before the letters, so that one that comes in between is shown once more, not never.
        state = self._store.state()
        today = self._clock().astimezone().date()
        letters = self._store.newest(limit=LISTED, octets=HEAD_OCTETS)
        older = max(self._store.count() - LISTED, 0)
        return {"state": state, "rows": [_row(each, today) for each in letters], "older": older}


def _row(letter: Letter, today: object) -> Row:
    message = mime.parse(letter.raw)
    at = letter.received_at.astimezone()
    return Row(
        letter.number,
        _author(message, letter, short=True),
        ", ".join(letter.recipients[:3])
        + (", …" if len(letter.recipients) > len(letter.recipients[:3]) else ""),
        mime.words(message.first("subject")) or "(no subject)",
        at,
        f"{at:%H:%M}" if at.date() == today else f"{at.day} {at:%b}, {at:%H:%M}",
    )


def _author(message: mime.Part, letter: Letter, *, short: bool) -> str:
    value = message.first("from")
    names = [name or address for name, address in mime.addresses(value)] if short else []
    return (names and names[0]) or mime.words(value) or letter.sender or "(no sender)"


def _reading(letter: Letter, view: str) -> dict[str, object]:
    """Return what the reading pane shows of a letter."""
    message = mime.parse(letter.raw)
    html, text = mime.leaf(message, "text/html"), mime.leaf(message, "text/plain")
    there = {"html": html is not None, "text": text is not None, "headers": True, "source": True}
    views = [each for each in VIEWS if there[each]]
    match chosen := view if view in views else views[0]:
        case "text" if text is not None:
            shown = mime.text(text)
        case "source":
            shown = letter.raw.decode("utf-8", "replace")
        case _:
            shown = ""
    at = letter.received_at.astimezone()
    return {
        "number": letter.number,
        "id": letter.id,
        "author": _author(message, letter, short=False),
        "recipients": letter.recipients,
        "envelope_sender": letter.sender or "<>",
        "subject": mime.words(message.first("subject")) or "(no subject)",
        "at": at,
        "shown_at": f"{at:%a} {at.day} {at:%b %Y}, {at:%H:%M:%S}",
        "views": views,
        "view": chosen,
        "fields": [(name, mime.words(value)) for name, value in message.fields]
        if chosen == "headers"
        else [],
        "shown": shown[:MAX_TEXT],
        "cut": len(shown) > MAX_TEXT,
        "reply_to": replying.recipient(message),
    }


async def _form(request: Request) -> dict[str, str] | None:
    """Return the form's fields, or None when it is longer than `MAX_FORM`."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM:
                return None
    except ClientDisconnect:
        return {}
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
    return {name: values[0] for name, values in fields.items()}


def _sheet(request: Request) -> Response:
    """Return one of the two style sheets."""
    sheet = request.path_params["sheet"]
    if sheet not in {"style", "inbox"}:
        return Response(status_code=404)
    headers = {"Cache-Control": "no-cache"}
    return Response((_FILES / f"{sheet}.css").read_text("utf-8"), media_type="text/css", headers=headers)
