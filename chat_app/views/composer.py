"""Where a message is written: mode, options of the mode, Stop, and the line itself.

Nothing typed is ever lost: what cannot be sent now goes back into the line, attachments stay attached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
from streamlit.typing import UploadedFile

from chat_app.application import Application, Listing
from chat_app.attachments import FILE_TYPES, MAX_FILE_MB, Refused, refusal, shrink
from chat_app.catalog import ModelCard
from chat_app.records import ImageRequest, Picture, State
from chat_app.runs import AlreadyRunning, Run
from chat_app.views.options import image_request, options_popover
from chat_app.views.picker import first_of, pick_kind
from chat_app.views.sidebar import open_chat

LINE = "composer"
ATTACHED = "attached"
NOTICE = "notice"
UNTIL_IDLE = "notice_until_idle"
RESTORE = "restore"


@dataclass(frozen=True)
class Draft:
    text: str
    pictures: tuple[Picture, ...]


def draw_composer(app: Application, listing: Listing, card: ModelCard | None, run: Run | None) -> Draft | None:
    """The message just sent, if one was."""
    state = st.session_state
    if RESTORE in state:
        state[LINE] = state.pop(RESTORE)
    if run is None and state.pop(UNTIL_IDLE, False):
        state.pop(NOTICE, None)
    with st.bottom:
        if notice := state.get(NOTICE):
            st.warning(notice, icon=":material/info:")
        _draw_attached(app)
        with st.container(horizontal=True, vertical_alignment="center", key="composer-row", gap="small"):
            if card is not None:
                _draw_mode(listing.cards, card)
            if run is not None:
                _draw_stop(run)
    placeholder = "Describe a picture" if card and card.kind == "image" else f"Message {card.name}" if card else "No model to talk to"
    sent = st.chat_input(
        placeholder, key=LINE, accept_file="multiple", file_type=FILE_TYPES, max_upload_size=MAX_FILE_MB, disabled=card is None
    )
    if sent is None:
        return None
    return _draft(app, sent.text, sent.files)


def _draw_mode(cards: Sequence[ModelCard], card: ModelCard) -> None:
    modes = {"chat": "Chat", "image": "Image"}
    if first_of(cards, "chat") and first_of(cards, "image"):
        st.session_state["mode"] = card.kind
        st.segmented_control(
            "Mode",
            list(modes),
            key="mode",
            format_func=lambda kind: modes[kind],
            label_visibility="collapsed",
            on_change=_switch_mode,
            args=(cards,),
        )
    if card.image is not None:
        options_popover(card, card.image)
    elif card.reasoning:
        st.toggle("Thinking", value=card.thinking is not False, key=f"thinking-{card.name}", persist_state="session")


def _switch_mode(cards: Sequence[ModelCard]) -> None:
    picked = st.session_state["mode"]  # None after a click on the mode that is already on: nothing to do
    if picked is not None:
        pick_kind(cards, picked)


def _draw_stop(run: Run) -> None:
    verb = "Cancel" if run.kind == "image" else "Stop"
    cancelling = run.snapshot().message.state is State.CANCELLING
    st.space("stretch")
    st.button(
        "Stopping…" if cancelling else verb,
        icon=":material/stop_circle:",
        key="stop",
        type="primary",
        disabled=cancelling,
        shortcut="Esc",
        on_click=run.stop,
    )


def _draw_attached(app: Application) -> None:
    attached: tuple[Picture, ...] = st.session_state.get(ATTACHED, ())
    if attached:
        with st.container(horizontal=True, vertical_alignment="center", key="attached"):
            for picture in attached:
                st.image(app.store.image_path(picture), width=64, alt="Attached picture, not sent yet")
            st.button("Remove", icon=":material/close:", type="tertiary", key="remove-attached", on_click=_remove_attached)


def _remove_attached() -> None:
    st.session_state.pop(ATTACHED, None)
    st.session_state.pop(NOTICE, None)


def _draft(app: Application, text: str, files: Sequence[UploadedFile]) -> Draft | None:
    """What was sent now and what was still attached. None, and the text back in the line, if a file is refused."""
    pictures: tuple[Picture, ...] = st.session_state.get(ATTACHED, ())
    try:
        pictures += tuple(app.keep(shrink(file.getvalue(), file.name)) for file in files)
    except Refused as error:
        hold_back(Draft(text, pictures), f"{error} Nothing was sent.")
        return None
    return Draft(text, pictures)


def hold_back(draft: Draft, notice: str, *, until_idle: bool = False) -> None:
    """Put the draft back into the composer, and say why."""
    st.session_state[UNTIL_IDLE] = until_idle
    st.session_state[RESTORE] = draft.text
    st.session_state[ATTACHED] = draft.pictures
    st.session_state[NOTICE] = notice
    st.rerun()


def send(app: Application, chat_id: str | None, card: ModelCard, draft: Draft) -> None:
    """Start the run this draft asks for and show its chat; or hold the draft back."""
    if reason := refusal(card, len(draft.pictures)):
        hold_back(draft, reason)
    if card.kind == "image" and not draft.text.strip():
        hold_back(draft, "Say in words what the picture should show.")
    try:
        chat_id = start(app, chat_id, card, draft)
    except AlreadyRunning:
        notice = "This chat is still being answered. Stop that answer or wait for its end; your message is kept."
        hold_back(draft, notice, until_idle=True)
    else:
        st.session_state.pop(ATTACHED, None)
        st.session_state.pop(NOTICE, None)
        open_chat(chat_id)
        st.rerun()


def start(app: Application, chat_id: str | None, card: ModelCard, draft: Draft) -> str:
    if card.image is not None:
        request: ImageRequest = image_request(card, card.image, draft.text.strip())
        return app.draw(chat_id, request)
    thinking = st.session_state.get(f"thinking-{card.name}", card.thinking is not False) if card.reasoning else None
    return app.ask(chat_id, card, draft.text, draft.pictures, thinking)
