"""Finished messages: text, pictures, what they cost, what can be done with them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import streamlit as st

from chat_app.application import Application
from chat_app.blocks import plain, presentable
from chat_app.catalog import ModelCard
from chat_app.records import Failure, Message, Picture, State
from chat_app.runs import AlreadyRunning, Run
from chat_app.store import INTERRUPTED
from chat_app.views.footer import answer_line, picture_line, request_line, thought_label

USER = ":material/person:"
ASSISTANT = ":material/bolt:"
PAINTER = ":material/palette:"
SHOWN_AT_FIRST = 30
MIN_SIDE, MAX_SIDE = 256, 512  # how wide a picture is drawn: small ones enlarged, large ones reduced


def draw_thread(app: Application, messages: list[Message], card: ModelCard | None, run: Run | None) -> None:
    """All but the message that `run` is making. The oldest of a long chat wait behind a button."""
    if not messages:
        return
    chat_id = messages[0].chat_id
    hidden = 0 if st.session_state.get("whole_chat") == chat_id else max(0, len(messages) - SHOWN_AT_FIRST)
    if hidden:
        st.button(f"Show {hidden} earlier messages", key="earlier", on_click=_show_all, args=(chat_id,))
    for message in messages[hidden:]:
        if run is None or message.id != run.id:
            draw_message(app, _settled(message), card, last=message is messages[-1])


def _settled(message: Message) -> Message:
    """Nobody works on a message that is called active but is no live run's: its last save must have failed."""
    return replace(message, state=State.STOPPED, failure=INTERRUPTED) if message.state.active else message


def _show_all(chat_id: str) -> None:
    st.session_state["whole_chat"] = chat_id


def draw_message(app: Application, message: Message, card: ModelCard | None, *, last: bool) -> None:
    if message.role == "user":
        with st.chat_message("user", avatar=USER):
            draw_pictures(app, message, MIN_SIDE // 2)
            st.text(message.text)
        return
    with st.chat_message("assistant", avatar=PAINTER if message.kind == "image" else ASSISTANT):
        if message.reasoning:
            draw_reasoning(message.id, message.reasoning, thought_label(message))
        if message.text:
            st.markdown(presentable(message.text), anchors=False)
        elif message.reasoning and message.finish_reason == "length":
            st.markdown("*All tokens went into thinking. Turn **Thinking** off, or ask for less.*")
        draw_pictures(app, message, MIN_SIDE)
        if message.pictures and message.request is not None:
            st.caption(request_line(message.request))
        if message.failure is not None:
            draw_failure(message.failure)
        if message.kind == "text" or message.state is State.STOPPED:
            st.caption(answer_line(message))
        with st.container(horizontal=True, key=f"actions-{message.id}", gap="small"):
            _draw_actions(app, message, card, last=last)


def _draw_actions(app: Application, message: Message, card: ModelCard | None, *, last: bool) -> None:
    for number, picture in enumerate(message.pictures, 1):
        _draw_download(app, message, picture, str(number) if len(message.pictures) > 1 else "")
    if message.pictures and message.request is not None:
        seed = message.pictures[0].seed
        _again(app, message, "Same seed", ":material/replay:", seed, "The same settings and seed: the same pixels")
        _again(app, message, "New seed", ":material/casino:", None, "The same settings, another picture")
    elif last and card is not None:
        label = "Retry" if message.state is not State.DONE else "Regenerate"
        st.button(
            label,
            icon=":material/refresh:",
            type="secondary" if label == "Retry" else "tertiary",
            key=f"retry-{message.id}",
            on_click=_retry,
            args=(app, message, card),
        )


def _again(app: Application, message: Message, label: str, icon: str, seed: int | None, hint: str) -> None:
    key = f"{label.split()[0].lower()}-{message.id}"
    st.button(label, icon=icon, type="tertiary", key=key, help=hint, on_click=_draw_again, args=(app, message, seed))


def _draw_again(app: Application, message: Message, seed: int | None) -> None:
    with suppress(AlreadyRunning):  # a second click, or another tab was quicker
        app.draw_again(message, seed)


def _retry(app: Application, message: Message, card: ModelCard) -> None:
    with suppress(AlreadyRunning):
        app.retry(message, card)


def _draw_download(app: Application, message: Message, picture: Picture, number: str) -> None:
    path = app.store.image_path(picture)
    st.download_button(
        f"Download {number}".strip(),
        data=path.read_bytes,
        file_name=f"tandem-{picture.seed if picture.seed is not None else picture.digest[:8]}{path.suffix}",
        mime=picture.media_type,
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
        key=f"download-{message.id}-{number}",
    )


def draw_pictures(app: Application, message: Message, min_side: int) -> None:
    if not message.pictures:
        return
    with st.container(horizontal=True, key=f"picture-{message.role}-{message.id}"):
        for picture in message.pictures:
            path = app.store.image_path(picture)
            if not path.exists():
                st.caption("This picture's file is gone from the data directory.")
                continue
            caption = picture_line(picture) if message.role == "assistant" else None
            alt = message.request.prompt if message.request else "Attached picture"
            st.image(path, width=min(MAX_SIDE, max(min_side, picture.width)), caption=caption, alt=alt)


def draw_reasoning(message_id: int, reasoning: str, label: str) -> None:
    with st.expander(label, icon=":material/lightbulb:", type="compact", key=f"reasoning-{message_id}"):
        st.caption(presentable(reasoning))


def draw_failure(failure: Failure) -> None:
    facts = [f"code `{failure.code}`"] if failure.code else []
    facts += [f"status {failure.status}"] if failure.status else []
    facts += [f"request `{failure.request_id}`"] if failure.request_id else []
    details = "  \n:small[" + " · ".join(facts) + "]" if facts else ""
    draw = st.warning if failure.code == "interrupted" else st.error
    draw(plain(failure.message) + details, icon=":material/error:")
