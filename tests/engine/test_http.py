"""The engine for other processes: the protocol over HTTP and its stream of messages."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from resonate.context import Context
from resonate.error import ServerError
from resonate.resonate import Resonate

from service.engine import EmbeddedEngine, elsewhere, http, open_engine
from service.errors import SettingsError
from tests.engine.bench import TARGET, envelope
from tests.engine.live import running, sdk, serving, soon

FAR = 4_000_000_000_000


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EmbeddedEngine]:
    """An engine without workers of its own."""
    engine = EmbeddedEngine(tmp_path / "approvals.db", debug_verbs=True)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
async def client(engine: EmbeddedEngine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of its surface, without a token."""
    async with serving(engine) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def post(
    client: httpx.AsyncClient, kind: str, headers: dict[str, str] | None = None, **data: Any
) -> Any:
    """Send a request of the protocol; return the response."""
    return await client.post("/", content=envelope(kind, data), headers=headers)


async def double(_: Context, number: int) -> int:
    """Return twice the number."""
    return number * 2


async def nap_and_double(ctx: Context, number: int) -> int:
    """Sleep durably, then call another workflow."""
    await ctx.sleep(timedelta(milliseconds=50))
    doubled: int = await ctx.rpc("double", number)
    return doubled


async def test_a_stock_sdk_works_over_http(engine: EmbeddedEngine) -> None:
    """By ``url=``, as against a server; over a token too."""
    async with (
        serving(engine, token="s3cret") as url,
        running(url, double, nap_and_double, token="s3cret") as (_, r),
    ):
        assert await soon(r.run("a", nap_and_double, 4).result()) == 8
        assert await soon(r.rpc("b", "nap_and_double", 5).result()) == 10


async def test_the_token_is_in_every_request_too(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Resonate server reads it there, and not in the header that our own surface wants."""
    given: set[str | None] = set()
    send = EmbeddedEngine.send

    async def heard(self: EmbeddedEngine, request: str | bytes, *, endless: bool) -> bytes:
        given.add(json.loads(request)["head"].get("auth"))
        return await send(self, request, endless=endless)

    monkeypatch.setattr(EmbeddedEngine, "send", heard)
    async with (
        serving(engine, token="s3cret") as url,
        running(url, double, token="s3cret") as (other, r),
    ):
        assert await soon(r.rpc("a", "double", 4).result()) == 8
        assert len((await other.search("resolved", limit=10))[0]) == 1
    assert given == {"s3cret"}


async def test_a_gateway_without_workers_is_served_by_a_worker_elsewhere(
    engine: EmbeddedEngine,
) -> None:
    """Work aimed at a group reaches whoever listens for it, in this process or another."""
    async with (
        serving(engine) as url,
        running(url, double, group="workers"),
        running(url, group="gateway") as (_, r),
    ):
        handle = r.options(target="workers").rpc("a", "double", 21)
        assert await soon(handle.result()) == 42


async def test_a_reply_has_its_status_twice(client: httpx.AsyncClient) -> None:
    """In the head, and as HTTP's own; kind and corrId come back."""
    made = await post(client, "promise.create", id="a", timeoutAt=FAR, tags={})
    assert made.status_code == 200
    assert made.json()["head"] == {"corrId": "c1", "status": 200, "version": "2026-04-01"}
    missing = await post(client, "promise.get", id="nobody")
    assert (missing.status_code, missing.json()["kind"]) == (404, "promise.get")
    assert missing.json()["data"] == "Promise not found"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"kind": 1}', b"\xff", b'{"kind":"promise.get","head":{"version":"2020-01-01"}}'],
)
async def test_what_is_no_request_is_400(client: httpx.AsyncClient, body: bytes) -> None:
    """In an envelope all the same."""
    answer = await client.post("/", content=body)
    assert answer.status_code == 400
    assert answer.json()["head"]["status"] == 400


async def test_a_request_without_end_is_cut_off(client: httpx.AsyncClient) -> None:
    """Sixteen megabytes are enough."""
    answer = await client.post("/", content=b" " * (16 * 1024 * 1024 + 1))
    assert answer.status_code == 413


async def test_c12_without_the_token_nothing_is_answered(engine: EmbeddedEngine) -> None:
    """Debug verbs and the stream included; a wrong token is as good as none."""
    async with serving(engine, token="s3cret") as url, httpx.AsyncClient(base_url=url) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
            for kind in ("promise.create", "debug.snap", "debug.reset"):
                refused = await post(client, kind, headers, id="a", timeoutAt=FAR, tags={})
                assert refused.status_code == 401
            assert (await client.get("/poll/g/p", headers=headers)).status_code == 401
        right = {"authorization": "Bearer s3cret"}
        assert (await post(client, "promise.get", right, id="a")).status_code == 404
        assert (await post(client, "debug.snap", right)).status_code == 200
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("header", ["origin", "sec-fetch-site"])
async def test_browsers_are_refused(client: httpx.AsyncClient, header: str) -> None:
    """A page from anywhere can post to loopback; it must not decide."""
    refused = await post(
        client, "promise.create", {header: "http://evil.example"}, id="a", timeoutAt=FAR, tags={}
    )
    assert refused.status_code == 403
    assert (await client.get("/poll/g/p", headers={header: "x"})).status_code == 403
    assert (await post(client, "promise.get", id="a")).status_code == 404


async def test_the_stream_brings_what_waits_and_what_comes(client: httpx.AsyncClient) -> None:
    """Tasks that were there before the listener, then those that follow."""
    tags = {"resonate:target": TARGET}
    await post(client, "promise.create", id="before", timeoutAt=FAR, tags=tags)
    async with client.stream("GET", "/poll/workers/w1") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        assert await next_task(lines) == "before"
        await post(client, "promise.create", id="after", timeoutAt=FAR, tags=tags)
        assert await next_task(lines) == "after"


