"""Text runs against a gateway over real HTTP, with real threads."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from chat_app.application import Application
from chat_app.catalog import ModelCard
from chat_app.records import Message, State
from chat_app.runs import AlreadyRunning, Run
from chat_app.settings import Settings
from tests.chat_app.fake_gateway import FakeGateway
from tests.chat_app.waiting import until

DEMO = ModelCard("demo", reasoning=True, input_modalities=("text",))
Finish = Callable[[str], Message]


def live(app: Application, chat_id: str) -> Run:
    run = app.runs.of_chat(chat_id)
    assert run is not None
    return run


def text_of(run: Run) -> str:
    return run.snapshot().message.text


def test_an_answer_is_stored_with_usage_and_timings(app: Application, finish: Finish) -> None:
    message = finish(app.ask(None, DEMO, "hello"))
    assert message.state is State.DONE
    assert message.text == "You said: hello. I can chat and draw. "
    assert message.usage is not None
    assert (message.usage.prompt_tokens, message.usage.completion_tokens) == (7, 20)
    assert message.timings.first_token_s is not None
    assert message.finish_reason == "stop"


def test_reasoning_is_kept_apart_counted_once_and_never_replayed(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    chat_id = app.ask(None, DEMO, "think", thinking=True)
    message = finish(chat_id)
    assert message.reasoning == "Let me see. "
    assert message.timings.thought_s is not None
    app.ask(chat_id, DEMO, "and now?", thinking=False)
    finish(chat_id)
    first, second = gateway.requests
    assert first["chat_template_kwargs"] == {"enable_thinking": True}
    assert second["chat_template_kwargs"] == {"enable_thinking": False}
    assert second["messages"] == [
        {"role": "user", "content": "think"},
        {"role": "assistant", "content": message.text},
        {"role": "user", "content": "and now?"},
    ]


def test_the_thinking_switch_is_not_sent_to_a_model_that_cannot_reason(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    finish(app.ask(None, ModelCard("words-only"), "hello", thinking=True))
    assert "chat_template_kwargs" not in gateway.requests[0]
    assert gateway.requests[0]["stream_options"] == {"include_usage": True}


def test_stop_hangs_up_at_once_and_keeps_the_text(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    delays = [stop_delay(app, gateway, finish) for _ in range(3)]
    assert min(delays) < 0.1  # the promise to the person; the best of three, because the machine has other things to do


def stop_delay(app: Application, gateway: FakeGateway, finish: Finish) -> float:
    """Seconds from the stop to the moment the gateway knows of it."""
    chat_id = app.ask(None, DEMO, "hang")
    run = live(app, chat_id)
    until(lambda: text_of(run).endswith("draw. "))
    stopped_at = time.monotonic()
    run.stop()
    assert run.snapshot().message.state in (State.CANCELLING, State.STOPPED)
    heard_at = gateway.hangups.get(timeout=5)
    message = finish(chat_id)
    assert message.state is State.STOPPED
    assert message.text == "You said: hang. I can chat and draw. "
    assert message.failure is None
    return heard_at - stopped_at


def test_stop_before_the_first_header_hangs_up_too(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    chat_id = app.ask(None, DEMO, "silent")
    until(lambda: bool(gateway.requests))
    live(app, chat_id).stop()
    gateway.hangups.get(timeout=5)
    assert finish(chat_id).state is State.STOPPED


def test_stop_before_the_connection_is_made_ends_the_run(app: Application, finish: Finish) -> None:
    chat_id = app.ask(None, DEMO, "hang")
    live(app, chat_id).stop()
    assert finish(chat_id).state is State.STOPPED


def test_an_error_in_mid_stream_keeps_the_partial_text(app: Application, finish: Finish) -> None:
    message = finish(app.ask(None, DEMO, "break"))
    assert message.state is State.FAILED
    assert message.text.startswith("You said: break")
    assert message.failure is not None
    assert message.failure.message == "the engine of 'demo' died; the next request starts it anew"
    assert (message.failure.code, message.failure.request_id) == ("engine_died", "req-chat")


def test_a_connection_cut_in_mid_stream_is_a_failure_with_the_partial_text(app: Application, finish: Finish) -> None:
    message = finish(app.ask(None, DEMO, "cut"))
    assert message.state is State.FAILED
    assert message.text
    assert message.failure is not None
    assert message.failure.request_id == "req-chat"


def test_a_refusal_shows_the_servers_words_and_is_not_repeated_by_itself(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    message = finish(app.ask(None, DEMO, "refuse"))
    assert message.failure is not None
    assert message.failure.message == "too many requests: 3 are running, the limit is 3; try again in 2 s"
    assert (message.failure.status, message.failure.code, message.failure.request_id) == (429, "rate_limit_exceeded", "req-error")
    assert len(gateway.requests) == 1


def test_a_retry_takes_the_place_of_what_failed(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    chat_id = app.ask(None, DEMO, "break")
    app.retry(finish(chat_id), DEMO)
    finish(chat_id)
    assert [message.role for message in app.store.messages(chat_id)] == ["user", "assistant"]
    assert gateway.requests[0]["messages"] == gateway.requests[1]["messages"]


def test_the_wait_for_a_loading_model_is_explained(app: Application, finish: Finish) -> None:
    chat_id = app.ask(None, ModelCard("sleepy"), "hello")
    run = live(app, chat_id)
    until(lambda: run.snapshot().message.state is State.LOADING)
    progress = run.snapshot().progress
    assert progress is not None
    assert (progress.text, progress.fraction) == ("Loading sleepy 42 %: reading weights", 0.42)
    assert finish(chat_id).state is State.DONE


def test_a_chat_has_one_run_at_a_time(app: Application) -> None:
    chat_id = app.ask(None, DEMO, "hang")
    with pytest.raises(AlreadyRunning):
        app.ask(chat_id, DEMO, "me too")
    assert [message.text for message in app.store.messages(chat_id) if message.role == "user"] == ["hang"]


def test_partial_text_is_on_disk_while_the_run_lives(app: Application) -> None:
    chat_id = app.ask(None, DEMO, "slow hang")
    until(lambda: bool(app.store.messages(chat_id)[-1].text))
    assert app.store.messages(chat_id)[-1].state.active


def test_what_a_killed_app_left_behind_is_marked_as_interrupted(app: Application, settings: Settings) -> None:
    chat_id = app.ask(None, DEMO, "hang")  # all its words at once: this app is not killed, and must save no more
    until(lambda: bool(app.store.messages(chat_id)[-1].text))
    restarted = Application(settings)
    message = restarted.store.messages(chat_id)[-1]
    restarted.close()
    assert message.state is State.STOPPED
    assert message.text
    assert message.failure is not None
    assert message.failure.code == "interrupted"


def test_a_gateway_that_is_away_is_named_and_the_last_list_kept(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    assert [card.name for card in app.listing().cards] == ["demo", "demo-image", "words-only", "sleepy"]
    gateway.__exit__(None, None, None)
    listing = app.listing()
    assert listing.failure is not None
    assert listing.failure.code == "connection_error"
    assert listing.card("demo") is not None
    message = finish(app.ask(None, DEMO, "hello"))
    assert message.failure is not None
    assert message.failure.code == "connection_error"
