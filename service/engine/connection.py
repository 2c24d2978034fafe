"""The SDK's side of the embedded engine: its `Network` and its `Source`, in one object."""

from collections.abc import Callable

from service.engine.delivery import Listener
from service.engine.embedded import EmbeddedEngine

__all__ = ["Connection"]


class Connection:
    """One process's line to the engine, for one ``Resonate``.

    `stop` ends the messages and nothing else: requests are answered until the
    engine is closed, so that a leaf in flight keeps its result and does not
    run a second time. Addresses are the poll scheme's, so that work aimed at a
    group reaches members in other processes as well.
    """

    def __init__(self, engine: EmbeddedEngine, group: str, pid: str) -> None:
        self._engine = engine
        self._group = group
        self._pid = pid
        self._receivers: list[Callable[[str], None]] = []
        self._listener: Listener | None = None

    def unicast(self) -> str:
        """Return the address of this process alone."""
        return f"poll://uni@{self._group}/{self._pid}"

    def resolve_target(self, target: str) -> str:
        """Return the address of any one member of a group."""
        return f"poll://any@{target}"

    def recv(self, callback: Callable[[str], None]) -> None:
        """Have messages given to ``callback``; before `start`."""
        self._receivers.append(callback)

    async def start(self) -> None:
        """Take messages from now on. Again is the same."""
        if self._listener is None and self._receivers:
            self._listener = await self._engine.attach(self._group, self._pid, self._deliver)

    async def stop(self) -> None:
        """Take no more messages; requests are still answered."""
        if self._listener is not None:
            self._engine.detach(self._listener)
            self._listener = None

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:  # noqa: ARG002 - the seam's
        """Answer a request once its effects are on disk. Raises ConnectorError if they can't be."""
        return (await self._engine.send(req, endless=True)).decode()

    def _deliver(self, text: str, handed_over: Callable[[], None]) -> None:
        for receive in self._receivers:
            receive(text)
        handed_over()
