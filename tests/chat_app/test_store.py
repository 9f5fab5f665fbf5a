"""What is kept on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from chat_app.records import Failure, ImageRequest, Picture, State, Timings, Usage
from chat_app.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def test_a_message_comes_back_as_it_was_saved(store: Store) -> None:
    chat = store.create_chat("Title", "m")
    request = ImageRequest("m", "p", "64x64", 2, 3, 4, 5.0, "n")
    message = store.add_message(chat.id, "assistant", "image", state=State.QUEUED, model="m", request=request)
    full = replace(
        message,
        state=State.FAILED,
        text="t",
        reasoning="r",
        pictures=(Picture("d", "image/png", 1, 2, 3, 4.0),),
        usage=Usage(1, 2),
        timings=Timings(0.1, 0.2, 0.3),
        finish_reason="stop",
        failure=Failure("m", "c", "r", 500),
    )
    store.save(full)
    assert store.message(message.id) == full
    assert store.messages(chat.id) == [full]


def test_the_chat_used_last_comes_first_and_remembers_its_model(store: Store) -> None:
    first, second = store.create_chat("first", "a"), store.create_chat("second", "a")
    store.add_message(first.id, "assistant", "text", model="b")
    store.rename_chat(second.id, "renamed")
    assert [(chat.title, chat.model) for chat in store.chats()] == [("first", "b"), ("renamed", "a")]
    assert store.chat("nothing") is None


def test_an_image_is_stored_once_and_goes_with_the_last_chat_that_shows_it(store: Store) -> None:
    picture = store.keep_image(b"content", "image/png", 1, 1)
    assert store.keep_image(b"content", "image/png", 1, 1) == picture
    chats = [store.create_chat(title, "m") for title in ("a", "b")]
    for chat in chats:
        store.add_message(chat.id, "user", "text", pictures=(picture,))
    store.delete_chat(chats[0].id)
    assert store.image_path(picture).exists()
    store.delete_chat(chats[1].id)
    assert not store.image_path(picture).exists()
    assert store.messages(chats[1].id) == []


def test_the_revision_changes_with_every_message_and_at_the_end_of_a_run(store: Store) -> None:
    chat = store.create_chat("a", "m")
    seen = [store.revision(chat.id)]
    message = store.add_message(chat.id, "assistant", "text", state=State.RUNNING)
    seen.append(store.revision(chat.id))
    store.save(replace(message, text="more"))
    assert store.revision(chat.id) == seen[-1]
    store.save(replace(message, state=State.DONE))
    seen.append(store.revision(chat.id))
    store.delete_message(message.id)
    seen.append(store.revision(chat.id))
    assert len(set(seen[:3])) == 3
    assert seen[3] != seen[2]


def test_a_failed_write_changes_nothing(store: Store) -> None:
    with pytest.raises(Exception, match="FOREIGN KEY"):
        store.add_message("no such chat", "user", "text")
    chat = store.create_chat("still", "works")
    assert store.chats() == [chat]
