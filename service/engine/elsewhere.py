"""The SDK's connections to an engine in another process, made fit for weeks.

What is added to them here, and why:

* their sessions end every exchange after five minutes, and the stream of messages
  does not survive that: a worker would be deaf from its sixth minute on;
* an engine that is away is looked for every few seconds, not up to every minute,
  and that it is away is said once;
* requests are answered until the engine is closed, not until the SDK stops it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, override

import aiohttp
from resonate.connections import HttpConnection, SSEConnection
from resonate.error import ServerError
from resonate.retry import ExponentialBackoff
from resonate.send import Sender
from resonate.transport import Transport

from service.engine.timers import untargeted
from service.errors import SettingsError

__all__ = ["Connector", "Elsewhere"]

log = logging.getLogger("approvals.engine")

#: Seconds between attempts at an engine that is away: doubling, up to the last.
_PAUSES: Final = ExponentialBackoff(initial=0.25, max_delay=5.0)
#: Seconds to connect, and of silence in an answer or a stream before it counts as broken.
CONNECTING, SILENCE = 5.0, 60.0
#: Seconds that the start spends on asking whether we are let in.
TRIAL: Final = 5.0

type Connector = Callable[[], aiohttp.BaseConnector]

_REFUSED: Final = {401, 403}
_HELLO: Final = "approvals.hello"

# Both tell of every attempt of every request; `Elsewhere` says it once.
for _noisy in ("resonate.connections.http", "resonate.connections.sse"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
# At DEBUG it tells of whole requests, and so of the token in them.
logging.getLogger("resonate.transport").setLevel(logging.INFO)


class Elsewhere:
    """Requests to an engine at `url`, and the messages that it has for `pid` of `group`."""

    def __init__(self, url: str, group: str, pid: str, token: str | None, connector: Connector) -> None:
        self._url, self._token = url, token
        self._requests = _Requests(url, auth=token, backoff=self)
        self._requests.connector = connector
        self.messages = _Messages(url, pid=pid, group=group, auth=token, backoff=_Stream(self))
        self.messages.connector = connector
        self._away = False

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after another failed attempt: the SDK asks before each."""
        if not self._away:
            self._away = True
            log.warning("the engine does not answer, waiting for it")
        return _PAUSES.delay(attempt)

    async def open(self, setting: str) -> None:
        """See that we are let in; an engine that is away is waited for later. Raises SettingsError."""
        try:
            # Not started yet, so it makes one attempt.
            await asyncio.wait_for(Sender(Transport(self._requests), self._token).promise_get(_HELLO), TRIAL)
        except ServerError as exc:
            if exc.code in _REFUSED:
                await self.close()
                raise SettingsError(f"{setting}_TOKEN", "is not what the engine accepts") from exc
        except Exception:  # noqa: BLE001 - away, or no engine at all: requests will tell
            self.delay(0)

    async def start(self) -> None:
        """Wait for the engine from now on, where it is away."""
        await self._requests.start()

    async def stop(self) -> None:
        """Keep answering; `close` is what ends this network."""

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        """Answer a request, waiting for the engine while it is away. Raises ConnectorError once closed."""
        answer = await self._requests.send(untargeted(req), headers)
        if self._away:
            self._away = False
            log.warning("the engine answers again")
        return answer

    async def close(self) -> None:
        """End every connection; requests under way fail."""
        await self._requests.stop()


class _Stream:
    """The pauses of the stream, which a silence ends too: only what can't be opened again is away."""

    def __init__(self, engine: Elsewhere) -> None:
        self._engine = engine

    def delay(self, attempt: int) -> float:
        return self._engine.delay(attempt) if attempt else _PAUSES.delay(attempt)


class _Requests(HttpConnection):
    connector: Connector

    @override
    def _ensure_session(self) -> aiohttp.ClientSession:
        # Where the SDK makes its own there is no say in how it connects, nor for how long.
        if self._session is None and not self._stopped:
            self._session = _session(self.connector)
        return super()._ensure_session()


class _Messages(SSEConnection):
    connector: Connector

    @override
    def _ensure_session(self) -> aiohttp.ClientSession:
        if self._session is None and not self._stopped:
            self._session = _session(self.connector)
        return super()._ensure_session()


def _session(connector: Connector) -> aiohttp.ClientSession:
    # A limit on the whole is no ClientError, which is all that the SDK's loops survive; silence is one.
    patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECTING, sock_read=SILENCE)
    return aiohttp.ClientSession(connector=connector(), timeout=patience)
