"""What the model gets of what was said."""

from __future__ import annotations

from dataclasses import replace

from chat_app.conversation import messages_for_model, title_of
from chat_app.records import ImageRequest, Message, Picture, State

USER = Message(1, "c", "user", "text", State.DONE, 0.0, text="hi")
ANSWER = Message(2, "c", "assistant", "text", State.DONE, 0.0, text="hello", reasoning="secret")
PICTURE = Picture("d", "image/png", 1, 1)


def url(picture: Picture) -> str:
    return f"data:{picture.digest}"


def test_reasoning_is_left_out_and_empty_turns_too() -> None:
    history = [USER, ANSWER, USER, replace(ANSWER, text="", state=State.FAILED), USER]
    sent = messages_for_model(history, sees=None, context_length=None, data_url=url)
    assert [message["role"] for message in sent] == ["user", "assistant", "user", "user"]
    assert "secret" not in str(sent)


def test_pictures_go_to_a_model_that_sees_or_may_see() -> None:
    asked = replace(USER, pictures=(PICTURE,))
    for sees in (True, None):
        (sent,) = messages_for_model([asked], sees=sees, context_length=None, data_url=url)
        assert sent == {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:d"}}, {"type": "text", "text": "hi"}],
        }
    (told,) = messages_for_model([asked], sees=False, context_length=None, data_url=url)
    assert told == {"role": "user", "content": "hi\n[1 attached picture(s), not shown to this model]"}


def test_a_picture_that_was_made_is_told_in_words() -> None:
    made = replace(ANSWER, kind="image", text="", pictures=(PICTURE,), request=ImageRequest("m", "a cat", "64x64"))
    sent = messages_for_model([USER, made], sees=True, context_length=None, data_url=url)
    assert sent[1] == {"role": "assistant", "content": "[picture made from the prompt: a cat]"}


def test_the_oldest_turns_go_first_and_the_last_one_never() -> None:
    long = replace(USER, text="x" * 900)
    sent = messages_for_model([long, ANSWER, long, ANSWER, USER], sees=None, context_length=600, data_url=url)
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert len(messages_for_model([long], sees=None, context_length=10, data_url=url)) == 1


def test_titles_are_short_single_lines() -> None:
    assert title_of("  What\n can you do? ") == "What can you do?"
    assert title_of("word " * 30) == "word word word word word word word word word…"
    assert title_of(" ") == "New chat"
