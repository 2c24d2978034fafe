"""The pages in a real browser: what is shown, what a button sends, what markup can't do."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from urllib.parse import parse_qs

import msgspec
import pytest
from playwright.sync_api import Browser, Page, Request, Route, sync_playwright

from service.domain import Closed, Vote
from service.pages import Pages
from service.requests import Approver, Ask, Person
from tests.browser.chromium import ARGUMENTS, chromium

URL = "https://approvals.corp.example/decide/eyJhbGciOiJI?choice=decline"
NOW = datetime(2026, 11, 22, 16, 0, tzinfo=UTC)
ANN = Approver(email="ann@corp.example", name="Ann Li", zone="Europe/Madrid")
ANA = Approver(email="ana@corp.example", name="Ana Lima")
ASK = Ask(
    approval_id="refund-42",
    subject="Refund 120.00 EUR to Ana Lima",
    message="The parcel arrived damaged. [Photos](https://tickets.example/1)",
    facts={"Amount": "120.00 EUR", "Order": "A-20931"},
    approvers=[ANN, ANA],
    requester=Person(email="bob@corp.example", name="Bob Smith"),
    created_at=NOW,
    due_at=NOW + timedelta(days=2),
)
#: What the edge sends with every page.
POLICY = (
    "default-src 'none'; style-src 'nonce-abc123'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
MARKUP = '</textarea></style><script>document.title="run"</script><img src=x onerror=alert(1)>"\' onfocus=x'
PAGES = Pages()


def decide(ask: Ask = ASK, **fields: str) -> str:
    """Return the page with the buttons."""
    return PAGES.decide(
        ask=ask,
        approver=ASK.approvers[0],
        form_nonce=fields.get("form_nonce", "n0nce"),
        csp_nonce="abc123",
        now=NOW,
        preselect="decline" if fields.get("preselect") == "decline" else None,
        comment=fields.get("comment", ""),
        notice=fields.get("notice"),
    )


def closed(end: Vote | Closed, *, just_decided: bool = False) -> str:
    """Return the page without buttons, for Ann."""
    return PAGES.closed(ask=ASK, approver=ANN, end=end, csp_nonce="abc123", just_decided=just_decided)


def vote(**fields: object) -> Vote:
    """Return Ann's approval by link, with other `fields`."""
    base = Vote(choice="approve", by=ANN.email, at=NOW, channel="link", cast_id="1", comment="Fine by me.")
    return msgspec.structs.replace(base, **fields)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run Chromium once for all tests here."""
    path = chromium()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()


class Visit:
    """A page opened under the policy it is served with; everything it sent or complained of."""

    def __init__(self, browser: Browser, html: str, *, width: int = 390, dark: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 700}, color_scheme="dark" if dark else "light"
        )
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

        def answer(route: Route) -> None:
            self.requests.append(route.request)
            route.fulfill(body=html, content_type="text/html", headers={"Content-Security-Policy": POLICY})

        self.page.route("**/*", answer)
        self.page.goto(URL)


@pytest.mark.parametrize("choice", ["Approve", "Decline"])
def test_a_button_sends_choice_comment_and_nonce_to_its_own_url(browser: Browser, choice: str) -> None:
    """One press, one POST to the page's own address, and nothing before it."""
    visit = Visit(browser, decide(preselect="decline"))
    visit.page.get_by_label("Comment").fill("Fine by me.")
    assert [r.method for r in visit.requests] == ["GET"]
    visit.page.get_by_role("button", name=choice).click()
    post = visit.requests[-1]
    assert (post.method, post.url) == ("POST", URL)
    assert parse_qs(post.post_data or "") == {
        "nonce": ["n0nce"],
        "comment": ["Fine by me."],
        "choice": [choice.lower()],
    }
    assert visit.complaints == []
    visit.context.close()


def test_a_preselected_choice_is_marked_and_submits_nothing(browser: Browser) -> None:
    """The letter's button only points; Approve stays first and primary, focus stays with the person."""
    visit = Visit(browser, decide(preselect="decline"))
    buttons = visit.page.get_by_role("button")
    assert buttons.all_inner_texts() == ["Approve", "Decline"]
    assert "chosen" in (buttons.nth(1).get_attribute("class") or "")
    assert "chosen" not in (buttons.nth(0).get_attribute("class") or "")
    assert visit.page.evaluate("document.activeElement.tagName") == "BODY"
    assert [r.method for r in visit.requests] == ["GET"]
    visit.context.close()


