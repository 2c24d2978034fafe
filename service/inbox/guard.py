"""Who may talk to the inbox: this machine's own pages and programs.

The inbox has no password, for it listens on loopback. A browser on the same
machine would still carry other sites' requests to it: by a name that they
point at 127.0.0.1, or by a form. Both are refused here, for pages and API.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A form's POST must say its origin, which 'no-referrer' would make null.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Guard:
    """Middleware that refuses foreign hosts and origins, and adds what every answer carries."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] = LOOPBACK) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 421 or 403, or let the request through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        await (refusal or self._app)(scope, receive, guarded)

    def _refusal(self, method: str, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "").lower()
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if name not in self._hosts:
            return PlainTextResponse("Open the inbox as http://localhost with its port.", status_code=421)
        if method in {"GET", "HEAD", "OPTIONS"}:
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        # Browsers send one of them; other programs send neither and are no way in for a site.
        if site not in {None, "same-origin", "none"} or (origin is not None and _netloc(origin) != host):
            return PlainTextResponse("Only the inbox's own page may do this.", status_code=403)
        return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
