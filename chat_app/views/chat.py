"""The chat page, from top to bottom: which chat, which model, what was said, what is being said, what to say next."""

from __future__ import annotations

import sqlite3

import streamlit as st

from chat_app.services import application
from chat_app.settings import settings_from
from chat_app.views.composer import draw_composer, send
from chat_app.views.live import draw_live, watch
from chat_app.views.picker import draw_picker, settle_model
from chat_app.views.sidebar import draw_chat_menu, draw_sidebar, open_chat
from chat_app.views.start import draw_outage, draw_start
from chat_app.views.thread import draw_thread

try:
    app = application()
except (OSError, sqlite3.Error) as error:
    st.error(
        f"The data directory {settings_from().folder} cannot be used: {error}. Choose another one with --data-dir.", icon=":material/error:"
    )
    st.stop()
listing = app.listing()
wanted = st.query_params.get("chat")
chat = app.store.chat(wanted) if wanted else None
card = settle_model(listing, chat)

with st.sidebar:
    draw_sidebar(app, chat)

draw_outage(app, listing)
with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute", key="header"):
    if card is not None:
        draw_picker(listing.cards, card)
    if chat is not None:
        draw_chat_menu(app, chat)

revision = app.store.revision(chat.id) if chat else ""  # before anything is drawn: what changes from here on is seen by `watch`
run = app.runs.of_chat(chat.id) if chat else None
example = None
if chat is not None:
    draw_thread(app, app.store.messages(chat.id), card, run)
    if run is not None:
        draw_live(app, run)
    else:
        watch(app, chat.id, revision)
elif wanted:
    st.info("This chat does not exist, or no longer.", icon=":material/search_off:")
    st.button("Start a new one", on_click=open_chat)
elif listing.cards:
    example = draw_start(listing, card)

draft = draw_composer(app, listing, card, run)
if example is not None:
    card, draft = example
if draft is not None and card is not None:
    send(app, chat.id if chat else None, card, draft)
