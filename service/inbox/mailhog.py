"""MailHog's HTTP API over the inbox's letters, so that its clients work unchanged.

Shape, order, limits and statuses are those of MailHog's code. Its traps are
left out: a repeated header keeps all its values and a header folded after its
name is there; parts have neither a preamble nor a ``--`` among them; text keeps
its last line's end; an unknown id is 404, not ``null`` or 500.
"""

import re
from collections.abc import Iterator
from email.utils import format_datetime
from typing import TypedDict

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.inbox import mime
from service.inbox.store import Letter, Store

#: What one call returns: by default, at most, and at most by the first version of the API.
DEFAULT_LIMIT, MAX_LIMIT, V1_LIMIT = 50, 250, 1000
#: The content types as MailHog has them: of lists and letters, of searches.
LISTED, FOUND = "text/json", "application/json"


class Path(TypedDict):
    """An envelope address in two halves."""

    Relays: None
    Mailbox: str
    Domain: str
    Params: str


class Parts(TypedDict):
    """The parts of a multipart."""

    Parts: "list[Content]"


class Content(TypedDict):
    """Headers and body of a message or part, the body still encoded."""

    Headers: dict[str, list[str]]
    Body: str
    Size: int
    MIME: Parts | None


class Raw(TypedDict):
    """What SMTP carried."""

    From: str
    To: tuple[str, ...]
    Data: str
    Helo: str


class Item(TypedDict):
    """One letter. The parts of the whole message are in `MIME`, not in its content."""

    ID: str
    From: Path
    To: list[Path]
    Content: Content
    Created: str
    MIME: Parts | None
    Raw: Raw


class Api:
    """MailHog's API over a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def routes(self) -> list[Route]:
        """Return the routes, to be mounted at the root."""
        return [
            Route("/api/v2/messages", self.messages),
            Route("/api/v2/search", self.search),
            Route("/api/v1/messages", self.all_messages, methods=["GET", "DELETE"]),
            Route("/api/v1/messages/{id}", self.one_message, methods=["GET", "DELETE"]),
            Route("/api/v1/messages/{id}/download", self.download),
        ]

    def messages(self, request: Request) -> Response:
        """List letters, newest first."""
        start, limit = _window(request)
        items = [item(letter) for letter in self._store.newest(start=start, limit=limit)]
        return _page(self._store.count(), start, items, LISTED)

    def search(self, request: Request) -> Response:
        """List letters whose sender, recipients or content have the query in them, in any case."""
        kind, query = request.query_params.get("kind", ""), request.query_params.get("query", "")
        if kind not in {"from", "to", "containing"} or not query:
            return Response(status_code=400)
        start, limit = _window(request)
        total = 0
        items: list[Item] = []
        for letter in self._store.scan():
            if any(query.lower() in text.lower() for text in _searched(letter, kind)):
                if start <= total < start + limit:
                    items.append(item(letter))
                total += 1
        return _page(total, start, items, FOUND)

    def all_messages(self, request: Request) -> Response:
        """List the newest letters, or delete all of them."""
        if request.method == "DELETE":
            self._store.delete_all()
            return Response(media_type=LISTED)
        return _json([item(letter) for letter in self._store.newest(limit=V1_LIMIT)], LISTED)

    def one_message(self, request: Request) -> Response:
        """Return or delete one letter."""
        letter_id = request.path_params["id"]
        if request.method == "DELETE":
            return Response(status_code=200 if self._store.delete(letter_id) else 404, media_type=LISTED)
        letter = self._store.by_id(letter_id)
        return _json(letter and item(letter), LISTED, status=200 if letter else 404)

    def download(self, request: Request) -> Response:
        """Return one letter's bytes as they were received."""
        letter = self._store.by_id(request.path_params["id"])
        if letter is None:
            return Response(status_code=404)
        name = f'attachment; filename="{letter.number}.eml"'
        return Response(letter.raw, media_type="message/rfc822", headers={"Content-Disposition": name})


def item(letter: Letter) -> Item:
    """Return a letter as MailHog's API shows it."""
    content = _content(mime.parse(letter.raw))
    parts, content["MIME"] = content["MIME"], None
    headers = content["Headers"]
    headers.setdefault(_name(headers, "Message-ID"), [letter.id])
    received = (
        f"from {letter.helo} by inbox.localhost (approvals)\r\n"
        f"          id {letter.id}; {format_datetime(letter.received_at)}"
    )
    headers.setdefault(_name(headers, "Received"), []).append(received)
    headers.setdefault(_name(headers, "Return-Path"), []).append(f"<{letter.sender}>")
    return {
        "ID": letter.id,
        "From": _path(letter.sender),
        "To": [_path(each) for each in letter.recipients],
        "Content": content,
        "Created": letter.received_at.isoformat().replace("+00:00", "Z"),
        "MIME": parts,
        "Raw": {
            "From": letter.sender,
            "To": letter.recipients,
            "Data": letter.raw.decode("utf-8", "replace"),
            "Helo": letter.helo,
        },
    }


def _content(part: mime.Part) -> Content:
    return {
        "Headers": _headers(part),
        "Body": part.body.decode("utf-8", "replace"),
        "Size": part.size,
        "MIME": None if part.parts is None else {"Parts": [_content(each) for each in part.parts]},
    }


def _headers(part: mime.Part) -> dict[str, list[str]]:
    """Return all values by name, the name as it was first written."""
    headers: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for name, value in part.fields:
        headers.setdefault(names.setdefault(name.lower(), name), []).append(value)
    return headers


def _name(headers: dict[str, list[str]], name: str) -> str:
    """Return the name as this message writes it."""
    return next((each for each in headers if each.lower() == name.lower()), name)


def _path(address: str) -> Path:
    mailbox, _, domain = address.partition("@")
    return {"Relays": None, "Mailbox": mailbox, "Domain": domain, "Params": ""}


def _searched(letter: Letter, kind: str) -> Iterator[str]:
    """Yield the texts that a search of this kind looks into: the letter's own, not the made headers."""
    message = mime.parse(letter.raw)
    match kind:
        case "to":
            yield from (*letter.recipients, *message.all("to"))
        case "from":
            yield from (letter.sender, *message.all("from"))
        case _:
            yield message.body.decode("utf-8", "replace")
            yield from (value for _, value in message.fields)


def _window(request: Request) -> tuple[int, int]:
    """Return start and limit; what is no number above nought is the default."""
    start = _positive(request.query_params.get("start", "")) or 0
    limit = _positive(request.query_params.get("limit", "")) or DEFAULT_LIMIT
    return start, min(limit, MAX_LIMIT)


def _positive(text: str) -> int | None:
    return int(text) or None if re.fullmatch(r"\+?[0-9]{1,18}", text) else None


def _page(total: int, start: int, items: list[Item], media_type: str) -> Response:
    return _json({"total": total, "count": len(items), "start": start, "items": items}, media_type)


def _json(value: object, media_type: str, *, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status_code=status, media_type=media_type)
