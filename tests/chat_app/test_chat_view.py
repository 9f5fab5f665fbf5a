"""The page, driven without a browser against a gateway over real HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from chat_app import services
from chat_app.application import Application
from chat_app.records import State
from chat_app.settings import Settings
from tests.chat_app.fake_gateway import FakeGateway
from tests.chat_app.waiting import until

SCRIPT = Path(__file__).parents[2] / "chat_app" / "app.py"


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Application]:
    """The very application the page uses."""
    monkeypatch.setenv("TANDEM_BASE_URL", settings.base_url)
    monkeypatch.setenv("TANDEM_API_KEY", settings.api_key)
    monkeypatch.setenv("TANDEM_DATA_DIR", str(settings.data_dir))
    yield services.application()
    st.cache_resource.clear()


@pytest.fixture
def page(app: Application) -> AppTest:
    return open_page()


def open_page(chat: str | None = None) -> AppTest:
    page = AppTest.from_file(str(SCRIPT), default_timeout=20)
    if chat is not None:
        page.query_params["chat"] = chat
    return shown(page)


def shown(page: AppTest) -> AppTest:
    page.run()
    assert not page.exception
    return page


def send(page: AppTest, text: str) -> str:
    """Returns the chat, as the address names it."""
    page.chat_input[0].set_value(text)
    shown(page)
    return str(page.query_params["chat"])


def settled(app: Application, page: AppTest, chat: str) -> AppTest:
    until(lambda: app.runs.of_chat(chat) is None)
    return shown(page)


def texts(page: AppTest) -> str:
    return "\n".join(element.value for element in (*page.markdown, *page.text, *page.caption))


def labels(page: AppTest) -> list[str]:
    return [button.label for button in page.button]


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_an_empty_page_offers_examples_and_every_model(page: AppTest) -> None:
    assert page.title[0].value == "What shall we make?"
    assert "What can you do?" in labels(page)
    assert "Draw a red circle on a blue background" in labels(page)
    assert list(page.radio[0].options) == ["demo", "demo-image", "words-only", "sleepy"]
    assert "demo model" in texts(page)


def test_a_message_is_answered_under_an_address_of_its_own(app: Application, page: AppTest) -> None:
    chat = send(page, "hello")
    settled(app, page, chat)
    assert "You said: hello. I can chat and draw." in texts(page)
    assert "demo · " in texts(page)
    assert "20 tokens" in texts(page)
    assert "Regenerate" in labels(page)
    assert "hello" in labels(page)  # the chat in the sidebar


def test_a_reload_in_mid_answer_shows_the_same_run_with_its_stop(app: Application, page: AppTest, gateway: FakeGateway) -> None:
    chat = send(page, "hang")
    until(lambda: "draw." in app.store.messages(chat)[-1].text or "draw." in _live_text(app, chat))
    other = open_page(chat)
    assert "You said: hang." in texts(other)
    assert "Stop" in labels(other)
    other.button(key="stop").click()
    shown(other)
    gateway.hangups.get(timeout=5)
    settled(app, page, chat)
    assert "Stop" not in labels(page)
    assert "Stopped" in texts(page)
    assert "Retry" in labels(page)


def _live_text(app: Application, chat: str) -> str:
    run = app.runs.of_chat(chat)
    return run.snapshot().message.text if run else ""


def test_a_message_sent_while_one_is_answered_goes_back_into_the_line(app: Application, page: AppTest, gateway: FakeGateway) -> None:
    chat = send(page, "hang")
    send(page, "my next question")
    assert "still being answered" in page.warning[0].value
    assert page.chat_input[0].value == "my next question"
    assert len(gateway.requests) <= 1
    run = app.runs.of_chat(chat)
    assert run is not None
    run.stop()
    settled(app, page, chat)
    assert not page.warning


def test_an_error_is_a_card_with_the_partial_text_and_a_retry(app: Application, page: AppTest) -> None:
    chat = send(page, "break")
    settled(app, page, chat)
    assert "the engine of 'demo' died" in page.error[0].value
    assert "engine_died" in page.error[0].value
    assert "req-chat" in page.error[0].value
    assert "You said: break" in texts(page)
    page.button(key=f"retry-{app.store.messages(chat)[-1].id}").click()
    shown(page)
    settled(app, page, chat)
    assert len(app.store.messages(chat)) == 2


def test_reasoning_is_folded_away_and_the_switch_is_sent(app: Application, page: AppTest, gateway: FakeGateway) -> None:
    page.toggle(key="thinking-demo").set_value(False)
    shown(page)
    chat = send(page, "think")
    settled(app, page, chat)
    assert page.expander[0].label == "Thought for a moment"
    assert not page.expander[0].proto.expanded
    assert gateway.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_picture_goes_to_a_model_that_sees(app: Application, page: AppTest, gateway: FakeGateway) -> None:
    page.chat_input[0].set_value("what is this?").upload("red.png", png())
    shown(page)
    settled(app, page, str(page.query_params["chat"]))
    content = gateway.requests[0]["messages"][0]["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert content[1] == {"type": "text", "text": "what is this?"}


def test_a_picture_for_a_model_that_only_reads_is_refused_and_nothing_is_lost(page: AppTest, gateway: FakeGateway) -> None:
    page.radio[0].set_value("words-only")
    shown(page)
    page.chat_input[0].set_value("what is this?").upload("red.png", png())
    shown(page)
    assert "only reads text" in page.warning[0].value
    assert page.chat_input[0].value == "what is this?"
    assert gateway.requests == []
    page.radio[0].set_value("demo")
    shown(page)
    send(page, "what is this?")
    until(lambda: bool(gateway.requests))
    assert gateway.requests[0]["messages"][0]["content"][0]["type"] == "image_url"


def test_a_file_that_is_no_picture_is_refused_by_name(page: AppTest, gateway: FakeGateway) -> None:
    page.chat_input[0].set_value("look").upload("notes.png", b"not a picture")
    shown(page)
    assert "notes.png" in page.warning[0].value
    assert page.chat_input[0].value == "look"
    assert gateway.requests == []


def test_a_picture_is_made_with_the_chosen_options_and_again(app: Application, page: AppTest, gateway: FakeGateway) -> None:
    page.segmented_control(key="mode").set_value("image")
    shown(page)
    page.slider(key="image-steps-demo-image").set_value(4)
    page.toggle(key="image-random-demo-image").set_value(False)
    shown(page)
    page.number_input(key="image-seed-demo-image").set_value(42)
    page.text_input(key="image-negative-demo-image").set_value("squares")
    shown(page)
    chat = send(page, "a red circle")
    settled(app, page, chat)
    sent = gateway.requests[0]
    assert (sent["model"], sent["prompt"], sent["size"]) == ("demo-image", "a red circle", "128x128")
    assert (sent["seed"], sent["num_inference_steps"], sent["negative_prompt"]) == (42, 4, "squares")
    assert {"Same seed", "New seed"} <= set(labels(page))
    page.button(key=f"new-{app.store.messages(chat)[-1].id}").click()
    shown(page)
    settled(app, page, chat)
    assert "seed" not in gateway.requests[1]
    assert [message.state for message in app.store.messages(chat)] == [State.DONE] * 3


def test_an_example_picks_the_model_it_needs(app: Application, page: AppTest, gateway: FakeGateway) -> None:
    page.button(key="example-a red circle on a blue background").click()
    shown(page)
    settled(app, page, str(page.query_params["chat"]))
    assert gateway.requests[0]["model"] == "demo-image"
    assert page.radio[0].value == "demo-image"


def test_the_picked_model_stays_and_a_chat_brings_its_own(app: Application, page: AppTest) -> None:
    page.radio[0].set_value("words-only")
    shown(page)
    chat = send(page, "hello")
    settled(app, page, chat)
    page.button(key="new-chat").click()
    shown(page)
    assert page.radio[0].value == "words-only"
    assert open_page().radio[0].value == "demo"
    assert open_page(chat).radio[0].value == "words-only"


def test_chats_can_be_renamed_and_deleted(app: Application, page: AppTest) -> None:
    chat = send(page, "hello")
    settled(app, page, chat)
    page.text_input(key=f"title-{chat}").set_value("A better name")
    shown(page)
    assert "A better name" in labels(page)
    page.button(key=f"delete-{chat}").click()
    shown(page)
    assert "A better name" not in labels(page)
    assert page.title[0].value == "What shall we make?"
    assert "does not exist" in open_page(chat).info[0].value


def test_a_gateway_that_is_away_is_a_banner_and_the_history_stays(app: Application, page: AppTest, gateway: FakeGateway) -> None:
    chat = send(page, "hello")
    settled(app, page, chat)
    gateway.__exit__(None, None, None)
    shown(page)
    assert "does not answer" in page.error[0].value
    assert str(gateway.port) in page.error[0].value
    assert "Try again" in labels(page)
    assert "You said: hello." in texts(page)
    with FakeGateway(port=gateway.port):
        shown(page)
        assert not page.error


def test_a_key_the_gateway_does_not_know_is_a_banner_with_its_words(app: Application, page: AppTest, gateway: FakeGateway) -> None:
    gateway.api_key = "another"
    shown(page)
    assert "this API key is not known" in page.error[0].value
    assert "401" in page.error[0].value


def test_a_long_chat_shows_its_last_messages_first(app: Application, page: AppTest) -> None:
    chat = app.store.create_chat("long", "demo").id
    for number in range(40):
        app.store.add_message(chat, "user", "text", text=f"message number {number}.")
    page = open_page(chat)
    assert "message number 9." not in texts(page)
    assert "message number 10." in texts(page)
    page.button(key="earlier").click()
    shown(page)
    assert "message number 0." in texts(page)


def test_a_data_directory_that_cannot_be_used_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    (settings.data_dir / "file").touch()
    monkeypatch.setenv("TANDEM_DATA_DIR", str(settings.data_dir / "file"))
    page = open_page()
    assert str(settings.data_dir / "file" / "chat_app") in page.error[0].value
    assert "--data-dir" in page.error[0].value


def test_a_message_nobody_works_on_is_shown_as_interrupted(app: Application) -> None:
    chat = app.store.create_chat("lost", "demo").id
    app.store.add_message(chat, "assistant", "text", state=State.RUNNING, text="half an ans")
    page = open_page(chat)
    assert "half an ans" in texts(page)
    assert "restarted before" in page.warning[0].value
