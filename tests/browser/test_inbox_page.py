"""The inbox in a real browser: a person reads a letter, follows its link and answers it."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.chromium import ARGUMENTS, chromium
from tests.edge.inbox_house import House, letter, open_house

#: Each way that a letter's markup may try to run; all would change the title or make a request.
EVIL = (
    "<script>top.document.title='ran'</script><img src=x onerror=\"top.document.title='ran'\">"
    "<svg onload=\"top.document.title='ran'\"></svg><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>"
    "<iframe srcdoc=\"<script>parent.parent.document.title='ran'</script>\"></iframe>"
    "<form action='/letters/1/reply' method=post><input name=text value=approve><button>Go</button></form>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a headless Chromium."""
    path = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def house() -> Iterator[House]:
    """Return a running inbox in memory."""
    with open_house() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, house: House) -> Iterator[Page]:
    """Return the inbox's page; anything that it complains about fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 860}, base_url=house.url)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto("/")
    yield opened
    context.close()
    assert complaints == []


def test_a_letter_appears_is_read_and_answered(page: Page, house: House) -> None:
    """New mail shows up by itself; the reply box reaches the mailbox by SMTP."""
    expect(page.get_by_text("No letters yet.").first).to_be_visible()
    house.send(letter("Refund 120.00 EUR", html="<h1>Refund</h1><p>Please decide.</p>"))
    page.get_by_role("link", name="Refund 120.00 EUR").click()
    expect(page.frame_locator("iframe").get_by_text("Please decide.")).to_be_visible()
    page.get_by_role("link", name="Text", exact=True).click()
    expect(page.get_by_text("approval: café.")).to_be_visible()
    page.get_by_label("Reply to r+afqwcmrtgy3tqnbvgu3dombr@localhost").fill("approve\nfine by me")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("Reply handed to the mailbox.")).to_be_visible()
    (mail,) = house.mailbox.mails
    assert mail.rcpt_tos == ["r+afqwcmrtgy3tqnbvgu3dombr@localhost"]
    assert b"\r\n\r\napprove\r\nfine by me\r\n\r\nOn Tue, 24 Nov 2026 10:12, Bob Smith" in (
        mail.original_content or b""
    )
    house.send(letter("Recorded: Refund 120.00 EUR"))
    expect(page.get_by_role("link", name="Recorded: Refund 120.00 EUR")).to_be_visible()


def test_a_refusal_is_shown_and_the_words_stay(page: Page, house: House) -> None:
    """The mailbox's own words, and the reply still in the box."""
    house.mailbox.answer = "550 5.1.6 This request is closed"
    house.send(letter())
    page.goto("/letters/1")
    page.locator("textarea").fill("approve")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("550 5.1.6 This request is closed")
    expect(page.locator("textarea")).to_have_value("approve")


def test_nothing_of_a_letter_runs(page: Page, house: House) -> None:
    """No script, no load, no form and no refresh of a letter has an effect, wherever it stands."""
    house.send(letter(EVIL.replace("\n", ""), html=f"<body>{EVIL}<p>the end</p></body>", X_Evil=EVIL[:200]))
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    for path in ("/", "/letters/1", *(f"/letters/1?view={view}" for view in ("text", "headers", "source"))):
        page.goto(path)
        assert page.title() != "ran"
    page.goto("/letters/1")
    frame = page.frame_locator("iframe").first
    expect(frame.get_by_text("the end")).to_be_visible()
    frame.get_by_role("button", name="Go").click()
    # A question that the page answers after whatever the click had set off.
    page.reload()
    expect(frame.get_by_text("the end")).to_be_visible()
    assert page.title() != "ran"
    assert house.mailbox.mails == []
    # Opened by itself the letter has as little power.
    page.goto("/letters/1/html")
    assert page.title() != "ran"
    assert page.evaluate("origin") == "null"
    assert [url for url in requested if not url.startswith((house.url, "data:"))] == []


def test_links_open_in_a_tab_of_their_own(page: Page, house: House) -> None:
    """The page behind a letter's link is a full one, and the inbox stays where it is."""
    house.send(
        letter(html=f"<html><head></head><body><a href='{house.url}/?opened'>Approve</a></body></html>")
    )
    page.goto("/letters/1")
    with page.context.expect_page() as opening:
        page.frame_locator("iframe").get_by_role("link", name="Approve").click()
    opened = opening.value
    opened.wait_for_load_state()
    assert opened.url == f"{house.url}/?opened"
    assert opened.evaluate("origin") == house.url
    assert opened.evaluate("window.opener") is None
    assert page.url == f"{house.url}/letters/1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_list_or_letter(browser: Browser, house: House, scheme: str) -> None:
    """One column, nothing wider than the screen, a way back."""
    house.send(letter("A subject that is quite long and goes on", html="<p>hello</p>"))
    context = browser.new_context(
        viewport={"width": 360, "height": 740},
        base_url=house.url,
        color_scheme="dark" if scheme == "dark" else "light",
    )
    phone = context.new_page()
    phone.goto("/")
    phone.get_by_role("link", name="A subject").click()
    expect(phone.locator("#list")).to_be_hidden()
    for view in ("html", "text", "headers", "source"):
        phone.goto(f"/letters/1?view={view}")
        assert phone.evaluate("document.documentElement.scrollWidth") <= 360
    phone.get_by_role("link", name="Letters", exact=False).first.click()
    expect(phone.locator("#list")).to_be_visible()
    context.close()


def test_the_page_works_without_script(browser: Browser, house: House) -> None:
    """Reading and answering need none."""
    house.send(letter(html="<p>hello</p>"))
    context = browser.new_context(base_url=house.url, java_script_enabled=False)
    plain = context.new_page()
    plain.goto("/")
    plain.get_by_role("link", name="Refund 120.00 EUR").click()
    plain.locator("textarea").fill("decline")
    plain.get_by_role("button", name="Send").click()
    expect(plain.get_by_text("Reply handed to the mailbox.")).to_be_visible()
    assert len(house.mailbox.mails) == 1
    context.close()
