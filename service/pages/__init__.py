"""The pages an approver sees: what is asked, how it ended, or why a link does not work.

Pure rendering: a page has no script, loads nothing, and everything that a person
wrote is escaped. The edge chooses the nonces and sends the headers that match.
"""

from datetime import datetime
from importlib import resources
from typing import Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from service import wording
from service.domain import Choice, End, Vote
from service.requests import Approver, Ask

#: The buttons, in their order; the first is the primary one.
LABELS: Final[dict[Choice, str]] = {"approve": "Approve", "decline": "Decline"}
#: What a page's comment field takes, in characters.
MAX_COMMENT: Final = 4_000

_FILES: Final = resources.files("service.pages")
_STATES: Final = {
    "expired": "Closed",
    "withdrawn": "Withdrawn",
    "undeliverable": "Closed",
    "moot": "Closed",
}


class Pages:
    """Renders every page; construction reads and compiles all of them, so that a missing one stops the start.

    `csp_nonce` is what the response's Content-Security-Policy names in `style-src`.
    """

    def __init__(self) -> None:
        env = Environment(
            loader=FunctionLoader(_source),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        env.filters["one_line"] = wording.one_line
        # The sheet is ours, and raw text inside <style>: escaping would break its selectors.
        env.globals["style"] = Markup(_source("style.css"))  # noqa: S704
        self._decide = env.get_template("decide.html")
        self._closed = env.get_template("closed.html")
        self._problem = env.get_template("problem.html")
        for shared in ("_base.html", "_ask.html"):
            env.get_template(shared)

    def decide(
        self,
        *,
        ask: Ask,
        approver: Approver,
        form_nonce: str,
        csp_nonce: str,
        now: datetime,
        preselect: Choice | None = None,
        comment: str = "",
        notice: str | None = None,
    ) -> str:
        """Return the page with the buttons.

        `preselect` marks the button pressed in the letter and submits nothing;
        `comment` is text kept from an earlier try; `notice` stands on top.
        The form posts `nonce`, `comment` and `choice` to the page's own URL.
        """
        due = f"{wording.when(ask.due_at, approver.zone)} · {wording.from_now(ask.due_at, now)}"
        requester = wording.one_line(ask.requester.display) if ask.requester else ""
        return self._decide.render(
            **_facts(ask, approver, [("Decide by", due)]),
            asks=wording.asks(ask.requester),
            csp_nonce=csp_nonce,
            form_nonce=form_nonce,
            labels=LABELS,
            preselect=preselect,
            comment=wording.plain(comment)[:MAX_COMMENT],
            comment_hint=f"(optional, for {requester})" if requester else "(optional)",
            notice=notice,
        )

    def closed(
        self, *, ask: Ask, approver: Approver, end: End, csp_nonce: str, just_decided: bool = False
    ) -> str:
        """Return the page without buttons: how this ended, for `approver`.

        `just_decided` is for the answer to the very button press that decided.
        """
        times = [("Decide by", wording.when(ask.due_at, approver.zone))]
        comment = ""
        if isinstance(end, Vote):
            state = wording.decided(end.choice)
            times.append((state, wording.when(end.at, approver.zone)))
            # Others' comments are between them and the requester.
            comment = end.comment if end.by == approver.email else ""
        else:
            state = _STATES[end.reason]
        sentences = [wording.outcome(ask, end, approver)]
        if just_decided and isinstance(end, Vote):
            sentences = [wording.recorded(end), "You can close this page."]
        return self._closed.render(
            **_facts(ask, approver, times),
            asks=wording.asked(ask.requester),
            csp_nonce=csp_nonce,
            state=state,
            sentences=sentences,
            comment=wording.plain(comment),
        )

    def problem(self, *, title: str, text: str, csp_nonce: str) -> str:
        """Return a page that says what did not work and what to do."""
        return self._problem.render(title=title, text=text, csp_nonce=csp_nonce)


def _facts(ask: Ask, approver: Approver, times: list[tuple[str, str]]) -> dict[str, object]:
    """Return what `_ask.html` shows, on the open and on the closed page alike."""
    return {
        "ask": ask,
        "approver": approver,
        "message": Markup(wording.message_html(ask.message)),  # noqa: S704 -- sanitised there
        "times": times,
    }


def _source(name: str) -> str:
    return _FILES.joinpath(name).read_text(encoding="utf-8")