async def test_what_a_lost_listener_did_not_take_goes_to_another(client: httpx.AsyncClient) -> None:
    """At once, not after the retry's half minute."""
    tags = {"resonate:target": TARGET}
    async with client.stream("GET", "/poll/workers/w1") as first:
        await soon(anext(first.aiter_lines()))
        await post(client, "promise.create", id="a", timeoutAt=FAR, tags=tags)
    async with client.stream("GET", "/poll/workers/w2") as second:
        assert await next_task(second.aiter_lines()) == "a"


async def test_what_was_sent_into_a_broken_stream_goes_to_who_is_left(client: httpx.AsyncClient) -> None:
    """A worker that was handed a task and vanished before it acquired it."""
    tags = {"resonate:target": f"{TARGET}/w1"}
    async with client.stream("GET", "/poll/workers/w2") as second:
        others = second.aiter_lines()
        await soon(anext(others))
        async with client.stream("GET", "/poll/workers/w1") as first:
            lines = first.aiter_lines()
            await soon(anext(lines))
            await post(client, "promise.create", id="a", timeoutAt=FAR, tags=tags)
            assert await next_task(lines) == "a"
        assert await next_task(others) == "a"


async def test_what_prefers_a_process_that_is_gone_goes_to_the_next(client: httpx.AsyncClient) -> None:
    """The TypeScript SDK aims its own work at its pid; a restart has another one and must not wait."""
    for name, target in {"a": f"{TARGET}/gone", "b": f"{TARGET}2/gone"}.items():
        await post(client, "promise.create", id=name, timeoutAt=FAR, tags={"resonate:target": target})
    async with client.stream("GET", "/poll/workers/w1") as stream:
        lines = stream.aiter_lines()
        assert await next_task(lines) == "a"
        await post(client, "promise.create", id="c", timeoutAt=FAR, tags={"resonate:target": TARGET})
        assert await next_task(lines) == "c"


async def test_leases_over_http_end_with_their_ttl(client: httpx.AsyncClient) -> None:
    """A worker elsewhere can die while the engine lives."""
    action = {
        "kind": "promise.create",
        "head": {},
        "data": {"id": "a", "timeoutAt": FAR, "tags": {"resonate:target": TARGET}},
    }
    await post(client, "task.create", pid="w1", ttl=50, action=action)
    async with client.stream("GET", "/poll/workers/w2") as stream:
        assert await next_task(stream.aiter_lines()) == "a"


async def test_an_engine_that_is_closed_answers_503(
    engine: EmbeddedEngine, client: httpx.AsyncClient
) -> None:
    """In an envelope with the request's kind, so that the SDK can tell."""
    await engine.close()
    answer = await post(client, "promise.get", id="a")
    assert (answer.status_code, answer.json()["kind"]) == (503, "promise.get")
    assert "closed" in answer.json()["data"]


async def test_a_wrong_token_stops_the_start(engine: EmbeddedEngine) -> None:
    """In a line that names the setting; a right one that is taken away later is the SDK's ServerError."""
    async with serving(engine, token="s3cret") as url:
        with pytest.raises(SettingsError, match="APPROVALS_ENGINE_TOKEN: is not what the engine accepts"):
            await open_engine(url, token="wrong").start()
        wrong = open_engine(url, token="wrong")
        with pytest.raises(ServerError) as refused:
            await sdk(wrong).promises.get("a")
        assert refused.value.code == 401
        await wrong.close()


async def test_a_stream_outlives_the_patience_of_a_session(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own is deaf after five minutes; ours begins a new one after a silence."""
    monkeypatch.setattr(elsewhere, "SILENCE", 0.2)
    async with serving(engine) as url, running(url, double) as (_, r):
        await asyncio.sleep(1)
        assert await soon(r.run("a", double, 4).result(), 5) == 8


async def test_a_stock_sdk_is_sent_off_before_its_session_ends(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller with ``url=`` opens its stream again, and hears on it what came in between."""
    monkeypatch.setattr(http, "STREAM_S", 0.3)
    async with serving(engine) as url:
        r = Resonate(url=url, group="callers", env={}, autostart=False)
        r.register(double)
        r.start()
        try:
            await asyncio.sleep(0.5)  # its first stream has ended, its next is a second away
            assert await soon(r.rpc("a", "double", 4).result(), 5) == 8
            await asyncio.sleep(0.3)  # the SDK's stop waits for ever for an answer that it cuts off
        finally:
            await r.stop()


async def test_a_client_that_goes_while_it_attaches_leaves_nothing(engine: EmbeddedEngine) -> None:
    """On a slow disk many may come and go before the first is attached."""
    surface = http.HttpSurface(engine)
    for _ in range(3):
        begun = asyncio.ensure_future(anext(surface._messages("approvals", "p")))
        await asyncio.sleep(0)
        begun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begun
    assert surface._streams == set()


async def test_streams_end_when_told(engine: EmbeddedEngine) -> None:
    """The server can stop: `serving` hangs up and waits for it, and returns."""
    async with httpx.AsyncClient() as client:
        async with serving(engine) as url:
            stream = await client.send(client.build_request("GET", f"{url}/poll/g/p"), stream=True)
            lines = stream.aiter_lines()
            await soon(anext(lines))
        rest = [line async for line in lines]
        assert [line for line in rest if line] == []
        await stream.aclose()


async def next_task(lines: AsyncIterator[str]) -> str:
    """Return the id of the next task offered on a stream."""

    async def read() -> str:
        async for line in lines:
            if line.startswith("data: "):
                id_: str = json.loads(line[6:])["data"]["task"]["id"]
                return id_
        raise AssertionError("the stream ended")

    return await asyncio.wait_for(read(), 20)
