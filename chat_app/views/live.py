"""A message in the making, drawn from its run.

The fragment ticks only while the run lives. Closed Markdown blocks are drawn outside of it, once; when
enough of the tail has closed, the page is drawn again and they move there.
"""

from __future__ import annotations

import time

import streamlit as st

from chat_app.application import Application
from chat_app.blocks import closed_length, presentable
from chat_app.records import Message, State
from chat_app.runs import Run, Snapshot
from chat_app.views.footer import thought_label
from chat_app.views.thread import ASSISTANT, MIN_SIDE, PAINTER, draw_pictures

TICK_S = 0.12
IMAGE_TICK_S = 0.25
WATCH_S = 2.0
MAX_TAIL = 2000  # closed characters left in the tail before the page freezes them
SHOWN_REASONING = 1500


def draw_live(app: Application, run: Run) -> None:
    if run.kind == "image":
        with st.chat_message("assistant", avatar=PAINTER):
            message = run.snapshot().message
            draw_pictures(app, message, MIN_SIDE)
            _live_progress(run, len(message.pictures))
        return
    with st.chat_message("assistant", avatar=ASSISTANT):
        message = run.snapshot().message
        frozen = closed_length(message.text)
        reasoning_done = message.reasoning if message.text else ""
        if reasoning_done:
            _reasoning(message, live=False)
        if frozen:
            st.markdown(presentable(message.text[:frozen]), anchors=False)
        _live_tail(run, frozen, bool(reasoning_done))


@st.fragment(run_every=TICK_S)
def _live_tail(run: Run, frozen: int, reasoning_drawn: bool) -> None:
    snapshot = run.snapshot()
    message = snapshot.message
    tail = message.text[frozen:]
    if not message.state.active or closed_length(tail) > MAX_TAIL or (message.text and message.reasoning and not reasoning_drawn):
        st.rerun()
    if message.reasoning and not reasoning_drawn:
        _reasoning(message, live=True)
    if tail:
        st.markdown(presentable(tail), anchors=False)
    elif not message.text and not message.reasoning:
        _waiting(snapshot)


def _reasoning(message: Message, *, live: bool) -> None:
    thinking_s = time.time() - message.created_at - (message.timings.first_token_s or 0.0)
    label = f"Thinking for {max(0.0, thinking_s):.0f} s" if live else thought_label(message)
    with st.expander(label, icon="spinner" if live else ":material/lightbulb:", type="compact", key=f"reasoning-{message.id}"):
        shown = message.reasoning[-SHOWN_REASONING:]
        st.caption(presentable(("… " if len(shown) < len(message.reasoning) else "") + shown))


def _waiting(snapshot: Snapshot) -> None:
    progress = snapshot.progress
    text = "Stopping…" if snapshot.message.state is State.CANCELLING else progress.text if progress else "Waiting"
    if progress is not None and progress.fraction is not None:
        st.progress(min(1.0, max(0.0, progress.fraction)), text=text)
    else:
        st.markdown(f":shimmer[{text}…]")


@st.fragment(run_every=IMAGE_TICK_S)
def _live_progress(run: Run, drawn: int) -> None:
    """Pictures that are ready are drawn by the page, never by a tick."""
    snapshot = run.snapshot()
    if not snapshot.message.state.active or len(snapshot.message.pictures) > drawn:
        st.rerun()
    _waiting(snapshot)


@st.fragment(run_every=WATCH_S)
def watch(app: Application, chat_id: str, revision: str) -> None:
    """Draw the page again when another tab has changed this chat."""
    if app.store.revision(chat_id) != revision:
        st.rerun()
