# ruff: noqa: INP001 - run by benchmarks.story
"""The service with nothing durable in it: the same HTTP, pages, letters and SMTP over a dict."""

import asyncio
import secrets
from datetime import timedelta
from typing import Any

import msgspec
import uvicorn

from service.decisions import Cast
from service.domain import Ballot, BallotRecord, Choice, End, Report, Vote, ballot_key, tally
from service.letters import Letters
from service.outbox import Outbox
from service.pages import Pages
from service.records import utc_now
from service.requests import definite, parse_request
from service.settings import load_settings
from service.tokens import Tokens
from service.web import Web

LIFE = timedelta(days=14)


class Floor:
    """What the gateway needs of approvals and of decisions, for approvals with one approver."""

    def __init__(self, outbox: Outbox, letters: Letters, tokens: Tokens) -> None:
        self._outbox, self._letters, self._tokens = outbox, letters, tokens
        self._ballots: dict[bytes, Ballot] = {}
        self._keys: dict[str, bytes] = {}
        self._closed: dict[str, asyncio.Event] = {}
        self._sending: set[asyncio.Task[Any]] = set()

    async def open(self, body: object) -> tuple[Report, bool]:
        """Keep the approval in memory and send its letter in the background."""
        request, now = parse_request(body), utc_now()
        name = str(request.id)
        ask = definite(msgspec.structs.replace(request, id=None), name, now, now + LIFE)
        key = ballot_key(name, ask.approvers[0].email)
        record = BallotRecord(approval_id=name, position=0, promise=name, arbiter=name)
        self._ballots[key] = ballot = Ballot(key=key, ask=ask, record=record, end=None)
        self._keys[name], self._closed[name] = key, asyncio.Event()
        letter = self._letters.request(ballot, self._tokens.capabilities(ballot))
        task = asyncio.ensure_future(self._outbox.send(letter))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return self._report(name), True

    async def ballot(self, key: bytes) -> Ballot:
        """Return the ballot."""
        return self._ballots[key]

    async def wait(self, approval_id: str, seconds: float, stop: object = None) -> Report:  # noqa: ARG002
        """Return how it stands once it is closed."""
        if seconds:
            await asyncio.wait_for(self._closed[approval_id].wait(), seconds)
        return self._report(approval_id)

    async def cast(self, ballot: Ballot, choice: Choice, channel: str, **_: Any) -> Cast:  # noqa: ARG002
        """Count the vote."""
        vote: End = Vote(
            choice=choice,
            by=ballot.approver.email,
            at=utc_now(),
            channel="link",
            cast_id=secrets.token_hex(8),
        )
        ballot = self._ballots[ballot.key] = msgspec.structs.replace(ballot, end=vote)
        self._closed[ballot.ask.approval_id].set()
        return Cast(ballot, vote, counted=True)

    async def ping(self) -> None:
        """Answer."""

    def _report(self, name: str) -> Report:
        ballot = self._ballots[self._keys[name]]
        return tally(ballot.ask, ballot.end, [ballot.end])


def main() -> None:
    """Serve until killed, by the settings of `serve`."""
    settings = load_settings("serve")
    tokens = Tokens(settings.secret_keys, public_url=settings.public_url, reply_domain=settings.reply_domain)
    letters = Letters(sender=settings.sender, reply_domain=settings.reply_domain)
    floor: Any = Floor(Outbox(settings.smtp, fallback_sender="approvals@localhost"), letters, tokens)
    web = Web(settings, approvals=floor, decisions=floor, lists=floor, tokens=tokens, pages=Pages())
    uvicorn.run(
        web.app, host=settings.http.host, port=settings.http.port, access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
