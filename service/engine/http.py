"""The embedded engine for other processes: the protocol over HTTP, as a Resonate server speaks it.

``POST /`` answers requests, ``GET /poll/{group}/{pid}`` streams messages as
Server-Sent Events, ``GET /health`` says that the process answers. Mount it on
loopback or a unix socket; with a token, on either, nothing is answered
without it. Leases of these callers end after their ttl, since they can die
while the engine lives.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import msgspec
from resonate_base import ConnectorError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from service.engine.embedded import EmbeddedEngine
from service.engine.wire import Malformed, Reply, encode_reply, read_call

__all__ = ["HttpSurface"]

#: A request longer than this is refused: 16 MiB.
BODY_MAX: Final = 16 * 1024 * 1024

#: Seconds of silence after which a stream says something, so that a peer that
#: vanished is noticed and a proxy does not cut the line.
KEEP_ALIVE_S: Final = 15.0
#: Seconds after which a stream ends, to be opened again: the Python SDK's own session ends every
#: exchange after 300 and does not survive that, while what ends well is opened again a second later.
STREAM_S: Final = 240.0


class _Head(msgspec.Struct):
    status: int


class _Answer(msgspec.Struct):
    head: _Head


_STATUS = msgspec.json.Decoder(_Answer)


class HttpSurface:
    """The engine's HTTP face; `app` is what a server mounts.

    Call `hang_up` before the server is stopped: a stream has no end of its own.
    """

    def __init__(self, engine: EmbeddedEngine, *, token: str | None = None) -> None:
        self._engine = engine
        self._token = None if token is None else f"Bearer {token}".encode()
        self._streams: set[asyncio.Queue[tuple[str, Callable[[], None]] | None]] = set()
        self._hung_up = False
        self.app = Starlette(
            routes=[
                Route("/", self._protocol, methods=["POST"]),
                Route("/poll/{group}/{pid}", self._poll, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
                Route("/ready", self._health, methods=["GET"]),
            ]
        )

    def hang_up(self) -> None:
        """End every stream and take no new one; requests are still answered."""
        self._hung_up = True
        for stream in self._streams:
            stream.put_nowait(None)

    async def _health(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    def _refusal(self, request: Request) -> Reply | None:
        """Return why a request is not let in.

        A browser can post to loopback from any page; it says so in these
        headers, and no client of this protocol runs in one.
        """
        if "origin" in request.headers or "sec-fetch-site" in request.headers:
            return Reply(403, "Browsers are not served")
        given = request.headers.get("authorization", "").encode()
        if self._token is not None and not hmac.compare_digest(given, self._token):
            return Reply(401, "Unauthorized")
        return None

    async def _protocol(self, request: Request) -> Response:
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return _reply("error", "", Reply(413, "The request is too long"))
        try:
            call = read_call(body)
            kind, corr_id = call.kind, call.corr_id
        except Malformed as exc:
            return _reply("error", "", Reply(400, str(exc)))
        refusal = self._refusal(request)
        if refusal is not None:
            return _reply(kind, corr_id, refusal)
        try:
            answer = await self._engine.send(body, endless=False)
        except ConnectorError as exc:
            return _reply(kind, corr_id, Reply(503, str(exc)))
        return Response(answer, _STATUS.decode(answer).head.status, media_type="application/json")

    async def _poll(self, request: Request) -> Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return PlainTextResponse(f"{refusal.data}\n", refusal.status)
        if self._hung_up:
            return PlainTextResponse("Closing\n", 503)
        stream = self._messages(request.path_params["group"], request.path_params["pid"])
        return StreamingResponse(
            stream,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def _messages(self, group: str, pid: str) -> AsyncIterator[str]:
        queue: asyncio.Queue[tuple[str, Callable[[], None]] | None] = asyncio.Queue()
        listener = await self._engine.attach(
            group, pid, lambda text, handed: queue.put_nowait((text, handed))
        )
        self._streams.add(queue)
        if self._hung_up:
            queue.put_nowait(None)
        try:
            yield ": attached\n\n"
            ends = time.monotonic() + STREAM_S
            while (left := ends - time.monotonic()) > 0 or not queue.empty():
                try:
                    # What is there already is sent, however late it is.
                    patience = min(KEEP_ALIVE_S, left) if queue.empty() else None
                    entry = await asyncio.wait_for(queue.get(), patience)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if entry is None:
                    return
                text, handed_over = entry
                yield f"data: {text}\n\n"
                # Asked for the next, so this one was written to the socket.
                handed_over()
        finally:
            self._engine.detach(listener, lost=True)
            self._streams.discard(queue)


async def _body(request: Request) -> bytes | None:
    """Return the body, or None if it is longer than we read."""
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > BODY_MAX:
            return None
    return bytes(parts)


def _reply(kind: str, corr_id: str, reply: Reply) -> Response:
    return Response(encode_reply(kind, corr_id, reply), reply.status, media_type="application/json")
