"""The decision page in a real Chromium: a person presses, a scanner only looks."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright

from service.demo import environment
from tests.browser.chromium import ARGUMENTS, chromium
from tests.journey.house import Person, house, link_of, settings_of


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium."""
    path = chromium()
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield launched
        await launched.close()


@pytest.fixture
async def person(tmp_path: Path) -> AsyncIterator[Person]:
    """A person in front of a running service."""
    env = environment(tmp_path)
    async with house(settings_of(env, tmp_path)) as (_, someone):
        yield someone


async def test_a_person_approves_with_a_comment(browser: Browser, person: Person, tmp_path: Path) -> None:
    """The page behind the letter's link opens, shows what is asked, and its button decides."""
    await person.ask("w-1", message="The parcel arrived **damaged**.", facts={"Amount": "120.00 EUR"})
    page = await browser.new_page()
    await page.goto(link_of(await person.letter("w-1")) + "?choice=approve")
    assert await page.get_by_role("heading", level=1).inner_text() == "Refund w-1"
    assert await page.get_by_text("120.00 EUR").is_visible()
    await page.get_by_role("textbox").fill("Fine by me.")
    await page.get_by_role("button", name="Approve").click()
    await page.get_by_text("Your decision is recorded").wait_for()
    await page.screenshot(path=tmp_path / "done.png")
    assert await page.get_by_role("button").count() == 0
    [ann] = (await person.report("w-1", wait=20))["approvers"]
    assert (ann["choice"], ann["comment"]) == ("approve", "Fine by me.")


async def test_a_scanner_that_runs_scripts_decides_nothing(browser: Browser, person: Person) -> None:
    """Whatever opens the link in a full browser and waits, scripts and all, leaves it undecided."""
    await person.ask("w-2")
    link = link_of(await person.letter("w-2"))
    posts: list[str] = []
    for choice in ("", "?choice=approve", "?choice=decline"):
        page = await browser.new_page()
        page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
        await page.goto(link + choice, wait_until="networkidle")
        await page.close()
    assert posts == []
    assert (await person.report("w-2"))["status"] == "pending"


async def test_two_tabs_and_a_second_press(browser: Browser, person: Person) -> None:
    """Of two open tabs the first press decides; the second tab then says who decided what."""
    await person.ask("w-3")
    link = link_of(await person.letter("w-3"))
    context = await browser.new_context()
    first, second = await context.new_page(), await context.new_page()
    await first.goto(link)
    await second.goto(link)
    await first.get_by_role("button", name="Decline").click()
    await first.get_by_text("Your decision is recorded").wait_for()
    await second.get_by_role("button", name="Approve").click()
    await second.get_by_text("Declined by you").wait_for()
    assert (await person.report("w-3", wait=20))["status"] == "declined"


async def test_the_inbox_reply_box_decides(browser: Browser, person: Person) -> None:
    """In the local inbox a letter is read and answered, and the answer decides."""
    await person.ask("w-4")
    await person.letter("w-4")
    page = await browser.new_page()
    await page.goto(person.inbox)
    await page.get_by_text("Refund w-4").first.click()
    await page.get_by_role("textbox").fill("decline\nNot this time.")
    await page.get_by_role("button", name="Send").click()
    report = await asyncio.wait_for(person.report("w-4", wait=20), 25)
    assert report["status"] == "declined"
    assert report["approvers"][0]["comment"] == "Not this time."
