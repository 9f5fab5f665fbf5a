"""Image runs against a gateway over real HTTP, and what their events mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chat_app.application import Application
from chat_app.painting import progress_of
from chat_app.records import ImageRequest, Message, State
from tests.chat_app.fake_gateway import FakeGateway
from tests.chat_app.waiting import until

Finish = Callable[[str], Message]
WISH = ImageRequest("demo-image", "a red circle", "128x64", seed=7)


def test_a_picture_is_kept_with_seed_and_size(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    message = finish(app.draw(None, WISH))
    assert message.state is State.DONE
    (picture,) = message.pictures
    assert (picture.width, picture.height, picture.seed, picture.media_type) == (128, 64, 7, "image/png")
    assert app.store.image_path(picture).read_bytes().startswith(b"\x89PNG")
    sent = gateway.requests[0]
    assert {key: sent[key] for key in ("model", "prompt", "size", "n", "seed", "stream")} == {
        "model": "demo-image",
        "prompt": "a red circle",
        "size": "128x64",
        "n": 1,
        "seed": 7,
        "stream": True,
    }
    assert "negative_prompt" not in sent


def test_every_option_reaches_the_gateway(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    wish = ImageRequest("demo-image", "circles", "64x64", 2, 1, 3, 2.5, "squares")
    message = finish(app.draw(None, wish))
    assert [picture.seed for picture in message.pictures] == [1, 2]
    sent = gateway.requests[0]
    assert (sent["num_inference_steps"], sent["guidance_scale"], sent["negative_prompt"], sent["n"]) == (3, 2.5, "squares", 2)


def test_the_same_seed_gives_the_same_file_and_a_new_one_is_left_to_the_gateway(
    app: Application, gateway: FakeGateway, finish: Finish
) -> None:
    chat_id = app.draw(None, WISH)
    first = finish(chat_id)
    app.draw_again(first, 7)
    again = finish(chat_id)
    app.draw_again(first, None)
    other = finish(chat_id)
    assert again.pictures[0].digest == first.pictures[0].digest != other.pictures[0].digest
    assert "seed" not in gateway.requests[2]
    assert len(app.store.messages(chat_id)) == 4


def test_cancel_hangs_up_while_the_job_runs(app: Application, gateway: FakeGateway, finish: Finish) -> None:
    chat_id = app.draw(None, ImageRequest("demo-image", "a slow circle", "128x128", num_inference_steps=50))
    run = app.runs.of_chat(chat_id)
    assert run is not None
    until(lambda: (progress := run.snapshot().progress) is not None and progress.text.startswith("step "))
    run.stop()
    gateway.hangups.get(timeout=5)
    message = finish(chat_id)
    assert (message.state, message.pictures) == (State.STOPPED, ())


@pytest.mark.parametrize(("prompt", "code"), [("break", "out_of_memory"), ("refuse", "invalid_size")])
def test_failures_carry_the_servers_code(app: Application, finish: Finish, prompt: str, code: str) -> None:
    message = finish(app.draw(None, ImageRequest("demo-image", prompt, "128x128")))
    assert message.state is State.FAILED
    assert message.failure is not None
    assert message.failure.code == code


QUEUED, LOADING, PROGRESS = (f"image_generation.{name}" for name in ("queued", "loading", "progress"))


@pytest.mark.parametrize(
    ("event", "n", "text", "fraction"),
    [
        ({"type": QUEUED, "position": 2}, 1, "2nd in the queue", None),
        ({"type": QUEUED, "position": 11}, 1, "11th in the queue", None),
        ({"type": QUEUED, "position": 0}, 1, "Next in the queue", None),
        ({"type": LOADING, "progress": 0.421, "stage": "reading"}, 1, "Loading the model 42 %: reading", 0.421),
        ({"type": LOADING, "progress": None, "stage": None}, 1, "Loading the model", None),
        ({"type": PROGRESS, "step": 3, "steps": 8, "eta_s": 2.2, "image_index": 0}, 1, "step 3/8 · ETA 2 s", 0.375),
        ({"type": PROGRESS, "step": 8, "steps": 8, "eta_s": None, "image_index": 1}, 2, "picture 2 of 2 · step 8/8", 1.0),
    ],
)
def test_events_become_sentences(event: dict[str, object], n: int, text: str, fraction: float | None) -> None:
    shown = progress_of(event, n)
    assert shown is not None
    assert (shown[0].text, shown[0].fraction) == (text, fraction)


def test_an_unknown_event_is_ignored() -> None:
    assert progress_of({"type": "image_generation.partial_image"}, 1) is None