@pytest.mark.parametrize("width", [320, 390, 720])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_can_be_pressed_everywhere(browser: Browser, width: int, *, dark: bool) -> None:
    """No sideways scrolling, targets of 44 px, the sheet applied under the policy."""
    long = msgspec.structs.replace(
        ASK,
        subject="x" * 200,
        message="y" * 300 + "\n\n```\n" + "z" * 300 + "\n```",
        facts={"l" * 60: "v" * 300},
    )
    visit = Visit(browser, decide(long), width=width, dark=dark)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    for button in visit.page.get_by_role("button").all():
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 44
    approve = visit.page.get_by_role("button", name="Approve")
    assert approve.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(26, 127, 75)"
    approve.focus()
    visit.page.keyboard.press("Shift+Tab")
    visit.page.keyboard.press("Tab")
    assert approve.evaluate("e => getComputedStyle(e).outlineWidth") == "3px"
    assert visit.complaints == []
    visit.context.close()


def test_markup_in_any_field_is_shown_and_never_run(browser: Browser) -> None:
    """Tags and quotes in every place that people fill are text; the comment comes back as it was."""
    hostile = msgspec.structs.replace(
        ASK,
        subject=MARKUP,
        message=MARKUP,
        facts={MARKUP: MARKUP},
        approval_id=MARKUP,
        requester=Person(email="bob@corp.example", name=MARKUP),
    )
    comment = "\n  " + MARKUP
    visit = Visit(browser, decide(hostile, comment=comment, notice=MARKUP, form_nonce=MARKUP))
    assert visit.page.title() == MARKUP
    assert visit.page.locator("h1").inner_text() == MARKUP
    assert visit.page.locator("script, img, [onfocus]").count() == 0
    assert visit.page.get_by_label("Comment").input_value() == comment
    assert visit.page.locator("input[name=nonce]").get_attribute("value") == MARKUP
    assert len(visit.requests) == 1
    assert visit.complaints == []
    visit.context.close()


def test_pages_hold_no_script_handler_or_remote_thing() -> None:
    """What could decide by itself or tell somebody of a visit is not in any page."""
    for html in [
        decide(preselect="decline", notice="x"),
        closed(vote(), just_decided=True),
        PAGES.problem(title="This link does not work", text="x", csp_nonce="abc123"),
    ]:
        assert not re.search(r"<script|<img|<link|\son\w+=|\sstyle=|src=|@import|url\(", html)
        assert '<style nonce="abc123">' in html


def test_decide_says_who_what_until_when_and_that_nothing_is_decided() -> None:
    """The facts of the letter, with the time that is left."""
    html = decide(notice="This page had been open for a while. Press the button once more.")
    for said in (
        "Bob Smith asks for your approval · you are ann@corp.example",
        "Tue 24 Nov 2026, 17:00 CET · in 2 days",
        "(optional, for Bob Smith)",
        "Nothing is decided until you press a button.",
        "Press the button once more.",
        "Request refund-42",
        'maxlength="4000"',
    ):
        assert said in html
    assert "(optional)" in decide(msgspec.structs.replace(ASK, requester=None))


@pytest.mark.parametrize(
    ("html", "said"),
    [
        (closed(vote(), just_decided=True), "Approved. Your decision is recorded."),
        (closed(vote()), "Approved by you on 22 Nov, 17:00, by link."),
        (closed(vote(by=ANA.email, choice="decline")), "Declined by Ana Lima on 22 Nov, 17:00, by link."),
        (closed(Closed(reason="expired", at=NOW)), "without a decision. Bob Smith can ask again."),
        (closed(Closed(reason="withdrawn", at=NOW)), "This was withdrawn on 22 Nov, 17:00."),
    ],
)
def test_a_closed_page_tells_the_truth_and_has_no_button(html: str, said: str) -> None:
    """Who, when and how, and nothing left to press."""
    assert said in html
    assert "Bob Smith asked for your approval" in html
    assert "<button" not in html
    assert "<form" not in html


def test_a_comment_is_shown_to_who_wrote_it() -> None:
    """Others' comments are between them and the requester."""
    assert "Fine by me." in closed(vote())
    assert "Fine by me." not in closed(vote(by=ANA.email))


def test_colours_can_be_read_in_light_and_dark() -> None:
    """Text keeps 4.5:1 on every ground it stands on; edges of fields keep 3:1."""
    sheet = resources.files("service.pages").joinpath("style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    )
    for colours in (light, light | dark):
        for ink in ("ink", "dim", "link"):
            for ground in ("ground", "card", "soft"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for ink, ground in [("approve-ink", "soft"), ("decline", "soft"), ("decline", "card"),
                            ("decline", "decline-soft"), ("notice", "notice-soft")]:  # fmt: skip
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast("#ffffff", colours["approve"]) >= 4.5
        assert contrast(colours["field"], colours["card"]) >= 3


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
