"""Inbound mail: RCPT verifies the address, DATA decides, 250 says that it is durable.

============================================  ==========================================
a message                                     is answered
============================================  ==========================================
to an address we did not sign                 550 to RCPT, before any content
when engine or DNS are away, or time is up    451: the sender's server keeps it and retries
from a machine                                250, and silence; an absence or a delay is noted
that no mail program writes                   554
from anyone but the approver, or unproven     250, and the approver is asked to confirm
absent by its subject, a vote by its text     250, is noted, and the approver is asked to confirm
from a person, to where bounces go            250, and the approver is asked to confirm
unclear                                       250, and the approver is asked again
of the last four, the second on a day         550, which says what to do
too late                                      250, and a letter that names the real outcome
seen before                                   250, and silence
that decides                                  250, and a receipt (sent by the workflow)
============================================  ==========================================

A ballot gets one letter of a kind a day, so that no loop lasts. Who writes what would lead to
a second one learns it from their own mail server, instead of waiting for an answer.

The listener has a loop of its own, since parsing mail can hold a loop for long;
promises are asked for in the loop where the engine lives.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Protocol, assert_never
from weakref import WeakKeyDictionary

from aiosmtpd.smtp import SMTP, Envelope, Session

from service.answers import AnswerKind, Answers
from service.approvals import Approvals
from service.decisions import Decisions
from service.domain import Ballot, Vote
from service.errors import ApprovalsError, EngineAway
from service.journal import Journal
from service.letters import Letters
from service.replies import Bounce, Ignored, Reason, Reply, Sent, Unverified, read_reply
from service.senders import Doubted, Trust, Trusted, Unavailable
from service.tokens import AddressKind, Tokens, spell

log = logging.getLogger("approvals.mailbox")

#: Seconds that a message waits for the engine; then its sender's server keeps it.
ENGINE_PATIENCE = 10.0
#: Seconds for reading a message; the worst known takes a tenth of one.
READING_SECONDS = 10.0
#: The peer of whoever hands a message in on this machine, without a network between.
LOOPBACK = "127.0.0.1"
DONE = "250 2.0.0 Done"
RECORDED = "250 2.0.0 Recorded"
LATER = "451 4.3.0 This message can't be read now, try again"
UNREADABLE = "554 5.6.0 This message can't be read as a reply"
UNCLEAR = (
    "550 5.7.1 Nothing is decided: write approve or decline in the first line, or use the link in the letter"
)
UNPROVEN = "550 5.7.1 Nothing is decided: this reply can't be verified, use the link in the letter"


class Senders(Protocol):
    """What tells whether a message really is from whom it claims."""

    async def check(self, raw: bytes, sender: str, peer: str) -> Trust:
        """Check `raw`, whose one From is `sender`, handed in by the host `peer`."""


class Mailbox:
    """The aiosmtpd handler for reply and bounce addresses.

    Built in the loop where the engine lives; used from the listener's.
    """

    def __init__(
        self,
        *,
        approvals: Approvals,
        decisions: Decisions,
        answers: Answers,
        journal: Journal,
        tokens: Tokens,
        letters: Letters,
        senders: Senders,
        own_addresses: frozenset[str],
        aliases: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        self._approvals = approvals
        self._decisions = decisions
        self._answers = answers
        self._journal = journal
        self._tokens = tokens
        self._letters = letters
        self._senders = senders
        self._own_addresses = own_addresses
        self._aliases = aliases or {}
        self._engine_loop = asyncio.get_running_loop()
        self._accepted: WeakKeyDictionary[Envelope, tuple[AddressKind, Ballot]] = WeakKeyDictionary()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Accept a recipient only if we signed it for a ballot that is still kept."""
        if envelope in self._accepted:
            return "452 4.5.3 One recipient per message, please"
        self._accepted[envelope] = await self._addressee(address)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(  # noqa: N802 - aiosmtpd's name
        self, _server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Act on a message; the answer is given once what it changed is durable."""
        kind, ballot = self._accepted.pop(envelope)
        raw = envelope.content if isinstance(envelope.content, bytes) else b""
        return await self._act(kind, ballot, raw, _bare(envelope.mail_from), peer_of(session))

    async def receive(self, address: str, raw: bytes, mail_from: str | None) -> str:
        """Act on a message that came by another way than our own server; return the SMTP reply.

        It counts as handed in on this machine: whoever fetched it trusts where it was kept.
        """
        try:
            kind, ballot = await self._addressee(address)
            return await self._act(kind, ballot, raw, mail_from, LOOPBACK)
        except ApprovalsError as exc:
            return exc.smtp_reply

    async def _addressee(self, address: str) -> tuple[AddressKind, Ballot]:
        claim = self._tokens.read_address(address)
        ballot = await self._with_engine(self._approvals.ballot(claim.ballot_key))
        self._tokens.verify_address(claim, ballot)
        return claim.kind, ballot

    async def _act(
        self, kind: AddressKind, ballot: Ballot, raw: bytes, mail_from: str | None, peer: str
    ) -> str:
        try:
            async with asyncio.timeout(READING_SECONDS):
                reading = await asyncio.to_thread(
                    read_reply, raw, self._sent(ballot), envelope_from=mail_from
                )
        except TimeoutError:
            log.warning("approval %s: a message could not be read in time", ballot.ask.approval_id)
            return LATER
        log.debug("a message for %s: %s", ballot.ask.approval_id, type(reading).__name__)
        match reading:
            case Ignored():
                return await self._heard(ballot, kind, reading, raw)
            case Unverified():
                if reading.refusable:
                    return UNREADABLE
                return await self._unproven(ballot, raw, reading.message_id, reading.doubt)
            case Reply():
                if kind == "bounce":
                    return await self._unproven(
                        ballot, raw, reading.message_id, "it went to where bounces go"
                    )
                return await self._replied(ballot, reading, raw, peer)
            case _:
                assert_never(reading)

    async def _heard(self, ballot: Ballot, kind: AddressKind, heard: Ignored, raw: bytes) -> str:
        """Keep what a machine told; RFC 3834 sends absences to where bounces go, people's rules do not."""
        log.info("approval %s: mail ignored: %s", ballot.ask.approval_id, heard.reason)
        if heard.reason is Reason.OUT_OF_OFFICE:
            note = self._journal.note(ballot, "out-of-office", heard.text, heard.sender)
            await self._with_engine(note)
        if heard.verdict:
            return await self._unproven(
                ballot, raw, heard.message_id, "its subject says that they are absent"
            )
        if kind == "bounce" and heard.bounce:
            await self._bounced(ballot, heard.bounce, heard.sender)
        return DONE

    async def _replied(self, ballot: Ballot, reply: Reply, raw: bytes, peer: str) -> str:
        said = f"{reply.sender}\0{reply.verdict}\0{reply.read}\0{reply.comment}"
        if reply.sender not in self._addresses(ballot):
            trust: Trust = Doubted("not from the approver")
        else:
            trust = await self._senders.check(raw, reply.sender, peer)
        if isinstance(trust, Trusted) and not reply.names_letter(trust.covered):
            trust = Doubted("it is older than this letter, answers another, or nothing signed shows which")
        match trust:
            case Unavailable():
                return "451 4.4.3 The sender can't be checked now, try again"
            case Doubted():
                work = partial(self._doubted, ballot, trust.reason)
            case Trusted():
                work = partial(self._authentic, ballot, reply, trust)
            case _:
                assert_never(trust)
        # A copy that proves nothing must not keep out the one that does.
        mark = _mark(raw, reply.message_id, f"{type(trust).__name__}\0{said}")
        return await self._once(ballot, mark, work)

    async def _unproven(self, ballot: Ballot, raw: bytes, message_id: str | None, doubt: str) -> str:
        mark = _mark(raw, message_id, doubt)
        return await self._once(ballot, mark, partial(self._doubted, ballot, doubt))

    async def _once(self, ballot: Ballot, mark: str, work: Callable[[str], Awaitable[str]]) -> str:
        """Do `work` unless this message was acted on before: relays and pollers deliver twice.

        The mark is made last: a message that was cut off half-way is acted on again, and
        whatever it does twice is the same vote and the same letter. What is refused leaves none.
        """
        if await self._with_engine(self._journal.knows(ballot, mark)):
            log.info("approval %s: a message came again", ballot.ask.approval_id)
            return DONE
        answer = await work(mark)
        if answer.startswith("2"):
            await self._with_engine(self._journal.mark(ballot, mark))
        return answer

    async def _authentic(self, ballot: Ballot, reply: Reply, trust: Trusted, mark: str) -> str:
        approval_id, message_id = ballot.ask.approval_id, reply.message_id or ""
        if reply.verdict is None and ballot.end is None:
            log.info("approval %s: reply unclear: %s", approval_id, reply.why)
            asked = self._answers.ask(ballot.key, "clarification", reply.read, mark=mark)
            return DONE if await self._with_engine(asked) else UNCLEAR
        if reply.verdict is not None:
            evidence = {"from": reply.sender, "message_id": message_id, "trust": trust.method}
            if reply.sender != ballot.approver.email:
                evidence["alias_of"] = ballot.approver.email
            cast = await self._with_engine(
                self._decisions.cast(ballot, reply.verdict, "reply", comment=reply.comment, evidence=evidence)
            )
            if cast.counted:
                return RECORDED
            end = cast.end
            if isinstance(end, Vote) and message_id and end.evidence.get("message_id") == message_id:
                return RECORDED  # the same message once more: its 250 was lost
        await self._with_engine(self._answers.ask(ballot.key, "closed"))
        return DONE

    async def _doubted(self, ballot: Ballot, doubt: str, mark: str) -> str:
        log.info("approval %s: reply not relied on: %s", ballot.ask.approval_id, doubt)
        kind: AnswerKind = "confirmation" if ballot.end is None else "closed"
        asked = await self._with_engine(self._answers.ask(ballot.key, kind, mark=mark))
        return DONE if asked or kind == "closed" else UNPROVEN

    async def _bounced(self, ballot: Ballot, bounce: Bounce, sender: str | None) -> None:
        detail = f"{bounce.status or ''} {bounce.diagnostic}".strip()
        ours = bounce.final_recipient is None or bounce.final_recipient in self._addresses(ballot)
        if bounce.action == "failed" and ours:
            await self._with_engine(self._decisions.bounced(ballot, detail[:500]))
        elif bounce.action in {"failed", "delayed"}:
            # A dead forward of theirs is not they: their own copy may have come.
            told = detail if ours else f"a forward to {bounce.final_recipient} {bounce.action}: {detail}"
            await self._with_engine(self._journal.note(ballot, "delayed", told[:500], sender))

    def _addresses(self, ballot: Ballot) -> frozenset[str]:
        email = ballot.approver.email
        return self._aliases.get(email, frozenset()) | {email}

    def _sent(self, ballot: Ballot) -> Sent:
        caps = self._tokens.capabilities(ballot)
        return Sent(
            subject=ballot.ask.subject,
            text=self._letters.request_text(ballot, caps),
            reply_address=caps.reply_to,
            own_addresses=self._own_addresses | {caps.bounce_to},
            thread=spell(ballot.key),
            link=caps.link,
            made=ballot.ask.created_at,
            approver=self._addresses(ballot),
            names=frozenset(
                name
                for person in (ballot.approver, ballot.ask.requester)
                if person is not None
                for name in (person.name or "", person.email.partition("@")[0])
            ),
        )

    async def _with_engine[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` in the loop where the engine lives. Raises EngineAway after `ENGINE_PATIENCE`.

        Connectors to engines try for ever. What was cut off may have been done; the message comes
        again and finds it so.
        """
        try:
            async with asyncio.timeout(ENGINE_PATIENCE):
                return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._engine_loop))
        except TimeoutError as exc:
            raise EngineAway("no answer in time") from exc


def _bare(mail_from: str | None) -> str:
    """Return the envelope sender; aiosmtpd reports the null one as ``<>``."""
    return "" if mail_from in {None, "<>"} else str(mail_from)


def peer_of(session: Session) -> str:
    """Return the SMTP client's IP address; one on a unix socket is on this machine."""
    peer: object = session.peer  # a host and port, or a path
    return str(peer[0]) if isinstance(peer, tuple) else LOOPBACK


def _mark(raw: bytes, message_id: str | None, said: str) -> str:
    """Return what tells a message from others: its Message-ID, else all of it, and what it says."""
    whole = message_id.encode() if message_id else raw
    return hashlib.sha256(whole + b"\0" + said.encode("utf-8", "replace")).hexdigest()[:32]
