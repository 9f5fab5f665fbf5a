"""The chat app in a real browser: Debian's Chromium, driven by Playwright, on each stage."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.e2e.stage import Stage, scripted_stage, tandem_stage

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright  # after the check above

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE_MS = 60_000  # the machine may be busy; a journey that goes well never waits that long


@pytest.fixture(scope="module", params=[scripted_stage, tandem_stage], ids=["scripted", "tandem"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    with request.param(tmp_path_factory.mktemp("app")) as built:
        yield built


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport={"width": 1280, "height": 860})
    opened.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext, stage: Stage) -> Page:
    stage.hold()
    return visit(context, stage.app_url)


def visit(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(url)
    expect(line(page)).to_be_enabled()
    return page


def line(page: Page) -> Locator:
    return page.get_by_test_id("stChatInputTextArea")


def send(page: Page, text: str) -> None:
    line(page).fill(text)
    expect(button(page, "Send message")).to_be_enabled()  # not before an attachment has been uploaded
    line(page).press("Enter")
    expect(page.get_by_role("group", name="Chat message from user").last).to_contain_text(text)
    page.wait_for_url(re.compile(r"\?chat=\w+"))


def answer(page: Page) -> Locator:
    return page.get_by_role("group", name="Chat message from assistant").last


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name)


def wait_for_text(page: Page, longer_than: int = 0) -> int:
    """Wait until the answer has more letters than that; returns how many it has."""
    expect(answer(page).get_by_test_id("stMarkdownContainer").last).to_be_visible()
    page.wait_for_function(
        """length => {
            const answers = document.querySelectorAll('[aria-label="Chat message from assistant"]');
            const blocks = answers[answers.length - 1].querySelectorAll('[data-testid="stMarkdown"]');
            return [...blocks].map(block => block.innerText).join('').length > length;
        }""",
        arg=longer_than,
    )
    return len(answer(page).inner_text())


def wait_for_stream(page: Page) -> int:
    """Wait until part of an answer is there and more of it keeps coming."""
    expect(button(page, "Stop")).to_be_visible()
    return wait_for_text(page, wait_for_text(page, 30))


def test_a_message_is_answered(page: Page, stage: Stage) -> None:
    send(page, stage.short_question)
    expect(button(page, "Regenerate")).to_be_visible()
    expect(button(page, "Stop")).to_have_count(0)
    assert wait_for_text(page) > 0
    expect(answer(page)).to_contain_text("tokens")


def test_the_reasoning_is_folded_away_and_can_be_read(page: Page, stage: Stage) -> None:
    send(page, stage.question_to_think_about)
    expect(button(page, "Regenerate")).to_be_visible()
    thoughts = answer(page).get_by_role("group").first
    expect(thoughts).to_contain_text(re.compile("Thought for"))
    expect(thoughts).not_to_have_attribute("open", "")
    answer(page).get_by_text(re.compile("Thought for")).click()
    expect(thoughts).to_have_attribute("open", "")


def test_an_answer_streams_and_stops_on_request_with_its_text_kept(page: Page, stage: Stage) -> None:
    send(page, stage.long_question)
    seen = wait_for_stream(page)
    button(page, "Stop").click()
    expect(answer(page)).to_contain_text("Stopped")
    expect(button(page, "Stop")).to_have_count(0)
    assert len(answer(page).inner_text()) >= seen
    send(page, stage.short_question)
    expect(button(page, "Regenerate")).to_be_visible()


def test_a_click_does_not_disturb_the_answer(page: Page, stage: Stage) -> None:
    send(page, stage.long_question)
    seen = wait_for_stream(page)
    page.get_by_role("radio", name="Image").click()
    wait_for_text(page, seen)
    button(page, "New chat").click()
    expect(page.get_by_role("heading", name="What shall we make?")).to_be_visible()
    page.go_back()
    wait_for_text(page, seen)
    stage.let_end()
    expect(button(page, "Regenerate")).to_be_visible()


def test_a_reload_in_mid_answer_finds_it_going_on(page: Page, stage: Stage) -> None:
    send(page, stage.long_question)
    seen = wait_for_stream(page)
    page.reload()
    expect(button(page, "Stop")).to_be_visible()
    wait_for_text(page, seen)
    stage.let_end()
    expect(button(page, "Regenerate")).to_be_visible()
    expect(button(page, "Stop")).to_have_count(0)


def test_a_second_tab_shows_the_same_answer_and_can_stop_it(page: Page, context: BrowserContext, stage: Stage) -> None:
    send(page, stage.long_question)
    wait_for_stream(page)
    other = visit(context, page.url)
    wait_for_stream(other)
    button(other, "Stop").click()
    expect(answer(other)).to_contain_text("Stopped")
    expect(answer(page)).to_contain_text("Stopped")
    expect(button(page, "Stop")).to_have_count(0)
    send(page, stage.short_question)
    expect(other.get_by_role("group", name="Chat message from user").last).to_contain_text(stage.short_question)


def test_what_is_typed_while_an_answer_runs_is_not_lost(page: Page, stage: Stage) -> None:
    send(page, stage.long_question)
    wait_for_stream(page)
    line(page).fill("my next question")
    line(page).press("Enter")
    expect(page.get_by_text("This chat is still being answered")).to_be_visible()
    expect(line(page)).to_have_value("my next question")
    button(page, "Stop").click()
    expect(page.get_by_text("This chat is still being answered")).to_have_count(0)
    expect(line(page)).to_have_value("my next question")


def test_a_picture_is_made_and_shown_with_its_seed(page: Page, stage: Stage) -> None:
    page.get_by_role("radio", name="Image").click()
    expect(line(page)).to_have_attribute("placeholder", "Describe a picture")
    send(page, stage.picture)
    expect(answer(page).get_by_role("img", name=stage.picture)).to_be_visible()
    expect(answer(page)).to_contain_text(re.compile(r"seed \d+ · \d+×\d+"))
    width = answer(page).get_by_role("img", name=stage.picture).evaluate("image => image.decode().then(() => image.naturalWidth)")
    assert width >= 64
    with page.expect_download() as download:
        button(page, "Download").click()
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG"
        assert image.width == width


def test_a_picture_is_cancelled(page: Page, stage: Stage) -> None:
    page.get_by_role("radio", name="Image").click()
    page.get_by_role("button", name=re.compile("random seed")).click()
    page.get_by_role("slider", name="Steps").press("End")
    expect(page.get_by_role("button", name=re.compile(r"\d\d+ steps"))).to_be_visible()
    page.keyboard.press("Escape")
    send(page, stage.slow_picture)
    expect(answer(page)).to_contain_text(re.compile(r"step \d+/\d+"))
    button(page, "Cancel").click()
    expect(answer(page)).to_contain_text("Stopped")
    expect(answer(page).get_by_role("img", name=stage.slow_picture)).to_have_count(0)
    expect(button(page, "Retry")).to_be_visible()


def test_a_picture_can_be_attached(page: Page, stage: Stage) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2000, 1000), "red").save(buffer, "JPEG")
    with page.expect_file_chooser() as chooser:
        page.get_by_test_id("stChatInputFileUploadButton").click()
    chooser.value.set_files({"name": "red.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()})
    expect(page.get_by_text("red.jpg")).to_be_visible()
    send(page, stage.short_question)
    sent = page.get_by_role("group", name="Chat message from user").last.get_by_role("img")
    expect(sent).to_be_visible()
    assert sent.evaluate("image => image.decode().then(() => image.naturalWidth)") <= 1024
    expect(button(page, "Regenerate")).to_be_visible()
